//! Hashes encoded messages so that the order of their fields does not matter.
//!
//! Runtimes written in Go list from maps and encode maps in random order, so the same list has different
//! bytes each time. The fingerprint keeps crimux from writing an unchanged list to the disk every second. It
//! must never decide what is served.

use std::hash::{BuildHasher, Hash};
use std::sync::LazyLock;

use foldhash::quality::RandomState;

use crate::wire::{self, Field, Value};

/// Fingerprints are of one process: a backend cannot know two lists with the same one.
static STATE: LazyLock<RandomState> = LazyLock::new(RandomState::default);

/// How many levels of messages are order-independent: list, item, `ImageSpec` or metadata, map entry.
const DEPTH: u32 = 4;

/// Returns a fingerprint that is the same for messages which differ in the order of their fields only.
pub(super) fn fingerprint(message: &[u8]) -> u64 {
    unordered_hash(message, DEPTH).unwrap_or_else(|| hash((0u32, message)))
}

/// Returns the fingerprint of an item of a list without its fields of this number.
pub(super) fn fingerprint_without(item: &[u8], number: u32) -> u64 {
    let mut sum = 0u64;
    for field in wire::fields(item) {
        match field {
            Ok(field) if field.number == number => {}
            Ok(field) => sum = sum.wrapping_add(of_field(&field, DEPTH - 1)),
            Err(_) => return hash((0u32, item)),
        }
    }
    sum
}

fn unordered_hash(message: &[u8], depth: u32) -> Option<u64> {
    let mut sum = 0u64;
    for field in wire::fields(message) {
        sum = sum.wrapping_add(of_field(&field.ok()?, depth));
    }
    Some(sum)
}

fn of_field(field: &Field<'_>, depth: u32) -> u64 {
    let inner = match field.value {
        Value::Bytes(bytes) if depth > 1 && !bytes.is_empty() => unordered_hash(bytes, depth - 1),
        _ => None,
    };
    match inner {
        Some(inner) => hash((field.number, inner)),
        None => hash((field.number, field.raw)),
    }
}

fn hash(value: impl Hash) -> u64 {
    STATE.hash_one(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(fields: &[(u32, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, bytes) in fields {
            wire::put_bytes(&mut out, *number, bytes);
        }
        out
    }

    #[test]
    fn the_order_of_items_and_of_map_entries_does_not_count() {
        let (a, b) = (message(&[(1, b"app"), (2, b"web")]), message(&[(1, b"tier"), (2, b"db")]));
        let item = message(&[(1, b"id"), (5, &a), (5, &b)]);
        let turned = message(&[(5, &b), (1, b"id"), (5, &a)]);
        let other = message(&[(1, b"other")]);
        assert_eq!(
            fingerprint(&message(&[(1, &item), (1, &other)])),
            fingerprint(&message(&[(1, &other), (1, &turned)]))
        );
    }

    #[test]
    fn what_a_message_says_counts() {
        let item = message(&[(1, b"id")]);
        let list = fingerprint(&message(&[(1, &item)]));
        assert_ne!(list, fingerprint(&[]));
        assert_ne!(list, fingerprint(&message(&[(1, &item), (1, &item)])));
        assert_ne!(list, fingerprint(&message(&[(1, &message(&[(1, b"ie")]))])));
        assert_ne!(list, fingerprint(&message(&[(1, &message(&[(2, b"id")]))])));
    }
}
