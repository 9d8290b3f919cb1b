//! What HTTP/2 must know of gRPC: the prefix of a message, and the codes for an HTTP answer without a gRPC
//! status.
//!
//! Source: "gRPC over HTTP2" and "HTTP to gRPC Status Code Mapping" of the gRPC project.

use http::StatusCode;

use crate::Reason;

/// The length of the prefix of each message: a flag for compression and the length of the message.
pub const PREFIX_LEN: usize = 5;
/// How many bytes are reserved at once for a message, however long its prefix says that it is.
pub const MAX_RESERVE: usize = 1 << 20;

/// Returns the prefix of an uncompressed message of `len` bytes.
pub fn message_prefix(len: usize) -> [u8; PREFIX_LEN] {
    let len = u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes();
    [0, len[0], len[1], len[2], len[3]]
}

/// Returns the length that the prefix at the start of `framed` announces, in bytes and without the prefix;
/// `None` if the prefix is incomplete.
pub fn message_len(framed: &[u8]) -> Option<usize> {
    let len: [u8; 4] = framed.get(1..PREFIX_LEN)?.try_into().ok()?;
    usize::try_from(u32::from_be_bytes(len)).ok()
}

/// A status code of gRPC, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
#[allow(missing_docs, reason = "the names are gRPC's")]
pub enum GrpcCode {
    Cancelled = 1,
    Unknown = 2,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

impl GrpcCode {
    /// Returns the code for a stream that the peer reset with this error code before it sent a status.
    pub fn from_reason(reason: Reason) -> Self {
        match reason {
            Reason::REFUSED_STREAM => Self::Unavailable,
            Reason::CANCEL => Self::Cancelled,
            Reason::ENHANCE_YOUR_CALM => Self::ResourceExhausted,
            Reason::INADEQUATE_SECURITY => Self::PermissionDenied,
            _ => Self::Internal,
        }
    }

    /// Returns the code for a response that has this HTTP status and no `grpc-status`.
    pub fn from_http_status(status: StatusCode) -> Self {
        match status.as_u16() {
            400 => Self::Internal,
            401 => Self::Unauthenticated,
            403 => Self::PermissionDenied,
            404 => Self::Unimplemented,
            429 | 502 | 503 | 504 => Self::Unavailable,
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_read_as_it_was_written() {
        for len in [0, 1, 255, 256, 16 << 20] {
            assert_eq!(message_len(&message_prefix(len)), Some(len));
        }
        assert_eq!(message_len(&[0; PREFIX_LEN - 1]), None);
    }

    #[test]
    fn codes_follow_the_tables_of_grpc() {
        let of_reason: Vec<i32> =
            (0..14).map(|code| GrpcCode::from_reason(Reason::from(code)) as i32).collect();
        assert_eq!(of_reason, [13, 13, 13, 13, 13, 13, 13, 14, 1, 13, 13, 8, 7, 13]);
        for (status, code) in [(400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (503, 14), (418, 2)] {
            assert_eq!(GrpcCode::from_http_status(StatusCode::from_u16(status).unwrap()) as i32, code);
        }
    }
}
