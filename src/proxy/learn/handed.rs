//! Learns what another process, which this one has taken over from, still creates, changes and removes.

use super::{Learner, SeenIn, sandbox_record};
use crate::proxy::Node;
use crate::state::{HandedChange, SandboxRef};

impl Node {
    /// Applies a record of the other process, and completes once it is in the journal.
    pub async fn learn_handed(&self, record: &[u8]) {
        let Some((instance, changes)) = self.state_store.apply_handed(record) else {
            tracing::warn!("a change of the process before is of no known backend; the next list shows it");
            return;
        };
        if let Ok(backend) = self.backend(instance) {
            let learner = Learner::new(self, &backend);
            for change in &changes {
                learner.learn_handed(change);
            }
        }
        self.state_store.wait_for_journal().await;
    }
}

impl Learner<'_> {
    fn learn_handed(self, change: &HandedChange) {
        let owners = &self.node.router.owners;
        match change {
            HandedChange::Sandbox(item) => {
                if let Ok(facts) = SandboxRef::parse(item) {
                    let claim = owners.learn_sandbox(facts.id, self.backend.id, sandbox_record(&facts));
                    self.settle_owner(facts.id, claim, SeenIn::Reply);
                }
            }
            HandedChange::Container(id) => {
                self.settle_owner(id, owners.learn_container(id, self.backend.id), SeenIn::Reply);
            }
            HandedChange::Listed => self.learn_last_known(),
            HandedChange::Stopped(id) => owners.record_ready(id, false),
            HandedChange::Removed(id) => {
                self.node.history.forget_requested_handler(id);
                owners.remove(id);
            }
        }
    }
}
