//! The state passes to another process, and comes back if that one does not serve.
//!
//! ```text
//! old: last snapshot, fsync ─▶ records go to the new process ─▶ the lock is passed
//! new: loads what is on the disk ─▶ applies each record, writes it, answers ─▶ the call is answered
//! ```
//!
//! The new process gives a record a number of its own: lists that it requests later show what the record
//! says. What calls and operators changed is taken. Of what the old process concludes from lists, that is
//! taken which concerns a backend that the new one has not listed itself: [`StateStore::hand_over_lists`].

use std::io;
use std::os::unix::net::UnixStream;

use tokio::io::{AsyncRead, AsyncReadExt};

use bytes::Bytes;
use prost::Message;

use super::changes::Op;
use super::delta::Delta;
use super::journal::{self, Journal, Record};
use super::known::detach;
use super::on_disk::Minor;
use super::writer::LastWrite;
use super::{InstanceId, StateStore};

use crate::mutex::lock;

/// More changes than a process numbers in its life, so that what is recorded after the state came back counts
/// as later than anything that the other process wrote.
const NUMBERS_OF_ANOTHER: u64 = 1 << 32;

/// A change that another process recorded, as far as owners are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandedChange {
    /// A sandbox was created; holds the encoded `PodSandbox`.
    Sandbox(Bytes),
    /// A container was created.
    Container(String),
    /// A sandbox was stopped.
    Stopped(String),
    /// A sandbox or a container was removed.
    Removed(String),
    /// The lists of a backend that was not listed here showed something.
    Listed,
}

impl StateStore {
    /// Tells whether another process writes in `state_dir`.
    pub fn is_handed_over(&self) -> bool {
        self.shared.sink().is_handed_over()
    }

    /// Sends each further change to the process at the other end, which answers once it is in its journal.
    /// Nothing is written here any more. It blocks on the disk.
    ///
    /// # Errors
    /// If what is known is not on the disk whole, or if records are written by the thread that makes them.
    pub fn hand_over(&self, successor: UnixStream) -> io::Result<()> {
        let _writing = lock(&self.written);
        if let Some(problem) = self.write_error() {
            return Err(io::Error::other(problem));
        }
        if !self.shared.has_thread() {
            return Err(io::Error::other("the journal has no thread of its own"));
        }
        self.shared.sink().hand_over(successor);
        Ok(())
    }

    /// Sends what lists have shown since the state was handed over, and completes once it has arrived, or
    /// after 5 s.
    pub async fn hand_over_lists(&self) {
        for state in self.all() {
            state.append_delta(Minor::Left);
        }
        self.wait_for_journal().await;
    }

    /// Sends what could not be sent, and each further change, to another process in the place of the one that
    /// has ended.
    pub fn hand_on(&self, successor: UnixStream) {
        self.shared.sink().hand_over(successor);
    }

    /// Writes in `state_dir` again, after the process that had taken over has ended. It blocks on the disk.
    pub fn take_back(&self) {
        let mut written = lock(&self.written);
        self.shared.skip_numbers(NUMBERS_OF_ANOTHER);
        self.shared.find_marks();
        let started = {
            let mut journal = self.shared.journal();
            let generations = journal::generations(&self.dir).unwrap_or_default();
            let last = generations.last().copied().unwrap_or_default().max(journal.generation());
            *journal = Journal::new(&self.dir, &self.boot_id, last);
            journal.rotate()
        };
        if let Err(error) = started {
            self.shared.record_failure("the journal", &error);
        }
        // What the other process wrote is replaced whole.
        *written = LastWrite::default();
        self.shared.sink().take_back();
        self.shared.demand_snapshot();
        self.shared.wake_writer();
    }

    /// Applies a record that another process sends, and returns the instance and what that means for owners;
    /// `None` if the record cannot be read or is of an instance that is not known.
    pub fn apply_handed(&self, record: &[u8]) -> Option<(InstanceId, Vec<HandedChange>)> {
        let payload = journal::payload(record)?;
        let Record { changes, instance, delta, .. } = Record::decode(payload).ok()?;
        let state = self.get(InstanceId(instance))?;
        if !delta.is_empty() {
            let applied = Delta::decode_compressed(&delta).is_some_and(|it| state.apply_handed_delta(it));
            return Some((state.id(), applied.then_some(HandedChange::Listed).into_iter().collect()));
        }
        let ops: Vec<_> =
            changes.into_iter().filter_map(|change| change.op).filter(is_passed_on).map(detach).collect();
        let changes = ops.iter().filter_map(handed_change).collect();
        if !ops.is_empty() {
            state.change(ops);
        }
        Some((state.id(), changes))
    }
}

