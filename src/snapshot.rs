//! What the node remembers of its backends, in memory and on disk, so that an outage is never a lie.
//!
//! kubelet acts on what a list does not show: it fails Jobs, unmounts volumes and starts duplicates. So for a
//! backend that cannot be asked, its last-known lists and statuses answer, and because crimux itself may be
//! killed meanwhile, they are kept in `state_dir`.
//!
//! Two kinds of file hold them. The *snapshot* is everything, replaced atomically by a background writer,
//! only when something changed and at most every three seconds. The *journal* is every creation, removal and
//! change of state since, one `write(2)` each before its call is answered. To write a snapshot, a new journal
//! is started, then the state is captured, then the snapshot is put in place, then older journals are
//! deleted: whatever the step at which crimux is killed, each acknowledged change is in the snapshot or in a
//! journal that it names. Sequence numbers keep a change that is in both from being applied twice.
//!
//! Files that are torn, foreign or unreadable are set aside with a warning, never trusted, never fatal. No
//! verbose reply, container environment or credential may enter here.

mod changes;
mod facts;
mod file;
mod filter;
mod fingerprint;
pub mod image_name;
mod items;
mod journal;
mod last_known;
mod lists;
mod load;
mod lock;
mod pair;
mod queue;
mod shared;
mod state;
mod statuses;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub use filter::{Filter, item_id};
pub use items::{
    CONTAINER_CREATED, CONTAINER_EXITED, CONTAINER_RUNNING, CONTAINER_UNKNOWN, ContainerFacts,
    SANDBOX_NOTREADY, SANDBOX_READY, SandboxRef, container_items, sandbox_items,
};
pub use last_known::LastKnown;
pub use lock::StateLock;
pub use statuses::ForgottenStatus;

use crate::method::Kind;
use changes::Op;
use shared::Shared;
use state::State;
use writer::LastWrite;

/// The lists that are remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListKind {
    /// `ListPodSandbox`.
    Sandboxes,
    /// `ListContainers`.
    Containers,
    /// `ListImages`.
    Images,
    /// `ListContainerStats`.
    ContainerStats,
    /// `ListPodSandboxStats`.
    PodSandboxStats,
}

impl ListKind {
    fn is_stats(self) -> bool {
        matches!(self, Self::ContainerStats | Self::PodSandboxStats)
    }
}

/// The statuses that are remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StatusKind {
    /// `PodSandboxStatus`.
    Sandbox,
    /// `ContainerStatus`.
    Container,
}

impl From<Kind> for StatusKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Sandbox => Self::Sandbox,
            Kind::Container => Self::Container,
        }
    }
}

/// A moment in the order of changes: what was recorded before it, a list sent at it shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revision {
    seq: u64,
    at: Instant,
}

/// Something about a file of `state_dir` that the operator should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it and what was done.
    pub problem: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.problem)
    }
}

/// What the node remembers of all backends.
#[derive(Debug)]
pub struct Snapshot {
    dir: PathBuf,
    boot_id: String,
    fresh: bool,
    /// Whether every backend was known at least once since a fresh start.
    settled: AtomicBool,
    shared: Arc<Shared>,
    backends: Mutex<BTreeMap<String, Arc<LastKnown>>>,
    written: Mutex<LastWrite>,
}

impl Snapshot {
    /// Loads what `state_dir` holds, and starts a new journal in it. `boot_id` is this boot's, as in
    /// `/proc/sys/kernel/random/boot_id`.
    ///
    /// It never fails: what cannot be read is set aside, and a directory that cannot be written makes a
    /// snapshot that lives in memory and says so in [`Snapshot::write_error`].
    pub fn open(state_dir: &Path, boot_id: &str) -> (Arc<Self>, Vec<Warning>) {
        let mut loaded = load::load(state_dir, boot_id);
        let shared = Arc::new(Shared::new(loaded.seq, loaded.journal));
        let started = loaded.error.take().map_or_else(|| shared.journal().rotate().map(drop), Err);
        if let Err(error) = started {
            shared.failed("the journal", &error);
            let problem = format!("cannot be written, what is remembered lives in memory alone: {error}");
            loaded.warnings.push(Warning { file: state_dir.to_owned(), problem });
        }
        let backends = loaded.states.into_iter().map(|(name, state)| {
            let last_known = Arc::new(LastKnown::new(&name, Arc::clone(&shared), state));
            (name, last_known)
        });
        let snapshot = Self {
            dir: state_dir.to_owned(),
            boot_id: boot_id.to_owned(),
            fresh: loaded.fresh,
            settled: AtomicBool::new(!loaded.fresh),
            backends: Mutex::new(backends.collect()),
            shared,
            written: Mutex::default(),
        };
        (Arc::new(snapshot), loaded.warnings)
    }

