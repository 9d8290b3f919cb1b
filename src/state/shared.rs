//! Shared by the states of all backends: the order of changes, the journal, and whether the disk can be
//! written.
//!
//! This module must not know the contents of a state.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;

use super::journal::{self, Journal, Record};
use super::marks::Marks;
use super::queue::Queue;
use super::sink::RecordSink;

use crate::mutex::lock;

/// How long a call waits until its record is in the journal.
const DISK_TIMEOUT: Duration = Duration::from_millis(100);
/// How long a call waits until its record is in the journal of the process that has taken over, which may
/// still be loading the state.
const SUCCESSOR_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the end of the process waits for records that are still queued.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Shared by the states of all backends.
#[derive(Debug)]
pub(super) struct Shared {
    seq: AtomicU64,
    journal: Mutex<Journal>,
    /// Set once the journal has a thread of its own; until then a record is written where it is made.
    queue: OnceLock<Queue>,
    dirty: Notify,
    flush: Notify,
    problem: Mutex<Option<String>>,
    failures: AtomicU64,
    lost: AtomicU64,
    /// Whether a snapshot was demanded.
    demanded: AtomicBool,
    /// Bytes of records and snapshots.
    written: AtomicU64,
    /// Whether the queue overflowed since the journal's thread last looked.
    overflowed: AtomicBool,
    sink: RecordSink,
    marks: Marks,
    /// `state_dir`.
    dir: PathBuf,
}

impl Shared {
    /// Starts after the sequence number `seq`.
    pub(super) fn new(seq: u64, journal: Journal, dir: &Path, mark: Option<PathBuf>) -> Self {
        Self {
            marks: Marks::new(dir, mark),
            dir: dir.to_owned(),
            seq: AtomicU64::new(seq),
            journal: Mutex::new(journal),
            queue: OnceLock::new(),
            dirty: Notify::new(),
            flush: Notify::new(),
            problem: Mutex::new(None),
            failures: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            demanded: AtomicBool::new(false),
            written: AtomicU64::new(0),
            overflowed: AtomicBool::new(false),
            sink: RecordSink::default(),
        }
    }

    /// Returns where records go.
    pub(super) fn sink(&self) -> &RecordSink {
        &self.sink
    }

    /// Finds the marks that another process left: the next snapshot takes them away.
    pub(super) fn find_marks(&self) {
        self.marks.look_again();
    }

    /// Makes the next sequence number higher by this much.
    pub(super) fn skip_numbers(&self, numbers: u64) {
        self.seq.fetch_add(numbers, Ordering::SeqCst);
    }

    /// Tells whether the journal has a thread of its own.
    pub(super) fn has_thread(&self) -> bool {
        self.queue.get().is_some()
    }

