//! What all calls of the node share.
//!
//! The backends, the router, the last-known state and the metrics, each of which knows nothing of the others.
//! A reload replaces the list of backends and the handlers, never the objects that calls in flight hold.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tonic::Code;

use crate::backend::{Backend, Collected, State};
use crate::codec::Message;
use crate::config::{Config, StatsPolicy};
use crate::cri::STREAM_URL;
use crate::error::Error;
use crate::events::Subscriptions;
use crate::history::RecentEvents;
use crate::limits::ClientLimits;
use crate::method::List;
use crate::metrics::{ALL_BACKENDS, CallMetrics, Metrics, NO_BACKEND};
use crate::proxy::images::ImageLists;
use crate::proxy::left_out::LeftOut;
use crate::proxy::pod_metrics::Unannounced;
use crate::relay::{Relay, StreamRoute};
use crate::router::{Choice, Router};
use crate::snapshot::Snapshot;
use crate::wire;

/// How often a merged list that nears kubelet's limit is logged.
const LARGE_LIST_LOGGED_EVERY: Duration = Duration::from_secs(60);

/// The node.
#[derive(Debug)]
pub struct ProxyState {
    /// Handlers and owners.
    pub router: Router,
    /// Last-known state of every backend.
    pub snapshot: Arc<Snapshot>,
    /// All metrics.
    pub metrics: Arc<Metrics>,
    /// What happened lately, for the status page.
    pub history: RecentEvents,
    /// What answers lacked lately.
    pub left_out: LeftOut,
    /// Metrics that no client was told of; kubelet shows them once it is restarted.
    pub unannounced: Unannounced,
    /// Counters of calls to all backends.
    pub(super) all_calls: Arc<CallMetrics>,
    /// Counters of calls to none.
    pub(super) own_calls: Arc<CallMetrics>,
    /// The backends' event streams that are wanted at the moment.
    pub(super) feeds: Subscriptions,
    /// When a large merged list was last logged.
    large_list_logged: Mutex<Option<Instant>>,
    /// When each backend's images were last listed.
    pub(super) image_lists: ImageLists,
    /// When crimux started.
    pub(super) started: Instant,
    /// What clients may make crimux hold.
    pub limits: Arc<ClientLimits>,
    relay: Arc<Relay>,
    config: ArcSwap<Config>,
    backends: ArcSwap<Vec<Arc<Backend>>>,
    /// The backends that a start without saved state waits for.
    awaited: OnceLock<Vec<Arc<str>>>,
}

impl ProxyState {
    /// Makes a node of these parts; backends are added by [`ProxyState::replace_backends`].
    pub fn new(
        config: Config,
        router: Router,
        snapshot: Arc<Snapshot>,
        metrics: Arc<Metrics>,
        relay: Arc<Relay>,
    ) -> Arc<Self> {
        Arc::new(Self {
            router,
            snapshot,
            all_calls: metrics.calls(ALL_BACKENDS),
            own_calls: metrics.calls(NO_BACKEND),
            limits: ClientLimits::new(&config.limits, &metrics),
            metrics,
            feeds: Subscriptions::default(),
            history: RecentEvents::default(),
            left_out: LeftOut::default(),
            large_list_logged: Mutex::default(),
            unannounced: Unannounced::default(),
            image_lists: ImageLists::default(),
            started: Instant::now(),
            relay,
            config: ArcSwap::from_pointee(config),
            backends: ArcSwap::default(),
            awaited: OnceLock::new(),
        })
    }

    /// Returns the current configuration.
    pub fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// Replaces the configuration, for calls that start from now on.
    pub fn replace_config(&self, config: Config) {
        self.limits.replace(&config.limits);
        self.config.store(Arc::new(config));
    }

    /// Returns all backends.
    pub fn backends(&self) -> Arc<Vec<Arc<Backend>>> {
        self.backends.load_full()
    }

    /// Replaces the list of backends. Those of the first list are waited for if no state was saved.
    pub fn replace_backends(&self, backends: Vec<Arc<Backend>>) {
        self.awaited.get_or_init(|| {
            let fresh = backends.iter().filter(|_| self.snapshot.is_fresh());
            fresh.map(|backend| Arc::clone(&backend.name)).collect()
        });
        self.backends.store(Arc::new(backends));
    }

