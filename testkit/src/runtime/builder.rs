//! Describes a simulated runtime before it starts: where it listens, what it can do, what is there already.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use super::abilities::{Abilities, Events};
use super::call::Shared;
use super::fault::Faults;
use super::gate::Gate;
use super::overrides::Overrides;
use super::record::Recorder;
use super::server::Listener;
use super::state::State;
use super::streaming::Streams;
use super::{Address, SimRuntime};
use crate::client::{container_config, sandbox_config};

/// A runtime that has not started yet.
#[derive(Debug)]
pub struct Builder {
    name: String,
    abilities: Abilities,
    listen: Listen,
    seed: Option<u64>,
    record: bool,
    frame_size: usize,
    max_request: usize,
    sandboxes: usize,
    containers: usize,
    images: usize,
}

#[derive(Debug)]
enum Listen {
    OwnDirectory,
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl Builder {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            abilities: Abilities::default(),
            listen: Listen::OwnDirectory,
            seed: None,
            record: true,
            frame_size: 16 << 10,
            max_request: 16 << 20,
            sandboxes: 0,
            containers: 0,
            images: 0,
        }
    }

    /// Sets the handlers it accepts beside `""`. Default: `runc`.
    #[must_use]
    pub fn handlers<S: Into<String>>(mut self, handlers: impl IntoIterator<Item = S>) -> Self {
        self.abilities.handlers = handlers.into_iter().map(Into::into).collect();
        self
    }

    /// Changes what it can do.
    #[must_use]
    pub fn abilities(mut self, change: impl FnOnce(&mut Abilities)) -> Self {
        change(&mut self.abilities);
        self
    }

    /// Lets `GetContainerEvents` stream what happens.
    #[must_use]
    pub fn events(self) -> Self {
        self.abilities(|abilities| abilities.events = Events::Stream)
    }

    /// Starts with this many running containers, so many in each sandbox.
    #[must_use]
    pub fn containers(mut self, count: usize, per_sandbox: usize) -> Self {
        self.containers = count;
        self.sandboxes = count.div_ceil(per_sandbox.max(1));
        self
    }

    /// Starts with this many sandboxes, over which this many running containers are spread.
    #[must_use]
    pub fn sandboxes(mut self, count: usize, containers: usize) -> Self {
        self.sandboxes = count;
        self.containers = containers;
        self
    }

    /// Starts with this many images, beside the one that containers use.
    #[must_use]
    pub fn images(mut self, count: usize) -> Self {
        self.images = count;
        self
    }

    /// Makes IDs repeatable. Default: arbitrary.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Listens on a Unix socket at this path. Default: one in a temporary directory of its own.
    #[must_use]
    pub fn unix(mut self, path: impl Into<PathBuf>) -> Self {
        self.listen = Listen::Unix(path.into());
        self
    }

    /// Listens on a free TCP port of 127.0.0.1.
    #[must_use]
    pub fn tcp(self) -> Self {
        self.tcp_at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Listens at this TCP address.
    #[must_use]
    pub fn tcp_at(mut self, address: SocketAddr) -> Self {
        self.listen = Listen::Tcp(address);
        self
    }

    /// Says whether calls are recorded. Default: yes. A benchmark switches it off.
    #[must_use]
    pub fn record(mut self, record: bool) -> Self {
        self.record = record;
        self
    }

    /// Sets the largest HTTP/2 frame in bytes, 16384 to 16777215. Default: 16384, which is all grpc-go ever
    /// sends.
    #[must_use]
    pub fn frame_size(mut self, bytes: usize) -> Self {
        self.frame_size = bytes.clamp(16 << 10, (16 << 20) - 1);
        self
    }

    /// Sets the largest request message in bytes. Default: 16 MiB, as containerd.
    #[must_use]
    pub fn max_request(mut self, bytes: usize) -> Self {
        self.max_request = bytes;
        self
    }

    /// Starts it; it listens when this returns.
    ///
    /// # Panics
    /// If it cannot listen: a test can do nothing about that.
    pub async fn start(self) -> SimRuntime {
        let mut directory = None;
        let (listener, address) = match &self.listen {
            Listen::OwnDirectory => {
                let own =
                    tempfile::Builder::new().prefix("testkit-").tempdir().expect("a temporary directory");
                let path = own.path().join("cri.sock");
                directory = Some(own);
                (Listener::unix(&path), Address::Unix(path))
            }
            Listen::Unix(path) => (Listener::unix(path), Address::Unix(path.clone())),
            Listen::Tcp(address) => (Listener::tcp(*address).await, Address::Tcp(*address)),
        };
        let listener = listener.unwrap_or_else(|error| panic!("cannot listen at {address:?}: {error}"));
        let address = match &listener {
            Listener::Tcp(bound) => {
                Address::Tcp(bound.local_addr().expect("a bound listener has an address"))
            }
            Listener::Unix(_) => address,
        };
        let (streams, streaming) = Streams::start(self.seed).await.expect("a free loopback port");
        let shared = Arc::new(Shared {
            faults: Faults::default(),
            overrides: Overrides::default(),
            recorder: Recorder::new(self.record),
            gate: Arc::new(Gate::default()),
            goodbye: watch::Sender::new(()),
            streams,
            frame_size: self.frame_size,
            max_request: self.max_request,
            state: Mutex::new(self.populated()),
        });
        let breaking = watch::Sender::new(());
        let server = tokio::spawn(super::server::serve(listener, Arc::clone(&shared), breaking.subscribe()));
        SimRuntime {
            shared,
            address,
            breaking,
            server: Mutex::new(Some(server)),
            streaming,
            _directory: directory,
        }
    }

    /// Makes the sandboxes, containers and images it starts with.
    fn populated(self) -> State {
        let handler = self.abilities.handlers.first().cloned().unwrap_or_default();
        let mut state = State::new(&self.name, self.abilities, self.seed);
        for number in 0..self.images {
            state.add_image(&format!("registry.example/image-{number}:1"));
        }
        let pods = self.sandboxes.max(usize::from(self.containers > 0));
        let mut sandboxes = Vec::with_capacity(pods);
        for pod in 0..pods {
            let config =
                sandbox_config(&format!("pod-{pod}")).namespace("sim").label("app", &app(pod)).build();
            sandboxes.push(state.run_sandbox(config, &handler).expect("pods have names of their own"));
        }
        for number in 0..self.containers {
            let image = state.add_image("registry.example/app:1");
            let (pod, place) = (number % pods, number / pods);
            let config =
                container_config(&format!("container-{place}"), &image).label("app", &app(pod)).build();
            let container = state.create_container(&sandboxes[pod], config).expect("the image was added");
            state.start_container(&container).expect("the container is new");
        }
        state
    }
}

/// A label that some pods share.
fn app(pod: usize) -> String {
    format!("app-{}", pod % 10)
}
