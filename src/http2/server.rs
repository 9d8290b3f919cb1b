//! The side that takes the calls: a server of gRPC clients.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body::{Body, Frame};
use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::Connection;
use super::hpack::{self, Block, Kind, Pseudo};
use super::state::{Side, State};
use super::stream::{Stream, Tail};
use super::{Fault, Shared, frame};

/// What the ping says whose answer shows that the peer has heard our goodbye.
pub(super) const FAREWELL: [u8; 8] = *b"farewell";

/// A connection of a client. Nothing is sent or received unless [`Server::next`] is awaited.
#[derive(Debug)]
pub struct Server<S> {
    connection: Connection<S>,
    shared: Arc<Shared>,
}

/// The body of a request: all of it, or what came of one that is longer than it may be, and an error.
#[derive(Debug)]
pub struct Gathered {
    data: Option<Bytes>,
    cut: Option<usize>,
}

/// A call whose request is there.
#[derive(Debug)]
pub struct Incoming {
    /// What is asked.
    pub request: Request<Gathered>,
    /// What answers it.
    pub responder: Responder,
}

/// Answers one call. Dropped early, it resets the stream.
#[derive(Debug)]
pub struct Responder {
    shared: Arc<Shared>,
    stream: u32,
}

/// Takes calls from `io`, each with a request of `limit` bytes at the most.
pub fn accept<S: AsyncRead + AsyncWrite + Unpin>(io: S, limit: usize) -> Server<S> {
    let mut state = State::new(Side::Server);
    state.limit = limit;
    state.introduce(&[]);
    let shared = Shared::new(state);
    Server { connection: Connection::new(io, Arc::clone(&shared)), shared }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Server<S> {
    /// Waits for the next call whose request is there; `None` when the connection has ended and no call with it. A
    /// call is a POST, whatever the peer says; one whose path is none has the path `/`.
    ///
    /// # Errors
    /// If the connection has ended before its calls, or the peer broke the protocol.
    pub async fn next(&mut self) -> Option<Result<Incoming, Fault>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Incoming, Fault>>> {
        loop {
            if let Some(call) = self.take_arrived() {
                return Poll::Ready(Some(Ok(call)));
            }
            match Pin::new(&mut self.connection).poll(cx) {
                Poll::Ready(ended) => return Poll::Ready(ended.err().map(Err)),
                Poll::Pending if self.shared.lock().arrived.is_empty() => return Poll::Pending,
                Poll::Pending => {}
            }
        }
    }

    fn take_arrived(&self) -> Option<Incoming> {
        let mut state = self.shared.lock();
        while let Some(id) = state.arrived.pop_front() {
            let Some(stream) = state.streams.get_mut(&id) else { continue };
            let head = stream.head.take().expect("it arrives once");
            let body = Gathered { data: Some(stream.take_received()), cut: stream.cut };
            let responder = Responder { shared: Arc::clone(&self.shared), stream: id };
            return Some(Incoming { request: request(head, body), responder });
        }
        None
    }

    /// Tells the peer to begin no more calls here. Those that it begins before it hears that are taken; the
    /// connection ends with the last.
    pub fn say_goodbye(&self) {
        let mut state = self.shared.lock();
        state.put_goaway(i32::MAX.cast_unsigned(), frame::NO_ERROR);
        frame::put_ping(&mut state.out.tail, FAREWELL);
        state.wake_task();
    }
}

fn request(mut head: Block, body: Gathered) -> Request<Gathered> {
    let mut request = Request::new(body);
    *request.version_mut() = Version::HTTP_2;
    *request.method_mut() = Method::POST;
    let path = Some(head.take(Pseudo::Path)).filter(|path| path.starts_with(b"/"));
    *request.uri_mut() = path.and_then(|path| Uri::from_maybe_shared(path).ok()).unwrap_or_default();
    *request.headers_mut() = head.headers;
    request
}

impl Body for Gathered {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let data = self.data.take().filter(|data| !data.is_empty());
        Poll::Ready(match data {
            Some(data) => Some(Ok(Frame::data(data))),
            None => self.cut.take().map(|len| Err(Fault::TooLarge(len))),
        })
    }
}