    /// Returns the backend of this name.
    ///
    /// # Errors
    /// [`Error::Lost`] if it was removed while its ID was being looked up.
    pub fn backend(&self, name: &str) -> Result<Arc<Backend>, Error> {
        let backends = self.backends.load();
        backends.iter().find(|backend| &*backend.name == name).cloned().ok_or_else(|| Error::Lost {
            backend: name.into(),
            cause: "it is no longer configured".to_owned(),
        })
    }

    /// Returns all backends, or the only one that a scope shows.
    pub(super) fn backends_in(&self, scope: Option<&str>) -> Vec<Arc<Backend>> {
        let backends = self.backends.load();
        backends.iter().filter(|b| scope.is_none_or(|scope| scope == &*b.name)).cloned().collect()
    }

    /// Returns the default backend, or the only one that a scope shows.
    pub(super) fn default_in(&self, scope: Option<&Arc<str>>) -> Arc<str> {
        scope.map_or_else(|| Arc::clone(self.router.handlers().default_backend()), Arc::clone)
    }

    /// Chooses the backend of a new sandbox.
    pub(super) fn choose(&self, handler: &str, uid: &str) -> Result<Choice, Error> {
        let drained = |name: &str| self.backend(name).is_ok_and(|backend| backend.last.drained());
        let choice = self.router.handlers().choose(handler, uid, drained)?;
        if self.is_joining(&*self.backend(&choice.backend)?) {
            return Err(Error::Joining { backend: choice.backend });
        }
        Ok(choice)
    }

    /// Tells whether a backend was added while state existed and has not been listed yet.
    pub fn is_joining(&self, backend: &Backend) -> bool {
        !backend.last.known() && !self.awaited.get().is_some_and(|awaited| awaited.contains(&backend.name))
    }

    /// Whether one backend without this list makes it `Unimplemented` for all. Only pod stats have another
    /// source that kubelet then takes, and only as long as no client was told that they exist.
    pub(super) fn all_must_implement(&self, list: List) -> bool {
        list == List::SandboxStats
            && self.promised_pod_stats().is_none()
            && self.config.load().pod_sandbox_stats == StatsPolicy::Unimplemented
    }

    /// Puts our own URL in the place of a stream URL that kubelet could not dial.
    pub(super) fn relayed(&self, backend: &Backend, reply: Collected) -> Result<Collected, Error> {
        if reply.code != Code::Ok {
            return Ok(reply);
        }
        let refused = |cause: String| Error::Stream { backend: Arc::clone(&backend.name), cause };
        let url = wire::peek_str(reply.message.encoded(), &[STREAM_URL])
            .map_err(|error| refused(error.to_string()))?;
        let connector = backend.connector().map_err(|error| refused(error.to_string()))?;
        let decided = self.relay.route(&backend.name, &backend.config(), &connector, url);
        match decided.map_err(|error| refused(error.to_string()))? {
            StreamRoute::Direct => Ok(reply),
            StreamRoute::Relay(ours) => {
                let message = Message::new(&wire::append_str(reply.message.encoded(), &[STREAM_URL], &ours));
                Ok(Collected { message, ..reply })
            }
        }
    }

    /// Notes where a sandbox went, or that it went nowhere, for the status page.
    pub(super) fn placed(&self, handler: &str, backend: Option<&Arc<str>>, code: Code) {
        let handlers = self.router.handlers();
        let known = handler.is_empty() || handlers.targets_of(handler).is_ok();
        self.history.record_placement(known.then_some(handler), backend, code);
    }

    /// Tells whether a large merged list is to be logged, which is once a minute: kubelet lists every second.
    pub(super) fn is_time_to_log_large_list(&self) -> bool {
        let mut logged = self.large_list_logged.lock().unwrap_or_else(PoisonError::into_inner);
        let due = logged.is_none_or(|at| at.elapsed() >= LARGE_LIST_LOGGED_EVERY);
        if due {
            *logged = Some(Instant::now());
        }
        due
    }

    /// Returns the state that operators see.
    pub fn state(&self, backend: &Backend) -> State {
        if self.is_joining(backend) {
            State::Joining
        } else if !backend.is_up() {
            State::Down
        } else if backend.health.late_since().is_some() {
            State::Late
        } else if backend.last.drained() {
            State::Draining
        } else {
            State::Ready
        }
    }
}
