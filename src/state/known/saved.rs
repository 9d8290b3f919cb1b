//! The last-known state of one backend as a snapshot holds it.

use std::collections::HashSet;
use std::time::{Duration, UNIX_EPOCH};

use super::{KnownState, detach};
use crate::state::Kind;
use crate::state::file::{SavedBackend, SavedReply, SavedStatus};
use crate::state::instance::Instance;
use crate::state::lists::Lists;

impl KnownState {
    /// Returns what is saved of this, as of the sequence number `seq`.
    pub(in crate::state) fn save(&self, seq: u64) -> SavedBackend {
        let [sandboxes, containers, images, container_stats, sandbox_stats] = self.lists.to_save();
        let statuses = self.statuses.iter().map(|(kind, id, reply)| SavedStatus {
            container: kind == Kind::Container,
            id: id.to_owned(),
            reply: reply.clone(),
        });
        let replies = self
            .facts
            .iter()
            .map(|(method, (_, reply))| SavedReply { method: method.clone(), reply: reply.clone() });
        SavedBackend {
            name: self.instance.name.clone(),
            instance: Some(self.instance.save()),
            created: in_order(&self.created),
            foreign: in_order(&self.foreign),
            boot_id: self.boot_id.clone(),
            seq,
            drained: self.draining,
            listed_at: self.listed_at_secs(),
            sandboxes,
            containers,
            images,
            container_stats,
            sandbox_stats,
            changes: self.lists.saved_changes().cloned().collect(),
            statuses: statuses.collect(),
            replies: replies.collect(),
            forgotten: self.declared_empty,
        }
    }

    /// Restores what was saved, as the instance `id` if no identifier was.
    pub(in crate::state) fn load(saved: SavedBackend, id: u64) -> Self {
        let lists =
            [saved.sandboxes, saved.containers, saved.images, saved.container_stats, saved.sandbox_stats];
        let instance = saved.instance.map_or_else(|| Instance::with_name(id, &saved.name), Instance::load);
        let owned = |ids: Vec<String>| ids.into_iter().map(String::into_boxed_str).collect();
        let mut state = Self {
            lists: Lists::load(lists),
            draining: saved.drained,
            declared_empty: saved.forgotten,
            created: owned(saved.created),
            foreign: owned(saved.foreign),
            last_record: saved.seq,
            listed_at: (saved.listed_at > 0).then(|| UNIX_EPOCH + Duration::from_secs(saved.listed_at)),
            ..Self::new(instance, &saved.boot_id, saved.seq)
        };
        for mut change in saved.changes {
            // The buffer that was read holds the whole file.
            change.op = change.op.map(detach);
            state.lists.record(change);
        }
        for SavedStatus { container, id, reply } in saved.statuses {
            let kind = if container { Kind::Container } else { Kind::Sandbox };
            state.statuses.load(kind, id, &reply);
        }
        for SavedReply { method, reply } in saved.replies {
            state.remember_fact(&method, &reply);
        }
        state
    }
}

fn in_order(ids: &HashSet<Box<str>>) -> Vec<String> {
    let mut ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    ids.sort_unstable();
    ids
}
