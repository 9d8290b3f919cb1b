//! The program a person starts by hand.

use std::process::Stdio;
use std::time::Duration;

use testkit::client::Client;
use testkit::cri;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn the_program_says_when_it_listens_and_ends_on_sigterm() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("cri.sock");
    let listen = format!("unix://{}", socket.display());
    let mut program = Command::new(env!("CARGO_BIN_EXE_testkit"))
        .args(["runtime", "--listen", &listen, "--name", "byhand", "--sandboxes", "3", "--containers", "7"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    let line = timeout(SOON, lines.next_line()).await.unwrap().unwrap().unwrap();
    assert_eq!(line, format!("listening on {listen}"));

    let mut runtime = Client::endpoint(&listen).runtime();
    let version = runtime.version(cri::VersionRequest::default()).await.unwrap().into_inner();
    assert_eq!(version.runtime_name, "byhand");
    let list = runtime.list_containers(cri::ListContainersRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.containers.len(), 7);

    let id = program.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
    assert!(timeout(SOON, program.wait()).await.unwrap().unwrap().success());
    assert!(!socket.exists());
}
