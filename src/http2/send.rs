//! What goes out: settings, header blocks, and bodies as far as windows and room allow.

use std::collections::VecDeque;

use bytes::{BufMut, BytesMut};

use super::frame::{self, Head};
use super::hpack;
use super::state::State;
use super::stream::{self, Tail};

/// The most that one DATA frame has, however much the peer takes: other streams are not to wait for long.
const MAX_DATA: usize = 1 << 18;
/// Room on the connection as a whole; it is given back as soon as anything came, so that no stream stops another.
const CONNECTION_WINDOW: u32 = 1 << 30;
/// What the connection has before it is given more.
const FIRST_WINDOW: u32 = 65_535;

impl State {
    /// Says what we take; `more` are settings that only one side has.
    pub(super) fn introduce(&mut self, more: &[(u16, u32)]) {
        let settings = [
            (frame::INITIAL_WINDOW_SIZE, stream::WINDOW),
            (frame::MAX_FRAME_SIZE, frame::MAX_FRAME),
            (frame::MAX_HEADER_LIST_SIZE, hpack::MAX_LIST),
        ];
        frame::put_settings(&mut self.out.tail, &[more, &settings].concat());
        let more = CONNECTION_WINDOW - FIRST_WINDOW;
        frame::put_number(&mut self.out.tail, frame::WINDOW_UPDATE, 0, more);
    }

    /// Writes a header block, in as many frames as it takes. With it our side ends, or not.
    pub(super) fn put_block(&mut self, stream: u32, ends: bool, write: impl FnOnce(&mut BytesMut)) {
        let out = &mut self.out.tail;
        let start = out.len();
        let end_stream = if ends { frame::END_STREAM } else { 0 };
        let head = Head { len: 0, kind: frame::HEADERS, flags: frame::END_HEADERS | end_stream, stream };
        head.put(out);
        if !std::mem::replace(&mut self.has_sent, true) {
            hpack::put_no_table(out);
        }
        write(out);
        let len = out.len() - start - frame::HEAD;
        if len <= self.peer.max_frame {
            return Head { len, ..head }.write(&mut out[start..]);
        }
        let frames = out.split_off(start);
        let block = &frames[frame::HEAD..];
        for (number, part) in block.chunks(self.peer.max_frame).enumerate() {
            let is_last = (number + 1) * self.peer.max_frame >= block.len();
            let (kind, first_flags) =
                if number == 0 { (frame::HEADERS, end_stream) } else { (frame::CONTINUATION, 0) };
            let flags = if is_last { frame::END_HEADERS } else { 0 } | first_flags;
            Head { len: part.len(), kind, flags, stream }.put(out);
            out.extend_from_slice(part);
        }
    }

    /// Sends what streams have to send, as far as the windows allow, while there is room.
    pub(super) fn send_all(&mut self) {
        self.may_send = false;
        // Those for which nothing was left are the first next time.
        let mut left_out = VecDeque::new();
        for _ in 0..self.unsent.len() {
            let Some(id) = self.unsent.pop_front() else { break };
            let before = self.out.len();
            self.send(id);
            match self.streams.get_mut(&id) {
                Some(stream) if stream.unsent.is_none() => stream.wake(),
                Some(_) if self.out.len() == before => left_out.extend(self.unsent.pop_back()),
                _ => {}
            }
        }
        left_out.append(&mut self.unsent);
        self.unsent = left_out;
    }

    /// Sends what this stream has to send; what cannot go yet goes with [`State::send_all`].
    pub(super) fn send(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        while let Some(mut part) = stream.unsent.take() {
            let window = usize::try_from(self.send_window.min(stream.send_window)).unwrap_or(0);
            let len = part.len().min(self.peer.max_frame).min(MAX_DATA).min(window);
            if !self.out.has_room() || (len == 0 && !part.is_empty()) {
                stream.unsent = Some(part);
                return self.unsent.push_back(id);
            }
            let ends = len == part.len() && matches!(stream.tail, Tail::Body);
            let flags = if ends { frame::END_STREAM } else { 0 };
            Head { len, kind: frame::DATA, flags, stream: id }.put(&mut self.out.tail);
            self.out.push(part.split_to(len));
            let sent = i64::try_from(len).unwrap_or(i64::MAX);
            self.send_window -= sent;
            stream.send_window -= sent;
            stream.unsent = Some(part).filter(|part| !part.is_empty());
        }
        match std::mem::replace(&mut stream.tail, Tail::Sent) {
            Tail::Open => stream.tail = Tail::Open,
            Tail::Trailers(trailers) => self.put_block(id, true, |out| hpack::put_headers(out, &trailers)),
            Tail::Body | Tail::Sent => {}
        }
    }

    /// Tells the peer which of its streams is the last that is taken.
    pub(super) fn put_goaway(&mut self, last: u32, code: u32) {
        Head { len: 8, kind: frame::GOAWAY, flags: 0, stream: 0 }.put(&mut self.out.tail);
        self.out.tail.put_u32(last);
        self.out.tail.put_u32(code);
    }
}