    /// Tells whether the start found no intact snapshot, or only that of a start like this which ended before
    /// every backend was listed once. A backend that is not known is then one that may hold anything; after
    /// any other start it is one that was added since. A journal alone does not tell that.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Returns the state of a backend; makes an empty one if it has no state. A `local` backend's
    /// saved items become NOTREADY and EXITED, and its saved statuses are dropped, if the node was rebooted.
    /// Call it for every configured backend before [`Snapshot::run`].
    pub fn backend(&self, name: &str, local: bool) -> Arc<LastKnown> {
        let last_known = Arc::clone(self.backends().entry(name.to_owned()).or_insert_with(|| {
            let state = State::new(&self.boot_id, self.shared.last_seq());
            Arc::new(LastKnown::new(name, Arc::clone(&self.shared), state))
        }));
        let rebooted = last_known.lock().boot_id != self.boot_id;
        if rebooted && local {
            last_known.change(vec![Op::Rebooted(self.boot_id.clone())]);
        } else if rebooted {
            self.boot_id.clone_into(&mut last_known.lock().boot_id);
        }
        last_known
    }

    /// Forgets all that is known of a backend, as the operator demands who declares it lost: its lists are
    /// then known to be empty. Tells whether there was anything by that name.
    pub fn forget(&self, name: &str) -> bool {
        let mut backends = self.backends();
        let Some(last_known) = backends.get(name) else { return false };
        last_known.change(vec![Op::Forgotten(true)]);
        // Only one that nobody uses can go; a configured backend may come back.
        if Arc::strong_count(last_known) == 1 {
            backends.remove(name);
        }
        true
    }

    /// Returns the names of all backends of which there is a state, configured or not; without those that
    /// were forgotten and not heard of since.
    pub fn names(&self) -> Vec<String> {
        let backends = self.backends();
        let known = backends.iter().filter(|(_, last_known)| !last_known.lock().forgotten);
        known.map(|(name, _)| name.clone()).collect()
    }

    /// Gives the journal a thread of its own, so that a disk that takes no writes stops no call. Call it
    /// once, before calls are served.
    ///
    /// # Errors
    /// If the system has no thread to give; records are then written by the thread that makes them.
    pub fn start_journal_thread(&self) -> io::Result<()> {
        self.shared.start_thread()
    }

    /// Completes when every change recorded so far is in the journal. It waits at most 100 ms: then the
    /// changes count as not saved, and [`Snapshot::write_error`] says so.
    pub async fn saved(&self) {
        self.shared.saved().await;
    }

    /// Ends the journal's thread once it has written what is queued; a disk that takes no writes is waited
    /// for 2 s. Changes that are recorded later live in memory alone.
    pub async fn close(&self) {
        self.shared.close_queue().await;
    }

    /// Returns why the last write failed; `None` if all writes since succeeded.
    pub fn write_error(&self) -> Option<String> {
        self.shared.problem().clone()
    }

    /// Returns how many writes failed since the start.
    pub fn write_failures(&self) -> u64 {
        self.shared.failures()
    }

    /// Writes the snapshot now if anything changed since the last. It blocks on the disk.
    ///
    /// # Errors
    /// What the disk says; it is noted in [`Snapshot::write_error`] too.
    pub fn flush(&self) -> io::Result<()> {
        self.write(true, &mut |_| ())
    }

    fn backends(&self) -> MutexGuard<'_, BTreeMap<String, Arc<LastKnown>>> {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
