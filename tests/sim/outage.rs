//! An outage is never a lie: what crimux answers while a backend is killed, stopped, wrong or slow.
//!
//! Every test says what must not change for the client. Bounds on time are generous, because a slow machine
//! is no fault of crimux; where "at once" is meant, the record of the calls that reached the backend says it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use testkit::Client;
use testkit::cri;
use testkit::runtime::{Container, Fault, SimRuntime};
use tonic::{Code, Status};

use crate::support::{Crimux, SOON, config};

#[path = "outage/answers.rs"]
mod answers;
#[path = "outage/calls.rs"]
mod calls;
#[path = "outage/crashes.rs"]
mod crashes;
#[path = "outage/creates.rs"]
mod creates;
#[path = "outage/disk.rs"]
mod disk;
#[path = "outage/forget.rs"]
mod forget;
#[path = "outage/lists.rs"]
mod lists;
#[path = "outage/secrets.rs"]
mod secrets;
#[path = "outage/state.rs"]
pub(crate) mod state;
#[path = "outage/statuses.rs"]
mod statuses;
#[path = "outage/strace.rs"]
mod strace;

/// The deadline of every list, read and stats call here.
pub(crate) const DEADLINE: Duration = Duration::from_secs(1);
/// What "at once" may take on a busy machine; far below the deadline.
pub(crate) const AT_ONCE: Duration = Duration::from_millis(500);

/// crimux in front of two backends, of which `a` is the default.
pub(crate) struct World {
    pub(crate) crimux: Crimux,
    pub(crate) a: SimRuntime,
    pub(crate) b: SimRuntime,
    pub(crate) client: Client,
}

impl World {
    /// Two backends with two sandboxes of two running containers each.
    pub(crate) async fn new() -> Self {
        Self::with(|yaml| yaml).await
    }

    /// The same with another configuration.
    pub(crate) async fn with(change: impl FnOnce(String) -> String) -> Self {
        let a = backend("a").await;
        let b = backend("b").await;
        let dir = tempfile::tempdir().unwrap();
        let yaml = change(timeouts(&config(&dir, &[("a", &a), ("b", &b)], "")));
        let crimux = Crimux::start_in(dir, &yaml);
        crimux.wait_ready().await;
        let client = crimux.client();
        Self { crimux, a, b, client }
    }

    /// Waits until crimux says of `backend` that it is in this state.
    pub(crate) async fn wait_state(&self, backend: &str, state: &str) {
        let series = format!("crimux_backend_state{{backend=\"{backend}\",state=\"{state}\"}}");
        testkit::eventually(SOON, async || self.crimux.metric(&series).await == Some(1.0)).await;
    }

    /// The ID of the sandbox of `b` that is ready.
    pub(crate) fn sandbox_of_b(&self) -> String {
        self.b.state().sandboxes().find(|sandbox| sandbox.ready).unwrap().id.clone()
    }

    /// The ID of a container of `b` that runs.
    pub(crate) fn container_of_b(&self) -> String {
        let is_running = |container: &&Container| container.state == cri::ContainerState::ContainerRunning;
        self.b.state().containers().find(is_running).unwrap().id.clone()
    }
}

/// Two sandboxes with two running containers each, one of them with a stopped sandbox, and two images.
pub(crate) async fn backend(name: &str) -> SimRuntime {
    let runtime = SimRuntime::builder(name).handlers([name]).containers(4, 2).images(2).start().await;
    let last = runtime.state().sandboxes().last().unwrap().id.clone();
    runtime.state().stop_sandbox(&last).unwrap();
    runtime
}

/// Gives every backend the deadline of these tests.
pub(crate) fn timeouts(yaml: &str) -> String {
    let seconds = DEADLINE.as_secs();
    yaml.replace(
        "\" }\n",
        &format!("\", timeouts: {{ list: {seconds}s, read: {seconds}s, stats: {seconds}s }} }}\n"),
    )
}

/// The ways in which a backend fails as a whole.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Outage {
    /// Its process is gone and its socket too.
    Killed,
    /// Its socket file is there and nobody listens.
    Refusing,
    /// Its process is stopped.
    Frozen,
    /// It answers everything with an error.
    Erroring,
    /// It denies having any method.
    Denying,
    /// Its messages are not protobuf.
    Garbage,
    /// Its replies are not gRPC.
    Unframed,
    /// It resets every stream.
    Resetting,
    /// It breaks the connection at every call.
    Dropping,
}

impl Outage {
    pub(crate) const ALL: [Self; 9] = [
        Self::Killed,
        Self::Refusing,
        Self::Frozen,
        Self::Erroring,
        Self::Denying,
        Self::Garbage,
        Self::Unframed,
        Self::Resetting,
        Self::Dropping,
    ];

    pub(crate) async fn begin(self, runtime: &SimRuntime) {
        let fault = match self {
            Self::Killed => return runtime.stop().await,
            Self::Refusing => return runtime.refuse_connections().await,
            Self::Frozen => return runtime.freeze(),
            Self::Erroring => Fault::error(Code::Internal, "out of order"),
            Self::Denying => Fault::error(Code::Unimplemented, "unknown service"),
            Self::Garbage => Fault::GarbageMessage(b"\xff\xff\xff\xff".as_slice().into()),
            Self::Unframed => Fault::GarbageFrame(b"this is no gRPC message".as_slice().into()),
            Self::Resetting => Fault::Reset,
            Self::Dropping => Fault::DropConnection,
        };
        runtime.fault("*", fault);
    }

    pub(crate) async fn end(self, runtime: &SimRuntime) {
        match self {
            Self::Killed | Self::Refusing => runtime.start_again().await,
            Self::Frozen => runtime.thaw(),
            _ => runtime.clear_faults(),
        }
    }
}

/// Lists sandboxes.
pub(crate) async fn sandboxes(
    client: &Client,
    filter: Option<cri::PodSandboxFilter>,
) -> Result<BTreeSet<String>, Status> {
    let reply = client.runtime().list_pod_sandbox(cri::ListPodSandboxRequest { filter }).await?;
    Ok(unique(reply.into_inner().items.into_iter().map(|item| item.id)))
}

/// Lists containers.
pub(crate) async fn containers(
    client: &Client,
    filter: Option<cri::ContainerFilter>,
) -> Result<BTreeSet<String>, Status> {
    let reply = client.runtime().list_containers(cri::ListContainersRequest { filter }).await?;
    Ok(unique(reply.into_inner().containers.into_iter().map(|item| item.id)))
}

/// Collects IDs, of which none may come twice.
pub(crate) fn unique(ids: impl Iterator<Item = String>) -> BTreeSet<String> {
    let mut set = BTreeSet::new();
    ids.for_each(|id| assert!(set.insert(id.clone()), "{id} is listed twice"));
    set
}

/// Waits for an answer and says how long that took.
///
/// # Panics
/// If the call is not answered within a minute, so that a call without an end does not hang the tests.
pub(crate) async fn timed<T>(answer: impl Future<Output = T>) -> (T, Duration) {
    let started = Instant::now();
    let answer = tokio::time::timeout(SOON * 6, answer).await.expect("it is answered");
    (answer, started.elapsed())
}
