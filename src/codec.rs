//! gRPC framing over HTTP/2 bodies: reads and writes messages, and sends a reply to the client.
//!
//! A gRPC message on the wire is one flag byte, four bytes of length and the encoded message. Messages stay
//! framed, so a forwarded message is sent with the bytes that were received. Memory grows with the bytes
//! received, never with the length in a prefix. Nothing here knows a method or a backend. Source: "gRPC over
//! HTTP2", length-prefixed messages.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use grpc_http2::grpc::{MAX_RESERVE, message_len};
pub use grpc_http2::grpc::{PREFIX_LEN as PREFIX, message_prefix as prefix};
use http::{HeaderMap, HeaderName};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Code, Status};

use crate::error::Error;
pub use frames::{Deframer, End, Frames};

mod frames;

/// Header names, parsed once.
static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The largest request in bytes, as in containerd (`runtime/v2` and CRI both use 16 MiB).
pub const MAX_REQUEST: usize = 16 << 20;

/// One gRPC message, with its prefix or without it, as it is at hand; or none, which has no bytes at all.
#[derive(Debug, Clone)]
pub struct Message {
    bytes: Bytes,
    is_framed: bool,
}

impl Default for Message {
    /// No message: not even a prefix is sent.
    fn default() -> Self {
        Self { bytes: Bytes::new(), is_framed: true }
    }
}

impl Message {
    /// Frames an encoded message.
    pub fn new(encoded: &[u8]) -> Self {
        let mut framed = BytesMut::with_capacity(PREFIX + encoded.len());
        framed.put_slice(&prefix(encoded.len()));
        framed.put_slice(encoded);
        Self { bytes: framed.freeze(), is_framed: true }
    }

    /// Takes an encoded message, sharing its bytes.
    pub fn from_encoded(bytes: Bytes) -> Self {
        Self { bytes, is_framed: false }
    }

    /// Parses a body of exactly one message; `None` if it is empty.
    ///
    /// # Errors
    /// [`Error::Framing`] for a compressed message, which crimux never accepts, and for more or less than one
    /// message.
    pub fn from_body(framed: Bytes) -> Result<Option<Self>, Error> {
        if framed.first().is_some_and(|&flag| flag != 0) {
            return Err(Error::Framing("it is compressed, which was not asked for"));
        }
        match message_len(&framed).map(|len| len + PREFIX) {
            None if framed.is_empty() => Ok(None),
            Some(len) if len == framed.len() => Ok(Some(Self { bytes: framed, is_framed: true })),
            Some(len) if len < framed.len() => Err(Error::Framing("more than one message")),
            _ => Err(Error::Framing("the message ends early")),
        }
    }

    /// Returns the message with its prefix. It is copied unless it arrived with one.
    pub fn framed(&self) -> Bytes {
        if self.is_framed { self.bytes.clone() } else { Self::new(&self.bytes).bytes }
    }

    /// Returns the message with its prefix, without a reference count.
    pub fn into_framed(self) -> Bytes {
        if self.is_framed { self.bytes } else { Self::new(&self.bytes).bytes }
    }

    /// Returns the encoded message.
    pub fn encoded(&self) -> &[u8] {
        let start = if self.is_framed { PREFIX } else { 0 };
        self.bytes.get(start..).unwrap_or_default()
    }

    /// Returns the encoded message, sharing its bytes.
    pub fn encoded_bytes(&self) -> Bytes {
        if self.is_framed { self.bytes.slice(PREFIX.min(self.bytes.len())..) } else { self.bytes.clone() }
    }
}

/// Gathers the chunks of one message.
#[derive(Debug, Default)]
pub struct Assembler {
    first: Bytes,
    joined: BytesMut,
}

impl Assembler {
    /// Adds a chunk. A message that comes in one chunk is never copied.
    ///
    /// # Errors
    /// [`Error::TooLarge`] once the message claims to be, or is, larger than `limit`; [`Error::Compressed`].
    pub fn push(&mut self, chunk: Bytes, limit: usize) -> Result<(), Error> {
        if self.first.is_empty() && self.joined.is_empty() {
            self.first = chunk;
        } else {
            if self.joined.is_empty() {
                let expected = message_len(&self.first).unwrap_or_default().saturating_add(PREFIX);
                self.joined.reserve(expected.min(MAX_RESERVE).max(self.first.len() + chunk.len()));
                self.joined.put_slice(&std::mem::take(&mut self.first));
            }
            self.joined.put_slice(&chunk);
        }
        let head = if self.joined.is_empty() { &self.first[..] } else { &self.joined[..] };
        if head.first().is_some_and(|&flag| flag != 0) {
            return Err(Error::Compressed);
        }
        match message_len(head) {
            Some(len) if len > limit => Err(Error::TooLarge(len)),
            Some(len) if head.len() > len + PREFIX => Err(Error::Framing("more than one message")),
            _ => Ok(()),
        }
    }

