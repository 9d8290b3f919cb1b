//! The queue of records for the journal's thread, so that a hanging disk blocks no call.
//!
//! A record is queued under the lock of its state, and the thread writes records in the order of the queue:
//! the order of the journal is the order of the changes. A call then waits for a limited time until its
//! record is written. Records are opaque bytes.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::mutex::lock;

/// The most bytes of queued records, so that a disk that hangs for hours cannot exhaust the memory.
const MAX_BYTES: usize = 8 << 20;

/// The queue is full or closed: the record was not queued.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

/// The queue between calls and the journal's thread.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pending: Mutex<Pending>,
    filled: Condvar,
    /// How many records the thread has written, or failed to write.
    finished: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Pending {
    records: VecDeque<Vec<u8>>,
    bytes: usize,
    /// How many records were ever queued.
    queued: u64,
    closed: bool,
}

impl Queue {
    /// Queues a framed record.
    ///
    /// # Errors
    /// [`Full`] if more than 8 MiB wait already, or if the queue is closed.
    pub(super) fn push(&self, record: Vec<u8>) -> Result<(), Full> {
        let mut pending = self.pending();
        if pending.closed || pending.bytes + record.len() > MAX_BYTES {
            return Err(Full);
        }
        pending.bytes += record.len();
        pending.queued += 1;
        pending.records.push_back(record);
        self.filled.notify_one();
        Ok(())
    }

    /// Returns the next record and blocks until there is one; `None` once the queue is closed and empty.
    pub(super) fn next(&self) -> Option<Vec<u8>> {
        let pending = self.pending();
        let mut pending = self
            .filled
            .wait_while(pending, |pending| pending.records.is_empty() && !pending.closed)
            .unwrap_or_else(PoisonError::into_inner);
        let record = pending.records.pop_front()?;
        pending.bytes -= record.len();
        Some(record)
    }

    /// Counts a record that [`Queue::next`] returned as written or failed.
    pub(super) fn finish(&self) {
        self.finished.send_modify(|finished| *finished += 1);
    }

    /// Tells whether the thread is through with every record that was queued.
    pub(super) fn is_finished(&self) -> bool {
        let queued = self.pending().queued;
        *self.finished.borrow() >= queued
    }

    /// Completes when every record that is queued now was written or failed.
    pub(super) async fn finished(&self) {
        let queued = self.pending().queued;
        // The sender lives as long as this.
        self.finished.subscribe().wait_for(|finished| *finished >= queued).await.ok();
    }

    /// Closes the queue: [`Queue::next`] returns `None` once it is empty.
    pub(super) fn close(&self) {
        self.pending().closed = true;
        self.filled.notify_all();
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        lock(&self.pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_leave_in_the_order_in_which_they_came_and_the_last_before_the_end() {
        let queue = Queue::default();
        for record in [vec![1], vec![2], vec![3]] {
            queue.push(record).unwrap();
        }
        queue.close();
        assert_eq!(std::iter::from_fn(|| queue.next()).flatten().collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn a_full_queue_takes_nothing_until_a_record_is_written() {
        let queue = Queue::default();
        queue.push(vec![0; MAX_BYTES]).unwrap();
        assert_eq!(queue.push(vec![1]), Err(Full));
        queue.next().unwrap();
        queue.push(vec![1]).unwrap();
    }

    #[tokio::test]
    async fn a_call_waits_for_what_was_queued_before_it_and_for_nothing_else() {
        let queue = Queue::default();
        queue.finished().await;
        queue.push(vec![1]).unwrap();
        let mut finished = std::pin::pin!(queue.finished());
        assert!(futures_util::poll!(&mut finished).is_pending());
        queue.push(vec![2]).unwrap();
        queue.next().unwrap();
        queue.finish();
        finished.await;
    }
}
