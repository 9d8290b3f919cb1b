//! What a failed TLS handshake says, in words for the operator: whose certificate, which date, which names.
//!
//! rustls reports precisely but in its own types, and a peer's refusal of our certificate arrives as a bare
//! alert, under TLS 1.3 only after the handshake. Here both become a [`CertificateFault`]. Nothing here does
//! I/O.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, InvalidMessage};

use super::{CertificateInfo, TlsIdentity, utc};

/// Which certificate stands in the way, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateFault {
    /// Theirs is past its last day.
    Expired {
        /// Since when.
        since: SystemTime,
    },
    /// Theirs is not valid yet.
    NotYetValid {
        /// From when.
        from: SystemTime,
    },
    /// Theirs is signed by none of the authorities we were given.
    UnknownAuthority {
        /// The file with those authorities.
        ca: PathBuf,
    },
    /// Theirs is for other names.
    WrongName {
        /// The name it had to hold.
        expected: String,
        /// The names it holds; empty if it holds none.
        holds: Vec<String>,
    },
    /// Theirs is refused for another reason.
    Unacceptable {
        /// Which, in rustls' words.
        reason: String,
    },
    /// The peer wants one of ours and we have none.
    OursMissing,
    /// The peer refuses ours.
    OursRefused {
        /// The one that we showed.
        shown: Box<CertificateInfo>,
        /// The alert the peer answered with.
        alert: String,
    },
}

/// Why a handshake failed.
#[derive(Debug)]
pub(crate) enum HandshakeError {
    Certificate(CertificateFault),
    Other(String),
}

impl CertificateFault {
    /// Whether the certificate at fault is ours; else it is the peer's.
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::OursMissing | Self::OursRefused { .. })
    }
}

impl fmt::Display for CertificateFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired { since } => write!(f, "its certificate has been expired since {}", utc(*since)),
            Self::NotYetValid { from } => write!(f, "its certificate is not valid before {}", utc(*from)),
            Self::UnknownAuthority { ca } => {
                write!(f, "its certificate is signed by an authority that is not in {}", ca.display())
            }
            Self::WrongName { expected, holds } if holds.is_empty() => {
                write!(f, "its certificate does not hold the name {expected}, nor any other")
            }
            Self::WrongName { expected, holds } => {
                write!(f, "its certificate does not hold the name {expected}, only {}", holds.join(", "))
            }
            Self::Unacceptable { reason } => write!(f, "its certificate is not acceptable: {reason}"),
            Self::OursMissing => {
                f.write_str("it wants a client certificate, but `tls.cert` and `tls.key` are not configured")
            }
            Self::OursRefused { shown, alert } => {
                write!(f, "it refuses our client certificate {shown} with the alert {alert}")
            }
        }
    }
}

/// Says why a handshake ended with `error`.
pub(crate) fn handshake_fault(error: &io::Error, name: &str, identity: &TlsIdentity) -> HandshakeError {
    if let Some(fault) = certificate_refusal(error, identity) {
        return HandshakeError::Certificate(fault);
    }
    match rustls_error(error) {
        Some(rustls::Error::InvalidCertificate(error)) => {
            HandshakeError::Certificate(theirs(error, name, identity))
        }
        Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            HandshakeError::Other("the peer answers, but not with TLS".to_owned())
        }
        Some(error) => HandshakeError::Other(error.to_string()),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            HandshakeError::Other("the peer closed the connection".to_owned())
        }
        None => HandshakeError::Other(error.to_string()),
    }
}

/// Recognises the alerts by which a peer refuses our certificate, or the lack of one.
pub(crate) fn certificate_refusal(error: &io::Error, identity: &TlsIdentity) -> Option<CertificateFault> {
    let Some(rustls::Error::AlertReceived(alert)) = rustls_error(error) else { return None };
    let about_certificates = matches!(
        alert,
        AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
    );
    about_certificates.then(|| match &identity.certificate {
        None => CertificateFault::OursMissing,
        Some(shown) => {
            CertificateFault::OursRefused { shown: Box::new(shown.clone()), alert: format!("{alert:?}") }
        }
    })
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn theirs(error: &CertificateError, name: &str, identity: &TlsIdentity) -> CertificateFault {
    match error {
        CertificateError::ExpiredContext { not_after, .. } => {
            CertificateFault::Expired { since: moment(*not_after) }
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            CertificateFault::NotYetValid { from: moment(*not_before) }
        }
        // A bad signature is what an authority of the same name with another key looks like.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            CertificateFault::UnknownAuthority { ca: identity.ca.clone() }
        }
        CertificateError::NotValidForNameContext { presented, .. } => CertificateFault::WrongName {
            expected: name.to_owned(),
            holds: presented.iter().map(|name| plain_name(name)).collect(),
        },
        CertificateError::NotValidForName => {
            CertificateFault::WrongName { expected: name.to_owned(), holds: Vec::new() }
        }
        other => CertificateFault::Unacceptable { reason: other.to_string() },
    }
}

/// Takes rustls' `DnsName("node-7")` down to `node-7`.
fn plain_name(presented: &str) -> String {
    let inner = presented.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(presented);
    inner.trim_matches('"').to_owned()
}

fn moment(time: UnixTime) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_secs(time.as_secs())).unwrap_or(UNIX_EPOCH)
}
