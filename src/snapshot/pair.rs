//! Makes pairs of the sandbox and the container list of a backend, so that what is served of both belongs
//! together.
//!
//! **The rule**: a pair is the newest sandbox list and a container list that was *sent* no earlier than it,
//! and at most [`PAIR_WINDOW`] after it arrived; that is the order in which kubelet's PLEG asks
//! (`kuberuntime_manager.go`, `GetPods`). A sandbox list waits until such a container list is there. Only
//! while nothing is known does the other order make a pair too.
//!
//! A container list that was sent after a sandbox list arrived, the first to be, is taken as it is: a
//! container in it whose sandbox is missing is the backend's own word. Any other pair is looked through, and
//! refused if a container in it has no sandbox; if lists that were both sent after the refusal say no other
//! thing, it is the backend's word again.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::changes::{Change, Op, Overlay};
use super::items::container_items;
use super::lists::ids;
use super::{ListKind, Revision};

/// How long after a sandbox list arrived a container list may be sent to make a pair with it.
pub(super) const PAIR_WINDOW: Duration = Duration::from_secs(10);

/// List bytes, and whether their buffer holds nothing else.
#[derive(Debug, Clone)]
pub(super) struct ListBytes {
    pub(super) bytes: Bytes,
    pub(super) exact: bool,
}

/// The lists that are served.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    pub(super) sandboxes: ListBytes,
    pub(super) containers: ListBytes,
}

/// The pair that is served, and the lists that may become the next.
#[derive(Debug, Default)]
pub(super) struct PodListSync {
    pub(super) pair: Option<Pair>,
    sandboxes: Option<PendingList>,
    containers: Option<PendingList>,
    floors: Watermarks,
    refused: Option<Refused>,
}

/// The sequence numbers up to which changes are shown by the pair.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Watermarks {
    sandboxes: u64,
    containers: u64,
}

#[derive(Debug, Clone)]
struct PendingList {
    epoch: Revision,
    arrived: Instant,
    list: ListBytes,
    /// Whether it was part of a pair.
    used: bool,
}

#[derive(Debug)]
struct Refused {
    at: Instant,
    containers: HashSet<String>,
}

impl PodListSync {
    /// Takes the full list `reply` of sandboxes or containers, sent at `epoch`, with the `changes` that stay
    /// on top. Returns whether a pair was completed and, if so, whether it is another than before.
    pub(super) fn take(
        &mut self,
        kind: ListKind,
        epoch: Revision,
        reply: Bytes,
        now: Instant,
        changes: &[Change],
    ) -> Option<bool> {
        if self.is_past(kind, epoch) {
            return None;
        }
        let newest = if kind == ListKind::Sandboxes { &mut self.sandboxes } else { &mut self.containers };
        if newest.as_ref().is_some_and(|half| half.epoch.seq > epoch.seq) {
            return None;
        }
        let list = ListBytes::replacing(newest.as_ref().map(|half| &half.list), reply);
        *newest = Some(PendingList { epoch, arrived: now, list, used: false });
        self.complete(now, changes)
    }

    fn complete(&mut self, now: Instant, changes: &[Change]) -> Option<bool> {
        let (sandboxes, containers) = (self.sandboxes.as_ref()?, self.containers.as_ref()?);
        let in_order = containers.epoch.seq >= sandboxes.epoch.seq;
        let together = if in_order { containers.follows(sandboxes) } else { sandboxes.follows(containers) };
        if !together || !(in_order || self.pair.is_none()) {
            return None;
        }
        let pair = Pair { sandboxes: sandboxes.list.clone(), containers: containers.list.clone() };
        let floors = Watermarks {
            // What happened to a sandbox happened to its containers: such a change stays until both show it.
            sandboxes: sandboxes.epoch.seq.min(containers.epoch.seq),
            containers: containers.epoch.seq,
        };
        let one_after_the_other = containers.epoch.at >= sandboxes.arrived && !sandboxes.used;
        let both_sent = sandboxes.epoch.at.min(containers.epoch.at);
        let same = self.pair.as_ref().is_some_and(|old| old.is_same(&pair));
        // What is served already, with nothing on top of it, was looked through before.
        let settled = one_after_the_other || (same && changes.is_empty());
        if !settled && !self.accepts(&pair, floors, both_sent, now, changes) {
            return None;
        }
        self.floors = floors;
        self.refused = None;
        for half in [&mut self.sandboxes, &mut self.containers].into_iter().flatten() {
            half.used = true;
        }
        self.pair = Some(pair);
        Some(!same)
    }

