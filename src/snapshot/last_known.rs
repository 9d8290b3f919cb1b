//! What crimux last knew of one backend: the handle through which calls read and write it.
//!
//! Every method takes the lock for a moment and does no I/O: a change is queued for the journal's thread
//! before it is applied, and [`LastKnown::wait_for_journal`] waits for the disk. Queueing under the lock
//! makes the journal's order the order of the changes. It must not ask the backend anything, nor know
//! whether it is up.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use super::changes::{Change, Item, Op};
use super::facts::Fact;
use super::filter::{Filter, item_id};
use super::instance::{Instance, InstanceId, Life};
use super::items::{
    CONTAINER_CREATED, CONTAINER_RUNNING, ContainerFacts, SandboxRef, container_item, container_items,
    sandbox_item, sandbox_items,
};
use super::journal::Record;
use super::lists::retain;
use super::on_disk::Minor;
use super::shared::Shared;
use super::state::KnownState;
use super::statuses::ForgottenStatus;
use super::{ListKind, Revision, StatusKind};
use crate::cri::{CREATED_ID, Rpc, field, field_path};
use crate::wire::{self, WireError};

/// Fields of a fact that is kept together with its time.
const TIMED_AT: u32 = 1;
const TIMED_VALUE: u32 = 2;

/// What crimux last knew of one backend.
#[derive(Debug)]
pub struct LastKnown {
    id: InstanceId,
    shared: Arc<Shared>,
    state: Mutex<KnownState>,
}

impl LastKnown {
    pub(super) fn new(id: InstanceId, shared: Arc<Shared>, state: KnownState) -> Self {
        Self { id, shared, state: Mutex::new(state) }
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

    /// Writes down who the backend is in the journal alone: the first snapshot comes with the first lists.
    pub fn begin_as(&self, instance: &Instance) {
        self.record(vec![Op::Instance(Box::new(instance.save()))]);
    }

    /// Tells whether the operator declared it lost, and nothing was heard of it since.
    pub fn is_forgotten(&self) -> bool {
        self.lock().forgotten
    }

    /// Tells whether it is left out of lists until its first full pair.
    pub fn is_joining(&self) -> bool {
        self.lock().instance.life == Life::Joining
    }

    /// Tells whether it may turn out to be another instance at another endpoint.
    pub fn moved_from(&self) -> Option<InstanceId> {
        self.lock().instance.moved_from
    }

    /// Forgets everything, that there is nothing too: it is elsewhere now, where nothing of it is known.
    pub fn restart(&self, instance: &Instance) {
        self.lock().restart(instance.life);
        self.set_instance(instance);
        self.shared.mark_dirty();
        self.shared.demand_snapshot();
    }

    /// Tells whether this ID was created here, through crimux.
    pub fn has_created(&self, id: &str) -> bool {
        self.lock().created.contains(id)
    }

    /// Tells whether this ID is in the last-known lists.
    pub fn has_id(&self, id: &str) -> bool {
        self.lock().has_id(id)
    }

    /// Returns all IDs in the last-known lists, also those that another instance owns.
    pub fn all_ids(&self) -> HashSet<Box<str>> {
        self.lock().all_ids()
    }

    /// Returns the count of forgotten owners when the owners of the newest list of `kind` were learnt.
    pub fn learnt_at(&self, kind: ListKind) -> u64 {
        self.lock().learnt_at[usize::from(kind == ListKind::Containers)]
    }

    /// Records the count of forgotten owners when the owners of the newest list of `kind` were learnt.
    pub fn set_learnt_at(&self, kind: ListKind, forgotten: u64) {
        if matches!(kind, ListKind::Sandboxes | ListKind::Containers) {
            self.lock().learnt_at[usize::from(kind == ListKind::Containers)] = forgotten;
        }
    }

    /// Tells whether it lists this ID while another instance owns it.
    pub fn is_foreign(&self, id: &str) -> bool {
        self.lock().foreign.contains(id)
    }

    /// Returns the IDs that it lists and another instance owns.
    pub fn foreign(&self) -> Vec<Box<str>> {
        self.lock().foreign.iter().cloned().collect()
    }

    /// Records that another instance owns this ID, which is listed here too. Returns false if that was
    /// recorded already.
    pub fn mark_foreign(&self, id: &str) -> bool {
        let news = !self.lock().foreign.contains(id);
        if news {
            self.change(vec![Op::Disowned(id.to_owned())]);
        }
        news
    }

    /// Records that no other instance owns this ID.
    pub fn mark_owned(&self, id: &str) {
        if self.lock().foreign.contains(id) {
            self.change(vec![Op::Owned(id.to_owned())]);
        }
    }

    /// Removes the items that another instance owns from a list of `kind`.
    pub fn without_foreign(&self, kind: ListKind, list: Bytes) -> Bytes {
        let state = self.lock();
        if state.foreign.is_empty() || kind == ListKind::Images {
            return list;
        }
        retain(&list, |item| item_id(kind, item).is_ok_and(|id| !state.foreign.contains(id)))
    }

    /// Returns the revision of a list or status read that is sent now. Take it *before* sending.
    pub fn revision(&self) -> Revision {
        Revision { seq: self.shared.next_seq(), at: Instant::now() }
    }

    /// Returns the newest live list of sandboxes or containers if its bytes equal `reply`: its owners are
    /// known, and its buffer is kept.
    pub fn newest_equal(&self, kind: ListKind, reply: &Bytes) -> Option<Bytes> {
        self.lock().lists.newest_equal(kind, reply)
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
            let known = state.lists.is_known();
            let replaced = state.lists.replace(kind, revision, reply, Instant::now());
            if replaced.paired {
                state.record_pair(SystemTime::now());
            }
            if replaced.paired && state.instance.life == Life::Joining && state.instance.moved_from.is_none()
            {
                joined = Some(Instance { life: Life::Member, ..state.instance.clone() });
            }
            (replaced, replaced.paired && !known)
        };
        if let Some(instance) = joined {
            self.set_instance(&instance);
        }
        if replaced.changed {
            self.shared.mark_dirty();
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
            self.shared.mark_dirty();
        }
        Ok(())
    }

