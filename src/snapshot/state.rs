//! What is remembered of one backend, and how a change is applied to it, live and on replay alike.
//!
//! It is plain data without locks, files or clocks, so that the same code answers calls and rebuilds the
//! state after a restart. It must not decide when anything is written.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::changes::{Change, Op};
use super::facts::Fact;
use super::file::{SavedBackend, SavedReply, SavedStatus};
use super::filter::Filter;
use super::fingerprint::fingerprint;
use super::items::{ContainerFacts, container_items, enum_value, sandbox_items};
use super::lists::{Lists, ids};
use super::statuses::Statuses;
use super::{ListKind, Revision, StatusKind};
use crate::cri::{ITEM_ID, LIST_ITEMS, field, field_path};
use crate::wire::{self, WireError};

/// What is remembered of one backend.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The boot during which this was learnt.
    pub(super) boot_id: String,
    /// Changes up to this sequence number are in here.
    pub(super) seq: u64,
    pub(super) lists: Lists,
    pub(super) statuses: Statuses,
    facts: BTreeMap<String, (u64, Bytes)>,
    pub(super) drained: bool,
    /// Whether the operator declared it lost and nothing was heard of it since.
    pub(super) forgotten: bool,
    /// When the last live pair was completed.
    listed_at: Option<SystemTime>,
    /// Whether that was since the start.
    pub(super) listed: bool,
    /// Counts the changes that may wait for the disk a little: stats and replies.
    pub(super) minor_changes: u64,
}

impl State {
    /// Makes the state of a backend of which nothing is known.
    pub(super) fn new(boot_id: &str, seq: u64) -> Self {
        Self { boot_id: boot_id.to_owned(), seq, ..Self::default() }
    }

    /// Applies a change.
    pub(super) fn apply(&mut self, change: Change) {
        self.seq = self.seq.max(change.seq);
        let Some(op) = &change.op else { return };
        self.forgotten = false;
        match op {
            Op::Drained(drained) => self.drained = *drained,
            Op::Rebooted(boot_id) => self.reboot(boot_id, change.seq),
            Op::Forgotten(_) => self.forget(change.seq),
            _ => {
                self.forget_statuses(op, change.seq);
                self.lists.record(change);
            }
        }
    }

    /// Applies a change read from the journal, unless the saved state has it already.
    pub(super) fn replay(&mut self, change: Change, saved: u64) {
        if change.seq > saved {
            self.apply(change);
        }
    }

    fn forget_statuses(&mut self, op: &Op, seq: u64) {
        if matches!(op, Op::SandboxSeen(_) | Op::ContainerSeen(_)) {
            return;
        }
        if let Some(id) = op.id() {
            self.statuses.forget(id, seq);
        }
        if let Op::ContainerAdded(added) = op
            && let Ok(facts) = ContainerFacts::parse(&added.item)
        {
            self.statuses.forget(facts.sandbox_id, seq);
        }
    }

    /// Marks everything as stopped: containerd recovers what ran before a reboot as NOTREADY and EXITED.
    fn reboot(&mut self, boot_id: &str, seq: u64) {
        boot_id.clone_into(&mut self.boot_id);
        self.statuses.clear();
        self.lists.clear_stats();
        let sandboxes = self.lists.visited(ListKind::Sandboxes);
        let containers = self.lists.visited(ListKind::Containers);
        for facts in sandbox_items(&sandboxes).map_while(Result::ok) {
            self.lists.record(Change { seq, op: Some(Op::SandboxStopped(facts.id.to_owned())) });
        }
        for facts in container_items(&containers).map_while(Result::ok) {
            self.lists.record(Change { seq, op: Some(Op::ContainerStopped(facts.id.to_owned())) });
        }
    }

    fn forget(&mut self, seq: u64) {
        let (boot_id, minor_changes) = (std::mem::take(&mut self.boot_id), self.minor_changes + 1);
        *self = Self { boot_id, seq, forgotten: true, minor_changes, ..Self::default() };
        self.lists.clear(seq);
    }

