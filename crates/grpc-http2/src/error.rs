//! Error codes of HTTP/2 and why a call or a connection ended early.

use std::fmt;
use std::sync::Arc;

/// An error code of `RST_STREAM` and GOAWAY. Source: RFC 9113, section 7.
///
/// A code that the RFC does not name keeps its number and is treated as [`Reason::INTERNAL_ERROR`] would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reason(u32);

/// Declares the codes and their names in one place.
macro_rules! reasons {
    ($($number:literal $name:ident $what:literal;)*) => {
        impl Reason {
            $(#[doc = $what] pub const $name: Self = Self($number);)*

            fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

reasons! {
    0 NO_ERROR "The stream or connection ends without an error.";
    1 PROTOCOL_ERROR "The peer violated the protocol and no other code says how.";
    2 INTERNAL_ERROR "The sender failed.";
    3 FLOW_CONTROL_ERROR "The peer sent more than a window allows, or moved a window out of its range.";
    4 SETTINGS_TIMEOUT "SETTINGS was not acknowledged in time.";
    5 STREAM_CLOSED "A frame arrived on a stream whose sender had ended it.";
    6 FRAME_SIZE_ERROR "A frame has a length that its type does not allow.";
    7 REFUSED_STREAM "The request was not processed; it may be sent again.";
    8 CANCEL "The stream is not wanted any more.";
    9 COMPRESSION_ERROR "A header block cannot be decompressed.";
    10 CONNECT_ERROR "The connection behind a CONNECT request broke.";
    11 ENHANCE_YOUR_CALM "The peer causes too much load.";
    12 INADEQUATE_SECURITY "TLS is weaker than required.";
    13 HTTP_1_1_REQUIRED "The request must be sent over HTTP/1.1.";
}

impl From<u32> for Reason {
    fn from(code: u32) -> Self {
        Self(code)
    }
}

impl From<Reason> for u32 {
    fn from(reason: Reason) -> Self {
        reason.0
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "error code {}", self.0),
        }
    }
}

/// Why a call or a connection ended early.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The connection has ended; the text says why.
    #[error("{0}")]
    Closed(Arc<str>),
    /// The peer reset the stream.
    #[error("the peer reset the call: {0}")]
    Reset(Reason),
    /// The connection accepts no new streams, and this one was not processed: it may be sent again on
    /// another.
    #[error("the peer is closing the connection: {0}")]
    GoAway(GoAway),
    /// The peer violated the protocol.
    #[error("HTTP/2 {reason}: {what}")]
    Protocol {
        /// The code that the peer was told.
        reason: Reason,
        /// The rule that it broke.
        what: &'static str,
    },
    /// The body exceeds the limit of its receiver: its length in bytes, or as much of it as is known.
    #[error("the body has {0} bytes")]
    TooLarge(usize),
    /// A header list exceeds the limit of its receiver, who may be the peer: sizes as section 6.5.2 counts
    /// them.
    #[error("the header list has {len} bytes, more than the {limit} that its receiver accepts")]
    HeadersTooLarge {
        /// The size of the list, or as much of it as is known.
        len: usize,
        /// The limit.
        limit: usize,
    },
}

/// What a GOAWAY frame says (section 6.8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoAway {
    /// Why the peer closes the connection; [`Reason::NO_ERROR`] for a graceful shutdown.
    pub reason: Reason,
    /// Its debug data: at most 256 bytes of it, control characters escaped.
    pub debug: Arc<str>,
}

impl GoAway {
    /// How much debug data is kept.
    const MAX_DEBUG: usize = 256;

    pub(crate) fn new(reason: Reason, debug: &[u8]) -> Self {
        let debug = &debug[..debug.len().min(Self::MAX_DEBUG)];
        Self { reason, debug: debug.escape_ascii().to_string().into() }
    }
}

impl fmt::Display for GoAway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)?;
        if self.debug.is_empty() { Ok(()) } else { write!(f, " ({})", self.debug) }
    }
}

impl Error {
    /// A violation without a code of its own.
    pub(crate) const fn protocol(what: &'static str) -> Self {
        Self::violation(Reason::PROTOCOL_ERROR, what)
    }

    /// A violation with this code.
    pub(crate) const fn violation(reason: Reason, what: &'static str) -> Self {
        Self::Protocol { reason, what }
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Closed(error.to_string().into())
    }
}