    /// Records the sandbox that an encoded `RunPodSandboxRequest`, as sent to the backend, created.
    pub fn record_sandbox_created(&self, id: &str, request: &[u8]) {
        let item = sandbox_item(
            id,
            request,
            field!(RunPodSandboxRequest.config),
            field!(RunPodSandboxRequest.runtime_handler),
        );
        self.change(vec![Op::SandboxAdded(Item { id: id.to_owned(), item })]);
    }

    /// Records the container that an encoded `CreateContainerRequest` created.
    pub fn record_container_created(&self, id: &str, sandbox_id: &str, request: &[u8]) {
        let configs: Vec<&[u8]> =
            wire::items(request, field!(CreateContainerRequest.config)).map_while(Result::ok).collect();
        let item = container_item(id, sandbox_id, &configs, CONTAINER_CREATED);
        self.change(vec![Op::ContainerAdded(Item { id: id.to_owned(), item })]);
    }

    /// Records the sandbox and the running containers that a `RestorePod` created, from the encoded request
    /// as sent to the backend and the encoded response.
    ///
    /// # Errors
    /// Whatever makes the response unreadable; nothing is recorded then.
    pub fn record_restored(&self, request: &[u8], response: &[u8]) -> Result<(), WireError> {
        let id = wire::peek_str(response, &[CREATED_ID])?;
        let item = sandbox_item(
            id,
            request,
            field!(RestorePodRequest.config),
            field!(RestorePodRequest.runtime_handler),
        );
        let mut ops = vec![Op::SandboxAdded(Item { id: id.to_owned(), item })];
        for restored in wire::items(response, field!(RestorePodResponse.restored_containers)) {
            ops.push(restored_container(id, request, restored?)?);
        }
        self.change(ops);
        Ok(())
    }

    /// Records that a container runs.
    pub fn record_container_started(&self, id: &str) {
        self.change(vec![Op::ContainerStarted(id.to_owned())]);
    }

    /// Records that a container exited, if it was ever started.
    pub fn record_container_stopped(&self, id: &str) {
        self.change(vec![Op::ContainerStopped(id.to_owned())]);
    }

    /// Records that a sandbox is not ready, and those of its containers that were started exited.
    pub fn record_sandbox_stopped(&self, id: &str) {
        self.change(vec![Op::SandboxStopped(id.to_owned())]);
    }

    /// Records that a sandbox is gone, with its containers.
    pub fn record_sandbox_removed(&self, id: &str) {
        self.change(vec![Op::SandboxRemoved(id.to_owned())]);
    }

    /// Records that a container is gone.
    pub fn record_container_removed(&self, id: &str) {
        self.change(vec![Op::ContainerRemoved(id.to_owned())]);
    }

    /// Records that the image named by ID, tag or digest is gone.
    pub fn record_image_removed(&self, reference: &str) {
        self.change(vec![Op::ImageRemoved(reference.to_owned())]);
    }

    /// Forgets the image list; it is unknown until the next one arrives.
    pub fn forget_images(&self) {
        self.change(vec![Op::ImagesForgotten(true)]);
    }

    /// Returns whether the operator wants no new sandboxes here.
    pub fn is_draining(&self) -> bool {
        self.lock().drained
    }

