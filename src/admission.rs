//! A bound on connections that have not shown yet what they are for: a new one is always taken, the oldest
//! gives way.
//!
//! A listener that stops accepting at its bound lets idle connections keep everybody else out. Here they push
//! out each other, while a client that sends its request at once is served before its turn to give way comes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// The connections of one listener that count.
#[derive(Debug)]
pub struct Admission {
    limit: usize,
    admissions: Arc<Mutex<Admissions>>,
}

#[derive(Debug, Default)]
struct Admissions {
    /// How many were ever admitted.
    count: u64,
    /// In the order in which they came.
    open: BTreeMap<u64, CancellationToken>,
}

/// One connection that counts until this value is dropped.
#[derive(Debug)]
pub struct Admitted {
    number: u64,
    gives_way: CancellationToken,
    admissions: Arc<Mutex<Admissions>>,
}

impl Admission {
    /// Lets at most `limit` connections count at once.
    pub fn new(limit: usize) -> Self {
        Self { limit, admissions: Arc::default() }
    }

    /// Admits a connection. If that makes too many, the oldest ones are told to give way.
    pub fn admit(&self) -> Admitted {
        let mut admissions = lock(&self.admissions);
        while admissions.open.len() >= self.limit {
            let Some((_, oldest)) = admissions.open.pop_first() else { break };
            oldest.cancel();
        }
        let (number, gives_way) = (admissions.count, CancellationToken::new());
        admissions.count += 1;
        admissions.open.insert(number, gives_way.clone());
        drop(admissions);
        Admitted { number, gives_way, admissions: Arc::clone(&self.admissions) }
    }
}

impl Admitted {
    /// Completes when this connection must end because newer ones came.
    pub async fn gives_way(&self) {
        self.gives_way.cancelled().await;
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        lock(&self.admissions).open.remove(&self.number);
    }
}

fn lock(admissions: &Mutex<Admissions>) -> MutexGuard<'_, Admissions> {
    admissions.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn must_go(admitted: &Admitted) -> bool {
        admitted.gives_way.is_cancelled()
    }

    #[test]
    fn the_oldest_gives_way_to_the_newest_and_one_that_ended_counts_no_more() {
        let admission = Admission::new(2);
        let (first, second) = (admission.admit(), admission.admit());
        let third = admission.admit();
        assert_eq!([&first, &second, &third].map(must_go), [true, false, false]);
        drop(second);
        let fourth = admission.admit();
        assert_eq!([&third, &fourth].map(must_go), [false, false]);
    }
}
