//! What is sent: settings, header blocks, and bodies as far as windows and room allow.

use bytes::{BufMut, BytesMut};
use http::HeaderMap;

use crate::frame::{self, FrameHeader, FrameType, Setting, StreamId};
use crate::server::shorten;
use crate::state::{CONNECTION_WINDOW, DEFAULT_WINDOW, Side, State};
use crate::stream::{self, EndStream};
use crate::{PREFACE, Reason, hpack};

/// The largest payload of a DATA frame, however much the peer accepts: other streams must not wait for long.
const MAX_DATA: usize = 1 << 18;

impl State {
    /// Queues our connection preface (section 3.4): settings, of which `own` are those of one side, and the
    /// window of the connection.
    pub(crate) fn send_preface(&mut self, own: &[(Setting, u32)]) {
        if self.side == Side::Client {
            self.out.tail.put_slice(PREFACE);
        }
        let common = [
            (Setting::InitialWindowSize, stream::WINDOW),
            (Setting::MaxFrameSize, u32::try_from(self.max_frame_size()).unwrap_or(u32::MAX)),
        ];
        frame::encode_settings(&mut self.out.tail, &[own, &common].concat());
        let increment = CONNECTION_WINDOW - DEFAULT_WINDOW;
        frame::encode_window_update(&mut self.out.tail, StreamId::CONNECTION, increment);
    }

    /// Encodes a header block with `write`, in as many frames as the peer's frame size demands (section 4.3).
    pub(crate) fn queue_headers(
        &mut self,
        stream: StreamId,
        end_stream: bool,
        write: impl FnOnce(&mut BytesMut),
    ) {
        let out = &mut self.out.tail;
        let start = out.len();
        let end_flag = if end_stream { frame::END_STREAM } else { 0 };
        let (kind, flags) = (FrameType::Headers, frame::END_HEADERS | end_flag);
        let head = FrameHeader { len: 0, kind, flags, stream };
        head.encode(out);
        if !std::mem::replace(&mut self.headers_sent, true) {
            hpack::encode_table_size_zero(out);
        }
        write(out);
        let len = out.len() - start - frame::HEADER_LEN;
        let max = self.peer.max_frame_size;
        if len <= max {
            return FrameHeader { len, ..head }.write(&mut out[start..]);
        }
        let frames = out.split_off(start);
        let block = &frames[frame::HEADER_LEN..];
        for (number, part) in block.chunks(max).enumerate() {
            let is_last = (number + 1) * max >= block.len();
            let (kind, first_flags) =
                if number == 0 { (FrameType::Headers, end_flag) } else { (FrameType::Continuation, 0) };
            let flags = if is_last { frame::END_HEADERS } else { 0 } | first_flags;
            FrameHeader { len: part.len(), kind, flags, stream }.encode(out);
            out.extend_from_slice(part);
        }
    }

    /// Sends what queued streams have, in turns, while the connection window and the output have room.
    pub(crate) fn send_pending(&mut self) {
        if std::mem::take(&mut self.window_raised) {
            let ids: Vec<StreamId> = self.streams.iter().map(|(id, _)| id).collect();
            for id in ids {
                self.queue_send(id);
            }
        }
        while self.out.has_room()
            && let Some(&id) = self.pending_send.front()
        {
            let stream = self.streams.get_mut(id);
            if self.send_window <= 0 && stream.as_ref().is_some_and(|stream| stream.needs_window()) {
                return;
            }
            self.pending_send.pop_front();
            let Some(stream) = stream else { continue };
            stream.is_queued = false;
            self.send_stream(id);
            if let Some(stream) = self.streams.get_mut(id)
                && stream.pending_data.is_none()
            {
                stream.wake();
            }
        }
    }

    /// Queues a stream for [`State::send_pending`], if its own window lets it send.
    pub(crate) fn queue_send(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(id).filter(|stream| stream.pending_data.is_some()) else {
            return;
        };
        let needs_window = stream.needs_window();
        if needs_window && self.peer.initial_window + stream.send_window <= 0 {
            return;
        }
        if std::mem::replace(&mut stream.is_queued, true) {
            return;
        }
        if needs_window {
            self.pending_send.push_back(id);
        } else {
            // No window keeps it from sending, so it must not wait for one that is queued before it.
            self.pending_send.push_front(id);
        }
    }

    /// Sends what this stream has; what must wait goes with [`State::send_pending`].
    pub(crate) fn send_stream(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        while let Some(mut part) = stream.pending_data.take() {
            let window = self.send_window.min(self.peer.initial_window + stream.send_window);
            let window = usize::try_from(window).unwrap_or(0);
            let len = part.len().min(self.peer.max_frame_size).min(MAX_DATA).min(window);
            if !self.out.has_room() || (len == 0 && !part.is_empty()) {
                stream.pending_data = Some(part);
                return self.queue_send(id);
            }
            let end_stream = len == part.len() && matches!(stream.ending, EndStream::WithData);
            let flags = if end_stream { frame::END_STREAM } else { 0 };
            FrameHeader { len, kind: FrameType::Data, flags, stream: id }.encode(&mut self.out.tail);
            self.out.push(part.split_to(len));
            let sent = i64::try_from(len).unwrap_or(i64::MAX);
            self.send_window -= sent;
            stream.send_window -= sent;
            stream.pending_data = Some(part).filter(|part| !part.is_empty());
        }
        match std::mem::replace(&mut stream.ending, EndStream::Sent) {
            EndStream::Open => stream.ending = EndStream::Open,
            EndStream::WithTrailers(trailers) => {
                let trailers = self.within_peer_limit(trailers);
                self.queue_headers(id, true, |out| hpack::encode_headers(out, &trailers));
            }
            EndStream::WithData | EndStream::Sent => {}
        }
    }

    /// Returns the headers that end a response, shortened to what the peer accepts (section 6.5.2).
    pub(crate) fn within_peer_limit(&self, headers: HeaderMap) -> HeaderMap {
        let limit = self.peer.max_header_list;
        if limit == usize::MAX || hpack::list_size(&headers) <= limit {
            headers
        } else {
            shorten(&headers, limit)
        }
    }

    /// Queues GOAWAY (section 6.8).
    pub(crate) fn queue_goaway(&mut self, last: StreamId, reason: Reason, debug: &[u8]) {
        let (kind, stream) = (FrameType::GoAway, StreamId::CONNECTION);
        FrameHeader { len: 8 + debug.len(), kind, flags: 0, stream }.encode(&mut self.out.tail);
        self.out.tail.put_u32(last.into());
        self.out.tail.put_u32(reason.into());
        self.out.tail.put_slice(debug);
    }
}
