//! Limits of what the clients of a server may make it hold, over all of its connections.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A limit that a client has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// A stream beyond `max_concurrent_streams`: refused.
    Streams,
    /// A header list beyond `max_header_list`: answered with `RESOURCE_EXHAUSTED`.
    Metadata,
    /// A request for which the budget of request bytes has no room: answered with `RESOURCE_EXHAUSTED`.
    RequestBytes,
    /// A request, or a frame, that was not complete within `receive_timeout`: reset, or the connection
    /// closed.
    ReceiveTime,
    /// A response for which the budget of unread bytes has no room: replaced by `RESOURCE_EXHAUSTED`.
    UnreadBytes,
}

/// Is called, on the task of the connection, each time a client reaches a limit.
#[derive(Clone)]
pub struct LimitHook(Arc<dyn Fn(Limit) + Send + Sync>);

impl LimitHook {
    /// Wraps a function, which must not block.
    pub fn new(hook: impl Fn(Limit) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hook))
    }

    pub(crate) fn call(&self, limit: Limit) {
        self.0(limit);
    }
}

impl Default for LimitHook {
    fn default() -> Self {
        Self::new(|_| {})
    }
}

impl fmt::Debug for LimitHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LimitHook")
    }
}

/// What a connection holds at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Streams, those that wait for their handle to be dropped among them.
    pub streams: usize,
    /// Received bytes of bodies that nobody has read.
    pub received: usize,
    /// Encoded bytes that are not written.
    pub output: usize,
    /// Entries of its queues of streams.
    pub queued: usize,
}

/// How many bytes all connections of a server may hold together. One of them may hold three quarters of it,
/// so that it cannot keep the others from being served.
#[derive(Debug)]
pub struct Budget {
    limit: AtomicUsize,
    used: AtomicUsize,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit: AtomicUsize::new(limit), used: AtomicUsize::new(0) })
    }

    /// Changes the limit; what is held beyond it stays until it is released.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Returns how many bytes are held.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    fn try_reserve(&self, len: usize) -> bool {
        let has_room = self.used.fetch_add(len, Ordering::Relaxed) + len <= self.limit();
        if !has_room {
            self.release(len);
        }
        has_room
    }

    fn release(&self, len: usize) {
        self.used.fetch_sub(len, Ordering::Relaxed);
    }
}

/// What one connection holds of a budget. It may hold `free` bytes whatever the others hold.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    free: usize,
    held: usize,
}

impl Share {
    pub(crate) fn new(budget: Arc<Budget>, free: usize) -> Self {
        Self { budget, free, held: 0 }
    }

    /// Holds `len` bytes more; `false`, and nothing is held, if the budget has no room for them.
    pub(crate) fn try_hold(&mut self, len: usize) -> bool {
        let held = self.held + len;
        let excess = self.excess_of(held) - self.excess_of(self.held);
        if excess > 0 && (held > self.budget.limit() / 4 * 3 || !self.budget.try_reserve(excess)) {
            return false;
        }
        self.held = held;
        true
    }

    /// Holds `len` bytes more, whether there is room or not.
    pub(crate) fn hold(&mut self, len: usize) {
        let excess = self.excess_of(self.held + len) - self.excess_of(self.held);
        self.budget.used.fetch_add(excess, Ordering::Relaxed);
        self.held += len;
    }

    /// Releases bytes that were held.
    pub(crate) fn release(&mut self, len: usize) {
        let held = self.held.saturating_sub(len);
        self.budget.release(self.excess_of(self.held) - self.excess_of(held));
        self.held = held;
    }

    /// Tells whether nothing is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.held == 0
    }

    fn excess_of(&self, held: usize) -> usize {
        held.saturating_sub(self.free)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.release(self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_holds_its_free_bytes_and_three_quarters_of_the_budget() {
        let budget = Budget::new(100);
        let mut greedy = Share::new(Arc::clone(&budget), 10);
        assert!(greedy.try_hold(10));
        assert_eq!(budget.used(), 0, "free bytes are nobody else's");
        assert!(greedy.try_hold(65));
        assert!(!greedy.try_hold(1), "75 of 100");
        let mut other = Share::new(Arc::clone(&budget), 10);
        assert!(other.try_hold(45));
        assert!(!other.try_hold(1), "100 of 100, less what is free");
        let mut third = Share::new(Arc::clone(&budget), 10);
        assert!(third.try_hold(10) && !third.try_hold(1));
        greedy.release(65);
        assert_eq!(budget.used(), 35);
        drop((greedy, other, third));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn what_is_held_beyond_the_limit_is_released_again() {
        let budget = Budget::new(10);
        let mut share = Share::new(Arc::clone(&budget), 0);
        share.hold(50);
        assert!(!share.try_hold(1));
        share.release(50);
        assert!(share.is_empty() && budget.used() == 0);
    }
}
