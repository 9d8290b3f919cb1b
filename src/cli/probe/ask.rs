//! One short conversation with a backend, outside of any running crimux.
//!
//! The connection of a running backend has state, metrics and health; a probe needs only the connection.
//! Every call has a deadline, and an answer is either a message or a code.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use grpc_http2::Error as Http2Error;
use grpc_http2::client::{self, SendRequest};
use http::StatusCode;
use tokio::task::JoinHandle;
use tonic::Code;

use crate::backend::connect::{ConnectError, Connector};
use crate::backend::own_headers;
use crate::backend::tls::CertificateInfo;
use crate::codec::{self, Message};
use crate::method::{self, Api, Rpc};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most that an answer may have: a verbose status is some hundred kilobytes.
const MAX_ANSWER: usize = 16 << 20;

/// An open connection.
pub(super) struct Conversation {
    /// The certificate that the backend has shown.
    pub(super) shown: Option<CertificateInfo>,
    sender: SendRequest,
    connection: JoinHandle<()>,
}

/// What a question was answered with.
pub(super) enum ProbeReply {
    Message(Bytes),
    Code(Code),
}

impl Conversation {
    /// Connects.
    pub(super) async fn open(connector: &Connector) -> Result<Self, String> {
        let stream = connector.connect().await.map_err(|error| match &error {
            ConnectError::Connect { cause, .. } if cause.kind() == io::ErrorKind::PermissionDenied => {
                format!("{error}; only root may (try sudo)")
            }
            error => error.to_string(),
        })?;
        let shown = stream.peer_certificate();
        let (sender, connection) = client::handshake(stream, connector.http2());
        let connection = tokio::spawn(async move {
            // What ends the connection ends the question under way, which tells it.
            connection.await.ok();
        });
        Ok(Self { shown, sender, connection })
    }

    /// Asks, in this version of the API.
    pub(super) async fn ask(&mut self, rpc: Rpc, api: Api, request: &[u8]) -> Result<ProbeReply, String> {
        tokio::time::timeout(PATIENCE, self.exchange(rpc, api, request)).await.map_err(|_| silent())?
    }

    async fn exchange(&mut self, rpc: Rpc, api: Api, request: &[u8]) -> Result<ProbeReply, String> {
        let (path, message) = (method::path(Some(method::row(rpc)), "", api), Message::new(request).framed());
        let sent = self.sender.send_request(&path, &own_headers(PATIENCE).map, |_| false, message).await;
        let mut stream = sent.map_err(transport_cause)?;
        let (status, headers) = stream.response().await.map_err(transport_cause)?;
        if status != StatusCode::OK {
            return Err(format!("it is no gRPC server (HTTP status {status})"));
        }
        let whole = stream.collect(MAX_ANSWER).await.map_err(transport_cause)?;
        let message = Message::from_body(whole).map_err(|error| error.to_string())?;
        let trailers = std::future::poll_fn(|cx| stream.poll_trailers(cx)).await;
        let trailers = trailers.map_err(transport_cause)?.unwrap_or(headers);
        match codec::status_code(&trailers) {
            Some(Code::Ok) => Ok(ProbeReply::Message(message.unwrap_or_default().encoded_bytes())),
            Some(code) => Ok(ProbeReply::Code(code)),
            None => Err("it is no gRPC server: the answer has no status".to_owned()),
        }
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// What an operator takes from a conversation that broke off: most often the wrong kind of server.
#[allow(clippy::needless_pass_by_value, reason = "it is given to map_err")]
fn transport_cause(error: Http2Error) -> String {
    format!("connected, but it ended the conversation or does not speak gRPC: {error}")
}

fn silent() -> String {
    format!("connected, but it does not answer within {PATIENCE:?}")
}
