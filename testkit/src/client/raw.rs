//! Raw calls: bytes out, everything that comes back in.
//!
//! A proxy under test may be wrong in any part of a reply, so nothing is interpreted beyond frames, and bytes
//! that are no whole frame are kept too. Dropping a call or a stream resets it, which is how gRPC cancels.

use std::fmt;
use std::future::poll_fn;

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, Request};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tonic::{Code, Status};

use super::{Client, Target};
use crate::runtime;

/// Flow control window, in bytes.
const WINDOW: u32 = 16 << 20;

/// Everything that came back of one call.
#[derive(Debug, Clone)]
pub struct RawReply {
    /// The HTTP status, 200 in gRPC whatever the outcome.
    pub http_status: u16,
    /// The response headers.
    pub headers: HeaderMap,
    /// The messages, unframed.
    pub messages: Vec<Bytes>,
    /// What was left of the body after the last whole message; empty in a correct reply.
    pub rest: Bytes,
    /// The trailers; the headers, where a reply is headers alone.
    pub trailers: HeaderMap,
}

impl RawReply {
    /// The status; `Unknown` if there was none, as gRPC has it.
    pub fn status(&self) -> Status {
        Status::from_header_map(&self.trailers)
            .unwrap_or_else(|| Status::unknown("no grpc-status in the reply"))
    }

    /// The code of the status.
    pub fn code(&self) -> Code {
        self.status().code()
    }

    /// The message text of the status, decoded.
    pub fn message(&self) -> String {
        self.status().message().to_owned()
    }

    /// The details of the status, decoded.
    pub fn details(&self) -> Bytes {
        Bytes::copy_from_slice(self.status().details())
    }

    /// The one message of a unary reply.
    ///
    /// # Panics
    /// If there is not exactly one.
    pub fn single(&self) -> Bytes {
        assert_eq!(
            self.messages.len(),
            1,
            "a unary reply has one message; its status is {:?}",
            self.status()
        );
        self.messages[0].clone()
    }

    /// Decodes the one message of a unary reply.
    ///
    /// # Panics
    /// If there is not exactly one or it is not of this type.
    pub fn decode<M: prost::Message + Default>(&self) -> M {
        M::decode(self.single()).expect("the reply is a message of this type")
    }
}

/// Why a raw call has no reply.
#[derive(Debug)]
pub enum RawError {
    /// Nobody could be connected to.
    Connect(std::io::Error),
    /// The stream or its connection broke before the end of the reply.
    Broken(h2::Error),
}

impl fmt::Display for RawError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(formatter, "cannot connect: {error}"),
            Self::Broken(error) => write!(formatter, "the call broke: {error}"),
        }
    }
}

impl std::error::Error for RawError {}

impl From<h2::Error> for RawError {
    fn from(error: h2::Error) -> Self {
        Self::Broken(error)
    }
}

impl Client {
    /// Makes a unary or server-streaming call and waits for the whole reply. Metadata is sent in the given
    /// order, beside the headers that gRPC needs.
    ///
    /// # Errors
    /// If there is no connection or the reply does not come to its end; a status is no error here.
    ///
    /// # Panics
    /// If the path or the metadata cannot stand in a request.
    pub async fn raw(
        &self,
        path: &str,
        metadata: &[(&str, &str)],
        message: impl Into<Bytes>,
    ) -> Result<RawReply, RawError> {
        self.raw_stream(path, metadata, message).await?.finish().await
    }

    /// Makes a call with one encoded message of a known type, without metadata.
    ///
    /// # Errors
    /// As [`raw`](Self::raw).
    pub async fn raw_message(&self, path: &str, message: &impl prost::Message) -> Result<RawReply, RawError> {
        self.raw(path, &[], message.encode_to_vec()).await
    }

    /// Makes a call and returns at once; the reply is read piece by piece.
    ///
    /// # Errors
    /// If there is no connection.
    ///
    /// # Panics
    /// If the path or the metadata cannot stand in a request.
    pub async fn raw_stream(
        &self,
        path: &str,
        metadata: &[(&str, &str)],
        message: impl Into<Bytes>,
    ) -> Result<RawStream, RawError> {
        self.raw_open(path, metadata, &[message.into()], true).await
    }

