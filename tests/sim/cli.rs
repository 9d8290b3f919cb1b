//! What operators type, and what it prints and ends with.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use testkit::eventually;
use testkit::runtime::{ApiVersions, SimRuntime};

use crate::support::{Crimux, SOON, config};

/// Runs the built crimux with this standard input.
pub(crate) async fn crimux(arguments: &[&str], input: &str) -> Output {
    let (arguments, input): (Vec<_>, _) =
        (arguments.iter().map(|&a| a.to_owned()).collect(), input.to_owned());
    let run = move || {
        let mut child = Command::new(env!("CARGO_BIN_EXE_crimux"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may end without reading.
        child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
        child.wait_with_output().unwrap()
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// Runs a verb against this crimux; returns the exit code and both outputs.
pub(crate) async fn on(running: &Crimux, arguments: &[&str], input: &str) -> (i32, String, String) {
    let socket = running.dir.path().join("admin.sock");
    let arguments = [arguments, &["--socket", socket.to_str().unwrap()]].concat();
    told(&crimux(&arguments, input).await)
}

pub(crate) fn told(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

pub(crate) async fn check(config: &Path, arguments: &[&str], input: &str) -> (i32, String, String) {
    let arguments = [&["check", "--config", config.to_str().unwrap()], arguments].concat();
    told(&crimux(&arguments, input).await)
}

/// Two runtimes with two sandboxes each, and crimux in front of them.
async fn world() -> (SimRuntime, SimRuntime, Crimux) {
    let a = SimRuntime::builder("containerd").handlers(["a"]).sandboxes(2, 2).start().await;
    let b = SimRuntime::builder("cri-o").handlers(["b"]).sandboxes(2, 2).start().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    (a, b, crimux)
}

#[tokio::test]
async fn tables_are_aligned_and_without_colour_in_a_pipe() {
    let (_a, _b, running) = world().await;
    let (code, table, errors) = on(&running, &["status"], "").await;
    assert_eq!((code, errors.as_str()), (0, ""));
    assert!(!table.contains('\x1b'), "{table:?}");
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines[0], "OK: 2 of 2 backends ready", "{table}");
    let column = lines[2].find("STATE").unwrap();
    assert!(lines[2].starts_with("BACKEND"), "{table}");
    assert!(lines.iter().all(|line| line.len() <= 80), "{table}");
    for (line, backend) in [(lines[3], "a (default) "), (lines[4], "b ")] {
        assert!(line.starts_with(backend) && line[column..].starts_with("ready "), "{table}");
    }
    assert!(table.contains("containerd 2.1.0") && table.contains("default backend a"), "{table}");
}

#[tokio::test]
async fn pods_have_a_string_key_backend_in_json_and_yaml_says_the_same() {
    let (_a, _b, running) = world().await;
    let (_, json, _) = on(&running, &["ps", "--output", "json"], "").await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let backends: Vec<_> =
        json["pods"].as_array().unwrap().iter().map(|pod| pod["backend"].as_str().unwrap()).collect();
    assert_eq!(backends.len(), 4);
    assert!(backends.contains(&"a") && backends.contains(&"b"), "{backends:?}");
    let (_, yaml, _) = on(&running, &["ps", "-o", "yaml"], "").await;
    assert_eq!(serde_yaml::from_str::<serde_json::Value>(&yaml).unwrap(), json);
    let (_, table, _) = on(&running, &["ps"], "").await;
    assert_eq!(table.lines().count(), 5, "{table}");
    let header: Vec<_> =
        table.lines().next().unwrap().split("  ").map(str::trim).filter(|w| !w.is_empty()).collect();
    assert_eq!(header, ["NAMESPACE", "NAME", "HANDLER", "BACKEND", "STATE", "AGE", "SANDBOX ID"]);
}

#[tokio::test]
async fn a_table_of_pods_says_whose_pods_it_cannot_show() {
    let (a, b) = (SimRuntime::builder("a").start().await, SimRuntime::builder("b").start().await);
    b.stop().await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&dir, &[("a", &a), ("b", &b)], "");
    let running = Crimux::start_in(dir, &yaml);
    eventually(SOON, async || on(&running, &["ps"], "").await.1 == "no pods\nnever listed: b\n").await;
    let (code, json, _) = on(&running, &["ps", "--output", "json"], "").await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, json), (0, serde_json::json!({ "pods": [] })));
}

#[tokio::test]
async fn a_route_says_where_it_leads_and_an_unknown_one_fails() {
    let (_a, b, running) = world().await;
    let (code, table, _) = on(&running, &["route", "b"], "").await;
    let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((code, row), (0, vec!["b", "b", "-", "1", "100%", "ready", "taken"]));
    let (code, table, _) = on(&running, &["route", ""], "").await;
    assert_eq!((code, table.lines().nth(1).unwrap().split_whitespace().nth(1)), (0, Some("a")));
    b.stop().await;
    eventually(SOON, async || {
        on(&running, &["route", "b"], "").await.1.contains("refused: backend b is down")
    })
    .await;
    let (code, _, error) = on(&running, &["route", "kata"], "").await;
    assert_eq!(code, 1);
    assert!(error.contains("configured handlers: a, b"), "{error}");
}

#[tokio::test]
async fn forgetting_names_the_pods_and_wants_the_name_of_the_backend() {
    let (_a, b, running) = world().await;
    let name = b.state().sandboxes().next().unwrap().config.metadata.clone().unwrap().name;
    b.stop().await;
    eventually(SOON, async || on(&running, &["status"], "").await.1.contains("down")).await;
    for answer in ["", "y\n", "yes\n", "a\n"] {
        let (code, _, asked) = on(&running, &["backend", "forget", "b"], answer).await;
        assert_eq!(code, 1);
        assert!(asked.contains("forgets 2 sandboxes and 2 containers"), "{asked}");
        assert!(asked.contains(&name) && asked.contains("nothing was forgotten"), "{asked}");
    }
    let (code, done, _) = on(&running, &["backend", "forget", "b"], "b\n").await;
    assert_eq!((code, done.as_str()), (0, "forgot 2 sandboxes and 2 containers of backend b\n"));
    let (code, done, _) = on(&running, &["backend", "forget", "b", "--yes"], "").await;
    assert_eq!((code, done.as_str()), (0, "forgot 0 sandboxes and 0 containers of backend b\n"));
}

#[tokio::test]
async fn a_drain_that_cuts_a_handler_off_wants_force_and_then_warns() {
    let (_a, _b, running) = world().await;
    let (code, _, error) = on(&running, &["backend", "drain", "b"], "").await;
    assert_eq!(code, 1);
    assert!(error.contains("no other backend takes new sandboxes of handler b"), "{error}");
    let (code, done, warning) = on(&running, &["backend", "drain", "b", "--force"], "").await;
    assert_eq!((code, done.as_str()), (0, "backend b takes no new sandboxes; 2 are still on it\n"));
    assert!(warning.starts_with("warning: "), "{warning}");
    let (_, table, _) = on(&running, &["status"], "").await;
    let row = table.lines().find(|line| line.starts_with("b ")).unwrap_or_default();
    assert!(row.contains("draining"), "{table}");
    let (code, done, _) = on(&running, &["backend", "undrain", "b"], "").await;
    assert_eq!((code, done.as_str()), (0, "backend b takes new sandboxes\n"));
}

#[tokio::test]
async fn exit_codes_tell_usage_from_failure_from_bad_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.yaml");
    std::fs::write(&file, "backends: 7\n").unwrap();
    let file = file.to_str().unwrap();
    for (arguments, code, text) in [
        (vec!["--help"], 0, ""),
        (vec!["--version"], 0, ""),
        (vec![], 2, "Usage: crimux"),
        (vec!["status", "--nonsense"], 2, "--nonsense"),
        (vec!["status", "--output", "xml"], 2, "possible values: table, wide, json, yaml"),
        (vec!["check", "--config", file], 64, "backends"),
        (vec!["serve", "--config", file], 64, "backends"),
        (vec!["status", "--socket", "/nonexistent/admin.sock"], 1, "is crimux running?"),
    ] {
        let (got, _, errors) = told(&crimux(&arguments, "").await);
        assert_eq!(got, code, "{arguments:?}: {errors}");
        assert!(errors.contains(text), "{arguments:?}: {errors}");
    }
}

