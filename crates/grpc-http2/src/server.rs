//! The side that accepts streams: a server of gRPC clients.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body::{Body, Frame};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;

pub(crate) use accepting::{Refusal, ServerState, shorten};

use crate::connection::Connection;
use crate::frame::{self, Setting, StreamId};
use crate::hpack::{self, Pseudo};
use crate::limits::{Budget, Held, Limit, LimitHook};
use crate::state::{Side, State};
use crate::stream::EndStream;
use crate::{Error, GoAway, Reason, Shared};
use accepting::Shutdown;
use linger::Linger;

mod accepting;
mod linger;

/// Payload of the PING sent after GOAWAY; its acknowledgement proves that the client has seen the GOAWAY.
pub(crate) const SHUTDOWN_PING: [u8; 8] = *b"shutdown";
/// The longest path that is kept for the next request, in bytes.
const MAX_LAST_PATH: usize = 256;

/// What a server announces and accepts.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// How many streams of one connection may be open at once; a stream beyond it is refused.
    pub max_concurrent_streams: u32,
    /// The largest header list of a request, in bytes as RFC 9113, section 6.5.2 counts them. A larger one is
    /// answered with `RESOURCE_EXHAUSTED`.
    pub max_header_list: u32,
    /// The longest request body in bytes. A longer one is handed out cut off, with [`Error::TooLarge`].
    pub max_request: usize,
    /// Within how long a request, or a frame, must be complete once a part of it has arrived; at most twice
    /// as long.
    pub receive_timeout: Duration,
    /// How many bytes of requests all connections may hold, headers included, from their arrival to the end
    /// of their calls. A request beyond it is answered with `RESOURCE_EXHAUSTED`; a connection may always
    /// hold 256 KiB.
    pub request_budget: Arc<Budget>,
    /// How many bytes of buffered responses may wait for clients to read them. A response beyond it is
    /// replaced by `RESOURCE_EXHAUSTED`, unless nothing else waits on its connection.
    pub unread_budget: Arc<Budget>,
    /// Is told of every limit that a client reaches.
    pub on_limit: LimitHook,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 1000,
            max_header_list: 64 << 10,
            max_request: 4 << 20,
            receive_timeout: Duration::from_secs(15),
            request_budget: Budget::new(32 << 20),
            unread_budget: Budget::new(48 << 20),
            on_limit: LimitHook::default(),
        }
    }
}

/// A connection of a client. Nothing is sent or received unless [`ServerConnection::accept`] is awaited.
#[derive(Debug)]
pub struct ServerConnection<S> {
    connection: Connection<S>,
    shared: Arc<Shared>,
    receive_timeout: Duration,
    /// The path of the last request, parsed: the next one often has the same.
    last_uri: Uri,
    /// Runs while a request or a frame is incomplete: the timeout, and the incomplete frame when it began.
    receiving: Option<(Pin<Box<Sleep>>, Option<u64>)>,
    /// Set once the connection is over here, until the client has closed its side.
    lingering: Option<Linger>,
}

/// The buffered request body. If it exceeded the limit: the bytes received so far, then an error.
#[derive(Debug)]
pub struct RequestBody {
    data: Option<Bytes>,
    too_large: Option<usize>,
}

/// A call whose request is complete.
#[derive(Debug)]
pub struct IncomingRequest {
    /// The request.
    pub request: Request<RequestBody>,
    /// Sends its response.
    pub respond: SendResponse,
}

/// Sends the response of one call. Dropped early, it resets the stream.
#[derive(Debug)]
pub struct SendResponse {
    shared: Arc<Shared>,
    stream: StreamId,
}

