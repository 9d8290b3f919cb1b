//! What the handles of calls and the task of the connection share: the streams, the windows, the bytes to send.
//!
//! Everything here is done under one lock that is never held across an await, and by one thread in most cases.

use std::collections::{HashMap, VecDeque};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::Fault;
use super::frame::{self, Head};
use super::output::Output;
use super::stream::{Kept, Stream, Tail, WORTH_GIVING};

/// Which end of the connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// We begin the streams.
    Client,
    /// The peer does.
    Server,
}

/// One connection.
#[derive(Debug)]
pub(super) struct State {
    pub(super) side: Side,
    /// Frames that wait to be written.
    pub(super) out: Output,
    /// Wakes the task of the connection.
    task: Option<Waker>,
    /// Why there are no more new streams.
    pub(super) closing: Option<Fault>,
    /// Who wants to know that.
    retired: Option<Waker>,
    /// Whether nobody can start a stream any more.
    pub(super) unused: bool,
    pub(super) peer: Peer,
    pub(super) streams: HashMap<u32, Stream, foldhash::fast::FixedState>,
    /// As a client: how many streams the peer has not ended.
    pub(super) open: usize,
    /// The least number that no stream has had.
    pub(super) next: u32,
    /// Who waits for a place for a stream.
    pub(super) waiting: Vec<Waker>,
    /// As a server: streams whose request is there.
    pub(super) arrived: VecDeque<u32>,
    /// As a server: how long a request may be.
    pub(super) limit: usize,
    /// As a server: the last stream that is taken, once the peer was told so.
    pub(super) last_stream: Option<u32>,
    /// Whether a window has grown since bodies were last sent.
    pub(super) may_send: bool,
    /// Streams with something that is not sent.
    pub(super) unsent: VecDeque<u32>,
    pub(super) send_window: i64,
    /// What came and was not given back to the peer.
    owed: u32,
    /// The stream that data came for last.
    last: u32,
    /// Whether a header block was sent.
    pub(super) has_sent: bool,
}

/// A stream that has a handle is in the map until that is dropped.
const HELD: &str = "a stream lasts as long as its handle";

/// What the peer said that it takes.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) max_streams: usize,
    pub(super) initial_window: i64,
    pub(super) max_frame: usize,
}

impl State {
    pub(super) fn new(side: Side) -> Self {
        Self {
            side,
            out: Output::default(),
            task: None,
            closing: None,
            retired: None,
            unused: false,
            peer: Peer { max_streams: usize::MAX, initial_window: 65_535, max_frame: frame::LEAST_MAX },
            streams: HashMap::default(),
            open: 0,
            next: 1,
            waiting: Vec::new(),
            arrived: VecDeque::new(),
            limit: usize::MAX,
            last_stream: None,
            may_send: false,
            unsent: VecDeque::new(),
            send_window: 65_535,
            owed: 0,
            last: 0,
            has_sent: false,
        }
    }

    /// Tells whether there is nothing to do any more, and never will be.
    pub(super) fn is_over(&self) -> bool {
        match self.side {
            Side::Client => self.open == 0 && (self.unused || self.closing.is_some()),
            Side::Server => self.streams.is_empty() && self.last_stream.is_some(),
        }
    }

    /// Tells whether the peer may go.
    pub(super) fn may_close(&self) -> bool {
        match self.side {
            Side::Client => self.is_over(),
            Side::Server => self.streams.is_empty(),
        }
    }

    /// Tells whether there can be a frame of this kind for this stream: it was begun, or is begun with it.
    pub(super) fn may_have(&self, id: u32, kind: u8) -> bool {
        let is_begun_by_it = self.side == Side::Server && kind == frame::HEADERS;
        id % 2 == 1 && (id < self.next || is_begun_by_it)
    }

    /// Tells whether the last data was a part of a message whose rest somebody waits for.
    pub(super) fn is_within_message(&self) -> bool {
        self.streams.get(&self.last).is_some_and(Stream::is_within_message)
    }

