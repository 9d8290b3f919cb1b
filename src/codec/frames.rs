//! Streams of gRPC messages: a reader for those of a backend, a body for those to a client.
//!
//! A [`Deframer`] turns chunks of any size into whole messages. A [`Frames`] body sends the messages of its
//! channel; the channel is bounded, so a client that does not read stops the task that fills it
//! (backpressure). The body ends with the status set in its [`End`].

use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use grpc_http2::grpc::message_len;
use http_body::Frame;
use tokio::sync::mpsc;
use tonic::Code;

use super::{PREFIX, error_trailers, ok_trailers, status_code};
use crate::error::Error;

/// Splits a stream of bytes into messages.
#[derive(Debug, Default)]
pub struct Deframer {
    buffer: BytesMut,
}

impl Deframer {
    /// Appends a chunk. Memory grows with the bytes received, never with a length that a prefix only claims.
    pub fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// Returns the next message with its prefix; `None` until it is complete.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for a message longer than `limit` bytes; [`Error::Framing`] for a compressed
    /// one, which crimux never accepts.
    pub fn next(&mut self, limit: usize) -> Result<Option<Bytes>, Error> {
        if self.buffer.first().is_some_and(|&flag| flag != 0) {
            return Err(Error::Framing("it is compressed, which was not asked for"));
        }
        match message_len(&self.buffer) {
            Some(len) if len > limit => Err(Error::TooLarge(len)),
            Some(len) if self.buffer.len() >= len + PREFIX => {
                Ok(Some(self.buffer.split_to(len + PREFIX).freeze()))
            }
            _ => Ok(None),
        }
    }

    /// Tells whether the stream may end here: no part of a message is left.
    pub fn is_empty(&self) -> bool {
        !self.buffer.has_remaining()
    }
}

/// The error that a stream ends with; unset for OK. Set before the last sender is dropped.
pub type End = Arc<OnceLock<Error>>;

/// A stream of framed messages to a client.
#[derive(Debug)]
pub struct Frames {
    receiver: mpsc::Receiver<Bytes>,
    end: End,
    done: bool,
}

impl Frames {
    /// Returns the sender, the place for the final error, and the body. At most `buffer` messages wait for
    /// the client.
    pub fn channel(buffer: usize) -> (mpsc::Sender<Bytes>, End, Self) {
        let (sender, receiver) = mpsc::channel(buffer);
        let end = End::default();
        (sender, Arc::clone(&end), Self { receiver, end, done: false })
    }

    /// Polls for the next message, then the trailers, then `None`. The status comes with the trailers only.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Frame<Bytes>, Option<Code>)>> {
        if self.done {
            return Poll::Ready(None);
        }
        if let Some(message) = ready!(self.receiver.poll_recv(cx)) {
            return Poll::Ready(Some((Frame::data(message), None)));
        }
        self.done = true;
        let trailers = self.end.get().cloned().map_or_else(ok_trailers, error_trailers);
        let code = status_code(&trailers);
        Poll::Ready(Some((Frame::trailers(trailers), code)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Message;

    #[test]
    fn messages_come_apart_whatever_the_chunks() {
        let messages = [&b"one"[..], b"", b"three"].map(|encoded| Message::new(encoded).framed());
        let stream = messages.concat();
        for size in 1..=stream.len() {
            let mut deframer = Deframer::default();
            let mut seen = Vec::new();
            for chunk in stream.chunks(size) {
                deframer.push(chunk);
                while let Some(message) = deframer.next(16).expect("well framed") {
                    seen.push(message);
                }
            }
            assert_eq!(seen, messages, "in chunks of {size}");
            assert!(deframer.is_empty());
        }
    }

    #[test]
    fn a_claimed_length_reserves_nothing() {
        let mut deframer = Deframer::default();
        deframer.push(&super::super::prefix(200 << 20));
        assert!(matches!(deframer.next(256 << 20), Ok(None)));
        assert!(deframer.buffer.capacity() < 1024);
        assert!(matches!(deframer.next(16 << 20), Err(Error::TooLarge(_))));
        assert!(!deframer.is_empty());
    }

    #[tokio::test]
    async fn a_stream_ends_with_the_status_left_for_it() {
        let (sender, end, mut frames) = Frames::channel(4);
        sender.send(Bytes::from_static(b"a")).await.expect("room");
        end.set(Error::SlowClient(4)).expect("the first reason");
        drop(sender);
        let first = std::future::poll_fn(|cx| frames.poll(cx)).await.expect("the message").0;
        assert_eq!(first.into_data().expect("data"), "a");
        let (_, code) = std::future::poll_fn(|cx| frames.poll(cx)).await.expect("the trailers");
        assert_eq!(code, Some(Code::ResourceExhausted));
        assert!(std::future::poll_fn(|cx| frames.poll(cx)).await.is_none());
    }
}
