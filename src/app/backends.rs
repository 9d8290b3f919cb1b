//! The backends that run, and how a changed configuration changes them.
//!
//! `plan.rs` says which instance each name in the file means; [`Backends::apply`] carries that out. A backend
//! that is no longer in the file but still owns sandboxes is kept, reachable by their IDs and in lists, until
//! it owns none, over restarts of crimux too: no edit of a file makes a running pod vanish. Owners are keyed
//! by [`InstanceId`], not by name, so no edit changes an owner:
//!
//! | edit | what runs |
//! |---|---|
//! | rename | a [`Backend`] with the new label over the same [`InstanceState`]; the old one ends its calls |
//! | another endpoint | the old instance as a removed one, and the new endpoint as one that joins |
//! | name taken out | the instance as a removed one, until it owns nothing |
//!
//! The first full pair of lists at another endpoint tells whether the two are one instance
//! ([`Backends::resolve_moved`]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::backend::Backend;
use crate::config::{BackendConfig, Config, Endpoint, ImageHandler, RelayMode, Streaming, Timeouts};
use crate::plan::{Meaning, Plan, PlanStep, Removal, Wanted};
use crate::proxy::{Node, Proxy};
use crate::router::{Handlers, Names};
use crate::server::Sockets;
use crate::shutdown::{self, Shutdown, ShutdownResult};
use crate::side::Side;
use crate::state::{Instance, InstanceId, InstanceState, Life, LifeChange};

/// How long a removed backend owns nothing, and has no write in flight, before new calls no longer see it.
pub(super) const IDLE: Duration = Duration::from_secs(1);

/// The backends that run.
#[derive(Debug)]
pub(super) struct Backends {
    node: Arc<Node>,
    shutdown: Shutdown,
    side: Side,
    sockets: Sockets,
    running: BTreeMap<InstanceId, RunningBackend>,
    /// Which instance each name in the file means.
    names: Names,
    /// Those whose place another one has taken, until their calls have ended.
    replaced: Vec<(Arc<Backend>, Shutdown)>,
    /// Whether a configuration was applied: a backend added later joins, one found at the start is awaited.
    started: bool,
}

#[derive(Debug)]
struct RunningBackend {
    backend: Arc<Backend>,
    stop: Shutdown,
    socket: Option<Socket>,
    /// Since when it is removed and owns nothing, as far as it was looked at.
    idle_since: Option<Instant>,
    /// Whether new calls no longer see it, so that its last lists end.
    hidden: bool,
}

/// A socket that serves one backend alone.
#[derive(Debug)]
struct Socket {
    path: std::path::PathBuf,
    stop: Shutdown,
    /// Completes with the connections still open once the socket is closed and its file removed.
    accepting: JoinHandle<TaskTracker>,
}

impl Backends {
    pub(super) fn new(node: Arc<Node>, shutdown: Shutdown, side: Side, sockets: Sockets) -> Self {
        let (running, names, replaced) = (BTreeMap::new(), Names::new(), Vec::new());
        Self { node, shutdown, side, sockets, running, names, replaced, started: false }
    }

    /// Makes the running backends those of `config`.
    ///
    /// | step | what a call sees after it |
    /// |---|---|
    /// | instances are run or reconfigured, removed ones too | deadlines and limits of backends that stay |
    /// | who they are is in the journal | the same |
    /// | backends are published | new ones, and new names of old ones; handlers still lead as before |
    /// | handlers and configuration are replaced | new routes |
    /// | housekeeping | removed backends that own nothing leave lists, and end |
    /// | sockets of backends are bound | each backend's own socket |
    ///
    /// # Errors
    /// Returns an error if a backend's own socket cannot be bound; everything else is applied then.
    pub(super) async fn apply(&mut self, config: &Config) -> anyhow::Result<()> {
        let plan = Plan::new(&self.node.known_instances(), &Wanted::of(config));
        for removal in &plan.removed {
            self.keep_removed(removal, config.limits.list_bytes);
        }
        self.names.clear();
        for step in &plan.steps {
            let id = self.apply_step(step, &config.backends[&step.name]);
            self.names.insert(step.name.clone(), id);
        }
        if !self.started {
            // The first lists of one are compared with what the others have.
            self.publish();
        }
        self.started = true;
        // Where an instance stands is on the disk before a call meets it.
        self.node.state_store.wait_for_journal().await;
        // A handler must not lead to a backend that is not there yet.
        self.publish();
        self.node.router.replace_handlers(Handlers::new(config, &self.names));
        self.node.replace_config(config.clone());
        self.housekeep();
        self.bind_sockets(config).await
    }

