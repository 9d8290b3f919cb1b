//! The frames of HTTP/2 as they stand on the wire.
//!
//! Source: RFC 9113, sections 4 and 6.

use bytes::{BufMut, BytesMut};

/// The size of a frame's head.
pub(super) const HEAD: usize = 9;
/// The largest payload that every peer takes unasked.
pub(super) const LEAST_MAX: usize = 1 << 14;
/// The largest payload that we take.
pub(super) const MAX_FRAME: u32 = 1 << 18;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const ACK: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;
pub(super) const PRIORITY: u8 = 0x20;

pub(super) const ENABLE_PUSH: u16 = 2;
pub(super) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(super) const MAX_FRAME_SIZE: u16 = 5;
pub(super) const MAX_HEADER_LIST_SIZE: u16 = 6;

pub(super) const NO_ERROR: u32 = 0;
pub(super) const PROTOCOL_ERROR: u32 = 1;
pub(super) const INTERNAL_ERROR: u32 = 2;
pub(super) const FLOW_CONTROL_ERROR: u32 = 3;
pub(super) const CANCEL: u32 = 8;

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) len: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Head {
    /// Reads the head at the beginning of `bytes`; `None` if it is not all there.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let &[a, b, c, kind, flags, s0, s1, s2, s3] = bytes.first_chunk::<HEAD>()?;
        let len = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        Some(Self {
            len,
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & i32::MAX.cast_unsigned(),
        })
    }

    /// Appends it.
    pub(super) fn put(self, out: &mut BytesMut) {
        let start = out.len();
        out.put_bytes(0, HEAD);
        self.write(&mut out[start..]);
    }

    /// Writes it over the beginning of `out`.
    pub(super) fn write(self, out: &mut [u8]) {
        let [_, a, b, c] = u32::try_from(self.len).unwrap_or(u32::MAX).to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        out[..HEAD].copy_from_slice(&[a, b, c, self.kind, self.flags, s0, s1, s2, s3]);
    }

    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Writes a frame whose payload is one number.
pub(super) fn put_number(out: &mut BytesMut, kind: u8, stream: u32, number: u32) {
    Head { len: 4, kind, flags: 0, stream }.put(out);
    out.put_u32(number);
}

/// Writes a ping that says this.
pub(super) fn put_ping(out: &mut BytesMut, payload: [u8; 8]) {
    Head { len: payload.len(), kind: PING, flags: 0, stream: 0 }.put(out);
    out.put_slice(&payload);
}

/// Writes our settings.
pub(super) fn put_settings(out: &mut BytesMut, settings: &[(u16, u32)]) {
    Head { len: settings.len() * 6, kind: SETTINGS, flags: 0, stream: 0 }.put(out);
    for &(name, value) in settings {
        out.put_u16(name);
        out.put_u32(value);
    }
}

/// Reads the first four bytes of a payload as a number.
pub(super) fn number(payload: &[u8]) -> Option<u32> {
    payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// Returns the payload less padding and, of HEADERS, less priority; `None` if they are longer than it.
pub(super) fn unpadded(head: Head, mut payload: &[u8]) -> Option<&[u8]> {
    if head.has(PADDED) {
        let (&padding, rest) = payload.split_first()?;
        payload = rest.get(..rest.len().checked_sub(padding.into())?)?;
    }
    if head.kind == HEADERS && head.has(PRIORITY) {
        payload = payload.get(5..)?;
    }
    Some(payload)
}

/// Returns the name of an error code.
pub(super) fn reason(code: u32) -> &'static str {
    const NAMES: [&str; 14] = [
        "NO_ERROR",
        "PROTOCOL_ERROR",
        "INTERNAL_ERROR",
        "FLOW_CONTROL_ERROR",
        "SETTINGS_TIMEOUT",
        "STREAM_CLOSED",
        "FRAME_SIZE_ERROR",
        "REFUSED_STREAM",
        "CANCEL",
        "COMPRESSION_ERROR",
        "CONNECT_ERROR",
        "ENHANCE_YOUR_CALM",
        "INADEQUATE_SECURITY",
        "HTTP_1_1_REQUIRED",
    ];
    usize::try_from(code).ok().and_then(|code| NAMES.get(code)).copied().unwrap_or("an unknown error")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_was_written() {
        let head = Head { len: 0x01_02_03, kind: HEADERS, flags: END_STREAM | END_HEADERS, stream: 7 };
        let mut out = BytesMut::new();
        head.put(&mut out);
        assert_eq!(Head::read(&out), Some(head));
        assert_eq!(Head::read(&out[..HEAD - 1]), None);
    }

    #[test]
    fn padding_and_priority_are_left_out_and_never_longer_than_the_frame() {
        let head = |flags| Head { len: 0, kind: HEADERS, flags, stream: 1 };
        assert_eq!(unpadded(head(PADDED), &[2, b'x', 0, 0]), Some(&b"x"[..]));
        assert_eq!(unpadded(head(PADDED | PRIORITY), &[1, 0, 0, 0, 0, 9, b'x', 0]), Some(&b"x"[..]));
        assert_eq!(unpadded(head(PADDED), &[3, 0, 0]), None);
        assert_eq!(unpadded(head(PADDED), &[]), None);
        assert_eq!(unpadded(head(PRIORITY), &[0; 4]), None);
    }
}
