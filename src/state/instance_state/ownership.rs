//! Which IDs of a backend's lists are its own: those created there, and those that another instance owns.

use std::collections::HashSet;

use bytes::Bytes;

use super::InstanceState;
use crate::state::ListKind;
use crate::state::changes::Op;
use crate::state::list_bytes::retain_ids;

impl InstanceState {
    /// Tells whether this ID was created here, through crimux.
    pub fn has_created(&self, id: &str) -> bool {
        self.lock().created.contains(id)
    }

    /// Tells whether this ID is in the last-known lists.
    pub fn has_id(&self, id: &str) -> bool {
        self.lock().has_id(id)
    }

    /// Returns all IDs in the last-known lists, also those that another instance owns.
    pub fn all_ids(&self) -> HashSet<Box<str>> {
        self.lock().all_ids()
    }

    /// Tells whether the owners of the newest list of `kind` were learnt when the map of owners had this
    /// version, so that an equal list teaches nothing. False for lists that name no owners.
    pub fn is_learnt_at(&self, kind: ListKind, version: u64) -> bool {
        self.lock().learnt_at.get_mut(kind).is_some_and(|at| *at == Some(version))
    }

    /// Records the version of the map of owners at which the newest list of `kind` was learnt from; `None`
    /// makes the next list be learnt from, though it is equal.
    pub fn set_learnt_at(&self, kind: ListKind, version: Option<u64>) {
        if let Some(at) = self.lock().learnt_at.get_mut(kind) {
            *at = version;
        }
    }

    /// Tells whether it lists this ID while another instance owns it.
    pub fn is_foreign(&self, id: &str) -> bool {
        self.lock().foreign.contains(id)
    }

    /// Returns the IDs that it lists and another instance owns.
    pub fn foreign(&self) -> Vec<Box<str>> {
        self.lock().foreign.iter().cloned().collect()
    }

    /// Returns how many IDs it lists that another instance owns.
    pub fn count_foreign(&self) -> usize {
        self.lock().foreign.len()
    }

    /// Records that another instance owns this ID, which is listed here too. Returns false if that was
    /// recorded already.
    pub fn mark_foreign(&self, id: &str) -> bool {
        let news = !self.lock().foreign.contains(id);
        if news {
            self.change(vec![Op::Foreign(id.to_owned())]);
        }
        news
    }

    /// Records that this ID is not foreign any more: it is owned here, or is not listed here.
    pub fn clear_foreign(&self, id: &str) {
        if self.lock().foreign.contains(id) {
            self.change(vec![Op::ForeignCleared(id.to_owned())]);
        }
    }

    /// Removes the items that another instance owns from a list of `kind`.
    pub fn without_foreign(&self, kind: ListKind, list: Bytes) -> Bytes {
        let state = self.lock();
        if state.foreign.is_empty() || kind == ListKind::Images {
            return list;
        }
        retain_ids(kind, &list, |id| !state.foreign.contains(id))
    }
}
