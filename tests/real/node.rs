//! A real kubelet on crimux: `dev/node`, driven by kubectl and watched through the API server.
//!
//! What crimux promises is that kubelet does not notice it, so the judge here is what Kubernetes records of
//! each pod: a restart, a change of its readiness or a second sandbox is a failure, wherever it comes from.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use testkit::bed::{Bed, skipped};

mod chaos;
mod handover;
mod identity;
mod migration;
mod numbers;
mod reach;

/// The script that does the work.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/dev/node");

/// The backends of a node; each is a `RuntimeClass` too. The first is the default one.
const CLASSES: [&str; 4] = ["new", "old", "crun", "gvisor"];

/// The gates that change how kubelet asks a runtime.
const GATES: &str =
    "EventedPLEG=true,CRIListStreaming=true,PodAndContainerStatsFromCRI=true,RuntimeClassInImageCriApi=true";

/// How kubectl prints a pod: name, restarts, readiness.
const LINES: &str = concat!(
    "custom-columns=N:.metadata.name,R:.status.containerStatuses[*].restartCount,",
    "S:.status.conditions[?(@.type==\"Ready\")].status"
);

/// How long Kubernetes may take for what it does soon: an emulated sandbox on a busy machine included.
const LONG: Duration = Duration::from_secs(180);

/// A node with kubelet, API server and crimux, ended when dropped.
struct Node {
    directory: PathBuf,
    holder: Child,
    /// The node ends when the other side reads the end of this pipe.
    lifeline: Option<ChildStdin>,
}

/// What the API server told of every pod since a moment, one line for each change.
struct Watch {
    child: Child,
    log: PathBuf,
}

/// A verb of `dev/node` that runs until it is dropped.
struct Running(Child);

/// A pod as the API shows it: restarts of its containers, and whether it is ready.
type Seen = (String, String);

impl Node {
    /// A node with these feature gates (`A=true,B=false`), or `None` after a loud skip.
    fn up_or_skip(features: &str) -> Option<Self> {
        Self::up_with(&[("NODE_FEATURES", features)])
    }

    /// The same with these variables of `dev/node`; the backends are those of [`CLASSES`] if none are named.
    fn up_with(variables: &[(&str, &str)]) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if std::env::var_os("CRIMUX_NODE").is_none_or(|value| value != "1") {
            skipped("a Kubernetes node was not asked for (./dev/test node, or CRIMUX_NODE=1)");
            return None;
        }
        if let Err(why) = Bed::available() {
            skipped(&why);
            return None;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = PathBuf::from(format!("/tmp/node-{}-{number}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let said = directory.with_extension("err");
        let mut holder = command(&directory, &["hold"])
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&said).unwrap())
            // A runner that kills the test's whole process group must not kill what cleans up after it.
            .process_group(0)
            .spawn()
            .unwrap();
        let lifeline = holder.stdin.take();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let node = Self { directory, holder, lifeline };
        let said = std::fs::read_to_string(said).unwrap();
        assert_eq!(line.trim(), "ready", "the node does not come up: {said}");
        Some(node)
    }

    /// Runs a verb of `dev/node` and returns what it printed.
    fn run(&self, arguments: &[&str]) -> String {
        self.try_run(arguments).unwrap_or_else(|said| panic!("dev/node {arguments:?}: {said}"))
    }

    fn try_run(&self, arguments: &[&str]) -> Result<String, String> {
        let output = command(&self.directory, arguments).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        self.run(&[&["kubectl"], arguments].concat())
    }

