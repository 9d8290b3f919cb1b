//! Rebuilds the owners: after a start from saved state, after a backend was connected, and periodically.
//!
//! Owners are in memory only; they are learnt from the saved lists at start, and from live lists as soon as a
//! backend is connected, without waiting for a call of kubelet.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::backend::{Backend, MethodClass};
use crate::method::{Kind, List};
use crate::mutex::lock;
use crate::proxy::{Node, learn, refresh};

impl Node {
    /// Learns the owners that the last-known state of a backend names.
    pub fn learn_last_known(&self, backend: &Backend) {
        learn::Learner::new(self, backend).learn_last_known();
    }

    /// Lists everything at a backend; runs on every new connection.
    pub async fn on_connected(self: &Arc<Self>, backend: &Arc<Backend>) {
        // kubelet asks for metric descriptors once in its life, perhaps while this backend is down.
        for class in [
            MethodClass::Lists,
            MethodClass::Images,
            MethodClass::Filesystems,
            MethodClass::Metrics,
            MethodClass::Status,
            MethodClass::RuntimeConfig,
        ] {
            refresh::start_refresh(self, backend, class);
        }
        let limit = backend.deadline(List::Sandboxes.unary());
        if tokio::time::timeout(limit, backend.health.listed_or_late()).await.is_err() {
            backend.health.mark_late(MethodClass::Lists);
        }
        self.forget_unlisted(backend);
        let (sandboxes, containers) = backend.state.count();
        tracing::info!(backend = %backend.name, sandboxes, containers, "backend is up");
    }

    /// Lists this kind at every backend that is connected and not late. Operators' commands call it, so that
    /// they do not show the state of kubelet's last list.
    pub async fn relist(self: &Arc<Self>, list: List) {
        let backends = self.backends();
        let class = MethodClass::of_list(list);
        let asked = backends.iter().filter(|b| b.is_up() && !b.health.is_late(class)).map(|backend| {
            let limit = backend.deadline(list.unary());
            tokio::time::timeout(limit, refresh::list_all(self, backend, list))
        });
        // The last-known list of a backend that does not answer stays.
        futures_util::future::join_all(asked).await;
    }

    /// Brings the map of owners in line with the lists:
    ///
    /// | an ID | becomes |
    /// |---|---|
    /// | is owned by a backend that was listed and no longer lists it | forgotten; a ready sandbox is lost |
    /// | is foreign at a backend that does not list it any more | foreign no longer |
    /// | is foreign at a backend, and no other backend owns it | that backend's |
    /// | is foreign at a backend that is up and in lists | decided again, as its owner may have gone down |
    pub fn reconcile_owners(&self) {
        self.router.owners.expire_sent();
        for backend in self.backends().iter() {
            self.forget_unlisted(backend);
            let foreign = backend.state.foreign();
            if foreign.is_empty() {
                continue;
            }
            let listed = backend.state.all_ids();
            let mut given_back = false;
            // An ID in half a pair of lists keeps its owner until its other half has arrived.
            let unpaired = backend.state.unpaired_ids();
            for id in foreign.iter().filter(|id| !unpaired.contains(*id)) {
                let holder = self.router.owners.owner_of(id);
                if !listed.contains(id) || holder.is_none_or(|holder| holder == backend.id) {
                    backend.state.clear_foreign(id);
                    given_back |= listed.contains(id);
                }
            }
            if given_back {
                self.learn_last_known(backend);
            }
            if backend.is_up() && backend.state.was_listed_live() && !self.is_outside_lists(backend) {
                learn::Learner::new(self, backend).settle_foreign();
            }
        }
        self.report_conflicts();
    }

    /// Forgets the owners of what a backend owned and no longer lists. A sandbox among it that was ready was
    /// not removed by kubelet, which stops a sandbox before: the backend has lost it.
    fn forget_unlisted(&self, backend: &Backend) {
        let owners = &self.router.owners;
        // Owners are read first, then lists. A creation writes the object first, then its owner, so that one
        // that runs meanwhile is in no difference of the two.
        let owned = owners.ids_of(backend.id);
        if owned.is_empty() || !backend.state.was_listed_live() {
            return;
        }
        let listed = backend.state.all_ids();
        let gone: Vec<_> = owned.difference(&listed).collect();
        if gone.is_empty() {
            return;
        }
        let ready = owned.iter().filter(|id| owners.is_ready_sandbox(id)).count();
        // What another backend lists has only moved.
        let backends = self.backends();
        let is_elsewhere = |id: &str| backends.iter().any(|other| other.state.is_foreign(id));
        let lost = gone.iter().filter(|id| owners.is_ready_sandbox(id) && !is_elsewhere(id)).count();
        for id in gone {
            self.record_gone(id);
        }
        if lost > 0 {
            self.metrics.count_lost_sandboxes(&backend.name, lost);
            self.history.record_lost_sandboxes(&backend.name, lost, ready);
            tracing::warn!(
                backend = %backend.name, lost, owned = ready,
                "backend no longer lists ready sandboxes that were not removed through crimux: is its store another one?"
            );
        }
    }

    /// Forgets the owner of an object that its owner lists no more.
    fn record_gone(&self, id: &str) {
        let owners = &self.router.owners;
        let Some(kind) = owners.forget(id) else { return };
        // A backend that answers says by its own lists what it has.
        self.record_gone_at(kind, id, |backend| {
            !backend.is_up() || backend.health.is_late(MethodClass::Lists)
        });
    }

    /// Records that an object that was removed at its owner is also gone at the backends that list it as
    /// foreign.
    pub(super) fn record_gone_elsewhere(&self, kind: Kind, id: &str) {
        self.record_gone_at(kind, id, |_| true);
    }

    /// Removes the object from the last-known lists of these backends: a backend that is down would list it
    /// forever.
    fn record_gone_at(&self, kind: Kind, id: &str, is_at: impl Fn(&Backend) -> bool) {
        let backends = self.backends();
        for backend in backends.iter().filter(|backend| backend.state.is_foreign(id) && is_at(backend)) {
            match kind {
                Kind::Sandbox => backend.state.record_sandbox_removed(id),
                Kind::Container => backend.state.record_container_removed(id),
            }
        }
    }

    /// Returns the backend that lists what this one, which is down, listed: it is the same runtime at another
    /// endpoint.
    pub fn found_elsewhere(&self, backend: &Backend) -> Option<Arc<Backend>> {
        if backend.is_up() {
            return None;
        }
        let owners = backend.state.foreign().into_iter().filter_map(|id| self.router.owners.owner_of(&id));
        let mut owners = owners.filter_map(|owner| self.backend(owner).ok());
        owners.find(|owner| owner.id != backend.id && owner.is_up() && owner.state.was_listed_live())
    }

    /// Names, once a minute, the backends that show what another one owns.
    fn report_conflicts(&self) {
        let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
        for backend in self.backends().iter() {
            for id in backend.state.foreign() {
                if let Some(owner) = self.router.owners.owner_of(&id).and_then(|id| self.backend(id).ok()) {
                    *counts.entry((owner.name.to_string(), backend.name.to_string())).or_default() += 1;
                }
            }
        }
        if counts.is_empty() || lock(&self.conflicts_log).count(1).is_none() {
            return;
        }
        for ((owner, other), ids) in counts {
            tracing::error!(
                owner,
                other,
                ids,
                "two backends list the same IDs: each is served by its owner alone"
            );
        }
    }
}
