//! Gathers everything that is written to a connection in one turn of the runtime into one system call.
//!
//! `h2` writes each DATA frame, and whatever follows it, with a call of its own: a reply of one message costs two
//! writes and wakes its reader twice, a list of 250 kB costs sixteen. A [`Corked`] stream takes the bytes, says
//! yes, and has a task of its own write them once the tasks that are ready now have run: on one thread that is
//! after the whole reply, or the replies of several calls, are there. Back-pressure holds: beyond `HIGH`
//! waiting bytes a writer waits. It must not know what it carries.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// How many bytes may wait to be written.
const HIGH: usize = 512 << 10;
/// How much room for waiting bytes there is at first.
const FIRST: usize = 16 << 10;
/// How much of it is kept when none wait: a client that lists will list again, and growing copies what waits.
const KEPT: usize = 256 << 10;

/// A stream whose writes are gathered.
#[derive(Debug)]
pub struct Corked<S> {
    shared: Arc<Mutex<Shared<S>>>,
}

#[derive(Debug)]
struct Shared<S> {
    stream: S,
    waiting: BytesMut,
    /// Whoever has bytes for which there is no room.
    blocked: Option<Waker>,
    /// Whoever waits until all are written.
    closing: Option<Waker>,
    /// The task that writes.
    writer: Option<Waker>,
    failed: Option<io::ErrorKind>,
    dropped: bool,
}

impl<S: AsyncWrite + Unpin + Send + 'static> Corked<S> {
    /// Corks `stream`; its writer is a task of the current runtime, which ends with it.
    pub fn new(stream: S) -> Self {
        let shared = Shared {
            stream,
            waiting: BytesMut::with_capacity(FIRST),
            blocked: None,
            closing: None,
            writer: None,
            failed: None,
            dropped: false,
        };
        let shared = Arc::new(Mutex::new(shared));
        let writer = Arc::clone(&shared);
        tokio::spawn(std::future::poll_fn(move |cx| lock(&writer).poll_write_out(cx)));
        Self { shared }
    }
}

impl<S: AsyncWrite + Unpin> Shared<S> {
    /// Writes what waits; completes when nothing more can come or go.
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.waiting.is_empty() && self.failed.is_none() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.waiting) {
                Poll::Ready(Ok(0)) => self.failed = Some(io::ErrorKind::WriteZero),
                Poll::Ready(Ok(written)) => self.waiting.advance(written),
                Poll::Ready(Err(error)) => self.failed = Some(error.kind()),
                Poll::Pending => break,
            }
        }
        // Reclaiming is also asking how much room there is in all: what was written is none until then.
        if self.waiting.is_empty() && self.waiting.try_reclaim(KEPT + 1) {
            self.waiting = BytesMut::with_capacity(FIRST);
        }
        if self.waiting.len() < HIGH || self.failed.is_some() {
            self.blocked.take().into_iter().for_each(Waker::wake);
        }
        if self.waiting.is_empty() || self.failed.is_some() {
            self.closing.take().into_iter().for_each(Waker::wake);
        }
        if self.failed.is_some() || (self.dropped && self.waiting.is_empty()) {
            return Poll::Ready(());
        }
        if self.writer.as_ref().is_none_or(|writer| !writer.will_wake(cx.waker())) {
            self.writer = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Returns how many bytes there is room for.
    fn poll_room(&mut self, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        if let Some(kind) = self.failed {
            return Poll::Ready(Err(kind.into()));
        }
        if self.waiting.len() >= HIGH {
            self.blocked = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(HIGH - self.waiting.len()))
    }

    fn wake_writer(&self) {
        if let Some(writer) = &self.writer {
            writer.wake_by_ref();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Corked<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.shared).stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut shared = lock(&self.shared);
        let mut room = ready!(shared.poll_room(cx))?;
        let mut taken = 0;
        for slice in slices {
            let part = &slice[..slice.len().min(room)];
            shared.waiting.extend_from_slice(part);
            room -= part.len();
            taken += part.len();
        }
        shared.wake_writer();
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Says yes: the writer's turn comes when the tasks that are ready now have run.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match lock(&self.shared).failed {
            Some(kind) => Poll::Ready(Err(kind.into())),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = lock(&self.shared);
        if !shared.waiting.is_empty() && shared.failed.is_none() {
            shared.closing = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Pin::new(&mut shared.stream).poll_shutdown(cx)
    }
}

impl<S: Connected> Connected for Corked<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        lock(&self.shared).stream.connect_info()
    }
}

impl<S> Drop for Corked<S> {
    fn drop(&mut self) {
        let mut shared = lock(&self.shared);
        shared.dropped = true;
        if let Some(writer) = &shared.writer {
            writer.wake_by_ref();
        }
    }
}

fn lock<S>(shared: &Mutex<S>) -> MutexGuard<'_, S> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn bytes_written_in_several_steps_arrive_in_order_and_in_one_piece() {
        let (near, mut far) = tokio::net::UnixStream::pair().unwrap();
        let mut near = Corked::new(near);
        for part in ["one ", "two ", "three"] {
            near.write_all(part.as_bytes()).await.unwrap();
            near.flush().await.unwrap();
        }
        let mut buffer = [0; 64];
        let read = far.read(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..read], b"one two three");
    }

    #[tokio::test]
    async fn more_bytes_than_there_is_room_for_arrive_whole() {
        let (near, mut far) = tokio::net::UnixStream::pair().unwrap();
        let sent: Vec<u8> = (0..=250).cycle().take(8 * HIGH).collect();
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            let mut near = Corked::new(near);
            near.write_all(&sent).await.unwrap();
            near.shutdown().await.unwrap();
        });
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.unwrap();
        writing.await.unwrap();
        assert!(received == expected, "{} bytes differ from {}", received.len(), expected.len());
    }

    #[tokio::test]
    async fn what_waits_is_written_even_if_the_stream_is_dropped() {
        let (near, mut far) = tokio::net::UnixStream::pair().unwrap();
        let mut corked = Corked::new(near);
        corked.write_all(b"last words").await.unwrap();
        drop(corked);
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"last words");
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_is_an_error_for_the_next_write() {
        let (near, far) = tokio::net::UnixStream::pair().unwrap();
        drop(far);
        let mut near = Corked::new(near);
        near.write_all(b"nobody").await.unwrap();
        let failed = loop {
            tokio::task::yield_now().await;
            if let Err(error) = near.write_all(b"hears").await {
                break error.kind();
            }
        };
        assert_eq!(failed, io::ErrorKind::BrokenPipe);
    }
}
