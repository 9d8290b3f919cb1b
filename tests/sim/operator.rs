//! What an operator sees and does: reloads told truly, filters, and a closer look.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testkit::eventually;
use testkit::runtime::SimRuntime;

use crate::cli::{crimux, on, told};
use crate::support::{Crimux, SOON, config};

pub(crate) async fn two() -> (SimRuntime, SimRuntime, Crimux) {
    let a = SimRuntime::builder("containerd").handlers(["a"]).sandboxes(2, 2).start().await;
    let b = SimRuntime::builder("cri-o").handlers(["b"]).sandboxes(2, 2).start().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    (a, b, crimux)
}

pub(crate) async fn document(running: &Crimux, arguments: &[&str]) -> Value {
    let (_, json, errors) = on(running, &[arguments, &["-o", "json"]].concat(), "").await;
    serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json} {errors}"))
}

/// Returns the status with its lines joined, because they are wrapped.
pub(crate) async fn status(running: &Crimux) -> String {
    on(running, &["status"], "").await.1.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Writes a configuration and waits until a reload has had this result.
pub(crate) async fn reload(running: &Crimux, yaml: &str, result: &str) {
    running.rewrite(yaml);
    running.signal(Signal::SIGHUP);
    eventually(SOON, async || document(running, &["status"]).await["reloads"]["last"]["result"] == result)
        .await;
}

#[tokio::test]
async fn the_last_refused_sandbox_is_in_the_status_and_in_no_dump() {
    let (_a, _b, running) = two().await;
    let run = testkit::client::sandbox_config("web").run("nowhere");
    running.client().runtime().run_pod_sandbox(run).await.unwrap_err();
    let (code, table, _) = on(&running, &["status"], "").await;
    let said = table.lines().find(|line| line.starts_with("new sandbox")).unwrap_or_default();
    assert!(
        code == 0 && said.contains("/web refused") && said.contains("no runtime handler \"nowhere\""),
        "{table}"
    );
    assert_eq!(document(&running, &["status"]).await["last_refusal"]["handler"], "nowhere");
    let (_, dump, _) = on(&running, &["debug", "dump"], "").await;
    assert!(!dump.contains("/web"), "{dump}");
}

#[tokio::test]
async fn a_mended_file_ends_the_failure_of_a_reload() {
    let (a, b, running) = two().await;
    let good = config(&running.dir, &[("a", &a), ("b", &b)], "");
    assert_eq!(running.metric("crimux_config_last_reload_successful").await, Some(1.0));
    reload(&running, "listen: [", "failed").await;
    assert_eq!(running.metric("crimux_config_last_reload_successful").await, Some(0.0));
    let table = status(&running).await;
    let fault = "DEGRADED: the last reload failed; the node stays Ready - the last reload failed, the configuration before it stays current; mend the file before crimux restarts: ";
    assert!(table.starts_with(fault) && table.contains("\"[\" is not closed"), "{table}");
    assert_eq!(table.matches("is not closed").count(), 1, "{table}");
    reload(&running, &good, "unchanged").await;
    assert_eq!(running.metric("crimux_config_last_reload_successful").await, Some(1.0));
    assert_eq!(on(&running, &["status", "--check"], "").await.0, 0);
    assert!(running.log().contains("valid again"), "{}", running.log());
}

#[tokio::test]
async fn keys_that_need_a_restart_are_named_by_check_and_status_and_a_metric() {
    let (a, b, running) = two().await;
    let yaml = config(&running.dir, &[("a", &a), ("b", &b)], "");
    let changed = yaml
        .replace("state_dir: ", "state_dir: /other")
        .replace("level: debug", "level: debug, format: json");
    std::fs::write(running.dir.path().join("new.yaml"), &changed).unwrap();
    let file = running.dir.path().join("new.yaml");
    let (code, found, _) = told(&crimux(&["check", file.to_str().unwrap()], "").await);
    assert_eq!(code, 0, "{found}");
    assert!(found.contains("log.format: differs from the running crimux"), "{found}");
    let said = "state_dir: the running crimux has ";
    let advice = "; take that back, or stop crimux, copy ";
    assert!(found.contains(said) && found.contains(advice), "{found}");
    assert!(!found.contains("listen: differs"), "{found}");
    reload(&running, &changed, "ok").await;
    let view = document(&running, &["status"]).await;
    assert_eq!(view["reloads"]["restart_keys"], json!(["log.format", "state_dir"]));
    assert_eq!(running.metric("crimux_config_restart_needed{key=\"state_dir\"}").await, Some(1.0));
    // The current values are shown, and compared with a file.
    let state_dir = running.dir.path().join("state").display().to_string();
    assert_eq!(view["state"]["dir"], state_dir.as_str());
    let (_, view, _) = on(&running, &["config", "view"], "").await;
    assert!(view.contains(&format!("state_dir: {state_dir}\n")) && view.contains("format: text"), "{view}");
    let (_, found, _) = told(&crimux(&["check", file.to_str().unwrap()], "").await);
    assert!(found.contains(said), "{found}");
    let table = status(&running).await;
    assert!(table.contains("changed in the file: do not restart crimux: take that back, or stop"), "{table}");
    assert!(table.contains(" to /other"), "{table}");
    reload(&running, &yaml, "ok").await;
    eventually(SOON, async || document(&running, &["status"]).await["reloads"]["restart_keys"] == json!([]))
        .await;
    assert_eq!(running.metric("crimux_config_restart_needed{key=\"state_dir\"}").await, Some(0.0));
}

#[tokio::test]
async fn a_reload_names_every_change_before_and_after_it_is_applied() {
    let (a, b, running) = two().await;
    let yaml = config(&running.dir, &[("a", &a), ("b", &b)], "");
    let changed = yaml.replace("default_backend: a", "default_backend: b") + "drain_timeout: 7s\n";
    let file = running.dir.path().join("new.yaml");
    std::fs::write(&file, &changed).unwrap();
    let (code, told, errors) =
        on(&running, &["reload", "--dry-run", "--config", file.to_str().unwrap()], "").await;
    let lines = ["default_backend: a → b\n", "drain_timeout: 5s → 7s\n"];
    assert!(code == 0 && lines.iter().all(|line| told.contains(line)), "{told}{errors}");
    assert!(told.contains("warning: default_backend: a reload changes the prefix"), "{told}");
    assert!(told.ends_with(": would be applied\n"), "{told}");
    reload(&running, &changed, "ok").await;
    assert!(running.log().contains("default_backend: a → b; drain_timeout: 5s → 7s"), "{}", running.log());
    assert_eq!(on(&running, &["reload"], "").await.1, "unchanged\n");
}

#[tokio::test]
async fn another_default_backend_warns_of_the_prefix_before_it_is_applied() {
    let (a, b, running) = two().await;
    let yaml = config(&running.dir, &[("a", &a), ("b", &b)], "");
    let changed = yaml.replace("default_backend: a", "default_backend: b");
    let file = running.dir.path().join("new.yaml");
    std::fs::write(&file, &changed).unwrap();
    let (_, found, _) = told(&crimux(&["check", file.to_str().unwrap()], "").await);
    assert!(
        found.contains("default_backend: a reload changes the prefix") && found.contains("cri-o://"),
        "{found}"
    );
    reload(&running, &changed, "ok").await;
    let log = running.log();
    let warned = log.find("the prefix of every container ID").expect("a warning");
    assert!(warned < log.find("configuration reloaded").unwrap(), "{log}");
}

#[tokio::test]
async fn another_identity_warns_of_the_prefix_before_it_is_applied() {
    let (a, b, running) = two().await;
    let yaml = config(&running.dir, &[("a", &a), ("b", &b)], "");
    let own = yaml.clone() + "identity: crimux\n";
    // Under crimux's name the default backend says nothing about the prefix.
    let moved = own.replace("default_backend: a", "default_backend: b");
    let file = running.dir.path().join("new.yaml");
    let checked = async |yaml: &str| {
        std::fs::write(&file, yaml).unwrap();
        told(&crimux(&["check", file.to_str().unwrap()], "").await).1
    };
    let prefix = "a reload changes the prefix of every container ID of the node from";
    let found = checked(&own).await;
    assert!(found.contains(&format!("identity: {prefix} containerd:// to crimux://")), "{found}");
    reload(&running, &own, "ok").await;
    assert!(running.log().contains("from containerd:// to crimux://"), "{}", running.log());
    assert!(!checked(&moved).await.contains(prefix));
    let found = checked(&yaml).await;
    assert!(found.contains(&format!("identity: {prefix} crimux:// to containerd://")), "{found}");
}

#[tokio::test]
async fn mode_of_sockets_log_level_and_drain_timeout_take_effect_at_a_reload() {
    use std::os::unix::fs::PermissionsExt;
    let (a, b, running) = two().await;
    let yaml = config(&running.dir, &[("a", &a), ("b", &b)], "");
    let changed = yaml.replace("level: debug", "level: warn") + "listen_mode: \"0600\"\ndrain_timeout: 1s\n";
    reload(&running, &changed, "ok").await;
    let mode = std::fs::metadata(running.socket()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    assert_eq!(on(&running, &["log-level"], "").await.1, "warn\n");
    assert_eq!(document(&running, &["status"]).await["reloads"]["restart_keys"], json!([]));
}

#[tokio::test]
async fn pods_are_filtered_and_quiet_prints_their_ids() {
    let (_a, b, running) = two().await;
    let own: Vec<_> = b.state().sandboxes().map(|sandbox| sandbox.id.clone()).collect();
    let (code, ids, _) = on(&running, &["ps", "--backend", "b", "-q"], "").await;
    let mut ids: Vec<_> = ids.lines().map(str::to_owned).collect();
    ids.sort_unstable();
    let mut expected = own.clone();
    expected.sort_unstable();
    assert_eq!((code, ids), (0, expected));
    for (arguments, count) in [
        (vec!["--state", "ready"], 4),
        (vec!["--state", "notready"], 0),
        (vec!["--namespace", "nowhere"], 0),
        (vec!["--backend", "a"], 2),
    ] {
        let pods = document(&running, &[&["ps"], arguments.as_slice()].concat()).await;
        assert_eq!(pods["pods"].as_array().unwrap().len(), count, "{arguments:?}");
    }
    for (arguments, refusal) in [
        (["--backend", "bb"], "there is no backend \"bb\" (backends: a, b)"),
        (["--handler", "runc"], "there is no handler \"runc\" (handlers: a, b)"),
    ] {
        let (code, _, error) = on(&running, &[&["ps"][..], &arguments].concat(), "").await;
        assert!(code == 1 && error.contains(refusal), "{arguments:?}: {error}");
    }
    let (_, wide, _) = on(&running, &["ps", "-o", "wide"], "").await;
    assert!(own.iter().all(|id| wide.contains(id.as_str())), "{wide}");
}

#[tokio::test]
async fn the_configuration_in_use_the_log_level_and_a_dump_can_be_had() {
    let (_a, _b, running) = two().await;
    let (code, yaml, _) = on(&running, &["config", "view"], "").await;
    assert_eq!(code, 0);
    let (code, found, _) = told(&crimux(&["check", "-"], &yaml).await);
    assert!(code == 0 && found.contains("-: ok"), "{found}");
    assert_eq!(
        on(&running, &["log-level", "info,crimux::router=debug"], "").await.1,
        "info,crimux::router=debug\n"
    );
    let changed = "log level info,crimux::router=debug, not that of the configuration";
    assert!(status(&running).await.contains(changed), "{}", status(&running).await);
    assert_eq!(document(&running, &["status"]).await["log_level"], "info,crimux::router=debug");
    let (code, _, error) = on(&running, &["log-level", "loud"], "").await;
    assert!(code == 1 && error.contains("not a log level"), "{error}");
    let (code, dump, _) = on(&running, &["debug", "dump"], "").await;
    let dump: Value = serde_json::from_str(&dump).unwrap();
    assert_eq!((code, &dump["backends"][0]["owned_sandboxes"]), (0, &json!(2)));
}

#[tokio::test]
async fn a_check_reads_standard_input_and_reports_as_json() {
    let (code, json, _) = told(&crimux(&["check", "-", "-o", "json"], "backends: 7\n").await);
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &report["problems"][0]["line"]), (64, &json!(1)), "{report}");
    assert!(report["problems"].as_array().unwrap().len() > 1, "{report}");
}

