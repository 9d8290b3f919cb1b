//! The state that all calls share.
//!
//! The backends, the router, the last-known state and the metrics. Backends and router do not call each
//! other; both use the state. A reload replaces the list of backends and the handlers, never the objects that
//! calls in flight hold.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::backend::{Backend, Condition};
use crate::config::{Config, StatsPolicy};
use crate::error::Error;
use crate::events::Subscriptions;
use crate::history::RecentEvents;
use crate::limits::ClientLimits;
use crate::log_limit::LogLimit;
use crate::method::List;
use crate::metrics::{ALL_BACKENDS, CallMetrics, Metrics, NO_BACKEND};
use crate::plan::KnownInstance;
use crate::proxy::descriptors::Unannounced;
use crate::proxy::failed_commands::FailedCommands;
use crate::proxy::image_lists::ImageLists;
use crate::proxy::left_out::LeftOut;
use crate::proxy::unknown_ids::UnknownIds;
use crate::relay::Relay;
use crate::router::{Handlers, Names, Router};
use crate::state::{Instance, InstanceId, Life, StateStore};

/// The state that all calls share.
#[derive(Debug)]
pub struct Node {
    /// Handlers and owners.
    pub router: Router,
    /// Last-known state of every backend.
    pub state_store: Arc<StateStore>,
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
    /// Counts merged lists near kubelet's limit: kubelet lists every second.
    pub(super) large_list_log: Mutex<LogLimit>,
    /// When each backend's images were last listed.
    pub(super) image_lists: ImageLists,
    /// When crimux started.
    pub(super) started: Instant,
    /// For how long the processes before this one saw every call, if it was handed what they kept.
    pub(super) seen_before: OnceLock<Duration>,
    /// What clients may make crimux hold.
    limits: Arc<ClientLimits>,
    pub(super) relay: Arc<Relay>,
    config: ArcSwap<Config>,
    backends: ArcSwap<Vec<Arc<Backend>>>,
    /// Counts comparisons that found two backends listing the same IDs.
    pub(super) conflicts_log: Mutex<LogLimit>,
    /// Counts lists that were refused because a backend was never listed.
    pub(super) refused_lists_log: Mutex<LogLimit>,
    /// What was logged of IDs without a known owner.
    pub(super) unknown_ids: UnknownIds,
    /// What was logged of failed commands.
    pub(super) failed_commands: FailedCommands,
    /// Notified when a backend that may have moved has its first pair of lists.
    moved_listed: Notify,
}