/// Accepts calls from `io`; nothing is sent before [`ServerConnection::accept`] is awaited.
pub fn handshake<S: AsyncRead + AsyncWrite + Unpin>(io: S, config: ServerConfig) -> ServerConnection<S> {
    let receive_timeout = config.receive_timeout;
    let mut state = State::new(Side::Server);
    state.max_header_list = config.max_header_list as usize;
    state.send_preface(&[
        (Setting::MaxConcurrentStreams, config.max_concurrent_streams),
        (Setting::MaxHeaderListSize, config.max_header_list),
    ]);
    state.server = ServerState::new(config);
    let shared = Shared::new(state);
    let connection = Connection::new(io, Arc::clone(&shared));
    ServerConnection {
        connection,
        shared,
        receive_timeout,
        last_uri: Uri::default(),
        receiving: None,
        lingering: None,
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> ServerConnection<S> {
    /// Waits for the next call whose request is complete; `None` once the connection has ended and no call
    /// with it. A path that no URI can have is handed out as `/`.
    ///
    /// # Errors
    /// If the connection ended before its calls, or the client violated the protocol.
    pub async fn accept(&mut self) -> Option<Result<IncomingRequest, Error>> {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<IncomingRequest, Error>>> {
        loop {
            if let Some(lingering) = &mut self.lingering {
                return lingering.poll(self.connection.io(), cx).map(|()| None);
            }
            if let Some(call) = self.take_pending_accept() {
                return Poll::Ready(Some(Ok(call)));
            }
            if self.connection.take_yielded() {
                // This may be a later turn, after the one that it yielded for.
                Connection::<S>::yield_now(cx);
                return self.poll_receive_timeout(cx).map(|error| Some(Err(error)));
            }
            match Pin::new(&mut self.connection).poll(cx) {
                Poll::Ready(Ok(())) => self.lingering = Some(Linger::new()),
                Poll::Ready(ended) => return Poll::Ready(ended.err().map(Err)),
                Poll::Pending if self.shared.lock().pending_accept.is_empty() => {
                    self.connection.take_yielded();
                    return self.poll_receive_timeout(cx).map(|error| Some(Err(error)));
                }
                Poll::Pending => {}
            }
        }
    }

    /// Resets requests that are incomplete for too long; ready if a frame is.
    fn poll_receive_timeout(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        loop {
            let incomplete = self.connection.incomplete_frame();
            if incomplete.is_none() && self.shared.lock().server.incomplete == 0 {
                self.receiving = None;
                return Poll::Pending;
            }
            let (sleep, began_with) = self
                .receiving
                .get_or_insert_with(|| (Box::pin(tokio::time::sleep(self.receive_timeout)), incomplete));
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let mut state = self.shared.lock();
            if incomplete.is_some() && incomplete == *began_with {
                state.server.config.on_limit.call(Limit::ReceiveTime);
                return Poll::Ready(Error::Closed("a frame was not complete in time".into()));
            }
            state.reset_incomplete();
            drop(state);
            self.receiving = None;
        }
    }

    fn take_pending_accept(&mut self) -> Option<IncomingRequest> {
        let mut state = self.shared.lock();
        while let Some(id) = state.pending_accept.pop_front() {
            let Some(stream) = state.streams.get_mut(id) else { continue };
            if let Some(refusal) = stream.refusal.take() {
                state.send_refusal(id, &refusal);
                continue;
            }
            let mut head = stream.head.take().expect("a stream is accepted once");
            let too_large = stream.too_large;
            let body = RequestBody { data: Some(state.take_received(id)), too_large };
            let respond = SendResponse { shared: Arc::clone(&self.shared), stream: id };
            drop(state);
            let uri = self.uri(head.take(Pseudo::Path));
            return Some(IncomingRequest { request: request(uri, head.headers, body), respond });
        }
        None
    }

    /// Parses a path; one that no URI can have is `/`.
    fn uri(&mut self, path: Bytes) -> Uri {
        if self.last_uri.path_and_query().is_none_or(|last| path != last.as_str()) {
            let (len, path) = (path.len(), Some(path).filter(|path| path.starts_with(b"/")));
            let uri = path.and_then(|path| Uri::from_maybe_shared(path).ok()).unwrap_or_default();
            if len > MAX_LAST_PATH {
                return uri;
            }
            self.last_uri = uri;
        }
        self.last_uri.clone()
    }

    /// Tells the client to open no more streams here (section 6.8). Streams that it opens before it knows are
    /// accepted; the connection ends with the last.
    pub fn graceful_shutdown(&self) {
        let mut state = self.shared.lock();
        if state.server.shutdown != Shutdown::None {
            return;
        }
        state.server.shutdown = Shutdown::Announced;
        state.queue_goaway(StreamId::MAX, Reason::NO_ERROR, b"");
        frame::encode_ping(&mut state.out.tail, 0, &SHUTDOWN_PING);
        state.wake_task();
    }

    /// Returns what the connection holds.
    pub fn held(&self) -> Held {
        self.connection.held()
    }

    /// Returns what the client's GOAWAY says, if it has sent one.
    pub fn goaway(&self) -> Option<GoAway> {
        self.shared.lock().server.goaway.clone()
    }
}

fn request(uri: Uri, headers: HeaderMap, body: RequestBody) -> Request<RequestBody> {
    let mut request = Request::new(body);
    *request.version_mut() = Version::HTTP_2;
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    request
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let data = self.data.take().filter(|data| !data.is_empty());
        Poll::Ready(match data {
            Some(data) => Some(Ok(Frame::data(data))),
            None => self.too_large.take().map(|len| Err(Error::TooLarge(len))),
        })
    }
}

impl SendResponse {
    /// Awaits `future`; `None` if the client cancels the call first.
    pub async fn unless_cancelled<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let either = |cx: &mut Context<'_>| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => self.shared.lock().poll_cancelled(self.stream, cx).map(|()| None),
        };
        std::future::poll_fn(either).await
    }

    /// Sends a response, its body as the client reads it, until everything is in the output or the client
    /// cancels. A body that fails resets the stream.
    pub async fn send_response<B: Body<Data = Bytes>>(mut self, response: Response<B>) {
        let (head, body) = response.into_parts();
        let mut body = pin!(body);
        let end_stream = body.is_end_stream();
        let size = body.size_hint().exact().and_then(|size| usize::try_from(size).ok()).unwrap_or_default();
        if !self.shared.lock().begin_response(self.stream, head.status, &head.headers, end_stream, size)
            || end_stream
        {
            return;
        }
        loop {
            let frame = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx));
            let Some(frame) = self.unless_cancelled(frame).await else { return };
            let Some(frame) = frame else { return self.finish(EndStream::WithData).await };
            let Ok(frame) = frame else { return };
            match frame.into_data() {
                Ok(data) => {
                    if !self.send_data(data).await {
                        return;
                    }
                }
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    return self.finish(EndStream::WithTrailers(trailers)).await;
                }
            }
        }
    }

    /// Sends a part of the body once the one before it is sent; `false` if the client has cancelled.
    async fn send_data(&self, data: Bytes) -> bool {
        let mut data = Some(data);
        std::future::poll_fn(|cx| self.shared.lock().poll_send_data(self.stream, &mut data, cx)).await
    }

    /// Ends the response, and waits until the end is in the output.
    async fn finish(&self, end: EndStream) {
        self.shared.lock().end_response(self.stream, end);
        std::future::poll_fn(|cx| self.shared.lock().poll_sent(self.stream, cx)).await;
    }
}

