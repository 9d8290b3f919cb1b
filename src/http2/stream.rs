//! One call on a connection: what has come of its response, and who waits for more.

use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};

use super::Fault;
use super::frame;

/// What a peer may send on one stream before anybody takes it.
pub(super) const WINDOW: u32 = 16 << 20;
/// What is given back to the peer at once, at the least.
pub(super) const WORTH_GIVING: u32 = WINDOW / 4;
/// How much is reserved for a message at once, however long it claims to be.
const FIRST_RESERVE: usize = 1 << 20;
/// Flag and length before a gRPC message.
const PREFIX: usize = 5;

/// One exchange of a request and a response.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// What is not sent of the request's body.
    pub(super) unsent: Bytes,
    /// What the peer takes of it.
    pub(super) send_window: i64,
    /// Whether the response's header has come.
    pub(super) begun: bool,
    pub(super) head: Option<(StatusCode, HeaderMap)>,
    pub(super) trailers: Option<HeaderMap>,
    /// How the response ended.
    pub(super) ended: Option<Result<(), Fault>>,
    /// What came and was not given back to the peer.
    owed: u32,
    /// Whether anything has come of the body.
    kept: bool,
    /// What came and was not taken.
    received: BytesMut,
    /// Set while the response is gathered whole: how long it may be.
    limit: Option<usize>,
    waker: Option<Waker>,
}

/// What to do after a part of the body was kept.
pub(super) enum Kept {
    Well,
    /// It is longer than whoever gathers it takes.
    TooLarge(usize),
    /// The peer sent more than its window.
    BeyondWindow,
}

impl Stream {
    pub(super) fn new(unsent: Bytes, send_window: i64) -> Self {
        Self { unsent, send_window, ..Self::default() }
    }

    /// Keeps a part of the body. `len` is what it counts, padding included.
    pub(super) fn keep(&mut self, part: &[u8], len: u32) -> Kept {
        // Only where the body begins is it known that a message does.
        if !std::mem::replace(&mut self.kept, true) {
            let claimed = part.get(1..PREFIX).and_then(frame::number).unwrap_or_default() as usize;
            self.received.reserve(claimed.saturating_add(PREFIX).min(FIRST_RESERVE).max(part.len()));
        }
        self.received.extend_from_slice(part);
        let received = self.received.len();
        match self.limit {
            Some(limit) if received > limit => return Kept::TooLarge(received),
            Some(limit) => {
                self.owed += len;
                // Whoever gathers the whole is woken at its end, or as soon as it is known to be too long.
                if self.claimed().is_some_and(|claimed| claimed > limit) {
                    self.wake();
                }
            }
            None if received > WINDOW as usize => return Kept::BeyondWindow,
            None => {
                // Padding is never taken by anybody.
                self.owed += len - u32::try_from(part.len()).unwrap_or(len);
                self.wake();
            }
        }
        Kept::Well
    }

    /// Tells whether somebody waits for the rest of a message of which a part has come.
    pub(super) fn is_within_message(&self) -> bool {
        let is_gathered = self.ended.is_none() && self.limit.is_some();
        is_gathered && self.claimed().is_some_and(|claimed| self.received.len() < claimed)
    }

    /// Returns how long the message at the beginning says that it is, its prefix included.
    fn claimed(&self) -> Option<usize> {
        let len = frame::number(self.received.get(1..PREFIX)?)?;
        usize::try_from(len).ok().map(|len| len.saturating_add(PREFIX))
    }

    /// Lets the peer send as much again as was taken, if that is worth a frame. Tells whether it was.
    pub(super) fn give_back(&mut self, id: u32, out: &mut BytesMut) -> bool {
        let worth = self.ended.is_none() && self.owed >= WORTH_GIVING;
        if worth {
            frame::put_number(out, frame::WINDOW_UPDATE, id, std::mem::take(&mut self.owed));
        }
        worth
    }

    pub(super) fn poll_head(&mut self, cx: &Context<'_>) -> Poll<Result<(StatusCode, HeaderMap), Fault>> {
        match (self.head.take(), &self.ended) {
            (Some(head), _) => Poll::Ready(Ok(head)),
            (None, Some(Err(fault))) => Poll::Ready(Err(fault.clone())),
            (None, Some(Ok(()))) => Poll::Ready(Err(Fault::Malformed("it ends without a header"))),
            (None, None) => self.wait(cx),
        }
    }

    pub(super) fn poll_data(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        if !self.received.is_empty() {
            let part = std::mem::take(&mut self.received).freeze();
            self.owed += u32::try_from(part.len()).unwrap_or(WINDOW);
            return Poll::Ready(Some(Ok(part)));
        }
        match &self.ended {
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(fault)) => Poll::Ready(Some(Err(fault.clone()))),
            None => self.wait(cx),
        }
    }

    pub(super) fn poll_whole(&mut self, limit: usize, cx: &Context<'_>) -> Poll<Result<Bytes, Fault>> {
        let came = self.received.len();
        let len = self.claimed().unwrap_or_default().max(came);
        match &self.ended {
            Some(Err(fault)) => Poll::Ready(Err(fault.clone())),
            _ if len > limit => Poll::Ready(Err(Fault::TooLarge(len))),
            Some(Ok(())) => Poll::Ready(Ok(std::mem::take(&mut self.received).freeze())),
            None => {
                if self.limit.replace(limit).is_none() {
                    self.owed += u32::try_from(came).unwrap_or(WINDOW);
                }
                self.wait(cx)
            }
        }
    }

    pub(super) fn poll_trailers(&mut self, cx: &Context<'_>) -> Poll<Result<Option<HeaderMap>, Fault>> {
        match &self.ended {
            Some(Ok(())) => Poll::Ready(Ok(self.trailers.take())),
            Some(Err(fault)) => Poll::Ready(Err(fault.clone())),
            None => self.wait(cx),
        }
    }

    pub(super) fn wake(&mut self) {
        self.waker.take().into_iter().for_each(Waker::wake);
    }

    fn wait<T>(&mut self, cx: &Context<'_>) -> Poll<T> {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}
