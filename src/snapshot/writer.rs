//! Writes snapshots in the background.
//!
//! The order of its steps is the whole of crash safety: new journal, capture, write, rename, delete. It skips
//! what would write the same facts again, since runtimes list and encode in random order, and lets stats and
//! periodic replies wait for a quarter of an hour, since they never say the same twice. The first lists of a
//! backend are written at once.

use std::fs;
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::file::{self, Saved, SavedBackend};
use super::fingerprint::fingerprint;
use super::journal;
use super::{LastKnown, Snapshot};

/// The least time between two snapshots.
pub(super) const INTERVAL: Duration = Duration::from_secs(3);
/// How long stats and replies alone wait for a snapshot.
const MINOR_INTERVAL: Duration = Duration::from_secs(900);
/// How long the end of the process waits for the last snapshot.
const LAST_TIMEOUT: Duration = Duration::from_secs(10);
/// A journal of this many bytes is reason enough for a snapshot.
const MAX_JOURNAL: u64 = 1 << 20;

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
}

/// What the last snapshot held.
#[derive(Debug, Default)]
pub(super) struct LastWrite {
    facts: Option<u64>,
    minor_changes: u64,
    at: Option<Instant>,
    failures: u64,
    /// Whether the present journal was begun for a snapshot that could then not be written.
    begun_in_vain: bool,
}

impl Snapshot {
    /// Writes snapshots until `shutdown` completes, then a last one.
    pub async fn run(self: Arc<Self>, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                () = self.shared.dirtied() => {}
                () = tokio::time::sleep(MINOR_INTERVAL) => {}
            }
            // A disk that takes no writes must not keep the process from its end.
            tokio::select! {
                () = &mut shutdown => break,
                () = self.write_aside(false) => {}
            }
            tokio::select! {
                () = &mut shutdown => break,
                () = self.shared.flush_requested() => {}
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
            self.shared.mark_dirty();
        }
    }

    /// Writes a snapshot if there is reason to; `all` makes minor changes a reason. `step` is told of each
    /// step.
    pub(super) fn write(&self, all: bool, step: &mut dyn FnMut(Step)) -> io::Result<()> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        for last_known in self.all() {
            last_known.compact();
        }
        let failures = self.shared.failures();
        if !self.has_news(&written, all, failures) {
            return Ok(());
        }
        let generation = self.shared.journal().generation();
        let mut result = self.write_files(!written.begun_in_vain, step);
        if written.begun_in_vain && result.is_ok() {
            result = self.write_files(true, step);
        }
        match &result {
            Ok((facts, minor_changes)) => {
                let (facts, minor_changes) = (Some(*facts), *minor_changes);
                let at = Some(Instant::now());
                *written = LastWrite { facts, minor_changes, at, failures, begun_in_vain: false };
                // A record that could not be appended meanwhile may not be in what was captured.
                if self.shared.failures() == failures {
                    self.shared.record_success();
                }
            }
            Err(error) => {
                written.begun_in_vain |= self.shared.journal().generation() != generation;
                self.shared.record_failure("the snapshot", error);
            }
        }
        result.map(drop)
    }

    fn has_news(&self, written: &LastWrite, all: bool, failures: u64) -> bool {
        let due = all || written.at.is_none_or(|at| at.elapsed() >= MINOR_INTERVAL);
        failures != written.failures
            || self.shared.journal().len() > MAX_JOURNAL
            || written.facts != Some(facts(&self.capture()))
            || (due && written.minor_changes != self.minor_changes())
    }

    /// Writes all files. Without a `new_journal` the present one stays in use: a disk that is full for hours
    /// would else be filled by journals of one change each.
    fn write_files(&self, new_journal: bool, step: &mut dyn FnMut(Step)) -> io::Result<(u64, u64)> {
        file::make_dir(&self.dir)?;
        let lost = self.shared.lost();
        let generation = {
            let mut journal = self.shared.journal();
            if new_journal { journal.start_empty()? } else { journal.generation() }
        };
        step(Step::Rotated);
        let minor_changes = self.minor_changes();
        let captured = self.capture();
        step(Step::Captured);
        let facts = facts(&captured);
        let backends = captured.into_iter().map(|(saved, _)| saved).collect();
        let last_instance = self.last_instance.load(Ordering::Relaxed);
        let content = file::encode(&Saved { journal: generation, backends, last_instance });
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
        Ok((facts, minor_changes))
    }

    /// Returns what is to be saved of each instance, with the fingerprint of its statuses.
    fn capture(&self) -> Vec<(SavedBackend, u64)> {
        let capture = |last_known: &Arc<LastKnown>| {
            let state = last_known.lock();
            // Changes are numbered under this lock, so all up to this number are in.
            let seq = self.shared.last_seq();
            (state.save(seq), state.statuses.fingerprint())
        };
        self.all().iter().map(capture).collect()
    }

    fn minor_changes(&self) -> u64 {
        self.all().iter().map(|last_known| last_known.lock().minor_changes).sum()
    }

    fn all(&self) -> Vec<Arc<LastKnown>> {
        self.backends().values().cloned().collect()
    }
}

/// Returns a fingerprint of what is to be on disk soon: all but stats and replies.
fn facts(backends: &[(SavedBackend, u64)]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (backend, statuses) in backends {
        let SavedBackend { instance, boot_id, drained, forgotten, created, foreign, .. } = backend;
        instance.as_ref().map(prost::Message::encode_to_vec).hash(&mut hasher);
        (boot_id, drained, forgotten, created, foreign, statuses).hash(&mut hasher);
        for list in [&backend.sandboxes, &backend.containers, &backend.images] {
            list.as_ref().map(|list| fingerprint(list)).hash(&mut hasher);
        }
        // Facts have a slash in their keys; replies, which may wait, have none.
        for fact in backend.replies.iter().filter(|reply| reply.method.contains('/')) {
            (&fact.method, &fact.reply[..]).hash(&mut hasher);
        }
        for change in &backend.changes {
            prost::Message::encode_to_vec(change).hash(&mut hasher);
        }
    }
    hasher.finish()
}
