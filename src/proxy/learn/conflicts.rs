//! Decides which of two backends owns an ID that both show; each ID is served once, by its owner.

use super::Learner;
use crate::backend::{Backend, Link};
use crate::snapshot::InstanceId;

impl Learner<'_> {
    /// Decides who owns an ID that this backend, the claimant, shows and `other` owns.
    pub(super) fn resolve_owner(self, id: &str, other: Option<InstanceId>) {
        let Some(other) = other else { return self.backend.last_known.mark_owned(id) };
        let holder = self.node.backend(other).ok();
        if holder.as_ref().is_some_and(|holder| !is_new_owner(self.backend, holder, id)) {
            return self.record_foreign(id);
        }
        self.take_over(id, holder.as_deref());
        let mut containers = Vec::new();
        self.backend.last_known.for_each_container(|facts| {
            if facts.sandbox_id == id {
                containers.push(facts.id.to_owned());
            }
        });
        for container in containers {
            if self.node.router.owners.owner_of(&container) == Some(other) {
                self.take_over(&container, holder.as_deref());
            }
        }
    }

    fn take_over(self, id: &str, holder: Option<&Backend>) {
        self.node.router.owners.transfer(id, self.backend.id);
        self.backend.last_known.mark_owned(id);
        if holder.is_some_and(|holder| holder.last_known.has_id(id) && holder.last_known.mark_foreign(id)) {
            self.node.metrics.count_id_conflict();
        }
    }

    /// Records that another backend owns this ID: nothing that this backend shows under it is served.
    pub(super) fn record_foreign(self, id: &str) {
        if self.backend.last_known.mark_foreign(id) {
            self.node.metrics.count_id_conflict();
        }
    }
}

/// Tells whether `claimant`, which shows this ID, owns it from now on instead of `holder`.
///
/// | who created it through crimux | where they are | `holder` | it goes to |
/// |---|---|---|---|
/// | the claimant alone | | | the claimant |
/// | the holder alone | | answers, or the claimant is remote | the holder |
/// | | | does not list it any more | the claimant |
/// | | the claimant is remote, the holder local | | the holder |
/// | | the claimant is local, the holder remote | | the claimant |
/// | | | answers | the holder |
/// | | | cannot be asked | the claimant: a live list beats what was saved |
fn is_new_owner(claimant: &Backend, holder: &Backend, id: &str) -> bool {
    let (by_holder, by_claimant) = (holder.last_known.has_created(id), claimant.last_known.has_created(id));
    let (local, holder_is_local) = (claimant.config().local, holder.config().local);
    let answers = !matches!(holder.link(), Link::Down { .. });
    if by_claimant != by_holder && (by_claimant || answers || !local) {
        return by_claimant;
    }
    if holder.last_known.is_listed() && !holder.last_known.has_id(id) {
        return true;
    }
    if local == holder_is_local { !answers } else { local }
}
