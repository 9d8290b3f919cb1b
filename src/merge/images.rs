//! Image lists: one entry for each image ID, however many stores hold it.
//!
//! Tags and digests are united and the size is that of the largest copy (kubelet keys by ID and would take
//! the last entry for the whole). An image is pinned if a local backend pins it, or if only backends have
//! it that are remote or did not answer: kubelet's image collector counts what it removes as freed on this
//! node's disk, and a removal that fails is an error of the collection (`images/image_gc_manager.go
//! freeSpace`). Everything else, unknown fields and `spec.runtime_handler` included, is taken from the
//! first store that lists the image: changed fields are appended to its bytes, and the last occurrence of a
//! field wins.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};

use crate::cri::{LIST_ITEMS, field};
use crate::merge::BackendItems;
use crate::wire::{self, Value, WireError};

const ID: u32 = field!(Image.id);
const TAGS: u32 = field!(Image.repo_tags);
const DIGESTS: u32 = field!(Image.repo_digests);
const SIZE: u32 = field!(Image.size);
const PINNED: u32 = field!(Image.pinned);

/// One entry of the merged list: the fields in which stores can differ.
struct MergedImage<'a> {
    item: &'a [u8],
    /// Tags and digests, with their field numbers.
    names: Vec<(u32, &'a [u8])>,
    size: u64,
    /// Whether the first store pins it.
    listed_as_pinned: bool,
    /// Whether a local store pins it.
    pinned: bool,
    /// Whether a local store that answered this call has it.
    removable: bool,
    /// Encoded fields to append to `item`.
    appended: BytesMut,
}

