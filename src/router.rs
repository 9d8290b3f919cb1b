//! Decides where a call goes. No I/O: everything it needs is already known, or the answer is "unknown".
//!
//! Handlers lead to targets by the configuration; IDs lead to owners by what was learnt. It fails closed: an
//! unknown handler is an error that names the handlers that exist, an unknown ID is never guessed (the proxy
//! locates it first), an empty ID is refused and a prefix must mean one ID over all backends.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::state::InstanceId;
pub use aims::{AIM_LIFETIME, Aim, Aims};
pub use handlers::{Choice, Handlers};
pub use memory::RouterMemory;
pub use owners::{Annotations, Claim, IdMatch, OwnedSandbox, Owners, SandboxRecord};

mod aims;
mod handlers;
pub mod images;
mod memory;
mod millis;
mod owners;

/// The routing state of the node.
#[derive(Debug)]
pub struct Router {
    /// IDs and their owners.
    pub owners: Owners,
    /// Container starts under way.
    pub image_starts: images::ContainerStarts,
    /// Pods that an operator has aimed at a backend.
    pub aims: Aims,
    handlers: ArcSwap<Handlers>,
}

impl Router {
    /// Returns a router that owns nothing yet.
    pub fn new(handlers: Handlers) -> Self {
        Self {
            owners: Owners::default(),
            image_starts: images::ContainerStarts::default(),
            aims: Aims::default(),
            handlers: ArcSwap::from_pointee(handlers),
        }
    }

    /// Records a new `config.seen` of the pod `uid`, which kubelet sets when it restarts, and ends the
    /// container starts under the old one.
    pub fn record_config_seen(&self, uid: &str, config_seen: &str) {
        for replaced in self.owners.record_config_seen(uid, config_seen) {
            self.image_starts.end_all(&replaced);
        }
    }

    /// Returns the current handlers.
    pub fn handlers(&self) -> Arc<Handlers> {
        self.handlers.load_full()
    }

    /// Replaces the handlers, for calls that start from now on.
    pub fn replace_handlers(&self, handlers: Handlers) {
        self.handlers.store(Arc::new(handlers));
    }
}

/// The instances that names in the configuration mean, as handed to [`Handlers::new`].
pub type Names = BTreeMap<String, InstanceId>;