    /// Makes a call whose request can stay open: further messages go out by [`RawStream::send`].
    ///
    /// # Errors
    /// If there is no connection.
    ///
    /// # Panics
    /// If the path or the metadata cannot stand in a request.
    pub async fn raw_open(
        &self,
        path: &str,
        metadata: &[(&str, &str)],
        messages: &[Bytes],
        end: bool,
    ) -> Result<RawStream, RawError> {
        let mut request = Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in metadata {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("path and metadata can stand in a request");
        let mut connection = self.connection().await?;
        let (response, mut outgoing) = connection.send_request(request, false)?;
        outgoing.send_data(runtime::join(messages), end)?;
        Ok(RawStream {
            outgoing,
            incoming: Incoming::Head(response),
            http_status: 0,
            headers: HeaderMap::new(),
            buffer: Bytes::new(),
        })
    }

    /// Returns a connection that accepts a call: the last one, or a new one if that is broken.
    async fn connection(&self) -> Result<SendRequest<Bytes>, RawError> {
        let mut current = self.raw.lock().await;
        if let Some(connection) = current.take()
            && let Ok(ready) = connection.ready().await
        {
            *current = Some(ready.clone());
            return Ok(ready);
        }
        let connection = match &self.target {
            Target::Unix(path) => {
                handshake(UnixStream::connect(path).await.map_err(RawError::Connect)?).await?
            }
            Target::Tcp(address) => {
                handshake(TcpStream::connect(address).await.map_err(RawError::Connect)?).await?
            }
        };
        let ready = connection.ready().await?;
        *current = Some(ready.clone());
        Ok(ready)
    }
}

async fn handshake<T>(stream: T) -> Result<SendRequest<Bytes>, RawError>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (requests, connection) = h2::client::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW * 4)
        .max_header_list_size(8 << 20)
        .handshake(stream)
        .await?;
    // Its failure shows in the calls that it carries.
    tokio::spawn(async move { connection.await.unwrap_or_default() });
    Ok(requests)
}

/// A call whose reply is read piece by piece. Dropping it cancels the call.
#[derive(Debug)]
pub struct RawStream {
    outgoing: h2::SendStream<Bytes>,
    incoming: Incoming,
    http_status: u16,
    headers: HeaderMap,
    buffer: Bytes,
}

#[derive(Debug)]
enum Incoming {
    Head(ResponseFuture),
    Body(RecvStream),
}

impl RawStream {
    /// Waits for the response headers.
    ///
    /// # Errors
    /// If the stream breaks before.
    pub async fn headers(&mut self) -> Result<&HeaderMap, RawError> {
        self.body().await?;
        Ok(&self.headers)
    }

    /// Waits for the next message; `None` is the end.
    ///
    /// # Errors
    /// If the stream breaks before.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RawError> {
        loop {
            if let Some(message) = runtime::take(&mut self.buffer) {
                return Ok(Some(message));
            }
            let Some(chunk) = self.chunk().await? else { return Ok(None) };
            self.keep(&chunk);
        }
    }

    /// Reads to the end; the messages that [`next`](Self::next) took are not in the reply.
    ///
    /// # Errors
    /// If the stream breaks before its end.
    pub async fn finish(mut self) -> Result<RawReply, RawError> {
        let mut whole = BytesMut::from(&self.buffer[..]);
        while let Some(chunk) = self.chunk().await? {
            whole.extend_from_slice(&chunk);
        }
        let mut rest = whole.freeze();
        let messages = std::iter::from_fn(|| runtime::take(&mut rest)).collect();
        let trailers = self.body().await?.trailers().await?;
        let trailers = trailers.unwrap_or_else(|| self.headers.clone());
        Ok(RawReply { http_status: self.http_status, headers: self.headers, messages, rest, trailers })
    }

    /// Sends a further message of an open request; `end` closes the request.
    ///
    /// # Errors
    /// If the stream is broken or was closed.
    pub fn send(&mut self, message: impl Into<Bytes>, end: bool) -> Result<(), RawError> {
        Ok(self.outgoing.send_data(runtime::join(&[message.into()]), end)?)
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, RawError> {
        let body = self.body().await?;
        let Some(chunk) = body.data().await else { return Ok(None) };
        let chunk = chunk?;
        // Failing to give back window means the stream has ended, which the next read tells.
        let _ = body.flow_control().release_capacity(chunk.len());
        Ok(Some(chunk))
    }

    async fn body(&mut self) -> Result<&mut RecvStream, RawError> {
        if let Incoming::Head(response) = &mut self.incoming {
            let (head, body) = poll_fn(|cx| std::pin::Pin::new(&mut *response).poll(cx)).await?.into_parts();
            self.http_status = head.status.as_u16();
            self.headers = head.headers;
            self.incoming = Incoming::Body(body);
        }
        let Incoming::Body(body) = &mut self.incoming else { unreachable!("the head was read above") };
        Ok(body)
    }

    fn keep(&mut self, chunk: &[u8]) {
        let mut buffer = BytesMut::with_capacity(self.buffer.len() + chunk.len());
        buffer.extend_from_slice(&self.buffer);
        buffer.extend_from_slice(chunk);
        self.buffer = buffer.freeze();
    }
}
