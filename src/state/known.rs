//! The last-known state of one backend, and how changes are applied to it, live and on replay.
//!
//! The state is plain data without locks, files or clocks, so that the same code answers calls and rebuilds
//! the state after a restart. This module must not decide when anything is written.

mod deltas;
mod saved;

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::changes::{Change, Op};
use super::facts::Fact;
use super::fingerprint::fingerprint;
use super::instance::Instance;
use super::items::{ContainerRef, container_items, enum_value, sandbox_items};
use super::learnt_at::LearntAt;
use super::life::Life;
use super::list_bytes::ids;
use super::lists::Lists;
use super::on_disk::OnDisk;
use super::statuses::Statuses;
use super::{Kind, ListKind, Revision};
use crate::cri::{ITEM_ID, LIST_ITEMS, field, field_path};
use crate::wire::{self, WireError};

/// The last-known state of one backend.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own, and saved as such")]
pub(super) struct KnownState {
    /// Who it is.
    pub(super) instance: Instance,
    /// The boot during which this was learnt.
    pub(super) boot_id: String,
    /// Changes up to this sequence number are in here.
    pub(super) seq: u64,
    pub(super) lists: Lists,
    pub(super) statuses: Statuses,
    pub(super) facts: BTreeMap<String, (u64, Bytes)>,
    pub(super) draining: bool,
    /// Whether it was declared empty, and has not been listed or changed since.
    pub(super) declared_empty: bool,
    /// Whether the instance has ended.
    pub(super) ended: bool,
    /// The IDs that were created through crimux.
    pub(super) created: HashSet<Box<str>>,
    /// The IDs that it lists and another instance owns: nothing of them is shown.
    pub(super) foreign: HashSet<Box<str>>,
    pub(super) learnt_at: LearntAt,
    /// When the last live pair was completed.
    pub(super) listed_at: Option<SystemTime>,
    /// Whether that was since the start.
    pub(super) listed_live: bool,
    /// What is on the disk; `None` while the files of `state_dir` do not hold all of it.
    pub(super) disk: Option<OnDisk>,
    /// On replay, the sequence number of the snapshot or delta that was applied last.
    pub(super) last_record: u64,
}

impl KnownState {
    /// Makes the state of a backend of which nothing is known.
    pub(super) fn new(instance: Instance, boot_id: &str, seq: u64) -> Self {
        Self {
            instance,
            boot_id: boot_id.to_owned(),
            seq,
            lists: Lists::default(),
            statuses: Statuses::default(),
            facts: BTreeMap::new(),
            draining: false,
            declared_empty: false,
            ended: false,
            created: HashSet::new(),
            foreign: HashSet::new(),
            learnt_at: LearntAt::default(),
            listed_at: None,
            listed_live: false,
            disk: None,
            last_record: 0,
        }
    }

    /// Applies a change.
    pub(super) fn apply(&mut self, change: Change) {
        self.seq = self.seq.max(change.seq);
        let Some(op) = &change.op else { return };
        match op {
            Op::Instance(saved) => self.instance = Instance::load((**saved).clone()),
            Op::Ended(ended) => self.ended = *ended,
            Op::Foreign(id) => {
                self.foreign.insert(id.as_str().into());
            }
            Op::ForeignCleared(id) => {
                self.foreign.remove(id.as_str());
            }
            Op::Draining(draining) => self.draining = *draining,
            Op::Rebooted(boot_id) => self.reboot(boot_id, change.seq),
            Op::DeclaredEmpty(_) => self.declare_empty(change.seq),
            _ => self.apply_to_lists(change),
        }
    }

    /// Applies a change of what is on the backend, after which it is no longer declared empty.
    fn apply_to_lists(&mut self, change: Change) {
        let Some(op) = &change.op else { return };
        self.declared_empty &= matches!(op, Op::ImagesForgotten(_));
        self.note_created(op);
        self.invalidate_statuses(op, change.seq);
        if let (Op::ImagesForgotten(_), Some(disk)) = (op, &mut self.disk) {
            disk.forget_images();
        }
        self.lists.record(change);
    }

    /// Applies a change read from the journal, unless the saved state has it already.
    pub(super) fn replay(&mut self, change: Change, saved: u64) {
        if change.seq > saved {
            self.apply(change);
        }
    }

    fn note_created(&mut self, op: &Op) {
        match op {
            Op::SandboxAdded(item) | Op::ContainerAdded(item) => {
                self.created.insert(item.id.as_str().into());
                self.foreign.remove(item.id.as_str());
            }
            Op::SandboxRemoved(id) | Op::ContainerRemoved(id) => {
                self.created.remove(id.as_str());
                self.foreign.remove(id.as_str());
            }
            _ => {}
        }
    }

