//! Pairs the sandbox list and the container list of a backend, so that clients get two lists of one moment.
//!
//! kubelet's PLEG lists sandboxes, then containers (`kuberuntime_manager.go`, `GetPods`), and takes a
//! container without a sandbox for one whose pod is gone. A live list goes to its client at once; what is
//! remembered, and served while the backend is out, changes only as a pair: a new list waits until both lists
//! form one. `S` is the newest sandbox list, `C` the newest container list:
//!
//! ```text
//!  crimux   S requested            S received      C requested          C received
//!  ───────────┬────────────────────────┬───────────────┬────────────────────┬─────▶ time
//!             │                        │◀─ PAIR_WINDOW ▶│                    │
//!             │                        │    at most     │                    └ the pair (S, C) is served
//!             │                        └ S waits: it may have a sandbox whose container the served C lacks
//!             └ a change recorded from here on stays applied on top of S until a later list shows it
//! ```
//!
//! The first row that fits decides:
//!
//! | | C was requested | containers without a sandbox | the pair |
//! |---|---|---|---|
//! | 1 | more than [`PAIR_WINDOW`] after S was received, or the other way round | | waits for a newer list |
//! | 2 | before S, and a pair is served | | waits for a newer list |
//! | 3 | after S was received, and S is in no pair yet | not looked for: the backend says so | is served |
//! | 4 | otherwise; it equals the served pair, without changes on top | were looked for | is served again |
//! | 5 | otherwise | none | is served |
//! | 6 | otherwise | some that were not refused yet | is refused, and they are remembered |
//! | 7 | otherwise | only refused ones, and S or C was requested before the refusal | is refused again |
//! | 8 | otherwise | only refused ones, and S and C were requested after the refusal | is served |
//!
//! A refused pair serves nothing new: the served lists stay until a pair is served. So a container that is
//! created while both lists are in flight never shows without its sandbox, and a backend that really has such
//! a container is believed from its second answer on.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::changes::{Change, Op, Overlay};
use super::list_bytes::{FullList, ListBytes, ids, is_same_slice};
use super::{ListKind, Revision};
use crate::cri::{ITEM_ID, LIST_ITEMS, field};
use crate::wire;

/// The longest time between receiving one list and requesting the other of a pair.
pub(super) const PAIR_WINDOW: Duration = Duration::from_secs(10);

/// Two lists of one moment.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    pub(super) sandboxes: ListBytes,
    pub(super) containers: ListBytes,
}

/// The served pair, and the newest lists, which may form the next one.
#[derive(Debug, Default)]
pub(super) struct Pairing {
    pub(super) pair: Option<Pair>,
    sandboxes: Option<NewestList>,
    containers: Option<NewestList>,
    watermarks: Watermarks,
    refused: Option<RefusedPair>,
}

/// The sequence numbers up to which the served pair shows all changes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Watermarks {
    pub(super) sandboxes: u64,
    pub(super) containers: u64,
}

/// The newest list of its kind.
#[derive(Debug, Clone)]
struct NewestList {
    requested: Revision,
    received: Instant,
    list: ListBytes,
    /// Whether it was in a served pair.
    was_served: bool,
}

/// The last pair that was refused for containers without a sandbox.
#[derive(Debug)]
struct RefusedPair {
    at: Instant,
    /// Their IDs.
    containers: HashSet<String>,
}

/// The outcome of receiving a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// No pair is served for it.
    NoPair,
    /// A pair is served.
    Served {
        /// Whether its bytes differ from those that were served before.
        bytes_changed: bool,
    },
}

/// Whether the newest two lists are served as a pair; see the table above.
enum Decision {
    Wait,
    Refuse(HashSet<String>),
    RefuseAgain,
    Serve,
}

impl Pairing {
    /// Receives a full list of sandboxes or containers. `changes` are those that are applied on top of the
    /// served pair.
    pub(super) fn receive(&mut self, list: FullList, changes: &[Change]) -> Received {
        let FullList { kind, requested, received, encoded } = list;
        if self.is_past(kind, requested) {
            return Received::NoPair;
        }
        let newest = if kind == ListKind::Sandboxes { &mut self.sandboxes } else { &mut self.containers };
        if newest.as_ref().is_some_and(|list| list.requested.seq > requested.seq) {
            return Received::NoPair;
        }
        let list = ListBytes::replacing(newest.as_ref().map(|newest| &newest.list), encoded);
        *newest = Some(NewestList { requested, received, list, was_served: false });
        self.pair_up(received, changes)
    }

    /// Decides about the newest two lists, and serves them or remembers the refusal.
    fn pair_up(&mut self, now: Instant, changes: &[Change]) -> Received {
        let (Some(sandboxes), Some(containers)) = (&self.sandboxes, &self.containers) else {
            return Received::NoPair;
        };
        let pair = Pair { sandboxes: sandboxes.list.clone(), containers: containers.list.clone() };
        let watermarks = Watermarks::of(sandboxes, containers);
        match self.decide(sandboxes, containers, &pair, changes) {
            Decision::Wait | Decision::RefuseAgain => Received::NoPair,
            Decision::Refuse(containers) => {
                self.refused = Some(RefusedPair { at: now, containers });
                Received::NoPair
            }
            Decision::Serve => {
                let bytes_changed = self.pair.as_ref().is_none_or(|served| !served.is_same(&pair));
                for list in [&mut self.sandboxes, &mut self.containers].into_iter().flatten() {
                    list.was_served = true;
                }
                (self.pair, self.watermarks, self.refused) = (Some(pair), watermarks, None);
                Received::Served { bytes_changed }
            }
        }
    }