#[tokio::test]
async fn a_check_names_the_byte_that_is_not_utf8_as_a_start_does() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("crimux.yaml");
    std::fs::write(&file, b"# ok\nlisten: caf\xe9\n").unwrap();
    let path = file.to_str().unwrap();
    for arguments in [vec!["serve", "--config", path], vec!["reload", "--dry-run", "--config", path]] {
        let (code, _, error) = told(&crimux(&arguments, "").await);
        assert!(code == 64 && error.contains(":2:12: this byte is not UTF-8"), "{arguments:?}: {error}");
    }
    let (code, _, error) = told(&crimux(&["check", path], "").await);
    assert!(code == 64 && error.contains(":2:12: error: this byte is not UTF-8"), "{error}");
    assert!(error.ends_with(": 1 problem\n"), "{error}");
    // Scripts get a document of every file, also of one that cannot be read.
    for (file, message) in [(path, "this byte is not UTF-8"), ("/nonexistent.yaml", "cannot be read: ")] {
        let (code, json, error) = told(&crimux(&["check", "-o", "json", file], "").await);
        assert_eq!((code, error.as_str()), (64, ""), "{file}");
        let found: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(found["verdict"], "1 problem", "{json}");
        assert!(found["problems"][0]["message"].as_str().unwrap().starts_with(message), "{json}");
    }
}