impl Responder {
    /// Awaits `future`; `None` if the client gives up first.
    pub async fn unless_cancelled<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let either = |cx: &mut Context<'_>| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => self.shared.lock().poll_cancelled(self.stream, cx).map(|()| None),
        };
        std::future::poll_fn(either).await
    }

    /// Sends a response, its body as it comes and as the client takes it, until all is on its way or the client
    /// gives up. A body that fails resets the stream.
    pub async fn send<B: Body<Data = Bytes>>(mut self, response: Response<B>) {
        let (head, body) = response.into_parts();
        let mut body = pin!(body);
        let is_all = body.is_end_stream();
        self.shared.lock().begin_response(self.stream, head.status, &head.headers, is_all);
        if is_all {
            return;
        }
        loop {
            let frame = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx));
            let Some(frame) = self.unless_cancelled(frame).await else { return };
            let Some(frame) = frame else { return self.finish(Tail::Body).await };
            let Ok(frame) = frame else { return };
            match frame.into_data() {
                Ok(data) => {
                    if !self.put(data).await {
                        return;
                    }
                }
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    return self.finish(Tail::Trailers(trailers)).await;
                }
            }
        }
    }

    /// Puts a part of the body on its way, once the one before it is; `false` if the client has given up.
    async fn put(&self, data: Bytes) -> bool {
        let mut data = Some(data);
        std::future::poll_fn(|cx| self.shared.lock().poll_put(self.stream, &mut data, cx)).await
    }

    /// Ends the response, and waits until that is on its way.
    async fn finish(&self, tail: Tail) {
        self.shared.lock().end_response(self.stream, tail);
        std::future::poll_fn(|cx| self.shared.lock().poll_sent(self.stream, cx)).await;
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.shared.lock().drop_response(self.stream);
    }
}

impl State {
    /// Takes a header block of a request.
    pub(super) fn take_request(&mut self, id: u32, block: Block, ends: bool) {
        let kind = block.kind();
        if id < self.next {
            return match self.streams.get(&id).filter(|stream| stream.ended.is_none()) {
                None => {}
                Some(_) if ends && kind == Some(Kind::Trailers) => self.end(id, Ok(())),
                Some(_) => self.spoil(id, "header and trailers are out of order"),
            };
        }
        self.next = id + 2;
        if self.last_stream.is_some() {
            return;
        }
        self.streams.insert(id, Stream::asked(self.peer.initial_window, block, self.limit));
        if kind != Some(Kind::Request) {
            self.spoil(id, "a field of its header is none");
        } else if ends {
            self.end(id, Ok(()));
        }
    }

    /// Takes the peer's answer to our last ping: what it has begun until now is all.
    pub(super) fn take_farewell(&mut self) {
        if self.last_stream.is_none() {
            let last = self.last_taken();
            self.last_stream = Some(last);
            self.put_goaway(last, frame::NO_ERROR);
        }
    }

    fn poll_cancelled(&mut self, id: u32, cx: &Context<'_>) -> Poll<()> {
        let stream = self.stream(id);
        if stream.is_broken() { Poll::Ready(()) } else { stream.wait(cx) }
    }

    fn begin_response(&mut self, id: u32, status: StatusCode, headers: &HeaderMap, is_all: bool) {
        let stream = self.stream(id);
        if stream.is_broken() {
            return;
        }
        if is_all {
            stream.tail = Tail::Sent;
        }
        self.put_block(id, is_all, |out| {
            hpack::put_response(out, status);
            hpack::put_headers(out, headers);
        });
        self.wake_task();
    }

    fn poll_put(&mut self, id: u32, data: &mut Option<Bytes>, cx: &Context<'_>) -> Poll<bool> {
        let stream = self.stream(id);
        if stream.is_broken() {
            return Poll::Ready(false);
        }
        if stream.unsent.is_some() {
            return stream.wait(cx);
        }
        stream.unsent = data.take();
        self.send(id);
        self.wake_task();
        Poll::Ready(true)
    }

    fn end_response(&mut self, id: u32, tail: Tail) {
        let stream = self.stream(id);
        if stream.is_broken() {
            return;
        }
        let is_waiting = stream.unsent.is_some();
        if !is_waiting && matches!(tail, Tail::Body) {
            stream.unsent = Some(Bytes::new());
        }
        stream.tail = tail;
        if !is_waiting {
            self.send(id);
            self.wake_task();
        }
    }

    fn poll_sent(&mut self, id: u32, cx: &Context<'_>) -> Poll<()> {
        let stream = self.stream(id);
        if matches!(stream.tail, Tail::Sent) { Poll::Ready(()) } else { stream.wait(cx) }
    }

    /// Forgets a call; the peer hears of it if it was not at its end.
    fn drop_response(&mut self, id: u32) {
        let stream = self.stream(id);
        let code = match stream.tail {
            _ if stream.is_broken() => None,
            // The rest of a request that is too long need not be sent.
            Tail::Sent => stream.cut.map(|_| frame::NO_ERROR),
            _ => Some(frame::INTERNAL_ERROR),
        };
        if let Some(code) = code {
            frame::put_number(&mut self.out.tail, frame::RST_STREAM, id, code);
        }
        self.remove(id);
        if code.is_some() || self.last_stream.is_some() {
            self.wake_task();
        }
    }
}
