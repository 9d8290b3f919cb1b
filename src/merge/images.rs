//! Image lists: one entry for each image ID, however many stores hold it.
//!
//! Tags and digests are united and the size is that of the largest copy (kubelet keys by ID and would take the
//! last entry for the whole). An image is pinned if a local backend pins it, and also if any copy is on a
//! backend that is not local or did not answer: kubelet's image collector counts what it removes as room won
//! on this node's disk, and a removal that fails stops it (`images/image_gc_manager.go freeSpace`).

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use prost::Message;

use crate::cri::Image;
use crate::merge::Part;
use crate::wire;

pub(super) fn merge(parts: &[Part<'_>]) -> Bytes {
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut merged: Vec<Image> = Vec::new();
    for part in parts {
        for item in wire::items(part.items, 1).flatten() {
            let Ok(mut image) = Image::decode(item) else { continue };
            image.pinned |= !part.local || !part.live;
            if let Some(&place) = places.get(&image.id) {
                unite(&mut merged[place], image)
            } else {
                places.insert(image.id.clone(), merged.len());
                merged.push(image);
            }
        }
    }
    let mut out = BytesMut::with_capacity(parts.iter().map(|part| part.items.len()).sum());
    for image in merged {
        wire::put_bytes(&mut out, 1, &image.encode_to_vec());
    }
    out.freeze()
}

fn unite(image: &mut Image, other: Image) {
    for (own, theirs) in
        [(&mut image.repo_tags, other.repo_tags), (&mut image.repo_digests, other.repo_digests)]
    {
        for name in theirs {
            if !own.contains(&name) {
                own.push(name);
            }
        }
    }
    image.size = image.size.max(other.size);
    image.pinned |= other.pinned;
}
