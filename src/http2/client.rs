//! The side that begins the calls: a client of a backend.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::Connection;
use super::hpack::{self, Block, Kind};
use super::state::{Side, State};
use super::stream::Stream;
use super::{Fault, PREFACE, Shared, frame};

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

/// What all clones of a sender are.
#[derive(Debug)]
struct Starter {
    shared: Arc<Shared>,
}

/// Introduces us over `io`; nothing happens before the connection is polled.
pub fn connect<S: AsyncRead + AsyncWrite + Unpin>(io: S) -> (Sender, Connection<S>) {
    let mut state = State::new(Side::Client);
    state.out.tail.put_slice(PREFACE);
    state.introduce(&[(frame::ENABLE_PUSH, 0)]);
    let shared = Shared::new(state);
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
        let head = std::future::poll_fn(|cx| self.shared.lock().stream(self.stream).poll_head(cx)).await?;
        Ok((head.status().unwrap_or_default(), head.headers))
    }

    /// Waits for the whole body, which may have `limit` bytes at the most.
    ///
    /// # Errors
    /// If the call ended early, or the body is, or its gRPC message claims to be, longer.
    pub async fn whole(&mut self, limit: usize) -> Result<Bytes, Fault> {
        std::future::poll_fn(|cx| self.shared.lock().stream(self.stream).poll_whole(limit, cx)).await
    }

    /// Polls for what has come of the body; `None` at its end. The backend sends no more than a window ahead of
    /// what was taken.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        self.shared.lock().poll_data(self.stream, cx)
    }

    /// Polls for the end of the response; `None` if it has no trailers.
    pub fn poll_trailers(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<HeaderMap>, Fault>> {
        self.shared.lock().stream(self.stream).poll_trailers(cx)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.shared.lock().drop_call(self.stream);
    }
}

impl Drop for Starter {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.unused = true;
        state.wake_task();
    }
}

impl State {
    /// Begins a stream once the peer has a place for it: writes `block` and what can be sent of `body`.
    fn poll_open(
        &mut self,
        cx: &Context<'_>,
        body: &Bytes,
        block: impl FnOnce(&mut BytesMut),
    ) -> Poll<Result<u32, Fault>> {
        if let Some(fault) = &self.closing {
            return Poll::Ready(Err(fault.clone()));
        }
        if self.open >= self.peer.max_streams {
            if !self.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                self.waiting.push(cx.waker().clone());
            }
            return Poll::Pending;
        }
        let id = self.next;
        self.next += 2;
        if self.next > i32::MAX.cast_unsigned() {
            self.close(&Fault::Closed("the connection has used all its stream numbers".into()));
        }
        self.open += 1;
        self.put_block(id, false, block);
        self.streams.insert(id, Stream::asking(self.peer.initial_window, body.clone()));
        self.send(id);
        self.wake_task();
        Poll::Ready(Ok(id))
    }

    /// Takes a header block of a response.
    pub(super) fn take_response(&mut self, id: u32, block: Block, ends: bool) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.ended.is_none()) else { return };
        match (block.kind(), block.status()) {
            (None, _) => return self.spoil(id, "a field of its header is none"),
            (Some(Kind::Response), Some(status)) if status.is_informational() && !ends => return,
            (Some(Kind::Response), Some(_)) if !stream.begun => {
                stream.begun = true;
                stream.head = Some(block);
            }
            (Some(Kind::Trailers), _) if stream.begun && ends => stream.trailers = Some(block.headers),
            _ => return self.spoil(id, "header and trailers are out of order"),
        }
        if ends {
            self.end(id, Ok(()));
        } else {
            stream.wake();
        }
    }

    /// Forgets a call; the peer hears of it if it was not at its end.
    fn drop_call(&mut self, id: u32) {
        if self.stream(id).ended.is_none() {
            self.stop(id, Fault::Closed("nobody waits for it any more".into()));
            self.wake_task();
        }
        self.remove(id);
    }
}
