//! What the node keeps in memory alone, for the process that takes over from this one.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Node;
use crate::router::RouterMemory;

/// The memory of a node.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeMemory {
    router: RouterMemory,
    /// For how many seconds every call was seen, by this process or by one that it took over from.
    all_seen_for: u64,
    /// The handlers that sandboxes were requested with.
    requested_handlers: HashMap<Box<str>, Box<str>>,
}

impl Node {
    /// Returns what this process keeps in memory alone.
    pub fn memory(&self) -> NodeMemory {
        NodeMemory {
            router: self.router.memory(),
            all_seen_for: self.watching_for().as_secs(),
            requested_handlers: self.history.requested_handlers(),
        }
    }

    /// Takes over what another process kept; this one has answered no call yet.
    pub fn take_over_memory(&self, memory: NodeMemory) {
        self.router.take_over(memory.router);
        self.history.take_over_requested_handlers(memory.requested_handlers);
        // A second handover to the same process there is not.
        self.seen_before.set(Duration::from_secs(memory.all_seen_for)).ok();
    }
}
