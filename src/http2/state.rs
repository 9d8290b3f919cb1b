//! What the handles of calls and the task of the connection share: the streams, the windows, the bytes to send.
//!
//! Everything here is done under one lock that is never held across an await, and by one thread in most cases.

use std::collections::{HashMap, VecDeque};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, StatusCode};

use super::Fault;
use super::frame::{self, Head};
use super::hpack::Block;
use super::stream::{Kept, Stream, WORTH_GIVING};

/// What may wait to be sent before bodies wait too.
const HIGH: usize = 512 << 10;
/// One connection.
#[derive(Debug)]
pub(super) struct State {
    /// Frames that wait to be written.
    pub(super) out: BytesMut,
    /// Wakes the task of the connection.
    task: Option<Waker>,
    /// Why there are no more new streams.
    pub(super) closing: Option<Fault>,
    /// Who wants to know that.
    retired: Option<Waker>,
    /// Whether nobody can start a stream any more.
    pub(super) unused: bool,
    peer: Peer,
    streams: HashMap<u32, Stream, foldhash::fast::FixedState>,
    /// How many streams the peer has not ended.
    open: usize,
    next: u32,
    /// Who waits for a place for a stream.
    waiting: Vec<Waker>,
    /// Streams with a body that is not sent.
    unsent: VecDeque<u32>,
    send_window: i64,
    /// What came and was not given back to the peer.
    owed: u32,
    /// The stream that data came for last.
    last: u32,
}

/// A stream is in the map from its beginning until its handle is dropped.
const HELD: &str = "a stream lasts as long as its handle";

