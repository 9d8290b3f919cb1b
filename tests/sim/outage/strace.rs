//! Watches the system calls of crimux from outside, and holds it at one of them.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use testkit::bed::skipped;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::support::{Crimux, SOON};

/// Traces what these options say into this file, from when this returns; `None`, loudly, where that cannot be
/// done.
pub(super) async fn strace(crimux: &Crimux, to: &Path, options: &[&str]) -> Option<Child> {
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-p", &crimux.pid().to_string(), "-o"]).arg(to).args(options);
    let spawned = command.stderr(Stdio::piped()).kill_on_drop(true).spawn();
    let mut strace = spawned.map_err(|error| skipped(&format!("no strace: {error}"))).ok()?;
    let attached = tokio::time::timeout(SOON, attached(&mut strace)).await.expect("strace attaches or ends");
    attached.map_err(|why| skipped(&format!("strace does not attach: {why}"))).ok().map(|()| strace)
}

/// Waits until it is attached; the error is what it said instead.
async fn attached(strace: &mut Child) -> Result<(), String> {
    let mut lines = BufReader::new(strace.stderr.take().unwrap()).lines();
    let mut said = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        if line.contains(" attached") {
            // It says so before the other threads are stopped for the first time.
            tokio::time::sleep(Duration::from_millis(200)).await;
            return Ok(());
        }
        said = line;
    }
    Err(said)
}

/// Waits until a thread of crimux stands still in a system call that is held.
pub(super) async fn held(crimux: &Crimux) {
    let tasks = format!("/proc/{}/task", crimux.pid());
    let is_stopped = || {
        let states = std::fs::read_dir(&tasks).unwrap().flatten().filter_map(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
            // The state follows the name, which is in parentheses.
            stat.rsplit_once(") ")?.1.chars().next()
        });
        states.into_iter().any(|state| state == 't')
    };
    testkit::eventually(SOON, async || {
        for _ in 0..3 {
            if !is_stopped() {
                return false;
            }
            // strace stops a thread for a moment at every call that it looks at.
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        true
    })
    .await;
}
