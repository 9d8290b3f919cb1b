//! The last traced call of each series of `crimux_request_duration_seconds`, as its exemplar.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use crate::mutex::lock;

/// A call that a trace tells more of.
#[derive(Debug, Clone, PartialEq)]
pub struct Exemplar {
    /// The ID of the trace in hexadecimal digits.
    pub trace_id: String,
    /// How long the client waited.
    pub waited: Duration,
    /// When the call ended.
    pub at: SystemTime,
}

/// The exemplars by method and backend.
#[derive(Debug, Default)]
pub struct Exemplars(Mutex<HashMap<(&'static str, Arc<str>), Exemplar>>);

impl Exemplars {
    pub(super) fn set(&self, method: &'static str, backend: &Arc<str>, exemplar: Exemplar) {
        self.lock().insert((method, Arc::clone(backend)), exemplar);
    }

    /// Returns the exemplar of a series; `None` if no call of it was traced.
    pub fn get(&self, method: &'static str, backend: &str) -> Option<Exemplar> {
        self.lock().get(&(method, Arc::from(backend))).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(&'static str, Arc<str>), Exemplar>> {
        lock(&self.0)
    }
}
