//! What the frames of the peer change: bodies, windows, settings, and frames that come too late.

use std::task::Waker;

use super::{Side, State};
use crate::frame::{self, MAX_WINDOW, Setting, StreamId};
use crate::stream::{RecvData, WINDOW_UPDATE_THRESHOLD};
use crate::{Error, GoAway, Reason};

impl State {
    /// Receives a part of a body. `len` is what counts for flow control, padding included.
    ///
    /// # Errors
    /// If the peer exceeds the window of the connection.
    pub(crate) fn recv_data(
        &mut self,
        id: StreamId,
        part: &[u8],
        len: usize,
        end_stream: bool,
    ) -> Result<(), Error> {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.last_data = id;
        self.recv_connection_data(len)?;
        let Some(stream) = self.streams.get_mut(id) else {
            self.recv_on_closed(id);
            return Ok(());
        };
        if stream.ended.is_some() {
            // The rest of a body that is too long is dropped.
            if stream.too_large.is_none() && !stream.is_broken() {
                self.recv_after_end(id);
            }
            return Ok(());
        }
        if !stream.begun {
            self.reset_malformed(id, "DATA comes before HEADERS");
            return Ok(());
        }
        if self.side == Side::Server && !self.hold_request(id, part.len()) {
            return Ok(());
        }
        let Some(stream) = self.streams.get_mut(id) else { return Ok(()) };
        let before = stream.received_len();
        let received = stream.recv_data(part, len);
        self.buffered += stream.received_len() - before;
        if let Some((reason, error)) = received.violation() {
            self.reset_stream(id, reason, error);
        } else if let RecvData::TooLarge(len) = received {
            match self.side {
                Side::Server => {
                    stream.too_large = Some(len);
                    self.close_recv(id, Ok(()));
                }
                Side::Client => self.reset_stream(id, Reason::CANCEL, Error::TooLarge(len)),
            }
        } else if end_stream {
            self.recv_end_stream(id);
        } else {
            stream.release_capacity(id, &mut self.out.tail);
        }
        if self.buffered > self.max_buffered {
            self.reset_largest();
        }
        Ok(())
    }

    /// Fails the call that holds the most received bytes.
    fn reset_largest(&mut self) {
        let open = self.streams.iter().filter(|(_, stream)| !stream.is_broken());
        let Some((id, len)) =
            open.map(|(id, stream)| (id, stream.received_len())).max_by_key(|(_, len)| *len)
        else {
            return;
        };
        if self.streams.get(id).is_some_and(|stream| stream.ended.is_none()) {
            self.reset_stream(id, Reason::CANCEL, Error::TooLarge(len));
        }
        self.take_received(id);
        self.stream(id).ended = Some(Err(Error::TooLarge(len)));
    }

    /// Counts received data in the window of the connection, and returns the capacity (section 6.9).
    fn recv_connection_data(&mut self, len: u32) -> Result<(), Error> {
        self.recv_window -= i64::from(len);
        if self.recv_window < 0 {
            let what = "DATA exceeds the window of the connection";
            return Err(Error::violation(Reason::FLOW_CONTROL_ERROR, what));
        }
        self.unreleased += len;
        if self.unreleased >= WINDOW_UPDATE_THRESHOLD {
            self.recv_window += i64::from(self.unreleased);
            let increment = std::mem::take(&mut self.unreleased);
            frame::encode_window_update(&mut self.out.tail, StreamId::CONNECTION, increment);
        }
        Ok(())
    }

    /// Receives the end of the peer's side of a stream.
    pub(crate) fn recv_end_stream(&mut self, id: StreamId) {
        if self.streams.get(id).is_some_and(|stream| !stream.has_announced_length()) {
            // Section 8.1.1.
            return self.reset_malformed(id, "the body is shorter than content-length");
        }
        self.close_recv(id, Ok(()));
    }

    /// Answers a frame on a stream that is closed (section 5.1): a peer whose stream we reset may not know of
    /// it.
    pub(crate) fn recv_on_closed(&mut self, id: StreamId) {
        if !self.is_recently_reset(id) {
            frame::encode_rst_stream(&mut self.out.tail, id, Reason::STREAM_CLOSED);
        }
    }

    /// Tells whether the peer may not know yet that we closed a stream: by a reset, or by a graceful
    /// shutdown.
    pub(crate) fn is_recently_reset(&self, id: StreamId) -> bool {
        self.server.last_stream().is_some_and(|last| id > last) || self.recent_resets.contains(&id)
    }

