//! What clients may make crimux hold, over all of its sockets: connections, streams, bytes of requests and of
//! replies.
//!
//! The HTTP/2 crate enforces all but the number of connections; here are the current values, which the
//! configuration gives, and what is told of a limit that is reached: a counter, and a line in the log at most
//! once a minute.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use grpc_http2::server::ServerConfig;
use grpc_http2::{Budget, Limit, LimitHook};
use prometheus::IntCounter;

use crate::codec;
use crate::config::Limits;
use crate::log_limit::LogLimit;
use crate::metrics::Metrics;
use crate::mutex::lock;

/// The limits as the `limit` label and the log name them: the keys of the configuration.
const NAMES: [&str; 6] =
    ["connections", "streams", "metadata_kib", "requests_mib", "receive_time", "unread_mib"];

/// The current limits.
#[derive(Debug)]
pub struct ClientLimits {
    current: Mutex<Limits>,
    connections: AtomicUsize,
    streams: AtomicUsize,
    request_budget: Arc<Budget>,
    unread_budget: Arc<Budget>,
    reached: [IntCounter; NAMES.len()],
    log_limits: Mutex<[LogLimit; NAMES.len()]>,
}

/// The place of one connection; given back when dropped.
#[derive(Debug)]
pub struct ConnectionSlot(Arc<ClientLimits>);

/// An open stream, for the count alone: the HTTP/2 crate holds each connection to its limit.
#[derive(Debug)]
pub struct OpenStream(Arc<ClientLimits>);

impl ClientLimits {
    /// Starts with these limits.
    pub fn new(limits: &Limits, metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            current: Mutex::new(*limits),
            connections: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            request_budget: Budget::new(limits.request_bytes),
            unread_budget: Budget::new(limits.unread_bytes),
            // A series that appears with its first increment cannot be alerted on.
            reached: NAMES.map(|name| metrics.limit_reached(name)),
            log_limits: Mutex::default(),
        })
    }

    /// Replaces the limits. Streams and metadata of a connection stay as they were announced to it.
    pub fn replace(&self, limits: &Limits) {
        self.request_budget.set_limit(limits.request_bytes);
        self.unread_budget.set_limit(limits.unread_bytes);
        *lock(&self.current) = *limits;
    }

    /// Takes a place for a connection; `None` if all are taken.
    pub fn accept_connection(self: &Arc<Self>) -> Option<ConnectionSlot> {
        let limit = self.current().connections;
        if self.connections.fetch_add(1, Ordering::Relaxed) < limit {
            return Some(ConnectionSlot(Arc::clone(self)));
        }
        self.connections.fetch_sub(1, Ordering::Relaxed);
        self.note_reached(0);
        None
    }

    /// Counts a call until the returned value is dropped.
    pub fn open_stream(self: &Arc<Self>) -> OpenStream {
        self.streams.fetch_add(1, Ordering::Relaxed);
        OpenStream(Arc::clone(self))
    }

    /// Returns how many connections and streams clients have open.
    pub fn open(&self) -> (usize, usize) {
        (self.connections.load(Ordering::Relaxed), self.streams.load(Ordering::Relaxed))
    }

    /// Returns what a connection announces and accepts.
    pub fn http2(self: &Arc<Self>) -> ServerConfig {
        let (limits, noted) = (self.current(), Arc::clone(self));
        ServerConfig {
            max_concurrent_streams: limits.streams,
            max_header_list: limits.metadata_bytes,
            max_request: codec::PREFIX + codec::MAX_REQUEST,
            request_budget: Arc::clone(&self.request_budget),
            unread_budget: Arc::clone(&self.unread_budget),
            on_limit: LimitHook::new(move |limit| noted.note_reached(index(limit))),
            ..ServerConfig::default()
        }
    }

    fn current(&self) -> Limits {
        *lock(&self.current)
    }

    fn note_reached(&self, index: usize) {
        self.reached[index].inc();
        if lock(&self.log_limits)[index].count(1).is_some() {
            tracing::warn!(
                limit = NAMES[index],
                "a client has reached a limit; the next minute says no more of it"
            );
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

fn index(limit: Limit) -> usize {
    match limit {
        Limit::Streams => 1,
        Limit::Metadata => 2,
        Limit::RequestBytes => 3,
        Limit::ReceiveTime => 4,
        Limit::UnreadBytes => 5,
    }
}
