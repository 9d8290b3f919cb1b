//! The configuration file as operators meet it: what is accepted, what is refused, and with which words.
//!
//! Every check has a test that names the exact place; the last ones hold the generated reference, the schema
//! and the example to the table of keys.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crimux::config::keys::{self, DefaultValue, KEYS, ValueKind};
use crimux::config::{
    Config, ConfigError, Endpoint, Identity, LogFormat, Problems, RelayMode, StatsPolicy, Target, Timeouts,
    reference,
};
use proptest::prelude::*;

#[path = "config/messages.rs"]
mod messages;

const MINIMAL: &str = "\
default_backend: one
backends:
  one: { endpoint: unix:///run/one.sock }
  two: { endpoint: unix:///run/two.sock }
";

fn parse(text: &str) -> Result<Config, Problems> {
    Config::parse(text, Path::new("/etc/crimux"))
}

fn valid(text: &str) -> Config {
    parse(text).unwrap_or_else(|problems| panic!("{problems}"))
}

/// `MINIMAL` with one more line at its end.
fn with(line: &str) -> String {
    format!("{MINIMAL}{line}\n")
}

/// A file whose one backend has these keys.
fn backend(keys: &str) -> String {
    format!("default_backend: one\nbackends:\n  one: {{ {keys} }}\n")
}

/// Checks that the problems are exactly these, each given as `LINE:COLUMN: KEY` and a part of the message.
#[track_caller]
fn refused(text: &str, expected: &[(&str, &str)]) {
    let found = match parse(text) {
        Err(problems) => problems.0.iter().map(ToString::to_string).collect(),
        Ok(_) => Vec::new(),
    };
    let same = found.len() == expected.len()
        && found.iter().zip(expected).all(|(found, (place, part))| {
            found.strip_prefix(place).is_some_and(|rest| rest.starts_with(": ") && rest.contains(part))
        });
    assert!(same, "expected {expected:#?}\nfound {found:#?}\nin\n{text}");
}

#[test]
fn a_minimal_file_has_all_defaults() {
    let config = valid("default_backend: one\nbackends: { one: { endpoint: 'unix:///run/one.sock' } }");
    assert_eq!(config.listen, Path::new("/run/crimux/crimux.sock"));
    assert_eq!((config.listen_mode, config.listen_owner), (0o660, Some((0, 0))));
    assert_eq!(config.state_dir, Path::new("/var/lib/crimux"));
    assert_eq!(config.admin.socket, Path::new("/run/crimux/admin.sock"));
    assert_eq!(config.admin.http, Some("127.0.0.1:19440".parse().unwrap()));
    assert_eq!(config.identity, Identity::DefaultBackend);
    assert_eq!(config.drain_timeout, Duration::from_secs(5));
    assert_eq!(config.pod_sandbox_stats, StatsPolicy::Unimplemented);
    assert_eq!((config.events.buffer, config.events.grace), (1000, Duration::from_secs(30)));
    assert_eq!((config.log.format, config.log.level.as_str()), (LogFormat::Text, "info"));
    assert_eq!((config.tracing.as_ref(), config.handlers.len()), (None, 0));
    let one = &config.backends["one"];
    assert_eq!(one.endpoint, Endpoint::Unix("/run/one.sock".into()));
    assert_eq!((one.local, one.required, one.max_in_flight), (true, false, 1000));
    assert_eq!(one.timeouts, Timeouts::default());
    assert_eq!((&one.tls, &one.socket, one.streaming.relay), (&None, &None, RelayMode::Auto));
    assert_eq!(config.warnings(), []);
}

#[test]
fn the_example_is_valid_and_means_what_it_says() {
    let config = valid(include_str!("../config.example.yaml"));
    assert_eq!(config.backends.keys().collect::<Vec<_>>(), ["containerd", "containerd-2", "edge", "kata"]);
    let edge = &config.backends["edge"];
    let tls = edge.tls.as_ref().unwrap();
    assert_eq!(tls.ca, Path::new("/etc/crimux/ca.crt"), "relative paths start at the file's directory");
    assert!(!edge.local, "what is not unix:// is not local unless it is said");
    assert_eq!(edge.endpoint, Endpoint::Tcp { host: "node-7.example".into(), port: 10010, tls: true });
    assert_eq!(edge.streaming.address, Some(("node-7.example".into(), 10011)));
    let share =
        |backend: &str, weight| Target { backend: backend.into(), backend_handler: "runc".into(), weight };
    assert_eq!(config.handlers["canary"], [share("containerd", 9), share("containerd-2", 1)]);
    assert_eq!(config.handlers["runc"][0].backend_handler, "", "the backend's own default");
    let shares =
        [Target { backend_handler: String::new(), ..share("containerd", 1) }, share("containerd-2", 0)];
    assert_eq!(config.default_split, shares);
    assert_eq!(config.warnings(), []);
}

#[test]
fn four_mistakes_are_four_problems() {
    let text = "\
listen: /run/crimux.sock
default_backend: containerd
drain_timeout: 25s
backends:
  containerd:
    endpoint: unix:///run/containerd/containerd.sock
    timeout: { list: 1s }
  kata:
    endpoint: /run/kata.sock
handlers:
  kata: { backend: kate }
";
    refused(
        text,
        &[
            ("3:16: drain_timeout", "at most 20s"),
            ("7:5: backends.containerd.timeout", "unknown key (did you mean timeouts?)"),
            ("9:15: backends.kata.endpoint", "write unix:///run/kata.sock"),
            ("11:20: handlers.kata.backend", "did you mean kata?"),
        ],
    );
}

#[test]
fn errors_start_with_the_file_and_the_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("crimux.yaml");
    std::fs::write(&path, "default_backend: one\nbackends: {}\n").unwrap();
    let error = Config::load(&path).unwrap_err();
    let expected = "2:11: backends: there is no backend (name at least one, with its endpoint)";
    assert_eq!(error.to_string(), format!("{}:{expected}", path.display()));
}

#[test]
fn loading_resolves_tls_files_against_the_directory_of_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("crimux.yaml");
    std::fs::write(&path, backend("endpoint: 'https://a:1', tls: { ca: tls/ca.crt }")).unwrap();
    let config = Config::load(&path).unwrap();
    assert_eq!(config.backends["one"].tls.as_ref().unwrap().ca, directory.path().join("tls/ca.crt"));
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = Config::load(Path::new("/nonexistent/crimux.yaml")).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }));
    assert!(error.to_string().starts_with("/nonexistent/crimux.yaml: cannot be read: "), "{error}");
}

