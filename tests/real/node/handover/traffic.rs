//! What is under way while crimux hands over.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use testkit::Client;
use testkit::cri::{ContainerState, ListContainersRequest, ListPodSandboxRequest, PodSandboxState};
use tonic::{Code, Status};

use super::super::{LONG, Running, command};
use super::{CLASSES, FAR, Node, container_of, eventually};

/// Between two lists.
const TICK: Duration = Duration::from_millis(50);
/// Where the port-forward listens, for the two ports of the pod.
const FORWARDED: [u16; 2] = [18100, 18101];

/// Starts a verb of `dev/node` with a pipe at its input and its output.
fn start(node: &Node, arguments: &[&str]) -> (Running, ChildStdin, BufReader<ChildStdout>) {
    let mut command = command(&node.directory, arguments);
    let mut running = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let (input, output) = (running.0.stdin.take().unwrap(), running.0.stdout.take().unwrap());
    (running, input, BufReader::new(output))
}

/// `crictl events`.
pub(super) struct Events {
    running: Running,
    told: Arc<Mutex<String>>,
}

impl Events {
    pub(super) fn start(node: &Node) -> Self {
        let (running, _, mut output) = start(node, &["crictl", "events"]);
        let told = Arc::<Mutex<String>>::default();
        let heard = Arc::clone(&told);
        std::thread::spawn(move || {
            let mut line = String::new();
            while output.read_line(&mut line).is_ok_and(|length| length > 0) {
                heard.lock().unwrap().push_str(&line);
                line.clear();
            }
        });
        let mut events = Self { running, told };
        // Until then it may not have subscribed.
        eventually("the first event", || {
            node.pod("early", CLASSES[0], "sleep 86400");
            node.ready(&["early"]);
            let has_told = events.have_told_of("early");
            node.kubectl(&["delete", "pod", "early", "--now"]);
            has_told
        });
        events
    }

    fn have_told_of(&mut self, pod: &str) -> bool {
        assert_eq!(self.running.0.try_wait().unwrap(), None, "the stream of events ended");
        self.told.lock().unwrap().contains(&format!("\"name\": \"{pod}\""))
    }

    /// Waits for an event of a pod.
    pub(super) fn tell_of(&mut self, pod: &str) {
        eventually("an event of the pod", || self.have_told_of(pod));
    }
}

/// An `ExecSync` that takes 60 s, and as long as the handovers take.
pub(super) struct LongExec(Child);

impl LongExec {
    pub(super) fn start(node: &Node) -> Self {
        let container = container_of(node, CLASSES[0]);
        let script = ": >/tmp/begun; sleep 60; until [ -e /tmp/done ]; do sleep 1; done; echo whole";
        let arguments = ["crictl", "exec", "--sync", "--timeout", "900", &container, "sh", "-c", script];
        let mut command = command(&node.directory, &arguments);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        eventually("the exec runs", || node.try_run(&inside("test -e /tmp/begun")).is_ok());
        Self(child.unwrap())
    }

    /// Lets it end, which is not before its 60 s.
    pub(super) fn ends(self, node: &Node) {
        node.run(&inside("touch /tmp/done"));
        let output = self.0.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.trim() == "whole", "{said}{errors}");
    }
}

/// A command in the container of the default class.
fn inside(command: &str) -> Vec<&str> {
    ["kubectl", "exec", CLASSES[0], "--"].into_iter().chain(command.split(' ')).collect()
}

/// A `kubectl exec` whose container sends back what it gets.
pub(super) struct Exec {
    running: Running,
    input: ChildStdin,
    sent: usize,
    returned: Arc<AtomicUsize>,
    /// Ends with the exec, or where another byte returns than the one that was sent.
    reader: JoinHandle<()>,
}

impl Exec {
    pub(super) fn start(node: &Node) -> Self {
        let (running, input, mut output) = start(node, &["kubectl", "exec", "-i", FAR, "--", "cat"]);
        let returned = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&returned);
        let reader = std::thread::spawn(move || {
            let mut read = vec![0; 64 << 10];
            while let Ok(length @ 1..) = output.read(&mut read) {
                let at = counted.load(Ordering::SeqCst);
                assert!(read[..length] == carried(at, length), "other bytes returned after {at}");
                counted.store(at + length, Ordering::SeqCst);
            }
        });
        let mut exec = Self { running, input, sent: 0, returned, reader };
        exec.send(1);
        eventually("the exec answers", || exec.returned.load(Ordering::SeqCst) == 1);
        exec
    }

    pub(super) fn send(&mut self, length: usize) {
        self.input.write_all(&carried(self.sent, length)).unwrap();
        self.sent += length;
    }

    /// Closes its input after `total` bytes, all of which must return.
    pub(super) fn ends(mut self, total: usize) {
        self.send(total - self.sent);
        let returned = || self.returned.load(Ordering::SeqCst);
        eventually("all bytes return", || returned() == total || self.reader.is_finished());
        assert_eq!(returned(), total);
        drop(self.input);
        assert!(self.running.0.wait().unwrap().success());
        self.reader.join().unwrap();
    }
}

