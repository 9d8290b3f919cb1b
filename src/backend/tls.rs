//! The client side of mutual TLS to a backend: trusted authorities and the client certificate, read from
//! files.
//!
//! Certificates are rotated while crimux runs, so the files are checked before every handshake and read again
//! if device, inode, length or modification time of one changed. If they cannot be used, the previous
//! identity stays current, with one warning for each change: a half-finished rotation must not disconnect a
//! backend. The cryptography is rustls with ring, selected explicitly; nothing is installed process-wide. No
//! error and no log line may contain the content of a key file.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::Resumption;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::config::Tls;
use crate::mutex::lock;

mod error;

pub use error::CertificateFault;
pub(crate) use error::{HandshakeError, certificate_refusal, handshake_error};

/// Why the TLS files of a backend cannot be used. Never holds a file's content.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    /// The backend is to be reached over TLS, but its `tls` section is missing.
    #[error("no `tls` section is configured")]
    NotConfigured,
    /// A file cannot be read.
    #[error("{}: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file is not PEM, or holds nothing of the kind that is wanted.
    #[error("{} holds no usable {wanted}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The expected content: `certificate` or `private key`.
        wanted: &'static str,
    },
    /// Certificate and key do not form a pair that rustls can use.
    #[error("{} and {} do not belong together or are of an unsupported kind: {cause}", cert.display(), key.display())]
    Pair {
        /// The certificate file.
        cert: PathBuf,
        /// The key file.
        key: PathBuf,
        /// rustls' error.
        cause: rustls::Error,
    },
    /// The name that the peer's certificate must hold is neither a DNS name nor an IP address.
    #[error("{name:?} is neither a DNS name nor an IP address, so no certificate can hold it")]
    ServerName {
        /// The name as configured.
        name: String,
    },
    /// rustls refuses the protocol versions; a defect of the build.
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

/// Whose certificate a [`CertificateInfo`] describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateRole {
    /// An authority of `tls.ca`.
    Authority,
    /// Our own, of `tls.cert`.
    Client,
    /// The backend's, from the handshake.
    Backend,
}

impl CertificateRole {
    /// Returns the value of the `role` label.
    pub fn word(self) -> &'static str {
        match self {
            Self::Authority => "authority",
            Self::Client => "client",
            Self::Backend => "backend",
        }
    }
}

/// One certificate, for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Whose it is.
    pub role: CertificateRole,
    /// The file it was read from; for a backend's certificate its address.
    pub path: PathBuf,
    /// Its subject's distinguished name.
    pub subject: String,
    /// Before this moment it is not valid.
    pub not_before: SystemTime,
    /// After this moment it is not valid.
    pub not_after: SystemTime,
}

/// The TLS identity of one backend's connections, kept up to date with its files.
pub(crate) struct TlsClient {
    files: Tls,
    state: Mutex<LoadedIdentity>,
}

struct LoadedIdentity {
    /// Of the files that were read last, also if they could not be used.
    stamps: Vec<Option<Stamp>>,
    identity: Arc<TlsIdentity>,
}

/// Identifies one version of a file: device, inode, length, modification time.
type Stamp = (u64, u64, u64, i64, i64);

/// One reading of the files.
pub(crate) struct TlsIdentity {
    /// For gRPC: ALPN `h2`.
    pub(crate) calls: Arc<ClientConfig>,
    /// For streaming servers: ALPN `http/1.1`.
    pub(crate) streams: Arc<ClientConfig>,
    pub(crate) ca: PathBuf,
    pub(crate) certificate: Option<CertificateInfo>,
}

impl fmt::Display for CertificateInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, from, to) = (self.path.display(), utc(self.not_before), utc(self.not_after));
        write!(f, "{path} ({}, valid from {from} to {to})", self.subject)
    }
}

impl fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsClient").field("files", &self.files).finish_non_exhaustive()
    }
}

impl TlsClient {
    /// Reads the files for the first time.
    pub(crate) fn new(files: &Tls) -> Result<Self, TlsFileError> {
        let stamps = stamps(files);
        let identity = Arc::new(TlsIdentity::read(files)?);
        Ok(Self { files: files.clone(), state: Mutex::new(LoadedIdentity { stamps, identity }) })
    }

    /// Returns the name that the backend's certificate must hold: the configured one, otherwise `host`.
    pub(crate) fn server_name<'a>(&'a self, host: &'a str) -> &'a str {
        self.files.server_name.as_deref().unwrap_or(host)
    }

    /// Returns the current identity, reading the files again if they changed. Does blocking file I/O.
    pub(crate) fn current(&self) -> Arc<TlsIdentity> {
        let mut state = lock(&self.state);
        let stamps = stamps(&self.files);
        if stamps != state.stamps {
            state.stamps = stamps;
            match TlsIdentity::read(&self.files) {
                Ok(identity) => {
                    tracing::info!(ca = %self.files.ca.display(), "TLS files changed and were read again");
                    state.identity = Arc::new(identity);
                }
                Err(error) => {
                    tracing::warn!(%error, "TLS files changed but cannot be used; the ones read before stay current");
                }
            }
        }
        Arc::clone(&state.identity)
    }

    /// Describes every certificate in the files as they are now, also if they are not in use.
    pub(crate) fn describe(&self) -> Result<Vec<CertificateInfo>, TlsFileError> {
        let mut described = describe_file(&self.files.ca, CertificateRole::Authority)?;
        if let Some(cert) = &self.files.cert {
            described.extend(describe_file(cert, CertificateRole::Client)?.into_iter().take(1));
        }
        Ok(described)
    }
}

