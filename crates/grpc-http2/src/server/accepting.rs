//! What only the server side of a connection keeps: what it accepts, refuses and holds.

use std::collections::VecDeque;
use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::ServerConfig;
use crate::frame::StreamId;
use crate::grpc::GrpcCode;
use crate::hpack::{self, HeaderList, ListKind, Pseudo};
use crate::limits::{Limit, Share};
use crate::state::State;
use crate::stream::Stream;
use crate::{Error, GoAway, Reason};

/// How many bytes of requests a connection may hold whatever the others hold: small requests are always
/// accepted.
const FREE_REQUEST_BYTES: usize = 256 << 10;
/// How many bytes of memory the metadata of the open streams of a connection may take: small blocks go back
/// to the system late, so there must not be many. A thousand calls as gRPC clients make them take a third of
/// it.
const MAX_METADATA: usize = 4 << 20;
/// How many ranges of skipped identifiers are remembered.
const MAX_SKIPPED: usize = 16;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// The server side of a connection.
#[derive(Debug)]
pub(crate) struct ServerState {
    pub(super) config: ServerConfig,
    /// The latest ranges of identifiers that the client skipped: first, and the one after the last.
    skipped: VecDeque<(StreamId, StreamId)>,
    pub(super) shutdown: Shutdown,
    /// What the client's GOAWAY says.
    pub(crate) goaway: Option<GoAway>,
    /// Bytes of requests, from their arrival to the end of their calls.
    requests: Share,
    /// Memory that the metadata of open streams takes, about.
    metadata: usize,
    /// Bytes of buffered responses that the client has not read.
    unread: Share,
    /// How many requests are incomplete.
    pub(crate) incomplete: usize,
    /// The period of the receive timeout that is running.
    pub(super) period: u64,
}

/// How far a graceful shutdown has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shutdown {
    None,
    /// GOAWAY and PING are sent; the client may not have seen them.
    Announced,
    /// The last stream that is accepted.
    Last(StreamId),
}

/// Why a request is answered here: status and headers of a response without a body.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    code: GrpcCode,
    message: &'static str,
}

impl ServerState {
    pub(crate) fn new(config: ServerConfig) -> Self {
        Self {
            skipped: VecDeque::new(),
            shutdown: Shutdown::None,
            goaway: None,
            requests: Share::new(Arc::clone(&config.request_budget), FREE_REQUEST_BYTES),
            metadata: 0,
            unread: Share::new(Arc::clone(&config.unread_budget), 0),
            incomplete: 0,
            period: 0,
            config,
        }
    }

    /// Returns the last stream that is accepted, once that is known.
    pub(crate) fn last_stream(&self) -> Option<StreamId> {
        match self.shutdown {
            Shutdown::Last(last) => Some(last),
            Shutdown::None | Shutdown::Announced => None,
        }
    }

    /// Releases what a stream holds.
    pub(crate) fn release(&mut self, stream: &Stream) {
        self.requests.release(stream.held);
        self.metadata -= stream.metadata;
        self.unread.release(stream.unread);
        self.incomplete -= usize::from(stream.ended.is_none());
    }

    /// Records the identifiers between `next` and `id` as skipped by the client.
    fn record_skipped(&mut self, next: StreamId, id: StreamId) {
        if id > next {
            self.skipped.truncate(MAX_SKIPPED - 1);
            self.skipped.push_front((next, id));
        }
    }

    fn is_skipped(&self, id: StreamId) -> bool {
        self.skipped.iter().any(|&(first, end)| (first..end).contains(&id))
    }
}

