//! One CRI runtime that calls are forwarded to: its connection, its health, its last-known state.
//!
//! `connection.rs` keeps the connection, `health.rs` says whether it is in time, `call.rs` sends over it.
//! Nothing here knows what a method means.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use prost::Message;
use tokio::sync::{Notify, watch};

use crate::backend::certificates::Certificates;
use crate::backend::connect::Connector;
use crate::config::BackendConfig;
use crate::cri::VersionResponse;
use crate::method::{Api, Deadline, IN_FLIGHT_LIMITS, InFlightLimit, Method, Rpc};
use crate::metrics::CallMetrics;
use crate::mutex::lock;
use crate::process;
use crate::side::Side;
use crate::state::{InstanceId, InstanceState};

pub use call::{BufferedReply, CallRequest, Reply, ReplyBody, RequestHeaders, own_headers};
pub use health::{Condition, Health, LastError, MethodClass};
pub use link::Link;

mod call;
mod certificates;
pub mod connect;
mod connection;
mod errors;
mod health;
mod link;
pub mod tls;

/// The deadline of calls by which kubelet decides whether the node is ready.
const FAST_DEADLINE: Duration = Duration::from_millis(80);

/// One backend.
#[derive(Debug)]
pub struct Backend {
    /// Which instance it is.
    pub id: InstanceId,
    /// The label of the instance: its name in the configuration. A renamed instance is another `Backend`.
    pub name: Arc<str>,
    /// Late or not, by class of methods, and the last error.
    pub health: Health,
    /// What it answered last, in memory and in `state_dir`.
    pub state: Arc<InstanceState>,
    /// Counters under its name.
    pub calls: Arc<CallMetrics>,
    config: ArcSwap<BackendConfig>,
    link: watch::Sender<Link>,
    redial: Notify,
    api: Mutex<Option<Api>>,
    connector: Mutex<Option<Arc<Connector>>>,
    certificates: Certificates,
    /// The process that listens at its socket, and when that was started, if that is known.
    peer: Mutex<Option<(i32, u64)>>,
    /// Calls in flight, by the limit that they count against.
    in_flight: [AtomicUsize; IN_FLIGHT_LIMITS],
    side: Side,
}

impl Backend {
    /// Makes a backend that is not connected yet; [`Backend::run`] connects it. Its name is that of its
    /// counters.
    pub fn new(
        config: BackendConfig,
        state: Arc<InstanceState>,
        calls: Arc<CallMetrics>,
        side: Side,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: state.id(),
            name: calls.backend().into(),
            calls,
            health: Health::default(),
            state,
            config: ArcSwap::from_pointee(config),
            link: watch::Sender::new(Link::Connecting),
            redial: Notify::new(),
            api: Mutex::new(None),
            connector: Mutex::new(None),
            certificates: Certificates::default(),
            peer: Mutex::default(),
            in_flight: Default::default(),
            side,
        })
    }

    /// Returns the current configuration.
    pub fn config(&self) -> Arc<BackendConfig> {
        self.config.load_full()
    }

    /// Returns the state of the connection.
    pub fn link(&self) -> Link {
        self.link.borrow().clone()
    }

    /// Returns the process that listens at its socket, if it is connected and the kernel tells.
    pub fn peer_pid(&self) -> Option<i32> {
        let (pid, started) = lock(&self.peer).filter(|_| self.is_up())?;
        (process::start_time(pid) == Some(started)).then_some(pid)
    }

    /// Tells whether calls can be sent to it.
    pub fn is_up(&self) -> bool {
        matches!(*self.link.borrow(), Link::Up { .. })
    }

    /// Completes once the lists of the present connection were answered or found late; at once if there is no
    /// connection. The first attempt at one is waited for.
    pub async fn listed_or_late(&self) {
        let mut link = self.link.subscribe();
        // The sender lives as long as this.
        link.wait_for(|link| !matches!(link, Link::Connecting)).await.ok();
        tokio::select! {
            () = self.disconnected() => {}
            () = self.health.listed_or_late() => {}
        }
    }

    /// Completes once there is no connection.
    pub async fn disconnected(&self) {
        let mut link = self.link.subscribe();
        // The sender lives as long as this.
        link.wait_for(|link| !matches!(link, Link::Up { .. })).await.ok();
    }

    /// Returns its own deadline for this method; [`Duration::MAX`] for one that only its caller's ends.
    pub fn deadline(&self, method: &Method) -> Duration {
        let timeouts = self.config.load().timeouts;
        match method.deadline {
            Deadline::Stats => timeouts.stats,
            Deadline::Read => timeouts.read,
            Deadline::Fast => FAST_DEADLINE,
            Deadline::List => timeouts.list,
            Deadline::Caller => Duration::MAX,
        }
    }

    /// Returns how many calls in flight to it may create or change something: those without a deadline of the
    /// backend.
    pub fn unbounded_in_flight(&self) -> usize {
        self.in_flight[InFlightLimit::Unbounded as usize].load(Ordering::Relaxed)
    }

    /// Returns its last `Version` reply, if it can be read; `None` before the first.
    pub fn last_version(&self) -> Option<VersionResponse> {
        VersionResponse::decode(self.state.reply(Rpc::Version)?).ok()
    }

    /// Returns how many calls are in flight to it.
    pub fn in_flight(&self) -> usize {
        self.in_flight.iter().map(|calls| calls.load(Ordering::Relaxed)).sum()
    }
}

/// The permit for the one refresh of a class of methods; given back when dropped.
#[derive(Debug)]
pub struct Refresh {
    backend: Arc<Backend>,
    class: MethodClass,
    connection: u64,
}

impl Refresh {
    /// Tells whether the backend was connected again since: what is learnt now may be of another runtime.
    pub fn is_outdated(&self) -> bool {
        self.backend.health.connection() != self.connection
    }
}

impl Backend {
    /// Takes the permit for the one refresh in flight over the present connection; `None` if it is taken.
    pub fn begin_refresh(self: &Arc<Self>, class: MethodClass) -> Option<Refresh> {
        let connection = self.health.begin_refresh(class)?;
        Some(Refresh { backend: Arc::clone(self), class, connection })
    }
}

impl Drop for Refresh {
    fn drop(&mut self) {
        self.backend.health.end_refresh(self.class, self.connection);
    }
}
