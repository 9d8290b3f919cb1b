//! Brings exec, attach and port-forward streams to backends that kubelet on this node cannot dial.
//!
//! kubelet dials the URL that a backend returns. Where that cannot work (the backend is on another host or in a VM, or
//! serves `https` with a certificate of its own) crimux returns a URL of its own loopback listener instead, with a
//! token that is good for one use within one minute, and copies the connection byte for byte: SPDY and WebSocket pass
//! because nothing is interpreted ([`head`] touches the path and `Host` of the first request, nothing else). The
//! listener is on loopback only, because the token is all the authentication there is. What may be dialled is decided
//! in `url.rs`: never what a remote backend wishes. A local backend's `https` URL is relayed only where `tls` is
//! configured to verify it with; else it passes untouched. Neither tokens nor data are ever logged.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backend::connect::Connector;
use crate::config::BackendConfig;

mod copy;
pub mod head;
mod metrics;
mod serve;
mod tokens;
mod url;

pub use metrics::RelayMetrics;
pub use url::UrlError;

use tokens::{Grant, Tokens};
use url::{Kind, Plan};

/// How many connections may be without a complete request head at once; more wait in the kernel's backlog. They need
/// no token yet, so without a bound any process of the node could use up crimux's file descriptors.
const UNREAD_HEADS: usize = 512;

/// Between two attempts to accept when the kernel refuses, as it does without file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What becomes of a backend's streaming URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// kubelet gets it as it is.
    Pass,
    /// kubelet gets this one instead. It holds a token: it must not be logged.
    Relay(String),
}

/// The relay: its listener, and what its tokens stand for.
#[derive(Debug)]
pub struct Relay {
    /// Taken by [`Relay::run`], so that a draining relay refuses connections.
    listener: Mutex<Option<TcpListener>>,
    address: SocketAddr,
    tokens: Mutex<Tokens>,
    unread_heads: Arc<Semaphore>,
    metrics: RelayMetrics,
}

impl Relay {
    /// Listens on a port of 127.0.0.1 that the kernel chooses. Connections wait until [`Relay::run`].
    ///
    /// # Errors
    ///
    /// Fails if the kernel has no port.
    pub async fn bind(metrics: RelayMetrics) -> io::Result<Arc<Self>> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        Ok(Arc::new(Self {
            address: listener.local_addr()?,
            listener: Mutex::new(Some(listener)),
            tokens: Mutex::default(),
            unread_heads: Arc::new(Semaphore::new(UNREAD_HEADS)),
            metrics,
        }))
    }

    /// Where the relay listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Decides what becomes of `url`, which `backend` returned, and mints a token if it is to be relayed.
    ///
    /// The stream will be dialled with `connector`, which is the one for `config`. No I/O.
    ///
    /// # Errors
    ///
    /// A [`UrlError`] if the URL must be neither passed nor dialled.
    pub fn decide(
        &self,
        backend: &str,
        config: &BackendConfig,
        connector: &Arc<Connector>,
        url: &str,
    ) -> Result<Decision, UrlError> {
        let stream = match url::plan(config, url)? {
            Plan::Pass => return Ok(Decision::Pass),
            Plan::Relay(stream) => stream,
        };
        let token = tokens::mint().map_err(UrlError::NoRandom)?;
        let ours = format!("http://{}/{}/{token}{}", self.address, stream.kind.as_str(), stream.query);
        let grant = Grant { backend: backend.to_owned(), connector: Arc::clone(connector), stream };
        self.tokens().insert(token, grant, Instant::now());
        Ok(Decision::Relay(ours))
    }

    /// Serves until `shutdown`, then accepts nothing more, gives open streams `drain_timeout`, and cuts what is left.
    ///
    /// Runs once; a second run returns at once.
    pub async fn run(self: Arc<Self>, shutdown: impl Future<Output = ()>, drain_timeout: Duration) {
        let Some(listener) = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return;
        };
        let (streams, cut) = (TaskTracker::new(), CancellationToken::new());
        tokio::select! {
            () = shutdown => {}
            () = self.accept(&listener, &streams, &cut) => {}
            () = self.purge() => {}
        }
        drop(listener);
        streams.close();
        if tokio::time::timeout(drain_timeout, streams.wait()).await.is_err() {
            tracing::info!(streams = streams.len(), "cutting the streams that outlasted the drain");
            cut.cancel();
            streams.wait().await;
        }
    }

    /// Accepts for ever.
    async fn accept(
        self: &Arc<Self>,
        listener: &TcpListener,
        streams: &TaskTracker,
        cut: &CancellationToken,
    ) {
        loop {
            match self.accept_one(listener).await {
                Ok((client, permit)) => {
                    let (relay, cut) = (Arc::clone(self), cut.clone());
                    streams.spawn(async move {
                        cut.run_until_cancelled(serve::serve(&relay, client, permit)).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the streaming relay cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn accept_one(&self, listener: &TcpListener) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
        let permit = Arc::clone(&self.unread_heads).acquire_owned().await.map_err(io::Error::other)?;
        let (client, _) = listener.accept().await?;
        Ok((client, permit))
    }

    /// Forgets expired tokens even when none is minted or redeemed any more. For ever.
    async fn purge(&self) {
        let mut ticks = tokio::time::interval(tokens::LIFETIME);
        loop {
            let now = ticks.tick().await;
            self.tokens().purge(now);
        }
    }

    fn redeem(&self, kind: Kind, token: &str) -> Option<Grant> {
        self.tokens().redeem(kind, token, Instant::now())
    }

    fn tokens(&self) -> MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
