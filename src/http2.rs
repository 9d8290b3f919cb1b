//! An HTTP/2 client that carries gRPC calls to a backend: what the forward lane costs is mostly what this costs.
//!
//! It does what a gRPC client needs and nothing else: one body sent with the request, responses gathered whole or
//! taken as they arrive, windows large enough for lists of megabytes, cancellation, GOAWAY. A request is written
//! into the connection's buffer by the task that makes it, without a queue or a hop; what all tasks of one turn
//! made goes out in one write. A reply is copied once, from the buffer it was read into to a buffer of its own
//! size. It must not know what a CRI message is. Why it is ours: see ARCHITECTURE.md. Source: RFC 9113.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};

pub use connection::Connection;
use state::State;

mod connection;
mod frame;
mod hpack;
mod state;
mod stream;

/// What a client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Room on the connection as a whole; it is given back as soon as anything came, so that no stream stops another.
const CONNECTION_WINDOW: u32 = 1 << 30;
/// What the connection has before it is given more.
const FIRST_WINDOW: u32 = 65_535;

/// Why a call or a connection ended early.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Fault {
    /// The connection has ended.
    #[error("{0}")]
    Closed(Arc<str>),
    /// The backend ended the call.
    #[error("the backend reset the call: {}", frame::reason(*.0))]
    Reset(u32),
    /// The backend takes no more calls on this connection.
    #[error("the backend is closing the connection: {}", frame::reason(*.0))]
    GoAway(u32),
    /// The backend does not keep to the protocol.
    #[error("the backend broke HTTP/2: {0}")]
    Malformed(&'static str),
    /// The response is longer than the caller takes: so long at least.
    #[error("the reply has {0} bytes")]
    TooLarge(usize),
}

/// Starts calls on a connection. Clones start theirs on the same; when the last is dropped the connection ends
/// with its calls.
#[derive(Debug, Clone)]
pub struct Sender(Arc<Starter>);

/// One call: its response as it comes. Dropped early, it is cancelled at the backend.
#[derive(Debug)]
pub struct Exchange {
    shared: Arc<Shared>,
    stream: u32,
}

/// What handles and connection share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
}

/// What all clones of a sender are.
#[derive(Debug)]
struct Starter {
    shared: Arc<Shared>,
}

/// Introduces us over `io`; nothing happens before the connection is polled.
pub fn connect<S: AsyncRead + AsyncWrite + Unpin>(io: S) -> (Sender, Connection<S>) {
    let mut state = State::new();
    state.out.put_slice(PREFACE);
    let settings = [
        (frame::ENABLE_PUSH, 0),
        (frame::INITIAL_WINDOW_SIZE, stream::WINDOW),
        (frame::MAX_FRAME_SIZE, connection::MAX_FRAME),
        (frame::MAX_HEADER_LIST_SIZE, hpack::MAX_LIST),
    ];
    frame::put_settings(&mut state.out, &settings);
    frame::put_number(&mut state.out, frame::WINDOW_UPDATE, 0, CONNECTION_WINDOW - FIRST_WINDOW);
    let shared = Arc::new(Shared { state: Mutex::new(state) });
    (Sender(Arc::new(Starter { shared: Arc::clone(&shared) })), Connection::new(io, shared))
}

impl Sender {
    /// Starts a call once the backend has a place for it: a POST of `path` with these headers and this body.
    /// Headers for which `leave_out` is true are not sent.
    ///
    /// # Errors
    /// If the connection has ended or takes no more calls.
    pub async fn send(
        &self,
        path: &str,
        headers: &HeaderMap,
        leave_out: fn(&http::HeaderName) -> bool,
        body: Bytes,
    ) -> Result<Exchange, Fault> {
        let block = |out: &mut BytesMut| {
            hpack::put_request(out, path);
            for (name, value) in headers.iter().filter(|(name, _)| !leave_out(name)) {
                hpack::put_header(out, name, value);
            }
        };
        let shared = &self.0.shared;
        let open = |cx: &mut Context<'_>| shared.lock().poll_open(cx, &body, block);
        let stream = std::future::poll_fn(open).await?;
        Ok(Exchange { shared: Arc::clone(shared), stream })
    }

    /// Tells whether the connection takes no more calls.
    pub fn is_retired(&self) -> bool {
        self.0.shared.lock().closing.is_some()
    }

    /// Completes once the connection takes no more calls, whether those under way go on or not. One task may wait.
    pub async fn retired(&self) {
        std::future::poll_fn(|cx| self.0.shared.lock().poll_retired(cx)).await;
    }
}

impl Exchange {
    /// Waits for status and header of the response.
    ///
    /// # Errors
    /// If the call ended without.
    pub async fn head(&mut self) -> Result<(StatusCode, HeaderMap), Fault> {
        std::future::poll_fn(|cx| self.shared.lock().poll_head(self.stream, cx)).await
    }

    /// Waits for the whole body, which may have `limit` bytes at the most.
    ///
    /// # Errors
    /// If the call ended early, or the body is, or its gRPC message claims to be, longer.
    pub async fn whole(&mut self, limit: usize) -> Result<Bytes, Fault> {
        std::future::poll_fn(|cx| self.shared.lock().poll_whole(self.stream, limit, cx)).await
    }

    /// Polls for what has come of the body; `None` at its end. The backend sends no more than a window ahead of
    /// what was taken.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        self.shared.lock().poll_data(self.stream, cx)
    }

    /// Polls for the end of the response; `None` if it has no trailers.
    pub fn poll_trailers(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<HeaderMap>, Fault>> {
        self.shared.lock().poll_trailers(self.stream, cx)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.shared.lock().drop_stream(self.stream);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Starter {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.unused = true;
        state.wake_task();
    }
}
