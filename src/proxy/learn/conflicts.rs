//! Decides which of two backends owns an ID that both show; each ID is served once, by its owner.

use super::{Learner, sandbox_record};
use crate::backend::{Backend, Link};
use crate::state::InstanceId;

impl Learner<'_> {
    /// Learns the owners of all that is remembered of this backend. What another backend owns is decided as
    /// if a list had shown it: no ID may be listed twice from then on.
    pub(in crate::proxy) fn learn_last_known(self) {
        let (state, owners) = (&self.backend.state, &self.node.router.owners);
        state.for_each_sandbox(|facts| {
            let other = owners.learn_sandbox(facts.id, self.backend.id, sandbox_record(&facts));
            self.claim_saved(facts.id, other);
        });
        state.for_each_container(|facts| match owners.owner_of(facts.sandbox_id) {
            Some(owner) if owner != self.backend.id => self.record_foreign(facts.id),
            _ => self.claim_saved(facts.id, owners.learn_container(facts.id, self.backend.id)),
        });
    }

    /// At a start no backend runs yet that could tell: the owner that was learnt first stays.
    fn claim_saved(self, id: &str, other: Option<InstanceId>) {
        if other.is_some_and(|other| self.node.backend(other).is_err()) {
            self.record_foreign(id);
        } else {
            self.resolve_owner(id, other);
        }
    }

    /// Decides again who owns what this backend lists and another one owns, which may have gone down since.
    pub(in crate::proxy) fn claim_again(self, foreign: &[Box<str>]) {
        for id in foreign {
            self.resolve_owner(id, self.node.router.owners.owner_of(id));
        }
    }

    /// Decides who owns an ID that this backend, the claimant, shows and `other` owns.
    pub(super) fn resolve_owner(self, id: &str, other: Option<InstanceId>) {
        let Some(other) = other else { return self.backend.state.mark_owned(id) };
        let holder = self.node.backend(other).ok();
        if holder.as_ref().is_some_and(|holder| !is_new_owner(self.backend, holder, id)) {
            return self.record_foreign(id);
        }
        self.transfer_to_claimant(id, other);
        for container in self.backend.state.containers_of(id) {
            if self.node.router.owners.owner_of(&container) == Some(other) {
                self.transfer_to_claimant(&container, other);
            }
        }
    }

    fn transfer_to_claimant(self, id: &str, holder: InstanceId) {
        self.node.router.owners.transfer(id, self.backend.id);
        self.backend.state.mark_owned(id);
        let holder = self.node.state_store.get(holder);
        if holder.is_some_and(|holder| holder.has_id(id) && holder.mark_foreign(id)) {
            self.node.metrics.count_id_conflict();
        }
    }

    /// Records that another backend owns this ID: nothing that this backend shows under it is served.
    pub(super) fn record_foreign(self, id: &str) {
        if self.backend.state.mark_foreign(id) {
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
    let (by_holder, by_claimant) = (holder.state.has_created(id), claimant.state.has_created(id));
    let (local, holder_is_local) = (claimant.config().local, holder.config().local);
    let answers = !matches!(holder.link(), Link::Down { .. });
    if by_claimant != by_holder && (by_claimant || answers || !local) {
        return by_claimant;
    }
    if holder.state.was_listed_live() && !holder.state.has_id(id) {
        return true;
    }
    if local == holder_is_local { !answers } else { local }
}
