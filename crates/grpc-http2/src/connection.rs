//! The task of a connection: reads frames and dispatches them to their streams, writes what is queued.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_write_buf;

use crate::limits::Held;
use crate::recv::Receiver;
use crate::{Error, Shared};

/// How many bytes are read at once.
const READ_SIZE: usize = 256 << 10;
/// An incomplete frame up to this length is copied in front of the next read, a longer one is appended to.
const SHORT_REST: usize = 4 << 10;
/// The most reads in one poll, after which other tasks run.
const READS_PER_POLL: usize = 8;
/// A read with more than one frame for so many bytes that it asked for ends the poll, and the next ones ask
/// for [`FLOODED_READ_SIZE`], until the frames of one are longer than this: a peer that sends many small
/// frames must not keep other tasks waiting.
const MIN_BYTES_PER_FRAME: usize = 512;
/// How many bytes are read at once after such a read.
const FLOODED_READ_SIZE: usize = 4 << 10;
/// How often to yield instead of sleeping while a message is half received: the peer is writing the rest at
/// this moment, and sleeping and waking costs more than the wait.
const SPIN_LIMIT: u32 = 16;

thread_local! {
    /// Where all connections of a thread read to: an idle connection needs no buffer.
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SHORT_REST + READ_SIZE].into());
}