#[tokio::test]
async fn a_broken_configuration_does_not_keep_status_from_being_asked() {
    let (_a, _b, running) = world().await;
    let path = running.dir.path().join("crimux.yaml");
    let (code, _, _) = told(&crimux(&["status", "--config", path.to_str().unwrap()], "").await);
    assert_eq!(code, 0, "the socket is looked up");
    running.rewrite("nonsense: [");
    let (code, _, errors) = told(&crimux(&["status", "--config", path.to_str().unwrap()], "").await);
    assert_eq!(code, 1);
    assert!(errors.contains("(asking the crimux on /run/crimux/admin.sock)"), "{errors}");
}

#[tokio::test]
async fn errors_and_warnings_of_a_file_have_one_form_and_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("crimux.yaml");
    let text = "state_dir: /run/x\ndrain_timeout: 5\ndefault_backend: a\nbackends:\n  a: { endpoint: 'unix:///a ' }\n  b: { endpoint: unix:///b }\n";
    let blank = ":5:18: warning: backends.a.endpoint: \"/a \" has a blank at an end of a name (remove it)";
    let note = ":6:3: note: backends.b: no handler leads to this backend";
    let duration = ":2:16: error: drain_timeout: \"5\" is not a duration (write 5s)";
    let volatile = ":1:12: warning: state_dir: this directory does not survive a reboot";
    for (text, code, wanted) in [
        (text.to_owned(), 64, vec![volatile, duration, blank, ": 1 problem, 2 warnings"]),
        (text.replace(": 5", ": 5s"), 0, vec![volatile, blank, note, ": ok, 2 warnings"]),
        (
            text.replace("/run/x", "["),
            64,
            vec![":1:12: error: state_dir: \"[\" is not closed (end it with ])", ": 1 problem"],
        ),
    ] {
        std::fs::write(&file, &text).unwrap();
        let name = file.display().to_string();
        for (arguments, name, input) in
            [(["check", &name], &name, ""), (["check", "-"], &"-".to_owned(), &text)]
        {
            let (got, found, errors) = told(&crimux(&arguments, input).await);
            assert!(found.is_empty() || errors.is_empty(), "{found}{errors}");
            let lines = found + &errors;
            let lines: Vec<_> = lines.lines().collect();
            assert_eq!((got, lines.len()), (code, wanted.len()), "{lines:#?}");
            for (line, wanted) in lines.iter().zip(&wanted) {
                assert!(
                    line.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with(wanted)),
                    "{wanted}: {line}"
                );
            }
        }
    }
    std::fs::write(&file, text).unwrap();
    let (code, json, _) = check(&file, &["-o", "json"], "").await;
    let found: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &found["verdict"]), (64, &"1 problem, 2 warnings".into()), "{json}");
    assert_eq!(found["problems"][0]["key"], "drain_timeout", "{json}");
    let about: Vec<_> =
        found["findings"].as_array().unwrap().iter().map(|one| one["about"].as_str()).collect();
    assert_eq!(about, [Some("backends.a.endpoint"), Some("state_dir")], "{json}");
}

