//! What crimux last knew of one backend: the handle through which calls read and write it.
//!
//! Every method takes the lock for a moment and does no I/O: a change is queued for the journal's thread
//! before it is applied, and [`InstanceState::wait_for_journal`] waits for the disk. Queueing under the lock
//! makes the journal's order the order of the changes. It must not ask the backend anything, nor know
//! whether it is up.

mod ownership;
mod replies;
mod writes;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use super::changes::{Change, Op};
use super::delta::Delta;
use super::filter::Filter;
use super::instance::{Instance, InstanceId};
use super::items::{ContainerRef, SandboxRef, container_items, sandbox_items};
use super::journal::Record;
use super::known::KnownState;
use super::life::{Life, LifeChange};
use super::list_bytes::{FullList, is_same_slice};
use super::on_disk::Minor;
use super::shared::Shared;
use super::{ListKind, Revision};
use crate::mutex::lock;
use crate::wire::WireError;

/// What crimux last knew of one backend.
#[derive(Debug)]
pub struct InstanceState {
    id: InstanceId,
    shared: Arc<Shared>,
    known: Mutex<KnownState>,
}

impl InstanceState {
    pub(super) fn new(id: InstanceId, shared: Arc<Shared>, known: KnownState) -> Self {
        Self { id, shared, known: Mutex::new(known) }
    }

    /// Returns the identifier of the instance.
    pub fn id(&self) -> InstanceId {
        self.id
    }

    /// Returns who the backend is.
    pub fn instance(&self) -> Instance {
        self.lock().instance.clone()
    }

    /// Writes down who the backend is from now on, if that differs.
    pub fn set_instance(&self, instance: &Instance) {
        if self.lock().instance != *instance {
            self.change(vec![Op::Instance(Box::new(instance.save()))]);
        }
    }

    /// Records the identity in the journal without waking the writer; the first full pair of lists wakes it,
    /// and a snapshot is written then.
    pub fn journal_instance(&self, instance: &Instance) {
        self.record(vec![Op::Instance(Box::new(instance.save()))]);
    }

    /// Tells whether it was declared empty, and has not been listed or changed since.
    pub fn is_declared_empty(&self) -> bool {
        self.lock().declared_empty
    }

    /// Tells whether its life is joining, which makes the backend outside lists.
    pub fn is_joining(&self) -> bool {
        self.lock().instance.life == Life::Joining
    }

    /// Tells whether it may turn out to be another instance at another endpoint.
    pub fn maybe_moved_from(&self) -> Option<InstanceId> {
        self.lock().instance.maybe_moved_from
    }

    /// Resets the state to unknown, not to empty: the backend answers at another endpoint, which was not
    /// listed yet.
    pub fn reset_to_unknown(&self, instance: &Instance) {
        self.lock().reset_to_unknown(instance.life);
        self.set_instance(instance);
        self.shared.wake_writer();
        self.shared.demand_snapshot();
    }

    /// Takes the revision of a list or status that is requested from now on; a change recorded later has a
    /// later one.
    pub fn begin_read(&self) -> Revision {
        Revision { seq: self.shared.next_seq(), at: Instant::now() }
    }

    /// Returns the newest live list of sandboxes or containers, which the next one probably equals.
    pub fn newest_list(&self, kind: ListKind) -> Option<Bytes> {
        self.lock().lists.newest(kind)
    }

    /// Returns the newest live list of sandboxes or containers if its bytes equal `reply`: its owners are
    /// known, and its buffer is kept.
    pub fn newest_equal(&self, kind: ListKind, reply: &Bytes) -> Option<Bytes> {
        self.newest_list(kind).filter(|newest| is_same_slice(newest, reply) || newest == reply)
    }

    /// Takes the reply to a list of `kind` that was sent without a filter at `revision`.
    ///
    /// Sandboxes and containers are replaced as a pair: a sandbox list waits for a container list that was
    /// sent no earlier, and at most 10 s after it arrived (in one go, both may have the same revision). The
    /// reply is not looked into; the caller has checked that it can be read.
    pub fn replace_list(&self, kind: ListKind, revision: Revision, reply: Bytes) {
        let mut joined = None;
        let (replaced, first) = {
            let mut state = self.lock();
            let known = state.lists.has_lists();
            let received = Instant::now();
            let list = FullList { kind, requested: revision, received, encoded: reply };
            let replaced = state.lists.replace(list);
            if replaced.completed_pair {
                state.record_pair(SystemTime::now());
            }
            let life = state.instance.life.after(LifeChange::Listed);
            if replaced.completed_pair
                && life != state.instance.life
                && state.instance.maybe_moved_from.is_none()
            {
                joined = Some(Instance { life, ..state.instance.clone() });
            }
            (replaced, replaced.completed_pair && !known)
        };
        if let Some(instance) = joined {
            self.set_instance(&instance);
        }
        if replaced.changed {
            self.shared.wake_writer();
        }
        if first {
            // A crimux that is killed now could not say afterwards what this backend had.
            self.shared.demand_snapshot();
        }
    }

    /// Takes the reply to a list of sandboxes or containers that was sent with a filter at `revision`: its
    /// items are added or updated, never removed. Filtered images and stats are not kept.
    ///
    /// # Errors
    /// Whatever makes the reply unreadable; nothing is taken from it then.
    pub fn update_items(&self, kind: ListKind, revision: Revision, reply: &[u8]) -> Result<(), WireError> {
        if self.lock().update(kind, revision, reply)? {
            self.shared.wake_writer();
        }
        Ok(())
    }

