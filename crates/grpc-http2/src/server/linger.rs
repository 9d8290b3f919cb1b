//! The end of a connection: our side is closed first, and the client has a moment to close its own.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// How long a client has to close its side.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How many bytes are discarded at once.
const DISCARD_SIZE: usize = 4 << 10;

/// Closes our side of a connection, then discards what the client sends until it has closed its side, for at
/// most [`TIMEOUT`].
///
/// A client that writes to a closed connection may end with an error before it has read our GOAWAY, and could
/// not tell which of its calls may be sent again.
#[derive(Debug)]
pub(super) struct Linger {
    timeout: Pin<Box<Sleep>>,
}

impl Linger {
    pub(super) fn new() -> Self {
        Self { timeout: Box::pin(tokio::time::sleep(TIMEOUT)) }
    }

    pub(super) fn poll<S: AsyncRead + AsyncWrite>(
        &mut self,
        mut io: Pin<&mut S>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        if self.timeout.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if ready!(io.as_mut().poll_shutdown(cx)).is_err() {
            return Poll::Ready(());
        }
        let mut discarded = [0; DISCARD_SIZE];
        loop {
            let mut read = ReadBuf::new(&mut discarded);
            match ready!(io.as_mut().poll_read(cx, &mut read)) {
                Ok(()) if !read.filled().is_empty() => {}
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
    }
}
