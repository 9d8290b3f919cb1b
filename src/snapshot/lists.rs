//! The last-known lists of one backend, and the rules by which replies replace them.
//!
//! The sandbox and the container list are served as a pair. **The rule**: a pair is the newest sandbox list and
//! a container list that was *sent* no earlier than it, and at most [`PAIR_WINDOW`] after it arrived; that is
//! the order in which kubelet's PLEG asks (`kuberuntime_manager.go`, `GetPods`). A sandbox list waits until
//! such a container list is there. Only while nothing is known at all does the other order make a pair.
//! The sequence of changes keeps a pair whole: what was recorded after a list was sent stays applied on top
//! of it, so a container created between the two has its sandbox, and one removed is in neither. What the
//! backend listed itself is never hidden; a container is never *added* without its sandbox.
//! No reply is looked into when it replaces another: its bytes are kept as they came.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::changes::{self, Change, Op, Overlay};
use super::filter::{Filter, item_id};
use super::{Epoch, ListKind, image_name};
use crate::wire;

/// How long after a sandbox list arrived a container list may be sent to make a pair with it.
pub(super) const PAIR_WINDOW: Duration = Duration::from_secs(10);

/// The lists of one backend.
#[derive(Debug, Default)]
pub(super) struct Lists {
    pair: Option<Pair>,
    newest_sandboxes: Option<Half>,
    newest_containers: Option<Half>,
    /// Sandbox lists sent before this are of the past.
    sandboxes_floor: u64,
    /// Container lists sent before this are of the past.
    containers_floor: u64,
    images: Single,
    container_stats: Single,
    sandbox_stats: Single,
    /// Changes to the pair that it may not show, oldest first.
    changes: Vec<Change>,
    /// Images removed since their list was sent.
    removed_images: Vec<Change>,
    composed_sandboxes: Option<Bytes>,
    composed_containers: Option<Bytes>,
}

#[derive(Debug, Clone)]
struct Pair {
    sandboxes: Kept,
    containers: Kept,
}

#[derive(Debug, Clone)]
struct Half {
    epoch: Epoch,
    arrived: Instant,
    list: Kept,
}

#[derive(Debug, Default)]
struct Single {
    sent: u64,
    list: Option<Kept>,
}

/// List bytes, and whether their buffer holds nothing else.
#[derive(Debug, Clone)]
struct Kept {
    bytes: Bytes,
    exact: bool,
}

/// What [`Lists::replace`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Replaced {
    /// Whether what is served may have changed.
    pub(super) changed: bool,
    /// Whether a live pair was completed.
    pub(super) paired: bool,
}

impl Lists {
    /// Takes the full list `reply`, sent at `epoch`.
    pub(super) fn replace(&mut self, kind: ListKind, epoch: Epoch, reply: Bytes, now: Instant) -> Replaced {
        match kind {
            ListKind::Sandboxes => self.replace_sandboxes(epoch, reply, now),
            ListKind::Containers => self.replace_containers(epoch, reply, now),
            ListKind::Images => {
                let replaced = self.images.replace(epoch, reply);
                let sent = self.images.sent;
                self.removed_images.retain(|change| change.seq > sent);
                replaced
            }
            ListKind::ContainerStats => self.container_stats.replace(epoch, reply),
            ListKind::PodSandboxStats => self.sandbox_stats.replace(epoch, reply),
        }
    }

    fn replace_sandboxes(&mut self, epoch: Epoch, reply: Bytes, now: Instant) -> Replaced {
        let newest = self.newest_sandboxes.as_ref();
        if epoch.seq < self.sandboxes_floor || newest.is_some_and(|half| half.epoch.seq > epoch.seq) {
            return Replaced::NOTHING;
        }
        self.newest_sandboxes = Some(Half::new(epoch, reply, now, newest));
        self.try_pair()
    }

    fn replace_containers(&mut self, epoch: Epoch, reply: Bytes, now: Instant) -> Replaced {
        let newest = self.newest_containers.as_ref();
        if epoch.seq < self.containers_floor || newest.is_some_and(|half| half.epoch.seq > epoch.seq) {
            return Replaced::NOTHING;
        }
        self.newest_containers = Some(Half::new(epoch, reply, now, newest));
        self.try_pair()
    }

