//! What of the state of one instance is on the disk. `known/deltas.rs` compares the state with it.

use std::collections::HashMap;

use super::delta::Prints;

/// Fingerprints of what is on the disk of one instance; those of the statuses are with the statuses.
#[derive(Debug, Default)]
pub(super) struct OnDisk {
    /// The sequence number of the last snapshot or delta.
    pub(super) seq: u64,
    pub(super) sandboxes: Option<Prints>,
    pub(super) containers: Option<Prints>,
    pub(super) images: Option<Prints>,
    pub(super) container_stats: Option<u64>,
    pub(super) sandbox_stats: Option<u64>,
    pub(super) facts: HashMap<String, u64>,
    /// Of what filtered replies showed.
    pub(super) seen: u64,
    /// Whether the instance was declared empty, and the disk has nothing newer of it.
    pub(super) declared_empty: bool,
}

/// What a record says of stats and periodic replies, which never say the same twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Minor {
    /// They are compared too.
    Compared,
    /// They stay as they are on the disk.
    Left,
}

impl OnDisk {
    /// Notes that a change in the journal made the list of images unknown.
    pub(super) fn forget_images(&mut self) {
        self.images = None;
    }
}
