//! The side that opens streams: a client of a gRPC server.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::connection::Connection;
use crate::error::GoAway;
use crate::frame::{Setting, StreamId};
use crate::hpack::{self, HeaderList, ListKind};
use crate::state::{Side, State};
use crate::stream::Stream;
use crate::{Error, Reason, Shared};

/// What a client announces, and says of the server that it calls.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Whether requests have the scheme `https`: the connection is a TLS one.
    pub is_https: bool,
    /// The `:authority` of requests: the host that is called, with its port unless that is the scheme's.
    pub authority: Box<str>,
    /// The largest header list or trailers of a response, in bytes as RFC 9113, section 6.5.2 counts them. A
    /// larger one fails its call.
    pub max_header_list: u32,
    /// How many bytes of responses the connection may hold that nobody has read. Beyond it the call that
    /// holds the most fails with [`Error::TooLarge`].
    pub max_buffered: usize,
}

impl Default for ClientConfig {
    /// What gRPC clients say over a Unix socket, and room for error texts of megabytes.
    fn default() -> Self {
        Self {
            is_https: false,
            authority: "localhost".into(),
            max_header_list: 8 << 20,
            max_buffered: 64 << 20,
        }
    }
}

/// Opens streams on a connection. Clones open theirs on the same; when the last is dropped the connection
/// ends with its calls.
#[derive(Debug, Clone)]
pub struct SendRequest(Arc<RequestSender>);

/// One call: its response as it arrives. Dropped early, it is cancelled at the server.
#[derive(Debug)]
pub struct ClientStream {
    shared: Arc<Shared>,
    stream: StreamId,
}

/// What all clones of a [`SendRequest`] share.
#[derive(Debug)]
struct RequestSender {
    shared: Arc<Shared>,
    is_https: bool,
    authority: Box<str>,
}

/// Queues the connection preface for `io`; nothing is sent before the connection is polled.
pub fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    io: S,
    config: ClientConfig,
) -> (SendRequest, Connection<S>) {
    let ClientConfig { is_https, authority, max_header_list, max_buffered } = config;
    let mut state = State::new(Side::Client);
    state.max_header_list = max_header_list as usize;
    state.max_buffered = max_buffered;
    state.send_preface(&[(Setting::EnablePush, 0), (Setting::MaxHeaderListSize, max_header_list)]);
    let shared = Shared::new(state);
    let sender = SendRequest(Arc::new(RequestSender { shared: Arc::clone(&shared), is_https, authority }));
    (sender, Connection::new(io, shared))
}

impl SendRequest {
    /// Opens a stream once the server allows it, and sends a POST of `path` with these headers and this body.
    /// Headers for which `leave_out` is true are not sent.
    ///
    /// # Errors
    /// [`Error::Closed`] or [`Error::GoAway`] if the connection opens no more streams,
    /// [`Error::HeadersTooLarge`] if the server does not accept so many headers.
    pub async fn send_request(
        &self,
        path: &str,
        headers: &HeaderMap,
        leave_out: fn(&HeaderName) -> bool,
        body: Bytes,
    ) -> Result<ClientStream, Error> {
        let RequestSender { shared, is_https, authority } = &*self.0;
        let sent = || headers.iter().filter(|(name, _)| !leave_out(name));
        let pseudo = ":method:scheme:authority:pathPOSThttps".len() + 4 * hpack::FIELD_OVERHEAD;
        let size = pseudo + authority.len() + path.len() + hpack::list_size(sent());
        let block = |out: &mut BytesMut| {
            hpack::encode_request(out, *is_https, authority, path);
            for (name, value) in sent() {
                hpack::encode_header(out, name, value);
            }
        };
        let open = |cx: &mut Context<'_>| shared.lock().poll_open(cx, &body, size, block);
        let stream = std::future::poll_fn(open).await?;
        Ok(ClientStream { shared: Arc::clone(shared), stream })
    }

    /// Tells whether the connection opens no more streams.
    pub fn is_closed_to_new(&self) -> bool {
        self.0.shared.lock().closing.is_some()
    }

    /// Completes with the reason once the connection opens no more streams, whether those that are open go on
    /// or not. One task may wait.
    pub async fn closed_to_new(&self) -> Error {
        std::future::poll_fn(|cx| self.0.shared.lock().poll_closed_to_new(cx)).await
    }
}

impl ClientStream {
    /// Waits for status and headers of the response.
    ///
    /// # Errors
    /// If the call ended without them.
    pub async fn response(&mut self) -> Result<(StatusCode, HeaderMap), Error> {
        let head = std::future::poll_fn(|cx| self.shared.lock().stream(self.stream).poll_head(cx)).await?;
        Ok((head.status().unwrap_or_default(), head.headers))
    }