    /// Keeps an instance that the file does not name, for what it owns.
    fn keep_removed(&mut self, removal: &Removal, max_list: usize) {
        let Some(state) = self.node.state_store.get(removal.id) else { return };
        let instance = state.instance();
        if instance.life == Life::Joining && !state.has_lists() {
            // It was given nothing, so there is nothing to keep it for.
            self.node.state_store.declare_empty(removal.id);
        }
        if !removal.was_removed {
            let pods = removal.pods;
            tracing::warn!(backend = %removal.name, label = removal.label, pods, "backend removed; kept until it owns nothing");
        } else if !self.started && removal.pods > 0 {
            tracing::warn!(backend = %removal.name, pods = removal.pods, "backend not configured; kept until it owns nothing");
        }
        let config = BackendConfig { max_list, ..instance.config.clone().unwrap_or_else(unreachable_config) };
        let name = removal.label.clone();
        state.set_instance(&Instance {
            name: name.clone(),
            life: instance.life.after(LifeChange::LeftFile),
            maybe_moved_from: None,
            ..instance
        });
        self.ensure_running(&state, &name, config);
    }

    /// Runs what a name in the file means, and returns which instance that is.
    fn apply_step(&mut self, step: &PlanStep, config: &BackendConfig) -> InstanceId {
        if !matches!(step.meaning, Meaning::Same | Meaning::New) {
            tracing::info!(backend = step.name, "{step}");
        }
        let known = step.instance.and_then(|id| self.node.state_store.get(id));
        let (name, endpoint, config) = (step.name.clone(), step.endpoint.clone(), config.clone());
        let state = match (&step.meaning, known) {
            (Meaning::MaybeMoved { .. }, Some(old)) => {
                let state = self.node.state_store.create(&name, Life::Joining);
                let config = Some(config.clone());
                let maybe_moved_from = Some(old.id());
                state.set_instance(&Instance { endpoint, maybe_moved_from, config, ..state.instance() });
                state
            }
            (Meaning::New | Meaning::MaybeMoved { .. }, _) | (_, None) => {
                let state = self.node.state_store.create(&name, self.first_life());
                let instance = Instance { endpoint, config: Some(config.clone()), ..state.instance() };
                if self.started || self.node.state_store.was_whole() {
                    state.set_instance(&instance);
                } else {
                    state.begin_as(&instance);
                }
                state
            }
            (Meaning::MovedEmpty { .. }, Some(state)) => {
                if state.instance().life == Life::Removed {
                    // An old drain does not come back unasked.
                    state.set_draining(false);
                }
                let instance = Instance {
                    name: name.clone(),
                    endpoint,
                    config: Some(config.clone()),
                    life: self.first_life(),
                    ..state.instance()
                };
                self.node.router.owners.forget_all_of(state.id());
                state.reset_to_unknown(&instance);
                state
            }
            (Meaning::Same | Meaning::Renamed { .. } | Meaning::TakenBack { .. }, Some(state)) => {
                adopt(&state, step, &config);
                state
            }
        };
        self.ensure_running(&state, &name, config);
        state.id()
    }

    /// Returns where an instance begins: the node waits for what the file names at a start, not for what a
    /// reload adds.
    fn first_life(&self) -> Life {
        if self.started { Life::Joining } else { Life::Member }
    }

    /// Runs an instance under this label with this configuration.
    fn ensure_running(&mut self, state: &Arc<InstanceState>, name: &str, config: BackendConfig) {
        let id = state.id();
        if let Some(running) = self.running.get_mut(&id)
            && &*running.backend.name == name
        {
            (running.idle_since, running.hidden) = (None, false);
            return running.backend.reconfigure(&config);
        }
        self.node.state_store.expire_if_rebooted(state, config.local);
        let calls = self.node.metrics.calls(name);
        let backend = Backend::new(config, Arc::clone(state), calls, self.side.clone());
        // Not a child of the process's shutdown: calls in flight need the connection until they have ended.
        let stop = Shutdown::default();
        let node = Arc::clone(&self.node);
        let running = Arc::clone(&backend)
            .run(stop.clone(), async move |backend: &Arc<Backend>| node.on_connected(backend).await);
        tokio::spawn(running);
        let mut running = RunningBackend { backend, stop, socket: None, idle_since: None, hidden: false };
        match self.running.remove(&id) {
            Some(old) => {
                running.socket = old.socket;
                self.retire(old.backend, old.stop);
            }
            None => self.node.learn_last_known(&running.backend),
        }
        self.running.insert(id, running);
    }

