//! What can go wrong with a call, and for which calls it does at the moment.
//!
//! Faults are set per method or for all, can be changed at any time, and act on calls that arrive after they
//! were set; a hanging call is released when its fault is cleared or replaced. The table decides, it does not
//! act: acting is the business of the call.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tonic::{Code, Status};

/// What goes wrong with a call.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The call is worked on only after this time. A client that leaves earlier leaves no effect behind.
    Delay(Duration),
    /// The call waits until the fault is cleared or replaced, then is answered as usual.
    Hang,
    /// The work is done, but the reply waits until the fault is cleared or replaced.
    HangReply,
    /// The call ends with this status; its details and metadata are sent along as trailers.
    Error(Status),
    /// The reply is well framed, but its message is these bytes.
    GarbageMessage(Bytes),
    /// The reply's body is these bytes, framing included, followed by status OK.
    GarbageFrame(Bytes),
    /// The reply announces its true length, but the stream ends with OK after this many bytes of the body.
    Truncate(usize),
    /// The stream is reset with `INTERNAL_ERROR`, the connection lives on.
    Reset,
    /// The connection breaks when the call arrives; nothing is done.
    DropConnection,
    /// The work is done, and the connection breaks in place of the reply.
    LoseReply,
}

impl Fault {
    /// A call that ends with `code` and `message`.
    pub fn error(code: Code, message: impl Into<String>) -> Self {
        Self::Error(Status::new(code, message))
    }
}

/// A fault as one call meets it; `released` ends when the fault no longer stands.
#[derive(Debug)]
pub(crate) struct Struck {
    pub(crate) fault: Fault,
    pub(crate) released: watch::Receiver<()>,
}

impl Struck {
    /// Waits until the fault is cleared or replaced.
    pub(crate) async fn release(&mut self) {
        // Nothing is ever sent: the channel closes with the table entry.
        while self.released.changed().await.is_ok() {}
    }
}

#[derive(Debug)]
struct Standing {
    fault: Fault,
    /// How many more calls it strikes; `None` is all of them.
    remaining: Option<usize>,
    hold: watch::Sender<()>,
}

/// The faults that stand at the moment, by method; `*` is every method without its own.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    any: AtomicBool,
    by_method: Mutex<HashMap<String, Standing>>,
}

impl Faults {
    pub(crate) fn set(&self, method: &str, fault: Fault, times: Option<usize>) {
        let standing = Standing { fault, remaining: times, hold: watch::Sender::new(()) };
        self.table().insert(method.to_owned(), standing);
        self.any.store(true, Ordering::Release);
    }

    pub(crate) fn clear(&self, method: &str) {
        self.table().remove(method);
    }

    pub(crate) fn clear_all(&self) {
        self.table().clear();
        self.any.store(false, Ordering::Release);
    }

    /// Returns the fault that strikes this call of `method`, given as last segment of the path.
    pub(crate) fn strike(&self, method: &str) -> Option<Struck> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut table = self.table();
        let key = if table.contains_key(method) { method } else { "*" };
        let standing = table.get_mut(key)?;
        if let Some(remaining) = &mut standing.remaining {
            // An entry that is used up stays: removing it would release calls that hang on it.
            *remaining = remaining.checked_sub(1)?;
        }
        Some(Struck { fault: standing.fault.clone(), released: standing.hold.subscribe() })
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<String, Standing>> {
        self.by_method.lock().expect("no holder of this lock panics")
    }
}
