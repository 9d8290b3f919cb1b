//! Validates received frames independently of stream state, and dispatches them to [`State`].
//!
//! Every violation ends either one stream ([`State::reset_stream`]) or, returned as an error from here, the
//! connection, with the error code of the section that is named.

use bytes::BytesMut;

use crate::frame::{self, FrameHeader, FrameType, StreamId};
use crate::hpack::Decoder;
use crate::server::SHUTDOWN_PING;
use crate::state::{Side, State};
use crate::{Error, GoAway, PREFACE, Reason};

/// What has been read of a connection, between two reads.
#[derive(Debug)]
pub(crate) struct Receiver {
    decoder: Decoder,
    /// What the peer has yet to send of its connection preface.
    preface: &'static [u8],
    /// Whether the peer's first SETTINGS has arrived.
    settings_received: bool,
    /// A DATA frame of which a part has arrived, with the length that is missing.
    data: Option<FrameHeader>,
    /// A header block without `END_HEADERS` so far.
    block: Option<(FrameHeader, BytesMut)>,
    /// The largest payload that we accept.
    max_frame_size: usize,
    /// How many frames have arrived, CONTINUATION not counted.
    pub(crate) frames: u64,
}

/// Section 3.4: an invalid connection preface is a connection error of type `PROTOCOL_ERROR`.
const BAD_PREFACE: Error = Error::protocol("the peer does not speak HTTP/2");

/// A connection error of type `FRAME_SIZE_ERROR` (section 4.2).
const fn frame_size(what: &'static str) -> Error {
    Error::violation(Reason::FRAME_SIZE_ERROR, what)
}

impl Receiver {
    pub(crate) fn new(state: &State) -> Self {
        Self {
            decoder: Decoder::new(state.max_header_list),
            preface: if state.side == Side::Server { PREFACE } else { &[] },
            settings_received: false,
            data: None,
            block: None,
            max_frame_size: state.max_frame_size(),
            frames: 0,
        }
    }

    /// Tells whether the preface, a DATA frame or a header block is incomplete.
    pub(crate) fn is_within_frame(&self) -> bool {
        !self.settings_received || self.data.is_some() || self.block.is_some()
    }

    /// Dispatches the frames in `input`; returns how many bytes that were, and the connection error if there
    /// is one.
    pub(crate) fn recv_all(&mut self, state: &mut State, input: &[u8]) -> (usize, Result<(), Error>) {
        let mut at = match self.recv_preface(input) {
            Ok(len) => len,
            Err(error) => return (0, Err(error)),
        };
        loop {
            match self.recv_frame(state, &input[at..]) {
                Ok(0) => return (at, Ok(())),
                Ok(len) => at += len,
                Err(error) => return (at, Err(error)),
            }
        }
    }

    /// Compares the start of `input` with what is missing of the preface, and returns its length.
    fn recv_preface(&mut self, input: &[u8]) -> Result<usize, Error> {
        let len = self.preface.len().min(input.len());
        let (now, later) = self.preface.split_at(len);
        if now != &input[..len] {
            return Err(BAD_PREFACE);
        }
        self.preface = later;
        Ok(len)
    }

    /// Dispatches one frame, or the part of a DATA frame that is there, and returns its length; 0 if it is
    /// incomplete.
    fn recv_frame(&mut self, state: &mut State, input: &[u8]) -> Result<usize, Error> {
        if let Some(head) = self.data {
            return self.recv_data(state, head, input);
        }
        let Some(head) = FrameHeader::decode(input) else { return Ok(0) };
        self.check(head)?;
        let payload = &input[frame::HEADER_LEN..];
        if head.kind == FrameType::Data && !head.has(frame::PADDED) {
            check_stream(state, head)?;
            self.frames += 1;
            self.data = Some(head);
            return Ok(frame::HEADER_LEN + self.recv_data(state, head, payload)?);
        }
        let Some(payload) = payload.get(..head.len) else { return Ok(0) };
        self.dispatch(state, head, payload)?;
        Ok(frame::HEADER_LEN + head.len)
    }

