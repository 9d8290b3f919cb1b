//! State of one stream: bytes still to send, bytes received but not read, and the waker.

use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

use crate::frame::{self, StreamId};
use crate::grpc::{self, MAX_RESERVE, PREFIX_LEN};
use crate::hpack::HeaderList;
use crate::server::Refusal;
use crate::{Error, Reason};

/// The receive window of a stream: how many bytes a peer may send that nobody has read.
pub(crate) const WINDOW: u32 = 16 << 20;
/// The least that a `WINDOW_UPDATE` returns to the peer, in bytes.
pub(crate) const WINDOW_UPDATE_THRESHOLD: u32 = WINDOW / 4;

/// One stream, which carries one request and its response.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// The part of our body that is sent next, as far as it is not sent.
    pub(crate) pending_data: Option<Bytes>,
    /// How our side ends after it.
    pub(crate) ending: EndStream,
    /// The send window, less the initial window of the peer's settings: those change all streams at once.
    pub(crate) send_window: i64,
    /// Whether it is in the queue of streams that could send.
    pub(crate) is_queued: bool,
    /// Whether the peer's header list has arrived.
    pub(crate) begun: bool,
    pub(crate) head: Option<Box<HeaderList>>,
    pub(crate) trailers: Option<HeaderMap>,
    /// How the peer's side ended; `None` while it is open.
    pub(crate) ended: Option<Result<(), Error>>,
    /// Set if the body exceeded the limit: the smallest size that it could have had.
    pub(crate) too_large: Option<usize>,
    /// Why the request is answered here and not handed out.
    pub(crate) refusal: Option<Refusal>,
    /// Server: how many bytes it holds of the budget of requests.
    pub(crate) held: usize,
    /// Server: how many bytes of memory its metadata takes, about.
    pub(crate) metadata: usize,
    /// Server: how many bytes its response holds of the budget of unread responses.
    pub(crate) unread: usize,
    /// Server: the period of the receive timeout in which it was opened.
    pub(crate) period: u64,
    /// What `content-length` announces and has not arrived.
    pub(crate) content_left: Option<u64>,
    /// How many bytes the peer may still send.
    recv_window: i64,
    /// Received bytes not yet returned with a `WINDOW_UPDATE`.
    unreleased: u32,
    /// Whether any of the body has arrived.
    has_data: bool,
    /// Received bytes that nobody has read.
    received: BytesMut,
    /// What the body probably is; nothing is in `received` as long as it is.
    expected: Option<Expected>,
    /// The limit of a body that is buffered whole.
    limit: Option<usize>,
    waker: Option<Waker>,
}

/// How our side of a stream ends.
#[derive(Debug, Default)]
pub(crate) enum EndStream {
    /// Not known yet.
    #[default]
    Open,
    /// With the last byte of the body.
    WithData,
    /// With these trailers.
    WithTrailers(HeaderMap),
    /// It has ended.
    Sent,
}

/// A message that probably arrives: its bytes are compared and not copied as long as they are the same.
#[derive(Debug)]
struct Expected {
    /// The message, without its prefix.
    message: Bytes,
    /// How many bytes of the prefix and the message have arrived.
    arrived: usize,
}

/// What follows from a received part of the body.
pub(crate) enum RecvData {
    Buffered,
    /// The body is, or announces that it will be, longer than its limit.
    TooLarge(usize),
    /// The peer sent more than the window allows.
    BeyondWindow,
    /// More arrived than `content-length` announced.
    BeyondContentLength,
}

impl Stream {
    /// A stream that we open, with this body.
    pub(crate) fn for_request(body: Bytes) -> Self {
        let (pending_data, ending) = (Some(body), EndStream::WithData);
        Self { pending_data, ending, recv_window: i64::from(WINDOW), ..Self::default() }
    }

    /// A stream that the peer opens: its body is buffered, up to this limit.
    pub(crate) fn accepted(head: Box<HeaderList>, limit: usize) -> Self {
        let content_left = head.content_length();
        let (recv_window, limit) = (i64::from(WINDOW), Some(limit));
        Self { head: Some(head), begun: true, content_left, recv_window, limit, ..Self::default() }
    }

