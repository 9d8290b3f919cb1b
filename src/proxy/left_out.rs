//! What answers lack although their code is OK: items, whole backends, bytes of text; counted, logged, shown.
//!
//! An answer that leaves something out looks like a complete one to its client. So each case is counted at
//! once and named in the log once a minute for each backend and method, and the cases of the last five
//! minutes stand in `crimux status`. It must not decide what is left out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::metrics::Metrics;

/// How often one case is logged.
const LOGGED_EVERY: Duration = Duration::from_secs(60);
/// How long a case is shown after it last happened.
const SHOWN_FOR: Duration = Duration::from_secs(300);

/// What was left out of answers lately.
#[derive(Debug, Default)]
pub struct LeftOut {
    notes: Mutex<BTreeMap<Key, Note>>,
}

/// The backend, the method, the kind of case.
type Key = (Arc<str>, &'static str, &'static str);

#[derive(Debug)]
struct Note {
    at: Instant,
    logged: Option<Instant>,
    /// How many since it was logged.
    count: u64,
    cause: String,
}

impl LeftOut {
    /// Notes items that would crash a client.
    pub(super) fn items(&self, metrics: &Metrics, backend: &Arc<str>, method: &'static str, count: usize) {
        if count > 0 {
            metrics.left_out.items.with_label_values(&[&**backend, method]).inc_by(count as u64);
            self.note((Arc::clone(backend), method, "items"), count, "a field that clients read is not set");
        }
    }

    /// Notes text that was not UTF-8 and was repaired.
    pub(super) fn texts(&self, metrics: &Metrics, backend: &Arc<str>, method: &'static str, count: usize) {
        if count > 0 {
            metrics.left_out.texts.with_label_values(&[&**backend, method]).inc_by(count as u64);
            self.note((Arc::clone(backend), method, "bytes that are not UTF-8"), count, "replaced by U+FFFD");
        }
    }

    /// Notes that a backend has no part in an answer, and what it said, if it could be asked at all.
    pub(super) fn backend(
        &self,
        metrics: &Metrics,
        backend: &Arc<str>,
        method: &'static str,
        cause: Option<&str>,
    ) {
        metrics.left_out.backends.with_label_values(&[&**backend, method]).inc();
        if let Some(cause) = cause {
            self.note((Arc::clone(backend), method, "its part"), 1, cause);
        }
    }

    /// Returns what was left out of answers for this backend in the last five minutes, as `METHOD: WHAT
    /// (CAUSE)`.
    pub fn of(&self, backend: &str) -> Vec<String> {
        let notes = self.notes();
        let recent =
            notes.iter().filter(|((of, ..), note)| **of == *backend && note.at.elapsed() <= SHOWN_FOR);
        recent.map(|((_, method, what), note)| format!("{method}: {what} ({})", note.cause)).collect()
    }

    fn note(&self, key: Key, count: usize, cause: &str) {
        let now = Instant::now();
        let mut notes = self.notes();
        notes.retain(|_, note| now.duration_since(note.at) <= SHOWN_FOR);
        let new = || Note { at: now, logged: None, count: 0, cause: String::new() };
        let note = notes.entry(key.clone()).or_insert_with(new);
        (note.at, note.count) = (now, note.count + count as u64);
        cause.clone_into(&mut note.cause);
        if note.logged.is_none_or(|logged| now.duration_since(logged) >= LOGGED_EVERY) {
            let (backend, method, what) = key;
            tracing::warn!(%backend, method, what, count = note.count, cause, "left out of answers");
            (note.logged, note.count) = (Some(now), 0);
        }
    }

    fn notes(&self) -> MutexGuard<'_, BTreeMap<Key, Note>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
