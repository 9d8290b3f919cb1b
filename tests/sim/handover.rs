//! `crimux upgrade`: one process takes over from another, and no call ends.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::client::sandbox_config;
use testkit::runtime::{Fault, SimRuntime};
use testkit::{Client, cri, eventually};

use crate::support::{Crimux, SOON, config};

mod calls;
mod failures;
mod kills;
mod latency;
mod memory;

/// The line that the log has of every process that was started to take over.
const STARTED: &str = "started a process to hand over to pid=";

/// A crimux, and all the processes that took over from it, which are killed when this is dropped.
struct Node {
    crimux: Crimux,
}

impl Drop for Node {
    fn drop(&mut self) {
        for pid in self.started() {
            self.kill(pid);
        }
    }
}

impl Node {
    /// Starts crimux in front of these backends, with more configuration.
    async fn start(backends: &[(&str, &SimRuntime)], more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let yaml = config(&dir, backends, more);
        Self::start_with(dir, &yaml).await
    }

    async fn start_with(dir: tempfile::TempDir, yaml: &str) -> Self {
        let crimux = Crimux::start_in(dir, yaml);
        crimux.wait_ready().await;
        Self { crimux }
    }

    fn path(&self) -> &Path {
        self.crimux.dir.path()
    }

    fn client(&self) -> Client {
        self.crimux.client()
    }

    /// The processes that were started to take over, in order.
    fn started(&self) -> Vec<u32> {
        let log = self.crimux.log();
        let pids = log.lines().filter_map(|line| line.split_once(STARTED)?.1.split(' ').next()?.parse().ok());
        pids.collect()
    }

    /// Kills a process as `kill -9` does, if it is one of this node's.
    fn kill(&self, pid: u32) {
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if command.contains(self.path().to_str().unwrap()) {
            kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).ok();
        }
    }

    /// The process that serves.
    async fn pid(&self) -> u32 {
        let status = self.status().await;
        status["pid"].as_u64().unwrap().try_into().unwrap()
    }

    async fn status(&self) -> serde_json::Value {
        let (_, status) = self.crimux.get("/v1/status").await.expect("the admin socket answers");
        serde_json::from_str(&status).unwrap()
    }

    /// The processes that were replaced and still finish calls.
    async fn older(&self) -> Vec<u32> {
        let status = self.status().await;
        let older = status["older_processes"].as_array().cloned().unwrap_or_default();
        older.iter().map(|older| older["pid"].as_u64().unwrap().try_into().unwrap()).collect()
    }

    /// Writes a program that is started in crimux's place.
    fn program(&self, script: &str) -> String {
        let path = self.path().join("program");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Runs `crimux upgrade`.
    async fn upgrade(&self, arguments: &[&str]) -> Output {
        let socket = self.path().join("admin.sock");
        let all = [&["upgrade", "--socket", socket.to_str().unwrap()], arguments].concat();
        crate::cli::crimux(&all, "").await
    }

    /// Runs `crimux upgrade`, which succeeds; returns the process that serves now.
    async fn upgraded(&self, arguments: &[&str]) -> u32 {
        let output = self.upgrade(arguments).await;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}{}", errors(&output), self.crimux.log());
        said.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// Waits until what was answered is on the disk: a loaded machine may take more than the 100 ms for which
    /// a call waits, and then the next start doubts the state.
    async fn saved(&self) {
        eventually(SOON, async || self.status().await["state"]["problem"].is_null()).await;
    }

    /// Waits for a line of the log.
    async fn logged(&self, part: &str, times: usize) {
        eventually(SOON, async || self.crimux.log().matches(part).count() >= times).await;
    }
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Creates a sandbox at a backend and returns its ID.
async fn create(client: &Client, name: &str, backend: &str) -> Result<String, tonic::Status> {
    let created = client.runtime().run_pod_sandbox(sandbox_config(name).run(backend)).await?;
    Ok(created.into_inner().pod_sandbox_id)
}

/// Waits until a process is no more.
async fn gone(pid: u32) {
    let is_gone = async || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        // A child that nobody has waited for is a zombie, and its files are closed with its last thread.
        let is_zombie = |stat: String| stat.rsplit(") ").next().unwrap().starts_with('Z');
        let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        stat.map_or(true, is_zombie) && threads() <= 1
    };
    eventually(SOON, is_gone).await;
}
