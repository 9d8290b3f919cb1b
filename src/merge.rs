//! Merges the replies of several backends into one.
//!
//! Every list of the CRI API is repeated field 1, and the concatenation of two encoded messages is the
//! message with both lists: most merges copy nothing. Images and filesystems are decoded, because one image
//! may be in two stores and because kubelet gives the order of filesystems a meaning. No I/O. Source: the
//! protobuf encoding specification, "Merging".

use bytes::Bytes;

use crate::method::List;

mod filesystems;
mod images;
pub mod metrics;
pub mod required;
pub mod stats;
pub mod status;

/// What one backend contributes to a list.
#[derive(Debug, Clone, Copy)]
pub struct BackendItems<'a> {
    /// Encoded items of field 1.
    pub items: &'a Bytes,
    /// Whether it is the default backend.
    pub default: bool,
    /// Whether its files and images are on this node.
    pub local: bool,
    /// Whether the backend answered this call; otherwise these are its last-known items.
    pub live: bool,
}

/// Merges the parts; the result is one encoded message, in pieces.
pub fn merge(list: List, parts: &[BackendItems<'_>]) -> Vec<Bytes> {
    match list {
        List::Images if parts.len() > 1 || parts.iter().any(|part| !part.local || !part.live) => {
            vec![images::merge(parts)]
        }
        List::Filesystems => vec![filesystems::merge(parts)],
        List::ContainerStats | List::SandboxStats => parts
            .iter()
            .map(|part| if part.local { part.items.clone() } else { without_local_paths(list, part) })
            .collect(),
        _ => parts.iter().map(|part| part.items.clone()).collect(),
    }
}

/// Returns the stats of a backend on another host without the paths that kubelet would look for on this
/// node; empty if they cannot be parsed, because they may name such a path.
fn without_local_paths(list: List, part: &BackendItems<'_>) -> Bytes {
    stats::without_filesystems(list, part.items).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::cri::{Container, ListContainersResponse};

    fn list(ids: &[&str]) -> Bytes {
        let container = |id: &&str| Container { id: (*id).to_owned(), ..Container::default() };
        ListContainersResponse { containers: ids.iter().map(container).collect() }.encode_to_vec().into()
    }

    #[test]
    fn joined_lists_are_the_list_of_all_items_and_nothing_is_copied() {
        let lists = [list(&["a", "b"]), list(&[]), list(&["c"])];
        let part = |items| BackendItems { items, default: false, local: true, live: true };
        let merged = merge(List::Containers, &lists.each_ref().map(part));
        let joined = ListContainersResponse::decode(merged.concat().as_slice()).expect("a list");
        let ids: Vec<_> = joined.containers.iter().map(|container| container.id.as_str()).collect();
        assert_eq!(ids, ["a", "b", "c"]);
        assert_eq!(merged[0].as_ptr(), lists[0].as_ptr());
    }

    #[test]
    fn one_local_list_of_images_is_passed_as_it_is() {
        let items = Bytes::from_static(b"\x0a\x03\xf2\x3e\x00");
        let part = BackendItems { items: &items, default: true, local: true, live: true };
        assert_eq!(merge(List::Images, &[part]), std::slice::from_ref(&items));
    }
}
