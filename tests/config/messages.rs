//! What an operator is told of the mistakes that people make: the place of the cause, and what to write.

use std::path::Path;

use crimux::config::Remainder;

use crate::{backend, parse, refused, valid, with};

/// Keys of a file by the text that is wrong, and the whole message.
#[track_caller]
fn told(cases: &[(String, &str, &str)]) {
    for (text, place, message) in cases {
        let found: Vec<_> = match parse(text) {
            Err(problems) => problems.0.iter().map(ToString::to_string).collect(),
            Ok(_) => Vec::new(),
        };
        assert_eq!(found, [format!("{place}: {message}")], "{text}");
    }
}

#[test]
fn an_endpoint_is_answered_with_the_one_that_was_probably_meant() {
    let both = "write https://h:1 with tls, or http://h:1 with insecure: true";
    for (text, message) in [
        ("unix://run/a.sock", "\"unix://run/a.sock\" is not an absolute path (write unix:///run/a.sock)"),
        ("/run/a.sock", "\"/run/a.sock\" is not an endpoint (write unix:///run/a.sock)"),
        (
            "unix://$RUN/a.sock",
            "\"unix://$RUN/a.sock\" is not an absolute path (fill in $RUN; the path begins with /)",
        ),
        (
            "unix:///run/",
            "\"unix:///run/\" is a directory, not a socket (name the socket in it, as in unix:///run/NAME.sock)",
        ),
        ("unix://", "\"unix://\" names no socket (write unix:///PATH, as in unix:///run/NAME.sock)"),
        ("tcp://h:1", &format!("\"tcp://h:1\" has an unknown scheme ({both})")),
        ("h:1", &format!("\"h:1\" is not an endpoint ({both})")),
        ("localhost:1", "\"localhost:1\" is not an endpoint (write http://localhost:1)"),
        ("http://::1:1", "\"http://::1:1\" has no valid host (write http://[::1]:1)"),
        ("http://h:1/", "\"http://h:1/\" has no valid port (write http://h:1)"),
        ("https://h", "\"https://h\" has no port (expected HOST:PORT, an IPv6 address in brackets)"),
    ] {
        told(&[(backend(&format!("endpoint: '{text}'")), "3:20: backends.one.endpoint", message)]);
    }
    for (line, place, message) in [
        (
            "listen: unix://run/x.sock",
            "5:9: listen",
            "\"unix://run/x.sock\" is not an absolute path (write unix:///run/x.sock)",
        ),
        ("listen: run/x.sock", "5:9: listen", "\"run/x.sock\" is not an absolute path (write /run/x.sock)"),
        (
            "listen: ./x.sock",
            "5:9: listen",
            "\"./x.sock\" is not an absolute path (write a path that begins with /, such as /run/x.sock)",
        ),
        (
            "listen: unix://x",
            "5:9: listen",
            "\"unix://x\" is not an absolute path (write a path that begins with /, such as unix:///run/x)",
        ),
        (
            "state_dir: var",
            "5:12: state_dir",
            "\"var\" is not an absolute path (write a path that begins with /, such as /var/lib/crimux)",
        ),
        ("state_dir: var/lib", "5:12: state_dir", "\"var/lib\" is not an absolute path (write /var/lib)"),
        (
            "tracing: { otlp: localhost:4317 }",
            "5:18: tracing.otlp",
            "\"localhost:4317\" is not an address (write http://localhost:4317)",
        ),
        (
            "admin: { http: ':19440' }",
            "5:16: admin.http",
            "\":19440\" is not an address (write 127.0.0.1:19440, or off)",
        ),
    ] {
        told(&[(with(line), place, message)]);
    }
}