#[test]
fn a_file_that_is_not_utf8_names_the_byte() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("crimux.yaml");
    std::fs::write(&path, b"listen: /a\n# \xff\n").unwrap();
    let error = Config::load(&path).unwrap_err().to_string();
    assert!(error.ends_with("crimux.yaml:2:3: this byte is not UTF-8 (save the file as UTF-8)"), "{error}");
}

#[test]
fn an_endless_file_is_refused_after_a_mebibyte() {
    let error = Config::load(Path::new("/dev/zero")).unwrap_err().to_string();
    assert!(error.contains("larger than 1 MiB"), "{error}");
}

#[test]
fn an_empty_file_says_so() {
    for text in ["", "\n", "# only a comment\n", "---\n", "~", "\u{feff}"] {
        refused(text, &[("1:1", "the file is empty (at least default_backend and backends are needed)")]);
    }
}

#[test]
fn a_byte_order_mark_is_no_problem() {
    assert_eq!(parse(&format!("\u{feff}{MINIMAL}")), parse(MINIMAL));
}

#[test]
fn windows_line_ends_are_no_problem() {
    assert_eq!(parse(&MINIMAL.replace('\n', "\r\n")), parse(MINIMAL));
}

#[test]
fn yaml_that_is_broken_is_one_problem_with_its_place() {
    refused("listen: [a, b\nstate_dir: /x\n", &[("1:9", "\"[\" is not closed")]);
    refused("listen: a: b\n", &[("1:10", "a \":\" stands inside a value")]);
    refused(&with("listen: \"/run/never-closed"), &[("5:9", "'\"' is not closed")]);
}

#[test]
fn keys_that_are_indented_too_little_are_told_where_they_belong() {
    let at =
        |indent: &str| format!("default_backend: one\nbackends:\n  one:\n{indent}endpoint: unix:///x.sock\n");
    let missing = ("3:3: backends.one.endpoint", "the key is missing");
    refused(
        &at("  "),
        &[
            missing,
            ("4:3: backends.endpoint", "a key of one of the backends, in the place of a name (indent it"),
        ],
    );
    let hint = "did you mean backends.NAME.endpoint? indent endpoint below that name";
    refused(&at(""), &[missing, ("4:1: endpoint", hint)]);
    let handler = with("handlers:\n  web:\n  backend: one");
    refused(
        &handler,
        &[
            ("6:3: handlers.web.backend", "missing"),
            ("7:3: handlers.backend", "a key of one of the handlers"),
        ],
    );
}

#[test]
fn a_zero_byte_is_named() {
    refused(&with("# \u{e9}\0"), &[("5:4", "a zero byte stands here")]);
}

#[test]
fn what_is_not_a_mapping_is_refused() {
    let right = "(this is no configuration: write default_backend: NAME and backends: { NAME: { endpoint: unix:///PATH } }";
    refused("- a\n- b\n", &[("1:1", &format!("a list stands here {right}"))]);
    refused("hello\n", &[("1:1", &format!("\"hello\" is a single value {right}"))]);
    let right = "backends: the key is missing (write backends: { one: { endpoint: unix:///PATH } })";
    refused("default_backend: one\n", &[("1:1", right)]);
    refused("hello\n", &[("1:1", "\"hello\" is a single value")]);
}

#[test]
fn a_second_document_is_refused() {
    refused(&with("---\nlisten: /run/x.sock"), &[("5:1", "a second YAML document")]);
}

#[test]
fn a_key_given_twice_names_the_first() {
    refused(&with("default_backend: two"), &[("5:1: default_backend", "given twice, first on line 1")]);
    refused(
        "default_backend: one\nbackends:\n  one: { endpoint: unix:///a }\n  one: { endpoint: unix:///b }\n",
        &[("4:3: backends.one", "given twice, first on line 3")],
    );
}

#[test]
fn aliases_tags_and_odd_keys_are_refused() {
    refused(
        &with("events: &e { buffer: 1 }\nlog: *e\nadmin:\n  <<: *e"),
        &[("6:6: log", "aliases are not supported"), ("8:3: admin.\"<<\"", "aliases are not supported")],
    );
    refused(&with("state_dir: !!binary L3g="), &[("5:12: state_dir", "tags are not supported")]);
    refused(&with("events: !x { buffer: [1, 2] }"), &[("5:9: events", "tags are not supported")]);
    refused(&with("? [a, b]\n: c"), &[("5:3", "a key must be text")]);
}

