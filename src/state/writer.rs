//! Writes what changed, in the background: to the journal, or all of it as a new snapshot.
//!
//! What differs from the disk is appended to the journal, at most every three seconds, so that a container
//! that restarts costs what changed for it and not the state of the node. Runtimes list and encode in
//! random order: what says the same is not written again. Stats and periodic replies, which never say the
//! same twice, wait for a quarter of an hour.
//!
//! | a snapshot is written | because |
//! |---|---|
//! | as the first that a process writes | the state came from files that may end in a torn record |
//! | for a backend that is new, and its first lists | after a kill then nobody could say what it had |
//! | after a record could not be written | deltas follow each other without a gap |
//! | when the journal has 4 MiB, and twice the size of the last snapshot | a start reads all of it |
//! | when the operator forgets something, and at the end of the process | it is on the disk, with fsync |
//!
//! The order of its steps is the whole of crash safety: new journal, capture, write, rename, delete.

use std::fs;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::file::{self, Saved, SavedBackend};
use super::journal;
use super::on_disk::Minor;
use super::{InstanceState, StateStore};

use crate::mutex::lock;

/// The least time between two writes.
pub(super) const INTERVAL: Duration = Duration::from_secs(3);
/// How long stats and replies alone wait for a write.
const MINOR_INTERVAL: Duration = Duration::from_secs(900);
/// How long the end of the process waits for the last snapshot.
const LAST_TIMEOUT: Duration = Duration::from_secs(10);
/// A journal of this many bytes is compacted, if it also has twice the size of the last snapshot.
pub(super) const MAX_JOURNAL: u64 = 4 << 20;
/// The longest time until a delta is safe from a power cut; one that crimux is killed at costs none.
const SYNC_INTERVAL: Duration = Duration::from_secs(30);

/// A step of writing a snapshot that was just done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A new journal was started.
    Rotated,
    /// The state was captured.
    Captured,
    /// The new snapshot stands beside the old one.
    LastWrite,
    /// The new snapshot took the place of the old one.
    Renamed,
    /// A journal that is no longer needed was deleted.
    Deleted,
    /// What changed was appended to the journal.
    Appended,
}

/// What was written last.
#[derive(Debug, Default)]
pub(super) struct LastWrite {
    /// The size of the last snapshot, in bytes; `None` if a snapshot is due whatever changed.
    snapshot: Option<u64>,
    minor_at: Option<Instant>,
    synced_at: Option<Instant>,
    failures: u64,
    /// Whether the present journal was begun for a snapshot that could then not be written.
    begun_in_vain: bool,
}

impl StateStore {
    /// Writes snapshots until `shutdown` completes, then a last one.
    pub async fn run(self: Arc<Self>, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                () = self.shared.wait_dirty() => {}
                () = tokio::time::sleep(MINOR_INTERVAL) => {}
            }
            // A disk that takes no writes must not keep the process from its end.
            tokio::select! {
                () = &mut shutdown => break,
                () = self.write_aside(false) => {}
            }
            tokio::select! {
                () = &mut shutdown => break,
                () = self.shared.wait_flush() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
        if tokio::time::timeout(LAST_TIMEOUT, self.write_aside(true)).await.is_err() {
            tracing::warn!("the disk did not take the last snapshot; the journal has what it took before");
        }
    }

