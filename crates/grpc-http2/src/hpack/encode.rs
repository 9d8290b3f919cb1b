//! Encodes our header blocks: literals and names of the static table.

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// Encodes a table size of 0, before the first of our blocks: a peer that wants a table smaller than the
/// default need not be acknowledged (RFC 7541, section 4.2).
pub(crate) fn encode_table_size_zero(out: &mut BytesMut) {
    out.put_u8(0x20);
}

/// Encodes the pseudo-header field of a response.
pub(crate) fn encode_status(out: &mut BytesMut, status: StatusCode) {
    if status == StatusCode::OK {
        return out.put_u8(0x88);
    }
    // A literal with the name of index 8.
    out.put_u8(0x08);
    encode_string(out, status.as_str().as_bytes());
}

/// Encodes the pseudo-header fields of a request.
pub(crate) fn encode_request(out: &mut BytesMut, is_https: bool, authority: &str, path: &str) {
    // `:method: POST`, `:scheme`, `:authority` and `:path`: indexes 3, 6 or 7, 1 and 4.
    out.put_slice(&[0x83, if is_https { 0x87 } else { 0x86 }, 0x01]);
    encode_string(out, authority.as_bytes());
    out.put_u8(0x04);
    encode_string(out, path.as_bytes());
}

/// Encodes these headers.
pub(crate) fn encode_headers(out: &mut BytesMut, headers: &HeaderMap) {
    headers.iter().for_each(|(name, value)| encode_header(out, name, value));
}

/// Encodes one header, as a literal without indexing or, if it is sensitive, never indexed.
pub(crate) fn encode_header(out: &mut BytesMut, name: &HeaderName, value: &HeaderValue) {
    out.put_u8(if value.is_sensitive() { 0x10 } else { 0x00 });
    encode_string(out, name.as_str().as_bytes());
    encode_string(out, value.as_bytes());
}

fn encode_string(out: &mut BytesMut, string: &[u8]) {
    let full = 0x7f;
    if let Some(len) = u8::try_from(string.len()).ok().filter(|&len| len < full) {
        out.put_u8(len);
    } else {
        out.put_u8(full);
        let mut rest = string.len() - usize::from(full);
        while let Some(more) = u8::try_from(rest & 0x7f).ok().filter(|_| rest > 0x7f) {
            out.put_u8(more | 0x80);
            rest >>= 7;
        }
        out.put_u8(u8::try_from(rest).unwrap_or(full));
    }
    out.put_slice(string);
}
