//! What the handles of streams and the task of the connection share: streams, windows, output.
//!
//! All of it is behind one lock that is never held across an await.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::frame::{self, StreamId};
use crate::limits::Held;
use crate::output::Output;
use crate::server::ServerState;
use crate::stream::{EndStream, Stream};
use crate::streams::Streams;
use crate::{Error, Reason};

mod receive;

/// The initial size of every window (section 6.9.2).
pub(crate) const DEFAULT_WINDOW: u32 = 65_535;
/// The receive window of the connection; it is returned as data arrives, so that no stream stops another.
pub(crate) const CONNECTION_WINDOW: u32 = 1 << 30;
/// How many of the streams that we reset last are remembered: their peers may not know of it yet.
const MAX_RECENT_RESETS: usize = 256;

/// Which end of the connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// We open the streams.
    Client,
    /// The peer opens them.
    Server,
}

/// The shared state of one connection.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) side: Side,
    /// Encoded frames that are not written yet.
    pub(crate) out: Output,
    /// Wakes the task of the connection.
    task: Option<Waker>,
    /// Why no stream can be opened any more.
    pub(crate) closing: Option<Error>,
    /// Waits for that.
    closing_waiter: Option<Waker>,
    /// Client: whether every [`crate::client::SendRequest`] is dropped.
    pub(crate) unused: bool,
    pub(crate) peer: PeerSettings,
    pub(crate) streams: Streams,
    /// Client: how many streams the peer has not ended.
    pub(crate) open_streams: usize,
    /// The lowest identifier that is still idle.
    pub(crate) next_stream_id: StreamId,
    /// Client: tasks that wait until the peer allows another stream.
    pub(crate) pending_open: Vec<Waker>,
    /// Server: streams whose request is complete.
    pub(crate) pending_accept: VecDeque<StreamId>,
    /// What only a server keeps; unused by a client.
    pub(crate) server: ServerState,
    /// Streams that the connection window, or room in the output, keeps from sending.
    pub(crate) pending_send: VecDeque<StreamId>,
    /// Whether a larger initial window lets streams send that are in no queue.
    pub(crate) window_raised: bool,
    pub(crate) send_window: i64,
    /// An upper bound of every stream's `send_window`.
    pub(crate) max_send_window: i64,
    recv_window: i64,
    /// Received bytes not yet returned with a `WINDOW_UPDATE`.
    unreleased: u32,
    /// The stream of the last DATA frame.
    last_data: StreamId,
    /// Whether a header block was sent.
    pub(crate) headers_sent: bool,
    /// The streams that we reset last.
    recent_resets: VecDeque<StreamId>,
    /// How many received bytes nobody has read.
    buffered: usize,
    /// Their limit; a server has budgets instead.
    pub(crate) max_buffered: usize,
    /// The largest header list that we accept.
    pub(crate) max_header_list: usize,
}

/// A stream that has a handle is in the map until that is dropped.
pub(crate) const LIVE_HANDLE: &str = "a stream lasts as long as its handle";

/// The peer's settings (section 6.5.2).
#[derive(Debug)]
pub(crate) struct PeerSettings {
    pub(crate) max_streams: usize,
    pub(crate) initial_window: i64,
    pub(crate) max_frame_size: usize,
    pub(crate) max_header_list: usize,
}

impl State {
    pub(crate) fn new(side: Side) -> Self {
        Self {
            side,
            out: Output::default(),
            task: None,
            closing: None,
            closing_waiter: None,
            unused: false,
            peer: PeerSettings {
                max_streams: usize::MAX,
                initial_window: i64::from(DEFAULT_WINDOW),
                max_frame_size: frame::DEFAULT_MAX_FRAME_SIZE,
                max_header_list: usize::MAX,
            },
            streams: Streams::default(),
            open_streams: 0,
            next_stream_id: StreamId::FIRST,
            pending_open: Vec::new(),
            pending_accept: VecDeque::new(),
            server: ServerState::new(crate::server::ServerConfig::default()),
            pending_send: VecDeque::new(),
            window_raised: false,
            send_window: i64::from(DEFAULT_WINDOW),
            max_send_window: 0,
            recv_window: i64::from(CONNECTION_WINDOW),
            unreleased: 0,
            last_data: StreamId::CONNECTION,
            headers_sent: false,
            recent_resets: VecDeque::new(),
            buffered: 0,
            max_buffered: usize::MAX,
            max_header_list: usize::MAX,
        }
    }

