//! The accept loop of every listener that crimux serves itself: the CRI sockets and the relay.

use std::io;
use std::time::Duration;

use crate::backoff::Backoff;

/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Accepts connections and hands each to `serve`. Never completes: drop it to stop accepting.
///
/// accept(2) fails while the process has no file descriptor left; then the connection waits in the kernel's
/// backlog, so the loop pauses instead of spinning. `listener` names the listener in the log.
pub async fn accept_loop<C, A>(listener: &str, accept: impl Fn() -> A, mut serve: impl FnMut(C))
where
    A: Future<Output = io::Result<C>>,
{
    let mut backoff = Backoff::new(LONGEST_PAUSE);
    loop {
        match accept().await {
            Ok(connection) => {
                backoff.reset();
                serve(connection);
            }
            Err(error) => {
                let pause = backoff.next_pause();
                tracing::warn!(listener, %error, ?pause, "a connection could not be accepted");
                tokio::time::sleep(pause).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failures_are_retried_ever_more_slowly_until_a_connection_comes() {
        let started = tokio::time::Instant::now();
        let (attempts, mut served) = (std::cell::Cell::new(0), Vec::new());
        let attempts = &attempts;
        let accept = || async move {
            attempts.set(attempts.get() + 1);
            match attempts.get() {
                1..=7 => Err(io::Error::from_raw_os_error(24)),
                8 => Ok("client"),
                _ => std::future::pending().await,
            }
        };
        let looping = accept_loop("test", accept, |client| served.push((client, started.elapsed())));
        assert!(tokio::time::timeout(Duration::from_secs(60), looping).await.is_err(), "it never completes");
        // 50 + 100 + 200 + 400 + 800 + 1000 + 1000 ms.
        assert_eq!(served, [("client", Duration::from_millis(3550))]);
    }
}
