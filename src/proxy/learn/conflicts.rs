//! Decides which of two backends owns an ID that both show; each ID is served once, by its owner.
//!
//! The life of an ID that is *foreign* at a backend, which lists it while another one owns it:
//!
//! | step | in |
//! |---|---|
//! | a backend shows the ID, and the claim is decided: the holder stays, or the ID goes over | here |
//! | the ID becomes foreign at the backend that does not own it | `InstanceState::mark_foreign` |
//! | lists and look-ups of that backend leave it out | `InstanceState::without_foreign` |
//! | a list that is being made takes foreign items too, as owners may change meanwhile | `fan_out/query.rs` |
//! | what no owner serves in that list is served by one other backend | `fan_out/contested.rs` |
//! | it ends: not listed any more, without another owner, or claimed again | `recover.rs` |

use super::{Learner, SeenIn, sandbox_record};
use crate::backend::{Backend, Link};
use crate::router::Claim;
use crate::state::InstanceId;

impl Learner<'_> {
    /// Learns the owners of all that is remembered of this backend. What another backend owns is decided as
    /// if a list had shown it: no ID may be listed twice from then on.
    pub(in crate::proxy) fn learn_last_known(self) {
        let (state, owners) = (&self.backend.state, &self.node.router.owners);
        state.for_each_sandbox(|facts| {
            let claim = owners.learn_sandbox(facts.id, self.backend.id, sandbox_record(&facts));
            self.settle_owner(facts.id, claim, SeenIn::LastKnown);
        });
        state.for_each_container(|facts| match owners.owner_of(facts.sandbox_id) {
            Some(owner) if owner != self.backend.id => self.record_foreign(facts.id),
            _ => {
                let claim = owners.learn_container(facts.id, self.backend.id);
                self.settle_owner(facts.id, claim, SeenIn::LastKnown);
            }
        });
    }

    /// Decides again who owns what this backend lists and another one owns, which may have gone down since.
    pub(in crate::proxy) fn settle_foreign(self) {
        for id in self.backend.state.foreign() {
            let owner = self.node.router.owners.owner_of(&id);
            self.settle_owner(&id, owner.map_or(Claim::Granted, Claim::HeldBy), SeenIn::Foreign);
        }
    }

    /// Decides who owns an ID that this backend, the claimant, shows; `claim` is the owners' answer.
    ///
    /// | shown in | the holder stays without a further look |
    /// |---|---|
    /// | [`SeenIn::List`] | while the claimant is outside lists: what it took would be in none |
    /// | [`SeenIn::Frame`] | always: other frames of the list may have been sent already |
    /// | [`SeenIn::LastKnown`] | while the holder does not run: at a start no backend can tell yet |
    /// | [`SeenIn::Reply`], [`SeenIn::Foreign`] | never |
    ///
    /// Otherwise [`is_new_owner`] decides; of a sandbox that goes over, its containers go with it.
    pub(super) fn settle_owner(self, id: &str, claim: Claim, seen_in: SeenIn) {
        let Claim::HeldBy(owner) = claim else { return self.backend.state.clear_foreign(id) };
        let holder = self.node.backend(owner).ok();
        let stays = match seen_in {
            SeenIn::List => self.node.is_outside_lists(self.backend),
            SeenIn::Frame => true,
            SeenIn::LastKnown => holder.is_none(),
            SeenIn::Reply | SeenIn::Foreign => false,
        };
        if stays || holder.is_some_and(|holder| !is_new_owner(self.backend, &holder, id)) {
            return self.record_foreign(id);
        }
        self.transfer_to_claimant(id, owner);
        for container in self.backend.state.containers_of(id) {
            if self.node.router.owners.owner_of(&container) == Some(owner) {
                self.transfer_to_claimant(&container, owner);
            }
        }
    }

    fn transfer_to_claimant(self, id: &str, holder: InstanceId) {
        self.node.router.owners.transfer(id, self.backend.id);
        self.backend.state.clear_foreign(id);
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

/// Tells whether `claimant`, which shows this ID, owns it from now on instead of `holder`. The first row that
/// fits decides:
///
/// | who created it through crimux | where they are | `holder` | it goes to |
/// |---|---|---|---|
/// | the claimant alone | | | the claimant |
/// | the holder alone | | is not down, or the claimant is remote | the holder |
/// | | | does not list it any more | the claimant |
/// | | the claimant is remote, the holder local | | the holder |
/// | | the claimant is local, the holder remote | | the claimant |
/// | | | is not down | the holder |
/// | | | is down | the claimant: a live list beats what was saved |
fn is_new_owner(claimant: &Backend, holder: &Backend, id: &str) -> bool {
    let created_by = |backend: &Backend| backend.state.has_created(id);
    let is_local = |backend: &Backend| backend.config().local;
    let is_down = matches!(holder.link(), Link::Down { .. });
    match (created_by(claimant), created_by(holder)) {
        (true, false) => true,
        (false, true) if !is_down || !is_local(claimant) => false,
        _ if holder.state.was_listed_live() && !holder.state.has_id(id) => true,
        _ => match (is_local(claimant), is_local(holder)) {
            (false, true) => false,
            (true, false) => true,
            _ => is_down,
        },
    }
}