#[tokio::test]
async fn a_broken_file_is_one_line_of_every_verb_and_said_once() {
    let (_a, _b, running) = world().await;
    let path = running.dir.path().join("crimux.yaml");
    let at = running.dir.path().join("admin.sock");
    let (path, at) = (path.to_str().unwrap(), at.display());
    let yaml = std::fs::read_to_string(path).unwrap();
    for (more, problem) in [
        ("handlers_: {}\n", "handlers_: unknown key (did you mean handlers?)"),
        ("handlers_: {}\ndrain_timeout: 5\n", "handlers_: unknown key (did you mean handlers?), and 1 more"),
    ] {
        running.rewrite(&(yaml.clone() + more));
        let said = format!("{problem} (asking the crimux on {at})\n");
        for verb in [&["status"][..], &["ps"], &["route"], &["config", "view"], &["log-level"]] {
            let (code, _, error) = told(&crimux(&[verb, &["--config", path]].concat(), "").await);
            assert_eq!((code, error.lines().count()), (0, 1), "{verb:?}: {error}");
            assert!(
                error.starts_with(&format!("crimux: {path}:")) && error.ends_with(&said),
                "{verb:?}: {error}"
            );
        }
        let (code, _, error) = told(&crimux(&["reload", "--config", path], "").await);
        assert_eq!((code, error.matches("handlers_").count()), (64, 1), "{error}");
        assert!(!error.contains("asking the crimux"), "{error}");
    }
}

