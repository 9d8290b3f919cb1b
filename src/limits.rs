//! What clients may make crimux hold, over all of its sockets: connections, streams, bytes of requests and of
//! replies.
//!
//! The HTTP/2 crate enforces all but the number of connections; here are the current values, which the
//! configuration gives, and what is told of a limit that is reached: a counter, and a line in the log at most
//! once a minute. Beyond the number of connections the one that is idle for longest is evicted, of the
//! process that has the most: a client with hundreds does not shut out kubelet, which has two. While all are
//! used, a process with few gets one of `RESERVED` more. `admission.rs`, for listeners whose connections
//! send one request, evicts the oldest.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use grpc_http2::server::ServerConfig;
use grpc_http2::{Budget, Limit, LimitHook};
use prometheus::IntCounter;
use tokio_util::sync::CancellationToken;

use crate::codec;
use crate::config::Limits;
use crate::log_limit::LogLimit;
use crate::metrics::Metrics;
use crate::mutex::lock;

/// The limits as the `limit` label and the log name them: the keys of the configuration.
const NAMES: [&str; 6] =
    ["connections", "streams", "metadata_kib", "requests_mib", "receive_time", "unread_mib"];
/// Those that all clients share: one client that reaches it shuts out the others. The rest is each client's.
const SHARED: [&str; 3] = ["connections", "requests_mib", "unread_mib"];

/// The connections beyond the limit for processes that have fewer than [`FEW`], while another one has more:
/// for kubelet after its restart or a lost connection.
const RESERVED: usize = 16;
/// kubelet has two connections, crictl one.
const FEW: usize = 4;

/// The current limits.
#[derive(Debug)]
pub struct ClientLimits {
    current: Mutex<Limits>,
    connections: Mutex<Connections>,
    /// Increases with each call that ends.
    ended_calls: AtomicU64,
    streams: AtomicUsize,
    request_budget: Arc<Budget>,
    unread_budget: Arc<Budget>,
    reached: [IntCounter; NAMES.len()],
    reached_at: Mutex<[Option<SystemTime>; NAMES.len()]>,
    log_limits: Mutex<[LogLimit; NAMES.len()]>,
}

/// The process that has the most connections open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LargestClient {
    /// Its process ID.
    pub pid: i32,
    /// How many connections it has.
    pub connections: usize,
}

/// The connections that clients have open.
#[derive(Debug, Default)]
struct Connections {
    /// How many were ever accepted; the next one's number.
    count: u64,
    open: BTreeMap<u64, Arc<ClientConnection>>,
}

/// One connection.
#[derive(Debug)]
struct ClientConnection {
    limits: Arc<ClientLimits>,
    /// The process that connected; `None` if the kernel does not tell.
    pid: Option<i32>,
    /// Its calls in flight.
    calls: AtomicUsize,
    /// [`ClientLimits::ended_calls`] when its last call ended, or when it was accepted.
    last_used: AtomicU64,
    /// Cancelled when it is to make room for another one soon.
    evicted: CancellationToken,
    /// Cancelled when another one has its slot.
    replaced: CancellationToken,
}

/// The slot of one connection; given back when dropped.
#[derive(Debug)]
pub struct ConnectionSlot {
    number: u64,
    connection: Arc<ClientConnection>,
}

/// An open stream, for the counts alone: the HTTP/2 crate holds each connection to its limit.
#[derive(Debug)]
pub struct OpenStream(Arc<ClientConnection>);