    /// Buffers a part of the body. `len` is what counts for flow control, padding included.
    pub(crate) fn recv_data(&mut self, part: &[u8], len: u32) -> RecvData {
        self.recv_window -= i64::from(len);
        if self.recv_window < 0 {
            return RecvData::BeyondWindow;
        }
        if let Some(left) = &mut self.content_left {
            let Some(rest) = left.checked_sub(part.len() as u64) else {
                return RecvData::BeyondContentLength;
            };
            *left = rest;
        }
        if self.refusal.is_some() {
            self.unreleased += len;
            return RecvData::Buffered;
        }
        self.buffer(part);
        if let Some(limit) = self.limit {
            // The reader is woken at the end of the body.
            self.unreleased += len;
            let least = self.least_len();
            if least > limit {
                return RecvData::TooLarge(least);
            }
        } else {
            // Nobody reads padding.
            self.unreleased += len - u32::try_from(part.len()).unwrap_or(len);
            self.wake();
        }
        RecvData::Buffered
    }

    fn buffer(&mut self, part: &[u8]) {
        if let Some(expected) = &mut self.expected {
            if expected.continues_with(part) {
                self.has_data = true;
                return;
            }
            self.stop_expecting();
        }
        // The gRPC prefix is at the start of the body, so only the first part can be sized.
        if !std::mem::replace(&mut self.has_data, true) {
            let announced = grpc::message_len(part).unwrap_or_default();
            self.received.reserve(announced.saturating_add(PREFIX_LEN).min(MAX_RESERVE).max(part.len()));
        }
        self.received.extend_from_slice(part);
    }

    /// Expects this message; without effect once a part of the body has arrived.
    pub(crate) fn expect_message(&mut self, message: Bytes) {
        if !self.has_data {
            self.expected = Some(Expected { message, arrived: 0 });
        }
    }

    /// Buffers what has arrived of the expected message, and expects none any more.
    pub(crate) fn stop_expecting(&mut self) {
        let Some(Expected { message, arrived }) = self.expected.take() else { return };
        let Some(arrived) = arrived.checked_sub(PREFIX_LEN) else { return };
        self.received.reserve((message.len() + PREFIX_LEN).min(MAX_RESERVE).max(arrived + PREFIX_LEN));
        self.received.extend_from_slice(&grpc::message_prefix(message.len()));
        self.received.extend_from_slice(&message[..arrived]);
    }

    /// Tells whether a reader waits for the rest of a message of which a part has arrived.
    pub(crate) fn is_within_message(&self) -> bool {
        let is_collected = self.ended.is_none() && self.limit.is_some();
        is_collected && self.announced().is_some_and(|announced| self.body_len() < announced)
    }

    /// Returns how many bytes of the body have arrived and were not read.
    fn body_len(&self) -> usize {
        self.expected.as_ref().map_or(0, |expected| expected.arrived) + self.received.len()
    }

    /// Returns the length that the message at the start announces, its prefix included.
    fn announced(&self) -> Option<usize> {
        let len = match &self.expected {
            Some(expected) if expected.arrived > 0 => Some(expected.message.len()),
            _ => grpc::message_len(&self.received),
        };
        len.map(|len| len.saturating_add(PREFIX_LEN))
    }

    /// Returns the smallest length that the whole body can have.
    fn least_len(&self) -> usize {
        self.announced().unwrap_or_default().max(self.body_len())
    }

    /// Returns capacity to the peer if it is worth a frame; tells whether it was.
    pub(crate) fn release_capacity(&mut self, id: StreamId, out: &mut BytesMut) -> bool {
        let is_worth_it = self.ended.is_none() && self.unreleased >= WINDOW_UPDATE_THRESHOLD;
        if is_worth_it {
            self.recv_window += i64::from(self.unreleased);
            frame::encode_window_update(out, id, std::mem::take(&mut self.unreleased));
        }
        is_worth_it
    }

    pub(crate) fn poll_head(&mut self, cx: &Context<'_>) -> Poll<Result<Box<HeaderList>, Error>> {
        match (self.head.take(), &self.ended) {
            (Some(head), _) => Poll::Ready(Ok(head)),
            (None, Some(Err(error))) => Poll::Ready(Err(error.clone())),
            (None, Some(Ok(()))) => Poll::Ready(Err(Error::protocol("the response has no header list"))),
            (None, None) => self.wait(cx),
        }
    }

