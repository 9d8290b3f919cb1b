//! A connection whose writes are collected and leave together.
//!
//! The HTTP/2 library writes frame by frame; a reply of headers, data and trailers would cost three system
//! calls and a long list hundreds. As the backend of benchmarks the simulated runtime must be cheaper than
//! that, so the library writes into a buffer, and the connection's task empties it when it has nothing else
//! to do.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::gate::Gate;

/// How much is collected before the library has to wait, in bytes.
const FULL: usize = 1 << 20;

type Collected = Arc<Mutex<BytesMut>>;

/// Splits a connection into what the HTTP/2 library works on and what writes out what it collected.
pub(crate) fn collected<R, W>(reader: R, writer: W, gate: Arc<Gate>) -> (Line<R>, Outgoing<W>) {
    let collected = Collected::default();
    let line = Line { reader, collected: Arc::clone(&collected), gate: Arc::clone(&gate) };
    (line, Outgoing { writer, collected, gate })
}

/// The connection as the HTTP/2 library sees it. A full buffer makes it wait without waking it: the task that
/// empties the buffer is the one that polls the library.
#[derive(Debug)]
pub(crate) struct Line<R> {
    reader: R,
    collected: Collected,
    gate: Arc<Gate>,
}

/// The write side of the connection.
#[derive(Debug)]
pub(crate) struct Outgoing<W> {
    writer: W,
    collected: Collected,
    gate: Arc<Gate>,
}

impl<W: AsyncWrite + Unpin> Outgoing<W> {
    /// Writes until nothing is left; true if the buffer had been full, so that the library must be polled
    /// again.
    pub(crate) fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut collected = lock(&self.collected);
        let was_full = collected.len() >= FULL;
        while !collected.is_empty() {
            ready!(self.gate.poll_open(cx));
            let written = ready!(Pin::new(&mut self.writer).poll_write(cx, &collected))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            collected.advance(written);
        }
        Poll::Ready(Ok(was_full))
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Line<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.gate.poll_open(cx));
        Pin::new(&mut self.reader).poll_read(cx, buffer)
    }
}

impl<R: Unpin> AsyncWrite for Line<R> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut collected = lock(&self.collected);
        if collected.len() >= FULL {
            return Poll::Pending;
        }
        for slice in slices {
            collected.extend_from_slice(slice);
        }
        Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection closes when its task drops both halves.
        Poll::Ready(Ok(()))
    }
}

fn lock(collected: &Collected) -> MutexGuard<'_, BytesMut> {
    collected.lock().unwrap_or_else(PoisonError::into_inner)
}
