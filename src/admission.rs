//! Limits connections that have not sent a request yet: a new one is always accepted, and the oldest is
//! closed for it.
//!
//! A listener that stops accepting at its limit lets idle connections lock every client out. Here idle
//! connections evict each other, while a client that sends its request at once is served before it would be
//! evicted.
//!
//! `limits.rs` evicts by another rule: its connections send calls and keep idle for long, so the one that is
//! idle for longest goes, and never one with a call in flight. Here each connection sends one request, and
//! age decides.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;

use crate::mutex::lock;

/// The connections of one listener that count against its limit.
#[derive(Debug)]
pub struct Admission {
    limit: usize,
    admissions: Arc<Mutex<Admissions>>,
}

#[derive(Debug, Default)]
struct Admissions {
    /// How many were ever admitted; the next one's number.
    count: u64,
    /// By number, so the oldest is first.
    open: BTreeMap<u64, CancellationToken>,
}

/// One connection; it counts against the limit until this value is dropped.
#[derive(Debug)]
pub struct Admitted {
    number: u64,
    evicted: CancellationToken,
    admissions: Arc<Mutex<Admissions>>,
}

impl Admission {
    /// Admits at most `limit` connections at once.
    pub fn new(limit: usize) -> Self {
        Self { limit, admissions: Arc::default() }
    }

    /// Admits a connection. Beyond the limit the oldest one is evicted.
    pub fn admit(&self) -> Admitted {
        let mut admissions = lock(&self.admissions);
        while admissions.open.len() >= self.limit {
            let Some((_, oldest)) = admissions.open.pop_first() else { break };
            oldest.cancel();
        }
        let (number, evicted) = (admissions.count, CancellationToken::new());
        admissions.count += 1;
        admissions.open.insert(number, evicted.clone());
        drop(admissions);
        Admitted { number, evicted, admissions: Arc::clone(&self.admissions) }
    }
}

impl Admitted {
    /// Completes when this connection is evicted by a newer one and must be closed.
    pub async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        lock(&self.admissions).open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn must_go(admitted: &Admitted) -> bool {
        admitted.evicted.is_cancelled()
    }

    #[test]
    fn the_newest_evicts_the_oldest_and_one_that_ended_no_longer_counts() {
        let admission = Admission::new(2);
        let (first, second) = (admission.admit(), admission.admit());
        let third = admission.admit();
        assert_eq!([&first, &second, &third].map(must_go), [true, false, false]);
        drop(second);
        let fourth = admission.admit();
        assert_eq!([&third, &fourth].map(must_go), [false, false]);
    }
}