impl Refusal {
    const METADATA: Self = Self::exhausted("the request has more metadata than is accepted");
    const REQUEST_BYTES: Self = Self::exhausted("too many bytes of requests are in flight");
    const UNREAD_BYTES: Self =
        Self::exhausted("too many bytes of responses wait for the client to read them");
    // gRPC over HTTP/2, "Requests".
    const METHOD: Self = Self::http(StatusCode::METHOD_NOT_ALLOWED, "the request method must be POST");
    const CONTENT_TYPE: Self =
        Self::http(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the content-type must be application/grpc");

    const fn exhausted(message: &'static str) -> Self {
        Self { status: StatusCode::OK, code: GrpcCode::ResourceExhausted, message }
    }

    const fn http(status: StatusCode, message: &'static str) -> Self {
        Self { status, code: GrpcCode::Internal, message }
    }

    /// Returns why a request is not handed out, if so, whatever its body is.
    fn of(block: &HeaderList) -> Option<Self> {
        if block.too_large.is_some() {
            return Some(Self::METADATA);
        }
        if block.pseudo(Pseudo::Method) != b"POST" {
            return Some(Self::METHOD);
        }
        let content_type = block.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        let is_grpc = content_type.is_some_and(|content_type| content_type.starts_with(b"application/grpc"));
        (!is_grpc).then_some(Self::CONTENT_TYPE)
    }

    /// Returns the headers of the response. The messages need no percent-encoding: they are printable ASCII.
    fn headers(&self) -> HeaderMap {
        HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static("application/grpc")),
            (GRPC_STATUS, HeaderValue::from(self.code as i32)),
            (GRPC_MESSAGE, HeaderValue::from_static(self.message)),
        ])
    }
}

/// Returns what of a header list with a gRPC status a peer accepts that announces `limit` (section 6.5.2):
/// the status, and as much of its message as fits.
pub(crate) fn shorten(headers: &HeaderMap, limit: usize) -> HeaderMap {
    const STATUS: usize = ":status200".len() + hpack::FIELD_OVERHEAD;
    let mut short = HeaderMap::new();
    for name in [CONTENT_TYPE, GRPC_STATUS] {
        short.extend(headers.get(&name).map(|value| (name, value.clone())));
    }
    let message = headers.get(&GRPC_MESSAGE).map_or(&[][..], HeaderValue::as_bytes);
    let taken = STATUS + hpack::list_size(&short) + GRPC_MESSAGE.as_str().len() + hpack::FIELD_OVERHEAD;
    // Some peers refuse a list of exactly their limit.
    let end = message.len().min(limit.saturating_sub(taken + 1));
    // A percent-encoded byte is not cut.
    let cut = message[..end].iter().rev().take(2).position(|&byte| byte == b'%').map_or(0, |at| at + 1);
    short.extend(HeaderValue::from_bytes(&message[..end - cut]).ok().map(|message| (GRPC_MESSAGE, message)));
    short
}

impl State {
    /// Receives a header block of a request.
    ///
    /// # Errors
    /// If the client opens a stream that it skipped (section 5.1.1), or that is closed.
    pub(crate) fn recv_request(
        &mut self,
        id: StreamId,
        block: Box<HeaderList>,
        end_stream: bool,
    ) -> Result<(), Error> {
        if id >= self.next_stream_id {
            self.open_remote(id, block, end_stream);
            return Ok(());
        }
        match self.streams.get(id) {
            None if self.server.is_skipped(id) => {
                return Err(Error::protocol("a stream identifier is lower than the last one"));
            }
            None if self.is_recently_reset(id) => {}
            // Section 5.1: gRPC clients send HEADERS once, so this one has lost count of its streams.
            None => return Err(Error::violation(Reason::STREAM_CLOSED, "HEADERS on a closed stream")),
            Some(stream) if stream.is_broken() || stream.too_large.is_some() => {}
            Some(stream) if stream.ended.is_some() => self.recv_after_end(id),
            Some(_) if end_stream && block.kind() == Some(ListKind::Trailers) => self.recv_end_stream(id),
            Some(_) => self.reset_malformed(id, "headers and trailers are out of order"),
        }
        Ok(())
    }

