//! One call on a connection: what is not sent of our side of it, what has come of the peer's, and who waits.

use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

use super::Fault;
use super::frame;
use super::hpack::Block;

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
    /// What is not sent of the part of our body that goes next.
    pub(super) unsent: Option<Bytes>,
    /// What comes after it.
    pub(super) tail: Tail,
    /// What the peer takes of our body.
    pub(super) send_window: i64,
    /// Whether the peer's header has come.
    pub(super) begun: bool,
    pub(super) head: Option<Block>,
    pub(super) trailers: Option<HeaderMap>,
    /// How the peer's side ended.
    pub(super) ended: Option<Result<(), Fault>>,
    /// How much there would have been at the least, where the body was cut off for its length.
    pub(super) cut: Option<usize>,
    /// What came and was not given back to the peer.
    owed: u32,
    /// Whether anything has come of the body.
    kept: bool,
    /// What came and was not taken.
    received: BytesMut,
    /// Set while the body is gathered whole: how long it may be.
    limit: Option<usize>,
    waker: Option<Waker>,
}

/// How our side of a stream ends.
#[derive(Debug, Default)]
pub(super) enum Tail {
    /// That is not known yet.
    #[default]
    Open,
    /// With the last of the body.
    Body,
    /// With these.
    Trailers(HeaderMap),
    /// It has.
    Sent,
}

/// What to do after a part of the body was kept.
pub(super) enum Kept {
    Well,
    /// It is, or says that it will be, longer than whoever gathers it takes.
    TooLarge(usize),
    /// The peer sent more than its window.
    BeyondWindow,
}

impl Stream {
    /// A call that we make, with this body.
    pub(super) fn asking(send_window: i64, body: Bytes) -> Self {
        Self { send_window, unsent: Some(body), tail: Tail::Body, ..Self::default() }
    }

    /// A call that we take: its body is gathered, up to this limit.
    pub(super) fn asked(send_window: i64, head: Block, limit: usize) -> Self {
        Self { send_window, head: Some(head), begun: true, limit: Some(limit), ..Self::default() }
    }

    /// Keeps a part of the body. `len` is what it counts, padding included.
    pub(super) fn keep(&mut self, part: &[u8], len: u32) -> Kept {
        // Only where the body begins is it known that a message does.
        if !std::mem::replace(&mut self.kept, true) {
            let claimed = part.get(1..PREFIX).and_then(frame::number).unwrap_or_default() as usize;
            self.received.reserve(claimed.saturating_add(PREFIX).min(FIRST_RESERVE).max(part.len()));
        }
        self.received.extend_from_slice(part);
        match self.limit {
            // Whoever gathers the whole is woken at its end.
            Some(limit) => {
                self.owed += len;
                let whole = self.least_len();
                if whole > limit {
                    return Kept::TooLarge(whole);
                }
            }
            None if self.received.len() > WINDOW as usize => return Kept::BeyondWindow,
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

    /// Returns how long the whole body is at the least: what came, or what it says that it will be.
    fn least_len(&self) -> usize {
        self.claimed().unwrap_or_default().max(self.received.len())
    }

    /// Lets the peer send as much again as was taken, if that is worth a frame. Tells whether it was.
    pub(super) fn give_back(&mut self, id: u32, out: &mut BytesMut) -> bool {
        let worth = self.ended.is_none() && self.owed >= WORTH_GIVING;
        if worth {
            frame::put_number(out, frame::WINDOW_UPDATE, id, std::mem::take(&mut self.owed));
        }
        worth
    }

    pub(super) fn poll_head(&mut self, cx: &Context<'_>) -> Poll<Result<Block, Fault>> {
        match (self.head.take(), &self.ended) {
            (Some(head), _) => Poll::Ready(Ok(head)),
            (None, Some(Err(fault))) => Poll::Ready(Err(fault.clone())),
            (None, Some(Ok(()))) => Poll::Ready(Err(Fault::Malformed("it ends without a header"))),
            (None, None) => self.wait(cx),
        }
    }

    /// Takes what has come of the body.
    pub(super) fn take_received(&mut self) -> Bytes {
        std::mem::take(&mut self.received).freeze()
    }

    /// Tells whether the peer, or the end of the connection, has ended it before its time.
    pub(super) fn is_broken(&self) -> bool {
        matches!(self.ended, Some(Err(_)))
    }

    pub(super) fn poll_data(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        if !self.received.is_empty() {
            let part = self.take_received();
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
        let (came, len) = (self.received.len(), self.least_len());
        match &self.ended {
            Some(Err(fault)) => Poll::Ready(Err(fault.clone())),
            _ if len > limit => Poll::Ready(Err(Fault::TooLarge(len))),
            Some(Ok(())) => Poll::Ready(Ok(self.take_received())),
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

    /// Has this task woken when something changes.
    pub(super) fn wait<T>(&mut self, cx: &Context<'_>) -> Poll<T> {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}
