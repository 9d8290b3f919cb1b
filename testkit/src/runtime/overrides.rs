//! Replies that a test puts in the place of the runtime's own, and RPCs that no CRI has.
//!
//! The key is a whole path (`/runtime.v1.RuntimeService/Version`) or its last segment (`Version`).

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::record::{Call, last_segment};
use super::reply::Reply;

/// Makes the reply to a call.
#[derive(Clone)]
pub(crate) enum Handler {
    /// From the call, with all its messages.
    Whole(Arc<dyn Fn(Call) -> Reply + Send + Sync>),
    /// From the call's head, while messages still come.
    Open(Arc<dyn Fn(Call, mpsc::UnboundedReceiver<Bytes>) -> Reply + Send + Sync>),
}

impl fmt::Debug for Handler {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Whole(_) => "Handler::Whole",
            Self::Open(_) => "Handler::Open",
        })
    }
}

/// The handlers by path or method.
#[derive(Debug, Default)]
pub(crate) struct Overrides {
    any: AtomicBool,
    handlers: Mutex<HashMap<String, Handler>>,
}

impl Overrides {
    pub(crate) fn set(&self, key: &str, handler: Handler) {
        self.table().insert(key.to_owned(), handler);
        self.any.store(true, Ordering::Release);
    }

    pub(crate) fn clear(&self) {
        self.table().clear();
        self.any.store(false, Ordering::Release);
    }

    pub(crate) fn find(&self, path: &str) -> Option<Handler> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let handlers = self.table();
        handlers.get(path).or_else(|| handlers.get(last_segment(path))).cloned()
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<String, Handler>> {
        self.handlers.lock().expect("no holder of this lock panics")
    }
}