    /// Takes a part of a body. `len` is what it counts, padding included.
    pub(super) fn take_data(&mut self, id: u32, part: &[u8], len: u32, ends: bool) {
        self.last = id;
        self.owed += len;
        if self.owed >= WORTH_GIVING {
            frame::put_number(&mut self.out.tail, frame::WINDOW_UPDATE, 0, std::mem::take(&mut self.owed));
        }
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.ended.is_none()) else { return };
        if !stream.begun {
            return self.spoil(id, "data comes before its header");
        }
        match stream.keep(part, len) {
            Kept::TooLarge(len) if self.side == Side::Server => {
                stream.cut = Some(len);
                self.end(id, Ok(()));
            }
            Kept::TooLarge(len) => self.stop(id, Fault::TooLarge(len)),
            Kept::BeyondWindow => {
                frame::put_number(&mut self.out.tail, frame::RST_STREAM, id, frame::FLOW_CONTROL_ERROR);
                self.end(id, Err(Fault::Malformed("it sent more than it was allowed")));
            }
            Kept::Well if ends => self.end(id, Ok(())),
            Kept::Well => {
                stream.give_back(id, &mut self.out.tail);
            }
        }
    }

    /// Ends an exchange that is none.
    pub(super) fn spoil(&mut self, id: u32, why: &'static str) {
        self.stop(id, Fault::Malformed(why));
    }

    /// Tells the peer that there will be no more, and whoever waits for it why.
    pub(super) fn stop(&mut self, id: u32, fault: Fault) {
        let code = match self.side {
            Side::Client => frame::CANCEL,
            Side::Server => frame::PROTOCOL_ERROR,
        };
        frame::put_number(&mut self.out.tail, frame::RST_STREAM, id, code);
        self.end(id, Err(fault));
    }

    /// Notes how the peer's side of a stream ended.
    pub(super) fn end(&mut self, id: u32, how: Result<(), Fault>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        match self.side {
            Side::Client if stream.ended.is_some() => return,
            Side::Client => {
                if how.is_ok() && stream.unsent.take().is_some() {
                    frame::put_number(&mut self.out.tail, frame::RST_STREAM, id, frame::NO_ERROR);
                }
                self.open -= 1;
            }
            Side::Server if stream.is_broken() => return,
            Side::Server if how.is_ok() => self.arrived.push_back(id),
            // Nobody has seen it, and nobody will.
            Side::Server if stream.head.is_some() => return self.remove(id),
            Side::Server => {}
        }
        if how.is_err() {
            (stream.unsent, stream.tail) = (None, Tail::Sent);
        }
        stream.ended = Some(how);
        stream.wake();
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

    /// Returns the last stream that the peer has begun; 0 if none.
    pub(super) fn last_taken(&self) -> u32 {
        match self.side {
            Side::Client => 0,
            Side::Server => self.last_stream.unwrap_or(self.next.saturating_sub(2)),
        }
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
        let initial_window = self.peer.initial_window;
        for setting in payload.chunks_exact(6) {
            let (name, value) = setting.split_at(2);
            let value = frame::number(value).unwrap_or_default();
            match u16::from_be_bytes([name[0], name[1]]) {
                frame::MAX_CONCURRENT_STREAMS => {
                    self.peer.max_streams = usize::try_from(value).unwrap_or(usize::MAX);
                    self.waiting.drain(..).for_each(Waker::wake);
                }
                frame::INITIAL_WINDOW_SIZE if value > i32::MAX.cast_unsigned() => return false,
                frame::INITIAL_WINDOW_SIZE => self.peer.initial_window = i64::from(value),
                frame::MAX_FRAME_SIZE if !(1 << 14..1 << 24).contains(&value) => return false,
                frame::MAX_FRAME_SIZE => self.peer.max_frame = value as usize,
                _ => {}
            }
        }
        // Once, however often one frame says it.
        let change = self.peer.initial_window - initial_window;
        if change != 0 {
            self.streams.values_mut().for_each(|stream| stream.send_window += change);
        }
        self.may_send = true;
        Head { len: 0, kind: frame::SETTINGS, flags: frame::ACK, stream: 0 }.put(&mut self.out.tail);
        payload.len().is_multiple_of(6)
    }

    /// Takes room for more of our bodies; `false` if it is more than there can be.
    pub(super) fn take_window(&mut self, id: u32, more: u32) -> bool {
        let window = match self.streams.get_mut(&id) {
            _ if id == 0 => &mut self.send_window,
            Some(stream) => &mut stream.send_window,
            None => return true,
        };
        self.may_send = true;
        *window += i64::from(more);
        *window <= i64::from(i32::MAX) && more > 0
    }

    /// Polls for what has come of the body; `None` at its end.
    pub(super) fn poll_data(&mut self, id: u32, cx: &Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        let stream = self.streams.get_mut(&id).expect(HELD);
        let polled = stream.poll_data(cx);
        if stream.give_back(id, &mut self.out.tail) {
            self.wake_task();
        }
        polled
    }

    /// Returns a stream that somebody has a handle of.
    pub(super) fn stream(&mut self, id: u32) -> &mut Stream {
        self.streams.get_mut(&id).expect(HELD)
    }

    /// Forgets a stream.
    pub(super) fn remove(&mut self, id: u32) {
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
