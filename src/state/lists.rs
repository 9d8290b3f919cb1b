//! The last-known lists of one backend, and the rules for replacing them.
//!
//! A list replaces an older one unless it was requested earlier. A change recorded after a list was requested
//! stays applied on top of it, so a container created while the list was in flight is shown, and a removed
//! one is not. An item that the backend listed is never hidden; a container is never *added* without its
//! sandbox. A reply is not parsed when it replaces another: its bytes are kept unchanged. `pair.rs` decides
//! which sandbox list is served with which container list.

use std::collections::HashSet;

use bytes::Bytes;

use super::changes::{self, Change, Op, Overlay};
use super::delta::ListDelta;
use super::filter::{Filter, item_id};
use super::list_bytes::{FullList, ListBytes, ids, is_same_slice, retain};
use super::pair::{Pair, Pairing, Received, Watermarks};
use super::positions::Positions;
use super::{ListKind, Revision, image_name};
use crate::wire::WireError;

/// The lists of one backend.
#[derive(Debug, Default)]
pub(super) struct Lists {
    pairing: Pairing,
    images: ListSlot,
    container_stats: ListSlot,
    sandbox_stats: ListSlot,
    /// Changes that the served pair may not show yet, oldest first.
    changes: Vec<Change>,
    /// Images removed since their list was requested.
    removed_images: Vec<Change>,
    /// The changes that a replay of the journal would still apply: their sequence numbers, and whether each
    /// is of a sandbox. A list may show them all without a difference to the one on the disk.
    replayed: Vec<(u64, bool)>,
    replayed_removals: Vec<u64>,
    composed_sandboxes: Option<Bytes>,
    composed_containers: Option<Bytes>,
    /// Of the composed sandboxes and containers, once one of them was looked for.
    positions: [Option<Positions>; 2],
}

#[derive(Debug, Default)]
struct ListSlot {
    requested_seq: u64,
    list: Option<ListBytes>,
}

/// The outcome of [`Lists::replace`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Replaced {
    /// Whether the served lists may have changed.
    pub(super) changed: bool,
    /// Whether the list completed a live pair.
    pub(super) completed_pair: bool,
}

impl Lists {
    /// Replaces a list by a newer one.
    pub(super) fn replace(&mut self, list: FullList) -> Replaced {
        match list.kind {
            ListKind::Sandboxes | ListKind::Containers => self.replace_pod_list(list),
            ListKind::Images => {
                let replaced = self.images.replace(list);
                let requested_seq = self.images.requested_seq;
                self.removed_images.retain(|change| change.seq > requested_seq);
                replaced
            }
            ListKind::ContainerStats => self.container_stats.replace(list),
            ListKind::PodSandboxStats => self.sandbox_stats.replace(list),
        }
    }

    fn replace_pod_list(&mut self, list: FullList) -> Replaced {
        let Received::Served { bytes_changed } = self.pairing.receive(list, &self.changes) else {
            return Replaced::NOTHING;
        };
        let before = self.changes.len();
        let watermarks = self.pairing.watermarks();
        self.changes.retain(|change| watermarks.must_keep(change));
        let changed = bytes_changed || self.changes.len() != before;
        if changed {
            self.invalidate_composed();
        }
        Replaced { changed, completed_pair: true }
    }

    /// Records a change on top of the lists.
    pub(super) fn record(&mut self, change: Change) {
        match &change.op {
            Some(Op::ImageRemoved(_)) => {
                self.replayed_removals.push(change.seq);
                self.removed_images.push(change);
            }
            Some(Op::ImagesForgotten(_)) => {
                self.images = ListSlot { requested_seq: change.seq, list: None };
                self.removed_images.clear();
                self.replayed_removals.clear();
            }
            _ => {
                let of_sandbox = change.op.as_ref().is_some_and(Op::is_of_sandbox);
                self.replayed.push((change.seq, of_sandbox));
                changes::insert(&mut self.changes, change);
                self.invalidate_composed();
            }
        }
    }