    /// Returns the message if nothing is missing; `None` if nothing came at all.
    ///
    /// # Errors
    /// [`Error::Framing`] for a message that ended early.
    pub fn finish(self) -> Result<Option<Message>, Error> {
        Message::from_body(if self.joined.is_empty() { self.first } else { self.joined.freeze() })
    }
}

/// Collects the one message of a unary or server-streaming request.
///
/// # Errors
/// What [`Assembler`] refuses, or [`Error::Framing`] when the client stops half-way.
pub async fn collect_request(body: impl Body<Data = Bytes>) -> Result<Message, Error> {
    let mut body = std::pin::pin!(body);
    let mut assembler = Assembler::default();
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|_| Error::Framing("the request was cut off"))?;
        if let Ok(chunk) = frame.into_data() {
            assembler.push(chunk, MAX_REQUEST)?;
        }
    }
    assembler.finish()?.ok_or(Error::Framing("no message"))
}

/// Returns the code that trailers, or the headers of a trailers-only reply, carry.
pub fn status_code(trailers: &HeaderMap) -> Option<Code> {
    trailers.get(&GRPC_STATUS).map(|value| Code::from_bytes(value.as_bytes()))
}

/// Returns the caller's timeout, from `grpc-timeout`.
pub fn caller_timeout(headers: &HeaderMap) -> Option<Duration> {
    parse_timeout(headers.get(&GRPC_TIMEOUT)?.to_str().ok()?)
}

/// Parses a `grpc-timeout`: at most eight digits and a unit.
fn parse_timeout(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Returns the trailers of an OK call.
pub fn ok_trailers() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(GRPC_STATUS.clone(), http::HeaderValue::from_static("0"));
    trailers
}

/// Returns the trailers that end a stream with `error`.
pub fn error_trailers(error: Error) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(3);
    if Status::from(error).add_header(&mut trailers).is_err() {
        trailers.insert(GRPC_STATUS.clone(), http::HeaderValue::from_static("13"));
    }
    trailers
}

/// Returns the headers of a reply that crimux authors.
pub fn reply_headers() -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(2);
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    headers
}

/// A body of chunks and trailers that are complete; they are sent without a copy.
#[derive(Debug)]
pub struct BufferedBody {
    chunks: std::vec::IntoIter<Bytes>,
    trailers: Option<HeaderMap>,
    /// Given back when the reply was sent.
    _permit: Option<OwnedSemaphorePermit>,
}

impl BufferedBody {
    /// Returns a body of these chunks, as framed, and these trailers.
    pub fn new(chunks: Vec<Bytes>, trailers: HeaderMap) -> Self {
        Self { chunks: chunks.into_iter(), trailers: Some(trailers), _permit: None }
    }

    /// Keeps a permit until the reply is sent or given up.
    #[must_use]
    pub fn holding(self, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self { _permit: permit, ..self }
    }
}