impl Node {
    /// Makes a node of these parts; backends are added by [`Node::replace_backends`].
    pub fn new(
        config: Config,
        state_store: Arc<StateStore>,
        metrics: Arc<Metrics>,
        relay: Arc<Relay>,
    ) -> Arc<Self> {
        Arc::new(Self {
            router: Router::new(Handlers::new(&config, &Names::new())),
            state_store,
            all_calls: metrics.calls(ALL_BACKENDS),
            own_calls: metrics.calls(NO_BACKEND),
            limits: ClientLimits::new(&config.limits, &metrics),
            feeds: Subscriptions::default(),
            history: RecentEvents::default(),
            left_out: LeftOut::new(Arc::clone(&metrics)),
            metrics,
            large_list_log: Mutex::default(),
            unannounced: Unannounced::default(),
            image_lists: ImageLists::default(),
            started: Instant::now(),
            seen_before: OnceLock::new(),
            relay,
            config: ArcSwap::from_pointee(config),
            backends: ArcSwap::default(),
            conflicts_log: Mutex::default(),
            refused_lists_log: Mutex::default(),
            unknown_ids: UnknownIds::default(),
            failed_commands: FailedCommands::default(),
            moved_listed: Notify::new(),
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

    /// Returns what clients may make crimux hold, and what they hold.
    pub fn limits(&self) -> &Arc<ClientLimits> {
        &self.limits
    }

    /// Returns all backends.
    pub fn backends(&self) -> Arc<Vec<Arc<Backend>>> {
        self.backends.load_full()
    }

    /// Replaces the list of backends.
    pub fn replace_backends(&self, backends: Vec<Arc<Backend>>) {
        self.backends.store(Arc::new(backends));
    }

    /// Returns the backend that is this instance.
    ///
    /// # Errors
    /// [`Error::Gone`] if it ended while its ID was being looked up.
    pub fn backend(&self, id: InstanceId) -> Result<Arc<Backend>, Error> {
        let backends = self.backends.load();
        let running = backends.iter().find(|backend| backend.id == id).cloned();
        running.ok_or(Error::Gone { id: id.0 })
    }

    /// Returns the backend that has this label.
    pub fn backend_named(&self, name: &str) -> Option<Arc<Backend>> {
        self.backends.load().iter().find(|backend| &*backend.name == name).cloned()
    }

    /// Returns all backends, or the only one that a scope shows.
    pub(super) fn backends_in(&self, scope: Option<InstanceId>) -> Vec<Arc<Backend>> {
        let backends = self.backends.load();
        backends.iter().filter(|b| scope.is_none_or(|scope| scope == b.id)).cloned().collect()
    }

    /// Returns the default backend, or the only one that a scope shows.
    pub(super) fn default_in(&self, scope: Option<InstanceId>) -> InstanceId {
        scope.unwrap_or_else(|| self.router.handlers().default_backend())
    }

    /// Returns what is known of every backend, for [`crate::plan::Plan::new`].
    pub fn known_instances(&self) -> Vec<KnownInstance> {
        let known = |instance: Instance| {
            let Instance { id, name, endpoint, life, .. } = instance;
            let state = self.state_store.get(id);
            let backend = self.backend(id).ok();
            let (pods, containers) = match (&backend, &state) {
                // At a start, owners are learnt only when the backend runs.
                (None, Some(state)) => state.count(),
                _ => self.router.owners.count(id),
            };
            // A joining backend was given nothing. Any other that was never listed may hold anything.
            let is_unknown = life != Life::Joining && state.is_some_and(|state| !state.has_lists());
            let busy = backend.is_some_and(|backend| backend.in_flight() > 0);
            KnownInstance {
                id,
                name,
                endpoint,
                life,
                pods,
                is_occupied: pods + containers > 0 || is_unknown || busy,
            }
        };
        self.state_store.instances().into_iter().map(known).collect()
    }

    /// Completes once a backend that may have moved has been listed.
    pub async fn moved_backend_listed(&self) {
        self.moved_listed.notified().await;
    }

    /// Completes [`Node::moved_backend_listed`].
    pub(super) fn notify_moved_listed(&self) {
        self.moved_listed.notify_one();
    }

    /// Tells whether the node's lists are complete without this backend, and no new sandbox is created on it.
    ///
    /// | life | `optional` | has lists | the backend is |
    /// |---|---|---|---|
    /// | joining | any | any | outside lists; one with lists may be another instance that moved |
    /// | member, removed | yes | no | outside lists |
    /// | member, removed | no | no | awaited: [`Node::is_awaited`] |
    /// | member, removed | any | yes | in lists |
    pub fn is_outside_lists(&self, backend: &Backend) -> bool {
        backend.state.is_joining() || (backend.config().optional && !backend.state.has_lists())
    }

    /// Tells whether an `optional` backend is not there yet: it was never listed and is not connected. One
    /// that is connected should have been listed.
    pub fn comes_later(&self, backend: &Backend) -> bool {
        backend.config().optional && self.is_outside_lists(backend) && !backend.is_up()
    }

    /// Tells whether the node's lists are refused until this backend is listed or declared empty.
    pub fn is_awaited(&self, backend: &Backend) -> bool {
        !backend.state.has_lists() && !self.is_outside_lists(backend)
    }

    /// Returns for how long every call was seen, by this process or by one that it took over from.
    pub(super) fn watching_for(&self) -> Duration {
        self.seen_before.get().copied().unwrap_or_default() + self.started.elapsed()
    }

    /// Returns the labels of the backends that are outside lists.
    pub(super) fn names_outside_lists(&self) -> Vec<Arc<str>> {
        let backends = self.backends.load();
        let outside = backends.iter().filter(|backend| self.is_outside_lists(backend));
        outside.map(|backend| Arc::clone(&backend.name)).collect()
    }

    /// Whether one backend without this list makes it `Unimplemented` for all. Only pod stats have another
    /// source that kubelet then takes, and only as long as no client was told that they exist.
    pub(super) fn all_must_implement(&self, list: List) -> bool {
        list == List::SandboxStats
            && self.promised_pod_stats().is_none()
            && self.config.load().pod_sandbox_stats == StatsPolicy::Unimplemented
    }

    /// Returns the condition that operators see.
    pub fn condition_of(&self, backend: &Backend) -> Condition {
        if self.is_outside_lists(backend) {
            Condition::Joining
        } else if !backend.is_up() {
            Condition::Down
        } else if backend.health.first_late_since().is_some() {
            Condition::Late
        } else if backend.state.is_draining() {
            Condition::Draining
        } else {
            Condition::Ready
        }
    }
}