    /// Returns the newest list of `kind`. Only of what teaches owners.
    pub(super) fn newest(&self, kind: ListKind) -> Option<Bytes> {
        matches!(kind, ListKind::Sandboxes | ListKind::Containers).then(|| self.pairing.newest_list(kind))?
    }

    /// Returns the IDs in lists of sandboxes and containers that are in no pair yet, without those removed
    /// since the lists were requested.
    pub(super) fn unpaired_ids(&self) -> HashSet<Box<str>> {
        let mut unpaired = HashSet::new();
        for kind in [ListKind::Sandboxes, ListKind::Containers] {
            let Some((list, requested_seq)) = self.pairing.unpaired_list(kind) else { continue };
            let later: Vec<_> =
                self.changes.iter().filter(|change| change.seq > requested_seq).cloned().collect();
            let overlay = Overlay::new(&later);
            let list = match kind {
                ListKind::Sandboxes => overlay.sandboxes(list),
                _ => overlay.containers(list, |_| true),
            };
            unpaired.extend(ids(kind, &list).into_iter().map(Box::from));
        }
        unpaired
    }

    /// Tells whether the newest list of `kind` was sent after `revision`, so that a reply of then says
    /// nothing new.
    pub(super) fn is_past(&self, kind: ListKind, revision: Revision) -> bool {
        match kind {
            ListKind::Sandboxes | ListKind::Containers => self.pairing.is_past(kind, revision),
            // Filtered replies of the others are not taken.
            _ => true,
        }
    }

