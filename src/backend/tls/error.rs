//! Explains a failed TLS handshake to the operator: whose certificate, which date, which names.
//!
//! rustls reports in its own types, and a peer that refuses our certificate sends only an alert, in TLS 1.3
//! after the handshake. Both become a [`CertificateFault`]. No I/O.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, InvalidMessage};

use super::{CertificateInfo, TlsIdentity, utc};

/// Which certificate was not accepted, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateFault {
    /// The backend's has expired.
    Expired {
        /// Since when.
        since: SystemTime,
    },
    /// The backend's is not valid yet.
    NotYetValid {
        /// From when.
        from: SystemTime,
    },
    /// The backend's is not signed by an authority of `tls.ca`.
    UnknownAuthority {
        /// The file with those authorities.
        ca: PathBuf,
    },
    /// The backend's is for other names.
    WrongName {
        /// The expected name.
        expected: String,
        /// The names in the certificate; may be empty.
        holds: Vec<String>,
    },
    /// The backend's is refused for another reason.
    Unacceptable {
        /// rustls' text.
        reason: String,
    },
    /// The backend requires a client certificate, and none is configured.
    OursMissing,
    /// The backend refuses our client certificate.
    OursRefused {
        /// The client certificate.
        shown: Box<CertificateInfo>,
        /// The backend's TLS alert.
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
    /// Tells whether the client certificate is at fault, not the backend's.
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

/// Returns why a handshake failed with `error`.
pub(crate) fn handshake_error(error: &io::Error, name: &str, identity: &TlsIdentity) -> HandshakeError {
    if let Some(fault) = certificate_refusal(error, identity) {
        return HandshakeError::Certificate(fault);
    }
    match rustls_error(error) {
        Some(rustls::Error::InvalidCertificate(error)) => {
            HandshakeError::Certificate(backend_fault(error, name, identity))
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

/// Recognises the alerts by which a backend refuses our client certificate, or requires one.
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

fn backend_fault(error: &CertificateError, name: &str, identity: &TlsIdentity) -> CertificateFault {
    match error {
        CertificateError::ExpiredContext { not_after, .. } => {
            CertificateFault::Expired { since: moment(*not_after) }
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            CertificateFault::NotYetValid { from: moment(*not_before) }
        }
        // An authority of the same name with another key shows as a bad signature.
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
