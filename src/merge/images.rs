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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::ListImagesResponse;

    fn image(id: &str, tags: &[&str], size: u64, pinned: bool) -> Image {
        let repo_tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        Image { id: id.to_owned(), repo_tags, size, pinned, ..Image::default() }
    }

    /// Merges lists, each with whether its backend is local and live.
    fn merged(lists: &[(bool, bool, Vec<Image>)]) -> Vec<Image> {
        let encode =
            |images: &Vec<Image>| Bytes::from(ListImagesResponse { images: images.clone() }.encode_to_vec());
        let encoded: Vec<_> = lists.iter().map(|(_, _, images)| encode(images)).collect();
        let parts = lists.iter().zip(&encoded);
        let parts =
            parts.map(|((local, live, _), items)| Part { items, default: false, local: *local, live: *live });
        let list = merge(&parts.collect::<Vec<_>>());
        ListImagesResponse::decode(list).expect("a list of images").images
    }

    #[test]
    fn an_image_in_two_stores_is_one_with_all_names_and_the_larger_size() {
        let images = merged(&[
            (true, true, vec![image("1", &["x:1", "x:2"], 5, false), image("2", &[], 1, false)]),
            (true, true, vec![image("1", &["x:2", "y:1"], 9, false)]),
        ]);
        assert_eq!(images, [image("1", &["x:1", "x:2", "y:1"], 9, false), image("2", &[], 1, false)]);
    }

    #[test]
    fn what_cannot_be_won_back_on_this_nodes_disk_is_pinned() {
        let pinned = |local, live, pinned| {
            let other = (true, true, vec![image("1", &[], 1, false)]);
            merged(&[other, (local, live, vec![image("1", &[], 1, pinned)])])[0].pinned
        };
        assert!(!pinned(true, true, false));
        assert!(pinned(true, true, true), "a local backend pins it");
        assert!(pinned(false, true, false), "a copy is on another machine");
        assert!(pinned(true, false, false), "a backend with a copy cannot remove it now");
    }

    #[test]
    fn user_and_annotations_of_the_first_copy_stay() {
        let mut first = image("1", &[], 1, false);
        first.username = "nobody".to_owned();
        let images =
            merged(&[(true, true, vec![first.clone()]), (true, true, vec![image("1", &[], 1, false)])]);
        assert_eq!(images, [first]);
    }
}
