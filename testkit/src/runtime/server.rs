//! Listens, accepts, and runs the HTTP/2 connections.
//!
//! All calls of a connection run inside its task: what a call queues is written by the same poll, and nothing
//! survives a connection that breaks.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

use super::call::{self, Break, Shared};
use super::gate::Gated;

/// Flow control windows, in bytes: a list of megabytes must not wait for updates.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 256 << 20;

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
        // Errors of accept concern one connection that is gone.
        match &listener {
            Listener::Unix(listener) => {
                let Ok((connection, _)) = listener.accept().await else { continue };
                connections.spawn(connection_task(connection, Arc::clone(&shared), breaking.clone()));
            }
            Listener::Tcp(listener) => {
                let Ok((connection, _)) = listener.accept().await else { continue };
                let _ = connection.set_nodelay(true);
                connections.spawn(connection_task(connection, Arc::clone(&shared), breaking.clone()));
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection_task<T>(connection: T, shared: Arc<Shared>, mut breaking: Break)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    breaking.mark_unchanged();
    tokio::select! {
        _ = breaking.changed() => {}
        // A connection that fails is the client's business.
        _ = run(connection, shared) => {}
    }
}

async fn run<T>(connection: T, shared: Arc<Shared>) -> Result<(), h2::Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let frame_size = u32::try_from(shared.frame_size).unwrap_or(16 << 10);
    let gated = Gated { inner: connection, gate: Arc::clone(&shared.gate) };
    let mut connection = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(frame_size)
        .max_header_list_size(1 << 20)
        // Tests cancel by the hundred; that must not look like an attack.
        .max_pending_accept_reset_streams(1 << 16)
        .max_concurrent_reset_streams(1 << 16)
        .max_local_error_reset_streams(None)
        .handshake::<_, Bytes>(gated)
        .await?;
    let mut calls = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(accepted) => {
                    let (request, respond) = accepted?;
                    calls.push(call::serve(Arc::clone(&shared), request, respond));
                }
                None => return Ok(()),
            },
            Some(breaks) = calls.next() => if breaks { return Ok(()) },
        }
    }
}
