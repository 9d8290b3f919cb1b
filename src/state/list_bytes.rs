//! The bytes of a list: kept in the buffer in which they arrived, and never parsed as a whole.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use foldhash::HashSet;

use super::filter::item_id;
use super::{ListKind, Revision};
use crate::cri::LIST_ITEMS;
use crate::wire;

/// The reply to a list call without a filter.
#[derive(Debug)]
pub(super) struct FullList {
    pub(super) kind: ListKind,
    /// The revision at which it was requested.
    pub(super) requested: Revision,
    pub(super) received: Instant,
    pub(super) encoded: Bytes,
}

/// The bytes of a list, and whether their buffer holds nothing else.
#[derive(Debug, Clone)]
pub(super) struct ListBytes {
    pub(super) bytes: Bytes,
    pub(super) is_compact: bool,
    /// Of this process, and shared by clones alone: two with the same one have the same bytes.
    pub(super) id: u64,
}

impl ListBytes {
    pub(super) fn new(bytes: Bytes, is_compact: bool) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        Self { bytes, is_compact, id: NEXT_ID.fetch_add(1, Ordering::Relaxed) }
    }

    /// Keeps the old buffer if the new one has the same bytes.
    pub(super) fn replacing(old: Option<&Self>, reply: Bytes) -> Self {
        match old {
            Some(old) if is_same_slice(&old.bytes, &reply) || old.bytes == reply => old.clone(),
            _ => Self::new(reply, false),
        }
    }

    /// Returns a list without items.
    pub(super) fn empty() -> Self {
        Self::new(Bytes::new(), true)
    }
}

/// Tells whether both are the same part of the same buffer.
pub(super) fn is_same_slice(one: &Bytes, other: &Bytes) -> bool {
    one.as_ptr() == other.as_ptr() && one.len() == other.len()
}

/// Returns the IDs of the items of a list.
pub(super) fn ids(kind: ListKind, list: &[u8]) -> HashSet<&str> {
    wire::items(list, LIST_ITEMS).map_while(|item| item_id(kind, item.ok()?).ok()).collect()
}

/// Copies the items that `keep` lets through; shares the list if it is all of them.
pub(super) fn retain(list: &Bytes, mut keep: impl FnMut(&[u8]) -> bool) -> Bytes {
    let mut out = Vec::new();
    for field in wire::fields(list).map_while(Result::ok).filter(|field| field.number == LIST_ITEMS) {
        if field.bytes().is_ok_and(&mut keep) {
            out.extend_from_slice(field.raw);
        }
    }
    if out.len() == list.len() { list.clone() } else { Bytes::from(out) }
}

/// Returns a list of `kind` with the items whose ID is to be kept; those without a readable ID are not.
pub fn retain_ids(kind: ListKind, list: &Bytes, mut keep: impl FnMut(&str) -> bool) -> Bytes {
    retain(list, |item| item_id(kind, item).is_ok_and(&mut keep))
}