impl ClientLimits {
    /// Starts with these limits.
    pub fn new(limits: &Limits, metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            current: Mutex::new(*limits),
            connections: Mutex::default(),
            ended_calls: AtomicU64::new(0),
            streams: AtomicUsize::new(0),
            request_budget: Budget::new(limits.request_bytes),
            unread_budget: Budget::new(limits.unread_bytes),
            // A series that appears with its first increment cannot be alerted on.
            reached: NAMES.map(|name| metrics.limit_reached(name)),
            reached_at: Mutex::default(),
            log_limits: Mutex::default(),
        })
    }

    /// Replaces the limits. Streams and metadata of a connection stay as they were announced to it; of
    /// connections that are too many now, the idle ones are closed.
    pub fn replace(&self, limits: &Limits) {
        self.request_budget.set_limit(limits.request_bytes);
        self.unread_budget.set_limit(limits.unread_bytes);
        *lock(&self.current) = *limits;
        let connections = lock(&self.connections);
        for _ in limits.connections..connections.open.len() {
            connections.evict_idle();
        }
    }

    /// Takes a slot for a connection of the process `pid`; `None` if all are taken and none is idle, and no
    /// reserved one is for that process. Of the last eighth of the slots each is taken at the cost of an
    /// idle connection (see `Connections::first_to_go`): a client that never closes its connections, as
    /// critest, locks out neither others nor itself. If no slot is free, such a connection gives its own at
    /// once.
    pub fn accept_connection(self: &Arc<Self>, pid: Option<i32>) -> Option<ConnectionSlot> {
        let limit = self.current().connections;
        let mut connections = lock(&self.connections);
        let open = connections.open.len();
        if open >= limit - limit / 8 {
            connections.evict_idle();
        }
        let is_reserved = || open < limit + RESERVED && connections.has_few(pid);
        if open >= limit && !is_reserved() && !connections.replace_idle() {
            drop(connections);
            self.note_reached(0);
            return None;
        }
        let connection = Arc::new(ClientConnection {
            limits: Arc::clone(self),
            pid,
            calls: AtomicUsize::new(0),
            last_used: AtomicU64::new(self.ended_calls.load(Ordering::Relaxed)),
            evicted: CancellationToken::new(),
            replaced: CancellationToken::new(),
        });
        let number = connections.count;
        connections.count += 1;
        connections.open.insert(number, Arc::clone(&connection));
        Some(ConnectionSlot { number, connection })
    }

    /// Returns how many connections and streams clients have open.
    pub fn open(&self) -> (usize, usize) {
        (lock(&self.connections).open.len(), self.streams.load(Ordering::Relaxed))
    }

    /// Returns the most connections that may be open.
    pub fn max_connections(&self) -> usize {
        self.current().connections
    }

    /// Returns the process that has the most connections open.
    pub fn largest_client(&self) -> Option<LargestClient> {
        let counts = lock(&self.connections).counts();
        let known = counts.into_iter().filter_map(|(pid, connections)| Some((pid?, connections)));
        let largest = known.max_by_key(|(_, connections)| *connections);
        largest.map(|(pid, connections)| LargestClient { pid, connections })
    }

    /// Returns the limits that all clients share and that were reached, each with the last time.
    pub fn shared_reached(&self) -> Vec<(&'static str, SystemTime)> {
        let at = *lock(&self.reached_at);
        let reached = NAMES.into_iter().zip(at).filter(|(name, _)| SHARED.contains(name));
        reached.filter_map(|(name, at)| Some((name, at?))).collect()
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
        lock(&self.reached_at)[index] = Some(SystemTime::now());
        if lock(&self.log_limits)[index].count(1).is_some() {
            // Which client holds the other things is not known.
            let largest = self.largest_client().filter(|_| NAMES[index] == "connections");
            tracing::warn!(
                limit = NAMES[index],
                connections = self.open().0,
                largest_pid = largest.map(|client| client.pid),
                largest_connections = largest.map(|client| client.connections),
                "clients have reached a limit; the next minute says no more of it"
            );
        }
    }
}

impl Connections {
    /// Returns how many connections each process has.
    fn counts(&self) -> BTreeMap<Option<i32>, usize> {
        let mut counts = BTreeMap::new();
        for connection in self.open.values() {
            *counts.entry(connection.pid).or_default() += 1;
        }
        counts
    }

    /// Tells whether a process has few connections while another one has the most.
    fn has_few(&self, pid: Option<i32>) -> bool {
        let counts = self.counts();
        let own = counts.get(&pid).copied().unwrap_or_default();
        pid.is_some() && own < FEW && counts.values().any(|count| *count > own.max(FEW))
    }