    /// Returns the largest payload of a frame that we accept (section 4.2). Responses are large; of a request
    /// nothing is gained by it, and a frame that is not dispatched in parts is kept until it is complete.
    pub(crate) fn max_frame_size(&self) -> usize {
        match self.side {
            Side::Client => 1 << 18,
            Side::Server => frame::DEFAULT_MAX_FRAME_SIZE,
        }
    }

    /// Tells whether nothing is left to do and no stream can be opened.
    pub(crate) fn is_over(&self) -> bool {
        match self.side {
            Side::Client => self.open_streams == 0 && (self.unused || self.closing.is_some()),
            Side::Server => self.streams.is_empty() && self.server.last_stream().is_some(),
        }
    }

    /// Tells whether the peer may close the connection without an error.
    pub(crate) fn may_close(&self) -> bool {
        match self.side {
            Side::Client => self.is_over(),
            Side::Server => self.streams.is_empty(),
        }
    }

    /// Tells whether a stream was never opened (section 5.1). A server opens none, so its identifiers are all
    /// idle.
    pub(crate) fn is_idle(&self, id: StreamId) -> bool {
        !id.is_client_initiated() || id >= self.next_stream_id
    }

    /// Tells whether the last DATA frame was a part of a message whose rest a reader waits for.
    pub(crate) fn is_within_message(&self) -> bool {
        self.streams.get(self.last_data).is_some_and(Stream::is_within_message)
    }

    /// Takes the received bytes of a stream.
    pub(crate) fn take_received(&mut self, id: StreamId) -> Bytes {
        let received = self.stream(id).take_received();
        self.buffered -= received.len();
        received
    }

    /// Resets a stream whose request or response is malformed (section 8.1.1).
    pub(crate) fn reset_malformed(&mut self, id: StreamId, what: &'static str) {
        self.reset_stream(id, Reason::PROTOCOL_ERROR, Error::protocol(what));
    }

    /// Resets a stream, and fails it with `error` for its handle.
    pub(crate) fn reset_stream(&mut self, id: StreamId, reason: Reason, error: Error) {
        self.queue_rst_stream(id, reason);
        self.close_recv(id, Err(error));
    }

    /// Queues `RST_STREAM`, and remembers that frames of this stream may still arrive.
    pub(crate) fn queue_rst_stream(&mut self, id: StreamId, reason: Reason) {
        frame::encode_rst_stream(&mut self.out.tail, id, reason);
        if self.recent_resets.len() == MAX_RECENT_RESETS {
            self.recent_resets.pop_front();
        }
        self.recent_resets.push_back(id);
    }