#[test]
fn a_word_in_capitals_and_a_number_without_a_unit_are_answered_with_the_right_ones() {
    for (line, place, message) in [
        ("log: { format: JSON }", "5:16: log.format", "\"JSON\" is not known here (write json)"),
        ("log: { level: WARN }", "5:15: log.level", "\"WARN\" is not a log level (write warn)"),
        ("cgroup_driver: Systemd", "5:16: cgroup_driver", "\"Systemd\" is not known here (write systemd)"),
        (
            "cgroup_driver: sytemd",
            "5:16: cgroup_driver",
            "\"sytemd\" is not known here (expected systemd or cgroupfs); did you mean systemd?",
        ),
        ("drain_timeout: 5", "5:16: drain_timeout", "\"5\" is not a duration (write 5s)"),
        (
            "drain_timeout: 1m",
            "5:16: drain_timeout",
            "\"1m\" is too long (at most 20s: the systemd unit ends crimux 25 s after the signal)",
        ),
        ("drain_timeout: \"'2s'\"", "5:16: drain_timeout", "\"'2s'\" is not a duration (write 2s)"),
        ("drain_timeout: 2d", "5:16: drain_timeout", "\"2d\" is not a duration (write 20s at most)"),
        (
            "limits: { connections: 99999999999999999999 }",
            "5:24: limits.connections",
            "\"99999999999999999999\" is out of range (expected 8 to 100000)",
        ),
        (
            "limits: { unread_mib: 32Mi }",
            "5:23: limits.unread_mib",
            "\"32Mi\" is not a whole number (write it without a unit, expected 24 to 16384)",
        ),
        (
            "limits: { connections: 1e3 }",
            "5:24: limits.connections",
            "\"1e3\" is not a whole number (expected 8 to 100000)",
        ),
        ("runtimes: {}", "5:1: runtimes", "unknown key (did you mean backends or handlers?)"),
        ("draining: [a]", "5:1: draining", "unknown key (a drain is a command: crimux backend drain NAME)"),
        ("handover_timeout: 2 min", "5:19: handover_timeout", "\"2 min\" is not a duration (write 2m)"),
    ] {
        told(&[(with(line), place, message)]);
    }
    let required = "\"yes\" is neither true nor false (write true)";
    told(&[(backend("endpoint: unix:///a, required: yes"), "3:41: backends.one.required", required)]);
}

#[test]
fn where_a_mapping_is_wanted_the_message_writes_it() {
    for (line, place, right) in [
        ("handlers: { x: one }", "5:16: handlers.x: \"one\" is a single value", "x: { backend: one }"),
        ("handlers: { x: [one] }", "5:16: handlers.x: a list stands here", "x: { backend: NAME }"),
        ("handlers: [ x ]", "5:11: handlers: a list stands here", "x: { backend: NAME }"),
        ("handlers: one", "5:11: handlers: \"one\" is a single value", "one: { backend: NAME }"),
        (
            "handlers: { x: { split: one } }",
            "5:25: handlers.x.split: \"one\" is a single value",
            "split: [ { backend: one } ]",
        ),
        (
            "handlers: { x: { split: [ one ] } }",
            "5:27: handlers.x.split[0]: \"one\" is a single value",
            "{ backend: one }",
        ),
        (
            "default_split: { backend: one }",
            "5:16: default_split: a mapping stands here",
            "default_split: [ { backend: NAME } ]",
        ),
        ("log: debug", "5:6: log: \"debug\" is a single value", "log: { level: debug }"),
        ("log: json", "5:6: log: \"json\" is a single value", "log: { format: json }"),
        ("events: 5s", "5:9: events: \"5s\" is a single value", "events: { grace: 5s }"),
        (
            "tracing: http://h:1",
            "5:10: tracing: \"http://h:1\" is a single value",
            "tracing: { otlp: http://h:1 }",
        ),
        ("limits: 300", "5:9: limits: \"300\" is a single value", "limits: { connections: 256 }"),
        (
            "  \"three\": unix:///c",
            "5:12: backends.three: \"unix:///c\" is a single value",
            "three: { endpoint: unix:///c }",
        ),
        (
            "  three: /run/c.sock",
            "5:10: backends.three: \"/run/c.sock\" is a single value",
            "three: { endpoint: unix:///run/c.sock }",
        ),
        (
            "  three: u@h",
            "5:10: backends.three: the value is a single value",
            "three: { endpoint: unix:///PATH }",
        ),
    ] {
        let (place, found) = place.split_at(place.rfind(": ").unwrap());
        told(&[(with(line), place, &format!("{} (write {right})", &found[2..]))]);
    }
    for (backends, right) in [
        ("[ a ]", "a: { endpoint: unix:///PATH }"),
        ("[ { name: a, endpoint: unix:///a } ]", "a: { endpoint: unix:///PATH }"),
        ("unix:///run/a.sock", "NAME: { endpoint: unix:///run/a.sock }"),
        ("", "NAME: { endpoint: unix:///PATH }"),
    ] {
        let problems = parse(&format!("default_backend: a\nbackends: {backends}\n")).unwrap_err();
        assert!(problems.0[0].message.ends_with(&format!("(write {right})")), "{problems}");
    }
}

