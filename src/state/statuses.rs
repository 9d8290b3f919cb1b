//! The last-known statuses, by sandbox and container.
//!
//! kubelet's image garbage collection reads the status of every container and stops at the first error
//! (`image_gc_manager.go`), so the last-known status is the reply for a backend that does not answer.
//! `known.rs` decides against the lists whether a status may be served. The reply to a read that was sent
//! before a write to the same ID is never cached, nor is a verbose reply, which may contain secrets.

use std::collections::HashMap;

use bytes::Bytes;

use super::fingerprint::fingerprint;
use super::{Kind, Revision};
use crate::cri::{field, field_path};
use crate::wire;

/// The most statuses of one kind; further IDs are not cached until the next purge.
const MAX_STATUSES: usize = 20_000;

/// The field `info` of a verbose reply, in the replies of both kinds.
const INFO: [u32; 1] = field_path!(PodSandboxStatusResponse.info);
const _: () = assert!(INFO[0] == field!(ContainerStatusResponse.info), "one number for both");

/// The statuses of one backend.
#[derive(Debug, Default)]
pub(super) struct Statuses {
    sandboxes: SlotMap,
    containers: SlotMap,
}

type SlotMap = HashMap<Box<str>, Slot, foldhash::fast::RandomState>;

/// The statuses of one ID that `Statuses::invalidate` dropped.
#[derive(Debug, Default)]
pub struct InvalidatedStatus(Vec<(Kind, u64, Bytes)>);

#[derive(Debug, Default)]
struct Slot {
    reply: Option<Bytes>,
    fingerprint: u64,
    /// The fingerprint of the reply on the disk.
    disk: Option<u64>,
    /// Replies to reads sent before this sequence number are outdated.
    outdated_before: u64,
}

impl Slot {
    fn print(&self) -> Option<u64> {
        self.reply.is_some().then_some(self.fingerprint)
    }
}

impl Statuses {
    /// Caches the reply to a read sent at `revision`. Returns whether anything changed.
    pub(super) fn remember(&mut self, kind: Kind, id: &str, revision: Revision, reply: &[u8]) -> bool {
        let slots = self.of(kind);
        if slots.get(id).is_some_and(|slot| slot.reply.as_deref() == Some(reply)) {
            return false;
        }
        if wire::has_path(reply, &INFO).unwrap_or(true)
            || (slots.len() >= MAX_STATUSES && !slots.contains_key(id))
        {
            return false;
        }
        let fingerprint = fingerprint(reply);
        if !slots.contains_key(id) {
            slots.insert(id.into(), Slot::default());
        }
        let slot = slots.get_mut(id).expect("the slot was made above");
        if revision.seq < slot.outdated_before || (slot.reply.is_some() && slot.fingerprint == fingerprint) {
            return false;
        }
        slot.reply = Some(Bytes::copy_from_slice(reply));
        slot.fingerprint = fingerprint;
        true
    }

    /// Drops the status of `id`, and refuses replies to reads sent before `seq`. Returns the dropped status.
    pub(super) fn invalidate(&mut self, id: &str, seq: u64) -> InvalidatedStatus {
        let mut dropped = InvalidatedStatus::default();
        for kind in [Kind::Sandbox, Kind::Container] {
            let slots = self.of(kind);
            if let Some(slot) = slots.get_mut(id) {
                let emptied = Slot { outdated_before: seq, disk: slot.disk, ..Slot::default() };
                let slot = std::mem::replace(slot, emptied);
                dropped.0.extend(slot.reply.map(|reply| (kind, slot.fingerprint, reply)));
            } else if slots.len() < MAX_STATUSES {
                slots.insert(id.into(), Slot { outdated_before: seq, ..Slot::default() });
            }
        }
        dropped
    }

