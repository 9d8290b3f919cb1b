//! Where records go: to the journal of this process, or to the process that has taken over the state.
//!
//! One process at a time writes in `state_dir`. A record that cannot be delivered, because the other process
//! has ended, waits until this process takes the state back or another process has taken it over.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::mutex::lock;

/// Where records go.
#[derive(Debug, Default)]
enum RecordTarget {
    /// To the journal of this process.
    #[default]
    Journal,
    /// To the process at the other end, which answers a byte for each record that is in its journal.
    Successor(UnixStream),
    /// To the process that takes the place of one that has ended.
    Nobody,
}

/// Where the journal's thread writes records.
#[derive(Debug, Default)]
pub(super) struct RecordSink {
    target: Mutex<RecordTarget>,
    changed: Condvar,
    /// Whether the journal is not this process's.
    handed_over: AtomicBool,
}

/// The right to append a record to the journal of this process, which keeps it for as long as this lives.
#[derive(Debug)]
pub(super) struct OwnJournal<'a>(#[allow(dead_code, reason = "it is held")] MutexGuard<'a, RecordTarget>);

impl RecordSink {
    /// Delivers a record to the process that has taken over; returns the right to write it here if there is
    /// none. It blocks until one of both is true.
    pub(super) fn deliver(&self, record: &[u8]) -> Option<OwnJournal<'_>> {
        let mut target = lock(&self.target);
        loop {
            match &*target {
                RecordTarget::Journal => return Some(OwnJournal(target)),
                RecordTarget::Successor(stream) if send(stream, record).is_ok() => return None,
                RecordTarget::Successor(_) => *target = RecordTarget::Nobody,
                RecordTarget::Nobody => {
                    target = self.changed.wait(target).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Sends records to the process at the other end from now on. It blocks while a record is being written.
    pub(super) fn hand_over(&self, successor: UnixStream) {
        self.handed_over.store(true, Ordering::SeqCst);
        *lock(&self.target) = RecordTarget::Successor(successor);
        self.changed.notify_all();
    }

    /// Writes records here again. It blocks while a record is being delivered, which the end of the other
    /// process ends.
    pub(super) fn take_back(&self) {
        *lock(&self.target) = RecordTarget::Journal;
        self.handed_over.store(false, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Tells whether another process writes in `state_dir`.
    pub(super) fn is_handed_over(&self) -> bool {
        self.handed_over.load(Ordering::SeqCst)
    }
}

/// Sends a record, and waits until it is in the journal of the other process.
fn send(mut stream: &UnixStream, record: &[u8]) -> io::Result<()> {
    stream.write_all(record)?;
    stream.read_exact(&mut [0])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_record_that_one_process_did_not_take_goes_to_the_next_or_is_written_here() {
        let sink = Arc::new(RecordSink::default());
        assert!(sink.deliver(b"a").is_some());
        let (ours, theirs) = UnixStream::pair().unwrap();
        sink.hand_over(ours);
        drop(theirs);
        let delivering = Arc::clone(&sink);
        let delivered = std::thread::spawn(move || delivering.deliver(b"record").is_none());
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        sink.hand_over(ours);
        let mut read = [0; 6];
        theirs.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"record");
        theirs.write_all(b"x").unwrap();
        assert!(delivered.join().unwrap());
        drop(theirs);
        let delivering = Arc::clone(&sink);
        let own = std::thread::spawn(move || delivering.deliver(b"record").is_some());
        sink.take_back();
        assert!(own.join().unwrap() && !sink.is_handed_over());
    }
}
