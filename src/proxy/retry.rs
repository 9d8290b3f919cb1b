//! Repeats a call until it is answered: after an error, for a lost reply, and for a backend that is slow or
//! still starting.
//!
//! A failed attempt is repeated with exponential backoff. An attempt without an answer is hedged: a second
//! one starts after five seconds and a third ten seconds later, because a lost reply must not be waited for
//! as long as a slow one may take, and the node's conditions expire after 30 s. The first answer cancels the
//! other attempts.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::error::Error;

/// The timeout of one attempt; further ones start long before that.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the newest attempt may be unanswered before a second one starts; the third starts after twice as
/// long.
const HEDGE_AFTER: Duration = Duration::from_secs(5);
/// The most attempts in flight at once.
const MAX_ATTEMPTS: u32 = 3;

/// Calls `attempt` until one is OK. Each error is passed to `is_retryable`; after an error for which it
/// returns false, the result is `None`.
pub(super) async fn retry_hedged<T, F: Future<Output = Result<T, Error>>>(
    longest_pause: Duration,
    mut attempt: impl FnMut() -> F,
    mut is_retryable: impl FnMut(&Error) -> bool,
) -> Option<T> {
    let mut backoff = Backoff::new(longest_pause);
    let mut attempts = FuturesUnordered::from_iter([attempt()]);
    let mut next = Instant::now() + HEDGE_AFTER;
    loop {
        let in_flight = u32::try_from(attempts.len()).unwrap_or(u32::MAX);
        tokio::select! {
            Some(answer) = attempts.next() => {
                match answer {
                    Ok(answer) => return Some(answer),
                    Err(error) if !is_retryable(&error) => return None,
                    Err(_) => {}
                }
                next = Instant::now() + backoff.next_pause();
            }
            () = tokio::time::sleep_until(next), if in_flight < MAX_ATTEMPTS => {
                attempts.push(attempt());
                next = Instant::now() + HEDGE_AFTER * (in_flight + 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    const LONGEST: Duration = Duration::from_secs(1);

    fn lost() -> Error {
        Error::lost_backend("a".into(), "gone")
    }

    #[tokio::test(start_paused = true)]
    async fn a_reply_that_never_comes_is_asked_for_again_after_seconds_and_the_third_time_is_the_last() {
        let started = Instant::now();
        let asked = RefCell::new(Vec::new());
        let ask = || {
            asked.borrow_mut().push(started.elapsed().as_secs());
            std::future::pending::<Result<(), Error>>()
        };
        let asking = retry_hedged(LONGEST, ask, |_| true);
        assert!(tokio::time::timeout(Duration::from_secs(59), asking).await.is_err());
        assert_eq!(*asked.borrow(), [0, 5, 15]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_answer_of_the_second_attempt_does_not_wait_for_the_first() {
        let count = Cell::new(0);
        let ask = || {
            count.set(count.get() + 1);
            let number = count.get();
            async move { if number == 1 { std::future::pending().await } else { Ok(number) } }
        };
        assert_eq!(retry_hedged(LONGEST, ask, |_| true).await, Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_repeated_ever_more_slowly_until_it_is_final() {
        let started = Instant::now();
        let count = Cell::new(0);
        let ask = async || Err::<(), _>(lost());
        let go_on = |_: &Error| {
            count.set(count.get() + 1);
            count.get() < 8
        };
        assert_eq!(retry_hedged(LONGEST, ask, go_on).await, None);
        // 50 + 100 + 200 + 400 + 800 + 1000 + 1000 ms.
        assert_eq!(started.elapsed(), Duration::from_millis(3550));
    }
}
