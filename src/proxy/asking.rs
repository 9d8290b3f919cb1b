//! Asks until there is an answer: what a lost reply, a slow backend and one that is still starting need
//! alike.
//!
//! An attempt that fails is repeated after a pause. Beside an attempt that stays without an answer others are
//! started, the second after five seconds, the third ten later: a reply that was lost must not be waited for
//! as long as a slow one may take, and conditions turn after 30 s. Whichever answers first ends the others.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use crate::error::Error;

/// The first pause after an attempt that failed; it doubles up to the limit that the caller gives.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// How long the newest attempt stays without an answer before a second one starts; a third waits twice as
/// long.
const BESIDE: Duration = Duration::from_secs(5);
/// The most attempts at once.
const MOST: u32 = 3;

/// Asks until `attempt` returns an answer. Each error is passed to `failed`, which returns whether to go on.
pub(super) async fn until_answered<T, F: Future<Output = Result<T, Error>>>(
    longest_pause: Duration,
    mut attempt: impl FnMut() -> F,
    mut failed: impl FnMut(&Error) -> bool,
) -> Option<T> {
    let mut pause = FIRST_PAUSE;
    let mut attempts = FuturesUnordered::from_iter([attempt()]);
    let mut next = Instant::now() + BESIDE;
    loop {
        let under_way = u32::try_from(attempts.len()).unwrap_or(u32::MAX);
        tokio::select! {
            Some(answer) = attempts.next() => {
                match answer {
                    Ok(answer) => return Some(answer),
                    Err(error) if !failed(&error) => return None,
                    Err(_) => {}
                }
                next = Instant::now() + pause;
                pause = (pause * 2).min(longest_pause);
            }
            () = tokio::time::sleep_until(next), if under_way < MOST => {
                attempts.push(attempt());
                next = Instant::now() + BESIDE * (under_way + 1);
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
        Error::Lost { backend: "a".into(), cause: "gone".to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reply_that_never_comes_is_asked_for_again_after_seconds_and_the_third_time_is_the_last() {
        let started = Instant::now();
        let asked = RefCell::new(Vec::new());
        let ask = || {
            asked.borrow_mut().push(started.elapsed().as_secs());
            std::future::pending::<Result<(), Error>>()
        };
        let asking = until_answered(LONGEST, ask, |_| true);
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
        assert_eq!(until_answered(LONGEST, ask, |_| true).await, Some(2));
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
        assert_eq!(until_answered(LONGEST, ask, go_on).await, None);
        // 50 + 100 + 200 + 400 + 800 + 1000 + 1000 ms.
        assert_eq!(started.elapsed(), Duration::from_millis(3550));
    }
}
