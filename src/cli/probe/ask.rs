//! One short conversation with a backend, outside of any running crimux.
//!
//! The forward lane's connection belongs to a backend with state, metrics and health; a doctor needs none of
//! them. Every question has a deadline, and an answer is either a message or a code.

use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method as HttpMethod, Request};
use tokio::task::JoinHandle;
use tonic::Code;

use crate::backend::connect::Connector;
use crate::backend::own_headers;
use crate::backend::tls::CertificateInfo;
use crate::codec::{self, Assembler, Message};
use crate::method::{self, Api};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most that an answer may have: a verbose status is some hundred kilobytes.
const MAX_ANSWER: usize = 16 << 20;

/// An open connection.
pub(super) struct Conversation {
    /// The certificate that the backend has shown.
    pub(super) shown: Option<CertificateInfo>,
    sender: SendRequest<Bytes>,
    connection: JoinHandle<()>,
}

/// What a question was answered with.
pub(super) enum Answer {
    Message(Bytes),
    Code(Code),
}

impl Conversation {
    /// Connects.
    pub(super) async fn open(connector: &Connector) -> Result<Self, String> {
        let stream = connector.connect().await.map_err(|error| error.to_string())?;
        let shown = stream.peer_certificate();
        let shaken = tokio::time::timeout(PATIENCE, h2::client::handshake(stream)).await;
        let (sender, connection) = shaken.map_err(|_| silent())?.map_err(broken)?;
        let connection = tokio::spawn(async move {
            // What ends the connection ends the question under way, which tells it.
            connection.await.ok();
        });
        Ok(Self { shown, sender, connection })
    }

    /// Asks, in this version of the API.
    pub(super) async fn ask(&mut self, name: &str, api: Api, request: &[u8]) -> Result<Answer, String> {
        tokio::time::timeout(PATIENCE, self.exchange(name, api, request)).await.map_err(|_| silent())?
    }

    async fn exchange(&mut self, name: &str, api: Api, request: &[u8]) -> Result<Answer, String> {
        let uri = method::uri(Some(method::named(name)), "", api).map_err(|error| error.to_string())?;
        let mut head = Request::new(());
        (*head.method_mut(), *head.uri_mut()) = (HttpMethod::POST, uri);
        *head.headers_mut() = own_headers(PATIENCE);
        let mut sender = self.sender.clone().ready().await.map_err(broken)?;
        let (response, mut body) = sender.send_request(head, false).map_err(broken)?;
        body.send_data(Message::new(request).framed(), true).map_err(broken)?;
        let (head, mut body) = response.await.map_err(broken)?.into_parts();
        let mut assembler = Assembler::default();
        while let Some(chunk) = body.data().await {
            let chunk = chunk.map_err(broken)?;
            // Only a stream that is closed refuses, and needs no capacity any more.
            body.flow_control().release_capacity(chunk.len()).ok();
            assembler.push(chunk, MAX_ANSWER).map_err(|error| error.to_string())?;
        }
        let trailers = body.trailers().await.map_err(broken)?.unwrap_or(head.headers);
        match codec::status_code(&trailers) {
            Some(Code::Ok) => {
                let message = assembler.finish().map_err(|error| error.to_string())?;
                Ok(Answer::Message(message.unwrap_or_default().encoded_bytes()))
            }
            Some(code) => Ok(Answer::Code(code)),
            None => Err(format!("it is no gRPC server (HTTP status {})", head.status)),
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
fn broken(error: h2::Error) -> String {
    format!("connected, but it ended the conversation or does not speak gRPC: {error}")
}

fn silent() -> String {
    format!("connected, but it does not answer within {PATIENCE:?}")
}
