//! A small CRI client: typed calls by tonic, raw calls by bare HTTP/2.
//!
//! The typed clients say what a test means; the raw ones say what is on the wire and hide nothing: response
//! headers, message bytes, trailers, how the stream ended. Neither retries, for a test must see every
//! failure.

mod raw;
mod requests;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Mutex;
use tonic::transport::{Channel, Endpoint, Uri};

pub use raw::{RawError, RawReply, RawStream};
pub use requests::{
    ContainerConfigBuilder, SandboxConfigBuilder, container_config, image_spec, sandbox_config,
};

use crate::cri::image_service_client::ImageServiceClient;
use crate::cri::runtime_service_client::RuntimeServiceClient;

/// The largest message the typed clients receive, in bytes.
const MAX_MESSAGE: usize = 64 << 20;

/// A client of one endpoint. Clones share their connections; it connects at the first call.
#[derive(Debug, Clone)]
pub struct Client {
    target: Target,
    channel: Channel,
    raw: Arc<Mutex<Option<SendRequest<Bytes>>>>,
}

#[derive(Debug, Clone)]
enum Target {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl Client {
    /// A client of the Unix socket at `path`.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self::new(Target::Unix(path.into()))
    }

    /// A client of a plain-text TCP address.
    pub fn tcp(address: SocketAddr) -> Self {
        Self::new(Target::Tcp(address))
    }

    /// A client of an endpoint as configurations write it: `unix:///…` or `http://IP:PORT`.
    ///
    /// # Panics
    /// If the endpoint is neither.
    pub fn endpoint(endpoint: &str) -> Self {
        if let Some(path) = endpoint.strip_prefix("unix://") {
            return Self::unix(path);
        }
        let address = endpoint.strip_prefix("http://").and_then(|address| address.parse().ok());
        Self::tcp(address.unwrap_or_else(|| panic!("{endpoint:?} is neither unix:///… nor http://IP:PORT")))
    }

    /// The typed client of the runtime service.
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// The typed client of the image service.
    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    fn new(target: Target) -> Self {
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = match target.clone() {
            Target::Unix(path) => endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            })),
            Target::Tcp(address) => {
                endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| async move {
                    TcpStream::connect(address).await.map(TokioIo::new)
                }))
            }
        };
        Self { target, channel, raw: Arc::default() }
    }
}

/// Checks every two milliseconds until `check` says yes.
///
/// # Panics
/// If it does not within `deadline`.
pub async fn eventually<F, C>(deadline: Duration, mut check: F)
where
    F: FnMut() -> C,
    C: Future<Output = bool>,
{
    let checking = async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let reached = tokio::time::timeout(deadline, checking).await;
    assert!(reached.is_ok(), "what was awaited did not happen within {deadline:?}");
}