/// A connection: a future that must be polled for anything to be sent or received.
///
/// It completes with `Ok` once no stream is open and none can be opened any more.
#[derive(Debug)]
#[must_use = "nothing is sent or received unless it is polled"]
pub struct Connection<S> {
    io: S,
    shared: Arc<Shared>,
    /// An incomplete frame.
    partial_frame: Vec<u8>,
    receiver: Receiver,
    /// How often the rest of a message has been waited for.
    spins: u32,
    /// How many bytes are read at once.
    read_size: usize,
    /// The last poll ended so that other tasks run, not because nothing more had arrived.
    yielded: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Connection<S> {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.shared.lock().note_task(cx);
        let ended = match self.poll_frames(cx) {
            Poll::Ready(ended) => ended,
            Poll::Pending => match self.poll_write_out(cx) {
                Poll::Ready(Err(error)) => Err(error.into()),
                Poll::Ready(Ok(())) if self.shared.lock().is_over() => Ok(()),
                Poll::Ready(Ok(())) | Poll::Pending => return Poll::Pending,
            },
        };
        if let Err(Error::Protocol { reason, what }) = ended {
            let mut state = self.shared.lock();
            let last = state.last_accepted();
            state.queue_goaway(last, reason, what.as_bytes());
            drop(state);
            // A peer that does not read it has closed the connection too.
            let _ = self.poll_write_out(cx);
        }
        self.close(ended.as_ref().err());
        Poll::Ready(ended)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Returns whether the last poll ended so that other tasks run. A caller that polls again in the same
    /// turn would read on, until the runtime's budget for the task is used up. Asked again, it returns false.
    pub(crate) fn take_yielded(&mut self) -> bool {
        std::mem::take(&mut self.yielded)
    }

    /// Returns what the connection reads and writes.
    pub(crate) fn io(&mut self) -> Pin<&mut S> {
        Pin::new(&mut self.io)
    }

    /// Reads and dispatches frames until no more have arrived; ready with how the connection ends.
    fn poll_frames(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        for _ in 0..READS_PER_POLL {
            // Backpressure: stop reading while the peer does not read our output.
            if self.shared.lock().out.is_full() {
                ready!(self.poll_write_out(cx))?;
            }
            let before = self.receiver.frames;
            let read = READ_BUFFER.with_borrow_mut(|buffer| self.poll_read_frames(buffer, cx));
            match read {
                Poll::Ready(Ok(0)) if self.shared.lock().may_close() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Err(Error::Closed("the peer closed the connection".into())));
                }
                Poll::Ready(Ok(len)) => {
                    self.spins = 0;
                    if self.is_flooded(len, self.receiver.frames - before) {
                        break;
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return self.wait(cx),
            }
        }
        self.yielded = true;
        Self::yield_now(cx);
        Poll::Pending
    }

    /// Returns whether a read had many small frames, and sets the size of the next read.
    fn is_flooded(&mut self, len: usize, frames: u64) -> bool {
        let small = frames.saturating_mul(MIN_BYTES_PER_FRAME as u64);
        if small > self.read_size as u64 {
            self.read_size = FLOODED_READ_SIZE;
            return true;
        }
        if small <= len as u64 {
            self.read_size = READ_SIZE;
        }
        false
    }

    /// Waits for more input: at first by yielding, if a message is half received.
    fn wait<T>(&mut self, cx: &mut Context<'_>) -> Poll<T> {
        if self.spins < SPIN_LIMIT && self.shared.lock().is_within_message() {
            self.spins += 1;
            Self::yield_now(cx);
        }
        Poll::Pending
    }

    /// Has this task polled again after the others and after a look at the sockets. A task that wakes itself
    /// instead is polled 61 times, by tokio's default, before the runtime looks at the sockets again.
    pub(crate) fn yield_now(cx: &mut Context<'_>) {
        let turn = std::pin::pin!(tokio::task::yield_now()).poll(cx);
        debug_assert!(turn.is_pending(), "it has not yielded yet");
    }

    /// Reads into `buffer`, and dispatches the frames there; ready with how many bytes were read.
    fn poll_read_frames(&mut self, buffer: &mut [u8], cx: &mut Context<'_>) -> Poll<Result<usize, Error>> {
        let kept = if self.partial_frame.len() <= SHORT_REST { self.partial_frame.len() } else { 0 };
        let mut read = ReadBuf::new(&mut buffer[kept..kept + self.read_size]);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
        let len = read.filled().len();
        if len == 0 {
            return Poll::Ready(Ok(0));
        }
        if kept == self.partial_frame.len() {
            buffer[..kept].copy_from_slice(&self.partial_frame);
            let input = &buffer[..kept + len];
            let dispatched = self.dispatch(input)?;
            self.partial_frame.clear();
            self.partial_frame.extend_from_slice(&input[dispatched..]);
        } else {
            self.partial_frame.extend_from_slice(&buffer[..len]);
            let mut input = std::mem::take(&mut self.partial_frame);
            let dispatched = self.dispatch(&input)?;
            input.drain(..dispatched);
            self.partial_frame = input;
        }
        if self.partial_frame.is_empty() && self.partial_frame.capacity() > SHORT_REST {
            self.partial_frame = Vec::new();
        }
        Poll::Ready(Ok(len))
    }

    /// Dispatches the frames in `input` up to an incomplete one; returns their length.
    fn dispatch(&mut self, input: &[u8]) -> Result<usize, Error> {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        let (len, received) = self.receiver.recv_all(&mut state, input);
        state.send_pending();
        received.map(|()| len)
    }

    /// Writes the output; ready once it is empty.
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
                state.send_pending();
            }
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }
}

impl<S> Connection<S> {
    pub(crate) fn new(io: S, shared: Arc<Shared>) -> Self {
        let receiver = Receiver::new(&shared.lock());
        Self {
            io,
            shared,
            partial_frame: Vec::new(),
            receiver,
            spins: 0,
            read_size: READ_SIZE,
            yielded: false,
        }
    }

    /// Returns how many frames arrived before the one of which a part has arrived, or whose header block is
    /// incomplete; `None` between frames. The connection preface counts as a part of the first.
    pub(crate) fn incomplete_frame(&self) -> Option<u64> {
        (!self.partial_frame.is_empty() || self.receiver.is_within_frame()).then_some(self.receiver.frames)
    }

    /// Returns what the connection holds.
    pub fn held(&self) -> Held {
        self.shared.lock().held()
    }

    /// Ends every stream and refuses new ones.
    fn close(&self, error: Option<&Error>) {
        let over = Error::Closed("the connection was given up".into());
        let error = error.unwrap_or(&over);
        let mut state = self.shared.lock();
        state.close_to_new(error);
        state.close_all(error, |_| true);
    }
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        self.close(None);
    }
}