/// What the peer said that it takes.
#[derive(Debug)]
struct Peer {
    max_streams: usize,
    initial_window: i64,
    max_frame: usize,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            out: BytesMut::new(),
            task: None,
            closing: None,
            retired: None,
            unused: false,
            peer: Peer { max_streams: usize::MAX, initial_window: 65_535, max_frame: frame::LEAST_MAX },
            streams: HashMap::default(),
            open: 0,
            next: 1,
            waiting: Vec::new(),
            unsent: VecDeque::new(),
            send_window: 65_535,
            owed: 0,
            last: 0,
        }
    }

    /// Begins a stream once the peer has a place for it: writes `block` and what can be sent of `body`.
    pub(super) fn poll_open(
        &mut self,
        cx: &Context<'_>,
        body: &Bytes,
        block: impl FnOnce(&mut BytesMut),
    ) -> Poll<Result<u32, Fault>> {
        if let Some(fault) = &self.closing {
            return Poll::Ready(Err(fault.clone()));
        }
        if self.open >= self.peer.max_streams {
            self.waiting.push(cx.waker().clone());
            return Poll::Pending;
        }
        let id = self.next;
        self.next += 2;
        if self.next > i32::MAX.cast_unsigned() {
            self.close(&Fault::Closed("the connection has used all its stream numbers".into()));
        }
        self.open += 1;
        self.put_block(id, block);
        self.streams.insert(id, Stream::new(body.clone(), self.peer.initial_window));
        self.unsent.push_back(id);
        self.send_bodies();
        self.wake_task();
        Poll::Ready(Ok(id))
    }

    /// Writes a header block, in as many frames as it takes.
    fn put_block(&mut self, stream: u32, write: impl FnOnce(&mut BytesMut)) {
        let start = self.out.len();
        let head = Head { len: 0, kind: frame::HEADERS, flags: frame::END_HEADERS, stream };
        head.put(&mut self.out);
        write(&mut self.out);
        let len = self.out.len() - start - frame::HEAD;
        if len <= self.peer.max_frame {
            return Head { len, ..head }.write(&mut self.out[start..]);
        }
        let frames = self.out.split_off(start);
        let block = &frames[frame::HEAD..];
        for (number, part) in block.chunks(self.peer.max_frame).enumerate() {
            let is_last = (number + 1) * self.peer.max_frame >= block.len();
            let kind = if number == 0 { frame::HEADERS } else { frame::CONTINUATION };
            let flags = if is_last { frame::END_HEADERS } else { 0 };
            Head { len: part.len(), kind, flags, stream }.put(&mut self.out);
            self.out.extend_from_slice(part);
        }
    }

    /// Sends of the bodies what the windows allow, while there is room.
    pub(super) fn send_bodies(&mut self) {
        for _ in 0..self.unsent.len() {
            let Some(id) = self.unsent.pop_front() else { return };
            let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.ended.is_none()) else {
                continue;
            };
            loop {
                let window = usize::try_from(self.send_window.min(stream.send_window)).unwrap_or(0);
                let len = stream.unsent.len().min(self.peer.max_frame).min(window);
                if self.out.len() >= HIGH || (len == 0 && !stream.unsent.is_empty()) {
                    self.unsent.push_back(id);
                    break;
                }
                let is_last = len == stream.unsent.len();
                let flags = if is_last { frame::END_STREAM } else { 0 };
                Head { len, kind: frame::DATA, flags, stream: id }.put(&mut self.out);
                self.out.extend_from_slice(&stream.unsent[..len]);
                stream.unsent.advance(len);
                let sent = i64::try_from(len).unwrap_or(i64::MAX);
                self.send_window -= sent;
                stream.send_window -= sent;
                if is_last {
                    break;
                }
            }
        }
    }

    /// Tells whether so much waits to be written that nothing more is to be read before it is.
    pub(super) fn is_full(&self) -> bool {
        self.out.len() >= 2 * HIGH
    }

    /// Tells whether there is nothing to do any more, and never will be.
    pub(super) fn is_over(&self) -> bool {
        self.open == 0 && (self.unused || self.closing.is_some())
    }

    /// Tells whether a stream of this number was begun, at whatever time.
    pub(super) fn was_begun(&self, id: u32) -> bool {
        id % 2 == 1 && id < self.next
    }

    /// Tells whether the last data was a part of a message whose rest somebody waits for.
    pub(super) fn is_within_message(&self) -> bool {
        self.streams.get(&self.last).is_some_and(Stream::is_within_message)
    }

    /// Takes a header block of a response.
    pub(super) fn take_block(&mut self, id: u32, block: Block, ends: bool) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.ended.is_none()) else { return };
        let Block { status, headers, malformed } = block;
        match status {
            _ if malformed => return self.spoil(id, "a field of its header is none"),
            Some(status) if status.is_informational() && !ends => return,
            Some(status) if !stream.begun => {
                stream.begun = true;
                stream.head = Some((status, headers));
            }
            None if stream.begun && ends => stream.trailers = Some(headers),
            _ => return self.spoil(id, "header and trailers are out of order"),
        }
        if ends {
            self.end(id, Ok(()));
        } else {
            stream.wake();
        }
    }

    /// Takes a part of a response's body. `len` is what it counts, padding included.
    pub(super) fn take_data(&mut self, id: u32, part: &[u8], len: u32, ends: bool) {
        self.last = id;
        self.owed += len;
        if self.owed >= WORTH_GIVING {
            frame::put_number(&mut self.out, frame::WINDOW_UPDATE, 0, std::mem::take(&mut self.owed));
        }
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.ended.is_none()) else { return };
        if !stream.begun {
            return self.spoil(id, "data comes before its header");
        }
        match stream.keep(part, len) {
            Kept::TooLarge(received) => self.stop(id, Fault::TooLarge(received)),
            Kept::BeyondWindow => {
                frame::put_number(&mut self.out, frame::RST_STREAM, id, frame::FLOW_CONTROL_ERROR);
                self.end(id, Err(Fault::Malformed("it sent more than it was allowed")));
            }
            Kept::Well if ends => self.end(id, Ok(())),
            Kept::Well => {
                stream.give_back(id, &mut self.out);
            }
        }
    }

    /// Ends a response that is none.
    fn spoil(&mut self, id: u32, why: &'static str) {
        self.stop(id, Fault::Malformed(why));
    }

    /// Tells the peer that nobody wants the rest, and whoever waits for it why.
    fn stop(&mut self, id: u32, fault: Fault) {
        frame::put_number(&mut self.out, frame::RST_STREAM, id, frame::CANCEL);
        self.end(id, Err(fault));
    }

    /// Notes how a response ended.
    pub(super) fn end(&mut self, id: u32, how: Result<(), Fault>) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.ended.is_none()) else { return };
        if how.is_ok() && !stream.unsent.is_empty() {
            frame::put_number(&mut self.out, frame::RST_STREAM, id, frame::NO_ERROR);
        }
        stream.ended = Some(how);
        stream.wake();
        self.open -= 1;
        self.make_room();
    }

    fn make_room(&mut self) {
        if self.open < self.peer.max_streams {
            // All of them: one may be gone, and the place with it.
            self.waiting.drain(..).for_each(Waker::wake);
        }
    }

    /// Ends every stream that `which` names.
    pub(super) fn end_all(&mut self, fault: &Fault, which: impl Fn(u32) -> bool) {
        let ids: Vec<u32> = self.streams.keys().copied().filter(|&id| which(id)).collect();
        for id in ids {
            self.end(id, Err(fault.clone()));
        }
    }

    /// Refuses new streams, if they were not refused before.
    pub(super) fn close(&mut self, fault: &Fault) {
        self.closing.get_or_insert_with(|| fault.clone());
        self.waiting.drain(..).chain(self.retired.take()).for_each(Waker::wake);
    }

    /// Polls for the end of new streams.
    pub(super) fn poll_retired(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.closing.is_some() {
            return Poll::Ready(());
        }
        self.retired = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Takes the peer's settings; `false` if they are wrong.
    pub(super) fn take_settings(&mut self, payload: &[u8]) -> bool {
        for setting in payload.chunks_exact(6) {
            let (name, value) = setting.split_at(2);
            let value = frame::number(value).unwrap_or_default();
            match u16::from_be_bytes([name[0], name[1]]) {
                frame::MAX_CONCURRENT_STREAMS => {
                    self.peer.max_streams = usize::try_from(value).unwrap_or(usize::MAX);
                    self.waiting.drain(..).for_each(Waker::wake);
                }
                frame::INITIAL_WINDOW_SIZE if value > i32::MAX.cast_unsigned() => return false,
                frame::INITIAL_WINDOW_SIZE => {
                    let change = i64::from(value) - self.peer.initial_window;
                    self.peer.initial_window = i64::from(value);
                    self.streams.values_mut().for_each(|stream| stream.send_window += change);
                }
                frame::MAX_FRAME_SIZE if !(1 << 14..1 << 24).contains(&value) => return false,
                frame::MAX_FRAME_SIZE => self.peer.max_frame = value as usize,
                _ => {}
            }
        }
        Head { len: 0, kind: frame::SETTINGS, flags: frame::ACK, stream: 0 }.put(&mut self.out);
        payload.len().is_multiple_of(6)
    }

    /// Takes room for more of our bodies; `false` if it is more than there can be.
    pub(super) fn take_window(&mut self, id: u32, more: u32) -> bool {
        let window = match self.streams.get_mut(&id) {
            _ if id == 0 => &mut self.send_window,
            Some(stream) => &mut stream.send_window,
            None => return true,
        };
        *window += i64::from(more);
        *window <= i64::from(i32::MAX) && more > 0
    }

    /// Polls for the header of the response.
    pub(super) fn poll_head(
        &mut self,
        id: u32,
        cx: &Context<'_>,
    ) -> Poll<Result<(StatusCode, HeaderMap), Fault>> {
        self.stream(id).poll_head(cx)
    }

    /// Polls for what has come of the body; `None` at its end.
    pub(super) fn poll_data(&mut self, id: u32, cx: &Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        let stream = self.streams.get_mut(&id).expect(HELD);
        let polled = stream.poll_data(cx);
        if stream.give_back(id, &mut self.out) {
            self.wake_task();
        }
        polled
    }

    /// Polls for the whole body, of `limit` bytes at the most; its bytes are copied no more.
    pub(super) fn poll_whole(
        &mut self,
        id: u32,
        limit: usize,
        cx: &Context<'_>,
    ) -> Poll<Result<Bytes, Fault>> {
        self.stream(id).poll_whole(limit, cx)
    }

    /// Polls for the end of the response, and its trailers.
    pub(super) fn poll_trailers(
        &mut self,
        id: u32,
        cx: &Context<'_>,
    ) -> Poll<Result<Option<HeaderMap>, Fault>> {
        self.stream(id).poll_trailers(cx)
    }

    fn stream(&mut self, id: u32) -> &mut Stream {
        self.streams.get_mut(&id).expect(HELD)
    }

    /// Forgets a stream; the peer hears of it if it was not at its end.
    pub(super) fn drop_stream(&mut self, id: u32) {
        if self.stream(id).ended.is_none() {
            self.stop(id, Fault::Closed("nobody waits for it any more".into()));
            self.wake_task();
        }
        self.streams.remove(&id);
        // An idle connection keeps no room for its busiest hour.
        if self.streams.is_empty() && self.streams.capacity() > 1 << 10 {
            self.streams.shrink_to(1 << 6);
        }
    }

    /// Takes note of what wakes the task of the connection.
    pub(super) fn note_task(&mut self, cx: &Context<'_>) {
        if self.task.as_ref().is_none_or(|task| !task.will_wake(cx.waker())) {
            self.task = Some(cx.waker().clone());
        }
    }

    /// Has the connection look at what there is to send.
    pub(super) fn wake_task(&self) {
        if let Some(task) = &self.task {
            task.wake_by_ref();
        }
    }
}