    /// Lets a backend whose place was taken finish its calls.
    fn retire(&mut self, backend: Arc<Backend>, stop: Shutdown) {
        self.node.metrics.forget_backend(&backend.name);
        self.replaced.push((backend, stop));
    }

    /// Decides for each moved backend that has been listed whether it is the one that it was.
    pub(super) fn resolve_moved(&mut self) {
        let listed = self.running.values().map(|running| &running.backend);
        let listed =
            listed.filter(|backend| backend.state.has_lists() && backend.state.maybe_moved_from().is_some());
        let listed: Vec<_> = listed.map(|backend| (backend.id, Arc::clone(&backend.state))).collect();
        for (id, state) in listed {
            let old = state.maybe_moved_from().and_then(|old| self.node.state_store.get(old));
            let known = old.as_ref().map(|old| old.all_ids()).unwrap_or_default();
            // One that was taken back meanwhile is a backend of its own: two names for one runtime.
            let old = old.filter(|old| old.instance().life == Life::Removed);
            match old.filter(|_| !known.is_disjoint(&state.all_ids())) {
                Some(old) => self.merge_into_old(id, &state, &old),
                None => self.admit_as_new(&state),
            }
        }
        self.publish();
        self.node.router.replace_handlers(Handlers::new(&self.node.config(), &self.names));
    }

    /// The new endpoint has what the old one had: it is the same runtime, and the instance that is known goes
    /// on there.
    fn merge_into_old(&mut self, id: InstanceId, state: &InstanceState, old: &Arc<InstanceState>) {
        let Instance { name, endpoint, config, .. } = state.instance();
        tracing::info!(backend = name, endpoint, "moved: it lists what it listed before");
        let config = config.unwrap_or_else(unreachable_config);
        old.set_instance(&Instance {
            name: name.clone(),
            endpoint,
            config: Some(config.clone()),
            life: old.instance().life.after(LifeChange::MoveResolved),
            maybe_moved_from: None,
            id: old.id(),
        });
        let mut socket = None;
        if let Some(running) = self.running.remove(&id) {
            socket = running.socket;
            self.retire(running.backend, running.stop);
        }
        self.node.state_store.end(id);
        self.ensure_running(old, &name, config);
        self.names.insert(name, old.id());
        if let Some(socket) = socket {
            // The socket shows an instance that has ended; it is bound again for the one that continues.
            tokio::spawn(socket.close());
        }
    }

    /// The new endpoint has nothing that the old one had: it is another runtime, which joins; the old one is
    /// removed.
    fn admit_as_new(&self, state: &InstanceState) {
        let instance = state.instance();
        tracing::warn!(
            backend = instance.name,
            "another runtime: what was listed before stays with the removed one"
        );
        let life = instance.life.after(LifeChange::MoveResolved);
        state.set_instance(&Instance { life, maybe_moved_from: None, ..instance });
        if let Ok(backend) = self.node.backend(state.id()) {
            self.node.learn_last_known(&backend);
        }
    }

    /// Forgets what is no longer listed, and ends removed backends that own nothing. Tells whether one of
    /// them is idle and not ended yet: that one is to be looked at again after [`IDLE`].
    pub(super) fn housekeep(&mut self) -> bool {
        self.node.prune_owners();
        self.end_moved_and_renamed();
        let node = Arc::clone(&self.node);
        // What is created through one whose place was taken is on the same instance.
        let replaced = self.replaced.iter().filter(|(backend, _)| backend.in_flight() > 0);
        let busy: BTreeSet<_> = replaced.map(|(backend, _)| backend.id).collect();
        self.running.retain(|id, running| {
            let state = &running.backend.state;
            let idle = state.instance().life == Life::Removed
                // Otherwise the operator has to declare it lost: what it has is not known.
                && (state.was_listed_live() || state.is_declared_empty())
                && running.backend.unbounded_in_flight() == 0
                && !busy.contains(id)
                && node.router.owners.count(*id) == (0, 0);
            let ended = idle && running.hidden && running.backend.in_flight() == 0;
            // A creation that chose it before the reload may not have been sent yet; it would be in no list.
            let since = idle.then(|| running.idle_since.unwrap_or_else(Instant::now));
            running.hidden = since.is_some_and(|since| since.elapsed() >= IDLE);
            running.idle_since = since;
            if ended {
                tracing::info!(backend = %running.backend.name, "backend owns nothing any more and is gone");
                running.stop.begin();
                node.state_store.end(*id);
                node.router.owners.forget_all_of(*id);
                node.metrics.forget_backend(&running.backend.name);
            }
            !ended
        });
        self.replaced.retain(|(backend, stop)| {
            let busy = backend.in_flight() > 0;
            if !busy {
                stop.begin();
            }
            busy
        });
        self.publish();
        self.running.values().any(|running| running.idle_since.is_some())
    }

