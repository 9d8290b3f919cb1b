//! The backends that run, and how a changed configuration changes them.
//!
//! `plan.rs` says which instance each name in the file means; [`Backends::carry_out`] does that. A backend
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
//!
//! `housekeeping.rs` has the table of the end of a backend.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::time::Instant;

use crate::backend::Backend;
use crate::config::{BackendConfig, Config, Endpoint, ImageHandler, RelayMode, Streaming, Timeouts};
use crate::plan::{Meaning, Plan, PlanStep, Removal};
use crate::proxy::Node;
use crate::router::{Handlers, Names};
use crate::server::Sockets;
use crate::shutdown::Shutdown;
use crate::side::Side;
use crate::state::{Instance, InstanceId, InstanceState, Life, LifeChange};

pub(super) use housekeeping::IDLE;
use sockets::Socket;

mod housekeeping;
mod moved;
mod sockets;

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
    /// The replaced ones, until their calls have ended.
    replaced: Vec<(Arc<Backend>, Shutdown)>,
}

/// When a plan is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Occasion {
    /// At the start: the node waits for the backends that the file names.
    Start,
    /// At a reload: a backend that is added joins.
    Reload,
}

#[derive(Debug)]
struct RunningBackend {
    backend: Arc<Backend>,
    stop: Shutdown,
    socket: Option<Socket>,
    /// When a housekeeping first found it idle; `None` while it is not.
    idle_since: Option<Instant>,
    /// Whether new calls no longer see it, so that its last calls end.
    hidden: bool,
}

impl Backends {
    pub(super) fn new(node: Arc<Node>, shutdown: Shutdown, side: Side, sockets: Sockets) -> Self {
        let (running, names, replaced) = (BTreeMap::new(), Names::new(), Vec::new());
        Self { node, shutdown, side, sockets, running, names, replaced }
    }

    /// Carries out a plan. The caller makes it from `config` and the present instances, and must not await
    /// between the two.
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
    pub(super) async fn carry_out(
        &mut self,
        plan: &Plan,
        config: &Config,
        occasion: Occasion,
    ) -> anyhow::Result<()> {
        for removal in &plan.removed {
            self.keep_removed(removal, config.limits.list_bytes, occasion);
        }
        self.names.clear();
        for step in &plan.steps {
            let id = self.carry_out_step(step, &config.backends[&step.name], occasion);
            self.names.insert(step.name.clone(), id);
        }
        if occasion == Occasion::Start {
            // All must be visible before the first list arrives: it is compared with the others.
            self.publish();
        }
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
    fn keep_removed(&mut self, removal: &Removal, max_list: usize, occasion: Occasion) {
        let Some(state) = self.node.state_store.get(removal.id) else { return };
        let instance = state.instance();
        if instance.life == Life::Joining && !state.has_lists() {
            // A backend that joins was given no sandbox, so there is nothing to keep it for.
            self.node.state_store.declare_empty(removal.id);
        }
        if !removal.was_removed {
            let pods = removal.pods;
            tracing::warn!(backend = %removal.name, label = removal.label, pods, "backend removed; kept until it owns nothing");
        } else if occasion == Occasion::Start && removal.pods > 0 {
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
    fn carry_out_step(&mut self, step: &PlanStep, config: &BackendConfig, occasion: Occasion) -> InstanceId {
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
                let state = self.node.state_store.create(&name, occasion.first_life());
                let instance = Instance { endpoint, config: Some(config.clone()), ..state.instance() };
                if occasion == Occasion::Reload || self.node.state_store.was_whole() {
                    state.set_instance(&instance);
                } else {
                    // The first start: the journal alone says where the instance is until lists are known.
                    state.journal_instance(&instance);
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
                    life: occasion.first_life(),
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

    /// Makes an instance run under this label with this configuration: reconfigures the backend that does so
    /// already, otherwise starts one, which replaces the one with another label.
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

    /// Lets a replaced backend finish its calls.
    fn retire(&mut self, backend: Arc<Backend>, stop: Shutdown) {
        self.node.metrics.forget_backend(&backend.name);
        self.replaced.push((backend, stop));
    }

    /// Shows new calls the backends that run, less the hidden ones.
    fn publish(&self) {
        let shown = self.running.values().filter(|running| !running.hidden);
        self.node.replace_backends(shown.map(|running| Arc::clone(&running.backend)).collect());
    }
}

impl Occasion {
    /// Returns the first life of an instance.
    fn first_life(self) -> Life {
        match self {
            Self::Start => Life::Member,
            Self::Reload => Life::Joining,
        }
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