    /// Returns the next sequence number, unique over all backends.
    pub(super) fn next_seq(&self) -> u64 {
        self.seq.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Returns the last sequence number.
    pub(super) fn last_seq(&self) -> u64 {
        self.seq.load(Ordering::SeqCst)
    }

    /// Appends `record` to the journal, or queues it for the journal's thread. A failure is noted, and the
    /// change lives in memory alone until a snapshot can be written.
    pub(super) fn append(&self, record: &Record) {
        let record = journal::frame(record);
        let Some(queue) = self.queue.get() else { return self.write(&record) };
        if queue.push(record).is_err() {
            self.lost.fetch_add(1, Ordering::SeqCst);
            self.overflowed.store(true, Ordering::SeqCst);
            self.record_failure(
                "the journal",
                &io::Error::new(io::ErrorKind::StorageFull, "too many records wait for the disk"),
            );
        }
    }

    fn write(&self, record: &[u8]) {
        let Some(_own) = self.sink.deliver(record) else { return };
        let result = self.journal().append(record);
        self.count_written(record.len());
        if let Err(error) = result {
            self.lost.fetch_add(1, Ordering::SeqCst);
            self.record_failure("the journal", &error);
            self.marks.set_partial();
        }
    }

    /// Makes the next start take the snapshot, which has just been written, for whole, unless records were
    /// lost since there were `lost`.
    pub(super) fn mark_whole(&self, lost: u64) {
        self.marks.set_whole(|| self.lost_records() == lost);
    }

    /// Counts bytes of a record or a snapshot.
    pub(super) fn count_written(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Returns how many bytes were written since the start.
    pub(super) fn written_bytes(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Returns how many records could not be written since the start.
    pub(super) fn lost_records(&self) -> u64 {
        self.lost.load(Ordering::SeqCst)
    }

    /// Gives the journal a thread of its own, which ends with [`Shared::close_queue`].
    ///
    /// # Errors
    /// If the system has no thread to give; records are then written where they are made.
    pub(super) fn start_thread(self: &Arc<Self>) -> io::Result<()> {
        let shared = Arc::clone(self);
        std::thread::Builder::new().name("journal".to_owned()).spawn(move || {
            let queue = shared.queue.get_or_init(Queue::default);
            while let Some(record) = queue.next() {
                shared.write(&record);
                if shared.overflowed.swap(false, Ordering::SeqCst) {
                    shared.marks.set_partial();
                }
                queue.finish();
                shared.marks.clear_waiting(|| shared.is_written());
            }
        })?;
        self.queue.get_or_init(Queue::default);
        Ok(())
    }

    /// Completes when every change recorded so far is in the journal, or after 100 ms: then the changes count
    /// as not saved. The journal of a process that has taken over is waited for 5 s.
    pub(super) async fn wait_for_journal(self: &Arc<Self>) {
        let Some(queue) = self.queue.get() else { return };
        let (limit, what) = if self.sink.is_handed_over() {
            (SUCCESSOR_TIMEOUT, "the process that has taken over did not take a record within 5 s")
        } else {
            (DISK_TIMEOUT, "the disk did not take a record within 100 ms")
        };
        if tokio::time::timeout(limit, queue.finished()).await.is_err() {
            self.record_failure("the journal", &io::Error::new(io::ErrorKind::TimedOut, what));
            self.mark_waiting().await;
        }
    }

    /// Marks that records wait for the disk, without a look at `state_dir`; at most for 100 ms.
    async fn mark_waiting(self: &Arc<Self>) {
        let shared = Arc::clone(self);
        let marked = tokio::task::spawn_blocking(move || shared.marks.set_waiting(|| shared.is_written()));
        // One that takes longer is still made.
        tokio::time::timeout(DISK_TIMEOUT, marked).await.ok();
    }

    /// Tells whether no record waits to be written.
    fn is_written(&self) -> bool {
        self.queue.get().is_none_or(Queue::is_finished)
    }

    /// Lets the journal's thread write what is queued, and end. A disk that takes no writes is not waited
    /// for.
    pub(super) async fn close_queue(self: &Arc<Self>) {
        let Some(queue) = self.queue.get() else { return };
        queue.close();
        if tokio::time::timeout(CLOSE_TIMEOUT, queue.finished()).await.is_err() {
            self.record_failure("the journal", &io::ErrorKind::TimedOut.into());
            self.mark_waiting().await;
        }
    }

    /// Returns the journal.
    pub(super) fn journal(&self) -> MutexGuard<'_, Journal> {
        lock(&self.journal)
    }

    /// Wakes the writer, which waits in [`Shared::wait_dirty`].
    pub(super) fn wake_writer(&self) {
        self.dirty.notify_one();
    }

    /// Makes the writer write without its pause.
    pub(super) fn flush_soon(&self) {
        self.flush.notify_one();
    }

    /// Makes the writer write a snapshot, and without its pause.
    pub(super) fn demand_snapshot(&self) {
        self.demanded.store(true, Ordering::SeqCst);
        self.flush_soon();
    }

    /// Tells whether a snapshot was demanded since the last call.
    pub(super) fn take_demand(&self) -> bool {
        self.demanded.swap(false, Ordering::SeqCst)
    }

    /// Waits for [`Shared::flush_soon`].
    pub(super) async fn wait_flush(&self) {
        self.flush.notified().await;
    }

    /// Waits until anything changed since the last wait.
    pub(super) async fn wait_dirty(&self) {
        self.dirty.notified().await;
    }

    /// Notes that a write failed. The thread of the calls notes it too, when the disk is too slow: no I/O in
    /// `state_dir` may stand here, only in [`Shared::write`], which the journal's thread runs.
    pub(super) fn record_failure(&self, what: &str, error: &io::Error) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut problem = self.problem();
        if problem.is_none() {
            let state_dir = self.dir.display();
            tracing::error!(
                %state_dir, %error,
                "cannot write {what}; what is remembered lives in memory alone: restart neither crimux nor a backend"
            );
        }
        *problem = Some(format!("cannot write {what}: {error}"));
    }

    /// Records that a snapshot was written.
    pub(super) fn record_success(&self) {
        if self.problem().take().is_some() {
            tracing::info!(state_dir = %self.dir.display(), "state_dir can be written again");
        }
    }

    /// Returns what the last write failed for, unless one has succeeded since.
    pub(super) fn problem(&self) -> MutexGuard<'_, Option<String>> {
        lock(&self.problem)
    }

    /// Returns how many writes failed since the start.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}