    /// Evicts an idle connection that stays so far.
    fn evict_idle(&self) {
        if let Some((_, oldest)) = self.first_to_go(|connection| !connection.evicted.is_cancelled()) {
            oldest.evicted.cancel();
        }
    }

    /// Returns, of the connections without a call in flight for which `may_go` holds, that of the process
    /// with the most connections which was used before all others of it. None of a process with few, while
    /// another one has many.
    fn first_to_go(
        &self,
        may_go: impl Fn(&ClientConnection) -> bool,
    ) -> Option<(u64, &Arc<ClientConnection>)> {
        let counts = self.counts();
        let many = if counts.values().any(|count| *count > FEW) { FEW } else { 0 };
        let idle = self.open.iter().filter(|(_, connection)| {
            let is_idle = connection.calls.load(Ordering::Relaxed) == 0;
            is_idle && counts[&connection.pid] >= many && may_go(connection)
        });
        let order = |connection: &ClientConnection| {
            (Reverse(counts[&connection.pid].max(FEW)), connection.last_used())
        };
        idle.min_by_key(|(_, connection)| order(connection)).map(|(number, connection)| (*number, connection))
    }

    /// Frees the slot of an idle connection, which has not closed itself since it was evicted. Returns false
    /// if every connection is used.
    fn replace_idle(&mut self) -> bool {
        let Some((number, oldest)) = self.first_to_go(|_| true) else { return false };
        oldest.replaced.cancel();
        self.open.remove(&number);
        true
    }
}

impl ClientConnection {
    fn last_used(&self) -> u64 {
        self.last_used.load(Ordering::Relaxed)
    }
}

impl ConnectionSlot {
    /// Counts a call until the returned value is dropped.
    pub fn open_stream(&self) -> OpenStream {
        self.connection.calls.fetch_add(1, Ordering::Relaxed);
        self.connection.limits.streams.fetch_add(1, Ordering::Relaxed);
        OpenStream(Arc::clone(&self.connection))
    }

    /// Completes when the connection is to make room for another one soon.
    pub async fn evicted(&self) {
        self.connection.evicted.cancelled().await;
    }

    /// Completes when another connection has the slot.
    pub async fn replaced(&self) {
        self.connection.replaced.cancelled().await;
    }