impl TlsIdentity {
    fn read(files: &Tls) -> Result<Self, TlsFileError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(TlsFileError::Setup)?
            .with_root_certificates(read_authorities(&files.ca)?);
        let (mut config, certificate) = match (&files.cert, &files.key) {
            (Some(cert), Some(key)) => {
                let config = builder
                    .with_client_auth_cert(read_certificates(cert)?, read_key(key)?)
                    .map_err(|cause| TlsFileError::Pair { cert: cert.clone(), key: key.clone(), cause })?;
                (config, describe_file(cert, CertificateRole::Client)?.into_iter().next())
            }
            _ => (builder.with_no_client_auth(), None),
        };
        // A resumed session would skip the check of both certificates, and connections are too few to need
        // it.
        config.resumption = Resumption::disabled();
        let with_alpn = |protocol: &[u8]| {
            let mut config = config.clone();
            config.alpn_protocols = vec![protocol.to_vec()];
            Arc::new(config)
        };
        Ok(Self {
            calls: with_alpn(b"h2"),
            streams: with_alpn(b"http/1.1"),
            ca: files.ca.clone(),
            certificate,
        })
    }
}

/// Writes a moment as an RFC 3339 date and time in UTC.
pub(crate) fn utc(moment: SystemTime) -> String {
    time::OffsetDateTime::from(moment)
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_else(|_| "a date out of range".to_owned())
}

fn stamps(files: &Tls) -> Vec<Option<Stamp>> {
    [Some(&files.ca), files.cert.as_ref(), files.key.as_ref()]
        .into_iter()
        .flatten()
        .map(|path| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
        })
        .collect()
}

fn read_authorities(path: &Path) -> Result<RootCertStore, TlsFileError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        let unusable = |_| TlsFileError::Content { path: path.to_owned(), wanted: "certificate" };
        roots.add(certificate).map_err(unusable)?;
    }
    Ok(roots)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| pem_error(path, "certificate", error))?;
    if certificates.is_empty() {
        return Err(TlsFileError::Content { path: path.to_owned(), wanted: "certificate" });
    }
    Ok(certificates)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFileError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| pem_error(path, "private key", error))
}

/// Keeps the text of I/O errors only: the PEM parser's errors quote the file.
fn pem_error(path: &Path, wanted: &'static str, error: pem::Error) -> TlsFileError {
    match error {
        pem::Error::Io(cause) => TlsFileError::Read { path: path.to_owned(), cause },
        _ => TlsFileError::Content { path: path.to_owned(), wanted },
    }
}

fn describe_file(path: &Path, role: CertificateRole) -> Result<Vec<CertificateInfo>, TlsFileError> {
    let unreadable = || TlsFileError::Content { path: path.to_owned(), wanted: "certificate" };
    read_certificates(path)?.iter().map(|der| describe(der, role, path).ok_or_else(unreadable)).collect()
}

/// Describes a certificate; `None` if it cannot be parsed.
pub(crate) fn describe(der: &[u8], role: CertificateRole, path: &Path) -> Option<CertificateInfo> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let validity = certificate.validity();
    Some(CertificateInfo {
        role,
        path: path.to_owned(),
        subject: certificate.subject().to_string(),
        not_before: moment(validity.not_before.timestamp()),
        not_after: moment(validity.not_after.timestamp()),
    })
}

/// Turns seconds since 1970, negative before, into a moment.
fn moment(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let moment =
        if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    moment.unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A log that can be read back.
    #[derive(Clone, Default)]
    struct LogBuffer(Arc<Mutex<Vec<u8>>>);

    impl Write for LogBuffer {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(text)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_broken_new_file_keeps_the_old_identity_and_is_logged_once() {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["node-7".to_owned()]).unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("ca.crt"), made.cert.pem()).unwrap();
        std::fs::write(path("our.crt"), made.cert.pem()).unwrap();
        std::fs::write(path("our.key"), made.signing_key.serialize_pem()).unwrap();
        let (ca, cert, key) = (path("ca.crt"), Some(path("our.crt")), Some(path("our.key")));
        let client = TlsClient::new(&Tls { ca, cert, key, server_name: None }).unwrap();
        let first = client.current();
        assert!(Arc::ptr_eq(&first, &client.current()), "unchanged files are not read again");

        let log = LogBuffer::default();
        let written = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || written.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            std::fs::write(path("our.key"), "-----BEGIN PRIVATE KEY-----\nsEcReT").unwrap();
            for _ in 0..3 {
                assert!(Arc::ptr_eq(&first, &client.current()));
            }
        });
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert_eq!(log.matches("stay current").count(), 1, "{log}");
        assert!(log.contains("our.key") && !log.contains("sEcReT"), "{log}");
        assert!(!format!("{client:?}").contains("sEcReT"));

        std::fs::write(path("our.key"), made.signing_key.serialize_pem()).unwrap();
        assert!(!Arc::ptr_eq(&first, &client.current()), "a repaired file is read");
    }

    #[test]
    fn dates_are_written_in_utc_and_may_lie_before_1970() {
        assert_eq!(utc(moment(1_612_310_400)), "2021-02-03T00:00:00Z");
        assert_eq!(utc(moment(-86_400)), "1969-12-31T00:00:00Z");
    }
}