    fn invalidate_statuses(&mut self, op: &Op, seq: u64) {
        if matches!(op, Op::SandboxSeen(_) | Op::ContainerSeen(_)) {
            return;
        }
        if let Some(id) = op.id() {
            self.statuses.invalidate_by_change(id, seq);
        }
        if let Op::ContainerAdded(added) = op
            && let Ok(facts) = ContainerRef::parse(&added.item)
        {
            self.statuses.invalidate_by_change(facts.sandbox_id, seq);
        }
    }

    /// Marks everything as stopped: containerd recovers what ran before a reboot as NOTREADY and EXITED.
    fn reboot(&mut self, boot_id: &str, seq: u64) {
        boot_id.clone_into(&mut self.boot_id);
        self.statuses.clear();
        self.lists.clear_stats();
        let sandboxes = self.lists.all_items(ListKind::Sandboxes);
        let containers = self.lists.all_items(ListKind::Containers);
        for facts in sandbox_items(&sandboxes).map_while(Result::ok) {
            self.lists.record(Change { seq, op: Some(Op::SandboxStopped(facts.id.to_owned())) });
        }
        for facts in container_items(&containers).map_while(Result::ok) {
            self.lists.record(Change { seq, op: Some(Op::ContainerStopped(facts.id.to_owned())) });
        }
    }

    fn declare_empty(&mut self, seq: u64) {
        let fresh = Self::new(self.instance.clone(), &self.boot_id, seq);
        *self = Self { declared_empty: true, draining: self.draining, ..fresh };
        self.lists.clear(seq);
    }

    /// Resets the state to unknown, not to empty: the backend answers at another endpoint, which was not
    /// listed yet.
    pub(super) fn reset_to_unknown(&mut self, life: Life) {
        let instance = Instance { life, ..self.instance.clone() };
        *self = Self { draining: self.draining, ..Self::new(instance, &self.boot_id, self.seq) };
    }

    /// Returns the IDs in the lists, paired or not, and in what passed since.
    pub(super) fn all_ids(&mut self) -> HashSet<Box<str>> {
        let mut heard = self.lists.unpaired_ids();
        for kind in [ListKind::Sandboxes, ListKind::Containers] {
            let list = self.lists.all_items(kind);
            heard.extend(ids(kind, &list).into_iter().map(Box::from));
        }
        heard
    }

    /// Tells whether [`KnownState::all_ids`] has this one.
    pub(super) fn has_id(&mut self, id: &str) -> bool {
        let sandboxes = self.lists.all_items(ListKind::Sandboxes);
        let containers = self.lists.all_items(ListKind::Containers);
        ids(ListKind::Sandboxes, &sandboxes).contains(id)
            || ids(ListKind::Containers, &containers).contains(id)
            || self.lists.unpaired_ids().contains(id)
    }

    /// Turns the saved lists into single items: the saved state is partial and must not answer a list.
    pub(super) fn doubt(&mut self) {
        let sandboxes = self.lists.all_items(ListKind::Sandboxes);
        let containers = self.lists.all_items(ListKind::Containers);
        let seen = |list: &Bytes, op: fn(super::changes::Item) -> Op| -> Vec<Op> {
            let items = wire::items(list, 1).map_while(Result::ok);
            let items = items.filter_map(|item| {
                let id = wire::peek_str(item, &[1]).ok()?.to_owned();
                Some(op(super::changes::Item { id, item: Bytes::copy_from_slice(item) }))
            });
            items.collect()
        };
        let ops = [seen(&sandboxes, Op::SandboxSeen), seen(&containers, Op::ContainerSeen)].concat();
        self.lists = Lists::default();
        for op in ops {
            self.lists.record(Change { seq: self.seq, op: Some(op) });
        }
    }

    /// Notes that a live pair was completed.
    pub(super) fn record_pair(&mut self, now: SystemTime) {
        self.listed_live = true;
        self.declared_empty = false;
        self.listed_at = Some(now);
    }

    /// Returns how long ago the last live pair was completed.
    pub(super) fn age(&self, now: SystemTime) -> Option<Duration> {
        Some(now.duration_since(self.listed_at?).unwrap_or_default())
    }

    /// Returns when the last live pair was completed, in seconds since the Unix epoch; zero for never.
    pub(super) fn listed_at_secs(&self) -> u64 {
        let since = self.listed_at.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        since.map_or(0, |since| since.as_secs())
    }

