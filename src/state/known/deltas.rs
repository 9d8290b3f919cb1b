//! What a record of the writer adds to what is on the disk of one instance.
//!
//! Live and on replay the same events make the same state: the changes that calls recorded, and the deltas of
//! the writer, in the order of the journal. A delta is what differs from the fingerprints of the disk; it is
//! made and queued under the lock of the state, so that nothing comes between.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use prost::Message as _;

use super::{KnownState, detach};
use crate::state::delta::{Delta, ImagesDelta, PairDelta};
use crate::state::file::{SavedReply, SavedStatus};
use crate::state::fingerprint::fingerprint;
use crate::state::on_disk::{ListOnDisk, Minor, OnDisk};
use crate::state::pair::Watermarks;
use crate::state::{Kind, ListKind};
use crate::wire::WireError;

impl KnownState {
    /// Notes that a snapshot of the sequence number `seq` has all of this.
    pub(in crate::state) fn mark_saved(&mut self, seq: u64) {
        let mut disk = OnDisk { seq, declared_empty: self.declared_empty, ..OnDisk::default() };
        self.compare_lists(&mut disk, &mut Delta::default());
        self.compare_facts(&mut disk, Minor::Compared, &mut Delta::default());
        self.statuses.mark_saved();
        self.disk = Some(disk);
    }

    /// Returns what is not on the disk yet, as the sequence number `seq`, and notes that it is. `None` if
    /// that is nothing, or if the instance is in no snapshot: see [`KnownState::is_in_snapshot`].
    pub(in crate::state) fn take_delta(&mut self, seq: u64, minor: Minor) -> Option<Delta> {
        let mut disk = self.disk.take()?;
        let mut delta =
            Delta { follows: disk.seq, seq, listed_at: self.listed_at_secs(), ..Delta::default() };
        self.compare_lists(&mut disk, &mut delta);
        self.compare_facts(&mut disk, minor, &mut delta);
        for (kind, id, reply) in self.statuses.take_unsaved() {
            let container = kind == Kind::Container;
            let list = if reply.is_some() { &mut delta.statuses } else { &mut delta.dropped_statuses };
            list.push(SavedStatus { container, id, reply: reply.unwrap_or_default() });
        }
        let news = !delta.is_empty();
        if news {
            disk.seq = seq;
        }
        self.disk = Some(disk);
        news.then_some(delta)
    }

    /// Tells whether a snapshot has the instance, so that deltas can follow it.
    pub(in crate::state) fn is_in_snapshot(&self) -> bool {
        self.disk.is_some()
    }

    fn compare_lists(&mut self, disk: &mut OnDisk, delta: &mut Delta) {
        if let Some(pair) = self.lists.pair() {
            let sandboxes = ListOnDisk::advance(&mut disk.sandboxes, ListKind::Sandboxes, &pair.sandboxes);
            let containers =
                ListOnDisk::advance(&mut disk.containers, ListKind::Containers, &pair.containers);
            let was_declared_empty =
                std::mem::replace(&mut disk.declared_empty, self.declared_empty) && !self.declared_empty;
            let outdated = self.lists.forget_shown_replayed() || was_declared_empty;
            if outdated || sandboxes.is_some() || containers.is_some() {
                let Watermarks { sandboxes: sandboxes_at, containers: containers_at } =
                    self.lists.watermarks();
                delta.pair = Some(PairDelta { sandboxes_at, containers_at, sandboxes, containers });
            }
        }
        if let Some((at, images)) = self.lists.images() {
            let list = ListOnDisk::advance(&mut disk.images, ListKind::Images, images);
            let outdated = self.lists.forget_shown_removals();
            if outdated || list.is_some() {
                delta.images = Some(ImagesDelta { at, list });
            }
        }
        let seen: Vec<_> = self.lists.seen_changes().cloned().collect();
        let print =
            seen.iter().fold(0, |sum: u64, change| sum.wrapping_add(fingerprint(&change.encode_to_vec())));
        if print != disk.seen {
            disk.seen = print;
            delta.seen = seen;
        }
    }

