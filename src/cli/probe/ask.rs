//! One short conversation with a backend, outside of any running crimux.
//!
//! The forward lane's connection belongs to a backend with state, metrics and health; a doctor needs none of
//! them. Every question has a deadline, and an answer is either a message or a code.

use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tonic::Code;

use crate::backend::connect::Connector;
use crate::backend::own_headers;
use crate::codec::{self, Assembler, Message};
use crate::http2::{self, Fault, Sender};
use crate::method::{self, Api};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most that an answer may have: a verbose status is some hundred kilobytes.
const MAX_ANSWER: usize = 16 << 20;

/// An open connection.
pub(super) struct Conversation {
    sender: Sender,
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
        let (sender, connection) = http2::connect(stream);
        let connection = tokio::spawn(async move {
            // What ends the connection ends the question under way, which tells it.
            connection.await.ok();
        });
        Ok(Self { sender, connection })
    }

    /// Asks, in this version of the API.
    pub(super) async fn ask(&mut self, name: &str, api: Api, request: &[u8]) -> Result<Answer, String> {
        tokio::time::timeout(PATIENCE, self.exchange(name, api, request)).await.map_err(|_| silent())?
    }

    async fn exchange(&mut self, name: &str, api: Api, request: &[u8]) -> Result<Answer, String> {
        let broken = |fault: Fault| fault.to_string();
        let (path, message) = (method::path(Some(method::named(name)), "", api), Message::new(request).framed());
        let sent = self.sender.send(&path, &own_headers(PATIENCE), |_| false, message).await;
        let mut exchange = sent.map_err(broken)?;
        let (status, headers) = exchange.head().await.map_err(broken)?;
        let whole = exchange.whole(MAX_ANSWER).await.map_err(broken)?;
        let mut assembler = Assembler::default();
        assembler.push(whole, MAX_ANSWER).map_err(|error| error.to_string())?;
        let trailers = std::future::poll_fn(|cx| exchange.poll_trailers(cx)).await;
        let trailers = trailers.map_err(broken)?.unwrap_or(headers);
        match codec::status_code(&trailers) {
            Some(Code::Ok) => {
                let message = assembler.finish().map_err(|error| error.to_string())?;
                Ok(Answer::Message(message.unwrap_or_default().encoded_bytes()))
            }
            Some(code) => Ok(Answer::Code(code)),
            None => Err(format!("it is no gRPC server (HTTP status {})", status)),
        }
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn silent() -> String {
    format!("connected, but it does not answer within {PATIENCE:?}")
}