impl Drop for SendResponse {
    fn drop(&mut self) {
        self.shared.lock().drop_response(self.stream);
    }
}

impl State {
    fn poll_cancelled(&mut self, id: StreamId, cx: &Context<'_>) -> Poll<()> {
        let stream = self.stream(id);
        if stream.is_broken() { Poll::Ready(()) } else { stream.wait(cx) }
    }

    /// Sends status and headers of a response; `size` is the length of its body if that is buffered. `false`
    /// if no body is to follow: the client has cancelled, or may hold no more.
    fn begin_response(
        &mut self,
        id: StreamId,
        status: StatusCode,
        headers: &HeaderMap,
        end_stream: bool,
        size: usize,
    ) -> bool {
        let stream = self.stream(id);
        if stream.is_broken() {
            return false;
        }
        if end_stream {
            stream.ending = EndStream::Sent;
        } else if !self.hold_response(id, size) {
            self.refuse_response(id);
            return false;
        }
        let short = end_stream.then(|| self.within_peer_limit(headers.clone()));
        self.queue_headers(id, end_stream, |out| {
            hpack::encode_status(out, status);
            hpack::encode_headers(out, short.as_ref().unwrap_or(headers));
        });
        self.wake_task();
        true
    }

    fn poll_send_data(&mut self, id: StreamId, data: &mut Option<Bytes>, cx: &Context<'_>) -> Poll<bool> {
        let stream = self.stream(id);
        if stream.is_broken() {
            return Poll::Ready(false);
        }
        if stream.pending_data.is_some() {
            return stream.wait(cx);
        }
        stream.pending_data = data.take();
        self.send_stream(id);
        self.wake_task();
        Poll::Ready(true)
    }

    fn end_response(&mut self, id: StreamId, end: EndStream) {
        let stream = self.stream(id);
        if stream.is_broken() {
            return;
        }
        let is_waiting = stream.pending_data.is_some();
        if !is_waiting && matches!(end, EndStream::WithData) {
            stream.pending_data = Some(Bytes::new());
        }
        stream.ending = end;
        if !is_waiting {
            self.send_stream(id);
            self.wake_task();
        }
    }

    fn poll_sent(&mut self, id: StreamId, cx: &Context<'_>) -> Poll<()> {
        let stream = self.stream(id);
        if matches!(stream.ending, EndStream::Sent) { Poll::Ready(()) } else { stream.wait(cx) }
    }

    /// Drops the stream of a call, and resets it if the response is incomplete.
    fn drop_response(&mut self, id: StreamId) {
        let stream = self.stream(id);
        let reason = match stream.ending {
            _ if stream.is_broken() => None,
            // Section 8.1: the rest of a request that is too long need not be sent.
            EndStream::Sent => stream.too_large.map(|_| Reason::NO_ERROR),
            _ => Some(Reason::INTERNAL_ERROR),
        };
        if let Some(reason) = reason {
            self.queue_rst_stream(id, reason);
        }
        self.remove(id);
        if reason.is_some() || self.server.last_stream().is_some() {
            self.wake_task();
        }
    }

    /// Receives the acknowledgement of our PING: the client has seen the GOAWAY, and opened no stream since.
    pub(crate) fn recv_shutdown_ack(&mut self) {
        if self.server.shutdown == Shutdown::Announced {
            let last = self.last_accepted();
            self.server.shutdown = Shutdown::Last(last);
            self.queue_goaway(last, Reason::NO_ERROR, b"");
        }
    }
}