#[test]
fn unknown_keys_get_a_hint() {
    refused(&with("drain_timout: 5s"), &[("5:1: drain_timout", "did you mean drain_timeout?")]);
    refused(&with("http: 127.0.0.1:1"), &[("5:1: http", "did you mean admin.http?")]);
    refused(&with("log: { colour: red }"), &[("5:8: log.colour", "known here: format, level")]);
    refused(
        &backend("endpoint: unix:///a, connect: 1s"),
        &[("3:31: backends.one.connect", "did you mean timeouts.connect?")],
    );
}

#[test]
fn a_mistyped_key_is_not_also_missing() {
    refused(
        "default_backed: one\nbackends: { one: { endpont: 'unix:///a' } }\n",
        &[
            ("1:1: default_backed", "did you mean default_backend?"),
            ("2:20: backends.one.endpont", "did you mean endpoint?"),
        ],
    );
    refused(
        &backend("endpoint: 'https://a:1', tsl: { ca: x }"),
        &[("3:35: backends.one.tsl", "did you mean tls?")],
    );
    refused(&with("handlers: { a: { splits: [] } }"), &[("5:18: handlers.a.splits", "did you mean split?")]);
    refused("default_backend: one\nbackend: {}\n", &[("2:1: backend", "did you mean backends?")]);
}

#[test]
fn keys_that_must_be_given_are_missed_where_they_belong() {
    refused("listen: /run/x.sock\n", &[("1:1: backends", "missing"), ("1:1: default_backend", "missing")]);
    refused("default_backend: a\nbackends:\n  a:\n", &[("3:3: backends.a.endpoint", "missing")]);
    refused(&with("handlers:\n  a: { handler: x }"), &[("6:3: handlers.a.backend", "a name under backends")]);
    refused("default_backend: a\nbackends:\n", &[("2:1: backends", "the value is missing")]);
}

#[test]
fn a_section_without_keys_has_its_defaults() {
    assert_eq!(parse(&with("admin:\nlog: {}\nevents: ~\nhandlers:\ntracing:")), parse(MINIMAL));
}