    async fn write_aside(self: &Arc<Self>, all: bool) {
        let snapshot = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || snapshot.write(all, &mut |_| ())).await;
        if !matches!(written, Ok(Ok(()))) {
            // Wakes the writer again even if nothing else changes.
            self.shared.wake_writer();
        }
    }

    /// Appends what changed to the journal, or writes a snapshot if one is due; `all` makes one due. `step`
    /// is told of each step.
    pub(super) fn write(&self, all: bool, step: &mut dyn FnMut(Step)) -> io::Result<()> {
        let mut written = lock(&self.written);
        if self.is_handed_over() {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another process has taken the state over",
            ));
        }
        for state in self.all() {
            state.compact();
        }
        let failures = self.shared.failures();
        let is_new = |state: &Arc<InstanceState>| !state.lock().is_in_snapshot();
        let due =
            all | self.shared.take_demand() || failures != written.failures || self.all().iter().any(is_new);
        let snapshot = written.snapshot.filter(|_| !due);
        if let Some(len) = snapshot {
            self.append_deltas(&mut written, step);
            if self.shared.journal().len() <= MAX_JOURNAL.max(2 * len) {
                return Ok(());
            }
        }
        self.write_snapshot(&mut written, failures, step)
    }

    fn append_deltas(&self, written: &mut LastWrite, step: &mut dyn FnMut(Step)) {
        let is_due = |at: Option<Instant>, interval| at.is_none_or(|at| at.elapsed() >= interval);
        let minor = if is_due(written.minor_at, MINOR_INTERVAL) {
            written.minor_at = Some(Instant::now());
            Minor::Compared
        } else {
            Minor::Left
        };
        let appended = self.all().iter().filter(|state| state.append_delta(minor)).count();
        if appended == 0 {
            return;
        }
        step(Step::Appended);
        if is_due(written.synced_at, SYNC_INTERVAL) {
            written.synced_at = Some(Instant::now());
            let file = self.shared.journal().file();
            if let Err(error) = file.and_then(|file| file.map_or(Ok(()), |file| file.sync_data())) {
                self.shared.record_failure("the journal", &error);
            }
        }
    }

    fn write_snapshot(
        &self,
        written: &mut LastWrite,
        failures: u64,
        step: &mut dyn FnMut(Step),
    ) -> io::Result<()> {
        let generation = self.shared.journal().generation();
        let mut result = self.write_files(!written.begun_in_vain, step);
        if written.begun_in_vain && result.is_ok() {
            result = self.write_files(true, step);
        }
        match &result {
            Ok(len) => {
                let now = Some(Instant::now());
                *written = LastWrite {
                    snapshot: Some(*len),
                    minor_at: now,
                    synced_at: now,
                    failures,
                    begun_in_vain: false,
                };
                // A record that could not be appended meanwhile may not be in what was captured.
                if self.shared.failures() == failures {
                    self.shared.record_success();
                }
            }
            Err(error) => {
                written.snapshot = None;
                written.begun_in_vain |= self.shared.journal().generation() != generation;
                self.shared.record_failure("the snapshot", error);
            }
        }
        result.map(drop)
    }

    /// Writes all files and returns the size of the snapshot. Without a `new_journal` the present one stays
    /// in use: a disk that is full for hours would else be filled by journals of one change each.
    fn write_files(&self, new_journal: bool, step: &mut dyn FnMut(Step)) -> io::Result<u64> {
        file::make_dir(&self.dir)?;
        let lost = self.shared.lost_records();
        let generation = {
            let mut journal = self.shared.journal();
            if new_journal { journal.start_empty()? } else { journal.generation() }
        };
        step(Step::Rotated);
        let backends = self.capture();
        step(Step::Captured);
        let last_instance = self.last_instance.load(Ordering::Relaxed);
        let content = file::encode(&Saved { journal: generation, backends, last_instance });
        self.shared.count_written(content.len());
        file::write_tmp(&self.dir, &content)?;
        step(Step::LastWrite);
        fs::rename(file::tmp_path(&self.dir), file::path(&self.dir))?;
        file::sync_dir(&self.dir)?;
        self.shared.mark_whole(lost);
        step(Step::Renamed);
        for old in journal::generations(&self.dir)?.into_iter().filter(|old| *old < generation) {
            fs::remove_file(journal::path(&self.dir, old))?;
            step(Step::Deleted);
        }
        Ok(content.len() as u64)
    }

    /// Returns what is to be saved of each instance, and notes that it is saved.
    fn capture(&self) -> Vec<SavedBackend> {
        let capture = |state: &Arc<InstanceState>| {
            let mut known = state.lock();
            // Changes are numbered under this lock, so all up to this number are in.
            let seq = self.shared.last_seq();
            known.mark_saved(seq);
            known.save(seq)
        };
        self.all().iter().map(capture).collect()
    }

    pub(super) fn all(&self) -> Vec<Arc<InstanceState>> {
        self.states().values().cloned().collect()
    }
}