    fn try_pair(&mut self) -> Replaced {
        let (Some(sandboxes), Some(containers)) = (&self.newest_sandboxes, &self.newest_containers) else {
            return Replaced::NOTHING;
        };
        let in_order = containers.epoch.seq >= sandboxes.epoch.seq;
        let together = if in_order { containers.follows(sandboxes) } else { sandboxes.follows(containers) };
        if !together || !(in_order || self.pair.is_none()) {
            return Replaced::NOTHING;
        }
        let next = Pair { sandboxes: sandboxes.list.clone(), containers: containers.list.clone() };
        // What happened to a sandbox happened to its containers: such a change stays until both lists show it.
        self.sandboxes_floor = sandboxes.epoch.seq.min(containers.epoch.seq);
        self.containers_floor = containers.epoch.seq;
        let same = self.pair.as_ref().is_some_and(|pair| pair.is_same(&next));
        self.pair = Some(next);
        let dropped = self.drop_shown_changes();
        let changed = !same || dropped;
        if changed {
            self.forget_composed();
        }
        Replaced { changed, paired: true }
    }

    fn drop_shown_changes(&mut self) -> bool {
        let before = self.changes.len();
        let (sandboxes, containers) = (self.sandboxes_floor, self.containers_floor);
        self.changes.retain(|change| {
            let of_sandbox = change.op.as_ref().is_some_and(Op::is_of_sandbox);
            change.seq > if of_sandbox { sandboxes } else { containers }
        });
        self.changes.len() != before
    }

    /// Records a change on top of the lists.
    pub(super) fn record(&mut self, change: Change) {
        match &change.op {
            Some(Op::ImageRemoved(_)) => self.removed_images.push(change),
            Some(Op::ImagesForgotten(_)) => {
                self.images = Single { sent: change.seq, list: None };
                self.removed_images.clear();
            }
            _ => {
                changes::insert(&mut self.changes, change);
                self.forget_composed();
            }
        }
    }

    /// Tells whether the newest list of `kind` was sent after `epoch`, so that a reply of then says nothing new.
    pub(super) fn is_past(&self, kind: ListKind, epoch: Epoch) -> bool {
        match kind {
            ListKind::Sandboxes => epoch.seq < self.sandboxes_floor,
            ListKind::Containers => epoch.seq < self.containers_floor,
            _ => true,
        }
    }

    /// Returns the list of `kind` as `filter` lets it through; `None` if it is not known.
    pub(super) fn list(&mut self, kind: ListKind, filter: &Filter) -> Option<Bytes> {
        let all = match kind {
            ListKind::Sandboxes | ListKind::Containers => {
                self.pair.as_ref()?;
                self.visited(kind)
            }
            ListKind::Images => self.present_images()?,
            ListKind::ContainerStats => {
                let stats = self.container_stats.list.as_ref()?.bytes.clone();
                self.of_listed(kind, ListKind::Containers, stats)
            }
            ListKind::PodSandboxStats => {
                let stats = self.sandbox_stats.list.as_ref()?.bytes.clone();
                self.of_listed(kind, ListKind::Sandboxes, stats)
            }
        };
        if filter.is_empty() {
            return Some(all);
        }
        let of_sandbox = match (kind, filter.sandbox()) {
            (ListKind::ContainerStats, Some(sandbox)) => self.containers_of(sandbox),
            _ => HashSet::new(),
        };
        Some(retain(&all, |item| filter.matches(kind, item, &of_sandbox)))
    }

    /// Returns all sandboxes or containers heard of, whether or not a list of them is known.
    pub(super) fn visited(&mut self, kind: ListKind) -> Bytes {
        if kind == ListKind::Sandboxes { self.sandboxes() } else { self.containers() }
    }

    fn sandboxes(&mut self) -> Bytes {
        if let Some(composed) = &self.composed_sandboxes {
            return composed.clone();
        }
        let base = self.pair.as_ref().map(|pair| pair.sandboxes.bytes.clone()).unwrap_or_default();
        let composed =
            if self.changes.is_empty() { base } else { Overlay::new(&self.changes).sandboxes(&base) };
        self.composed_sandboxes.insert(composed).clone()
    }

