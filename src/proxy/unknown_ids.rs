//! The log of look-ups: an ID without a known owner is asked for at every backend, so the journal names
//! what the alert `CrimuxUnknownIds` counts.

use std::sync::Mutex;

use crate::log_limit::LogLimit;
use crate::mutex::lock;

/// The length of a full ID, in characters; no more of one is logged.
const FULL_ID: usize = 64;

/// What was logged of look-ups.
#[derive(Debug, Default)]
pub(super) struct UnknownIds(Mutex<LogLimit>);

impl UnknownIds {
    /// Logs a look-up, at most one a minute, with how many there were since the last line.
    pub(super) fn log(&self, method: &'static str, id: &str, found: bool) {
        let Some(lookups) = lock(&self.0).count(1) else { return };
        let id: String = id.chars().take(FULL_ID).collect();
        tracing::info!(
            method,
            id,
            found,
            lookups,
            "an ID without a known owner was looked up at the backends"
        );
    }
}