    /// Notes that a live pair was completed.
    pub(super) fn paired(&mut self, now: SystemTime) {
        self.listed = true;
        self.forgotten = false;
        self.listed_at = Some(now);
    }

    /// Returns how long ago the last live pair was completed.
    pub(super) fn age(&self, now: SystemTime) -> Option<Duration> {
        Some(now.duration_since(self.listed_at?).unwrap_or_default())
    }

    /// Notes the items of a filtered reply that the list does not show, or shows in another state.
    ///
    /// # Errors
    /// Whatever makes the reply unreadable.
    pub(super) fn update(
        &mut self,
        kind: ListKind,
        epoch: Revision,
        reply: &[u8],
    ) -> Result<bool, WireError> {
        if self.lists.is_past(kind, epoch) {
            return Ok(false);
        }
        let news = self.news(kind, reply)?;
        let changed = !news.is_empty();
        self.forgotten &= !changed;
        for (id, item) in news {
            let item = super::changes::Item { id, item };
            let op =
                if kind == ListKind::Sandboxes { Op::SandboxSeen(item) } else { Op::ContainerSeen(item) };
            self.lists.record(Change { seq: epoch.seq, op: Some(op) });
        }
        Ok(changed)
    }

    fn news(&mut self, kind: ListKind, reply: &[u8]) -> Result<Vec<(String, Bytes)>, WireError> {
        let list = self.lists.visited(kind);
        let known: std::collections::HashMap<&str, i32> = states(kind, &list).map_while(Result::ok).collect();
        let mut news = Vec::new();
        for (item, state) in wire::items(reply, LIST_ITEMS).zip(states(kind, reply)) {
            let (item, (id, state)) = (item?, state?);
            if known.get(id) != Some(&state) {
                news.push((id.to_owned(), Bytes::copy_from_slice(item)));
            }
        }
        Ok(news)
    }

    /// Returns the remembered status of `id` if the lists agree with it.
    pub(super) fn status(&mut self, kind: StatusKind, id: &str) -> Option<Bytes> {
        let reply = self.statuses.get(kind, id)?;
        self.agrees(kind, id, &reply).unwrap_or(false).then_some(reply)
    }

