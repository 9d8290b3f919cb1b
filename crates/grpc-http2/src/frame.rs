//! Frames as they stand on the wire, and their numbers. Source: RFC 9113, sections 4 and 6.

use std::fmt;

use bytes::{BufMut, BytesMut};

use crate::Reason;

/// The length of a frame header (section 4.1).
pub(crate) const HEADER_LEN: usize = 9;
/// The largest payload that every endpoint accepts without a setting (section 4.2).
pub(crate) const DEFAULT_MAX_FRAME_SIZE: usize = 1 << 14;
/// The largest size of a flow-control window (section 6.9.1).
pub(crate) const MAX_WINDOW: i64 = i32::MAX as i64;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;
pub(crate) const PRIORITY: u8 = 0x20;

/// The identifier of a stream: 31 bits; 0 is the connection itself (section 5.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct StreamId(u32);

impl StreamId {
    pub(crate) const CONNECTION: Self = Self(0);
    /// The first stream of a client.
    pub(crate) const FIRST: Self = Self(1);
    pub(crate) const MAX: Self = Self(i32::MAX.cast_unsigned());

    /// Reads an identifier; the reserved bit is ignored.
    pub(crate) fn from_wire(number: u32) -> Self {
        Self(number & Self::MAX.0)
    }

    /// Tells whether a client opens this stream: it is odd.
    pub(crate) fn is_client_initiated(self) -> bool {
        self.0 % 2 == 1
    }

    /// Returns the next stream of the same side; beyond [`StreamId::MAX`] none can be opened.
    pub(crate) fn next(self) -> Self {
        Self(self.0 + 2)
    }

    /// Returns the stream before, of the same side; the connection for the first.
    pub(crate) fn previous(self) -> Self {
        Self(self.0.saturating_sub(2))
    }
}

impl From<StreamId> for u32 {
    fn from(id: StreamId) -> Self {
        id.0
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The type of a frame (section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameType {
    Data,
    Headers,
    Priority,
    RstStream,
    Settings,
    PushPromise,
    Ping,
    GoAway,
    WindowUpdate,
    Continuation,
    /// One that RFC 9113 does not define; it is ignored (section 5.5).
    Unknown(u8),
}

impl FrameType {
    fn from_wire(number: u8) -> Self {
        match number {
            0 => Self::Data,
            1 => Self::Headers,
            2 => Self::Priority,
            3 => Self::RstStream,
            4 => Self::Settings,
            5 => Self::PushPromise,
            6 => Self::Ping,
            7 => Self::GoAway,
            8 => Self::WindowUpdate,
            9 => Self::Continuation,
            other => Self::Unknown(other),
        }
    }

    fn to_wire(self) -> u8 {
        match self {
            Self::Data => 0,
            Self::Headers => 1,
            Self::Priority => 2,
            Self::RstStream => 3,
            Self::Settings => 4,
            Self::PushPromise => 5,
            Self::Ping => 6,
            Self::GoAway => 7,
            Self::WindowUpdate => 8,
            Self::Continuation => 9,
            Self::Unknown(other) => other,
        }
    }
}

/// A setting (section 6.5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setting {
    HeaderTableSize,
    EnablePush,
    MaxConcurrentStreams,
    InitialWindowSize,
    MaxFrameSize,
    MaxHeaderListSize,
    /// One that RFC 9113 does not define; it is ignored.
    Unknown,
}

impl Setting {
    pub(crate) fn from_wire(number: u16) -> Self {
        match number {
            1 => Self::HeaderTableSize,
            2 => Self::EnablePush,
            3 => Self::MaxConcurrentStreams,
            4 => Self::InitialWindowSize,
            5 => Self::MaxFrameSize,
            6 => Self::MaxHeaderListSize,
            _ => Self::Unknown,
        }
    }

    fn to_wire(self) -> u16 {
        match self {
            Self::Unknown => 0,
            Self::HeaderTableSize => 1,
            Self::EnablePush => 2,
            Self::MaxConcurrentStreams => 3,
            Self::InitialWindowSize => 4,
            Self::MaxFrameSize => 5,
            Self::MaxHeaderListSize => 6,
        }
    }
}

/// The header of a frame (section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) len: usize,
    pub(crate) kind: FrameType,
    pub(crate) flags: u8,
    pub(crate) stream: StreamId,
}

impl FrameHeader {
    /// Reads the header at the start of `bytes`; `None` if it is incomplete.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let &[a, b, c, kind, flags, s0, s1, s2, s3] = bytes.first_chunk::<HEADER_LEN>()?;
        let len = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        let stream = StreamId::from_wire(u32::from_be_bytes([s0, s1, s2, s3]));
        Some(Self { len, kind: FrameType::from_wire(kind), flags, stream })
    }