    /// Returns how many received bytes nobody has read.
    pub(crate) fn received_len(&self) -> usize {
        self.received.len()
    }

    /// Returns the received bytes.
    pub(crate) fn take_received(&mut self) -> Bytes {
        std::mem::take(&mut self.received).freeze()
    }

    /// Tells whether what it sends next counts for flow control: an empty DATA frame does not (section 6.9).
    pub(crate) fn needs_window(&self) -> bool {
        self.pending_data.as_ref().is_some_and(|part| !part.is_empty())
    }

    /// Tells whether the peer, or the end of the connection, has ended it early.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(self.ended, Some(Err(_)))
    }

    /// Tells whether the peer has sent all that `content-length` announced.
    pub(crate) fn has_announced_length(&self) -> bool {
        self.content_left.is_none_or(|left| left == 0)
    }

    /// Polls for the received part of the body; `None` at its end.
    pub(crate) fn poll_data(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        self.stop_expecting();
        if !self.received.is_empty() {
            let part = self.take_received();
            self.unreleased += u32::try_from(part.len()).unwrap_or(WINDOW);
            return Poll::Ready(Some(Ok(part)));
        }
        match &self.ended {
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(error)) => Poll::Ready(Some(Err(error.clone()))),
            None => self.wait(cx),
        }
    }

    /// Polls for the whole body; `None` if it is the expected message.
    pub(crate) fn poll_collect(
        &mut self,
        limit: usize,
        cx: &Context<'_>,
    ) -> Poll<Result<Option<Bytes>, Error>> {
        let (received, least) = (self.body_len(), self.least_len());
        match &self.ended {
            Some(Err(error)) => Poll::Ready(Err(error.clone())),
            _ if least > limit => Poll::Ready(Err(Error::TooLarge(least))),
            Some(Ok(())) => {
                if self.expected.take_if(|expected| expected.is_complete()).is_some() {
                    return Poll::Ready(Ok(None));
                }
                self.stop_expecting();
                Poll::Ready(Ok(Some(self.take_received())))
            }
            None => {
                if self.limit.replace(limit).is_none() {
                    self.unreleased += u32::try_from(received).unwrap_or(WINDOW);
                }
                self.wait(cx)
            }
        }
    }

    pub(crate) fn poll_trailers(&mut self, cx: &Context<'_>) -> Poll<Result<Option<HeaderMap>, Error>> {
        match &self.ended {
            Some(Ok(())) => Poll::Ready(Ok(self.trailers.take())),
            Some(Err(error)) => Poll::Ready(Err(error.clone())),
            None => self.wait(cx),
        }
    }

    pub(crate) fn wake(&mut self) {
        self.waker.take().into_iter().for_each(Waker::wake);
    }

    /// Has this task woken when something changes.
    pub(crate) fn wait<T>(&mut self, cx: &Context<'_>) -> Poll<T> {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Expected {
    /// Takes the next part of the body if it is the next part of the message. The prefix must arrive whole.
    fn continues_with(&mut self, part: &[u8]) -> bool {
        let rest = match self.arrived {
            0 => part.strip_prefix(&grpc::message_prefix(self.message.len())),
            _ => Some(part),
        };
        let next = &self.message[self.arrived.saturating_sub(PREFIX_LEN)..];
        let continues = rest.is_some_and(|rest| next.starts_with(rest));
        if continues {
            self.arrived += part.len();
        }
        continues
    }

    fn is_complete(&self) -> bool {
        self.arrived == self.message.len() + PREFIX_LEN
    }
}

impl RecvData {
    /// Returns the stream error, if it is one.
    pub(crate) fn violation(&self) -> Option<(Reason, Error)> {
        let (reason, what) = match self {
            Self::Buffered | Self::TooLarge(_) => return None,
            // Section 6.9.1.
            Self::BeyondWindow => (Reason::FLOW_CONTROL_ERROR, "DATA exceeds the window of its stream"),
            // Section 8.1.1.
            Self::BeyondContentLength => (Reason::PROTOCOL_ERROR, "the body is longer than content-length"),
        };
        Some((reason, Error::violation(reason, what)))
    }
}