#[test]
fn what_the_parser_refuses_is_named_where_it_begins_and_in_our_words() {
    for (line, place, message) in [
        ("admin: { socket: /x", "5:8: admin", "\"{\" is not closed (end it with })"),
        ("admin: { socket: /x\nlog: { level: info }", "5:8: admin", "\"{\" is not closed (end it with })"),
        ("handlers: { x: { split: [ { backend: one } } }", "5:25", "\"[\" is not closed (end it with ])"),
        ("handlers: { x: { backend: one }", "5:11: handlers", "\"{\" is not closed (end it with })"),
        ("admin: { socket: '/x }'", "5:8: admin", "\"{\" is not closed (end it with })"),
        ("listen: \"/x", "5:9: listen", "'\"' is not closed (write \"/x\")"),
        ("log:\n  level: \"info", "6:10: log.level", "'\"' is not closed (write \"info\")"),
        ("listen: \"/x # here", "5:9: listen", "'\"' is not closed (end it with \")"),
        ("listen: '/x", "5:9: listen", "\"'\" is not closed (write '/x')"),
        ("admin: { socket: /x # }", "5:8: admin", "\"{\" is not closed (end it with })"),
        ("handlers:\n\tx: { backend: one }", "6:1", "a tab indents this line (use spaces)"),
        ("listen: @x", "5:9", "a value cannot begin with '@' (put it in quotes)"),
        ("listen: *x", "5:9", "YAML aliases are not supported (write the value out)"),
        (
            "listen: \"\\d\"",
            "5:9",
            "\"\\\" begins an escape in double quotes (write \\\\, or use single quotes)",
        ),
    ] {
        let found = parse(&with(line)).unwrap_err().to_string();
        assert_eq!(found, format!("{place}: {message}"), "{line}");
    }
    // What is closed is not said to be open.
    for line in ["admin: { socket: /x http: off }}", "log: { level: \"a: {\" format }", "x: it's { open"] {
        let found = parse(&with(line)).map_or_else(|problems| problems.to_string(), |_| String::new());
        assert!(!found.contains("is not closed"), "{line}: {found}");
    }
}

#[test]
fn a_merge_key_is_one_problem() {
    let text = "default_backend: a\nbackends:\n  a: &e { endpoint: unix:///run/a.sock }\n  b: { <<: *e }\n";
    let message = "YAML merge keys (<<) and aliases are not supported (write the values out)";
    told(&[(text.to_owned(), "4:8: backends.b.\"<<\"", message)]);
    let list = text.replace("*e", "[*e, *e]");
    told(&[(list, "4:8: backends.b.\"<<\"", message)]);
}

#[test]
fn a_file_of_another_kind_is_one_problem() {
    let other = |text: &str, place: &str, part: &str| refused(text, &[(place, part)]);
    other(
        "[backends.a]\nendpoint = \"unix:///x\"\n",
        "1:1",
        "this is not YAML: \"[backends.a]\" looks like TOML or INI",
    );
    other("# x\n\n[backends]\n", "3:1", "\"[backends]\" looks like TOML or INI");
    other("; x\nlisten = /x\nstate_dir = /y\n", "2:1", "\"listen = /x\" looks like TOML or INI");
    other("listen = \"/x\"\n", "1:1", "looks like TOML or INI");
    let kubelet = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nevictionHard: {}\n";
    other(kubelet, "1:1", "this is a KubeletConfiguration, kubelet's file, not a configuration of crimux");
    other("kind: KubeletConfiguration\n", "1:1", "this is a KubeletConfiguration");
    other("apiVersion: v1\nkind: ConfigMap\ndata: {}\n", "1:1", "(check the file in its data)");
    other("apiVersion: v1\nkind: Pod\nspec: {}\n", "1:1", "an object of Kubernetes, \"Pod\"");
    other("runtime-endpoint: unix:///x\n", "1:1", "this is crictl's file");
    // With a key of ours it is ours.
    refused(&with("kind: x"), &[("5:1: kind", "unknown key")]);
}

#[test]
fn the_known_keys_are_listed_once() {
    let text = with("colour: red\nshape: round\nlog: { colour: red, shape: round }");
    refused(
        &text,
        &[
            ("5:1: colour", "unknown key (known here: listen, "),
            ("6:1: shape", "unknown key (the message of line 5 lists the known ones)"),
            ("7:8: log.colour", "unknown key (known here: format, level)"),
            ("7:21: log.shape", "unknown key (the message of line 7 lists the known ones)"),
        ],
    );
}