    /// Appends it to `out`.
    pub(crate) fn encode(self, out: &mut BytesMut) {
        let start = out.len();
        out.put_bytes(0, HEADER_LEN);
        self.write(&mut out[start..]);
    }

    /// Overwrites the start of `out` with it.
    pub(crate) fn write(self, out: &mut [u8]) {
        let [_, a, b, c] = u32::try_from(self.len).unwrap_or(u32::MAX).to_be_bytes();
        let [s0, s1, s2, s3] = u32::from(self.stream).to_be_bytes();
        out[..HEADER_LEN].copy_from_slice(&[a, b, c, self.kind.to_wire(), self.flags, s0, s1, s2, s3]);
    }

    pub(crate) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Appends `RST_STREAM` (section 6.4).
pub(crate) fn encode_rst_stream(out: &mut BytesMut, stream: StreamId, reason: Reason) {
    encode_u32_frame(out, FrameType::RstStream, stream, reason.into());
}

/// Appends `WINDOW_UPDATE` (section 6.9).
pub(crate) fn encode_window_update(out: &mut BytesMut, stream: StreamId, increment: u32) {
    encode_u32_frame(out, FrameType::WindowUpdate, stream, increment);
}

fn encode_u32_frame(out: &mut BytesMut, kind: FrameType, stream: StreamId, number: u32) {
    FrameHeader { len: 4, kind, flags: 0, stream }.encode(out);
    out.put_u32(number);
}

/// Appends PING (section 6.7), with these flags.
pub(crate) fn encode_ping(out: &mut BytesMut, flags: u8, payload: &[u8]) {
    FrameHeader { len: payload.len(), kind: FrameType::Ping, flags, stream: StreamId::CONNECTION }
        .encode(out);
    out.put_slice(payload);
}

/// Appends SETTINGS (section 6.5).
pub(crate) fn encode_settings(out: &mut BytesMut, settings: &[(Setting, u32)]) {
    let len = settings.len() * 6;
    FrameHeader { len, kind: FrameType::Settings, flags: 0, stream: StreamId::CONNECTION }.encode(out);
    for &(name, value) in settings {
        out.put_u16(name.to_wire());
        out.put_u32(value);
    }
}

/// Appends the acknowledgement of the peer's SETTINGS (section 6.5.3).
pub(crate) fn encode_settings_ack(out: &mut BytesMut) {
    FrameHeader { len: 0, kind: FrameType::Settings, flags: ACK, stream: StreamId::CONNECTION }.encode(out);
}

/// Reads the first four bytes of a payload; `None` if there are fewer.
pub(crate) fn decode_u32(payload: &[u8]) -> Option<u32> {
    payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// Returns the payload without padding (section 6.1) and, of HEADERS, without priority (section 6.2); `None`
/// if they exceed the payload.
pub(crate) fn unpadded(head: FrameHeader, mut payload: &[u8]) -> Option<&[u8]> {
    if head.has(PADDED) {
        let (&padding, rest) = payload.split_first()?;
        payload = rest.get(..rest.len().checked_sub(padding.into())?)?;
    }
    if head.kind == FrameType::Headers && head.has(PRIORITY) {
        payload = payload.get(5..)?;
    }
    Some(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_header_is_decoded_as_it_was_encoded() {
        for kind in (0..=u8::MAX).map(FrameType::from_wire) {
            let stream = StreamId::from_wire(7);
            let head = FrameHeader { len: 0x01_02_03, kind, flags: END_STREAM | END_HEADERS, stream };
            let mut out = BytesMut::new();
            head.encode(&mut out);
            assert_eq!(FrameHeader::decode(&out), Some(head));
            assert_eq!(FrameHeader::decode(&out[..HEADER_LEN - 1]), None);
        }
    }

    #[test]
    fn padding_and_priority_are_left_out_and_never_exceed_the_payload() {
        let head = |flags| FrameHeader { len: 0, kind: FrameType::Headers, flags, stream: StreamId::FIRST };
        assert_eq!(unpadded(head(PADDED), &[2, b'x', 0, 0]), Some(&b"x"[..]));
        assert_eq!(unpadded(head(PADDED | PRIORITY), &[1, 0, 0, 0, 0, 9, b'x', 0]), Some(&b"x"[..]));
        assert_eq!(unpadded(head(PADDED), &[3, 0, 0]), None);
        assert_eq!(unpadded(head(PADDED), &[]), None);
        assert_eq!(unpadded(head(PRIORITY), &[0; 4]), None);
    }
}
