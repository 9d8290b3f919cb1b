//! How recent the last-known list of each backend's images is.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::mutex::lock;
use crate::state::InstanceId;

/// When each backend's images were last listed.
#[derive(Debug, Default)]
pub(super) struct ImageLists {
    at: Mutex<HashMap<InstanceId, Instant>>,
}

impl ImageLists {
    /// Records that all images of a backend were listed just now.
    pub(super) fn record(&self, backend: InstanceId) {
        self.lock().insert(backend, Instant::now());
    }

    /// Forgets that a backend was listed, because its images may have changed.
    pub(super) fn invalidate(&self, backend: InstanceId) {
        self.lock().remove(&backend);
    }

    /// Tells whether a backend's images were listed within the last `age`.
    pub(super) fn is_younger(&self, backend: InstanceId, age: Duration) -> bool {
        self.lock().get(&backend).is_some_and(|at| at.elapsed() < age)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, Instant>> {
        lock(&self.at)
    }
}