pub(super) fn merge(parts: &[BackendItems<'_>]) -> Bytes {
    let mut index_by_id: HashMap<&[u8], usize> = HashMap::new();
    let mut merged: Vec<MergedImage<'_>> = Vec::new();
    for part in parts {
        for item in wire::items(part.items, LIST_ITEMS).flatten() {
            let Ok((id, mut entry)) = parse(item) else { continue };
            entry.pinned = entry.listed_as_pinned && part.local;
            entry.removable = part.local && part.live;
            if let Some(&index) = index_by_id.get(id) {
                merged[index].merge(&entry);
                continue;
            }
            index_by_id.insert(id, merged.len());
            merged.push(entry);
        }
    }
    let mut out = BytesMut::with_capacity(parts.iter().map(|part| part.items.len()).sum());
    for mut entry in merged {
        let pinned = entry.pinned || !entry.removable;
        if pinned != entry.listed_as_pinned {
            wire::put_varint(&mut entry.appended, PINNED, u64::from(pinned));
        }
        wire::put_header(&mut out, LIST_ITEMS, entry.item.len() + entry.appended.len());
        out.extend_from_slice(entry.item);
        out.extend_from_slice(&entry.appended);
    }
    out.freeze()
}

fn parse(item: &[u8]) -> Result<(&[u8], MergedImage<'_>), WireError> {
    let mut id: &[u8] = &[];
    let mut entry = MergedImage {
        item,
        names: Vec::new(),
        size: 0,
        listed_as_pinned: false,
        pinned: false,
        removable: false,
        appended: BytesMut::new(),
    };
    for field in wire::fields(item) {
        let field = field?;
        match (field.number, field.value) {
            (ID, Value::Bytes(bytes)) => id = bytes,
            (TAGS | DIGESTS, Value::Bytes(bytes)) => entry.names.push((field.number, bytes)),
            (SIZE, Value::Varint(size)) => entry.size = size,
            (PINNED, Value::Varint(pinned)) => entry.listed_as_pinned = pinned != 0,
            _ => {}
        }
    }
    Ok((id, entry))
}

impl<'a> MergedImage<'a> {
    fn merge(&mut self, other: &MergedImage<'a>) {
        for &(number, name) in &other.names {
            if !self.names.contains(&(number, name)) {
                self.names.push((number, name));
                wire::put_bytes(&mut self.appended, number, name);
            }
        }
        if other.size > self.size {
            self.size = other.size;
            wire::put_varint(&mut self.appended, SIZE, other.size);
        }
        self.pinned |= other.pinned;
        self.removable |= other.removable;
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::cri::{Image, ImageSpec, ListImagesResponse};
    use crate::method::List;

    fn image(id: &str, tag: &str, size: u64, pinned: bool) -> Image {
        let spec = ImageSpec { runtime_handler: format!("h-{tag}"), ..Default::default() };
        Image {
            id: id.into(),
            repo_tags: vec![tag.into()],
            size,
            pinned,
            spec: Some(spec),
            ..Default::default()
        }
    }

    fn list(images: &[Image]) -> Bytes {
        ListImagesResponse { images: images.to_vec() }.encode_to_vec().into()
    }

    fn part(items: &Bytes, local: bool, live: bool) -> BackendItems<'_> {
        BackendItems { items, default: true, local, live }
    }

    fn merged(parts: &[BackendItems<'_>]) -> Vec<Image> {
        let bytes = crate::merge::merge(List::Images, parts).concat();
        ListImagesResponse::decode(&bytes[..]).unwrap().images
    }

    #[test]
    fn one_image_in_two_stores_is_one_entry_with_all_names_and_the_largest_size() {
        let a = list(&[image("i1", "x:1", 5, false), image("i2", "y:1", 1, false)]);
        let b = list(&[image("i1", "x:2", 9, true), image("i1", "x:1", 2, false)]);
        let images = merged(&[part(&a, true, true), part(&b, true, true)]);
        assert_eq!(images.len(), 2);
        assert_eq!(images[0].repo_tags, ["x:1", "x:2"]);
        assert_eq!((images[0].size, images[0].pinned), (9, true));
        assert_eq!(images[0].spec.as_ref().unwrap().runtime_handler, "h-x:1");
        assert_eq!(images[1], image("i2", "y:1", 1, false));
    }

    #[test]
    fn an_image_is_pinned_if_a_local_store_pins_it_or_if_only_remote_or_silent_ones_have_it() {
        let (free, held) = (list(&[image("i1", "x:1", 5, false)]), list(&[image("i1", "x:1", 5, true)]));
        for (local, live, pinned) in
            [(true, true, false), (true, false, true), (false, true, true), (false, false, true)]
        {
            assert_eq!(merged(&[part(&free, local, live)])[0].pinned, pinned, "{local} {live}");
            for both in [
                [part(&free, true, true), part(&free, local, live)],
                [part(&free, local, live), part(&free, true, true)],
            ] {
                assert!(
                    !merged(&both)[0].pinned,
                    "what this node's store has can be collected: {local} {live}"
                );
            }
            for both in [
                [part(&free, true, true), part(&held, local, live)],
                [part(&held, local, live), part(&free, true, true)],
            ] {
                assert_eq!(merged(&both)[0].pinned, local, "only local pins count: {local} {live}");
            }
        }
    }

    #[test]
    fn what_only_one_local_store_says_passes_with_its_very_bytes() {
        let mut item = image("i1", "x:1", 5, false).encode_to_vec();
        wire::put_bytes(&mut item, 99, b"of tomorrow");
        let mut items = BytesMut::new();
        wire::put_bytes(&mut items, 1, &item);
        let (items, none) = (items.freeze(), Bytes::new());
        let merge = |parts: &[BackendItems<'_>]| crate::merge::merge(List::Images, parts).concat();
        assert_eq!(merge(&[part(&items, true, true)]), items);
        assert_eq!(merge(&[part(&none, true, true), part(&items, true, true)]), items);
        let other = list(&[image("i1", "x:2", 9, true)]);
        let united = merge(&[part(&items, true, true), part(&other, true, true)]);
        assert!(united.windows(item.len()).any(|bytes| bytes == item), "unknown fields survive a union");
    }
}