    /// Checks what is wrong whatever the payload is.
    fn check(&mut self, head: FrameHeader) -> Result<(), Error> {
        // Section 3.4: SETTINGS is the first frame.
        if !self.settings_received && (head.kind != FrameType::Settings || head.has(frame::ACK)) {
            return Err(BAD_PREFACE);
        }
        self.settings_received = true;
        if head.len > self.max_frame_size {
            return Err(frame_size("a frame exceeds SETTINGS_MAX_FRAME_SIZE"));
        }
        // Section 6.10: nothing comes between the frames of a header block.
        match &self.block {
            Some((open, _)) if head.kind != FrameType::Continuation || head.stream != open.stream => {
                Err(Error::protocol("a frame interrupts a header block"))
            }
            None if head.kind == FrameType::Continuation => {
                Err(Error::protocol("CONTINUATION without a header block"))
            }
            _ => Ok(()),
        }
    }

    /// Takes the part of a DATA frame without padding that is there; returns its length.
    fn recv_data(&mut self, state: &mut State, head: FrameHeader, input: &[u8]) -> Result<usize, Error> {
        let part = &input[..head.len.min(input.len())];
        let left = head.len - part.len();
        let end_stream = left == 0 && head.has(frame::END_STREAM);
        if !part.is_empty() || left == 0 {
            state.recv_data(head.stream, part, part.len(), end_stream)?;
        }
        self.data = (left > 0).then_some(FrameHeader { len: left, ..head });
        Ok(part.len())
    }

    /// Dispatches a frame whose payload is complete.
    fn dispatch(&mut self, state: &mut State, head: FrameHeader, payload: &[u8]) -> Result<(), Error> {
        const PADDING: Error = Error::protocol("padding exceeds its frame");
        check_stream(state, head)?;
        self.frames += u64::from(head.kind != FrameType::Continuation);
        match head.kind {
            FrameType::Data => {
                let part = frame::unpadded(head, payload).ok_or(PADDING)?;
                state.recv_data(head.stream, part, payload.len(), head.has(frame::END_STREAM))
            }
            FrameType::Headers => {
                let part = frame::unpadded(head, payload).ok_or(PADDING)?;
                self.recv_block_part(state, head, head, part)
            }
            FrameType::Continuation => {
                let first = self.block.as_ref().map_or(head, |(first, _)| *first);
                self.recv_block_part(state, first, head, payload)
            }
            FrameType::Priority => recv_priority(state, head),
            FrameType::RstStream => recv_rst_stream(state, head, payload),
            FrameType::Settings => recv_settings(state, head, payload),
            // Section 6.6: a server never receives one, and a client that disabled push neither.
            FrameType::PushPromise => Err(Error::protocol("PUSH_PROMISE although push is disabled")),
            FrameType::Ping => recv_ping(state, head, payload),
            FrameType::GoAway => recv_goaway(state, payload),
            FrameType::WindowUpdate => recv_window_update(state, head, payload),
            // Section 5.5.
            FrameType::Unknown(_) => Ok(()),
        }
    }

    /// Adds a part of a header block; decodes the block once it is complete. `first` is its HEADERS frame.
    fn recv_block_part(
        &mut self,
        state: &mut State,
        first: FrameHeader,
        head: FrameHeader,
        part: &[u8],
    ) -> Result<(), Error> {
        let end_headers = head.has(frame::END_HEADERS);
        let Some((_, mut block)) = self.block.take() else {
            if end_headers {
                return self.recv_block(state, first, part);
            }
            self.block = Some((first, BytesMut::from(part)));
            return Ok(());
        };
        block.extend_from_slice(part);
        if block.len() > self.decoder.max_block() {
            return Err(Error::violation(Reason::ENHANCE_YOUR_CALM, "a header block is too long"));
        }
        if end_headers {
            return self.recv_block(state, first, &block);
        }
        self.block = Some((first, block));
        Ok(())
    }

