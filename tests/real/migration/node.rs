//! The node that is moved: its two containerds, its crimux, and the operator in front of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use testkit::bed::Bed;
use testkit::bed::pods::{Pod, Pods};
use testkit::cri::{ContainerStatusRequest, PodSandboxConfig};
use tonic::Status;

use crate::world::{self, Crimux, eventually};

/// The backend that the node leaves, by the name that the guide gives it.
pub(super) const OLD: &str = "containerd";
/// The backend that the node moves to.
pub(super) const NEW: &str = "containerd-2";
/// Says a line, then waits for its end.
pub(super) const SPEAK: [&str; 3] = ["sh", "-c", "echo up; trap 'exit 0' TERM; sleep 86400 & wait"];

const GUIDE: &str = include_str!("../../../docs/migration.md");

/// One process of a container's life: what changes when the container is restarted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Life {
    pid: u64,
    started_at: i64,
}

/// A node with crimux between its pods and its containerds.
pub(super) struct Node<'bed> {
    bed: &'bed Bed,
    crimux: Option<Crimux<'bed>>,
    config: PathBuf,
    pub(super) pods: Pods,
}

impl<'bed> Node<'bed> {
    /// Starts crimux with this configuration.
    pub(super) async fn start(bed: &'bed Bed, configuration: &str) -> Self {
        let crimux = world::crimux_with(bed, configuration).await;
        let pods = world::dial(bed, &crimux.socket).await;
        Self { bed, config: crimux.config.clone(), crimux: Some(crimux), pods }
    }

    /// Kills crimux and starts it with the configuration that is there.
    pub(super) async fn kill_and_start(&mut self) {
        let configuration = std::fs::read_to_string(&self.config).unwrap();
        let old = self.crimux.take().unwrap();
        old.process.kill().unwrap();
        drop(old);
        *self = Self::start(self.bed, &configuration).await;
    }

    /// Does what the guide says about a changed configuration: written beside the file, checked, moved over
    /// it. Returns what the check found.
    pub(super) fn reconfigure(&self, configuration: &str) -> String {
        let draft = self.config.with_extension("yaml.new");
        std::fs::write(&draft, configuration).unwrap();
        let arguments = ["check", "--probe", "--config", draft.to_str().unwrap()];
        let (code, found) = crimux(&arguments);
        assert_eq!(code, 0, "{found}");
        std::fs::rename(draft, &self.config).unwrap();
        found
    }

    /// Runs a command that the guide names and that must succeed; returns what it printed.
    pub(super) fn does(&self, command: &str) -> String {
        let (code, said) = self.attempts(command);
        assert_eq!(code, 0, "{command}: {said}");
        said
    }

    /// Runs a command that the guide names; returns its exit code and what it printed.
    pub(super) fn attempts(&self, command: &str) -> (i32, String) {
        assert!(GUIDE.contains(&format!("crimux {command}")), "the guide does not say: crimux {command}");
        let config = self.config.to_str().unwrap();
        let words: Vec<_> = command.split(' ').chain(["--config", config]).collect();
        crimux(&words)
    }

    /// What `crimux status` says of a backend; null for one that is not there.
    pub(super) fn backend(&self, name: &str) -> Value {
        let status = self.document("status");
        let backends = status["backends"].as_array().unwrap();
        backends.iter().find(|backend| backend["name"] == name).cloned().unwrap_or_default()
    }

    /// Waits until a backend is in this state.
    pub(super) async fn until(&self, name: &str, state: &str) {
        eventually(&format!("{name} is {state}"), async || {
            (self.backend(name)["state"] == state).then_some(())
        })
        .await;
    }

    /// Waits until all new sandboxes of a handler go to this backend.
    pub(super) async fn until_led(&self, handler: &str, backend: &str) {
        eventually(&format!("{handler:?} leads to {backend}"), async || {
            let (_, routes) = crimux(&["route", handler, "--output", "json", "--config", self.path()]);
            let route: Value = serde_json::from_str(&routes).unwrap();
            let targets = route["targets"].as_array().unwrap();
            (targets.len() == 1 && targets[0]["backend"] == backend).then_some(())
        })
        .await;
    }