/// Reads the next record that another process sends.
///
/// # Errors
/// If that process has ended.
pub async fn read_record(changes: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut record = vec![0; journal::HEADER];
    changes.read_exact(&mut record).await?;
    let header = record.first_chunk().copied().unwrap_or_default();
    record.resize(journal::HEADER + u32::from_le_bytes(header) as usize, 0);
    changes.read_exact(&mut record[journal::HEADER..]).await?;
    Ok(record)
}

fn is_passed_on(op: &Op) -> bool {
    match op {
        Op::SandboxAdded(_)
        | Op::ContainerAdded(_)
        | Op::ContainerStarted(_)
        | Op::ContainerStopped(_)
        | Op::SandboxStopped(_)
        | Op::SandboxRemoved(_)
        | Op::ContainerRemoved(_)
        | Op::ImageRemoved(_)
        | Op::ImagesForgotten(_)
        | Op::Draining(_) => true,
        Op::SandboxSeen(_)
        | Op::ContainerSeen(_)
        | Op::Rebooted(_)
        | Op::DeclaredEmpty(_)
        | Op::Instance(_)
        | Op::Ended(_)
        | Op::Foreign(_)
        | Op::ForeignCleared(_) => false,
    }
}

fn handed_change(op: &Op) -> Option<HandedChange> {
    match op {
        Op::SandboxAdded(item) => Some(HandedChange::Sandbox(item.item.clone())),
        Op::ContainerAdded(item) => Some(HandedChange::Container(item.id.clone())),
        Op::SandboxStopped(id) => Some(HandedChange::Stopped(id.clone())),
        Op::SandboxRemoved(id) | Op::ContainerRemoved(id) => Some(HandedChange::Removed(id.clone())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::state::Life;

    /// Creates a sandbox and waits until that is written.
    async fn create(store: &Arc<StateStore>, backend: InstanceId, id: &str) {
        let state = store.get(backend).unwrap();
        state.record_sandbox_created(id, &[]);
        state.wait_for_journal().await;
        assert_eq!(store.write_error(), None, "{id}");
    }

    /// Applies the records that come, as the process does that has taken over.
    async fn take_over(store: Arc<StateStore>, changes: UnixStream) {
        changes.set_nonblocking(true).unwrap();
        let mut changes = tokio::net::UnixStream::from_std(changes).unwrap();
        while let Ok(record) = read_record(&mut changes).await {
            store.apply_handed(&record).unwrap();
            store.wait_for_journal().await;
            tokio::io::AsyncWriteExt::write_all(&mut changes, &[0]).await.unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_either_process_records_is_on_the_disk_whoever_writes_it() {
        let dir = tempfile::tempdir().unwrap();
        let (old, _) = StateStore::open(dir.path(), "boot");
        old.start_journal_thread().unwrap();
        let backend = old.create("a", Life::Member).id();
        create(&old, backend, "before").await;
        old.flush().unwrap();

        let (ours, theirs) = UnixStream::pair().unwrap();
        old.hand_over(ours).unwrap();
        assert!(old.flush().is_err(), "another process writes");
        let (new, _) = StateStore::open(dir.path(), "boot");
        new.start_journal_thread().unwrap();
        let taking = tokio::spawn(take_over(Arc::clone(&new), theirs));
        create(&old, backend, "handed").await;
        let there = new.get(backend).unwrap();
        assert!(there.has_id("before") && there.has_id("handed"), "before the client hears of it");
        create(&new, backend, "of-the-new-one").await;
        new.flush().unwrap();

        taking.abort();
        taking.await.unwrap_err();
        new.close().await;
        old.take_back();
        create(&old, backend, "after").await;
        let (read, _) = StateStore::open(dir.path(), "boot");
        let state = read.get(backend).unwrap();
        for id in ["before", "handed", "of-the-new-one", "after"] {
            assert!(state.has_id(id), "{id}");
        }
    }
}