    /// Records how the peer's side of a stream ended.
    pub(crate) fn close_recv(&mut self, id: StreamId, result: Result<(), Error>) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        match self.side {
            Side::Client if stream.ended.is_some() => return,
            Side::Client => {
                if result.is_ok() && stream.pending_data.take().is_some() {
                    // Section 8.1: a complete response makes the rest of the request unnecessary.
                    frame::encode_rst_stream(&mut self.out.tail, id, Reason::NO_ERROR);
                }
                self.open_streams -= 1;
            }
            Side::Server if stream.is_broken() => return,
            Side::Server if result.is_ok() => self.pending_accept.push_back(id),
            // It has no handle, and gets none.
            Side::Server if stream.head.is_some() => return self.remove(id),
            Side::Server => {}
        }
        if self.side == Side::Server && stream.ended.is_none() {
            self.server.incomplete -= 1;
        }
        if result.is_err() {
            (stream.pending_data, stream.ending) = (None, EndStream::Sent);
        }
        stream.ended = Some(result);
        stream.wake();
        self.wake_pending_open();
    }

    fn wake_pending_open(&mut self) {
        if self.open_streams < self.peer.max_streams {
            // Wakes all: a waiter that was dropped would swallow the wake-up.
            self.pending_open.drain(..).for_each(Waker::wake);
        }
    }

    /// Fails every stream for which `is_affected` holds.
    pub(crate) fn close_all(&mut self, error: &Error, is_affected: impl Fn(StreamId) -> bool) {
        let ids: Vec<StreamId> =
            self.streams.iter().map(|(id, _)| id).filter(|&id| is_affected(id)).collect();
        for id in ids {
            self.close_recv(id, Err(error.clone()));
        }
    }

    /// Refuses new streams; the first reason stays.
    pub(crate) fn close_to_new(&mut self, error: &Error) {
        self.closing.get_or_insert_with(|| error.clone());
        self.pending_open.drain(..).chain(self.closing_waiter.take()).for_each(Waker::wake);
    }

    /// Returns the last stream of the peer that is processed.
    pub(crate) fn last_accepted(&self) -> StreamId {
        match self.side {
            Side::Client => StreamId::CONNECTION,
            Side::Server => self.server.last_stream().unwrap_or(self.next_stream_id.previous()),
        }
    }

    /// Polls for the reason why no stream can be opened any more.
    pub(crate) fn poll_closed_to_new(&mut self, cx: &Context<'_>) -> Poll<Error> {
        if let Some(error) = &self.closing {
            return Poll::Ready(error.clone());
        }
        self.closing_waiter = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Returns what the connection holds.
    pub(crate) fn held(&self) -> Held {
        Held {
            streams: self.streams.len(),
            received: self.buffered,
            output: self.out.len(),
            queued: self.pending_send.len() + self.pending_accept.len(),
        }
    }

    /// Polls for the received part of a body; `None` at its end.
    pub(crate) fn poll_data(&mut self, id: StreamId, cx: &Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        let stream = self.streams.get_mut(id).expect(LIVE_HANDLE);
        let before = stream.received_len();
        let polled = stream.poll_data(cx);
        if let Poll::Ready(Some(Ok(_))) = &polled {
            self.buffered -= before;
        }
        if stream.release_capacity(id, &mut self.out.tail) {
            self.wake_task();
        }
        polled
    }

    /// Polls for a whole body; `None` if it is the expected message.
    pub(crate) fn poll_collect(
        &mut self,
        id: StreamId,
        limit: usize,
        cx: &Context<'_>,
    ) -> Poll<Result<Option<Bytes>, Error>> {
        let stream = self.stream(id);
        let before = stream.received_len();
        let polled = stream.poll_collect(limit, cx);
        if let Poll::Ready(Ok(_)) = &polled {
            self.buffered -= before;
        }
        polled
    }

    /// Buffers what has arrived of the expected message of a stream, and expects none any more.
    pub(crate) fn stop_expecting(&mut self, id: StreamId) {
        let stream = self.stream(id);
        let before = stream.received_len();
        stream.stop_expecting();
        let buffered = stream.received_len() - before;
        self.buffered += buffered;
    }

    /// Returns a stream that has a handle.
    pub(crate) fn stream(&mut self, id: StreamId) -> &mut Stream {
        self.streams.get_mut(id).expect(LIVE_HANDLE)
    }

    /// Drops a stream.
    pub(crate) fn remove(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.remove(id) {
            self.buffered -= stream.received_len();
            if self.side == Side::Server {
                self.server.release(&stream);
            }
        }
        // Streams that were reset leave their places in the queues behind.
        for queue in [&mut self.pending_send, &mut self.pending_accept] {
            if queue.len() > 2 * self.streams.len() + 64 {
                queue.retain(|id| self.streams.contains(*id));
            }
        }
        if self.streams.is_empty() {
            self.max_send_window = 0;
        }
    }

    /// Remembers what wakes the task of the connection.
    pub(crate) fn note_task(&mut self, cx: &Context<'_>) {
        if self.task.as_ref().is_none_or(|task| !task.will_wake(cx.waker())) {
            self.task = Some(cx.waker().clone());
        }
    }

    /// Has the task of the connection write the output.
    pub(crate) fn wake_task(&self) {
        if let Some(task) = &self.task {
            task.wake_by_ref();
        }
    }
}
