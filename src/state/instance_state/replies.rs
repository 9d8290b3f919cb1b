//! Replies and facts that are kept as they are: statuses, composed replies, what a backend lacks.

use bytes::Bytes;

use super::InstanceState;
use crate::cri::{Rpc, field};
use crate::state::facts::Fact;
use crate::state::statuses::InvalidatedStatus;
use crate::state::{Kind, Revision};
use crate::wire;

/// Fields of a fact that is kept together with its time.
const TIMED_AT: u32 = 1;
const TIMED_VALUE: u32 = 2;

impl InstanceState {
    /// Remembers the encoded reply to a status read sent at `revision`. A reply that carries `info`, or one
    /// to a read that was sent before a write to the same ID, is not remembered.
    pub fn remember_status(&self, kind: Kind, id: &str, revision: Revision, reply: &[u8]) {
        if self.lock().statuses.remember(kind, id, revision, reply) {
            self.shared.wake_writer();
        }
    }

    /// Drops the statuses of `id`, when a write to `id` is sent and again when the write ends: a read that
    /// was sent in between may have seen either side of it. Returns the dropped ones, for a write that then
    /// was not sent at all.
    pub fn invalidate_status(&self, id: &str) -> InvalidatedStatus {
        let mut state = self.lock();
        let seq = self.shared.next_seq();
        state.statuses.invalidate(id, seq)
    }

    /// Restores what [`InstanceState::invalidate_status`] dropped, unless a newer status was cached since.
    pub fn restore_status(&self, id: &str, invalidated: InvalidatedStatus) {
        self.lock().statuses.restore(id, invalidated);
    }

    /// Returns the status of `id` as last known, as long as the last-known lists agree with its state and
    /// with that of every container in it.
    pub fn status(&self, kind: Kind, id: &str) -> Option<Bytes> {
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
            self.shared.wake_writer();
            if fact.is_urgent() {
                self.shared.flush_soon();
            }
        }
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
