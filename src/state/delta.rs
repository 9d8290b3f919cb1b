//! The differences between a list on the disk and the one that is to be there.
//!
//! The writer keeps a fingerprint of each item on the disk, not the item: a list of a thousand containers in
//! which one changed costs that item in the journal, or only its state. This file must not know when anything
//! is written, nor in which file.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{Read, Write};

use bytes::{Bytes, BytesMut};
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use prost::Message;

use super::ListKind;
use super::changes::Change;
use super::file::{SavedReply, SavedStatus};
use super::fingerprint::{fingerprint, fingerprint_without};
use super::items::enum_value;
use crate::cri::{ITEM_ID, LIST_ITEMS, field};
use crate::wire::{self, WireError};

/// What changed in the state of one instance, beside the changes that calls recorded.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Delta {
    /// The sequence number of the snapshot or delta to which this one is to be applied.
    #[prost(uint64, tag = "1")]
    pub(super) follows: u64,
    /// Its own sequence number.
    #[prost(uint64, tag = "2")]
    pub(super) seq: u64,
    /// Seconds since the Unix epoch; zero for never.
    #[prost(uint64, tag = "3")]
    pub(super) listed_at: u64,
    #[prost(message, optional, tag = "4")]
    pub(super) pair: Option<PairDelta>,
    #[prost(message, optional, tag = "5")]
    pub(super) images: Option<ImagesDelta>,
    #[prost(bytes = "bytes", optional, tag = "6")]
    pub(super) container_stats: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "7")]
    pub(super) sandbox_stats: Option<Bytes>,
    /// What filtered replies showed, and the lists do not.
    #[prost(message, repeated, tag = "8")]
    pub(super) seen: Vec<Change>,
    #[prost(message, repeated, tag = "9")]
    pub(super) statuses: Vec<SavedStatus>,
    /// The statuses that are no longer known, without a reply.
    #[prost(message, repeated, tag = "10")]
    pub(super) dropped_statuses: Vec<SavedStatus>,
    #[prost(message, repeated, tag = "11")]
    pub(super) replies: Vec<SavedReply>,
}

/// The next pair of sandbox and container list.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PairDelta {
    /// All changes of sandboxes up to this sequence number show in the pair.
    #[prost(uint64, tag = "1")]
    pub(super) sandboxes_at: u64,
    /// All changes of containers up to this sequence number show in the pair.
    #[prost(uint64, tag = "2")]
    pub(super) containers_at: u64,
    #[prost(message, optional, tag = "3")]
    pub(super) sandboxes: Option<ListDelta>,
    #[prost(message, optional, tag = "4")]
    pub(super) containers: Option<ListDelta>,
}

/// The next list of images.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ImagesDelta {
    /// All removals up to this sequence number show in the list.
    #[prost(uint64, tag = "1")]
    pub(super) at: u64,
    #[prost(message, optional, tag = "2")]
    pub(super) list: Option<ListDelta>,
}

/// What changed in one list.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ListDelta {
    /// Items that are new, or differ in more than their state.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub(super) items: Vec<Bytes>,
    /// The IDs of items that are gone.
    #[prost(string, repeated, tag = "2")]
    pub(super) removed: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    pub(super) states: Vec<NewState>,
    /// The list itself, in place of the above.
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub(super) whole: Option<Bytes>,
}

/// An item of which only the state changed.
#[derive(Clone, PartialEq, Message)]
pub(super) struct NewState {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(int32, tag = "2")]
    pub(super) state: i32,
}

/// The fingerprints of a list.
#[derive(Debug)]
pub(super) struct Prints {
    items: HashMap<Box<str>, Print, foldhash::fast::RandomState>,
    /// The fingerprint of all of a list that has an ID twice.
    ambiguous: Option<u64>,
}

/// The fingerprint of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Print {
    /// Of all but the state.
    rest: u64,
    state: i32,
}

impl Delta {
    /// Returns it compressed: runtimes repeat the same labels in every item and status.
    pub(super) fn encode_compressed(&self) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
        encoder
            .write_all(&self.encode_to_vec())
            .and_then(|()| encoder.finish())
            .expect("writing to a Vec does not fail")
    }

    /// Reads what [`Delta::encode_compressed`] returned; `None` if that cannot be read.
    pub(super) fn decode_compressed(compressed: &[u8]) -> Option<Self> {
        let mut encoded = Vec::new();
        DeflateDecoder::new(compressed).read_to_end(&mut encoded).ok()?;
        Self::decode(Bytes::from(encoded)).ok()
    }

    /// Tells whether it says nothing.
    pub(super) fn is_empty(&self) -> bool {
        let Self { follows, seq, listed_at, .. } = *self;
        *self == Self { follows, seq, listed_at, ..Self::default() }
    }
}

impl Prints {
    /// Reads the list once, up to the first item that cannot be read.
    pub(super) fn new(kind: ListKind, list: &[u8]) -> Self {
        let mut prints = Self { items: HashMap::default(), ambiguous: None };
        for (id, item) in items(list) {
            match prints.items.entry(id.into()) {
                Entry::Vacant(vacant) => _ = vacant.insert(Print::new(kind, item)),
                Entry::Occupied(_) => prints.ambiguous = Some(fingerprint(list)),
            }
        }
        prints
    }
}

impl Print {
    fn new(kind: ListKind, item: &[u8]) -> Self {
        let Some(number) = state_field(kind) else { return Self { rest: fingerprint(item), state: 0 } };
        let state = enum_value(wire::peek_varint(item, &[number]).unwrap_or_default());
        Self { rest: fingerprint_without(item, number), state }
    }
}

