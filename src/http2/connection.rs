//! The task of a connection: reads frames and hands them to their streams, writes what waits.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::{poll_read_buf, poll_write_buf};

use super::frame::{self, Head};
use super::hpack::Decoder;
use super::server::FAREWELL;
use super::state::Side;
use super::{Fault, PREFACE, Shared};

/// What is read at once.
const READ: usize = 256 << 10;
/// Room for the part of a frame that is left over, so that the buffer need not grow for it.
const LEFT_OVER: usize = 4 << 10;
/// How often it is read before other tasks have their turn. A server goes on when it has given out the calls that
/// came, until the runtime's own budget ends its turn.
const READS: usize = 32;
/// How many turns are waited without sleeping for the rest of a message: the peer is writing it at this moment.
const TURNS: u32 = 16;
/// The most that one header block may have.
const MAX_BLOCK: usize = 1 << 18;

/// A connection: a future that must be polled for anything to happen, and ends with it.
///
/// It ends well when no stream can begin any more and none is open.
#[derive(Debug)]
#[must_use = "nothing is sent or received unless it is polled"]
pub struct Connection<S> {
    io: S,
    shared: Arc<Shared>,
    input: BytesMut,
    decoder: Decoder,
    /// A DATA frame that has not come to its end, and what is left of it.
    data: Option<Head>,
    /// A header block that has not come to its end.
    block: Option<(Head, BytesMut)>,
    /// What the peer has yet to say before any frame.
    preface: &'static [u8],
    /// Whether the peer has introduced itself with its settings.
    greeted: bool,
    /// How many turns the rest of a message has been waited for.
    turns: u32,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Connection<S> {
    type Output = Result<(), Fault>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.shared.lock().note_task(cx);
        let how = match self.poll_frames(cx) {
            Poll::Ready(ended) => ended,
            Poll::Pending => match self.poll_write_out(cx) {
                Poll::Ready(Err(error)) => Err(error.into()),
                Poll::Ready(Ok(())) if self.shared.lock().is_over() => Ok(()),
                Poll::Ready(Ok(())) | Poll::Pending => return Poll::Pending,
            },
        };
        if let Err(Fault::Malformed(_)) = how {
            let mut state = self.shared.lock();
            let last = state.last_taken();
            state.put_goaway(last, frame::PROTOCOL_ERROR);
            drop(state);
            // It hears of it if it listens.
            let _ = self.poll_write_out(cx);
        }
        self.end(how.as_ref().err());
        Poll::Ready(how)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Reads and takes frames until there are none; ready with how the connection ends.
    fn poll_frames(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        for _ in 0..READS {
            // From a peer that does not take what we have for it nothing more is taken.
            if self.shared.lock().out.is_full() {
                ready!(self.poll_write_out(cx))?;
            }
            if self.input.capacity() == 0 {
                self.input.reserve(READ + LEFT_OVER);
            }
            self.input.reserve(READ);
            let read = match poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input) {
                Poll::Ready(read) => read,
                Poll::Pending => return self.wait(cx),
            };
            self.turns = 0;
            match read {
                Ok(0) if self.shared.lock().may_close() => return Poll::Ready(Ok(())),
                Ok(0) => return Poll::Ready(Err(Fault::Closed("the peer closed the connection".into()))),
                Ok(_) => self.take_frames()?,
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Waits for more. To fall asleep and be woken takes longer than the peer takes for the next part of a message
    /// that it is writing, so some turns pass first, in which everybody else is served.
    fn wait<T>(&mut self, cx: &mut Context<'_>) -> Poll<T> {
        if self.turns < TURNS && self.shared.lock().is_within_message() {
            self.turns += 1;
            // Polled once, it has this task polled again after the others and after a look at the sockets.
            let turn = std::pin::pin!(tokio::task::yield_now()).poll(cx);
            debug_assert!(turn.is_pending(), "it has not yielded yet");
        }
        Poll::Pending
    }

    /// Takes all that has come, up to a frame that is not all there.
    fn take_frames(&mut self) -> Result<(), Fault> {
        let mut input = std::mem::take(&mut self.input);
        let mut at = self.take_preface(&input)?;
        let taken = loop {
            match self.take_frame(&input[at..]) {
                Ok(0) => break Ok(()),
                Ok(len) => at += len,
                Err(fault) => break Err(fault),
            }
        };
        if at == input.len() {
            input.clear();
        } else {
            input.advance(at);
        }
        self.input = input;
        let mut state = self.shared.lock();
        if state.may_send {
            state.send_all();
        }
        taken
    }

    /// Takes what is there of what the peer says first, and returns its length.
    fn take_preface(&mut self, input: &[u8]) -> Result<usize, Fault> {
        let len = self.preface.len().min(input.len());
        let (now, later) = self.preface.split_at(len);
        if now != &input[..len] {
            return Err(STRANGER);
        }
        self.preface = later;
        Ok(len)
    }

    /// Takes one frame, or what is there of a DATA frame, and returns its length; 0 if more must come first.
    fn take_frame(&mut self, input: &[u8]) -> Result<usize, Fault> {
        if let Some(head) = self.data {
            return Ok(self.take_data(head, input));
        }
        let Some(head) = Head::read(input) else { return Ok(0) };
        self.check(head)?;
        let payload = &input[frame::HEAD..];
        if head.kind == frame::DATA && !head.has(frame::PADDED) {
            self.data = Some(head);
            return Ok(frame::HEAD + self.take_data(head, payload));
        }
        let Some(payload) = payload.get(..head.len) else { return Ok(0) };
        self.take_whole(head, payload)?;
        Ok(frame::HEAD + head.len)
    }

    /// Refuses what cannot be read on from.
    fn check(&mut self, head: Head) -> Result<(), Fault> {
        let wrong = |why| Err(Fault::Malformed(why));
        if !self.greeted && (head.kind != frame::SETTINGS || head.has(frame::ACK)) {
            return Err(STRANGER);
        }
        self.greeted = true;
        if head.len > frame::MAX_FRAME as usize {
            return wrong("it sent a frame larger than it may be");
        }
        if let Some((open, _)) = &self.block
            && (head.kind != frame::CONTINUATION || head.stream != open.stream)
        {
            return wrong("it interrupted a header block");
        }
        let of_stream = matches!(head.kind, frame::DATA | frame::HEADERS | frame::RST_STREAM);
        if of_stream && !self.shared.lock().may_have(head.stream, head.kind) {
            return wrong("it sent a frame for a stream that was never begun");
        }
        Ok(())
    }

    /// Takes what is there of a DATA frame without padding; returns how much that is.
    fn take_data(&mut self, head: Head, input: &[u8]) -> usize {
        let part = &input[..head.len.min(input.len())];
        let left = head.len - part.len();
        let ends = left == 0 && head.has(frame::END_STREAM);
        if !part.is_empty() || left == 0 {
            let len = u32::try_from(part.len()).unwrap_or(u32::MAX);
            self.shared.lock().take_data(head.stream, part, len, ends);
        }
        self.data = (left > 0).then_some(Head { len: left, ..head });
        part.len()
    }

    /// Takes a frame that has come whole.
    fn take_whole(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        let mut state = self.shared.lock();
        let number = frame::number(payload);
        match (head.kind, number) {
            (frame::DATA, _) => {
                let part = frame::unpadded(head, payload).ok_or(PADDING)?;
                let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
                state.take_data(head.stream, part, len, head.has(frame::END_STREAM));
            }
            (frame::HEADERS, _) => {
                let part = frame::unpadded(head, payload).ok_or(PADDING)?;
                drop(state);
                if head.has(frame::END_HEADERS) {
                    return self.take_block(head, part);
                }
                self.block = Some((head, BytesMut::from(part)));
            }
            (frame::CONTINUATION, _) => {
                drop(state);
                let (first, mut block) = self.block.take().ok_or(CONTINUED)?;
                block.extend_from_slice(payload);
                if block.len() > MAX_BLOCK {
                    return Err(Fault::Malformed("its header is too long"));
                }
                if head.has(frame::END_HEADERS) {
                    return self.take_block(first, &block);
                }
                self.block = Some((first, block));
            }
            (frame::RST_STREAM, Some(code)) => state.end(head.stream, Err(Fault::Reset(code))),
            (frame::SETTINGS, _) if head.has(frame::ACK) => {}
            (frame::SETTINGS, _) if !state.take_settings(payload) => {
                return Err(Fault::Malformed("its settings are wrong"));
            }
            (frame::PUSH_PROMISE, _) => return Err(Fault::Malformed("it pushes what nobody asked for")),
            (frame::PING, Some(_)) if head.len == 8 && !head.has(frame::ACK) => {
                Head { flags: frame::ACK, ..head }.put(&mut state.out.tail);
                state.out.tail.extend_from_slice(payload);
            }
            (frame::PING, _) if *payload == FAREWELL && state.side == Side::Server => state.take_farewell(),
            // A client that says goodbye closes the connection when it has its answers.
            (frame::GOAWAY, Some(_)) if state.side == Side::Server => {}
            (frame::GOAWAY, Some(last)) => {
                let code = payload.get(4..).and_then(frame::number).unwrap_or_default();
                let fault = Fault::GoAway(code);
                state.close(&fault);
                state.end_all(&fault, |stream| stream > last & i32::MAX.cast_unsigned());
            }
            (frame::WINDOW_UPDATE, Some(more))
                if !state.take_window(head.stream, more & i32::MAX.cast_unsigned()) =>
            {
                return Err(Fault::Malformed("its window is wrong"));
            }
            (frame::RST_STREAM | frame::GOAWAY | frame::WINDOW_UPDATE, None) => {
                return Err(Fault::Malformed("a frame of it is too short"));
            }
            // What is not known is passed over, as the protocol wants it.
            _ => {}
        }
        Ok(())
    }

    fn take_block(&mut self, head: Head, block: &[u8]) -> Result<(), Fault> {
        let block = self.decoder.decode(block).ok_or(Fault::Malformed("its header cannot be decoded"))?;
        let mut state = self.shared.lock();
        match state.side {
            Side::Client => state.take_response(head.stream, block, head.has(frame::END_STREAM)),
            Side::Server => state.take_request(head.stream, block, head.has(frame::END_STREAM)),
        }
        Ok(())
    }

    /// Writes what waits; ready when nothing does.
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        while !state.out.is_empty() {
            if ready!(poll_write_buf(Pin::new(&mut self.io), cx, &mut state.out))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            if state.out.is_empty() {
                state.out.clear();
            }
            if state.out.has_room() {
                state.send_all();
            }
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }
}

/// No HTTP/2 at all.
const STRANGER: Fault = Fault::Malformed("it does not speak HTTP/2");
/// Padding that is longer than its frame.
const PADDING: Fault = Fault::Malformed("its padding is wrong");
/// A continuation of nothing.
const CONTINUED: Fault = Fault::Malformed("it continues a header block that was not begun");

impl<S> Connection<S> {
    pub(super) fn new(io: S, shared: Arc<Shared>) -> Self {
        let preface = match shared.lock().side {
            Side::Client => &[],
            Side::Server => PREFACE,
        };
        let (input, decoder) = (BytesMut::new(), Decoder::new());
        Self { io, shared, input, decoder, data: None, block: None, preface, greeted: false, turns: 0 }
    }

    /// Tells everybody that there will be no more.
    fn end(&self, fault: Option<&Fault>) {
        let over = Fault::Closed("the connection was given up".into());
        let fault = fault.unwrap_or(&over);
        let mut state = self.shared.lock();
        state.close(fault);
        state.end_all(fault, |_| true);
    }
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        self.end(None);
    }
}