    /// Notes the items of a filtered reply that the list does not show, or shows in another state.
    ///
    /// # Errors
    /// Whatever makes the reply unreadable.
    pub(super) fn update(
        &mut self,
        kind: ListKind,
        revision: Revision,
        reply: &[u8],
    ) -> Result<bool, WireError> {
        if self.lists.is_past(kind, revision) {
            return Ok(false);
        }
        let news = self.news(kind, reply)?;
        let changed = !news.is_empty();
        self.declared_empty &= !changed;
        for (id, item) in news {
            let item = super::changes::Item { id, item };
            let op =
                if kind == ListKind::Sandboxes { Op::SandboxSeen(item) } else { Op::ContainerSeen(item) };
            self.lists.record(Change { seq: revision.seq, op: Some(op) });
        }
        Ok(changed)
    }

    fn news(&mut self, kind: ListKind, reply: &[u8]) -> Result<Vec<(String, Bytes)>, WireError> {
        let mut news = Vec::new();
        for item in wire::items(reply, LIST_ITEMS) {
            let item = item?;
            let (id, state) = id_and_state(kind, item)?;
            if self.state_of(kind, id) != Some(state) {
                news.push((id.to_owned(), Bytes::copy_from_slice(item)));
            }
        }
        Ok(news)
    }

    /// Returns the state of a sandbox or container that was heard of.
    fn state_of(&mut self, kind: ListKind, id: &str) -> Option<i32> {
        Some(id_and_state(kind, self.lists.item(kind, id)?).ok()?.1)
    }

    /// Returns the remembered status of `id` if the lists agree with it.
    pub(super) fn status(&mut self, kind: Kind, id: &str) -> Option<Bytes> {
        let reply = self.statuses.get(kind, id)?;
        self.agrees(kind, id, &reply).unwrap_or(false).then_some(reply)
    }

    fn agrees(&mut self, kind: Kind, id: &str, reply: &[u8]) -> Result<bool, WireError> {
        let state = enum_value(wire::peek_varint(
            reply,
            match kind {
                Kind::Sandbox => &field_path!(PodSandboxStatusResponse.status.state),
                Kind::Container => &field_path!(ContainerStatusResponse.status.state),
            },
        )?);
        if self.listed_state(kind, id) != Some(state) {
            return Ok(false);
        }
        if kind == Kind::Sandbox {
            for status in wire::items(reply, field!(PodSandboxStatusResponse.containers_statuses)) {
                let status = status?;
                let state = enum_value(wire::peek_varint(status, &[field!(ContainerStatus.state)])?);
                if self.listed_state(Kind::Container, wire::peek_str(status, &[field!(ContainerStatus.id)])?)
                    != Some(state)
                {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn listed_state(&mut self, kind: Kind, id: &str) -> Option<i32> {
        let list_kind = match kind {
            Kind::Sandbox => ListKind::Sandboxes,
            Kind::Container => ListKind::Containers,
        };
        if self.lists.has_lists() { self.state_of(list_kind, id) } else { None }
    }

    /// Remembers what is known of the whole backend under this key; returns whether it is new.
    pub(super) fn remember_fact(&mut self, key: &str, value: &[u8]) -> bool {
        let fingerprint = fingerprint(value);
        if self.facts.get(key).is_some_and(|(old, _)| *old == fingerprint) {
            return false;
        }
        self.facts.insert(key.to_owned(), (fingerprint, Bytes::copy_from_slice(value)));
        true
    }

    /// Returns what is known of the whole backend.
    pub(super) fn fact(&self, fact: Fact) -> Option<Bytes> {
        self.facts.get(fact.key()).map(|(_, value)| value.clone())
    }

    /// Drops the statuses of what is not listed.
    pub(super) fn purge(&mut self) {
        if !self.lists.has_lists() {
            return;
        }
        let sandboxes = self.lists.all_items(ListKind::Sandboxes);
        let containers = self.lists.all_items(ListKind::Containers);
        let (sandboxes, containers) =
            (ids(ListKind::Sandboxes, &sandboxes), ids(ListKind::Containers, &containers));
        self.statuses.purge(&sandboxes, &containers);
        self.created.retain(|id| sandboxes.contains(&**id) || containers.contains(&**id));
    }
}

/// Copies the item of a change out of the buffer it was read from.
pub(super) fn detach(mut op: Op) -> Op {
    if let Op::SandboxAdded(item)
    | Op::ContainerAdded(item)
    | Op::SandboxSeen(item)
    | Op::ContainerSeen(item) = &mut op
    {
        item.item = Bytes::copy_from_slice(&item.item);
    }
    op
}

/// Reads the ID and the state of an item of a list.
fn id_and_state(kind: ListKind, item: &[u8]) -> Result<(&str, i32), WireError> {
    let number = if kind == ListKind::Sandboxes { field!(PodSandbox.state) } else { field!(Container.state) };
    Ok((wire::peek_str(item, &[ITEM_ID])?, enum_value(wire::peek_varint(item, &[number])?)))
}