    fn recv_block(&mut self, state: &mut State, head: FrameHeader, block: &[u8]) -> Result<(), Error> {
        // Section 4.3: what cannot be decompressed leaves both sides with different tables.
        let invalid = Error::violation(Reason::COMPRESSION_ERROR, "a header block cannot be decompressed");
        let block = self.decoder.decode(block).ok_or(invalid)?;
        match state.side {
            Side::Client => {
                state.recv_response(head.stream, block, head.has(frame::END_STREAM));
                Ok(())
            }
            Side::Server => state.recv_request(head.stream, block, head.has(frame::END_STREAM)),
        }
    }
}

/// Checks that a frame belongs to a stream or to the connection, as its type demands (sections 5.1 and 6).
fn check_stream(state: &State, head: FrameHeader) -> Result<(), Error> {
    let is_connection = head.stream == StreamId::CONNECTION;
    match head.kind {
        FrameType::Settings | FrameType::Ping | FrameType::GoAway if !is_connection => {
            Err(Error::protocol("a frame of the connection names a stream"))
        }
        FrameType::Data | FrameType::Headers | FrameType::Priority | FrameType::RstStream
            if is_connection =>
        {
            Err(Error::protocol("a frame of a stream names the connection"))
        }
        // A client opens streams with HEADERS.
        FrameType::Headers if state.side == Side::Server && head.stream.is_client_initiated() => Ok(()),
        FrameType::Data | FrameType::Headers | FrameType::RstStream | FrameType::WindowUpdate
            if !is_connection && state.is_idle(head.stream) =>
        {
            Err(Error::protocol("a frame names an idle stream"))
        }
        _ => Ok(()),
    }
}

/// Section 6.3: priority is ignored, a wrong length is a stream error.
fn recv_priority(state: &mut State, head: FrameHeader) -> Result<(), Error> {
    if head.len == 5 {
        return Ok(());
    }
    let error = frame_size("PRIORITY has a wrong length");
    if state.is_idle(head.stream) {
        return Err(error);
    }
    state.reset_stream(head.stream, Reason::FRAME_SIZE_ERROR, error);
    Ok(())
}

fn recv_rst_stream(state: &mut State, head: FrameHeader, payload: &[u8]) -> Result<(), Error> {
    let code = exact_u32(payload).ok_or(frame_size("RST_STREAM has a wrong length"))?;
    state.close_recv(head.stream, Err(Error::Reset(Reason::from(code))));
    Ok(())
}

fn recv_settings(state: &mut State, head: FrameHeader, payload: &[u8]) -> Result<(), Error> {
    match (head.has(frame::ACK), payload) {
        (true, []) => Ok(()),
        (true, _) => Err(frame_size("an acknowledgement of SETTINGS has a payload")),
        (false, _) if !payload.len().is_multiple_of(6) => Err(frame_size("SETTINGS has a wrong length")),
        (false, _) => state.recv_settings(payload),
    }
}

fn recv_ping(state: &mut State, head: FrameHeader, payload: &[u8]) -> Result<(), Error> {
    if payload.len() != SHUTDOWN_PING.len() {
        return Err(frame_size("PING has a wrong length"));
    }
    if !head.has(frame::ACK) {
        frame::encode_ping(&mut state.out.tail, frame::ACK, payload);
    } else if *payload == SHUTDOWN_PING {
        state.recv_shutdown_ack();
    }
    Ok(())
}

fn recv_goaway(state: &mut State, payload: &[u8]) -> Result<(), Error> {
    let (Some(last), Some(code)) = (frame::decode_u32(payload), payload.get(4..).and_then(frame::decode_u32))
    else {
        return Err(frame_size("GOAWAY is too short"));
    };
    let debug = payload.get(8..).unwrap_or_default();
    state.recv_goaway(StreamId::from_wire(last), GoAway::new(Reason::from(code), debug));
    Ok(())
}

fn recv_window_update(state: &mut State, head: FrameHeader, payload: &[u8]) -> Result<(), Error> {
    let increment = exact_u32(payload).ok_or(frame_size("WINDOW_UPDATE has a wrong length"))?;
    state.recv_window_update(head.stream, increment & i32::MAX.cast_unsigned())
}

/// Reads a payload of exactly four bytes.
fn exact_u32(payload: &[u8]) -> Option<u32> {
    frame::decode_u32(payload).filter(|_| payload.len() == 4)
}
