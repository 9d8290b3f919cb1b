//! Copies a stream in both directions until both are closed, with half-close and back-pressure.
//!
//! tokio's `copy_bidirectional` gives up both directions at the first error, but a process that exits while
//! its stdin is still being sent ends in exactly that: the last output is on its way back while the writes
//! forward fail. So each direction ends on its own, and only a failed read, which means a dead connection
//! with nothing left in it, ends both. Nothing is interpreted and nothing times out; a direction holds 8 KiB
//! at most.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use prometheus::IntCounter;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::backend::connect::Stream;

/// Counters of the bytes read from either side.
#[derive(Debug)]
pub(super) struct Counters {
    pub(super) to_backend: IntCounter,
    pub(super) to_client: IntCounter,
}

/// How one direction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CopyEnd {
    /// The reader reached its end, and the writer was closed.
    Closed,
    /// Reading failed.
    ReadFailed,
    /// Writing failed.
    WriteFailed,
}

/// Counts the bytes read, and records whether a read failed.
struct Counted<R> {
    reader: R,
    counter: IntCounter,
    failed: bool,
}

impl<R: AsyncRead + Unpin> AsyncRead for Counted<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.reader).poll_read(cx, buf));
        self.failed |= read.is_err();
        self.counter.inc_by((buf.filled().len() - before) as u64);
        Poll::Ready(read)
    }
}

/// Copies between `client` and `backend` until both directions ended or one side is dead.
pub(super) async fn copy_both_ways(client: &mut TcpStream, backend: Stream, counters: Counters) {
    let (client_read, client_write) = client.split();
    let (backend_read, backend_write) = tokio::io::split(backend);
    let mut forward = pin!(copy_one_way(client_read, backend_write, counters.to_backend));
    let mut back = pin!(copy_one_way(backend_read, client_write, counters.to_client));
    let forward_first = tokio::select! {
        end = &mut forward => (end != CopyEnd::ReadFailed).then_some(true),
        end = &mut back => (end != CopyEnd::ReadFailed).then_some(false),
    };
    match forward_first {
        Some(true) => drop(back.await),
        Some(false) => drop(forward.await),
        None => {}
    }
}

async fn copy_one_way(
    reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    counter: IntCounter,
) -> CopyEnd {
    let mut reader = Counted { reader, counter, failed: false };
    match tokio::io::copy(&mut reader, &mut writer).await {
        Ok(_) if writer.shutdown().await.is_ok() => CopyEnd::Closed,
        Err(_) if reader.failed => CopyEnd::ReadFailed,
        Ok(_) | Err(_) => CopyEnd::WriteFailed,
    }
}
