//! What the router keeps in memory alone, for the process that takes over from this one.
//!
//! The saved state has the owners. What lists cannot show is here: pods that an operator has aimed, container
//! starts under way, the `config.seen` of a kubelet that restarted, and IDs that were removed a moment ago.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::Router;
use super::aims::HandedAim;
use super::images::HandedStart;
use super::owners::{HandedCreation, HandedRemoval};

/// The memory of a router. Times are milliseconds from the moment that it was taken.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RouterMemory {
    aims: Vec<HandedAim>,
    starts: Vec<HandedStart>,
    /// `config.seen` by the ID of the sandbox.
    config_seen: HashMap<String, String>,
    creations: Vec<HandedCreation>,
    removals: Vec<HandedRemoval>,
}

impl Router {
    /// Returns what this router keeps in memory alone.
    pub fn memory(&self) -> RouterMemory {
        RouterMemory {
            aims: self.aims.memory(),
            starts: self.image_starts.memory(),
            config_seen: self.owners.config_seen_by_id(),
            creations: self.owners.handed_creations(),
            removals: self.owners.handed_removals(),
        }
    }

    /// Takes over what another router kept. This one knows the owners and has seen no call yet.
    pub fn take_over(&self, memory: RouterMemory) {
        self.aims.take_over(memory.aims);
        self.image_starts.take_over(memory.starts);
        self.owners.take_over_config_seen(memory.config_seen);
        self.owners.take_over_creations(memory.creations);
        self.owners.take_over_removals(memory.removals);
    }
}
