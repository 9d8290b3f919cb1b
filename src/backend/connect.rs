//! Connects to a backend: name resolution, socket and TLS handshake within one deadline.
//!
//! All transports become a [`Stream`]. A [`ConnectError`] has the failed step and, for certificates, whose
//! and which date. A TCP peer that went silent must be detected without HTTP/2 pings, which grpc-go answers
//! with GOAWAY, so the kernel does it: keepalive probes, and a `TCP_USER_TIMEOUT` of `timeouts.connect` +
//! `timeouts.read`. `vsock://` differs in the socket call only; it is untested, because no vsock was
//! available. Nothing is retried, except a Unix socket whose backlog is full.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use grpc_http2::client::ClientConfig;
use rustls::ProtocolVersion;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncBufReadExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_vsock::{VsockAddr, VsockStream};

use crate::backend::tls::{CertificateInfo, HandshakeError, TlsClient, TlsFileError, handshake_error};
use crate::config::{BackendConfig, Endpoint, Timeouts};

mod error;
mod stream;

pub use error::{ConnectError, ConnectStep};
pub use stream::{Stream, TlsConnection};

/// How long to wait for the alert by which a TLS 1.3 server refuses our client certificate, after the
/// handshake. A server that accepts it sends its SETTINGS at once; only one that waits for ours costs this
/// time, once for each connection.
const ALERT_WAIT: Duration = Duration::from_millis(250);

/// The pause between attempts to connect to a Unix socket whose backlog is full.
const BACKLOG_PAUSE: Duration = Duration::from_millis(10);

/// The most plaintext, in bytes, that a TLS connection buffers while the socket is not writable.
const TLS_BUFFER: usize = 16 * 1024;

/// Makes connections to one backend.
#[derive(Debug)]
pub struct Connector {
    endpoint: Endpoint,
    target: String,
    timeouts: Timeouts,
    tls: Option<Arc<TlsClient>>,
}

/// The use of a connection, which decides the protocol and the timeout of a silent peer.
#[derive(Debug, Clone, Copy)]
enum Purpose {
    /// gRPC over HTTP/2; a silent peer is lost after this time.
    Calls(Duration),
    /// An exec, attach or port-forward stream over HTTP/1.1. It may be interactive, so a network outage of
    /// some seconds does not close it; keepalive probes close it after a minute.
    Streams,
}

/// One attempt at a connection.
struct Attempt<'a> {
    target: &'a str,
    purpose: Purpose,
    deadline: Instant,
    after: Duration,
}

impl Connector {
    /// Prepares connections to `config.endpoint` and reads its TLS files.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Files`] if the TLS files are missing or cannot be used.
    pub fn new(config: &BackendConfig) -> Result<Self, ConnectError> {
        let target = address(&config.endpoint);
        let tls = prepare_tls(config).map_err(|cause| files_error(&target, cause))?;
        Ok(Self { endpoint: config.endpoint.clone(), target, timeouts: config.timeouts, tls })
    }

    /// Connects to the backend's CRI endpoint, within `timeouts.connect` for all steps together.
    ///
    /// # Errors
    ///
    /// A [`ConnectError`] that says which step failed.
    pub async fn connect(&self) -> Result<Stream, ConnectError> {
        let silence = self.timeouts.connect + self.timeouts.read;
        let attempt = self.attempt(&self.target, Purpose::Calls(silence));
        match &self.endpoint {
            Endpoint::Unix(path) => attempt.step(ConnectStep::Connect, unix(path)).await.map(Stream::Unix),
            Endpoint::Vsock { cid, port } => {
                let connected = VsockStream::connect(VsockAddr::new(*cid, *port));
                attempt.step(ConnectStep::Connect, connected).await.map(Stream::Vsock)
            }
            Endpoint::Tcp { host, port, tls } => self.tcp(&attempt, host, *port, *tls).await,
        }
    }

    /// Connects to a streaming server of the backend at `host` (no brackets) and `port`, with the same
    /// identity and within the same time as [`Connector::connect`].
    ///
    /// Over TLS its certificate must hold `tls.server_name` if configured, else `host`.
    ///
    /// # Errors
    ///
    /// A [`ConnectError`] that says which step failed.
    pub async fn connect_to(&self, host: &str, port: u16, tls: bool) -> Result<Stream, ConnectError> {
        let target = host_and_port(host, port);
        self.tcp(&self.attempt(&target, Purpose::Streams), host, port, tls).await
    }