    fn agrees(&mut self, kind: StatusKind, id: &str, reply: &[u8]) -> Result<bool, WireError> {
        let state = enum_value(wire::peek_varint(
            reply,
            match kind {
                StatusKind::Sandbox => &field_path!(PodSandboxStatusResponse.status.state),
                StatusKind::Container => &field_path!(ContainerStatusResponse.status.state),
            },
        )?);
        if self.listed_state(kind, id) != Some(state) {
            return Ok(false);
        }
        if kind == StatusKind::Sandbox {
            for status in wire::items(reply, field!(PodSandboxStatusResponse.containers_statuses)) {
                let status = status?;
                let state = enum_value(wire::peek_varint(status, &[field!(ContainerStatus.state)])?);
                if self.listed_state(
                    StatusKind::Container,
                    wire::peek_str(status, &[field!(ContainerStatus.id)])?,
                ) != Some(state)
                {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn listed_state(&mut self, kind: StatusKind, id: &str) -> Option<i32> {
        let list_kind = match kind {
            StatusKind::Sandbox => ListKind::Sandboxes,
            StatusKind::Container => ListKind::Containers,
        };
        let list = self.lists.list(list_kind, &Filter::default())?;
        let mut states = states(list_kind, &list).map_while(Result::ok);
        states.find(|(listed, _)| *listed == id).map(|(_, state)| state)
    }

    /// Remembers what is known of the whole backend under this key; returns whether it is new.
    pub(super) fn remember_fact(&mut self, key: &str, value: &[u8]) -> bool {
        let fingerprint = fingerprint(value);
        if self.facts.get(key).is_some_and(|(old, _)| *old == fingerprint) {
            return false;
        }
        self.facts.insert(key.to_owned(), (fingerprint, Bytes::copy_from_slice(value)));
        self.minor_changes += 1;
        true
    }

    /// Returns what is known of the whole backend.
    pub(super) fn fact(&self, fact: Fact) -> Option<Bytes> {
        self.facts.get(fact.key()).map(|(_, value)| value.clone())
    }

    /// Drops the statuses of what is not listed.
    pub(super) fn purge(&mut self) {
        if !self.lists.known() {
            return;
        }
        let sandboxes = self.lists.visited(ListKind::Sandboxes);
        let containers = self.lists.visited(ListKind::Containers);
        self.statuses.purge(&ids(ListKind::Sandboxes, &sandboxes), &ids(ListKind::Containers, &containers));
    }

    /// Returns what is saved of this, as of the sequence number `seq`.
    pub(super) fn save(&self, name: &str, seq: u64) -> SavedBackend {
        let [sandboxes, containers, images, container_stats, sandbox_stats] = self.lists.saved();
        let listed_at = self.listed_at.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let statuses = self.statuses.iter().map(|(kind, id, reply)| SavedStatus {
            container: kind == StatusKind::Container,
            id: id.to_owned(),
            reply: reply.clone(),
        });
        let replies = self
            .facts
            .iter()
            .map(|(method, (_, reply))| SavedReply { method: method.clone(), reply: reply.clone() });
        SavedBackend {
            name: name.to_owned(),
            boot_id: self.boot_id.clone(),
            seq,
            drained: self.drained,
            listed_at: listed_at.map_or(0, |at| at.as_secs()),
            sandboxes,
            containers,
            images,
            container_stats,
            sandbox_stats,
            changes: self.lists.saved_changes().cloned().collect(),
            statuses: statuses.collect(),
            replies: replies.collect(),
            forgotten: self.forgotten,
        }
    }

    /// Restores what was saved.
    pub(super) fn load(saved: SavedBackend) -> Self {
        let lists =
            [saved.sandboxes, saved.containers, saved.images, saved.container_stats, saved.sandbox_stats];
        let mut state = Self {
            boot_id: saved.boot_id,
            seq: saved.seq,
            lists: Lists::load(lists),
            drained: saved.drained,
            forgotten: saved.forgotten,
            listed_at: (saved.listed_at > 0).then(|| UNIX_EPOCH + Duration::from_secs(saved.listed_at)),
            ..Self::default()
        };
        for mut change in saved.changes {
            // The buffer that was read holds the whole file.
            change.op = change.op.map(unshared);
            state.lists.record(change);
        }
        for SavedStatus { container, id, reply } in saved.statuses {
            let kind = if container { StatusKind::Container } else { StatusKind::Sandbox };
            state.statuses.restore(kind, id, &reply);
        }
        for SavedReply { method, reply } in saved.replies {
            state.remember_fact(&method, &reply);
        }
        state
    }
}

/// Copies the item of a change out of the buffer it was read from.
pub(super) fn unshared(mut op: Op) -> Op {
    if let Op::SandboxAdded(item)
    | Op::ContainerAdded(item)
    | Op::SandboxSeen(item)
    | Op::ContainerSeen(item) = &mut op
    {
        item.item = Bytes::copy_from_slice(&item.item);
    }
    op
}

/// Iterates over the IDs and states of a list.
fn states(kind: ListKind, list: &[u8]) -> impl Iterator<Item = Result<(&str, i32), WireError>> {
    let number = if kind == ListKind::Sandboxes { field!(PodSandbox.state) } else { field!(Container.state) };
    wire::items(list, LIST_ITEMS).map(move |item| {
        let item = item?;
        Ok((wire::peek_str(item, &[ITEM_ID])?, enum_value(wire::peek_varint(item, &[number])?)))
    })
}