    /// Returns whether the operator wants no new sandboxes here.
    pub fn is_draining(&self) -> bool {
        self.lock().draining
    }

    /// Records whether the operator wants no new sandboxes here.
    pub fn set_draining(&self, draining: bool) {
        self.change(vec![Op::Draining(draining)]);
    }

    /// Returns the last-known list of `kind`, encoded and filtered, with later changes applied. `None` if it
    /// was never listed: new objects alone are not a list. Without what another instance owns.
    pub fn list(&self, kind: ListKind, filter: &Filter) -> Option<Bytes> {
        Some(self.without_foreign(kind, self.list_with_foreign(kind, filter)?))
    }

    /// The same, with what another instance owns.
    pub fn list_with_foreign(&self, kind: ListKind, filter: &Filter) -> Option<Bytes> {
        self.lock().lists.list(kind, filter)
    }

    /// Counts the known sandboxes and containers that no other instance owns.
    pub fn count(&self) -> (usize, usize) {
        let (mut sandboxes, mut containers) = (0, 0);
        self.for_each_sandbox(|_| sandboxes += 1);
        self.for_each_container(|_| containers += 1);
        (sandboxes, containers)
    }

    /// Visits every known sandbox that no other instance owns, also while there is no list of them.
    pub fn for_each_sandbox(&self, mut visit: impl FnMut(SandboxRef<'_>)) {
        let list = self.lock().lists.all_items(ListKind::Sandboxes);
        let list = self.without_foreign(ListKind::Sandboxes, list);
        sandbox_items(&list).map_while(Result::ok).for_each(&mut visit);
    }

    /// Visits every known container that no other instance owns, also while there is no list of them.
    pub fn for_each_container(&self, mut visit: impl FnMut(ContainerRef<'_>)) {
        let list = self.lock().lists.all_items(ListKind::Containers);
        let list = self.without_foreign(ListKind::Containers, list);
        container_items(&list).map_while(Result::ok).for_each(&mut visit);
    }

    /// Returns the IDs of all known containers in this sandbox, also of those that another instance owns.
    pub fn containers_of(&self, sandbox: &str) -> Vec<String> {
        let list = self.lock().lists.all_items(ListKind::Containers);
        let items = container_items(&list).map_while(Result::ok);
        items.filter(|facts| facts.sandbox_id == sandbox).map(|facts| facts.id.to_owned()).collect()
    }

    /// Returns the IDs in live lists of sandboxes and containers that wait for their other half, less what
    /// was removed since they were sent.
    pub fn unpaired_ids(&self) -> HashSet<Box<str>> {
        self.lock().lists.unpaired_ids()
    }

    /// Returns how long ago the last live pair of lists was completed, before a restart of crimux too.
    pub fn age(&self) -> Option<Duration> {
        self.lock().age(SystemTime::now())
    }

    /// Tells whether a live pair of lists was completed since the start.
    pub fn was_listed_live(&self) -> bool {
        self.lock().listed_live
    }

    /// Tells whether the sandbox and container lists can be answered: listed, saved, or declared empty.
    pub fn has_lists(&self) -> bool {
        self.lock().lists.has_lists()
    }

    /// Completes when every change recorded so far is in the journal, or after 100 ms. A call that changed
    /// something waits for it before it is answered.
    pub async fn wait_for_journal(&self) {
        self.shared.wait_for_journal().await;
    }

    /// Writes `ops` to the journal as one record, and applies them.
    pub(super) fn change(&self, ops: Vec<Op>) {
        self.record(ops);
        self.shared.wake_writer();
    }

    fn record(&self, ops: Vec<Op>) {
        let mut state = self.lock();
        let seq = self.shared.next_seq();
        let changes: Vec<Change> = ops.into_iter().map(|op| Change { seq, op: Some(op) }).collect();
        let backend = state.instance.name.clone();
        let record = Record { backend, changes, instance: self.id.0, delta: Vec::new() };
        self.shared.append(&record);
        for change in record.changes {
            state.apply(change);
        }
    }

    /// Queues for the journal what is not on the disk yet; tells whether there was anything.
    pub(super) fn append_delta(&self, minor: Minor) -> bool {
        let mut state = self.lock();
        let Some(delta) = state.take_delta(self.shared.next_seq(), minor) else { return false };
        let backend = state.instance.name.clone();
        let delta = delta.encode_compressed();
        self.shared.append(&Record { backend, changes: Vec::new(), instance: self.id.0, delta });
        true
    }

    /// Takes what the lists of a process that hands over have shown since it saved its state, unless the
    /// backend was listed here; tells whether it did.
    pub(super) fn apply_handed_delta(&self, delta: Delta) -> bool {
        let applied = self.lock().apply_handed_delta(delta);
        if applied {
            self.shared.wake_writer();
        }
        applied
    }

    /// Copies lists out of larger buffers, and drops the statuses of objects that are no longer listed.
    pub(super) fn compact(&self) {
        let oversized = {
            let mut state = self.lock();
            state.purge();
            state.lists.oversized_buffers()
        };
        for list in oversized {
            let exact = Bytes::copy_from_slice(&list);
            self.lock().lists.replace_buffer(&list, &exact);
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, KnownState> {
        // A panic while the lock was held has left a state that at worst misses that one change.
        lock(&self.known)
    }
}
