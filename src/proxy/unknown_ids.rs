//! The log of look-ups: an ID without a known owner is asked for at every backend, so the journal names
//! what the alert `CrimuxUnknownIds` counts.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::mutex::lock;

/// How often a look-up is logged.
const LOGGED_EVERY: Duration = Duration::from_secs(60);
/// The length of a full ID, in characters; no more of one is logged.
const FULL_ID: usize = 64;

/// What was logged of look-ups.
#[derive(Debug, Default)]
pub(super) struct UnknownIds(Mutex<LogState>);

#[derive(Debug, Default)]
struct LogState {
    at: Option<Instant>,
    /// Look-ups since then.
    unlogged: u64,
}

impl UnknownIds {
    /// Logs a look-up, at most one a minute, with how many there were since the last line.
    pub(super) fn log(&self, method: &'static str, id: &str, found: bool) {
        let mut state = lock(&self.0);
        state.unlogged += 1;
        if state.at.is_some_and(|at| at.elapsed() < LOGGED_EVERY) {
            return;
        }
        let lookups = std::mem::take(&mut state.unlogged);
        state.at = Some(Instant::now());
        drop(state);
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
