//! Relays exec, attach and port-forward streams to backends that kubelet on this node cannot dial.
//!
//! kubelet dials the URL that a backend returns. Where that cannot work (the backend is on another host or in
//! a VM, or serves `https` with a certificate of its own) crimux returns a URL of its own loopback listener
//! instead, with a token that is good for one use within one minute, and copies the connection byte for byte:
//! SPDY and WebSocket pass because nothing is interpreted ([`head`] rewrites the path and `Host` of the first
//! request, nothing else). The listener is on loopback only, because the token is the only authentication.
//! `url.rs` decides which hosts may be dialled; a remote backend never chooses one. A local backend's `https`
//! URL is relayed only if `tls` is configured to verify it with, and passes untouched otherwise. Neither
//! tokens nor data are logged.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::accept::accept_loop;
use crate::admission::Admission;
use crate::backend::connect::Connector;
use crate::config::BackendConfig;
use crate::mutex::lock;
use crate::shutdown::Shutdown;

mod copy;
pub mod head;
mod metrics;
mod serve;
mod tokens;
mod url;

pub use metrics::RelayMetrics;
pub use url::UrlError;

use tokens::{Grant, Tokens};
use url::StreamKind;

/// How many connections may be without a complete request head at once; the oldest gives way to a new one.
/// They need no token yet: without this limit any process of the node could exhaust crimux's file
/// descriptors, and if new ones had to wait, it could keep kubelet out.
const UNREAD_HEADS: usize = 512;

/// The streaming URL that kubelet gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientUrl {
    /// The backend's: kubelet dials the backend itself.
    AsIs,
    /// This URL of the relay. The URL holds a token and must not be logged.
    Relayed(String),
}

/// The relay: its listener, and what its tokens stand for.
#[derive(Debug)]
pub struct Relay {
    /// Taken by [`Relay::run`], so that a draining relay refuses connections.
    listener: Mutex<Option<TcpListener>>,
    address: SocketAddr,
    tokens: Mutex<Tokens>,
    unread_heads: Admission,
    /// Open streams.
    open: AtomicUsize,
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
            unread_heads: Admission::new(UNREAD_HEADS),
            open: AtomicUsize::new(0),
            metrics,
        }))
    }

    /// Returns the address the relay listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the URL that kubelet dials for `url`, which `backend` returned: the same, or one of the relay
    /// with a new token.
    ///
    /// The stream will be dialled with `connector`, which must be the one for `config`. The token is stored
    /// with what to dial, for one minute. No I/O.
    ///
    /// # Errors
    ///
    /// A [`UrlError`] if the URL must be neither passed nor dialled.
    pub fn issue_url(
        &self,
        backend: &str,
        config: &BackendConfig,
        connector: &Arc<Connector>,
        url: &str,
    ) -> Result<ClientUrl, UrlError> {
        let Some(stream) = url::stream_to_relay(config, url)? else { return Ok(ClientUrl::AsIs) };
        let token = tokens::mint().map_err(UrlError::NoRandom)?;
        let relay_url = format!("http://{}/{}/{token}{}", self.address, stream.kind.as_str(), stream.query);
        let grant = Grant { backend: backend.to_owned(), connector: Arc::clone(connector), stream };
        self.tokens().insert(token, grant, Instant::now());
        Ok(ClientUrl::Relayed(relay_url))
    }

    /// Accepts streams until `shutdown` begins, then completes with the last open stream. Dropping it cuts
    /// the streams.
    ///
    /// Runs once; a second run returns at once.
    pub async fn run(self: Arc<Self>, shutdown: Shutdown) {
        let Some(listener) = lock(&self.listener).take() else {
            return;
        };
        let mut streams = JoinSet::new();
        let accept = || async { listener.accept().await.map(|(client, _)| client) };
        let serve = |client| {
            while streams.try_join_next().is_some() {}
            let (relay, admitted) = (Arc::clone(&self), self.unread_heads.admit());
            streams.spawn(async move { serve::serve(&relay, client, admitted).await });
        };
        tokio::select! {
            () = shutdown.begun() => {}
            () = accept_loop("relay", accept, serve) => {}
            () = self.purge() => {}
        }
        drop(listener);
        while streams.join_next().await.is_some() {}
    }

    /// Returns how many tokens wait for their use.
    pub fn outstanding(&self) -> usize {
        let mut tokens = self.tokens();
        tokens.purge(Instant::now());
        tokens.len()
    }

    /// Returns how many streams are open.
    pub fn open_streams(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Drops expired tokens even while none is minted or redeemed. Never completes.
    async fn purge(&self) {
        let mut ticks = tokio::time::interval(tokens::LIFETIME);
        loop {
            let now = ticks.tick().await;
            self.tokens().purge(now);
        }
    }

    fn redeem(&self, kind: StreamKind, token: &str) -> Option<Grant> {
        self.tokens().redeem(kind, token, Instant::now())
    }

    fn tokens(&self) -> MutexGuard<'_, Tokens> {
        lock(&self.tokens)
    }
}
