//! `admin.http`: a port without authentication that anybody on the node, and maybe beyond it, can connect to.
//!
//! So what it may be made to hold is bounded: 64 connections, of which the oldest gives way to a new one, 16
//! KiB of a request, seconds for its head and for the whole connection. A port that is taken is tried again
//! and again while the node is served; `crimux status` shows it meanwhile.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

use crate::accept::accept_loop;
use crate::admission::{Admission, Admitted};
use crate::mutex::lock;
use crate::server::{ListeningSocket, Sockets};
use crate::shutdown::Shutdown;

/// How many connections may be open at once.
const CONNECTIONS: usize = 64;
/// How long the head of a request may take, which is also how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may last, however it is used.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);
/// The most of a request that is held, in bytes.
const MAX_REQUEST: usize = 16 << 10;
/// Between two attempts at a port that is taken.
const RETRY: Duration = Duration::from_secs(5);

/// The port, and whether it listens.
#[derive(Debug)]
pub(super) struct Port {
    sockets: Sockets,
    state: Mutex<PortState>,
    /// The socket, as another process may be handed it.
    socket: Mutex<Option<Arc<ListeningSocket>>>,
}

/// What `crimux status` shows of the port.
#[derive(Debug, Default, Clone)]
pub(super) struct PortState {
    /// The address it listens on, or tries to; `None` if none is configured.
    pub(super) address: Option<SocketAddr>,
    /// Why it does not listen.
    pub(super) problem: Option<String>,
}

impl Port {
    pub(super) fn new(sockets: &Sockets) -> Self {
        Self { sockets: sockets.clone(), state: Mutex::default(), socket: Mutex::default() }
    }

    pub(super) fn state(&self) -> PortState {
        self.lock().clone()
    }

    /// Listens on `address`. A failure is logged if it is news, and shown from then on.
    pub(super) async fn listen(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let listening = async {
            let (listener, socket) = self.sockets.listen_tcp(address).await?;
            io::Result::Ok((listener.local_addr()?, listener, socket))
        };
        match listening.await {
            Ok((address, listener, socket)) => {
                tracing::info!(%address, "admin.http serves metrics and the status page");
                *self.lock() = PortState { address: Some(address), problem: None };
                *lock(&self.socket) = Some(socket);
                Ok(listener)
            }
            Err(error) => {
                let problem = Some(error.to_string());
                let mut state = self.lock();
                if state.problem != problem {
                    tracing::error!(%address, %error, retry = ?RETRY, "admin.http does not listen; it is tried again");
                }
                *state = PortState { address: Some(address), problem };
                Err(error)
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, PortState> {
        lock(&self.state)
    }
}

/// Serves `routes` until the shutdown begins and the last request is answered. Without a `listener` yet,
/// `listen` is tried until there is one.
pub(super) async fn serve<L>(
    mut listener: Option<TcpListener>,
    listen: impl Fn() -> L,
    routes: Router,
    shutdown: Shutdown,
) where
    L: Future<Output = io::Result<TcpListener>>,
{
    let listener = loop {
        if let Some(listener) = listener {
            break listener;
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => listener = listen().await.ok(),
            () = shutdown.begun() => return,
        }
    };
    let (connections, admission) = (TaskTracker::new(), Admission::new(CONNECTIONS));
    let listener = &listener;
    let accept = || async move { listener.accept().await.map(|(stream, _)| stream) };
    let serve = |stream| {
        connections.spawn(serve_connection(stream, admission.admit(), routes.clone(), shutdown.clone()));
    };
    tokio::select! {
        () = shutdown.begun() => {}
        () = accept_loop("admin.http", accept, serve) => {}
    }
    connections.close();
    connections.wait().await;
}

async fn serve_connection(stream: TcpStream, admitted: Admitted, routes: Router, shutdown: Shutdown) {
    let service = TowerToHyperService::new(routes);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_REQUEST);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let mut draining = pin!(shutdown.into_begun());
    let mut deadline = pin!(tokio::time::sleep(CONNECTION_TIMEOUT));
    let mut is_draining = false;
    loop {
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection to admin.http failed");
                }
                return;
            }
            () = &mut draining, if !is_draining => {
                is_draining = true;
                connection.as_mut().graceful_shutdown();
            }
            () = &mut deadline => return,
            () = admitted.evicted() => return,
        }
    }
}
