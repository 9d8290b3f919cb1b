//! Why a backend could not be connected: the failed step and its cause, in a sentence that begins with the
//! address.
//!
//! The text must tell an operator what to repair, so each step has its own variant, and certificates are
//! described by subject and dates. No variant may hold key material.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use crate::backend::tls::{CertificateFault, TlsFileError};

/// A step on the way to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectStep {
    /// Reading our own TLS files.
    Files,
    /// Finding the addresses of a host name.
    Resolve,
    /// Connecting the socket.
    Connect,
    /// The TLS handshake.
    Handshake,
}

/// Why there is no connection. Every text is one sentence that begins with the address.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Our own files cannot be used; nothing was dialled.
    #[error("{target}: our TLS files cannot be used: {cause}")]
    Files {
        /// The address.
        target: String,
        /// Which file and why.
        cause: Box<TlsFileError>,
    },
    /// The host name has no address.
    #[error("{target}: the host name cannot be resolved: {cause}")]
    Resolve {
        /// The address.
        target: String,
        /// The resolver's error.
        cause: io::Error,
    },
    /// No socket could be connected.
    #[error("{target}: cannot be connected: {cause}")]
    Connect {
        /// The address.
        target: String,
        /// The kernel's error; of several addresses, that of the last.
        cause: io::Error,
    },
    /// The TLS handshake failed for a reason other than a certificate.
    #[error("{target}: the TLS handshake failed: {reason}")]
    Handshake {
        /// The address.
        target: String,
        /// Why.
        reason: String,
    },
    /// A certificate, ours or the backend's, was not accepted.
    #[error("{target}: {fault}")]
    Certificate {
        /// The address.
        target: String,
        /// Whose and why.
        fault: CertificateFault,
    },
    /// The timeout of all steps ended during this one.
    #[error("{target}: not connected within {after:?}: {step} took too long")]
    Timeout {
        /// The address.
        target: String,
        /// The step.
        step: ConnectStep,
        /// The timeout of all steps together.
        after: Duration,
    },
}

impl ConnectError {
    /// Which step failed.
    pub fn step(&self) -> ConnectStep {
        match self {
            Self::Files { .. } => ConnectStep::Files,
            Self::Resolve { .. } => ConnectStep::Resolve,
            Self::Connect { .. } => ConnectStep::Connect,
            Self::Handshake { .. } | Self::Certificate { .. } => ConnectStep::Handshake,
            Self::Timeout { step, .. } => *step,
        }
    }

    /// Finds a `ConnectError` anywhere in the causes of `error`.
    ///
    /// A peer that speaks TLS 1.3 may refuse our certificate only after the connection is in use; the refusal
    /// is then an I/O error of the stream, wrapped by whatever reads from it.
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(found);
            }
            // `io::Error::source` skips the error that it wraps.
            let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            cause = match wrapped {
                Some(inner) => Some(inner),
                None => error.source(),
            };
        }
        None
    }
}

impl fmt::Display for ConnectStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Files => "reading our TLS files",
            Self::Resolve => "resolving the host name",
            Self::Connect => "connecting",
            Self::Handshake => "the TLS handshake",
        })
    }
}
