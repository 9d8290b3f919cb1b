//! Image filesystems: the default backend's first, one entry for each mountpoint, only what is on this node.
//! If the default backend has no image filesystem, the list is empty: the filesystem of another backend must
//! never come first.
//!
//! kubelet takes the first entry for the node's image filesystem (`stats/cri_stats_provider.go ImageFsStats`)
//! and calls stat(2) on every path of the list, so a path of another machine would break eviction.

use std::collections::HashSet;

use bytes::{Bytes, BytesMut};

use crate::cri::{field, field_path};
use crate::merge::BackendItems;
use crate::wire;

/// The image filesystems; kubelet takes the first one.
const IMAGES: u32 = field!(ImageFsInfoResponse.image_filesystems);

pub(super) fn merge(parts: &[BackendItems<'_>]) -> Bytes {
    let mut out = BytesMut::new();
    let local = |default: bool| parts.iter().filter(move |part| part.local && part.default == default);
    let mut seen = HashSet::new();
    let has_one = |part: &&BackendItems<'_>| wire::has_path(part.items, &[IMAGES]).unwrap_or(false);
    let others = local(false).filter(|_| local(true).next().is_none_or(|default| has_one(&default)));
    for part in local(true).chain(others) {
        for field in wire::fields(part.items).flatten() {
            let mountpoint = field
                .bytes()
                .ok()
                .and_then(|item| wire::peek_str(item, &field_path!(FilesystemUsage.fs_id.mountpoint)).ok());
            if mountpoint.is_none_or(|mountpoint| seen.insert((field.number, mountpoint))) {
                out.extend_from_slice(field.raw);
            }
        }
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::cri::{FilesystemIdentifier, FilesystemUsage, ImageFsInfoResponse};

    fn usage(mountpoint: &str) -> FilesystemUsage {
        let fs_id = Some(FilesystemIdentifier { mountpoint: mountpoint.to_owned() });
        FilesystemUsage { timestamp: 7, fs_id, ..FilesystemUsage::default() }
    }

    fn info(images: &[&str], containers: &[&str]) -> Bytes {
        let usages = |mountpoints: &[&str]| mountpoints.iter().map(|mountpoint| usage(mountpoint)).collect();
        let info = ImageFsInfoResponse {
            image_filesystems: usages(images),
            container_filesystems: usages(containers),
        };
        info.encode_to_vec().into()
    }

    fn mountpoints(usages: &[FilesystemUsage]) -> Vec<&str> {
        usages.iter().filter_map(|usage| Some(usage.fs_id.as_ref()?.mountpoint.as_str())).collect()
    }

    #[test]
    fn the_default_comes_first_each_path_once_and_only_what_is_on_this_node() {
        let infos = [info(&["/b"], &["/b"]), info(&["/a", "/b"], &["/c"]), info(&["/remote"], &[])];
        let part = |index: usize| BackendItems {
            items: &infos[index],
            default: index == 1,
            local: index != 2,
            live: true,
        };
        let merged = ImageFsInfoResponse::decode(merge(&[part(0), part(1), part(2)])).expect("an info");
        assert_eq!(mountpoints(&merged.image_filesystems), ["/a", "/b"]);
        assert_eq!(mountpoints(&merged.container_filesystems), ["/c", "/b"]);
        assert_eq!(merged.image_filesystems[0], usage("/a"));
        let empty = Bytes::new();
        let default = BackendItems { items: &empty, default: true, local: true, live: true };
        assert_eq!(merge(&[part(0), default]), empty, "no other backend's filesystem comes first");
    }
}
