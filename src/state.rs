//! The last-known state of all backends, in memory and on disk, so that an outage never hides a pod.
//!
//! kubelet acts on pods that a list does not show: it fails Jobs, unmounts volumes and starts duplicates. So
//! the replies for a backend that does not answer are its last-known lists and statuses. They are saved in
//! `state_dir`, because crimux may be killed meanwhile.
//!
//! Two kinds of file hold them. The *snapshot* is everything, replaced atomically by a background writer
//! when the journal has grown. The *journal* is what happened since: every creation, removal and change of
//! state, one `write(2)` each before its call is answered; and *deltas*, which say how lists and statuses
//! differ from those on the disk, at most every three seconds. To write a snapshot, a new journal is
//! started, then the state is captured, then the snapshot is put in place, then older journals are deleted:
//! whatever the step at which crimux is killed, each acknowledged change is in the snapshot or in a journal
//! that it names. Sequence numbers keep a change that is in both from being applied twice.
//!
//! Files that are torn, foreign or unreadable are quarantined with a warning: they are never trusted and
//! never fatal. No verbose reply, container environment or credential may be stored.

mod changes;
mod delta;
mod facts;
mod file;
mod filter;
mod fingerprint;
mod handed;
pub mod image_name;
mod instance;
mod instance_state;
mod items;
mod journal;
mod known;
mod learnt_at;
mod life;
mod list_bytes;
mod lists;
mod load;
mod lock;
mod marks;
mod on_disk;
mod pair;
mod positions;
mod queue;
mod shared;
mod sink;
mod statuses;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

pub use filter::{Filter, item_id};
pub use handed::{HandedChange, read_record};
pub use instance::{Instance, InstanceId};
pub use instance_state::InstanceState;
pub use items::{
    CONTAINER_CREATED, CONTAINER_EXITED, CONTAINER_RUNNING, CONTAINER_UNKNOWN, ContainerRef,
    SANDBOX_NOTREADY, SANDBOX_READY, SandboxRef, container_items, sandbox_items,
};
pub use life::{Life, LifeChange};
pub use list_bytes::retain_ids;
pub use lock::StateLock;
pub use statuses::InvalidatedStatus;

pub use crate::method::Kind;
use crate::method::List;
use crate::mutex::lock;
use changes::Op;
use known::KnownState;
use marks::Marks;
use shared::Shared;
use writer::LastWrite;

/// The lists that are kept.
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
    /// Returns the kind of a list that is kept item by item; `None` for lists that are cached as replies.
    pub fn of(list: List) -> Option<Self> {
        match list {
            List::Sandboxes => Some(Self::Sandboxes),
            List::Containers => Some(Self::Containers),
            List::ContainerStats => Some(Self::ContainerStats),
            List::SandboxStats => Some(Self::PodSandboxStats),
            List::Images => Some(Self::Images),
            List::Filesystems | List::MetricDescriptors | List::SandboxMetrics => None,
        }
    }
}

/// A point in the order of changes. A list requested at a revision shows every change recorded before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revision {
    seq: u64,
    at: Instant,
}

/// A problem with a file of `state_dir`, for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateWarning {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it and what was done.
    pub problem: String,
}

impl fmt::Display for StateWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.problem)
    }
}

/// The last-known state of all backends.
#[derive(Debug)]
pub struct StateStore {
    dir: PathBuf,
    boot_id: String,
    whole: bool,
    shared: Arc<Shared>,
    last_instance: AtomicU64,
    states: Mutex<BTreeMap<InstanceId, Arc<InstanceState>>>,
    written: Mutex<LastWrite>,
}

impl StateStore {
    /// Loads what `state_dir` holds, and starts a new journal in it. `boot_id` is this boot's, as in
    /// `/proc/sys/kernel/random/boot_id`.
    ///
    /// It never fails: what cannot be read is set aside, and a directory that cannot be written makes a store
    /// that lives in memory alone and says so in [`StateStore::write_error`].
    pub fn open(state_dir: &Path, boot_id: &str) -> (Arc<Self>, Vec<StateWarning>) {
        Self::open_marked(state_dir, boot_id, None)
    }