    /// Describes the certificates in our TLS files as they are now: every authority, and our own. Empty
    /// without TLS.
    ///
    /// Reads the files, blocking; meant for `crimux check --probe`.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Files`] if one of them cannot be read.
    pub fn describe_tls(&self) -> Result<Vec<CertificateInfo>, ConnectError> {
        let described = self.tls.as_ref().map_or(Ok(Vec::new()), |tls| tls.describe());
        described.map_err(|cause| files_error(&self.target, cause))
    }

    /// Returns the backend's address for error texts: a path, `host:port` or `vsock cid:port`.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Returns the settings of an HTTP/2 client: scheme and authority as gRPC clients send them.
    pub fn http2(&self) -> ClientConfig {
        let (is_https, authority) = match &self.endpoint {
            Endpoint::Unix(_) | Endpoint::Vsock { .. } => (false, "localhost".into()),
            Endpoint::Tcp { tls, .. } => (*tls, self.target.as_str().into()),
        };
        ClientConfig { is_https, authority, ..ClientConfig::default() }
    }

    /// Tells whether `tls` is configured.
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    fn attempt<'a>(&self, target: &'a str, purpose: Purpose) -> Attempt<'a> {
        let after = self.timeouts.connect;
        Attempt { target, purpose, deadline: Instant::now() + after, after }
    }

    async fn tcp(
        &self,
        attempt: &Attempt<'_>,
        host: &str,
        port: u16,
        tls: bool,
    ) -> Result<Stream, ConnectError> {
        let addrs =
            attempt.step(ConnectStep::Resolve, tokio::net::lookup_host((host, port))).await?.collect();
        let connected = attempt.step(ConnectStep::Connect, first_of(addrs, attempt.deadline)).await?;
        attempt.step(ConnectStep::Connect, async { attempt.purpose.apply(&connected) }).await?;
        // Boxed because rustls' state is some kilobytes that every future around it would carry for life.
        if tls {
            Box::pin(self.handshake(attempt, host, connected)).await
        } else {
            Ok(Stream::Tcp(connected))
        }
    }

    async fn handshake(
        &self,
        attempt: &Attempt<'_>,
        host: &str,
        connected: TcpStream,
    ) -> Result<Stream, ConnectError> {
        let files = |cause| files_error(attempt.target, cause);
        let tls = self.tls.clone().ok_or_else(|| files(TlsFileError::NotConfigured))?;
        let name = tls.server_name(host).to_owned();
        let server_name = parse_server_name(&name).map_err(files)?;
        let read =
            async { tokio::task::spawn_blocking(move || tls.current()).await.map_err(io::Error::other) };
        let identity = attempt.step(ConnectStep::Files, read).await?;
        let config = match attempt.purpose {
            Purpose::Calls(_) => &identity.calls,
            Purpose::Streams => &identity.streams,
        };
        let handshake =
            TlsConnector::from(Arc::clone(config))
                .connect_with(server_name, connected, |session| session.set_buffer_limit(Some(TLS_BUFFER)));
        let handshake_and_alert = async {
            let mut stream = handshake.await?;
            if let Purpose::Calls(_) = attempt.purpose {
                await_certificate_alert(&mut stream).await?;
            }
            Ok(stream)
        };
        // Certificates are told apart here and not in `step`, so the error passes it as a value.
        let result = attempt.step(ConnectStep::Handshake, async { Ok(handshake_and_alert.await) }).await?;
        let target = attempt.target.to_owned();
        match result {
            Ok(stream) => Ok(Stream::Tls(Box::new(TlsConnection { stream, identity, target }))),
            Err(error) => Err(match handshake_error(&error, &name, &identity) {
                HandshakeError::Certificate(fault) => ConnectError::Certificate { target, fault },
                HandshakeError::Other(reason) => ConnectError::Handshake { target, reason },
            }),
        }
    }
}

impl Attempt<'_> {
    /// Runs one step within the rest of the timeout.
    async fn step<T>(
        &self,
        step: ConnectStep,
        future: impl Future<Output = io::Result<T>>,
    ) -> Result<T, ConnectError> {
        let target = || self.target.to_owned();
        match timeout_at(self.deadline, future).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(cause)) if step == ConnectStep::Resolve => {
                Err(ConnectError::Resolve { target: target(), cause })
            }
            Ok(Err(cause)) => Err(ConnectError::Connect { target: target(), cause }),
            Err(_) => Err(ConnectError::Timeout { target: target(), step, after: self.after }),
        }
    }
}