    /// Runs crictl on a backend's own socket, past crimux.
    fn on_backend(&self, name: &str, arguments: &[&str]) -> String {
        let output = command(&self.directory, &[&["crictl"], arguments].concat())
            .env("NODE_SOCKET", name)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Makes a pod of this class (none for the default) and does not wait.
    fn pod(&self, name: &str, class: &str, command: &str) {
        self.run(&["pod", name, class, command]);
    }

    /// Waits until all these pods are ready.
    fn ready(&self, pods: &[&str]) {
        let names: Vec<_> = pods.iter().map(|pod| format!("pod/{pod}")).collect();
        let limit = format!("--timeout={}s", LONG.as_secs());
        let mut arguments = vec!["wait", "--for=condition=Ready", &limit];
        arguments.extend(names.iter().map(String::as_str));
        if let Err(said) = self.try_run(&[&["kubectl"], &arguments[..]].concat()) {
            panic!("{said}\n{}", self.kubectl(&["describe", "pods"]));
        }
    }

    /// One idle pod of each class, ready, named like its class.
    fn one_pod_per_class(&self) {
        for class in CLASSES {
            self.pod(class, class, "trap 'exit 0' TERM; sleep 86400 & wait");
        }
        self.ready(&CLASSES);
    }

    /// Restarts and readiness of each pod now.
    fn seen(&self) -> BTreeMap<String, Seen> {
        by_pod(&self.kubectl(&["get", "pods", "-o", LINES, "--no-headers"])).collect()
    }

    /// The sandboxes that crimux lists, ready or not: ID by pod, and how many each pod has.
    fn sandboxes(&self) -> BTreeMap<String, Vec<String>> {
        let listed: serde_json::Value =
            serde_json::from_str(&self.run(&["crictl", "pods", "-o", "json"])).unwrap();
        let mut by_pod = BTreeMap::<String, Vec<String>>::new();
        for item in listed["items"].as_array().unwrap() {
            let name = item["metadata"]["name"].as_str().unwrap().to_owned();
            by_pod.entry(name).or_default().push(item["id"].as_str().unwrap().to_owned());
        }
        by_pod
    }

    /// Begins to note every change that the API server tells of pods.
    fn watch(&self) -> Watch {
        let log = self.directory.join("watch.log");
        let child =
            command(&self.directory, &["kubectl", "get", "pods", "--watch", "-o", LINES, "--no-headers"])
                .stdin(Stdio::null())
                .stdout(File::create(&log).unwrap())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
        let watch = Watch { child, log };
        let pods = self.seen().len();
        eventually("the watch shows every pod", || watch.lines().lines().count() >= pods);
        watch
    }

    /// Waits until the node is ready.
    fn node_ready(&self) {
        self.kubectl(&[
            "wait",
            "--for=condition=Ready",
            "node/localhost",
            &format!("--timeout={}s", LONG.as_secs()),
        ]);
    }
}

impl Watch {
    fn lines(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Asserts that no pod of these restarted or stopped being ready since the watch began.
    fn shows_nothing_of(&self, pods: &[&str], what: &str) {
        let lines = self.lines();
        for (pod, seen) in by_pod(&lines).filter(|(pod, _)| pods.contains(&pod.as_str())) {
            assert_eq!(seen, ("0".to_owned(), "True".to_owned()), "{what}: {pod} changed:\n{lines}");
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It has ended by itself if the API server ended first.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn start(command: &mut Command) -> Self {
        // A group of its own, for the script and what it runs.
        Self(command.process_group(0).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended by itself if its pod ended first.
        if matches!(self.0.try_wait(), Ok(None)) {
            let group = nix::unistd::Pid::from_raw(self.0.id().try_into().unwrap());
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
            let _ = self.0.wait();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["crimux", "kubelet"] {
                let log = self.try_run(&["logs", name]).unwrap_or_else(|said| said);
                let lines: Vec<_> = log.lines().collect();
                eprintln!("── {name} ──\n{}", lines[lines.len().saturating_sub(25)..].join("\n"));
            }
        }
        drop(self.lifeline.take());
        // Nothing can be done about an error here; the next bed sweeps what this one left.
        let _ = self.holder.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
        let _ = std::fs::remove_file(self.directory.with_extension("err"));
    }
}

fn command(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(SCRIPT);
    command.args(arguments).env("NODE", directory).env("CRIMUX", env!("CARGO_BIN_EXE_crimux"));
    command
}

/// The pods in lines of name, restarts, readiness.
fn by_pod(lines: &str) -> impl Iterator<Item = (String, Seen)> + '_ {
    lines.lines().filter_map(|line| {
        let mut words = line.split_whitespace().map(str::to_owned);
        Some((words.next()?, (words.next()?, words.next()?)))
    })
}

/// Asks again until it is so.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < end, "gave up waiting: {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}
