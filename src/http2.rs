//! HTTP/2 as gRPC on a node needs it, both sides: what a call costs is mostly what this costs.
//!
//! The client carries calls to a backend, the server takes those of kubelet. They do what gRPC needs and nothing
//! else: a request is one body, gathered whole; responses come gathered or part by part; windows are large enough
//! for lists of megabytes; calls are cancelled; GOAWAY lets them end. A frame is written into the connection's buffer
//! by the task that makes it, without a queue or a hop; what all tasks of one turn made goes out in one write. What
//! is received is copied once, from the buffer it was read into to a buffer of its own size; of what is sent, large
//! parts are not copied at all. It must not know what a CRI message is. Why it is ours: see ARCHITECTURE.md.
//! Source: RFC 9113.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use client::{Exchange, Sender, connect};
pub use connection::Connection;
pub use server::{Gathered, Incoming, Responder, Server, accept};
use state::State;

mod client;
mod connection;
mod frame;
mod hpack;
mod output;
mod send;
mod server;
mod state;
mod stream;

/// What a client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Why a call or a connection ended early.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Fault {
    /// The connection has ended.
    #[error("{0}")]
    Closed(Arc<str>),
    /// The peer ended the call.
    #[error("the peer reset the call: {}", frame::reason(*.0))]
    Reset(u32),
    /// The peer takes no more calls on this connection.
    #[error("the peer is closing the connection: {}", frame::reason(*.0))]
    GoAway(u32),
    /// The peer does not keep to the protocol.
    #[error("the peer broke HTTP/2: {0}")]
    Malformed(&'static str),
    /// The body is longer than it may be: so long at least.
    #[error("the body has {0} bytes")]
    TooLarge(usize),
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::Closed(error.to_string().into())
    }
}

/// What handles and connection share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
}

impl Shared {
    fn new(state: State) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
