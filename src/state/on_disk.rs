//! What of the state of one instance is on the disk. `known/deltas.rs` compares the state with it.

use std::collections::HashMap;

use super::ListKind;
use super::delta::{ListDelta, Prints};
use super::list_bytes::ListBytes;

/// Fingerprints of what is on the disk of one instance; those of the statuses are with the statuses.
#[derive(Debug, Default)]
pub(super) struct OnDisk {
    /// The sequence number of the last snapshot or delta.
    pub(super) seq: u64,
    pub(super) sandboxes: Option<ListOnDisk>,
    pub(super) containers: Option<ListOnDisk>,
    pub(super) images: Option<ListOnDisk>,
    pub(super) container_stats: Option<u64>,
    pub(super) sandbox_stats: Option<u64>,
    pub(super) facts: HashMap<String, u64>,
    /// Of what filtered replies showed.
    pub(super) seen: u64,
    /// Whether the instance was declared empty, and the disk has nothing newer of it.
    pub(super) declared_empty: bool,
}

/// A list on the disk.
#[derive(Debug)]
pub(super) struct ListOnDisk {
    prints: Prints,
    /// [`ListBytes::id`] of the list that it is.
    id: u64,
}

/// What a record says of stats and periodic replies, which never say the same twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Minor {
    /// They are compared too.
    Compared,
    /// They stay as they are on the disk.
    Left,
}

impl OnDisk {
    /// Notes that a change in the journal made the list of images unknown.
    pub(super) fn forget_images(&mut self) {
        self.images = None;
    }
}

impl ListOnDisk {
    /// Returns what turns the list of `slot` into `list`, and notes that it is done; `None` if they say the
    /// same. A list that was compared before is not read.
    pub(super) fn advance(slot: &mut Option<Self>, kind: ListKind, list: &ListBytes) -> Option<ListDelta> {
        if slot.as_ref().is_some_and(|disk| disk.id == list.id) {
            return None;
        }
        let between = ListDelta::between(kind, slot.as_ref().map(|disk| &disk.prints), &list.bytes);
        if let Some((delta, prints)) = between {
            *slot = Some(Self { prints, id: list.id });
            return Some(delta);
        }
        if let Some(disk) = slot {
            disk.id = list.id;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_list_that_was_compared_is_not_read_again() {
        let list = |bytes: &'static [u8]| ListBytes::new(Bytes::from_static(bytes), true);
        let (one, equal, other) =
            (list(b"\x0a\x03\x0a\x01a"), list(b"\x0a\x03\x0a\x01a"), list(b"\x0a\x03\x0a\x01b"));
        let mut slot = None;
        let mut advance = |list: &ListBytes| ListOnDisk::advance(&mut slot, ListKind::Containers, list);
        assert!(advance(&one).is_some_and(|delta| delta.whole.is_some()));
        assert_eq!(advance(&equal), None);
        // If it were read, this would be a container that is gone and one that is new.
        assert_eq!(advance(&ListBytes { id: equal.id, ..other.clone() }), None);
        assert!(advance(&other).is_some_and(|delta| delta.removed == ["a"] && delta.items.len() == 1));
    }
}