    /// Looks through a pair for containers without a sandbox.
    fn accepts(
        &mut self,
        pair: &Pair,
        floors: Watermarks,
        sent: Instant,
        now: Instant,
        changes: &[Change],
    ) -> bool {
        let lost = pair.containers_without_sandbox(floors, changes);
        if lost.is_empty() {
            return true;
        }
        match &self.refused {
            // The first refusal of these stays the one that counts, or lists that keep coming never get past
            // it.
            Some(refused) if lost.is_subset(&refused.containers) => sent > refused.at,
            _ => {
                self.refused = Some(Refused { at: now, containers: lost });
                false
            }
        }
    }

    /// Returns the newest list of sandboxes or containers if it is, byte for byte, this one.
    pub(super) fn held(&self, kind: ListKind, reply: &Bytes) -> Option<Bytes> {
        let newest = if kind == ListKind::Sandboxes { &self.sandboxes } else { &self.containers };
        newest.as_ref().map(|half| &half.list.bytes).filter(|bytes| *bytes == reply).cloned()
    }

    /// Returns the newest list of sandboxes or containers and the sequence number at which it was sent, if it
    /// waits for its other half: it was part of no pair yet.
    pub(super) fn waiting(&self, kind: ListKind) -> Option<(&Bytes, u64)> {
        let newest = if kind == ListKind::Sandboxes { &self.sandboxes } else { &self.containers };
        newest.as_ref().filter(|half| !half.used).map(|half| (&half.list.bytes, half.epoch.seq))
    }

    /// Tells whether the pair was sent after `epoch`, so that a reply of then says nothing new.
    pub(super) fn is_past(&self, kind: ListKind, epoch: Revision) -> bool {
        let Watermarks { sandboxes, containers } = self.floors;
        epoch.seq < if kind == ListKind::Sandboxes { sandboxes } else { containers }
    }

    /// Returns the sequence numbers up to which changes are shown by the pair.
    pub(super) fn floors(&self) -> Watermarks {
        self.floors
    }

    /// Makes a pairing that serves `pair`, and takes no list that was sent before `seq`.
    pub(super) fn of(pair: Option<Pair>, seq: u64) -> Self {
        Self { pair, floors: Watermarks { sandboxes: seq, containers: seq }, ..Self::default() }
    }

    /// Iterates over all lists that are held.
    pub(super) fn kept(&mut self) -> impl Iterator<Item = &mut ListBytes> {
        let halves = [&mut self.sandboxes, &mut self.containers].into_iter().flatten();
        let pair = self.pair.iter_mut().flat_map(|pair| [&mut pair.sandboxes, &mut pair.containers]);
        halves.map(|half| &mut half.list).chain(pair)
    }
}

impl Watermarks {
    /// Tells whether the pair may not show `change`.
    pub(super) fn leave(self, change: &Change) -> bool {
        let of_sandbox = change.op.as_ref().is_some_and(Op::is_of_sandbox);
        change.seq > if of_sandbox { self.sandboxes } else { self.containers }
    }
}

impl Pair {
    fn is_same(&self, other: &Self) -> bool {
        is_same_slice(&self.sandboxes.bytes, &other.sandboxes.bytes)
            && is_same_slice(&self.containers.bytes, &other.containers.bytes)
    }

    fn containers_without_sandbox(&self, floors: Watermarks, changes: &[Change]) -> HashSet<String> {
        let changes: Vec<Change> = changes.iter().filter(|change| floors.leave(change)).cloned().collect();
        let overlay = Overlay::new(&changes);
        let sandboxes = overlay.sandboxes(&self.sandboxes.bytes);
        let sandboxes = ids(ListKind::Sandboxes, &sandboxes);
        let containers = overlay.containers(&self.containers.bytes, |sandbox| sandboxes.contains(sandbox));
        container_items(&containers)
            .map_while(Result::ok)
            .filter(|facts| !sandboxes.contains(facts.sandbox_id))
            .map(|facts| facts.id.to_owned())
            .collect()
    }
}

impl PendingList {
    /// Tells whether this was sent soon enough after `earlier` arrived.
    fn follows(&self, earlier: &Self) -> bool {
        self.epoch.at.saturating_duration_since(earlier.arrived) <= PAIR_WINDOW
    }
}

impl ListBytes {
    /// Keeps the old buffer if the new one says the same.
    pub(super) fn replacing(old: Option<&Self>, reply: Bytes) -> Self {
        match old {
            Some(old) if is_same_slice(&old.bytes, &reply) || old.bytes == reply => old.clone(),
            _ => Self { bytes: reply, exact: false },
        }
    }

    /// Makes a list without items.
    pub(super) fn nothing() -> Self {
        Self { bytes: Bytes::new(), exact: true }
    }
}

/// Tells whether both are the same part of the same buffer.
pub(super) fn is_same_slice(one: &Bytes, other: &Bytes) -> bool {
    one.as_ptr() == other.as_ptr() && one.len() == other.len()
}