    /// Gives up what is left on a removed backend that is down, once another one lists what it listed: one
    /// that was moved and renamed in one edit. What the other does not list has ended.
    fn end_moved_and_renamed(&self) {
        let removed = self.running.values().map(|running| &running.backend);
        for backend in removed.filter(|backend| backend.state.instance().life == Life::Removed) {
            if let Some(successor) = self.node.found_elsewhere(backend) {
                tracing::info!(backend = %backend.name, successor = %successor.name, "moved and renamed: the successor lists what it listed before");
                self.node.state_store.declare_empty(backend.id);
                self.node.router.owners.forget_all_of(backend.id);
            }
        }
    }

    /// Waits until the calls through the backends' own sockets have ended, at most `deadline` from the
    /// shutdown's start.
    pub(super) async fn finish_calls(&mut self, deadline: Duration) -> ShutdownResult {
        let sockets: Vec<_> = self.running.values_mut().filter_map(|entry| entry.socket.take()).collect();
        let ended = async {
            for socket in sockets {
                if let Some(connections) = socket.close().await {
                    connections.wait().await;
                }
            }
        };
        shutdown::run_with_deadline("backend sockets", &self.shutdown, || deadline, ended).await
    }

    /// Closes the backends' own sockets and removes their files.
    pub(super) async fn remove_sockets(&mut self) {
        for entry in self.running.values_mut() {
            if let Some(socket) = entry.socket.take() {
                socket.close().await;
            }
        }
    }

    fn publish(&self) {
        let shown = self.running.values().filter(|running| !running.hidden);
        self.node.replace_backends(shown.map(|running| Arc::clone(&running.backend)).collect());
    }

    /// Binds the backends' own sockets; one that cannot be bound keeps no other from being bound.
    async fn bind_sockets(&mut self, config: &Config) -> anyhow::Result<()> {
        let mut failed = Ok(());
        for running in self.running.values_mut() {
            let named = self.names.iter().find(|(_, id)| **id == running.backend.id);
            let wanted = named.and_then(|(name, _)| config.backends.get(name)?.socket.clone());
            if running.socket.as_ref().map(|socket| &socket.path) == wanted.as_ref() {
                continue;
            }
            if let Some(socket) = running.socket.take() {
                socket.close().await;
            }
            if let Some(path) = wanted {
                match self.sockets.listen(&path, config.listen_mode, config.listen_owner).await {
                    Ok(listener) => {
                        let stop = self.shutdown.child();
                        let proxy = Proxy::new(Arc::clone(&self.node), Some(running.backend.id));
                        let accepting = tokio::spawn(listener.accept(proxy, stop.clone()));
                        running.socket = Some(Socket { path, stop, accepting });
                    }
                    Err(error) => failed = failed.and(Err(error)),
                }
            }
        }
        failed
    }
}

impl Socket {
    /// Stops accepting and waits until the file is removed. Returns the connections that are still open;
    /// their calls go on.
    async fn close(self) -> Option<TaskTracker> {
        self.stop.begin();
        let closed = self.accepting.await;
        if let Err(error) = &closed {
            tracing::error!(path = %self.path.display(), %error, "the task of a backend's socket failed");
        }
        closed.ok()
    }
}

/// Writes down that an instance is configured under this name, at this endpoint.
fn adopt(state: &InstanceState, step: &PlanStep, config: &BackendConfig) {
    let instance = state.instance();
    let taken_back = instance.life == Life::Removed;
    if taken_back && state.is_draining() {
        tracing::info!(backend = step.name, "taken back: it is no longer drained");
        state.set_draining(false);
    }
    state.set_instance(&Instance {
        name: step.name.clone(),
        endpoint: step.endpoint.clone(),
        config: Some(config.clone()),
        life: instance.life.after(LifeChange::NamedInFile),
        ..instance
    });
}

/// The configuration of an instance of which no version of crimux saved how to reach it.
fn unreachable_config() -> BackendConfig {
    BackendConfig {
        endpoint: Endpoint::Unix(PathBuf::new()),
        socket: None,
        required: false,
        optional: false,
        local: true,
        timeouts: Timeouts::default(),
        tls: None,
        streaming: Streaming { relay: RelayMode::Auto, address: None, tls: false },
        max_in_flight: 1,
        max_list: 0,
        image_handler: ImageHandler::Auto,
    }
}
