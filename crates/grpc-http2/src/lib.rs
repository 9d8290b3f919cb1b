//! HTTP/2 as a proxy of gRPC calls needs it: a client and a server.
//!
//! [`client::handshake`] carries calls to a server, [`server::handshake`] accepts those of clients. A request
//! is one body, buffered whole before it is handed out; a response is buffered whole or read part by part. A
//! frame is encoded into the buffer of its connection by the task that makes it, without a queue or a hop,
//! and what all tasks of one turn encoded goes out in one write. Received bytes are copied once, from the
//! read buffer into a buffer of their own size; large parts of a body that is sent are not copied at all.
//!
//! The rules are those of RFC 9113 (HTTP/2) and RFC 7541 (HPACK); a comment names the section where one is
//! applied. README.md says what is left out, the limits and their defaults, and how it is tested.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use connection::Connection;
pub use error::{Error, GoAway, Reason};
pub use limits::{Budget, Held, Limit, LimitHook};
use state::State;

pub mod client;
mod connection;
mod error;
mod frame;
pub mod grpc;
mod hpack;
mod limits;
mod output;
mod recv;
mod send;
pub mod server;
mod state;
mod stream;
mod streams;

/// The connection preface of a client (section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the handles of streams and the task of their connection share.
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