    fn compare_facts(&mut self, disk: &mut OnDisk, minor: Minor, delta: &mut Delta) {
        for (key, (print, value)) in &self.facts {
            // Facts have a slash in their keys; replies, which may wait, have none.
            let due = minor == Minor::Compared || key.contains('/');
            if due && disk.facts.get(key) != Some(print) {
                disk.facts.insert(key.clone(), *print);
                delta.replies.push(SavedReply { method: key.clone(), reply: value.clone() });
            }
        }
        if minor == Minor::Left {
            return;
        }
        let [container_stats, sandbox_stats] = self.lists.stats();
        let stats = [
            (container_stats, &mut disk.container_stats, &mut delta.container_stats),
            (sandbox_stats, &mut disk.sandbox_stats, &mut delta.sandbox_stats),
        ];
        for (list, disk, delta) in stats {
            let Some(list) = list else { continue };
            let print = fingerprint(list);
            if disk.replace(print) != Some(print) {
                *delta = Some(list.clone());
            }
        }
    }

    /// Applies a delta read from the journal, unless the saved state has it already. Returns false if what is
    /// here is not all there was: it does not follow the last one, or cannot be read.
    pub(in crate::state) fn replay_delta(&mut self, delta: Delta, saved: u64) -> bool {
        delta.seq <= saved || self.apply_delta(delta).unwrap_or(false)
    }

    /// Applies a delta of a process that hands over, which began with the same saved state and counts in
    /// numbers of its own: every change that this process has recorded counts as later. Returns false if the
    /// backend was listed here, or the delta cannot be applied.
    pub(in crate::state) fn apply_handed_delta(&mut self, mut delta: Delta) -> bool {
        if self.listed_live {
            return false;
        }
        let (seq, last_record) = (self.seq, self.last_record);
        if let Some(pair) = &mut delta.pair {
            pair.sandboxes_at = pair.sandboxes_at.min(last_record);
            pair.containers_at = pair.containers_at.min(last_record);
        }
        if let Some(images) = &mut delta.images {
            images.at = images.at.min(last_record);
        }
        for change in &mut delta.seen {
            change.seq = last_record + 1;
        }
        let applied = self.apply_delta(delta).unwrap_or(false);
        (self.seq, self.last_record) = (seq, last_record);
        applied
    }

    /// Applies a delta read from the journal. Returns false if it does not follow what is here: a record
    /// between them is lost.
    ///
    /// # Errors
    /// Whatever makes a list in it unreadable; the state is then a mixture.
    fn apply_delta(&mut self, delta: Delta) -> Result<bool, WireError> {
        if delta.follows != self.last_record {
            return Ok(false);
        }
        self.last_record = delta.seq;
        self.seq = self.seq.max(delta.seq);
        if delta.listed_at > 0 {
            self.listed_at = Some(UNIX_EPOCH + Duration::from_secs(delta.listed_at));
        }
        if let Some(PairDelta { sandboxes_at, containers_at, sandboxes, containers }) = delta.pair {
            self.declared_empty = false;
            let watermarks = Watermarks { sandboxes: sandboxes_at, containers: containers_at };
            self.lists.replay_pair(
                sandboxes.unwrap_or_default(),
                containers.unwrap_or_default(),
                watermarks,
            )?;
        }
        if let Some(ImagesDelta { at, list }) = delta.images {
            self.lists.replay_images(list.unwrap_or_default(), at)?;
        }
        self.lists
            .replay_stats([delta.container_stats, delta.sandbox_stats].map(|stats| stats.as_ref().map(copy)));
        for mut change in delta.seen {
            self.declared_empty = false;
            change.op = change.op.map(detach);
            self.lists.record(change);
        }
        for SavedStatus { container, id, reply } in delta.statuses {
            let kind = if container { Kind::Container } else { Kind::Sandbox };
            self.statuses.load(kind, id, &reply);
        }
        for SavedStatus { container, id, .. } in delta.dropped_statuses {
            let kind = if container { Kind::Container } else { Kind::Sandbox };
            self.statuses.remove(kind, &id);
        }
        for SavedReply { method, reply } in delta.replies {
            self.remember_fact(&method, &reply);
        }
        Ok(true)
    }
}

fn copy(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}
