//! Counts, logs and shows what replies with code OK lack: items, whole backends, bytes of text.
//!
//! A client cannot tell a reply that leaves something out from a complete one. So each case is counted,
//! logged at most once a minute for each backend and method, and listed in `crimux status` for five minutes.
//! This module must not decide what is left out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tonic::Code;

use crate::error::Error;
use crate::log_limit::LogLimit;
use crate::metrics::Metrics;
use crate::mutex::lock;

/// How long a case is shown after it last happened.
const SHOWN_FOR: Duration = Duration::from_secs(300);

/// The cases of the last five minutes.
#[derive(Debug)]
pub struct LeftOut {
    metrics: Arc<Metrics>,
    cases: Mutex<BTreeMap<CaseKey, Case>>,
}

/// The backend, the method, the kind of case.
type CaseKey = (Arc<str>, &'static str, &'static str);

#[derive(Debug)]
struct Case {
    at: Instant,
    /// Counts items, texts or backends.
    log_limit: LogLimit,
    cause: String,
    is_fault: bool,
}

impl LeftOut {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, cases: Mutex::default() }
    }

    /// Records items that would crash a client.
    pub(super) fn record_items(&self, backend: &Arc<str>, method: &'static str, count: usize) {
        if count > 0 {
            self.metrics.left_out.items.with_label_values(&[&**backend, method]).inc_by(count as u64);
            self.record(
                (Arc::clone(backend), method, "items"),
                count,
                "a field that clients read is not set",
                true,
            );
        }
    }

    /// Records strings that were not UTF-8 and were repaired.
    pub(super) fn record_texts(&self, backend: &Arc<str>, method: &'static str, count: usize) {
        if count > 0 {
            self.metrics.left_out.texts.with_label_values(&[&**backend, method]).inc_by(count as u64);
            self.record(
                (Arc::clone(backend), method, "bytes that are not UTF-8"),
                count,
                "replaced by U+FFFD",
                false,
            );
        }
    }

    /// Records that a reply lacks a backend. `cause` is the backend's own error; `None` if it could not be
    /// called.
    pub(super) fn record_backend(&self, backend: &Arc<str>, method: &'static str, cause: Option<&Error>) {
        self.metrics.left_out.backends.with_label_values(&[&**backend, method]).inc();
        if let Some(cause) = cause {
            let is_fault = cause.code() != Code::Unimplemented;
            self.record((Arc::clone(backend), method, "the whole backend"), 1, &cause.to_string(), is_fault);
        }
    }

    /// Returns what was left out of answers for this backend in the last five minutes, as `METHOD: WHAT
    /// (CAUSE)`.
    pub fn of(&self, backend: &str) -> Vec<String> {
        self.recent(backend, |_| true)
    }

    /// Returns those of [`LeftOut::of`] that are a fault of the backend. A method that it does not implement
    /// is no fault, and a text that was repaired lacks nothing.
    pub fn faults_of(&self, backend: &str) -> Vec<String> {
        self.recent(backend, |case| case.is_fault)
    }

    fn recent(&self, backend: &str, wanted: impl Fn(&Case) -> bool) -> Vec<String> {
        let cases = self.cases();
        let of_backend = cases.iter().filter(|((of, ..), case)| **of == *backend && wanted(case));
        let recent = of_backend.filter(|(_, case)| case.at.elapsed() <= SHOWN_FOR);
        recent.map(|((_, method, what), entry)| format!("{method}: {what} ({})", entry.cause)).collect()
    }

    fn record(&self, key: CaseKey, count: usize, cause: &str, is_fault: bool) {
        let now = Instant::now();
        let mut cases = self.cases();
        cases.retain(|_, entry| now.duration_since(entry.at) <= SHOWN_FOR);
        let new = || Case { at: now, log_limit: LogLimit::default(), cause: String::new(), is_fault };
        let entry = cases.entry(key.clone()).or_insert_with(new);
        (entry.at, entry.is_fault) = (now, is_fault);
        cause.clone_into(&mut entry.cause);
        if let Some(count) = entry.log_limit.count(count as u64) {
            let (backend, method, what) = key;
            tracing::warn!(%backend, method, what, count, cause, "left out of answers");
        }
    }

    fn cases(&self) -> MutexGuard<'_, BTreeMap<CaseKey, Case>> {
        lock(&self.cases)
    }
}
