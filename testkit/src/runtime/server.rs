//! Listens, accepts, and runs the HTTP/2 connections.
//!
//! All calls of a connection run inside its task: what a call queues is written by the same poll, and nothing
//! survives a connection that breaks.

use std::future::{Future, poll_fn};
use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

use super::call::{self, Break, Shared};
use super::line;

/// Flow control windows, in bytes: a list of megabytes must not wait for updates.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 256 << 20;

/// The pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// A bound listener.
#[derive(Debug)]
pub(crate) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// Binds a Unix socket, in place of one that nobody listens on any more.
    pub(crate) fn unix(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        UnixListener::bind(path).map(Self::Unix)
    }

    pub(crate) async fn tcp(address: std::net::SocketAddr) -> io::Result<Self> {
        TcpListener::bind(address).await.map(Self::Tcp)
    }
}

/// Serves until the task is aborted, which ends the connections too.
pub(crate) async fn serve(listener: Listener, shared: Arc<Shared>, breaking: Break) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = match &listener {
            Listener::Unix(listener) => listener.accept().await.map(|(connection, _)| {
                let (reader, writer) = connection.into_split();
                connections.spawn(until_broken(breaking.clone(), run(reader, writer, Arc::clone(&shared))))
            }),
            Listener::Tcp(listener) => listener.accept().await.map(|(connection, _)| {
                // It fails for a connection that is gone, which its first read tells.
                let _ = connection.set_nodelay(true);
                let (reader, writer) = connection.into_split();
                connections.spawn(until_broken(breaking.clone(), run(reader, writer, Arc::clone(&shared))))
            }),
        };
        if accepted.is_err() {
            // One connection that is gone, or no file descriptors left: then a pause is better than a busy
            // loop.
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn until_broken(mut breaking: Break, running: impl Future<Output = Result<(), ConnectionError>>) {
    breaking.mark_unchanged();
    tokio::select! {
        _ = breaking.changed() => {}
        // A connection that fails is the client's business.
        _ = running => {}
    }
}

type ConnectionError = Box<dyn std::error::Error + Send + Sync>;

/// Runs one connection to its end.
async fn run<R, W>(reader: R, writer: W, shared: Arc<Shared>) -> Result<(), ConnectionError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (line, mut outgoing) = line::collected(reader, writer, Arc::clone(&shared.gate));
    let mut handshake = pin!(settings(&shared).handshake::<_, Bytes>(line));
    let mut connection = poll_fn(|cx| {
        let connection = handshake.as_mut().poll(cx);
        // A failure shows again as soon as there is something to answer.
        let _ = outgoing.poll_write_out(cx);
        connection
    })
    .await?;
    let mut calls = FuturesUnordered::new();
    let mut farewells = shared.goodbye.subscribe();
    let mut goodbye = pin!(farewells.changed());
    let mut leaving = false;
    poll_fn(|cx| {
        if !leaving && goodbye.as_mut().poll(cx).is_ready() {
            leaving = true;
            connection.graceful_shutdown();
        }
        loop {
            let mut idle = true;
            match connection.poll_accept(cx) {
                Poll::Ready(None) => {
                    // The farewell, if the client still takes it.
                    let _ = outgoing.poll_write_out(cx);
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Some(accepted)) => {
                    let (request, respond) = accepted?;
                    calls.push(call::serve(Arc::clone(&shared), request, respond));
                    idle = false;
                }
                Poll::Pending => {}
            }
            match calls.poll_next_unpin(cx) {
                Poll::Ready(Some(true)) => return Poll::Ready(Ok(())),
                Poll::Ready(Some(false)) => idle = false,
                Poll::Ready(None) | Poll::Pending => {}
            }
            // Only when nothing more can be done at once is what was collected written, in one go.
            if idle && !ready!(outgoing.poll_write_out(cx))? {
                return Poll::Pending;
            }
        }
    })
    .await
}

fn settings(shared: &Shared) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(u32::try_from(shared.frame_size).unwrap_or(16 << 10))
        .max_header_list_size(1 << 20)
        // Tests cancel by the hundred; that must not look like an attack.
        .max_pending_accept_reset_streams(1 << 16)
        .max_concurrent_reset_streams(1 << 16)
        .max_local_error_reset_streams(None);
    builder
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Context;

    use http::Request;

    use super::*;
    use crate::runtime::SimRuntime;

    /// Counts the writes of a connection.
    struct Counted<W>(W, Arc<AtomicUsize>);

    impl<W: AsyncWrite + Unpin> AsyncWrite for Counted<W> {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.1.fetch_add(1, Ordering::SeqCst);
            Pin::new(&mut self.0).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    #[tokio::test]
    async fn a_list_of_many_frames_leaves_in_one_write() {
        let sim = SimRuntime::builder("containerd").containers(500, 1).start().await;
        let (near, far) = tokio::io::duplex(4 << 20);
        let (reader, outgoing) = tokio::io::split(far);
        let writes = Arc::new(AtomicUsize::new(0));
        let counted = Counted(outgoing, Arc::clone(&writes));
        let server = tokio::spawn(run(reader, counted, Arc::clone(&sim.shared)));
        let (requests, connection) = h2::client::Builder::new()
            .initial_window_size(16 << 20)
            .initial_connection_window_size(16 << 20)
            .handshake::<_, Bytes>(near)
            .await
            .unwrap();
        let client = tokio::spawn(connection);

        let mut last = (0, 0);
        for _ in 0..3 {
            let mut requests = requests.clone().ready().await.unwrap();
            let before = writes.load(Ordering::SeqCst);
            let request = Request::post("http://localhost/runtime.v1.RuntimeService/ListContainers");
            let (reply, mut body) = requests.send_request(request.body(()).unwrap(), false).unwrap();
            body.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
            let mut reply = reply.await.unwrap().into_body();
            let mut length = 0;
            while let Some(chunk) = reply.data().await {
                let chunk = chunk.unwrap();
                length += chunk.len();
                reply.flow_control().release_capacity(chunk.len()).unwrap();
            }
            // The first reply shares the connection with settings and window updates, the last does not.
            last = (length, writes.load(Ordering::SeqCst) - before);
        }
        assert!(last.0 > 6 * sim.shared.frame_size, "{} bytes are several frames", last.0);
        assert_eq!(last.1, 1);
        client.abort();
        server.abort();
    }
}