    /// Returns the list of `kind`, filtered; `None` if it is not known.
    pub(super) fn list(&mut self, kind: ListKind, filter: &Filter) -> Option<Bytes> {
        let all = match kind {
            ListKind::Sandboxes | ListKind::Containers => {
                self.pairing.pair.as_ref()?;
                self.all_items(kind)
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

    /// Returns all known sandboxes or containers, whether or not there is a list of them.
    pub(super) fn all_items(&mut self, kind: ListKind) -> Bytes {
        if kind == ListKind::Sandboxes { self.sandboxes() } else { self.containers() }
    }

    /// Returns one sandbox or container as it is listed.
    pub(super) fn item(&mut self, kind: ListKind, id: &str) -> Option<&[u8]> {
        let list = self.all_items(kind);
        let positions = &mut self.positions[usize::from(kind == ListKind::Containers)];
        positions.get_or_insert_with(|| Positions::new(list)).item(id)
    }

    fn sandboxes(&mut self) -> Bytes {
        if let Some(composed) = &self.composed_sandboxes {
            return composed.clone();
        }
        let base = self.pairing.pair.as_ref().map(|pair| pair.sandboxes.bytes.clone()).unwrap_or_default();
        let composed = Overlay::new(&self.changes).sandboxes(&base);
        self.composed_sandboxes.insert(composed).clone()
    }

    fn containers(&mut self) -> Bytes {
        if let Some(composed) = &self.composed_containers {
            return composed.clone();
        }
        let base = self.pairing.pair.as_ref().map(|pair| pair.containers.bytes.clone()).unwrap_or_default();
        let sandboxes = self.sandboxes();
        let overlay = Overlay::new(&self.changes);
        let ids = overlay.adds_containers().then(|| ids(ListKind::Sandboxes, &sandboxes));
        let known = self.pairing.pair.is_some();
        let composed = overlay
            .containers(&base, |sandbox| !known || ids.as_ref().is_some_and(|ids| ids.contains(sandbox)));
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

    /// Removes the stats of objects that are not listed.
    fn of_listed(&mut self, kind: ListKind, listed: ListKind, stats: Bytes) -> Bytes {
        if self.pairing.pair.is_none() {
            return stats;
        }
        let list = self.all_items(listed);
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
    pub(super) fn has_lists(&self) -> bool {
        self.pairing.pair.is_some()
    }

    /// Makes all lists known to be empty. Lists requested before `seq` are refused from then on.
    pub(super) fn clear(&mut self, seq: u64) {
        let nothing = Pair { sandboxes: ListBytes::empty(), containers: ListBytes::empty() };
        let slot = || ListSlot { requested_seq: seq, list: Some(ListBytes::empty()) };
        *self = Self {
            pairing: Pairing::serving(Some(nothing), seq),
            images: slot(),
            container_stats: slot(),
            sandbox_stats: slot(),
            ..Self::default()
        };
    }

    /// Drops stats, which say nothing about what no longer runs; a known list becomes an empty one.
    pub(super) fn clear_stats(&mut self) {
        for slot in [&mut self.container_stats, &mut self.sandbox_stats] {
            slot.list = slot.list.take().map(|_| ListBytes::empty());
        }
    }

    fn invalidate_composed(&mut self) {
        self.composed_sandboxes = None;
        self.composed_containers = None;
        self.positions = [None, None];
    }

    /// Returns the lists as they are saved: sandboxes and containers, images, container and sandbox stats.
    pub(super) fn to_save(&self) -> [Option<Bytes>; 5] {
        let pair = self.pairing.pair.as_ref();
        [
            pair.map(|pair| pair.sandboxes.bytes.clone()),
            pair.map(|pair| pair.containers.bytes.clone()),
            self.images.list.as_ref().map(|list| list.bytes.clone()),
            self.container_stats.list.as_ref().map(|list| list.bytes.clone()),
            self.sandbox_stats.list.as_ref().map(|list| list.bytes.clone()),
        ]
    }

    /// Iterates over the changes as they are saved.
    pub(super) fn saved_changes(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter().chain(&self.removed_images)
    }

    /// Restores what [`Lists::to_save`] returned; the changes are then recorded one by one.
    pub(super) fn load(
        [sandboxes, containers, images, container_stats, sandbox_stats]: [Option<Bytes>; 5],
    ) -> Self {
        let buffer = |bytes: Bytes| ListBytes::new(bytes, false);
        let slot = |bytes: Option<Bytes>| ListSlot { requested_seq: 0, list: bytes.map(buffer) };
        let pair = sandboxes.zip(containers);
        let pair = pair.map(|(sandboxes, containers)| Pair {
            sandboxes: buffer(sandboxes),
            containers: buffer(containers),
        });
        Self {
            pairing: Pairing::serving(pair, 0),
            images: slot(images),
            container_stats: slot(container_stats),
            sandbox_stats: slot(sandbox_stats),
            ..Self::default()
        }
    }

    /// Returns the served sandboxes and containers, without the changes on top of them.
    pub(super) fn pair(&self) -> Option<&Pair> {
        self.pairing.pair.as_ref()
    }

    /// Returns the watermarks of the served pair.
    pub(super) fn watermarks(&self) -> Watermarks {
        self.pairing.watermarks()
    }

    /// Returns the list of images, without the removals on top of it, and the sequence number of its request.
    pub(super) fn images(&self) -> Option<(u64, &ListBytes)> {
        Some((self.images.requested_seq, self.images.list.as_ref()?))
    }

    /// Returns the stats of containers and of sandboxes.
    pub(super) fn stats(&self) -> [Option<&Bytes>; 2] {
        [&self.container_stats, &self.sandbox_stats].map(|slot| slot.list.as_ref().map(|list| &list.bytes))
    }

    /// Iterates over what filtered replies showed and the served pair may not.
    pub(super) fn seen_changes(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(|change| change.op.as_ref().is_some_and(Op::is_seen))
    }

    /// Forgets the changes that a replay would apply and the served pair shows; tells whether there were any.
    pub(super) fn forget_shown_replayed(&mut self) -> bool {
        let (before, watermarks) = (self.replayed.len(), self.watermarks());
        self.replayed.retain(|(seq, of_sandbox)| watermarks.is_later(*seq, *of_sandbox));
        self.replayed.len() != before
    }

    /// Drops the replayed removals of images that the list of images shows; tells whether there were any.
    pub(super) fn forget_shown_removals(&mut self) -> bool {
        let before = self.replayed_removals.len();
        self.replayed_removals.retain(|seq| *seq > self.images.requested_seq);
        self.replayed_removals.len() != before
    }

    /// Serves the pair that a record of the journal makes of the present one.
    ///
    /// # Errors
    /// Whatever makes an item of the record unreadable.
    pub(super) fn replay_pair(
        &mut self,
        sandboxes: ListDelta,
        containers: ListDelta,
        watermarks: Watermarks,
    ) -> Result<(), WireError> {
        let (old_sandboxes, old_containers) = self
            .pair()
            .map(|pair| (pair.sandboxes.bytes.clone(), pair.containers.bytes.clone()))
            .unwrap_or_default();
        let list = |bytes| ListBytes::new(bytes, true);
        let pair = Pair {
            sandboxes: list(sandboxes.apply(ListKind::Sandboxes, &old_sandboxes)?),
            containers: list(containers.apply(ListKind::Containers, &old_containers)?),
        };
        self.pairing = Pairing::replaying(pair, watermarks);
        self.changes.retain(|change| watermarks.must_keep(change));
        self.invalidate_composed();
        Ok(())
    }

    /// Replays a change of the list of images.
    ///
    /// # Errors
    /// As of [`Lists::replay_pair`].
    pub(super) fn replay_images(&mut self, images: ListDelta, at: u64) -> Result<(), WireError> {
        let old = self.images().map(|(_, list)| list.bytes.clone()).unwrap_or_default();
        let bytes = images.apply(ListKind::Images, &old)?;
        self.images = ListSlot { requested_seq: at, list: Some(ListBytes::new(bytes, true)) };
        self.removed_images.retain(|change| change.seq > at);
        Ok(())
    }

    /// Replays the stats of containers and of sandboxes.
    pub(super) fn replay_stats(&mut self, stats: [Option<Bytes>; 2]) {
        for (slot, stats) in [&mut self.container_stats, &mut self.sandbox_stats].into_iter().zip(stats) {
            if let Some(bytes) = stats {
                slot.list = Some(ListBytes::new(bytes, true));
            }
        }
    }

    /// Returns the lists whose bytes may pin a bigger buffer.
    pub(super) fn oversized_buffers(&mut self) -> Vec<Bytes> {
        self.buffers().filter(|list| !list.is_compact).map(|list| list.bytes.clone()).collect()
    }

    /// Puts `exact` in the place of the same bytes in the buffer of `oversized`.
    pub(super) fn replace_buffer(&mut self, oversized: &Bytes, exact: &Bytes) {
        for list in self.buffers().filter(|list| is_same_slice(&list.bytes, oversized)) {
            (list.bytes, list.is_compact) = (exact.clone(), true);
        }
        for composed in [&mut self.composed_sandboxes, &mut self.composed_containers].into_iter().flatten() {
            if is_same_slice(composed, oversized) {
                *composed = exact.clone();
            }
        }
    }

    fn buffers(&mut self) -> impl Iterator<Item = &mut ListBytes> {
        let slots = [&mut self.images, &mut self.container_stats, &mut self.sandbox_stats];
        self.pairing.buffers().chain(slots.into_iter().filter_map(|slot| slot.list.as_mut()))
    }
}

impl Replaced {
    const NOTHING: Self = Self { changed: false, completed_pair: false };
}

impl ListSlot {
    fn replace(&mut self, list: FullList) -> Replaced {
        let requested_seq = list.requested.seq;
        if requested_seq < self.requested_seq {
            return Replaced::NOTHING;
        }
        let list = ListBytes::replacing(self.list.as_ref(), list.encoded);
        let changed = !self.list.as_ref().is_some_and(|old| is_same_slice(&old.bytes, &list.bytes));
        *self = Self { requested_seq, list: Some(list) };
        Replaced { changed, completed_pair: false }
    }
}
