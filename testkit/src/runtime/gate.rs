//! Lets connections stand still, as if their process had been stopped.
//!
//! While the gate is shut nothing is read and nothing is written, but connections stay open: a client sees
//! what it would see of a runtime that hangs as a whole.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

/// Opens and shuts the connections of one runtime.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    shut: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
}

impl Gate {
    pub(crate) fn shut(&self) {
        self.shut.store(true, Ordering::SeqCst);
    }

    pub(crate) fn open(&self) {
        self.shut.store(false, Ordering::SeqCst);
        let waiting = std::mem::take(&mut *self.waiting.lock().expect("no holder of this lock panics"));
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Is ready when the gate is open.
    pub(crate) fn poll_open(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.shut.load(Ordering::SeqCst) {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.lock().expect("no holder of this lock panics");
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        // It may have been opened since the first look, and `open` would then have missed this waker.
        if self.shut.load(Ordering::SeqCst) { Poll::Pending } else { Poll::Ready(()) }
    }
}
