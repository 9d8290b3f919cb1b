//! The plugin for node-problem-detector, run as that runs it, against a crimux.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;
use testkit::eventually;
use testkit::runtime::SimRuntime;

use crate::support::{Crimux, SOON};

const DIRECTORY: &str = "deploy/node-problem-detector";

fn plugin(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(DIRECTORY).join(name)
}

/// Returns the exit code and the message of a check.
async fn checked(crimux: &Crimux, question: &str) -> (i32, String) {
    let socket = crimux.dir.path().join("admin.sock");
    let mut command = Command::new(plugin("crimux-condition"));
    command.arg(question).arg("--socket").arg(socket).env("CRIMUX", env!("CARGO_BIN_EXE_crimux"));
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[tokio::test]
async fn the_plugin_turns_the_verdict_into_conditions() {
    let a = SimRuntime::builder("a").sandboxes(1, 1).start().await;
    let b = SimRuntime::builder("b").sandboxes(1, 1).start().await;
    let mut crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    assert_eq!(checked(&crimux, "answers").await, (0, "OK: 2 of 2 backends ready\n".to_owned()));
    assert_eq!(checked(&crimux, "degraded").await.0, 0);
    b.stop().await;
    eventually(SOON, async || checked(&crimux, "degraded").await.0 == 1).await;
    let (code, message) = checked(&crimux, "degraded").await;
    assert!(code == 1 && message.starts_with("DEGRADED: b down"), "{message}");
    assert!(message.lines().count() == 1 && message.contains("the node stays Ready"), "{message}");
    assert_eq!(checked(&crimux, "answers").await.0, 0);
    crimux.signal(Signal::SIGKILL);
    crimux.ended().await;
    let (code, message) = checked(&crimux, "answers").await;
    assert!(code == 1 && message.contains("crimux"), "{message}");
    assert_eq!(checked(&crimux, "degraded").await.0, 2, "unknown is not degraded");
    assert_eq!(checked(&crimux, "nonsense").await.0, 2);
}

#[test]
fn the_monitor_asks_what_the_plugin_answers() {
    let monitor: Value =
        serde_json::from_str(&std::fs::read_to_string(plugin("crimux-monitor.json")).unwrap()).unwrap();
    let list = |key: &str, of: &str| -> BTreeSet<String> {
        let items = monitor[key].as_array().unwrap().iter();
        items.map(|item| item[of].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(monitor["plugin"], "custom");
    assert_eq!(list("conditions", "type"), list("rules", "condition"));
    for rule in monitor["rules"].as_array().unwrap() {
        assert_eq!(rule["type"], "permanent");
        assert!(["answers", "degraded"].contains(&rule["args"][0].as_str().unwrap()));
        assert!(rule["path"].as_str().unwrap().ends_with("/crimux-condition"));
    }
}