/// Bytes that tell where they belong.
fn carried(from: usize, length: usize) -> Vec<u8> {
    (0..=250).cycle().skip(from % 251).take(length).collect()
}

/// A `kubectl port-forward`, and a connection through it whose other end sends back what it gets.
pub(super) struct Forward {
    _running: Running,
    _connected: Running,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Forward {
    pub(super) fn start(node: &Node) -> Self {
        let [to_page, to_echo] = FORWARDED;
        let (ports, pod) = ([format!("{to_page}:80"), format!("{to_echo}:81")], format!("pod/{FAR}"));
        let mut forward = command(&node.directory, &["kubectl", "port-forward", &pod, &ports[0], &ports[1]]);
        let running = Running::start(forward.stdin(Stdio::null()).stdout(Stdio::null()));
        eventually("the port is forwarded", || {
            node.try_run(&["run", "curl", "-sf", "--max-time", "5", &page()]).is_ok()
        });
        let connect = format!("exec 3<>/dev/tcp/127.0.0.1/{to_echo}; cat <&3 & exec cat >&3");
        let (connected, input, output) = start(node, &["run", "bash", "-c", &connect]);
        Self { _running: running, _connected: connected, input, output }
    }

    /// Sends a line through the connection and waits until it returns.
    pub(super) fn is_answered(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
        let mut returned = String::new();
        self.output.read_line(&mut returned).unwrap();
        assert_eq!(returned.trim_end(), line, "the forwarded connection");
    }
}

/// The address of the pod's page through the port-forward.
pub(super) fn page() -> String {
    format!("http://127.0.0.1:{}/", FORWARDED[0])
}

/// A client that lists sandboxes and containers every 50 ms, over one connection and each time over another.
pub(super) struct Lists {
    answered: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<String>>,
}

/// How far each object is in its life: a list that shows one earlier in it is older than the list before.
type Stages = BTreeMap<String, u8>;

/// The stage of an object that is listed no more.
const GONE: u8 = u8::MAX;

impl Lists {
    pub(super) fn start(socket: PathBuf) -> Self {
        let (answered, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (counted, stopped) = (Arc::clone(&answered), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(list(&socket, &counted, &stopped))
        });
        Self { answered, stop, thread }
    }

    /// Waits until a list was asked for and answered.
    pub(super) fn wait_for_more(&self) {
        let before = self.answered.load(Ordering::SeqCst);
        eventually("a list", || {
            self.answered.load(Ordering::SeqCst) > before + 1 || self.thread.is_finished()
        });
    }

    /// Returns the lists that were refused, late or older than the one before.
    pub(super) fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

async fn list(socket: &Path, answered: &AtomicUsize, stop: &AtomicBool) -> Vec<String> {
    let (kept, mut known, mut wrong) = (Client::unix(socket), Stages::new(), Vec::new());
    let mut tick = tokio::time::interval(TICK);
    while !stop.load(Ordering::SeqCst) {
        tick.tick().await;
        for client in [&kept, &Client::unix(socket)] {
            match tokio::time::timeout(LONG, stages(client)).await {
                Ok(Ok(listed)) => wrong.extend(older(&mut known, &listed)),
                other => wrong.push(format!("{other:?}")),
            }
            answered.fetch_add(1, Ordering::SeqCst);
        }
    }
    wrong
}

/// Both lists. What was never sent is sent again, as gRPC clients do.
async fn stages(client: &Client) -> Result<Stages, Status> {
    loop {
        match both_lists(client).await {
            Err(status)
                if status.code() == Code::Cancelled && status.message() == "operation was canceled" => {}
            listed => return listed,
        }
    }
}

async fn both_lists(client: &Client) -> Result<Stages, Status> {
    let mut runtime = client.runtime();
    let sandboxes = runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await?.into_inner().items;
    let containers = runtime.list_containers(ListContainersRequest::default()).await?.into_inner().containers;
    let sandboxes = sandboxes.into_iter().map(|item| {
        let stage = u8::from(item.state() != PodSandboxState::SandboxReady);
        (item.id, stage)
    });
    let containers = containers.into_iter().map(|item| {
        let stage = match item.state() {
            ContainerState::ContainerCreated => 0,
            ContainerState::ContainerRunning => 1,
            ContainerState::ContainerExited | ContainerState::ContainerUnknown => 2,
        };
        (item.id, stage)
    });
    Ok(sandboxes.chain(containers).collect())
}

/// Returns what is older in these lists than in those before, and remembers the later of both.
fn older(known: &mut Stages, listed: &Stages) -> Vec<String> {
    let mut wrong = Vec::new();
    for (id, stage) in listed {
        let before = known.insert(id.clone(), *stage).unwrap_or_default();
        if before > *stage {
            wrong.push(format!("{id} was at {before} and is at {stage}"));
        }
    }
    for (_, stage) in known.iter_mut().filter(|(id, _)| !listed.contains_key(*id)) {
        *stage = GONE;
    }
    wrong
}
