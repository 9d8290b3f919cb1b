//! Image filesystems: the default backend's first, one entry for each mountpoint, only what is on this node.
//!
//! kubelet takes the first entry for the node's image filesystem (`stats/cri_stats_provider.go ImageFsStats`)
//! and stats every path it is given, so a path of another machine would break eviction.

use std::collections::HashSet;

use bytes::{Bytes, BytesMut};

use crate::merge::Part;
use crate::wire;

pub(super) fn merge(parts: &[Part<'_>]) -> Bytes {
    let mut out = BytesMut::new();
    let local = |default: bool| parts.iter().filter(move |part| part.local && part.default == default);
    let mut seen = HashSet::new();
    for part in local(true).chain(local(false)) {
        for field in wire::fields(part.items).flatten() {
            let mountpoint = field.bytes().ok().and_then(|item| wire::peek_str(item, &[2, 1]).ok());
            if mountpoint.is_none_or(|mountpoint| seen.insert((field.number, mountpoint))) {
                out.extend_from_slice(field.raw);
            }
        }
    }
    out.freeze()
}