    /// Records whether the operator wants no new sandboxes here.
    pub fn set_draining(&self, drained: bool) {
        self.change(vec![Op::Drained(drained)]);
    }

    /// Returns the last-known list of `kind`, encoded and filtered, with later changes applied. `None` if it
    /// was never listed: new objects alone are not a list.
    pub fn list(&self, kind: ListKind, filter: &Filter) -> Option<Bytes> {
        let list = self.lock().lists.list(kind, filter)?;
        Some(self.without_foreign(kind, list))
    }

    /// Counts the sandboxes and containers heard of that no other instance owns.
    pub fn count(&self) -> (usize, usize) {
        let (mut sandboxes, mut containers) = (0, 0);
        self.for_each_sandbox(|_| sandboxes += 1);
        self.for_each_container(|_| containers += 1);
        (sandboxes, containers)
    }

    /// Visits every sandbox heard of that no other instance owns, also while no list of them is known.
    pub fn for_each_sandbox(&self, mut visit: impl FnMut(SandboxRef<'_>)) {
        let list = self.lock().lists.all_seen(ListKind::Sandboxes);
        let list = self.without_foreign(ListKind::Sandboxes, list);
        sandbox_items(&list).map_while(Result::ok).for_each(&mut visit);
    }

    /// Visits every container heard of that no other instance owns, also while no list of them is known.
    pub fn for_each_container(&self, mut visit: impl FnMut(ContainerFacts<'_>)) {
        let list = self.lock().lists.all_seen(ListKind::Containers);
        let list = self.without_foreign(ListKind::Containers, list);
        container_items(&list).map_while(Result::ok).for_each(&mut visit);
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
    pub fn is_listed(&self) -> bool {
        self.lock().listed
    }

    /// Tells whether the sandbox and container lists can be answered: listed, saved, or declared lost.
    pub fn is_known(&self) -> bool {
        self.lock().lists.is_known()
    }

    /// Remembers the encoded reply to a status read sent at `revision`. A reply that carries `info`, or one
    /// to a read that was sent before a write to the same ID, is not remembered.
    pub fn remember_status(&self, kind: StatusKind, id: &str, revision: Revision, reply: &[u8]) {
        if self.lock().statuses.remember(kind, id, revision, reply) {
            self.shared.mark_dirty();
        }
    }

    /// Forgets the statuses of `id`. Call it when a write to `id` is sent and again when it ends: a read that
    /// was sent in between may have seen either side of it. Returns what was remembered, for a write that
    /// then was not sent at all.
    pub fn drop_status(&self, id: &str) -> ForgottenStatus {
        let mut state = self.lock();
        let seq = self.shared.next_seq();
        state.statuses.forget(id, seq)
    }

    /// Remembers again what [`LastKnown::drop_status`] forgot, unless a newer status was remembered since.
    pub fn put_status_back(&self, id: &str, forgotten: ForgottenStatus) {
        self.lock().statuses.put_back(id, forgotten);
    }

    /// Returns the status of `id` as last known, as long as the last-known lists agree with its state and
    /// with that of every container in it.
    pub fn status(&self, kind: StatusKind, id: &str) -> Option<Bytes> {
        self.lock().status(kind, id)
    }

    /// Remembers an encoded reply that answers for the backend as a whole: `Version`, `Status`,
    /// `RuntimeConfig`, `ImageFsInfo`, metrics. A verbose `Status` is not remembered.
    pub fn remember_reply(&self, rpc: Rpc, reply: &[u8]) {
        let verbose =
            rpc == Rpc::Status && wire::has_path(reply, &[field!(StatusResponse.info)]).unwrap_or(true);
        if !verbose {
            self.remember_fact(Fact::Reply(rpc), reply);
        }
    }

    /// Returns the last reply of `rpc`.
    pub fn reply(&self, rpc: Rpc) -> Option<Bytes> {
        self.lock().fact(Fact::Reply(rpc))
    }

    /// Remembers whether the backend streams container events.
    pub fn set_streams_events(&self, streams: bool) {
        self.remember_fact(Fact::StreamsEvents, if streams { &[1] } else { &[] });
    }

    /// Returns whether the backend streamed container events when it was asked last.
    pub fn streams_events(&self) -> bool {
        self.lock().fact(Fact::StreamsEvents).is_some_and(|streams| !streams.is_empty())
    }

    /// Remembers whether the backend lacks an RPC that not every runtime has; of any other nothing is
    /// remembered.
    pub fn set_unimplemented(&self, rpc: Rpc, lacks: bool) {
        let Some(fact) = Fact::lack_of(rpc) else { return };
        if self.is_unimplemented(rpc) != lacks {
            self.remember_fact(fact, if lacks { &[1] } else { &[] });
        }
    }

    /// Returns whether the backend lacked this RPC when it was asked last, before a restart of crimux too.
    pub fn is_unimplemented(&self, rpc: Rpc) -> bool {
        let fact = Fact::lack_of(rpc).and_then(|fact| self.lock().fact(fact));
        fact.is_some_and(|lacks| !lacks.is_empty())
    }

    /// Remembers what clients were told of pod stats, `at` in milliseconds since 1970.
    pub fn set_pod_stats_answer(&self, at: u64, exist: bool) {
        self.remember_fact(Fact::PodStatsAnswer, &with_time(at, &[u8::from(exist)]));
    }

    /// Returns when clients were told of pod stats, and what.
    pub fn pod_stats_answer(&self) -> Option<(u64, bool)> {
        let fact = self.lock().fact(Fact::PodStatsAnswer)?;
        let (at, exist) = split_time(&fact)?;
        Some((at, exist.as_ref() == [1]))
    }

    /// Remembers the metric descriptors that clients were told, `at` in milliseconds since 1970.
    pub fn set_announced_descriptors(&self, at: u64, descriptors: &[u8]) {
        if self.announced_descriptors().is_none_or(|(_, before)| before != descriptors) {
            self.remember_fact(Fact::AnnouncedDescriptors, &with_time(at, descriptors));
        }
    }

    /// Returns when clients were told metric descriptors, and which.
    pub fn announced_descriptors(&self) -> Option<(u64, Bytes)> {
        let (new, old) = {
            let state = self.lock();
            (state.fact(Fact::AnnouncedDescriptors), state.fact(Fact::OldDescriptors))
        };
        new.and_then(|fact| split_time(&fact)).or_else(|| old.map(|old| (0, old)))
    }

    fn remember_fact(&self, fact: Fact, value: &[u8]) {
        if self.lock().remember_fact(fact.key(), value) {
            self.shared.mark_dirty();
            if fact.is_urgent() {
                self.shared.flush_soon();
            }
        }
    }

    /// Completes when every change recorded so far is in the journal, or after 100 ms. A call that changed
    /// something waits for it before it is answered.
    pub async fn wait_for_journal(&self) {
        self.shared.wait_for_journal().await;
    }

    /// Writes `ops` to the journal as one record, and applies them.
    pub(super) fn change(&self, ops: Vec<Op>) {
        self.record(ops);
        self.shared.mark_dirty();
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

    /// Copies lists out of larger buffers, and drops the statuses of objects that are no longer listed.
    pub(super) fn compact(&self) {
        let oversized = {
            let mut state = self.lock();
            state.purge();
            state.lists.oversized()
        };
        for list in oversized {
            let exact = Bytes::copy_from_slice(&list);
            self.lock().lists.replace_buffer(&list, &exact);
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, KnownState> {
        // A panic while the lock was held has left a state that at worst misses that one change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes a fact together with when it became one.
fn with_time(at: u64, value: &[u8]) -> Vec<u8> {
    let mut fact = Vec::with_capacity(value.len() + 16);
    wire::put_varint(&mut fact, TIMED_AT, at);
    wire::put_bytes(&mut fact, TIMED_VALUE, value);
    fact
}

/// Reads what [`with_time`] has written.
fn split_time(fact: &Bytes) -> Option<(u64, Bytes)> {
    let value = wire::peek_bytes(fact, &[TIMED_VALUE]).ok()??;
    Some((wire::peek_varint(fact, &[TIMED_AT]).ok()?, fact.slice_ref(value)))
}

fn restored_container(sandbox_id: &str, request: &[u8], restored: &[u8]) -> Result<Op, WireError> {
    let name = wire::peek_str(restored, &[field!(RestoredContainer.name)])?;
    let id = wire::peek_str(restored, &[field!(RestoredContainer.container_id)])?;
    let named =
        |config: &&[u8]| wire::peek_str(config, &field_path!(ContainerConfig.metadata.name)) == Ok(name);
    let config =
        wire::items(request, field!(RestorePodRequest.container_configs)).map_while(Result::ok).find(named);
    let mut name_alone = Vec::new();
    if config.is_none() {
        let mut metadata = Vec::new();
        wire::put_bytes(&mut metadata, field!(ContainerMetadata.name), name.as_bytes());
        wire::put_bytes(&mut name_alone, field!(ContainerConfig.metadata), &metadata);
    }
    let item = container_item(id, sandbox_id, &[config.unwrap_or(&name_alone)], CONTAINER_RUNNING);
    Ok(Op::ContainerAdded(Item { id: id.to_owned(), item }))
}