    fn decide(
        &self,
        sandboxes: &NewestList,
        containers: &NewestList,
        pair: &Pair,
        changes: &[Change],
    ) -> Decision {
        let in_order = containers.requested.seq >= sandboxes.requested.seq;
        let in_window = if in_order { containers.follows(sandboxes) } else { sandboxes.follows(containers) };
        // Rows 1 and 2.
        if !in_window || (!in_order && self.pair.is_some()) {
            return Decision::Wait;
        }
        // Row 3.
        if containers.requested.at >= sandboxes.received && !sandboxes.was_served {
            return Decision::Serve;
        }
        // Row 4.
        if changes.is_empty() && self.pair.as_ref().is_some_and(|served| served.is_same(pair)) {
            return Decision::Serve;
        }
        let orphans = pair.containers_without_sandbox(Watermarks::of(sandboxes, containers), changes);
        if orphans.is_empty() {
            return Decision::Serve;
        }
        // Rows 6 to 8. The first refusal of these containers counts, or a backend that is listed every second
        // would never be believed.
        match &self.refused {
            Some(refused) if orphans.is_subset(&refused.containers) => {
                let requested = sandboxes.requested.at.min(containers.requested.at);
                if requested > refused.at { Decision::Serve } else { Decision::RefuseAgain }
            }
            _ => Decision::Refuse(orphans),
        }
    }

    /// Returns the newest list of sandboxes or containers.
    pub(super) fn newest_list(&self, kind: ListKind) -> Option<Bytes> {
        self.newest(kind).map(|newest| newest.list.bytes.clone())
    }

    /// Returns the newest list of sandboxes or containers and the sequence number of its request, if it was
    /// in no served pair yet.
    pub(super) fn unpaired_list(&self, kind: ListKind) -> Option<(&Bytes, u64)> {
        let newest = self.newest(kind).filter(|newest| !newest.was_served);
        newest.map(|newest| (&newest.list.bytes, newest.requested.seq))
    }

    fn newest(&self, kind: ListKind) -> Option<&NewestList> {
        if kind == ListKind::Sandboxes { self.sandboxes.as_ref() } else { self.containers.as_ref() }
    }

    /// Tells whether the served list of `kind` was requested after `revision`, so that a reply of then is
    /// outdated.
    pub(super) fn is_past(&self, kind: ListKind, revision: Revision) -> bool {
        let Watermarks { sandboxes, containers } = self.watermarks;
        revision.seq < if kind == ListKind::Sandboxes { sandboxes } else { containers }
    }

    /// Returns the watermarks of the served pair.
    pub(super) fn watermarks(&self) -> Watermarks {
        self.watermarks
    }

    /// Serves `pair`, and refuses lists that were requested before `seq`.
    pub(super) fn serving(pair: Option<Pair>, seq: u64) -> Self {
        Self { pair, watermarks: Watermarks { sandboxes: seq, containers: seq }, ..Self::default() }
    }

    /// Serves `pair`, as it was served with these watermarks.
    pub(super) fn replaying(pair: Pair, watermarks: Watermarks) -> Self {
        Self { pair: Some(pair), watermarks, ..Self::default() }
    }

    /// Iterates over all lists, served and newest.
    pub(super) fn buffers(&mut self) -> impl Iterator<Item = &mut ListBytes> {
        let newest = [&mut self.sandboxes, &mut self.containers].into_iter().flatten();
        let pair = self.pair.iter_mut().flat_map(|pair| [&mut pair.sandboxes, &mut pair.containers]);
        newest.map(|newest| &mut newest.list).chain(pair)
    }
}

impl Watermarks {
    fn of(sandboxes: &NewestList, containers: &NewestList) -> Self {
        Self {
            // A change of a sandbox changes its containers too, so it stays until both lists show it.
            sandboxes: sandboxes.requested.seq.min(containers.requested.seq),
            containers: containers.requested.seq,
        }
    }

    /// Tells whether `change` must stay applied, because the pair may not show it.
    pub(super) fn must_keep(self, change: &Change) -> bool {
        self.is_later(change.seq, change.op.as_ref().is_some_and(Op::is_of_sandbox))
    }

    /// Tells whether the pair may not show the change `seq`, of a sandbox or else of a container.
    pub(super) fn is_later(self, seq: u64, of_sandbox: bool) -> bool {
        seq > if of_sandbox { self.sandboxes } else { self.containers }
    }
}

impl Pair {
    fn is_same(&self, other: &Self) -> bool {
        is_same_slice(&self.sandboxes.bytes, &other.sandboxes.bytes)
            && is_same_slice(&self.containers.bytes, &other.containers.bytes)
    }

    fn containers_without_sandbox(&self, watermarks: Watermarks, changes: &[Change]) -> HashSet<String> {
        let changes: Vec<Change> =
            changes.iter().filter(|change| watermarks.must_keep(change)).cloned().collect();
        let overlay = Overlay::new(&changes);
        let sandboxes = overlay.sandboxes(&self.sandboxes.bytes);
        let sandboxes = ids(ListKind::Sandboxes, &sandboxes);
        let containers = overlay.containers(&self.containers.bytes, |sandbox| sandboxes.contains(sandbox));
        let outside = wire::items(&containers, LIST_ITEMS).map_while(Result::ok).filter(|item| {
            let sandbox = wire::peek_str(item, &[field!(Container.pod_sandbox_id)]);
            sandbox.is_ok_and(|sandbox| !sandboxes.contains(sandbox))
        });
        outside.filter_map(|item| wire::peek_str(item, &[ITEM_ID]).ok()).map(str::to_owned).collect()
    }
}

impl NewestList {
    /// Tells whether this list was requested within the window after `earlier` was received.
    fn follows(&self, earlier: &Self) -> bool {
        self.requested.at.saturating_duration_since(earlier.received) <= PAIR_WINDOW
    }
}