    /// Where `crimux ps` says that each sandbox is, and in which state.
    pub(super) fn places(&self) -> BTreeMap<String, (String, String)> {
        let word = |pod: &Value, key: &str| pod[key].as_str().unwrap().to_owned();
        let pods = self.document("ps");
        let pods = pods["pods"].as_array().unwrap().iter();
        pods.map(|pod| (word(pod, "sandbox_id"), (word(pod, "backend"), word(pod, "state")))).collect()
    }

    /// Runs a sandbox and returns its ID and its backend, asked at the containerds themselves.
    pub(super) async fn place(
        &mut self,
        config: &PodSandboxConfig,
        handler: &str,
    ) -> Result<(String, &'static str), Status> {
        let id = self.pods.sandbox(config, handler).await?;
        let mut holders = Vec::new();
        for backend in [OLD, NEW] {
            let mut direct = world::dial(self.bed, &self.bed.socket(backend)).await;
            if direct.list().await?.iter().any(|sandbox| sandbox.id == id) {
                holders.push(backend);
            }
        }
        assert_eq!(holders.len(), 1, "{id} is held by {holders:?}");
        assert_eq!(self.places()[&id].0, holders[0]);
        Ok((id, holders[0]))
    }

    /// Tells the process of a container from the one after its restart.
    pub(super) async fn life(&mut self, container: &str) -> Life {
        let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: true };
        let reply = self.pods.runtime.container_status(request).await.unwrap().into_inner();
        let info: Value = serde_json::from_str(&reply.info["info"]).unwrap();
        Life { pid: info["pid"].as_u64().unwrap(), started_at: reply.status.unwrap().started_at }
    }

    /// The release of the kernel that a container sees.
    pub(super) async fn kernel(&mut self, container: &str) -> String {
        let said = self.pods.exec(container, &["uname", "-r"]).await.unwrap();
        String::from_utf8(said.stdout).unwrap()
    }

    /// Has a container print a word, and waits for it in the container's log.
    pub(super) async fn says(&mut self, pod: &Pod, word: &str) {
        let script = format!("echo {word} > /proc/1/fd/1");
        let told = self.pods.exec(&pod.container, &["sh", "-c", &script]).await.unwrap();
        assert_eq!(told.exit_code, 0, "{told:?}");
        eventually(&format!("{word} is in the log"), async || {
            let log = tokio::fs::read_to_string(&pod.log).await.ok()?;
            log.lines().any(|line| line.ends_with(&format!(" stdout F {word}"))).then_some(())
        })
        .await;
    }

    /// What crimux has logged since its start.
    pub(super) fn log(&self) -> String {
        self.crimux.as_ref().unwrap().process.log().unwrap()
    }

    /// Sends what `systemctl reload` sends.
    pub(super) fn hang_up(&self) {
        self.crimux.as_ref().unwrap().process.signal("HUP").unwrap();
    }

    fn path(&self) -> &str {
        self.config.to_str().unwrap()
    }

    fn document(&self, verb: &str) -> Value {
        let (code, text) = crimux(&[verb, "--output", "json", "--config", self.path()]);
        assert_eq!(code, 0, "{text}");
        serde_json::from_str(&text).unwrap()
    }
}

/// Runs the built crimux; returns its exit code and what it printed.
fn crimux(arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_crimux")).args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(said).unwrap())
}

/// The node's configuration: `pieces` are its keys below the common ones.
pub(super) fn configuration(bed: &Bed, default: &str, pieces: &[&str]) -> String {
    world::with_default(bed, default, &pieces.concat())
}

/// The first piece of configuration that the guide shows in a step, with this bed's sockets.
pub(super) fn guide(bed: &Bed, step: &str) -> String {
    guide_piece(bed, step, 1)
}

/// The piece of this number, counted from 1.
pub(super) fn guide_piece(bed: &Bed, step: &str, number: usize) -> String {
    let section = GUIDE.split("\n## ").find(|section| section.starts_with(step)).unwrap();
    let piece = section.split("```yaml\n").nth(number).unwrap().split("```").next().unwrap();
    let socket = |name: &str| format!("unix://{}", bed.socket(name).display());
    let piece = piece.replace("unix:///run/containerd/containerd.sock", &socket(OLD));
    piece.replace("unix:///run/containerd-2/containerd.sock", &socket(NEW))
}
