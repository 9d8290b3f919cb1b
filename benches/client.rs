//! The client: one HTTP/2 connection, requests encoded beforehand, kubelet's headers.
//!
//! It is as cheap as it can be with a real HTTP/2 library, because whatever it costs is in every number. It
//! looks at no message, only at the status.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, header};
use tokio::net::UnixStream;

/// Flow control windows, in bytes: a list of megabytes must not wait for updates.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 256 << 20;
/// How long a call may take before the run is given up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A method to call, as it stands in a request.
#[derive(Debug, Clone)]
pub(crate) struct Target(Request<()>);

impl Target {
    /// Prepares calls of `method` of the runtime service.
    pub(crate) fn runtime(method: &str) -> Self {
        Self::of("RuntimeService", method)
    }

    /// Prepares calls of `method` of the image service.
    pub(crate) fn image(method: &str) -> Self {
        Self::of("ImageService", method)
    }

    fn of(service: &str, method: &str) -> Self {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() =
            format!("http://localhost/runtime.v1.{service}/{method}").parse::<Uri>().unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static("grpc-go/1.72.2"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert("grpc-timeout", HeaderValue::from_static("119999m"));
        Self(request)
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Client {
    requests: SendRequest<Bytes>,
    driver: tokio::task::JoinHandle<()>,
}

impl Client {
    /// Connects to the socket at `path`.
    pub(crate) async fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).await?;
        let (requests, connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .enable_push(false)
            .handshake(stream)
            .await?;
        // Its failure shows in the calls that it carries.
        let driver = tokio::spawn(async move { connection.await.unwrap_or_default() });
        Ok(Self { requests, driver })
    }

    /// Makes a unary call; returns the length of the reply, frame included.
    pub(crate) async fn call(&self, target: &Target, message: Bytes) -> Result<usize> {
        let mut body = self.open(target, message).await?;
        let mut length = 0;
        while let Some(chunk) = next_chunk(&mut body).await? {
            length += chunk.len();
        }
        check(body.trailers().await?.as_ref())?;
        Ok(length)
    }

    /// Makes a unary call and returns the bytes of its reply, without frame.
    pub(crate) async fn fetch(&self, target: &Target, message: Bytes) -> Result<Bytes> {
        let fetching = async {
            let mut body = self.open(target, message).await?;
            let mut reply = BytesMut::new();
            while let Some(chunk) = next_chunk(&mut body).await? {
                reply.extend_from_slice(&chunk);
            }
            check(body.trailers().await?.as_ref())?;
            ensure!(reply.len() >= 5, "the reply has no message");
            Ok(reply.freeze().slice(5..))
        };
        tokio::time::timeout(PATIENCE, fetching).await.context("a call was not answered")?
    }

    /// Starts a call whose reply is a stream.
    pub(crate) async fn open(&self, target: &Target, message: Bytes) -> Result<RecvStream> {
        let mut requests = self.requests.clone().ready().await?;
        let (reply, mut stream) = requests.send_request(target.0.clone(), false)?;
        stream.send_data(message, true)?;
        let (head, body) = reply.await?.into_parts();
        ensure!(head.status == 200, "HTTP status {}", head.status);
        if head.headers.contains_key("grpc-status") {
            check(Some(&head.headers))?;
        }
        Ok(body)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Waits for more of a reply; `None` is its end.
pub(crate) async fn next_chunk(body: &mut RecvStream) -> Result<Option<Bytes>> {
    let Some(chunk) = body.data().await else { return Ok(None) };
    let chunk = chunk?;
    // It fails for a stream that has ended, which needs no window.
    let _ = body.flow_control().release_capacity(chunk.len());
    Ok(Some(chunk))
}

pub(crate) fn check(trailers: Option<&HeaderMap>) -> Result<()> {
    let trailers = trailers.context("the reply has no trailers")?;
    let text = |name| trailers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or("");
    let code = text("grpc-status");
    ensure!(code == "0", "grpc-status {code:?}: {}", text("grpc-message"));
    Ok(())
}

/// Encodes and frames a message.
pub(crate) fn framed(message: &impl prost::Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    frame.put_slice(&message.encode_to_vec());
    frame.freeze()
}
