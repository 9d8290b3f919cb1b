//! Leaves what several backends list to one of them.
//!
//! The owner serves it. An owner that does not contribute to a list, because it joins or became the owner
//! while the list was made, cannot: then another backend that lists the ID serves it, so that no list lacks
//! it.

use std::collections::HashSet;

use bytes::Bytes;

use super::Contribution;
use crate::backend::Backend;
use crate::cri::LIST_ITEMS;
use crate::method::List;
use crate::router::Owners;
use crate::state::{ListKind, item_id, retain_ids};
use crate::wire;

/// Returns the kind by which the items of a list name a sandbox or container; `None` if they name neither.
fn kind_of(list: List) -> Option<ListKind> {
    match ListKind::of(list) {
        Some(ListKind::Images) => None,
        // They begin with the ID of their sandbox, as sandboxes do.
        None if list == List::SandboxMetrics => Some(ListKind::Sandboxes),
        kind => kind,
    }
}

/// Leaves out of a backend's items what another backend owns.
pub(in crate::proxy) fn owned_items(backend: &Backend, list: List, items: Bytes) -> Bytes {
    match kind_of(list) {
        Some(kind) => backend.state.without_foreign(kind, items),
        None => items,
    }
}

/// Leaves out of each contribution what another one serves.
///
/// | the owner of an ID that another backend lists too | served by |
/// |---|---|
/// | contributes it, live or last-known | the owner |
/// | contributes live items without it | nobody: it has ended |
/// | contributes last-known items without it | the other backend |
/// | contributes nothing | the other backend |
pub(super) fn leave_to_one(owners: &Owners, list: List, parts: &mut [Contribution]) {
    let Some(kind) = kind_of(list) else { return };
    for part in parts.iter_mut() {
        // `foreign` has what was foreign when the items were taken; this adds what has become foreign while
        // the other backends were called.
        part.foreign.extend(part.backend.state.foreign());
        if part.backend.state.is_declared_empty() {
            let others = |id: &&str| owners.owner_of(id).is_some_and(|owner| owner != part.backend.id);
            part.foreign.extend(ids(kind, &part.items).into_iter().filter(others).map(Box::from));
        }
    }
    let contested: HashSet<_> = parts.iter().flat_map(|part| part.foreign.iter().cloned()).collect();
    if contested.is_empty() {
        return;
    }
    // What its owner serves, or has ended.
    let mut served: HashSet<Box<str>> = HashSet::new();
    for part in parts.iter() {
        let own = contested.iter().filter(|id| owners.is_owned_by(id, part.backend.id));
        if part.live {
            served.extend(own.cloned());
        } else {
            let contributed = ids(kind, &part.items);
            served.extend(own.filter(|id| contributed.contains(&***id)).cloned());
        }
    }
    for part in parts.iter_mut().filter(|part| !part.foreign.is_empty()) {
        let foreign: HashSet<&str> = part.foreign.iter().map(AsRef::as_ref).collect();
        part.items = retain_ids(kind, &part.items, |id| {
            if !foreign.contains(id) || owners.is_owned_by(id, part.backend.id) {
                return true;
            }
            // Of several backends that may serve it instead of its owner, the first one does.
            served.insert(id.into())
        });
    }
}

fn ids(kind: ListKind, items: &Bytes) -> HashSet<&str> {
    wire::items(items, LIST_ITEMS).flatten().filter_map(|item| item_id(kind, item).ok()).collect()
}