    /// Opens the stream that a header block of the client begins.
    fn open_remote(&mut self, id: StreamId, block: Box<HeaderList>, end_stream: bool) {
        self.server.record_skipped(self.next_stream_id, id);
        self.next_stream_id = id.next();
        // Section 6.8: what a client opens after it has seen GOAWAY is ignored.
        if self.server.last_stream().is_some() {
            return;
        }
        if self.streams.len() >= self.server.config.max_concurrent_streams as usize {
            self.server.config.on_limit.call(Limit::Streams);
            return self.queue_rst_stream(id, Reason::REFUSED_STREAM);
        }
        if block.kind() != Some(ListKind::Request) {
            return self.queue_rst_stream(id, Reason::PROTOCOL_ERROR);
        }
        let (refusal, memory) = (Refusal::of(&block), block.memory());
        if block.too_large.is_some() {
            self.server.config.on_limit.call(Limit::Metadata);
        }
        let mut stream = Stream::accepted(block, self.server.config.max_request);
        (stream.refusal, stream.period, stream.metadata) = (refusal, self.server.period, memory);
        self.server.incomplete += 1;
        self.server.metadata += memory;
        self.streams.push(id, stream);
        if self.server.metadata > MAX_METADATA {
            self.refuse_request(id);
        } else if self.hold_request(id, memory) && end_stream {
            self.recv_end_stream(id);
        }
    }

    /// Holds bytes of a request; `false` if there is no room and the stream is gone.
    pub(crate) fn hold_request(&mut self, id: StreamId, len: usize) -> bool {
        let Some(stream) = self.streams.get_mut(id) else { return false };
        if stream.refusal.is_some() || self.server.requests.try_hold(len) {
            stream.held += if stream.refusal.is_some() { 0 } else { len };
            return true;
        }
        self.refuse_request(id);
        false
    }

    fn refuse_request(&mut self, id: StreamId) {
        self.server.config.on_limit.call(Limit::RequestBytes);
        self.send_refusal(id, &Refusal::REQUEST_BYTES);
    }

    /// Holds the bytes of a buffered response. One that has no room is replaced; `false` then.
    pub(super) fn hold_response(&mut self, id: StreamId, len: usize) -> bool {
        // A client that reads everything gets a response of any size.
        if self.server.unread.is_empty() {
            self.server.unread.hold(len);
        } else if !self.server.unread.try_hold(len) {
            self.server.config.on_limit.call(Limit::UnreadBytes);
            return false;
        }
        self.stream(id).unread = len;
        true
    }

    /// Answers the request of a stream that is not handed out, and drops it.
    pub(super) fn send_refusal(&mut self, id: StreamId, refusal: &Refusal) {
        self.queue_refusal(id, refusal);
        let is_incomplete = self.streams.get(id).is_some_and(|stream| stream.ended.is_none());
        if is_incomplete {
            // Section 8.1: the rest of the request need not be sent.
            self.queue_rst_stream(id, Reason::NO_ERROR);
        }
        self.remove(id);
    }

    /// Ends the response of a stream with a status instead of its body.
    pub(super) fn refuse_response(&mut self, id: StreamId) {
        self.queue_refusal(id, &Refusal::UNREAD_BYTES);
        self.stream(id).ending = crate::stream::EndStream::Sent;
        self.wake_task();
    }

    fn queue_refusal(&mut self, id: StreamId, refusal: &Refusal) {
        let headers = refusal.headers();
        self.queue_headers(id, true, |out| {
            hpack::encode_status(out, refusal.status);
            hpack::encode_headers(out, &headers);
        });
    }

    /// Begins another period of the receive timeout: resets requests that were incomplete through the whole
    /// last one.
    pub(super) fn reset_incomplete(&mut self) {
        let period = self.server.period;
        self.server.period += 1;
        let is_late = |stream: &Stream| stream.ended.is_none() && stream.period < period;
        let ids: Vec<StreamId> =
            self.streams.iter().filter(|(_, stream)| is_late(stream)).map(|(id, _)| id).collect();
        for id in ids {
            self.server.config.on_limit.call(Limit::ReceiveTime);
            self.reset_stream(id, Reason::CANCEL, Error::protocol("the request is incomplete"));
        }
    }
}