#[test]
fn every_key_refuses_a_value_of_the_wrong_shape() {
    for key in KEYS.iter().filter(|key| !key.path.ends_with(".*") && !key.path.ends_with("[]")) {
        let wrong = if matches!(key.kind, ValueKind::Section | ValueKind::Named | ValueKind::List) {
            "text"
        } else {
            "[list]"
        };
        let mut text = String::new();
        let mut indent = String::new();
        let (parents, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
        for part in parents.split('.').filter(|part| !part.is_empty()) {
            let part = part.replace('*', "chosen");
            match part.strip_suffix("[]") {
                Some(list) => text.extend([&indent, list, ":\n", &indent, "  - weight_of_a_share: 0\n"]),
                None => text.extend([&indent, part.as_str(), ":\n"]),
            }
            indent.push_str(if part.ends_with("[]") { "    " } else { "  " });
        }
        text.extend([&indent, name, ": ", wrong, "\n"]);
        let path = key.path.replace('*', "chosen").replace("[]", "[0]");
        let problems = parse(&text).unwrap_err().0;
        let about = problems.iter().filter(|p| p.key == path).map(|p| p.message.as_str()).collect::<Vec<_>>();
        let expected = match key.kind {
            ValueKind::Section | ValueKind::Named => " }".to_owned(),
            ValueKind::List => " } ]".to_owned(),
            kind => format!("(expected {}", kind.shape()),
        };
        let is_right = |message: &str| message.ends_with(&format!("{expected})"));
        assert!(matches!(about[..], [one] if is_right(one)), "{path}: {about:?}\n{text}");
    }
}

#[test]
fn values_without_anything_are_refused() {
    refused(&with("state_dir:"), &[("5:1: state_dir", "the value is missing (expected an absolute path)")]);
    refused(&with("log: { level: }"), &[("5:8: log.level", "the value is missing")]);
}

#[test]
fn durations_have_units_and_are_above_zero() {
    for (text, millis) in [("1s", 1000), ("500ms", 500), ("1m30s", 90_000), ("1h", 3_600_000), ("0h1ms", 1)] {
        let config = valid(&backend(&format!("endpoint: unix:///a, timeouts: {{ read: {text} }}")));
        let timeouts = config.backends["one"].timeouts;
        assert_eq!(timeouts, Timeouts { read: Duration::from_millis(millis), ..Timeouts::default() });
    }
    for (text, part) in [
        ("5", "not a duration"),
        ("0s", "zero"),
        ("0", "not a duration"),
        ("-1s", "negative"),
        ("1.5s", "not a duration"),
        ("1 s", "not a duration"),
        ("s", "not a duration"),
        ("1d", "not a duration"),
        ("''", "not a duration"),
        ("99999999999999999999h", "not a duration"),
        ("9999999999999999h", "not a duration"),
        ("1h1ms", "at most 1h"),
    ] {
        refused(&with(&format!("events: {{ grace: {text} }}")), &[("5:18: events.grace", part)]);
    }
    assert_eq!(valid(&with("drain_timeout: 20s")).drain_timeout, Duration::from_secs(20));
    refused(&with("drain_timeout: 20001ms"), &[("5:16: drain_timeout", "at most 20s")]);
}

#[test]
fn endpoints_of_every_kind_are_read() {
    let tcp = |host: &str, port, tls| Endpoint::Tcp { host: host.into(), port, tls };
    for (text, tls, expected) in [
        ("unix:///run/a.sock", false, Endpoint::Unix("/run/a.sock".into())),
        ("http://127.0.0.1:80", false, tcp("127.0.0.1", 80, false)),
        ("http://localhost:80", false, tcp("localhost", 80, false)),
        ("http://[::1]:65535", false, tcp("::1", 65535, false)),
        ("https://[2001:db8::1]:10010", true, tcp("2001:db8::1", 10010, true)),
        ("https://node_7.example:1", true, tcp("node_7.example", 1, true)),
        ("vsock://3:10010", false, Endpoint::Vsock { cid: 3, port: 10010 }),
    ] {
        let tls = if tls { ", tls: { ca: /ca }" } else { "" };
        let config = valid(&backend(&format!("endpoint: '{text}'{tls}")));
        assert_eq!(config.backends["one"].endpoint, expected);
    }
}

#[test]
fn bad_endpoints_are_refused() {
    for (text, part) in [
        ("/run/a.sock", "write unix:///run/a.sock"),
        ("unix:/run/a.sock", "write unix:///run/a.sock"),
        ("run/a.sock", "is not an endpoint"),
        ("unix://run/a.sock", "not an absolute path"),
        ("unix:///run/", "is a directory"),
        ("unix:///a\\0b", "zero byte"),
        ("tcp://a:1", "unknown scheme"),
        ("https://a", "has no port"),
        ("https://a:0", "no valid port"),
        ("https://a:65536", "no valid port"),
        ("https://a:+1", "no valid port"),
        ("https://a:1/", "no valid port"),
        ("https://:1", "no valid host"),
        ("https://a b:1", "no valid host"),
        ("https://300.1.1.1:1", "no valid host"),
        ("https://::1:1", "no valid host"),
        ("https://[::1]", "not [IPV6]:PORT"),
        ("https://[a]:1", "not [IPV6]:PORT"),
        ("vsock://3", "not CID:PORT"),
        ("vsock://4294967295:1", "not CID:PORT"),
        ("vsock://3:4294967295", "not CID:PORT"),
        ("vsock://-3:1", "not CID:PORT"),
    ] {
        refused(&backend(&format!("endpoint: \"{text}\"")), &[("3:20: backends.one.endpoint", part)]);
    }
}

#[test]
fn credentials_in_an_endpoint_are_not_repeated() {
    let problems = parse(&backend("endpoint: 'https://me:secret@host:1'")).unwrap_err().to_string();
    assert!(!problems.contains("secret") && problems.contains("no valid host"), "{problems}");
}

#[test]
fn plain_http_to_another_host_must_be_wanted() {
    refused(
        &backend("endpoint: 'http://10.0.0.7:1'"),
        &[("3:20: backends.one.endpoint", "use https:// with tls, or set insecure: true")],
    );
    let config = valid(&backend("endpoint: 'http://10.0.0.7:1', insecure: true"));
    assert_eq!(config.warnings()[0].key, "backends.one.endpoint");
    assert!(config.warnings()[0].message.contains("not encrypted"));
    refused(
        &backend("endpoint: 'https://a:1', tls: { ca: a }, insecure: true"),
        &[("3:61: backends.one.insecure", "always verified")],
    );
}

#[test]
fn tls_belongs_to_https_and_to_nothing_else() {
    refused(&backend("endpoint: 'https://a:1'"), &[("3:20: backends.one.endpoint", "needs tls.ca")]);
    refused(
        &backend("endpoint: 'https://a:1', tls: { server_name: 'a:1' }"),
        &[
            ("3:35: backends.one.tls.ca", "missing"),
            ("3:55: backends.one.tls.server_name", "not a host name"),
        ],
    );
    refused(
        &backend("endpoint: unix:///a, tls: { ca: b }"),
        &[("3:36: backends.one.tls", "only an https://")],
    );
    refused(
        &backend("endpoint: unix:///a, streaming: { tls: true }"),
        &[("3:49: backends.one.streaming.tls", "no tls to verify it with")],
    );
}

#[test]
fn a_certificate_and_its_key_come_together() {
    for (given, other) in [("cert", "key"), ("key", "cert")] {
        let text = backend(&format!("endpoint: 'https://a:1', tls: {{ ca: a, {given}: b }}"));
        let place = format!("3:{}: backends.one.tls.{given}", 51 + given.len());
        refused(&text, &[(&place, &format!("{other} is missing beside it"))]);
    }
}

#[test]
fn names_of_backends_are_labels() {
    for name in ["A", "a_b", "-a", "a-", "a.b", "''", &"a".repeat(64)] {
        let text = format!("{MINIMAL}  {name}: {{ endpoint: unix:///x }}\n");
        let problems = parse(&text).unwrap_err().0;
        assert_eq!(problems.len(), 1, "{name}");
        assert_eq!((problems[0].line, problems[0].column), (5, 3));
        assert!(problems[0].message.starts_with("not a name for a backend"));
    }
    valid(&format!("{MINIMAL}  {}: {{ endpoint: unix:///x }}\n", "a-0".repeat(21)));
}

#[test]
fn references_to_unknown_backends_are_refused() {
    let text = MINIMAL.replace("default_backend: one", "default_backend: tow");
    refused(
        &text,
        &[("1:18: default_backend", "there is no backend \"tow\" (expected one, two); did you mean two?")],
    );
    refused(
        &with("handlers: { a: { split: [ { backend: three } ] } }"),
        &[("5:38: handlers.a.split[0].backend", "there is no backend \"three\"")],
    );
}

#[test]
fn a_handler_has_either_a_backend_or_a_split() {
    refused(
        &with("handlers:\n  a: { backend: one, handler: x, split: [ { backend: one } ] }"),
        &[
            ("6:8: handlers.a.backend", "exclude each other (remove backend, or remove split)"),
            ("6:22: handlers.a.handler", "exclude each other (remove handler, or remove split)"),
        ],
    );
    refused(&with("handlers: { a: one }"), &[("5:16: handlers.a", "\"one\" is a single value")]);
}

#[test]
fn the_handler_without_a_name_is_not_configured() {
    refused(&with("handlers: { '': { backend: one } }"), &[("5:13: handlers.\"\"", "default_backend")]);
}

#[test]
fn a_split_needs_weight_somewhere() {
    let split = |weights: &str| with(&format!("handlers: {{ a: {{ split: [{weights}] }} }}"));
    let share = |weight: &str| format!("{{ backend: one, weight: {weight} }}");
    refused(
        &split(&format!("{}, {}", share("0"), share("0").replace("one", "two"))),
        &[("5:25: handlers.a.split", "weight above 0")],
    );
    refused(&split(""), &[("5:25: handlers.a.split", "weight above 0")]);
    let of_default = |shares: &str| with(&format!("default_split: [{shares}]"));
    refused(&of_default(&share("0")), &[("5:16: default_split", "weight above 0")]);
    refused(&of_default("{ backend: three }"), &[("5:28: default_split[0].backend", "no backend \"three\"")]);
    refused(
        &with("default_split: { backend: one }"),
        &[("5:16: default_split", "(write default_split: [ {")],
    );
    refused(
        &split(&share("-1")),
        &[("5:50: handlers.a.split[0].weight", "out of range (expected 0 to 10000)")],
    );
    refused(&split(&share("half")), &[("5:50: handlers.a.split[0].weight", "not a whole number")]);
    let config = valid(&split(&format!("{}, {{ backend: two }}", share("0"))));
    assert_eq!(config.handlers["a"].iter().map(|target| target.weight).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn no_two_sockets_share_a_path() {
    let text = "\
default_backend: one
listen: unix:///run/a.sock
admin: { socket: /var/run//./a.sock }
backends:
  one: { endpoint: unix:///run/one.sock, socket: /run/b.sock }
  two: { endpoint: unix:///run/two.sock, socket: /run/b.sock }
";
    refused(
        text,
        &[
            ("3:18: admin.socket", "listen has the same path"),
            ("6:50: backends.two.socket", "backends.one.socket has the same path"),
        ],
    );
}

#[test]
fn crimux_is_not_its_own_backend() {
    refused(
        &backend("endpoint: unix:///run/crimux/crimux.sock"),
        &[("3:20: backends.one.endpoint", "this is crimux's own socket, listen")],
    );
}

#[test]
fn the_path_of_a_socket_fits_its_address() {
    let path = |length: usize| format!("/{}", "s".repeat(length - 1));
    assert_eq!(valid(&with(&format!("listen: {}", path(107)))).listen, PathBuf::from(path(107)));
    refused(&with(&format!("listen: {}", path(108))), &[("5:9: listen", "108 bytes long")]);
    let long = backend(&format!("endpoint: 'unix://{}', socket: {}", path(120), path(121)));
    refused(
        &long,
        &[("3:20: backends.one.endpoint", "120 bytes"), ("3:159: backends.one.socket", "121 bytes")],
    );
}

#[test]
fn the_mode_is_octal() {
    for text in ["'0660'", "0660", "660", "0o660", "\"0660\""] {
        assert_eq!(valid(&with(&format!("listen_mode: {text}"))).listen_mode, 0o660);
    }
    for text in ["'0680'", "rw-rw----", "'01777'", "'+660'", "0x1b0", "''"] {
        refused(&with(&format!("listen_mode: {text}")), &[("5:14: listen_mode", "not a file mode")]);
    }
}

#[test]
fn the_owner_is_named_or_numbered() {
    for (text, owner) in [("root:root", Some((0, 0))), ("1000:0", Some((1000, 0))), ("self", None)] {
        assert_eq!(valid(&with(&format!("listen_owner: '{text}'"))).listen_owner, owner);
    }
    for (text, part) in [
        ("root", "has no group"),
        ("no-such-user:root", "there is no user \"no-such-user\""),
        ("root:no-such-group", "there is no group \"no-such-group\""),
        ("4294967295:0", "there is no user"),
        (":", "there is no user"),
    ] {
        refused(&with(&format!("listen_owner: '{text}'")), &[("5:15: listen_owner", part)]);
    }
}

#[test]
fn the_owner_may_be_a_name_of_the_system() {
    let group =
        nix::unistd::Group::from_gid(1.into()).unwrap().expect("group 1 exists on every Linux system");
    let config = valid(&with(&format!("listen_owner: root:{}", group.name)));
    assert_eq!(config.listen_owner, Some((0, 1)));
}

#[test]
fn words_out_of_a_closed_set_get_a_hint() {
    refused(
        &with("identity: crimix"),
        &[("5:11: identity", "(expected default-backend or crimux); did you mean crimux?")],
    );
    refused(
        &with("pod_sandbox_stats: all"),
        &[("5:20: pod_sandbox_stats", "expected unimplemented or union")],
    );
    refused(&with("log: { format: yaml }"), &[("5:16: log.format", "expected text or json")]);
    refused(
        &backend("endpoint: unix:///a, image_handler: yes, required: yes"),
        &[
            ("3:46: backends.one.image_handler", "auto or never"),
            ("3:61: backends.one.required", "(write true)"),
        ],
    );
}

#[test]
fn every_word_of_a_closed_set_is_understood() {
    for key in KEYS {
        let ValueKind::OneOf(words) = key.kind else { continue };
        for word in words {
            let text = match key.path.strip_prefix("backends.*.") {
                Some("streaming.relay") => {
                    backend(&format!("endpoint: unix:///a, streaming: {{ relay: {word} }}"))
                }
                Some(name) => backend(&format!("endpoint: unix:///a, {name}: {word}")),
                None if key.path == "log.format" => with(&format!("log: {{ format: {word} }}")),
                None => with(&format!("{}: {word}", key.path)),
            };
            valid(&text);
        }
    }
}

#[test]
fn log_levels_are_known_words() {
    for level in ["info", "off", "warn,crimux=debug", "info,h2=off,crimux::router=trace"] {
        assert_eq!(valid(&with(&format!("log: {{ level: '{level}' }}"))).log.level, level);
    }
    for (level, part) in [
        ("inf", "did you mean info?"),
        ("loud", "\"loud\" is not a log level"),
        ("", "not a log level"),
        ("info,", "not a log level"),
        ("crimux=verbose", "\"verbose\" is not a log level"),
        ("=info", "not a log target"),
        ("a b=info", "not a log target"),
    ] {
        refused(&with(&format!("log: {{ level: '{level}' }}")), &[("5:15: log.level", part)]);
    }
}

#[test]
fn tracing_is_off_unless_a_collector_is_named() {
    assert_eq!(valid(&with("tracing: { sample_ratio: 0.5 }")).tracing, None);
    let tracing = valid(&with("tracing: { otlp: 'http://[::1]:4317', sample_ratio: 0 }")).tracing.unwrap();
    assert_eq!((tracing.otlp.as_str(), tracing.sample_ratio.to_bits()), ("http://[::1]:4317", 0));
    refused(&with("tracing: { otlp: 127.0.0.1:4317 }"), &[("5:18: tracing.otlp", "is not an address")]);
    refused(&with("tracing: { otlp: 'https://a' }"), &[("5:18: tracing.otlp", "has no port")]);
    for ratio in ["1.01", "-0.1", "nan", "inf", "half"] {
        let text = with(&format!("tracing: {{ sample_ratio: {ratio} }}"));
        refused(&text, &[("5:26: tracing.sample_ratio", "expected a number from 0 to 1")]);
    }
}

#[test]
fn the_admin_address_is_one_or_off() {
    assert_eq!(valid(&with("admin: { http: off }")).admin.http, None);
    assert_eq!(valid(&with("admin: { http: false }")).admin.http, None, "what YAML 1.1 tools make of off");
    assert_eq!(valid(&with("admin: { http: '[::1]:0' }")).admin.http, Some("[::1]:0".parse().unwrap()));
    for text in ["localhost:19440", "19440", "127.0.0.1", "on", "http://127.0.0.1:1"] {
        refused(&with(&format!("admin: {{ http: '{text}' }}")), &[("5:16: admin.http", "is not an address")]);
    }
}

#[test]
fn numbers_have_bounds() {
    refused(
        &with("events: { buffer: 0 }"),
        &[("5:19: events.buffer", "out of range (expected 1 to 1000000)")],
    );
    refused(
        &backend("endpoint: unix:///a, max_in_flight: 99999999999"),
        &[("3:46: backends.one.max_in_flight", "out of range")],
    );
}

#[test]
fn paths_start_at_the_root() {
    refused(&with("state_dir: state"), &[("5:12: state_dir", "\"state\" is not an absolute path")]);
    refused(&with("listen: crimux.sock"), &[("5:9: listen", "not an absolute path")]);
    refused(&with("admin: { socket: '@abstract' }"), &[("5:18: admin.socket", "not an absolute path")]);
}

#[test]
fn keys_that_contradict_each_other_are_refused_where_they_stand() {
    let same = "has the same backend and handler";
    refused(
        &with(
            "handlers: { x: { split: [ { backend: one, weight: 9 }, { backend: two }, { backend: one } ] } }",
        ),
        &[(
            "5:85: handlers.x.split[2].backend",
            "split[0] has the same backend and handler (add its weight there)",
        )],
    );
    refused(
        &with(
            "default_split: [ { backend: two, handler: kata }, { backend: two, handler: kata, weight: 0 } ]",
        ),
        &[("5:62: default_split[1].backend", same)],
    );
    // One runtime may know two handlers: that is a split.
    valid(&with("default_split: [ { backend: two, handler: kata }, { backend: two, handler: runc } ]"));
    refused(
        &with("  three: { endpoint: unix:///c, required: true, optional: true }"),
        &[("5:49: backends.three.optional", "required and optional exclude each other")],
    );
    refused(
        &backend("endpoint: unix:///a, optional: true"),
        &[("3:41: backends.one.optional", "the default backend cannot be optional")],
    );
    for endpoint in ["unix:///a", "vsock://3:1"] {
        let text = backend(&format!("endpoint: '{endpoint}', insecure: true"));
        let problems = parse(&text).unwrap_err().to_string();
        assert!(problems.contains("backends.one.insecure: only an http:// endpoint"), "{problems}");
    }
    valid(&backend("endpoint: 'http://127.0.0.1:1', insecure: true"));
    for (http, endpoint, is_own) in [
        ("127.0.0.1:19440", "http://127.0.0.1:19440", true),
        ("127.0.0.1:19440", "http://localhost:19440", true),
        ("0.0.0.0:19440", "http://127.0.0.1:19440", true),
        ("127.0.0.1:19440", "http://127.0.0.2:19440", false),
        ("127.0.0.1:19440", "http://127.0.0.1:19441", false),
        ("off", "http://127.0.0.1:19440", false),
    ] {
        let text = format!("admin: {{ http: '{http}' }}\n{}", backend(&format!("endpoint: '{endpoint}'")));
        let found = parse(&text).err().map(|problems| problems.to_string()).unwrap_or_default();
        assert_eq!(
            found.contains("4:20: backends.one.endpoint: this is crimux's own admin.http"),
            is_own,
            "{text}: {found}"
        );
    }
}

#[test]
fn what_decides_nothing_or_cannot_work_is_a_warning_where_it_stands() {
    let table = [
        ("state_dir: /run/crimux/state\n", "", "state_dir", "1:12", "does not survive a reboot"),
        ("state_dir: /dev/shm\n", "", "state_dir", "1:12", "does not survive a reboot"),
        ("listen_mode: '0640'\n", "", "listen_mode", "1:14", "takes the write bit"),
        ("", ", timeouts: { list: 2m }", "backends.one.timeouts.list", "4:56", "kubelet gives up"),
        (
            "",
            ", timeouts: { remove_image: 5m }",
            "backends.one.timeouts.remove_image",
            "4:64",
            "kubelet gives up",
        ),
        ("", ", timeouts: { read: 1ms }", "backends.one.timeouts.read", "4:56", "no runtime answers"),
        ("", ", local: false", "backends.one.streaming.address", "4:3", "set streaming.address"),
        (
            "",
            ", streaming: { relay: never, address: 'h:1' }",
            "backends.one.streaming.address",
            "4:74",
            "without effect",
        ),
    ];
    for (top, keys, key, place, part) in table {
        let endpoint = format!("endpoint: unix:///one.sock{keys}");
        let text = if top.is_empty() {
            format!("# one\n{}", backend(&endpoint))
        } else {
            format!("{top}{}", backend(&endpoint))
        };
        let warnings = valid(&text).warnings();
        assert!(warnings.len() == 1 && warnings[0].key == key, "{text}: {warnings:?}");
        assert!(warnings[0].message.contains(part), "{text}: {warnings:?}");
        let (line, column) = crimux::config::position_of(&text, key).unwrap();
        assert_eq!(format!("{line}:{column}"), place, "{text}");
    }
    for fine in ["timeouts: { list: 119s, connect: 5m }", "local: false, streaming: { relay: never }"] {
        assert_eq!(valid(&backend(&format!("endpoint: unix:///a, {fine}"))).warnings(), [], "{fine}");
    }
}

#[test]
fn a_backend_that_no_handler_leads_to_is_a_note() {
    let notes = |text: &str| valid(text).notes().into_iter().map(|note| note.key).collect::<Vec<_>>();
    assert_eq!(notes(MINIMAL), ["backends.two"]);
    assert_eq!(
        notes(&with("handlers: { x: { split: [ { backend: one }, { backend: two, weight: 0 } ] } }")),
        [""; 0]
    );
    assert_eq!(notes(&with("default_split: [ { backend: two } ]")), ["backends.one"]);
}

#[test]
fn what_is_valid_but_perhaps_not_meant_is_remarked() {
    let config = valid(
        "\
listen: /var/run/crio/crio.sock
listen_mode: '0666'
admin: { http: 0.0.0.0:19440 }
default_backend: a
backends:
  a: { endpoint: unix:///run/x.sock }
  b: { endpoint: unix:///run/x.sock }
handlers: { Runc: { backend: a } }
",
    );
    let keys: Vec<_> = config.warnings().into_iter().map(|warning| warning.key).collect();
    let expected = ["listen", "listen", "listen_mode", "admin.http", "backends.b.endpoint", "handlers.Runc"];
    assert_eq!(keys, expected);
    assert!(config.warnings()[4].to_string().contains("backends.a has the same endpoint"));
}

#[test]
fn long_values_are_shortened() {
    let problems = parse(&with(&format!("identity: {}", "é".repeat(5000)))).unwrap_err().to_string();
    assert!(problems.len() < 300, "{} bytes", problems.len());
    let problems = parse(&with(&format!("{}: 1", "é".repeat(500)))).unwrap_err().to_string();
    assert!(problems.len() < 600, "{} bytes", problems.len());
}

#[test]
fn hostile_files_end_soon() {
    let lines = |line: &dyn Fn(usize) -> String| (0..40_000).map(line).collect::<String>();
    let bomb = (0..50).fold(String::from("a0: &a0 [x]\n"), |bomb, level: usize| {
        format!("{bomb}a{}: &a{} [*a{level}, *a{level}, *a{level}]\n", level + 1, level + 1)
    });
    let mib = 1024 * 1024 - 100;
    let hostile = [
        "[".repeat(mib),
        "{".repeat(mib),
        "- ".repeat(mib / 2),
        "? ".repeat(mib / 2),
        "a: ".repeat(mib / 3),
        "\"".repeat(mib),
        "a".repeat(mib),
        "\n".repeat(mib),
        format!("[{}]", "1,".repeat(mib / 3)),
        format!("{{{}}}", "a,".repeat(mib / 3)),
        "&a ".repeat(mib / 3),
        "# ".repeat(mib / 2),
        "--- \n".repeat(mib / 5),
        "x".repeat(2 * mib),
        bomb,
        lines(&|n| format!("key{n}: 1\n")),
        lines(&|_| "listen: 1\n".into()),
        format!("backends:\n{}", lines(&|n| format!(" b{n}: {{}}\n"))),
        format!(
            "default_backend: b1\nbackends: {{ b1: {{}} }}\nhandlers:\n{}",
            lines(&|n| format!(" {n}: {{backend: c}}\n"))
        ),
    ];
    for text in hostile {
        let start = Instant::now();
        let problems = parse(&text).unwrap_err().0;
        let name: String = text.chars().take(30).collect();
        assert!(problems.len() <= 1001, "{name:?}: {} problems", problems.len());
        assert!(start.elapsed() < Duration::from_secs(10), "{name:?}: {:?}", start.elapsed());
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC*") {
        let _ = parse(&text);
    }

    #[test]
    fn no_piece_of_the_example_panics(start in 0usize..6000, length in 0usize..6000, noise in "[\\[\\]{}:,&*!|>'\"#%@` \t\n0-9a-z-]{0,8}") {
        let example = include_str!("../config.example.yaml");
        prop_assert!(example.is_ascii());
        let cut = |at: usize| at.min(example.len());
        let piece = format!("{}{noise}{}", &example[..cut(start)], &example[cut(start + length)..]);
        if let Err(problems) = parse(&piece) {
            let lines = piece.lines().count() + 1;
            prop_assert!(!problems.0.is_empty());
            prop_assert!(problems.0.iter().all(|p| (1..=lines).contains(&p.line) && p.column >= 1));
            prop_assert!(problems.0.iter().all(|p| !p.message.contains('\n') && !p.key.contains('\n')));
        }
    }

    #[test]
    fn no_value_of_any_key_panics(value in "\\PC{0,30}") {
        for key in ["listen", "listen_mode", "listen_owner", "state_dir", "drain_timeout", "identity"] {
            let _ = parse(&with(&format!("{key}: {value:?}")));
        }
        let _ = parse(&backend(&format!("endpoint: {value:?}")));
        let _ = parse(&with(&format!("log: {{ level: {value:?} }}\ntracing: {{ otlp: {value:?} }}")));
    }
}

/// The values that `yaml` has at a path of the table, as they would be written.
fn values_at(yaml: &serde_yaml::Value, path: &str) -> Vec<String> {
    path.split('.')
        .fold(vec![yaml], |nodes, part| {
            let (name, items) = part.strip_suffix("[]").map_or((part, false), |name| (name, true));
            let below = nodes.into_iter().flat_map(|node| match (name, node.as_mapping()) {
                ("*", Some(map)) => map.values().collect::<Vec<_>>(),
                _ => node.get(name).into_iter().collect(),
            });
            below
                .flat_map(|node| {
                    node.as_sequence().filter(|_| items).map_or(vec![node], |s| s.iter().collect())
                })
                .collect()
        })
        .into_iter()
        .map(|node| {
            serde_yaml::to_string(node)
                .expect("what was read can be written")
                .trim()
                .trim_matches('\'')
                .to_owned()
        })
        .collect()
}

#[test]
fn the_example_shows_every_key_with_its_default() {
    let example: serde_yaml::Value = serde_yaml::from_str(include_str!("../config.example.yaml")).unwrap();
    for key in KEYS {
        let values = values_at(&example, key.path);
        assert!(!values.is_empty(), "config.example.yaml lacks {}", key.path);
        if let DefaultValue::Is(default) = key.default {
            assert!(values.iter().any(|value| value == default), "{}: {values:?}, not {default:?}", key.path);
        }
    }
}

/// The pieces of YAML in a document.
fn pieces(markdown: &str) -> Vec<&str> {
    markdown.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default()).collect()
}

#[test]
fn every_configuration_that_we_show_or_install_is_valid() {
    let (readme, install) = (include_str!("../README.md"), include_str!("../docs/install.md"));
    let installed =
        [include_str!("../deploy/debian/config.yaml"), include_str!("../deploy/kubernetes/base/config.yaml")];
    let whole = [pieces(readme), pieces(install), installed.to_vec()].concat();
    assert_eq!(whole.len(), 4);
    for text in whole {
        valid(text);
    }
    let [backends, split, default_split, re_pointed] = pieces(include_str!("../docs/migration.md"))[..]
    else {
        panic!("the migration guide shows backends, two splits, and the handler re-pointed");
    };
    for handlers in [split, default_split, re_pointed] {
        valid(&format!("default_backend: containerd\n{backends}{handlers}"));
    }
}

#[test]
fn every_row_of_the_table_has_its_section() {
    for key in KEYS {
        let parent = key.parent();
        assert!(parent.is_empty() || keys::find(parent).is_some(), "{} has no row for {parent}", key.path);
        assert!(key.about.ends_with('.'), "{} is not described in sentences", key.path);
        assert_eq!(
            KEYS.iter().filter(|other| other.path == key.path).count(),
            1,
            "{} is there twice",
            key.path
        );
    }
}

#[track_caller]
fn is_current(file: &str, content: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, content).expect("docs/ can be written");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == content, "{file} is out of date: UPDATE=1 cargo test --test config");
}

#[test]
fn the_reference_is_current() {
    is_current("docs/configuration.md", &reference::markdown());
}

#[test]
fn the_schema_is_current() {
    is_current("docs/config.schema.json", &format!("{:#}\n", reference::schema()));
}

#[test]
fn values_of_the_backend_label_are_refused_as_names() {
    for name in ["all", "none"] {
        let text = format!("default_backend: {name}\nbackends:\n  {name}: {{ endpoint: unix:///a.sock }}\n");
        refused(&text, &[(&format!("3:3: backends.{name}"), "values of the backend label of metrics")]);
    }
}