#[test]
fn a_path_with_a_stray_blank_or_an_unfilled_template_is_a_warning() {
    let blank = "has a blank at an end of a name (remove it)";
    let unfilled = |piece: &str| {
        format!("\"{piece}\" is taken as it stands, because nothing fills it in (write the path itself)")
    };
    for (keys, key, message) in [
        ("endpoint: 'unix:///run/a.sock '", "endpoint", format!("\"/run/a.sock \" {blank}")),
        ("endpoint: \"unix:///run/a.sock\\n\"", "endpoint", format!("\"/run/a.sock\\n\" {blank}")),
        ("endpoint: 'unix:///run/{{x}}.sock'", "endpoint", unfilled("{{x}}")),
        ("endpoint: unix:///a, socket: '/run/$NAME.sock'", "socket", unfilled("$NAME")),
        (
            "endpoint: 'https://h:1', tls: { ca: 'ca.crt ' }",
            "tls.ca",
            format!("\"/etc/crimux/ca.crt \" {blank}"),
        ),
        (
            "endpoint: 'https://h:1', tls: { ca: ' ca.crt' }",
            "tls.ca",
            format!("\"/etc/crimux/ ca.crt\" {blank}"),
        ),
        ("endpoint: 'https://h:1', tls: { ca: '<ca>' }", "tls.ca", unfilled("<ca>")),
    ] {
        let found: Vec<_> = valid(&backend(keys)).warnings().iter().map(ToString::to_string).collect();
        assert_eq!(found, [format!("backends.one.{key}: {message}")], "{keys}");
    }
    for (line, key) in [
        ("listen: '/run/x.sock '", "listen"),
        ("state_dir: '/var/lib/${NODE}'", "state_dir"),
        ("admin: { socket: \"/run/x\\t.sock\\t\" }", "admin.socket"),
    ] {
        let keys: Vec<_> = valid(&with(line)).warnings().into_iter().map(|warning| warning.key).collect();
        assert_eq!(keys, [key], "{line}");
    }
    assert_eq!(valid(&with("state_dir: '/var/lib/my state'")).warnings(), []);
}

/// The keys of the warnings, and of the notes, that are given beside problems; `None` if nothing can be said.
fn beside(text: &str) -> Option<(Vec<String>, Vec<String>)> {
    let problems = parse(text).err()?;
    let rest = Remainder::of(text, Path::new("/etc/crimux"), &problems)?;
    let keys = |found: Vec<crimux::config::ConfigWarning>| found.into_iter().map(|found| found.key).collect();
    Some((keys(rest.warnings()), keys(rest.notes())))
}

#[test]
fn warnings_are_given_beside_problems_unless_a_problem_could_change_them() {
    let volatile = "state_dir: /run/state\n";
    for (line, warnings, notes) in [
        // Notes say that no handler leads to a backend, so a mistake in a handler leaves them out.
        ("drain_timeout: 1m", &["state_dir"][..], &[][..]),
        ("handlers: { x: nine }", &["state_dir"], &[]),
        ("handlers: { x: { split: [ { backend: one, weight: 0 } ] } }", &["state_dir"], &[]),
        (
            "  three: { endpoint: unix:///c, requird: true }",
            &["state_dir"],
            &["backends.three", "backends.two"],
        ),
        ("  three: { endpoint: c }", &["state_dir"], &["backends.three", "backends.two"]),
        ("  three: { }", &["state_dir"], &["backends.three", "backends.two"]),
        (
            "  three: { endpoint: 'https://h:1', tls: { cert: c } }",
            &["state_dir"],
            &["backends.three", "backends.two"],
        ),
        (
            "  three: { endpoint: 'http://h:1', insecure: true, required: 7 }",
            &["state_dir", "backends.three.endpoint"],
            &["backends.three", "backends.two"],
        ),
        // Whether its streams can be reached depends on the mistyped key.
        (
            "  three: { endpoint: unix:///c, local: false, streaming: { relay: nevr } }",
            &["state_dir"],
            &["backends.three", "backends.two"],
        ),
        ("  THREE: { endpoint: unix:///c }", &["state_dir"], &[]),
        ("log: *x\nlog: { }", &[], &[]),
    ] {
        let text = format!("{volatile}{}", with(line));
        let found = beside(&text);
        if line.starts_with("log") {
            assert_eq!(found, None, "behind a syntax error there is nothing: {line}");
            continue;
        }
        let owned = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
        let (mut found_warnings, mut found_notes) = found.expect(line);
        found_notes.sort_unstable();
        found_warnings.sort_by_key(|key| key != "state_dir");
        assert_eq!((found_warnings, found_notes), (owned(warnings), owned(notes)), "{line}");
    }
    assert_eq!(
        beside("default_backend: two\nlisten_mode: '0666'\nbackends: { one: { endpoint: unix:///a } }\n"),
        Some((vec!["listen_mode".into()], vec![]))
    );
    assert_eq!(
        beside("state_dir: /run/x\nstate_dir: /run/y\nbackends: { one: { endpoint: unix:///a } }\n"),
        Some((vec![], vec![]))
    );
    assert_eq!(beside("listen: /x\n"), None);
    assert_eq!(beside("kind: Pod\n"), None);
}
