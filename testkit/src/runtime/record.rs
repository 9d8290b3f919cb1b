//! Remembers every call as it came in: path, metadata, bytes, time, and how it ended.
//!
//! Bytes are kept as they were received, before anything decodes them, so that a test can demand equality. It
//! can be switched off, because a benchmark's backend must not grow.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;
use tokio::sync::watch;

/// One call that reached the runtime.
#[derive(Debug, Clone)]
pub struct Call {
    /// The whole path, such as `/runtime.v1.RuntimeService/Version`.
    pub path: String,
    /// The request headers, as they came.
    pub metadata: HeaderMap,
    /// The request's first message, as it came; empty if there was none.
    pub message: Bytes,
    /// Messages after the first, for client-streaming RPCs that no CRI has yet.
    pub further_messages: Vec<Bytes>,
    /// When the message had arrived.
    pub at: Instant,
    /// How it ended, if it has.
    pub end: End,
}

impl Call {
    /// The last segment of the path, such as `Version`.
    pub fn method(&self) -> &str {
        last_segment(&self.path)
    }

    /// Whether the client left before the answer was complete.
    pub fn cancelled(&self) -> bool {
        self.end == End::Cancelled
    }

    /// The metadata value of `name` as text, if there is one and it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.metadata.get(name)?.to_str().ok()
    }

    /// Decodes the message.
    ///
    /// # Panics
    /// If the bytes are not such a message.
    pub fn decode<M: prost::Message + Default>(&self) -> M {
        M::decode(self.message.clone()).expect("the recorded bytes are a message of this type")
    }
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It has not.
    Open,
    /// With an answer, or with what a fault puts in its place.
    Answered,
    /// The client reset the stream, or the connection broke, before the answer was complete.
    Cancelled,
}

pub(crate) fn last_segment(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The calls so far.
#[derive(Debug)]
pub(crate) struct Recorder {
    enabled: bool,
    calls: Mutex<Calls>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Calls {
    /// How many were cleared before the first of `list`.
    cleared: usize,
    list: Vec<Call>,
}

impl Recorder {
    pub(crate) fn new(enabled: bool) -> Arc<Self> {
        Arc::new(Self { enabled, calls: Mutex::default(), changed: watch::Sender::new(()) })
    }

    /// Writes a call down; dropping the entry unanswered marks it as cancelled.
    pub(crate) fn record(self: &Arc<Self>, make: impl FnOnce() -> Call) -> Entry {
        if !self.enabled {
            return Entry { recorder: None, number: 0 };
        }
        let mut calls = self.lock();
        calls.list.push(make());
        let number = calls.cleared + calls.list.len() - 1;
        drop(calls);
        self.changed.send_replace(());
        Entry { recorder: Some(Arc::clone(self)), number }
    }

    /// Returns the calls of `method`, a path or its last segment; `*` is all.
    pub(crate) fn calls(&self, method: &str) -> Vec<Call> {
        let matches = |call: &&Call| method == "*" || call.path == method || call.method() == method;
        self.lock().list.iter().filter(matches).cloned().collect()
    }

    pub(crate) fn clear(&self) {
        let mut calls = self.lock();
        calls.cleared += calls.list.len();
        calls.list.clear();
    }

    /// Ends with each change of the record.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn end(&self, number: usize, end: End) {
        let mut calls = self.lock();
        let cleared = calls.cleared;
        if let Some(call) = number.checked_sub(cleared).and_then(|index| calls.list.get_mut(index)) {
            call.end = end;
        }
        drop(calls);
        self.changed.send_replace(());
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().expect("no holder of this lock panics")
    }
}

/// A call in the record that has not ended yet.
#[derive(Debug)]
pub(crate) struct Entry {
    recorder: Option<Arc<Recorder>>,
    number: usize,
}

impl Entry {
    pub(crate) fn answered(mut self) {
        if let Some(recorder) = self.recorder.take() {
            recorder.end(self.number, End::Answered);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(recorder) = self.recorder.take() {
            recorder.end(self.number, End::Cancelled);
        }
    }
}