    /// Waits for the whole body, of at most `limit` bytes.
    ///
    /// # Errors
    /// If the call ended early, or the body is, or its gRPC message announces to be, longer.
    pub async fn collect(&mut self, limit: usize) -> Result<Bytes, Error> {
        // Without an expected message the body is always returned.
        self.shared.lock().stop_expecting(self.stream);
        Ok(self.collect_unless_expected(limit).await?.unwrap_or_default())
    }

    /// Says which message the body probably is, without its prefix. As long as that arrives, it is compared
    /// and not copied. Without effect once a part of the body has arrived.
    pub fn expect_message(&mut self, message: Bytes) {
        self.shared.lock().stream(self.stream).expect_message(message);
    }

    /// As [`ClientStream::collect`]; `None` if the body is the expected message alone.
    ///
    /// # Errors
    /// As [`ClientStream::collect`].
    pub async fn collect_unless_expected(&mut self, limit: usize) -> Result<Option<Bytes>, Error> {
        std::future::poll_fn(|cx| self.shared.lock().poll_collect(self.stream, limit, cx)).await
    }

    /// Polls for the received part of the body; `None` at its end. The server sends at most a window ahead of
    /// what was read.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        self.shared.lock().poll_data(self.stream, cx)
    }

    /// Polls for the trailers at the end of the response; `None` if it has none.
    pub fn poll_trailers(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<HeaderMap>, Error>> {
        self.shared.lock().stream(self.stream).poll_trailers(cx)
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        self.shared.lock().drop_call(self.stream);
    }
}

impl Drop for RequestSender {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.unused = true;
        state.wake_task();
    }
}

impl State {
    /// Opens a stream once the peer allows it (section 5.1.2): encodes `block`, whose header list has `size`
    /// bytes, and sends what it can of `body`.
    fn poll_open(
        &mut self,
        cx: &Context<'_>,
        body: &Bytes,
        size: usize,
        block: impl FnOnce(&mut BytesMut),
    ) -> Poll<Result<StreamId, Error>> {
        if let Some(error) = &self.closing {
            return Poll::Ready(Err(error.clone()));
        }
        if size > self.peer.max_header_list {
            return Poll::Ready(Err(Error::HeadersTooLarge { len: size, limit: self.peer.max_header_list }));
        }
        if self.open_streams >= self.peer.max_streams {
            if !self.pending_open.iter().any(|waker| waker.will_wake(cx.waker())) {
                self.pending_open.push(cx.waker().clone());
            }
            return Poll::Pending;
        }
        let id = self.next_stream_id;
        self.next_stream_id = id.next();
        if self.next_stream_id > StreamId::MAX {
            // Section 5.1.1: a client that runs out of identifiers opens a new connection.
            let goaway = GoAway::new(Reason::NO_ERROR, b"all stream identifiers are used");
            self.close_to_new(&Error::GoAway(goaway));
        }
        self.open_streams += 1;
        self.queue_headers(id, false, block);
        self.streams.push(id, Stream::for_request(body.clone()));
        self.send_stream(id);
        self.wake_task();
        Poll::Ready(Ok(id))
    }

    /// Receives a header block of a response.
    pub(crate) fn recv_response(&mut self, id: StreamId, block: Box<HeaderList>, end_stream: bool) {
        let Some(stream) = self.streams.get_mut(id) else {
            self.recv_on_closed(id);
            return;
        };
        if stream.ended.is_some() {
            if !stream.is_broken() {
                self.recv_after_end(id);
            }
            return;
        }
        if let Some(len) = block.too_large {
            let limit = self.max_header_list;
            self.reset_stream(id, Reason::CANCEL, Error::HeadersTooLarge { len, limit });
            return;
        }
        match (block.kind(), block.status()) {
            // Section 8.6: there is no 101 in HTTP/2.
            (Some(ListKind::Response), Some(StatusCode::SWITCHING_PROTOCOLS)) => {
                self.reset_malformed(id, "the response has status 101");
                return;
            }
            (Some(ListKind::Response), Some(status))
                if status.is_informational() && !end_stream && !stream.begun =>
            {
                return;
            }
            (Some(ListKind::Response), Some(status)) if !stream.begun && !status.is_informational() => {
                stream.begun = true;
                stream.content_left = block.content_length().filter(|_| status != StatusCode::NOT_MODIFIED);
                stream.head = Some(block);
            }
            (Some(ListKind::Trailers), _) if stream.begun && end_stream => {
                stream.trailers = Some(block.headers);
            }
            (None, _) => {
                self.reset_malformed(id, "invalid header field");
                return;
            }
            _ => {
                self.reset_malformed(id, "headers and trailers are out of order");
                return;
            }
        }
        if end_stream {
            self.recv_end_stream(id);
        } else {
            stream.wake();
        }
    }

    /// Drops the stream of a call, and cancels it if the response is incomplete.
    fn drop_call(&mut self, id: StreamId) {
        if self.stream(id).ended.is_none() {
            self.reset_stream(id, Reason::CANCEL, Error::Closed("the call was dropped".into()));
            self.wake_task();
        }
        self.remove(id);
    }
}