    /// Answers a frame after the `END_STREAM` of its sender, on a stream whose other side is open (section
    /// 5.1).
    pub(crate) fn recv_after_end(&mut self, id: StreamId) {
        match self.side {
            Side::Client => frame::encode_rst_stream(&mut self.out.tail, id, Reason::STREAM_CLOSED),
            Side::Server => {
                let error = Error::violation(Reason::STREAM_CLOSED, "a frame follows END_STREAM");
                self.reset_stream(id, Reason::STREAM_CLOSED, error);
            }
        }
    }

    /// Receives GOAWAY (section 6.8): streams after `last` were not processed.
    pub(crate) fn recv_goaway(&mut self, last: StreamId, goaway: GoAway) {
        if self.side == Side::Server {
            // It closes the connection once it has its responses.
            self.server.goaway = Some(goaway);
            return;
        }
        let error = Error::GoAway(goaway);
        self.close_to_new(&error);
        self.close_all(&error, |id| id > last);
    }

    /// Receives the settings in `payload` (section 6.5.2), and acknowledges them.
    ///
    /// # Errors
    /// If a value is out of its range.
    pub(crate) fn recv_settings(&mut self, payload: &[u8]) -> Result<(), Error> {
        for setting in payload.chunks_exact(6) {
            let (name, value) = setting.split_at(2);
            let value = frame::decode_u32(value).unwrap_or_default();
            let size = usize::try_from(value).unwrap_or(usize::MAX);
            match Setting::from_wire(u16::from_be_bytes([name[0], name[1]])) {
                // A server must not send 1.
                Setting::EnablePush if value > u32::from(self.side == Side::Server) => {
                    return Err(Error::protocol("SETTINGS_ENABLE_PUSH is out of range"));
                }
                Setting::MaxConcurrentStreams => {
                    self.peer.max_streams = size;
                    self.pending_open.drain(..).for_each(Waker::wake);
                }
                Setting::InitialWindowSize => self.set_initial_window(i64::from(value))?,
                Setting::MaxFrameSize if !(1 << 14..1 << 24).contains(&value) => {
                    return Err(Error::protocol("SETTINGS_MAX_FRAME_SIZE is out of range"));
                }
                Setting::MaxFrameSize => self.peer.max_frame_size = size,
                Setting::MaxHeaderListSize => self.peer.max_header_list = size,
                // Our encoder has no table that SETTINGS_HEADER_TABLE_SIZE could limit.
                Setting::HeaderTableSize | Setting::EnablePush | Setting::Unknown => {}
            }
        }
        frame::encode_settings_ack(&mut self.out.tail);
        Ok(())
    }

    /// Changes the initial window, and with it the window of every stream (section 6.9.2), in constant time.
    fn set_initial_window(&mut self, initial: i64) -> Result<(), Error> {
        let overflow =
            Error::violation(Reason::FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE exceeds a window");
        if initial > MAX_WINDOW {
            return Err(overflow);
        }
        if initial + self.max_send_window > MAX_WINDOW {
            // The bound may be out of date. To raise it again a peer must read what the window allowed.
            self.max_send_window =
                self.streams.iter().map(|(_, stream)| stream.send_window).max().unwrap_or(0).max(0);
            if initial + self.max_send_window > MAX_WINDOW {
                return Err(overflow);
            }
        }
        self.window_raised |= initial > self.peer.initial_window;
        self.peer.initial_window = initial;
        Ok(())
    }

    /// Receives `WINDOW_UPDATE` (section 6.9).
    ///
    /// # Errors
    /// If it is wrong for the connection; if it is for a stream, that is reset.
    pub(crate) fn recv_window_update(&mut self, id: StreamId, increment: u32) -> Result<(), Error> {
        let zero = Error::protocol("WINDOW_UPDATE has an increment of 0");
        let overflow =
            Error::violation(Reason::FLOW_CONTROL_ERROR, "WINDOW_UPDATE exceeds the largest window");
        if id == StreamId::CONNECTION {
            self.send_window += i64::from(increment);
            return match increment {
                0 => Err(zero),
                _ if self.send_window > MAX_WINDOW => Err(overflow),
                _ => Ok(()),
            };
        }
        let Some(stream) = self.streams.get_mut(id).filter(|stream| !stream.is_broken()) else {
            return Ok(());
        };
        stream.send_window += i64::from(increment);
        self.max_send_window = self.max_send_window.max(stream.send_window);
        if increment == 0 {
            self.reset_stream(id, Reason::PROTOCOL_ERROR, zero);
        } else if self.peer.initial_window + stream.send_window > MAX_WINDOW {
            self.reset_stream(id, Reason::FLOW_CONTROL_ERROR, overflow);
        } else {
            self.queue_send(id);
        }
        Ok(())
    }
}