impl ListDelta {
    /// Compares `list` with what is on the disk; `None` if that is the same. Without prints of it, the delta
    /// is the list itself.
    pub(super) fn between(kind: ListKind, disk: Option<&Prints>, list: &Bytes) -> Option<(Self, Prints)> {
        let prints = Prints::new(kind, list);
        let whole = || Self { whole: Some(list.clone()), ..Self::default() };
        let Some(disk) = disk else { return Some((whole(), prints)) };
        if disk.ambiguous.is_some() || prints.ambiguous.is_some() {
            return (disk.ambiguous != prints.ambiguous).then(|| (whole(), prints));
        }
        let mut delta = Self::default();
        for (id, item) in items(list) {
            let Some(print) = prints.items.get(id) else { continue };
            match disk.items.get(id) {
                Some(old) if old == print => {}
                Some(old) if old.rest == print.rest => {
                    delta.states.push(NewState { id: id.to_owned(), state: print.state });
                }
                _ => delta.items.push(list.slice_ref(item)),
            }
        }
        let removed = disk.items.keys().filter(|id| !prints.items.contains_key(*id));
        delta.removed = removed.map(ToString::to_string).collect();
        (delta != Self::default()).then_some((delta, prints))
    }

    /// Returns `base` with this applied.
    ///
    /// # Errors
    /// Whatever makes an item of this unreadable.
    pub(super) fn apply(self, kind: ListKind, base: &Bytes) -> Result<Bytes, WireError> {
        if let Some(whole) = self.whole {
            return Ok(Bytes::copy_from_slice(&whole));
        }
        let mut next: HashMap<&str, Option<Bytes>> =
            self.removed.iter().map(|id| (id.as_str(), None)).collect();
        for item in &self.items {
            next.insert(wire::peek_str(item, &[ITEM_ID])?, Some(item.clone()));
        }
        let states: HashMap<&str, i32> = self.states.iter().map(|new| (new.id.as_str(), new.state)).collect();
        let mut out = BytesMut::with_capacity(base.len() + 1024);
        for (id, item) in items(base) {
            match (next.remove(id), states.get(id), state_field(kind)) {
                (Some(None), ..) => {}
                (Some(Some(item)), ..) => wire::put_bytes(&mut out, LIST_ITEMS, &item),
                (None, Some(state), Some(number)) => {
                    wire::put_bytes(&mut out, LIST_ITEMS, &with_state(item, number, *state)?);
                }
                (None, ..) => wire::put_bytes(&mut out, LIST_ITEMS, item),
            }
        }
        // A HashMap has no order; the delta has.
        for item in &self.items {
            if next.remove(wire::peek_str(item, &[ITEM_ID])?).is_some() {
                wire::put_bytes(&mut out, LIST_ITEMS, item);
            }
        }
        Ok(Bytes::copy_from_slice(&out))
    }
}

fn with_state(item: &[u8], number: u32, state: i32) -> Result<Bytes, WireError> {
    let mut out = BytesMut::with_capacity(item.len() + 4);
    for field in wire::fields(item) {
        let field = field?;
        if field.number != number {
            out.extend_from_slice(field.raw);
        }
    }
    if state != 0 {
        wire::put_varint(&mut out, number, u64::from(state.cast_unsigned()));
    }
    Ok(out.freeze())
}

fn state_field(kind: ListKind) -> Option<u32> {
    match kind {
        ListKind::Sandboxes => Some(field!(PodSandbox.state)),
        ListKind::Containers => Some(field!(Container.state)),
        _ => None,
    }
}

fn items(list: &[u8]) -> impl Iterator<Item = (&str, &[u8])> {
    wire::items(list, LIST_ITEMS).map_while(|item| {
        let item = item.ok()?;
        Some((wire::peek_str(item, &[ITEM_ID]).ok()?, item))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cri;

    fn list(containers: &[(u8, i32, u8)]) -> Bytes {
        let container = |&(id, state, image): &(u8, i32, u8)| cri::Container {
            id: format!("c{id}"),
            state,
            image_ref: format!("image-{image}"),
            ..Default::default()
        };
        let containers = containers.iter().map(container).collect();
        cri::ListContainersResponse { containers }.encode_to_vec().into()
    }

    fn sorted(list: &[u8]) -> Vec<cri::Container> {
        let mut containers = cri::ListContainersResponse::decode(list).unwrap().containers;
        containers.sort_by_key(|item| (item.id.clone(), item.state, item.image_ref.clone()));
        containers
    }

    fn between(old: &Bytes, new: &Bytes) -> Option<ListDelta> {
        let prints = Prints::new(ListKind::Containers, old);
        ListDelta::between(ListKind::Containers, Some(&prints), new).map(|(delta, _)| delta)
    }

    #[test]
    fn a_container_that_exits_costs_its_id_and_state() {
        let (old, new) = (list(&[(1, 1, 0), (2, 1, 0)]), list(&[(2, 1, 0), (1, 2, 0)]));
        let states = vec![NewState { id: "c1".into(), state: 2 }];
        assert_eq!(between(&old, &new), Some(ListDelta { states, ..Default::default() }));
        assert_eq!(between(&old, &list(&[(2, 1, 0), (1, 1, 0)])), None, "the order does not count");
    }

    fn any_list(ids: u8) -> impl Strategy<Value = Bytes> {
        proptest::collection::vec((0..ids, 0..4, 0..2u8), 0..12).prop_map(|containers| list(&containers))
    }

    proptest! {
        #[test]
        fn a_delta_turns_one_list_into_the_other(
            (old, new) in prop_oneof![(any_list(4), any_list(4)), (any_list(99), any_list(99))]
        ) {
            let back = match between(&old, &new) {
                Some(delta) => delta.apply(ListKind::Containers, &old).unwrap(),
                None => old,
            };
            prop_assert_eq!(sorted(&back), sorted(&new));
        }
    }
}
