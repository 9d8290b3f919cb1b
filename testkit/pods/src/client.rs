//! Unary calls on one CRI socket.

use std::io;
use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};
use crimux::cri::{self, Rpc};
use grpc_http2::client::{ClientConfig, ClientStream, SendRequest, handshake};
use grpc_http2::grpc::{PREFIX_LEN, message_prefix};
use http::{HeaderMap, HeaderValue};
use prost::Message;
use tokio::net::UnixStream;
use tonic::Status;

/// The largest reply in bytes, as kubelet's.
const MAX_REPLY: usize = 16 << 20;

/// A request, with the RPC that it belongs to and the message that answers it.
pub(crate) trait Request: Message {
    /// The RPC of this message.
    const RPC: Rpc;
    /// What answers it.
    type Reply: Message + Default;
}

macro_rules! requests {
    ($($rpc:ident($request:ident) -> $reply:ident;)+) => {$(
        impl Request for cri::$request {
            const RPC: Rpc = Rpc::$rpc;
            type Reply = cri::$reply;
        }
    )+};
}

requests! {
    RunPodSandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
    StopPodSandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
    RemovePodSandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
    ListPodSandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
    CreateContainer(CreateContainerRequest) -> CreateContainerResponse;
    StartContainer(StartContainerRequest) -> StartContainerResponse;
    ExecSync(ExecSyncRequest) -> ExecSyncResponse;
    PullImage(PullImageRequest) -> PullImageResponse;
}

/// A connection to one CRI socket. Its task ends with the runtime of `main`.
pub(crate) struct Client {
    sender: SendRequest,
    headers: HeaderMap,
}

impl Client {
    /// Connects to the socket.
    pub(crate) async fn dial(socket: &Path) -> io::Result<Self> {
        let (sender, connection) = handshake(UnixStream::connect(socket).await?, ClientConfig::default());
        tokio::spawn(connection);
        let headers = HeaderMap::from_iter([
            (http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc")),
            (http::header::TE, HeaderValue::from_static("trailers")),
        ]);
        Ok(Self { sender, headers })
    }

    /// Makes one call.
    ///
    /// # Errors
    /// The status of the reply, or what is wrong with the reply.
    pub(crate) async fn call<R: Request>(&self, request: &R) -> Result<R::Reply, Status> {
        let path = format!("/runtime.v1.{}/{}", R::RPC.service(), R::RPC.name());
        let message = request.encode_to_vec();
        let mut body = BytesMut::from(&message_prefix(message.len())[..]);
        body.put_slice(&message);
        let sent = self.sender.send_request(&path, &self.headers, |_| false, body.freeze());
        let reply = read(sent.await.map_err(unavailable)?).await?;
        let encoded = reply.get(PREFIX_LEN..).unwrap_or_default();
        R::Reply::decode(encoded).map_err(|error| Status::internal(format!("an unreadable reply: {error}")))
    }
}

/// Reads the body of a reply with code OK.
async fn read(mut stream: ClientStream) -> Result<Bytes, Status> {
    let (_, headers) = stream.response().await.map_err(unavailable)?;
    let body = stream.collect(MAX_REPLY).await.map_err(unavailable)?;
    let trailers = std::future::poll_fn(|cx| stream.poll_trailers(cx)).await.map_err(unavailable)?;
    let status = Status::from_header_map(&headers);
    let status = status.or_else(|| Status::from_header_map(&trailers.unwrap_or_default()));
    match status {
        Some(status) if status.code() == tonic::Code::Ok => Ok(body),
        Some(status) => Err(status),
        None => Err(Status::internal("a reply without a gRPC status")),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "the argument of map_err")]
fn unavailable(error: grpc_http2::Error) -> Status {
    Status::unavailable(error.to_string())
}
