//! What all backends' states share: the order of changes, the journal, and whether the disk takes writes.
//!
//! It must not know what is in a state.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::journal::{Journal, Record};

/// What all backends' states share.
#[derive(Debug)]
pub(super) struct Shared {
    seq: AtomicU64,
    journal: Mutex<Journal>,
    touched: Notify,
    urgent: Notify,
    problem: Mutex<Option<String>>,
    failures: AtomicU64,
}

impl Shared {
    /// Starts after the sequence number `seq`.
    pub(super) fn new(seq: u64, journal: Journal) -> Self {
        Self {
            seq: AtomicU64::new(seq),
            journal: Mutex::new(journal),
            touched: Notify::new(),
            urgent: Notify::new(),
            problem: Mutex::new(None),
            failures: AtomicU64::new(0),
        }
    }

    /// Returns the next sequence number, unique over all backends.
    pub(super) fn next_seq(&self) -> u64 {
        self.seq.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Returns the last sequence number.
    pub(super) fn last_seq(&self) -> u64 {
        self.seq.load(Ordering::SeqCst)
    }

    /// Appends `record` to the journal; a failure is noted, and the change lives in memory alone until a
    /// snapshot can be written.
    pub(super) fn append(&self, record: &Record) {
        let result = self.journal().append(record);
        if let Err(error) = result {
            self.failed("the journal", &error);
        }
    }

    /// Returns the journal.
    pub(super) fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the writer.
    pub(super) fn touch(&self) {
        self.touched.notify_one();
    }

    /// Makes the writer write without its pause, for what must not be lost and will not come again soon.
    pub(super) fn hurry(&self) {
        self.urgent.notify_one();
    }

    /// Waits until there is a hurry.
    pub(super) async fn hurried(&self) {
        self.urgent.notified().await;
    }

    /// Waits until something was touched since the last wait.
    pub(super) async fn touched(&self) {
        self.touched.notified().await;
    }

    /// Notes that a write failed.
    pub(super) fn failed(&self, what: &str, error: &io::Error) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut problem = self.problem();
        if problem.is_none() {
            tracing::warn!(%error, "cannot write {what}; what is remembered lives in memory alone");
        }
        *problem = Some(format!("cannot write {what}: {error}"));
    }

    /// Notes that all there is has been written.
    pub(super) fn succeeded(&self) {
        if self.problem().take().is_some() {
            tracing::info!("state_dir can be written again");
        }
    }

    /// Returns what the last write failed for, unless one has succeeded since.
    pub(super) fn problem(&self) -> MutexGuard<'_, Option<String>> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how many writes failed since the start.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}