#[tokio::test]
async fn a_silent_or_wrong_socket_is_named_within_the_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let silent = dir.path().join("silent.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&silent).unwrap();
    let socket = format!("unix://{}", silent.display());
    let (code, _, error) = told(&crimux(&["status", "--socket", &socket, "--timeout", "200ms"], "").await);
    assert!(code == 1 && error.contains("did not answer on") && error.contains("within 200ms"), "{error}");
    let (_a, _b, running) = two().await;
    running.signal(Signal::SIGSTOP);
    let (code, _, error) = on(&running, &["status", "--timeout", "200ms"], "").await;
    running.signal(Signal::SIGCONT);
    let stopped = format!("its process {0} is stopped; ", running.pid());
    assert!(code == 1 && error.contains(&stopped) && error.contains("kill -CONT"), "{error}");
    let cri = running.socket();
    let (code, _, error) = told(&crimux(&["status", "--socket", cri.to_str().unwrap()], "").await);
    assert!(code == 1 && error.contains("is it a CRI socket?"), "{error}");
}

#[tokio::test]
async fn a_broken_file_still_names_the_admin_socket() {
    let (_a, _b, running) = two().await;
    let file = running.dir.path().join("crimux.yaml");
    for broken in ["drain_timeout: never", "listen: ["] {
        let yaml = std::fs::read_to_string(&file).unwrap() + broken + "\n";
        let other = running.dir.path().join("broken.yaml");
        std::fs::write(&other, yaml).unwrap();
        let (code, table, error) = told(&crimux(&["status", "--config", other.to_str().unwrap()], "").await);
        assert!(code == 0 && table.contains("2 of 2 backends ready"), "{error}");
    }
}