impl Body for BufferedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = match self.chunks.find(|chunk| !chunk.is_empty()) {
            Some(chunk) => Some(Frame::data(chunk)),
            None => self.trailers.take().map(Frame::trailers),
        };
        Poll::Ready(frame.map(Ok))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.chunks.as_slice().iter().map(|chunk| chunk.len() as u64).sum())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn timeouts_are_read_in_every_unit_and_nothing_else() {
        assert_eq!(parse_timeout("120S"), Some(Duration::from_secs(120)));
        assert_eq!(parse_timeout("99999999u"), Some(Duration::from_micros(99_999_999)));
        for wrong in ["", "S", "1", "-1S", "123456789S", "1.5S", "1é"] {
            assert_eq!(parse_timeout(wrong), None, "{wrong:?}");
        }
    }

    /// Pushes these chunks with a limit of 100 bytes.
    fn assembled(chunks: &[&[u8]]) -> Result<Option<Message>, Error> {
        let mut assembler = Assembler::default();
        for chunk in chunks {
            assembler.push(Bytes::copy_from_slice(chunk), 100)?;
        }
        assembler.finish()
    }

    proptest! {
        #[test]
        fn a_message_is_the_same_however_it_was_cut(
            encoded in proptest::collection::vec(any::<u8>(), 0..100),
            cuts in proptest::collection::vec(0usize..105, 0..8),
        ) {
            let framed = Message::new(&encoded).framed();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(framed.len())).collect();
            cuts.push(framed.len());
            cuts.sort_unstable();
            let mut start = 0;
            let chunks = cuts.iter().map(|&end| &framed[std::mem::replace(&mut start, end)..end]);
            let message = assembled(&chunks.collect::<Vec<_>>()).unwrap().unwrap();
            prop_assert_eq!(message.framed(), &framed);
            prop_assert_eq!(message.encoded(), &encoded[..]);
            prop_assert_eq!(message.encoded_bytes(), encoded);
        }

        #[test]
        fn no_bytes_make_it_panic(chunks in proptest::collection::vec(any::<Vec<u8>>(), 0..4)) {
            let chunks: Vec<_> = chunks.iter().map(Vec::as_slice).collect();
            if let Ok(Some(message)) = assembled(&chunks) {
                prop_assert_eq!(message.framed(), chunks.concat());
            }
        }
    }

    #[test]
    fn a_message_without_its_prefix_is_shared_and_framed_when_that_is_asked_for() {
        let encoded = Bytes::from_static(b"message");
        let message = Message::from_encoded(encoded.clone());
        assert_eq!(message.encoded_bytes().as_ptr(), encoded.as_ptr());
        assert_eq!(message.encoded(), b"message");
        assert_eq!(message.framed(), Message::new(b"message").framed());
        assert_eq!(message.into_framed(), b"\0\0\0\0\x07message"[..]);
        assert_eq!(Message::from_encoded(Bytes::new()).framed(), Message::new(b"").framed());
    }

    #[test]
    fn no_message_has_no_bytes() {
        let none = Message::default();
        assert!(none.framed().is_empty() && none.encoded().is_empty() && none.encoded_bytes().is_empty());
        assert!(none.into_framed().is_empty());
    }

    #[test]
    fn a_message_of_one_chunk_is_not_copied() {
        let chunk = Message::new(b"message").framed();
        let mut assembler = Assembler::default();
        assembler.push(chunk.clone(), 100).unwrap();
        let message = assembler.finish().unwrap().unwrap();
        assert_eq!(message.framed().as_ptr(), chunk.as_ptr());
    }

    #[test]
    fn a_claim_beyond_the_limit_is_refused_before_the_bytes_come() {
        assert!(matches!(assembled(&[&[0, 0, 0, 0, 101]]), Err(Error::TooLarge(101))));
        assert!(matches!(assembled(&[&[0, 0xff], &[0xff, 0xff, 0xff]]), Err(Error::TooLarge(0xffff_ffff))));
        let full = Message::new(&[7; 100]).framed();
        assert_eq!(assembled(&[&full]).unwrap().unwrap().encoded(), [7; 100]);
    }

    #[test]
    fn what_is_no_single_message_is_refused() {
        assert!(matches!(assembled(&[&[1]]), Err(Error::Compressed)));
        assert!(matches!(assembled(&[&[0, 0, 0, 0, 1, 9, 9]]), Err(Error::Framing(_))), "too much");
        assert!(matches!(assembled(&[&[0, 0, 0, 0, 2, 9]]), Err(Error::Framing(_))), "too little");
        assert!(matches!(assembled(&[&[0, 0, 0]]), Err(Error::Framing(_))), "half a prefix");
        assert!(assembled(&[]).unwrap().is_none());
        assert!(assembled(&[b"", b""]).unwrap().is_none());
        assert_eq!(assembled(&[&[0, 0, 0, 0, 0]]).unwrap().unwrap().encoded(), b"");
    }

    #[tokio::test]
    async fn a_whole_reply_is_its_chunks_and_then_its_trailers() {
        let chunk = Bytes::from_static(b"chunk");
        let mut whole = BufferedBody::new(vec![Bytes::new(), chunk.clone(), chunk.clone()], ok_trailers());
        let mut frames = Vec::new();
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut whole).poll_frame(cx)).await {
            frames.push(frame.unwrap());
        }
        let trailers = frames.pop().unwrap().into_trailers().unwrap();
        assert_eq!(status_code(&trailers), Some(Code::Ok));
        let chunks: Vec<_> = frames.into_iter().map(|frame| frame.into_data().unwrap()).collect();
        assert_eq!(chunks, [chunk.clone(), chunk]);
    }

    #[test]
    fn error_trailers_carry_code_and_text() {
        let trailers = error_trailers(Error::EmptyId("sandbox"));
        let status = Status::from_header_map(&trailers).unwrap();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "crimux: sandbox ID is empty"));
    }
}
