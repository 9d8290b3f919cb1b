//! Decides, by what a new endpoint lists, whether a backend has moved there.

use std::sync::Arc;

use super::{Backends, unreachable_config};
use crate::router::Handlers;
use crate::state::{Instance, InstanceId, InstanceState, Life, LifeChange};

impl Backends {
    /// Decides for each backend that may have moved, and has been listed, whether it is its old instance.
    ///
    /// Runs once the first full pair of lists of such a backend was recorded: `Learner::accept_list` notifies
    /// [`Node::moved_backend_listed`], for which `App::run` waits.
    ///
    /// [`Node::moved_backend_listed`]: crate::proxy::Node::moved_backend_listed
    pub(in crate::app) fn resolve_moved(&mut self) {
        let listed = self.running.values().map(|running| &running.backend);
        let listed =
            listed.filter(|backend| backend.state.has_lists() && backend.state.maybe_moved_from().is_some());
        let listed: Vec<_> = listed.map(|backend| (backend.id, Arc::clone(&backend.state))).collect();
        for (id, state) in listed {
            let old = state.maybe_moved_from().and_then(|old| self.node.state_store.get(old));
            let known = old.as_ref().map(|old| old.all_ids()).unwrap_or_default();
            // An old instance that was taken back meanwhile is a backend of its own: two names for one
            // runtime.
            let old = old.filter(|old| old.instance().life == Life::Removed);
            match old.filter(|_| !known.is_disjoint(&state.all_ids())) {
                Some(old) => self.merge_into_old(id, &state, &old),
                None => self.admit_as_new(&state),
            }
        }
        self.publish();
        self.node.router.replace_handlers(Handlers::new(&self.node.config(), &self.names));
    }

    /// Lets the old instance continue at the new endpoint, which lists what the old endpoint listed: it is
    /// the same runtime.
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
            // The socket shows the instance that has ended; it is bound again for the old one.
            tokio::spawn(socket.close());
        }
    }

    /// Lets the new endpoint be an instance of its own, because it lists nothing that the old endpoint
    /// listed: it is another runtime. The old instance stays removed.
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

    /// Declares a removed backend empty that is down, once another backend lists what it listed: the removed
    /// one was moved and renamed in one edit. Objects that the other backend does not list have ended.
    pub(super) fn end_moved_and_renamed(&self) {
        let removed = self.running.values().map(|running| &running.backend);
        for backend in removed.filter(|backend| backend.state.instance().life == Life::Removed) {
            if let Some(successor) = self.node.found_elsewhere(backend) {
                tracing::info!(backend = %backend.name, successor = %successor.name, "moved and renamed: the successor lists what it listed before");
                self.node.state_store.declare_empty(backend.id);
                self.node.router.owners.forget_all_of(backend.id);
            }
        }
    }
}
