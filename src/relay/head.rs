//! The head of a streaming request: finds the path and the host, and replaces them.
//!
//! Everything else stays byte for byte, header order and case included, because SPDY and WebSocket negotiate
//! in headers that this relay must not understand. Parsing is httparse's; nothing here does I/O.

use std::ops::Range;

/// The most bytes a request head may have.
pub const MAX_HEAD: usize = 64 * 1024;

/// The most headers a request head may have.
const MAX_HEADERS: usize = 128;

/// Why a request head is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// It is longer than [`MAX_HEAD`] or has too many headers.
    #[error("the request head is too large")]
    TooLarge,
    /// It is not HTTP/1.
    #[error("the request head is not HTTP/1: {0}")]
    Malformed(httparse::Error),
    /// Its target is not a path, or it names more than one host.
    #[error("the request head names no path, or more than one host")]
    Ambiguous,
}

/// Where the parts that matter are in a complete head.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Of the request target without its query.
    path: Range<usize>,
    /// Of the value of `Host`.
    host: Option<Range<usize>>,
    /// Of the whole head.
    len: usize,
}

impl Head {
    /// Finds the parts of the head that `received` begins with; `None` if it is not complete yet.
    pub(super) fn parse(received: &[u8]) -> Result<Option<Self>, HeadError> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let len = match request.parse(received) {
            Ok(httparse::Status::Complete(len)) if len <= MAX_HEAD => len,
            Ok(httparse::Status::Partial) if received.len() < MAX_HEAD => return Ok(None),
            Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLarge),
            Err(error) => return Err(HeadError::Malformed(error)),
        };
        let target = request.path.filter(|target| target.starts_with('/')).ok_or(HeadError::Ambiguous)?;
        let path = target.split(['?', '#']).next().unwrap_or(target);
        let mut hosts = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("host"));
        let host = hosts.next().map(|header| range_in(received, header.value)).transpose()?;
        if hosts.next().is_some() {
            return Err(HeadError::Ambiguous);
        }
        Ok(Some(Self { path: range_in(received, path.as_bytes())?, host, len }))
    }

    /// The path; `received` must be what was parsed.
    pub(super) fn path<'a>(&self, received: &'a [u8]) -> &'a [u8] {
        &received[self.path.clone()]
    }

    /// How many bytes of what was received are the head.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Writes the head with another path and, if it names a host, another host.
    pub(super) fn rewrite(&self, received: &[u8], new_path: &str, new_host: &str) -> Vec<u8> {
        let mut written = Vec::with_capacity(self.len + new_path.len() + new_host.len());
        written.extend_from_slice(&received[..self.path.start]);
        written.extend_from_slice(new_path.as_bytes());
        let rest = match &self.host {
            Some(host) => {
                written.extend_from_slice(&received[self.path.end..host.start]);
                written.extend_from_slice(new_host.as_bytes());
                host.end
            }
            None => self.path.end,
        };
        written.extend_from_slice(&received[rest..self.len]);
        written
    }
}

/// Puts `new_path` and `new_host` into the request head that `received` begins with.
///
/// Returns the new head and how many bytes the old one took, or `None` if it is not complete yet. The query
/// stays; a head without `Host` gets none.
///
/// # Errors
///
/// A [`HeadError`] if no further bytes can make it a valid head.
pub fn rewrite_head(
    received: &[u8],
    new_path: &str,
    new_host: &str,
) -> Result<Option<(Vec<u8>, usize)>, HeadError> {
    let head = Head::parse(received)?;
    Ok(head.map(|head| (head.rewrite(received, new_path, new_host), head.len)))
}

/// Where `part`, a slice of `whole`, lies in it.
fn range_in(whole: &[u8], part: &[u8]) -> Result<Range<usize>, HeadError> {
    let start = part.as_ptr().addr().wrapping_sub(whole.as_ptr().addr());
    let end = start.wrapping_add(part.len());
    if start <= end && end <= whole.len() { Ok(start..end) } else { Err(HeadError::Ambiguous) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(head: &str) -> String {
        let (written, consumed) = rewrite_head(head.as_bytes(), "/exec/abc", "node-7:1").unwrap().unwrap();
        assert_eq!(consumed, head.find("\r\n\r\n").unwrap() + 4);
        String::from_utf8(written).unwrap()
    }

    #[test]
    fn only_path_and_host_change() {
        let head = "POST /exec/TOKEN?a=1&b=%2F/exec/TOKEN HTTP/1.1\r\nuPGRADE:  SPDY/3.1 \r\nhOST: 127.0.0.1:9 \r\n\
                    X: /exec/TOKEN\r\nx-Empty:\r\nConnection: Upgrade\r\nX: \u{e9}\r\n\r\n";
        let expected = "POST /exec/abc?a=1&b=%2F/exec/TOKEN HTTP/1.1\r\nuPGRADE:  SPDY/3.1 \r\nhOST: node-7:1 \r\n\
                        X: /exec/TOKEN\r\nx-Empty:\r\nConnection: Upgrade\r\nX: \u{e9}\r\n\r\n";
        assert_eq!(rewritten(head), expected);
        assert_eq!(rewritten(&format!("{head}early body")), expected);
    }

    #[test]
    fn a_head_without_host_gets_none_and_an_empty_one_is_filled() {
        assert_eq!(rewritten("GET /a HTTP/1.0\r\n\r\n"), "GET /exec/abc HTTP/1.0\r\n\r\n");
        let filled = rewritten("GET /a HTTP/1.1\r\nHost:\r\nA: b\r\n\r\n");
        assert_eq!(filled, "GET /exec/abc HTTP/1.1\r\nHost:node-7:1\r\nA: b\r\n\r\n");
    }

    #[test]
    fn every_prefix_of_a_head_is_waited_for() {
        let head = b"GET /exec/t HTTP/1.1\r\nHost: a\r\n\r\n";
        for len in 0..head.len() {
            assert_eq!(rewrite_head(&head[..len], "/", "b"), Ok(None), "{len}");
        }
    }

    #[test]
    fn what_can_never_be_a_head_is_refused() {
        let refused = |head: &[u8]| rewrite_head(head, "/", "b").unwrap_err();
        assert!(matches!(refused(b"\x16\x03\x01\x02\n"), HeadError::Malformed(_)));
        assert_eq!(refused(b"GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n"), HeadError::Ambiguous);
        assert_eq!(refused(b"GET http://a/b HTTP/1.1\r\n\r\n"), HeadError::Ambiguous);
        let endless = [b"GET / HTTP/1.1\r\nA: ".as_slice(), &vec![b'a'; MAX_HEAD]].concat();
        assert_eq!(refused(&endless), HeadError::TooLarge);
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(MAX_HEADERS + 1));
        assert_eq!(refused(many.as_bytes()), HeadError::TooLarge);
    }
}
