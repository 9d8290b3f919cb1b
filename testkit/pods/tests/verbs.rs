//! The verbs of `pods` on a simulated runtime.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::Output;

use testkit::runtime::SimRuntime;

async fn pods(socket: &Path, words: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_pods"));
    command.arg(socket).args(words).output().await.unwrap()
}

async fn said(socket: &Path, words: &[&str]) -> String {
    let output = pods(socket, words).await;
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn a_pod_is_run_listed_looked_into_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("a.sock");
    let _runtime = SimRuntime::builder("a").unix(&socket).start().await;

    let run = said(&socket, &["run", "web"]).await;
    let (sandbox, container) = run.trim().split_once(' ').unwrap();
    let listed = said(&socket, &["list"]).await;
    let cells: Vec<_> = listed.split_whitespace().collect();
    assert_eq!(cells, [sandbox, "web", "\"\"", "ready"]);
    said(&socket, &["exec", container, "true"]).await;
    said(&socket, &["remove", "all"]).await;
    assert_eq!(said(&socket, &["list"]).await, "");
}

#[tokio::test]
async fn an_error_names_the_socket_or_the_status() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("a.sock");
    let missing = pods(&socket, &["list"]).await;
    assert!(!missing.status.success());
    assert!(String::from_utf8_lossy(&missing.stderr).contains("a.sock: "), "{missing:?}");

    let _runtime = SimRuntime::builder("a").unix(&socket).start().await;
    let refused = pods(&socket, &["exec", "nobody", "true"]).await;
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("nobody"), "{refused:?}");
}