    /// Returns whether a call is in flight.
    pub fn is_used(&self) -> bool {
        self.connection.calls.load(Ordering::Relaxed) > 0
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        lock(&self.connection.limits.connections).open.remove(&self.number);
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let ClientConnection { limits, calls, last_used, .. } = &*self.0;
        limits.streams.fetch_sub(1, Ordering::Relaxed);
        last_used.store(limits.ended_calls.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        calls.fetch_sub(1, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(connections: usize) -> Limits {
        let (streams, metadata_bytes, bytes) = (1000, 1 << 16, 1 << 20);
        Limits {
            connections,
            streams,
            metadata_bytes,
            request_bytes: bytes,
            unread_bytes: bytes,
            list_bytes: bytes,
        }
    }

    fn evicted(slots: &[ConnectionSlot]) -> Vec<usize> {
        let is_evicted = |(_, slot): &(usize, &ConnectionSlot)| slot.connection.evicted.is_cancelled();
        slots.iter().enumerate().filter(is_evicted).map(|(number, _)| number).collect()
    }

    #[test]
    fn the_connection_that_is_idle_for_the_longest_time_makes_room() {
        let current = ClientLimits::new(&limits(16), &Metrics::new().unwrap());
        let mut slots: Vec<_> = (0..14).map(|_| current.accept_connection(Some(1)).unwrap()).collect();
        let _in_flight = slots[0].open_stream();
        drop(slots[1].open_stream());
        assert_eq!(evicted(&slots), [0; 0]);
        slots.push(current.accept_connection(Some(1)).unwrap());
        assert_eq!(evicted(&slots), [2], "0 has a call in flight, 1 had one lately");
        slots.push(current.accept_connection(Some(1)).unwrap());
        slots.push(current.accept_connection(Some(1)).unwrap());
        assert_eq!(evicted(&slots), [2, 3, 4]);
        assert!(slots[2].connection.replaced.is_cancelled(), "no slot was free");
        assert_eq!(current.open(), (16, 1));
        current.replace(&limits(8));
        assert_eq!(evicted(&slots).len(), 3 + 8);
        drop(slots);
        assert_eq!(current.open(), (0, 1));
    }

    #[test]
    fn a_client_with_many_connections_does_not_shut_out_one_with_few() {
        let current = ClientLimits::new(&limits(16), &Metrics::new().unwrap());
        let kubelet = [(); 2].map(|()| current.accept_connection(Some(1)).unwrap());
        let many: Vec<_> = (0..14).map(|_| current.accept_connection(Some(2)).unwrap()).collect();
        let more = current.accept_connection(Some(2)).unwrap();
        assert_eq!(evicted(&kubelet), [0; 0], "they are the oldest, and of a client with few");
        let calls: Vec<_> = many.iter().chain([&more]).map(ConnectionSlot::open_stream).collect();
        drop(kubelet);
        let last = [(); 2].map(|()| current.accept_connection(Some(2)).unwrap());
        let _used = last.each_ref().map(ConnectionSlot::open_stream);
        assert!(current.accept_connection(Some(2)).is_none());
        let again = [(); 2].map(|()| current.accept_connection(Some(1)).unwrap());
        assert_eq!(evicted(&again), [0; 0]);
        let others: Vec<_> = (0..9).filter_map(|_| current.accept_connection(Some(3))).collect();
        assert_eq!(current.open().0, 16 + 2 + FEW, "beyond the limit there is room for few");
        drop((calls, others));
    }

    #[test]
    fn among_clients_with_few_connections_the_one_that_is_idle_for_the_longest_time_goes() {
        let current = ClientLimits::new(&limits(16), &Metrics::new().unwrap());
        let mut slots: Vec<_> = (1..=14).map(|pid| current.accept_connection(Some(pid)).unwrap()).collect();
        let kubelet = [(); 2].map(|()| current.accept_connection(Some(99)).unwrap());
        slots.push(current.accept_connection(Some(15)).unwrap());
        assert_eq!((evicted(&kubelet).len(), evicted(&slots)), (0, vec![0, 1, 2]));
    }

    #[test]
    fn of_two_clients_with_many_connections_the_one_that_has_more_makes_room() {
        let current = ClientLimits::new(&limits(16), &Metrics::new().unwrap());
        let less = [(); 5].map(|()| current.accept_connection(Some(1)).unwrap());
        let more: Vec<_> = (0..10).map(|_| current.accept_connection(Some(2)).unwrap()).collect();
        assert_eq!(
            (evicted(&less), evicted(&more)),
            (vec![], vec![0]),
            "though those of the other are older"
        );
    }

    #[test]
    fn a_connection_is_refused_only_if_all_are_used() {
        let current = ClientLimits::new(&limits(2), &Metrics::new().unwrap());
        let slots = [(); 2].map(|()| current.accept_connection(Some(1)).unwrap());
        let mut calls = slots.each_ref().map(|slot| Some(slot.open_stream()));
        assert!(current.shared_reached().is_empty());
        assert!(current.accept_connection(Some(2)).is_none());
        assert!(matches!(*current.shared_reached(), [("connections", _)]));
        assert_eq!(current.largest_client(), Some(LargestClient { pid: 1, connections: 2 }));
        calls[1] = None;
        let third = current.accept_connection(Some(1)).unwrap();
        assert!(!slots[0].connection.replaced.is_cancelled() && slots[1].connection.replaced.is_cancelled());
        drop(slots);
        assert_eq!(current.open(), (1, 1), "the third keeps its slot");
        drop(third);
    }
}