    fn containers(&mut self) -> Bytes {
        if let Some(composed) = &self.composed_containers {
            return composed.clone();
        }
        let base = self.pair.as_ref().map(|pair| pair.containers.bytes.clone()).unwrap_or_default();
        let composed = if self.changes.is_empty() {
            base
        } else {
            let sandboxes = self.sandboxes();
            let overlay = Overlay::new(&self.changes);
            let ids =
                if overlay.adds_containers() { ids(ListKind::Sandboxes, &sandboxes) } else { HashSet::new() };
            let known = self.pair.is_some();
            overlay.containers(&base, |sandbox| !known || ids.contains(sandbox))
        };
        self.composed_containers.insert(composed).clone()
    }

    fn present_images(&self) -> Option<Bytes> {
        let images = &self.images.list.as_ref()?.bytes;
        if self.removed_images.is_empty() {
            return Some(images.clone());
        }
        Some(retain(images, |image| {
            !self.removed_images.iter().any(|change| match &change.op {
                Some(Op::ImageRemoved(reference)) => image_name::is_named(image, reference),
                _ => false,
            })
        }))
    }

    /// Leaves out the stats of what is not listed, as removed things are not.
    fn of_listed(&mut self, kind: ListKind, listed: ListKind, stats: Bytes) -> Bytes {
        if self.pair.is_none() {
            return stats;
        }
        let list = self.visited(listed);
        let ids = ids(listed, &list);
        retain(&stats, |item| item_id(kind, item).is_ok_and(|id| ids.contains(id)))
    }

    fn containers_of(&mut self, sandbox: &str) -> HashSet<String> {
        super::items::container_items(&self.containers())
            .map_while(Result::ok)
            .filter(|facts| facts.sandbox_id.starts_with(sandbox))
            .map(|facts| facts.id.to_owned())
            .collect()
    }

    /// Tells whether the pair is known.
    pub(super) fn known(&self) -> bool {
        self.pair.is_some()
    }

    /// Forgets everything but that nothing is there. Lists sent before `seq` no longer count.
    pub(super) fn clear(&mut self, seq: u64) {
        let none = || Some(Kept { bytes: Bytes::new(), exact: true });
        let single = || Single { sent: seq, list: none() };
        *self = Self {
            pair: none().zip(none()).map(|(sandboxes, containers)| Pair { sandboxes, containers }),
            sandboxes_floor: seq,
            containers_floor: seq,
            images: single(),
            container_stats: single(),
            sandbox_stats: single(),
            ..Self::default()
        };
    }

    /// Drops stats, which say nothing about what no longer runs; a known list becomes an empty one.
    pub(super) fn clear_stats(&mut self) {
        for single in [&mut self.container_stats, &mut self.sandbox_stats] {
            single.list = single.list.take().map(|_| Kept { bytes: Bytes::new(), exact: true });
        }
    }

    fn forget_composed(&mut self) {
        self.composed_sandboxes = None;
        self.composed_containers = None;
    }

    /// Returns the lists as they are saved: sandboxes and containers, images, container and sandbox stats.
    pub(super) fn saved(&self) -> [Option<Bytes>; 5] {
        let pair = self.pair.as_ref();
        [
            pair.map(|pair| pair.sandboxes.bytes.clone()),
            pair.map(|pair| pair.containers.bytes.clone()),
            self.images.list.as_ref().map(|kept| kept.bytes.clone()),
            self.container_stats.list.as_ref().map(|kept| kept.bytes.clone()),
            self.sandbox_stats.list.as_ref().map(|kept| kept.bytes.clone()),
        ]
    }

    /// Iterates over the changes as they are saved.
    pub(super) fn saved_changes(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter().chain(&self.removed_images)
    }

    /// Restores what [`Lists::saved`] returned; the changes are then recorded one by one.
    pub(super) fn load(
        [sandboxes, containers, images, container_stats, sandbox_stats]: [Option<Bytes>; 5],
    ) -> Self {
        let kept = |bytes: Bytes| Kept { bytes, exact: false };
        let single = |bytes: Option<Bytes>| Single { sent: 0, list: bytes.map(kept) };
        let pair = sandboxes.zip(containers);
        Self {
            pair: pair.map(|(sandboxes, containers)| Pair {
                sandboxes: kept(sandboxes),
                containers: kept(containers),
            }),
            images: single(images),
            container_stats: single(container_stats),
            sandbox_stats: single(sandbox_stats),
            ..Self::default()
        }
    }

