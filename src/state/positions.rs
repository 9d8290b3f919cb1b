//! Where the items of a list are, by their ID: one object is found without reading the others.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use bytes::Bytes;

use crate::cri::{ITEM_ID, LIST_ITEMS};
use crate::wire;

/// A list and the ranges of its items, by the hash of their ID; some 30 bytes an item.
#[derive(Debug)]
pub(super) struct Positions {
    list: Bytes,
    ranges: HashMap<u64, (u32, u32)>,
    hasher: RandomState,
}

impl Positions {
    /// Reads the list once, up to the first item that cannot be read.
    pub(super) fn new(list: Bytes) -> Self {
        let (mut ranges, hasher) = (HashMap::new(), RandomState::new());
        let start = list.as_ptr().addr();
        for item in wire::items(&list, LIST_ITEMS).map_while(Result::ok) {
            let Ok(id) = wire::peek_str(item, &[ITEM_ID]) else { break };
            let at = item.as_ptr().addr() - start;
            // A list has at most 256 MiB, or it was not read.
            if let (Ok(from), Ok(to)) = (u32::try_from(at), u32::try_from(at + item.len())) {
                ranges.entry(hasher.hash_one(id)).or_insert((from, to));
            }
        }
        Self { list, ranges, hasher }
    }

    /// Returns the first item with this ID.
    pub(super) fn item(&self, id: &str) -> Option<&[u8]> {
        let has_id = |item: &&[u8]| wire::peek_str(item, &[ITEM_ID]) == Ok(id);
        let (from, to) = *self.ranges.get(&self.hasher.hash_one(id))?;
        let found = self.list.get(from as usize..to as usize).filter(has_id);
        // Another item with the same hash came first.
        found.or_else(|| wire::items(&self.list, LIST_ITEMS).map_while(Result::ok).find(has_id))
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::cri;

    #[test]
    fn every_item_is_found_by_its_id_and_no_other() {
        let container = |id: &str| cri::Container { id: id.to_owned(), ..Default::default() };
        let ids: Vec<_> = (0..300).map(|number| format!("c{number}")).collect();
        let list = cri::ListContainersResponse { containers: ids.iter().map(|id| container(id)).collect() };
        let mut positions = Positions::new(list.encode_to_vec().into());
        for id in &ids {
            assert_eq!(positions.item(id), Some(&container(id).encode_to_vec()[..]), "{id}");
        }
        assert_eq!(positions.item("c300"), None);
        // As if their hashes were the same.
        let of_first = positions.ranges[&positions.hasher.hash_one("c0")];
        let hash = positions.hasher.hash_one("c7");
        positions.ranges.insert(hash, of_first);
        assert_eq!(positions.item("c7"), Some(&container("c7").encode_to_vec()[..]));
    }
}