    /// Drops the status of `id` by a change that is in the journal, which drops it on the disk as well.
    pub(super) fn invalidate_by_change(&mut self, id: &str, seq: u64) {
        self.invalidate(id, seq);
        for kind in [Kind::Sandbox, Kind::Container] {
            if let Some(slot) = self.of(kind).get_mut(id) {
                slot.disk = None;
            }
        }
    }

    /// Notes that a snapshot has all statuses.
    pub(super) fn mark_saved(&mut self) {
        for slot in self.sandboxes.values_mut().chain(self.containers.values_mut()) {
            slot.disk = slot.print();
        }
    }

    /// Returns the statuses that are not on the disk, and those that are there and no longer known, without a
    /// reply. They count as written from then on.
    pub(super) fn take_unsaved(&mut self) -> Vec<(Kind, String, Option<Bytes>)> {
        let mut unsaved = Vec::new();
        let both = [(Kind::Sandbox, &mut self.sandboxes), (Kind::Container, &mut self.containers)];
        for (kind, slots) in both {
            for (id, slot) in slots.iter_mut().filter(|(_, slot)| slot.disk != slot.print()) {
                slot.disk = slot.print();
                unsaved.push((kind, id.to_string(), slot.reply.clone()));
            }
        }
        unsaved
    }

    /// Drops one status.
    pub(super) fn remove(&mut self, kind: Kind, id: &str) {
        self.of(kind).remove(id);
    }

    /// Restores the dropped status of `id`, unless a newer one was cached since.
    pub(super) fn restore(&mut self, id: &str, invalidated: InvalidatedStatus) {
        for (kind, fingerprint, reply) in invalidated.0 {
            if let Some(slot) = self.of(kind).get_mut(id).filter(|slot| slot.reply.is_none()) {
                (slot.reply, slot.fingerprint) = (Some(reply), fingerprint);
            }
        }
    }

    /// Returns the cached status of `id`.
    pub(super) fn get(&self, kind: Kind, id: &str) -> Option<Bytes> {
        let slots = match kind {
            Kind::Sandbox => &self.sandboxes,
            Kind::Container => &self.containers,
        };
        slots.get(id)?.reply.clone()
    }

    /// Drops the statuses of IDs that are not listed; one on the disk leaves a slot until it is dropped
    /// there.
    pub(super) fn purge(
        &mut self,
        sandboxes: &foldhash::HashSet<&str>,
        containers: &foldhash::HashSet<&str>,
    ) {
        let keep = |listed: bool, slot: &mut Slot| {
            if !listed {
                slot.reply = None;
            }
            listed || slot.disk.is_some()
        };
        self.sandboxes.retain(|id, slot| keep(sandboxes.contains(&**id), slot));
        self.containers.retain(|id, slot| keep(containers.contains(&**id), slot));
    }

    /// Drops all statuses.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Returns the number of cached statuses.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.iter().count()
    }

    /// Iterates over all statuses.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Kind, &str, &Bytes)> {
        self.slots().filter_map(|(kind, id, slot)| Some((kind, id, slot.reply.as_ref()?)))
    }

    fn slots(&self) -> impl Iterator<Item = (Kind, &str, &Slot)> {
        let sandboxes = self.sandboxes.iter().map(|(id, slot)| (Kind::Sandbox, &**id, slot));
        sandboxes.chain(self.containers.iter().map(|(id, slot)| (Kind::Container, &**id, slot)))
    }

    /// Puts a saved status back.
    pub(super) fn load(&mut self, kind: Kind, id: String, reply: &[u8]) {
        let reply = Some(Bytes::copy_from_slice(reply));
        let slot = Slot { fingerprint: reply.as_deref().map_or(0, fingerprint), reply, ..Slot::default() };
        self.of(kind).insert(id.into_boxed_str(), slot);
    }

    fn of(&mut self, kind: Kind) -> &mut SlotMap {
        match kind {
            Kind::Sandbox => &mut self.sandboxes,
            Kind::Container => &mut self.containers,
        }
    }
}