    /// Returns the lists whose bytes may pin a bigger buffer.
    pub(super) fn loose(&mut self) -> Vec<Bytes> {
        self.kept().filter(|kept| !kept.exact).map(|kept| kept.bytes.clone()).collect()
    }

    /// Puts `exact` in the place of the same bytes in the buffer of `loose`.
    pub(super) fn tighten(&mut self, loose: &Bytes, exact: &Bytes) {
        for kept in self.kept().filter(|kept| is_same_slice(&kept.bytes, loose)) {
            *kept = Kept { bytes: exact.clone(), exact: true };
        }
        for composed in [&mut self.composed_sandboxes, &mut self.composed_containers].into_iter().flatten() {
            if is_same_slice(composed, loose) {
                *composed = exact.clone();
            }
        }
    }

    fn kept(&mut self) -> impl Iterator<Item = &mut Kept> {
        let pair = self.pair.iter_mut().flat_map(|pair| [&mut pair.sandboxes, &mut pair.containers]);
        let halves = [&mut self.newest_sandboxes, &mut self.newest_containers];
        let halves = halves.into_iter().flatten().map(|half| &mut half.list);
        let singles = [&mut self.images, &mut self.container_stats, &mut self.sandbox_stats];
        pair.chain(halves).chain(singles.into_iter().filter_map(|single| single.list.as_mut()))
    }
}

impl Replaced {
    const NOTHING: Self = Self { changed: false, paired: false };
}

impl Pair {
    fn is_same(&self, other: &Self) -> bool {
        is_same_slice(&self.sandboxes.bytes, &other.sandboxes.bytes)
            && is_same_slice(&self.containers.bytes, &other.containers.bytes)
    }
}

impl Half {
    fn new(epoch: Epoch, reply: Bytes, arrived: Instant, before: Option<&Self>) -> Self {
        Self { epoch, arrived, list: Kept::replacing(before.map(|half| &half.list), reply) }
    }

    /// Tells whether this was sent soon enough after `earlier` arrived.
    fn follows(&self, earlier: &Self) -> bool {
        self.epoch.at.saturating_duration_since(earlier.arrived) <= PAIR_WINDOW
    }
}

impl Single {
    fn replace(&mut self, epoch: Epoch, reply: Bytes) -> Replaced {
        if epoch.seq < self.sent {
            return Replaced::NOTHING;
        }
        let kept = Kept::replacing(self.list.as_ref(), reply);
        let changed = !self.list.as_ref().is_some_and(|old| is_same_slice(&old.bytes, &kept.bytes));
        *self = Self { sent: epoch.seq, list: Some(kept) };
        Replaced { changed, paired: false }
    }
}

impl Kept {
    /// Keeps the old buffer if the new one says the same.
    fn replacing(old: Option<&Self>, reply: Bytes) -> Self {
        match old {
            Some(old) if old.bytes == reply => old.clone(),
            _ => Self { bytes: reply, exact: false },
        }
    }
}

/// Returns the IDs of the items of a list.
pub(super) fn ids(kind: ListKind, list: &[u8]) -> HashSet<&str> {
    wire::items(list, 1).map_while(|item| item_id(kind, item.ok()?).ok()).collect()
}

/// Tells whether both are the same part of the same buffer.
fn is_same_slice(one: &Bytes, other: &Bytes) -> bool {
    one.as_ptr() == other.as_ptr() && one.len() == other.len()
}

/// Copies the items that `keep` lets through; shares the list if it is all of them.
fn retain(list: &Bytes, mut keep: impl FnMut(&[u8]) -> bool) -> Bytes {
    let mut out = Vec::new();
    for field in wire::fields(list).map_while(Result::ok).filter(|field| field.number == 1) {
        if field.bytes().is_ok_and(&mut keep) {
            out.extend_from_slice(field.raw);
        }
    }
    if out.len() == list.len() { list.clone() } else { Bytes::from(out) }
}