    /// As [`StateStore::open`]. `mark` is a file outside of `state_dir`, which says that the state there is
    /// not whole where not even a file in it can be renamed.
    pub fn open_marked(
        state_dir: &Path,
        boot_id: &str,
        mark: Option<PathBuf>,
    ) -> (Arc<Self>, Vec<StateWarning>) {
        let doubted = Marks::has_outside_mark(mark.as_deref());
        let mut loaded = load::load(state_dir, boot_id, doubted);
        let shared = Arc::new(Shared::new(loaded.seq, loaded.journal, state_dir, mark));
        let started = loaded.error.take().map_or_else(|| shared.journal().rotate().map(drop), Err);
        if let Err(error) = started {
            shared.record_failure("the journal", &error);
            let problem = format!("cannot be written, what is remembered lives in memory alone: {error}");
            loaded.warnings.push(StateWarning { file: state_dir.to_owned(), problem });
        }
        let states = loaded.states.into_iter().map(|(id, state)| {
            let state = Arc::new(InstanceState::new(id, Arc::clone(&shared), state));
            (id, state)
        });
        let store = Self {
            dir: state_dir.to_owned(),
            boot_id: boot_id.to_owned(),
            whole: loaded.whole,
            last_instance: AtomicU64::new(loaded.last_instance),
            states: Mutex::new(states.collect()),
            shared,
            written: Mutex::default(),
        };
        (Arc::new(store), loaded.warnings)
    }

    /// Tells whether the loaded state was complete. Items of a partial state keep their owners but never
    /// answer a list.
    pub fn was_whole(&self) -> bool {
        self.whole
    }

    /// Returns who is known, by identifier: configured, joining and removed.
    pub fn instances(&self) -> Vec<Instance> {
        self.states().values().map(|state| state.instance()).collect()
    }

    /// Returns the state of an instance.
    pub fn get(&self, id: InstanceId) -> Option<Arc<InstanceState>> {
        self.states().get(&id).cloned()
    }

    /// Makes an instance of which nothing is known.
    pub fn create(&self, name: &str, life: Life) -> Arc<InstanceState> {
        let id = self.last_instance.fetch_add(1, Ordering::Relaxed) + 1;
        let instance = Instance { life, ..Instance::with_name(id, name) };
        let state = KnownState::new(instance.clone(), &self.boot_id, self.shared.last_seq());
        let state = Arc::new(InstanceState::new(instance.id, Arc::clone(&self.shared), state));
        self.states().insert(instance.id, Arc::clone(&state));
        state
    }

    /// Notes where an instance is, before calls are sent to it: if the node was rebooted since it was saved,
    /// a `local` one's saved items become NOTREADY and EXITED, and its saved statuses are dropped.
    pub fn expire_if_rebooted(&self, state: &InstanceState, local: bool) {
        let rebooted = state.lock().boot_id != self.boot_id;
        if rebooted && local {
            state.change(vec![Op::Rebooted(self.boot_id.clone())]);
        } else if rebooted {
            self.boot_id.clone_into(&mut state.lock().boot_id);
        }
    }

    /// Forgets all that is known of an instance: its lists are then known to be empty. Returns whether there
    /// is such an instance.
    pub fn declare_empty(&self, id: InstanceId) -> bool {
        let Some(state) = self.get(id) else { return false };
        state.change(vec![Op::DeclaredEmpty(true)]);
        true
    }

    /// Ends an instance that was removed and owns nothing, or that turned out to be another.
    pub fn end(&self, id: InstanceId) {
        if let Some(state) = self.states().remove(&id) {
            state.change(vec![Op::Ended(true)]);
        }
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
    /// changes count as not saved, and [`StateStore::write_error`] says so.
    pub async fn wait_for_journal(&self) {
        self.shared.wait_for_journal().await;
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

    /// Returns how many bytes of records and snapshots were written since the start.
    pub fn written_bytes(&self) -> u64 {
        self.shared.written_bytes()
    }

    /// Writes a snapshot now. It blocks on the disk.
    ///
    /// # Errors
    /// What the disk says; it is noted in [`StateStore::write_error`] too.
    pub fn flush(&self) -> io::Result<()> {
        self.write(true, &mut |_| ())
    }

    fn states(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Arc<InstanceState>>> {
        lock(&self.states)
    }
}