#[tokio::test]
async fn the_configuration_may_be_named_before_the_verb() {
    let behind = told(&crimux(&["check", "--config", "/nonexistent/x.yaml"], "").await);
    assert!(behind.2.contains("/nonexistent/x.yaml"), "{behind:?}");
    for before in [
        &["--config", "/nonexistent/x.yaml"][..],
        &["-c", "/nonexistent/x.yaml"],
        &["--config=/nonexistent/x.yaml"],
    ] {
        assert_eq!(told(&crimux(&[before, &["check"]].concat(), "").await), behind);
    }
}

#[tokio::test]
async fn a_crimux_that_is_not_there_is_not_said_to_have_moved_unless_it_may_have() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("crimux.yaml");
    let at = dir.path().display();
    let base = "default_backend: a\nbackends: { a: { endpoint: unix:///a } }\n";
    for (more, may_have_moved) in [
        (format!("admin: {{ socket: {at}/a.sock }}\nstate_dir: {at}/state\n"), true),
        (format!("admin: {{ socket: {at}/a.sock }}\n"), false),
    ] {
        std::fs::write(&file, format!("{base}{more}")).unwrap();
        let (code, _, error) = told(&crimux(&["status", "--config", file.to_str().unwrap()], "").await);
        assert!(code == 1 && error.contains("is crimux running?"), "{error}");
        assert_eq!(error.contains("listens on the old socket"), may_have_moved, "{error}");
    }
    let (_, _, error) = told(
        &crimux(&["status", "--config", "/nonexistent/crimux.yaml", "--socket", "/nonexistent/s"], "").await,
    );
    assert!(error.lines().count() == 1 && !error.contains("old socket"), "{error}");
}

#[tokio::test]
async fn a_duration_or_a_format_that_a_verb_does_not_take_is_answered_with_one_that_it_does() {
    for (arguments, text) in [
        (["status", "--timeout", "5"], "\"5\" is not a duration (write 5s)"),
        (["status", "--timeout", "soon"], "such as 500ms, 1s or 1m30s"),
        (["upgrade", "--timeout", "90"], "(write 90s)"),
        (["config", "view", "--output=table"], "[possible values: json, yaml]"),
    ] {
        let (code, _, error) = told(&crimux(&arguments, "").await);
        assert!(code == 2 && error.contains(text), "{arguments:?}: {error}");
    }
}