#[tokio::test]
async fn a_taken_metrics_port_is_retried_and_shown_while_calls_are_served() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let a = SimRuntime::builder("a").sandboxes(1, 1).start().await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&dir, &[("a", &a)], "").replace("http: off", &format!("http: 127.0.0.1:{port}"));
    let running = Crimux::start_in(dir, &yaml);
    running.wait_ready().await;
    let (_, table, _) = on(&running, &["status"], "").await;
    assert!(table.starts_with("DEGRADED: admin.http does not listen on 127.0.0.1:"), "{table}");
    drop(taken);
    eventually(2 * SOON, async || on(&running, &["status", "--check"], "").await.0 == 0).await;
}

#[tokio::test]
async fn forgetting_a_backend_that_is_up_is_refused_before_anything_is_asked() {
    let (_a, _b, running) = two().await;
    let (code, _, error) = on(&running, &["backend", "forget", "b"], "b\n").await;
    assert!(code == 1 && error.contains("is up") && !error.contains("Type the name"), "{error}");
    for (arguments, refusal) in [
        (vec!["nobody"], "there is no backend \"nobody\" (backends: a, b)"),
        (vec!["b", "--pod", "zz"], "backend b has no sandbox \"zz\""),
    ] {
        let arguments = [vec!["backend", "forget"], arguments].concat();
        let (code, _, error) = on(&running, &arguments, "b\n").await;
        assert!(code == 1 && error.contains(refusal) && !error.contains("Type the name"), "{error}");
    }
}

#[tokio::test]
async fn a_route_shows_which_target_takes_new_sandboxes() {
    let (a, b) = (SimRuntime::builder("a").start().await, SimRuntime::builder("b").start().await);
    let dir = tempfile::tempdir().unwrap();
    let split = "  split: { split: [ { backend: a, weight: 1 }, { backend: b, weight: 1 } ] }\n";
    let yaml = config(&dir, &[("a", &a), ("b", &b)], split);
    let running = Crimux::start_in(dir, &yaml);
    running.wait_ready().await;
    assert_eq!(on(&running, &["backend", "drain", "b", "--force"], "").await.0, 0);
    let (code, verdict, _) = on(&running, &["status", "--check"], "").await;
    assert_eq!(
        (code, verdict.trim()),
        (
            0,
            "OK: 1 of 2 backends ready; new sandboxes of handler b refused: drained by the operator \
             (crimux backend undrain b). See /usr/share/doc/crimux/runbook.md#crimuxhandlerrefused"
        )
    );
    let route = document(&running, &["route", "split"]).await;
    let takes: Vec<_> =
        route["targets"].as_array().unwrap().iter().map(|target| &target["takes_new"]).collect();
    assert_eq!(takes, [&json!(true), &json!(false)]);
}
