//! Turns the outcome of a call into the response: a buffered reply, a streamed one, or an error; and records
//! it.
//!
//! The recorder sees the status, in headers or trailers, and the time the client waited; a call whose client
//! disconnected counts as cancelled. It never reads a message.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::Frame;
use tokio::sync::OwnedSemaphorePermit;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::backend::{Backend, BufferedReply, Reply, ReplyBody};
use crate::codec::{self, BufferedBody, Frames, Message};
use crate::error::Error;
use crate::method::{self, Method};
use crate::metrics::CallMetrics;
use crate::proxy::Node;
use crate::telemetry::spans::CallSpan;

/// What a route returns.
#[derive(Debug)]
pub(super) enum Outcome {
    /// A complete reply.
    Buffered {
        /// Response headers.
        headers: HeaderMap,
        /// The framed message, in pieces.
        chunks: Vec<Bytes>,
        /// Trailers.
        trailers: HeaderMap,
        /// The status in them.
        code: Code,
    },
    /// A backend's reply that is streamed.
    Streaming(Reply),
    /// A stream of messages that crimux builds.
    Messages(Frames),
}

impl Outcome {
    /// A message that crimux authored.
    pub(super) fn message(encoded: &[u8]) -> Self {
        Self::from_pieces(vec![Message::new(encoded).framed()])
    }

    /// A framed message, in pieces, that crimux put together.
    pub(super) fn from_pieces(chunks: Vec<Bytes>) -> Self {
        Self::Buffered {
            headers: codec::reply_headers(),
            chunks,
            trailers: codec::ok_trailers(),
            code: Code::Ok,
        }
    }
}

impl From<BufferedReply> for Outcome {
    fn from(reply: BufferedReply) -> Self {
        let BufferedReply { headers, message, trailers, code } = reply;
        Self::Buffered { headers, chunks: vec![message.into_framed()], trailers, code }
    }
}

/// Counts one call and logs it, once, when it ends.
#[derive(Debug)]
pub(super) struct CallRecorder {
    calls: Arc<CallMetrics>,
    method: Option<&'static Method>,
    started: Instant,
    code: Code,
    span: Option<CallSpan>,
}

impl CallRecorder {
    pub(super) fn new(node: &Node, method: Option<&'static Method>, span: Option<CallSpan>) -> Self {
        Self {
            calls: Arc::clone(&node.own_calls),
            method,
            started: Instant::now(),
            code: Code::Cancelled,
            span,
        }
    }

    /// Counts the call under this backend.
    pub(super) fn set_backend(&mut self, backend: &Backend) {
        self.calls = Arc::clone(&backend.calls);
    }

    /// Counts the call under all backends.
    pub(super) fn set_all_backends(&mut self, node: &Node) {
        self.calls = Arc::clone(&node.all_calls);
    }

    /// Turns the outcome into the response. A buffered reply keeps the permit of its `list` until it was
    /// read.
    pub(super) fn respond(
        mut self,
        outcome: Result<Outcome, Error>,
        list: Option<OwnedSemaphorePermit>,
    ) -> Response<Body> {
        match outcome {
            Ok(Outcome::Buffered { headers, chunks, trailers, code }) => {
                self.code = code;
                if code != Code::Ok && codec::status_code(&headers).is_some() {
                    return response(headers, Body::empty());
                }
                response(headers, Body::new(BufferedBody::new(chunks, trailers).holding(list)))
            }
            Ok(Outcome::Streaming(Reply { headers, body })) => {
                if let Some(code) = codec::status_code(&headers) {
                    self.code = code;
                    return response(headers, Body::empty());
                }
                response(headers, Body::new(StreamingBody { body: Some(body), recorder: self }))
            }
            Ok(Outcome::Messages(frames)) => {
                response(codec::reply_headers(), Body::new(MessagesBody { frames, recorder: self }))
            }
            Err(error) => {
                self.code = error.code();
                tracing::debug!(%error, "refused");
                Status::from(error).into_http()
            }
        }
    }
}

impl Drop for CallRecorder {
    fn drop(&mut self) {
        let waited = self.started.elapsed();
        let name = self.method.map_or(method::UNKNOWN_NAME, |method| method.name);
        let index = self.method.map_or(method::COUNT, |method| method.index);
        self.calls.record_answer(index, self.code, waited);
        if let Some(trace) = self.span.as_ref().and_then(CallSpan::trace_id) {
            self.calls.record_trace(index, waited, trace);
        }
        if let Some(span) = &mut self.span {
            span.backend(self.calls.backend());
            span.end(self.code);
        }
        tracing::debug!(method = name, backend = self.calls.backend(), code = ?self.code, elapsed = ?waited, "call");
    }
}

/// Streams a backend's reply to the client.
struct StreamingBody {
    body: Option<ReplyBody>,
    recorder: CallRecorder,
}

impl http_body::Body for StreamingBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(body) = self.body.as_mut() else {
            return Poll::Ready(None);
        };
        let ended = match ready!(body.poll_chunk(cx)) {
            Some(Ok(chunk)) => return Poll::Ready(Some(Ok(Frame::data(chunk)))),
            Some(Err(error)) => Err(error),
            None => match ready!(body.poll_trailers(cx)) {
                Ok(Some(trailers)) => Ok(trailers),
                Ok(None) => Err(body.without_status()),
                Err(error) => Err(error),
            },
        };
        self.body = None;
        let trailers = ended.unwrap_or_else(codec::error_trailers);
        self.recorder.code = codec::status_code(&trailers).unwrap_or(Code::Unknown);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

/// Streams messages to the client.
struct MessagesBody {
    frames: Frames,
    recorder: CallRecorder,
}

impl http_body::Body for MessagesBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some((frame, code)) = ready!(self.frames.poll(cx)) else {
            return Poll::Ready(None);
        };
        self.recorder.code = code.unwrap_or(self.recorder.code);
        Poll::Ready(Some(Ok(frame)))
    }
}

/// Returns the answer to a path that is not of the CRI API.
pub(super) fn unimplemented_response(path: &str) -> Response<Body> {
    Status::unimplemented(format!("crimux: {path} is not a method of the CRI API")).into_http()
}

fn response(headers: HeaderMap, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.headers_mut() = headers;
    response
}