#[tokio::test]
async fn completions_and_man_pages_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    let (code, script, _) = told(&crimux(&["completions", "bash"], "").await);
    assert!(code == 0 && script.contains("--runtime-classes"), "{script}");
    assert_eq!(told(&crimux(&["generate", "man", out], "").await).0, 0);
    let page = std::fs::read_to_string(dir.path().join("crimux-backend-forget.1")).unwrap();
    assert!(page.starts_with(".ie") && page.contains("forget"), "{page}");
    assert_eq!(told(&crimux(&["generate", "completions", out], "").await).0, 0);
    for name in ["crimux.bash", "_crimux", "crimux.fish"] {
        assert!(dir.path().join(name).is_file(), "{name}");
    }
}

#[tokio::test]
async fn the_doctor_finds_a_sound_node_sound() {
    let a = SimRuntime::builder("containerd").handlers(["inner"]).start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("crimux.yaml");
    std::fs::write(&file, config(&dir, &[("a", &a)], "  x: { backend: a, handler: inner }\n")).unwrap();
    let (code, found, _) = check(&file, &["--probe"], "").await;
    assert_eq!(code, 0, "{found}");
    assert!(found.contains("is containerd 2.1.0, CRI v1\n"), "{found}");
    assert!(
        found.contains("cAdvisor looks for containerd at /run/containerd/containerd.sock alone"),
        "{found}"
    );
    assert!(!found.contains("error: ") && found.ends_with("crimux.yaml: ok\n"), "{found}");
}

#[tokio::test]
async fn the_doctor_finds_what_is_wrong() {
    let a = SimRuntime::builder("containerd").start().await;
    let b = SimRuntime::builder("old").abilities(|b| b.api = ApiVersions::V1alpha2).start().await;
    let cgroupfs = Some(testkit::cri::CgroupDriver::Cgroupfs);
    let c = SimRuntime::builder("c").abilities(|c| c.cgroup_driver = cgroupfs).start().await;
    a.state().set_condition("NetworkReady", false, "NoCni");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("crimux.yaml");
    let yaml = config(&dir, &[("a", &a), ("b", &b), ("c", &c)], "  x: { backend: a, handler: absent }\n");
    let missing = "backends:\n  gone: { endpoint: \"unix:///nonexistent/gone.sock\" }\n  far: { endpoint: \"http://127.0.0.1:1\" }\n";
    std::fs::write(&file, yaml.replace("backends:\n", missing)).unwrap();
    let (code, found, _) = check(&file, &["--probe"], "").await;
    assert_eq!(code, 1);
    for wanted in [
        "error: a: NetworkReady is false: NoCni",
        "error: far: 127.0.0.1:1: cannot be connected: Connection refused",
        "note: far: it is not local: kubectl logs",
        "set stream_server_address (not 127.0.0.1) and stream_server_port",
        "error: gone: /nonexistent/gone.sock: cannot be connected: No such file",
        "warning: b: it speaks only v1alpha2",
        "error: cgroup driver: local backends differ: a uses systemd, c uses cgroupfs",
        "error: handlers.x: backend a does not know the handler \"absent\" (it announces: runc)",
    ] {
        assert!(found.contains(wanted), "{wanted}\n--\n{found}");
    }
}

#[tokio::test]
async fn runtime_classes_from_standard_input_are_compared_with_handlers() {
    let (_a, _b, running) = world().await;
    let file = running.dir.path().join("crimux.yaml");
    let classes = "apiVersion: v1\nkind: List\nitems:\n- { kind: RuntimeClass, metadata: { name: one }, handler: a }\n\
                   - { kind: RuntimeClass, metadata: { name: two }, handler: kata }\n";
    let (code, found, _) = check(&file, &["--runtime-classes", "-"], classes).await;
    assert_eq!(code, 1, "{found}");
    assert!(found.contains("error: RuntimeClass two: its handler \"kata\" is not configured"), "{found}");
    assert!(found.contains("warning: handlers.b: no RuntimeClass uses this handler"), "{found}");
    let (code, _, error) = check(&file, &["--runtime-classes", "/nonexistent"], "").await;
    assert!(code == 1 && error.contains("cannot read /nonexistent"), "{error}");
}