impl Purpose {
    /// Sets keepalive and the user timeout, and disables Nagle's algorithm.
    fn apply(self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let socket = SockRef::from(stream);
        match self {
            Self::Calls(silence) => {
                let second = Duration::from_secs(1);
                let keepalive =
                    TcpKeepalive::new().with_time((silence / 3).max(second)).with_interval(second);
                socket.set_tcp_keepalive(&keepalive)?;
                socket.set_tcp_user_timeout(Some(silence))
            }
            Self::Streams => {
                let (idle, interval) = (Duration::from_secs(30), Duration::from_secs(10));
                let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(3);
                socket.set_tcp_keepalive(&keepalive)
            }
        }
    }
}

/// Writes `host:port`, with brackets around an IPv6 address.
pub(crate) fn host_and_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn files_error(target: &str, cause: TlsFileError) -> ConnectError {
    ConnectError::Files { target: target.to_owned(), cause: Box::new(cause) }
}

fn address(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Unix(path) => path.display().to_string(),
        Endpoint::Tcp { host, port, .. } => host_and_port(host, *port),
        Endpoint::Vsock { cid, port } => format!("vsock {cid}:{port}"),
    }
}

fn prepare_tls(config: &BackendConfig) -> Result<Option<Arc<TlsClient>>, TlsFileError> {
    let endpoint_host = match &config.endpoint {
        Endpoint::Tcp { host, tls: true, .. } => Some(host),
        _ => None,
    };
    match (&config.tls, endpoint_host) {
        (None, Some(_)) => Err(TlsFileError::NotConfigured),
        (None, None) => Ok(None),
        (Some(files), host) => {
            let name = files.server_name.as_ref().or(host);
            name.map_or(Ok(()), |name| parse_server_name(name).map(drop))?;
            Ok(Some(Arc::new(TlsClient::new(files)?)))
        }
    }
}

fn parse_server_name(name: &str) -> Result<ServerName<'static>, TlsFileError> {
    ServerName::try_from(name.to_owned()).map_err(|_| TlsFileError::ServerName { name: name.to_owned() })
}

/// Connects to a Unix socket; a full backlog means a busy backend, not a dead one, and is waited for.
async fn unix(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(BACKLOG_PAUSE).await;
            }
            result => return result,
        }
    }
}

/// Connects to the first address that accepts; each gets an equal share of the remaining time.
async fn first_of(addrs: Vec<SocketAddr>, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for (tried, addr) in addrs.iter().enumerate() {
        let left = u32::try_from(addrs.len() - tried).unwrap_or(u32::MAX);
        let now = Instant::now();
        let share = now + deadline.saturating_duration_since(now) / left;
        match timeout_at(if left == 1 { deadline } else { share }, TcpStream::connect(addr)).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error)) => last = error,
            Err(_) if left == 1 => std::future::pending().await,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// Waits for the first bytes after a TLS 1.3 handshake, or for [`ALERT_WAIT`], leaving the bytes where they
/// are.
async fn await_certificate_alert(stream: &mut tokio_rustls::client::TlsStream<TcpStream>) -> io::Result<()> {
    if stream.get_ref().1.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
        return Ok(());
    }
    match tokio::time::timeout(ALERT_WAIT, stream.fill_buf()).await {
        Ok(Ok([])) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(Ok(_)) | Err(_) => Ok(()),
        Ok(Err(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_silent_peer_of_calls_is_given_up_by_the_kernel_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        Purpose::Calls(Duration::from_secs(3)).apply(&stream).unwrap();
        let socket = SockRef::from(&stream);
        assert!(stream.nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(3)));
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(1));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(1));
    }

    #[tokio::test]
    async fn a_stream_outlives_a_link_that_is_down_for_seconds() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        Purpose::Streams.apply(&stream).unwrap();
        let socket = SockRef::from(&stream);
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(30));
    }

    #[test]
    fn an_address_of_ipv6_is_written_in_brackets() {
        assert_eq!(host_and_port("::1", 80), "[::1]:80");
        assert_eq!(host_and_port("node-7", 80), "node-7:80");
    }
}
