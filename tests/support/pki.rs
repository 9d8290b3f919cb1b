//! Certificates made for one test, and the TLS servers that show them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crimux::config::{BackendConfig, Endpoint, ImageHandler, RelayMode, Streaming, Timeouts, Tls};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use time::OffsetDateTime;

/// A certificate and its key, as PEM.
pub(crate) struct Issued {
    pub(crate) cert: String,
    pub(crate) key: String,
}

/// An authority with a name and a key of its own.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Issues a certificate for `names` that is valid now.
    pub(crate) fn issue(&self, common_name: &str, names: &[&str]) -> Issued {
        self.issue_for(common_name, names, (2020, 1, 1), (2090, 1, 1))
    }

    pub(crate) fn issue_for(
        &self,
        common_name: &str,
        names: &[&str],
        from: (i32, u8, u8),
        to: (i32, u8, u8),
    ) -> Issued {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.not_before = date(from);
        params.not_after = date(to);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Issued { cert: cert.pem(), key: key.serialize_pem() }
    }
}

fn date((year, month, day): (i32, u8, u8)) -> OffsetDateTime {
    rcgen::date_time_ymd(year, month, day)
}

/// The files of a backend's `tls` section in a directory of the test.
pub(crate) struct Files {
    pub(crate) dir: tempfile::TempDir,
}

impl Files {
    pub(crate) fn new(ca: &str, client: Option<&Issued>) -> Self {
        let files = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::write(files.path("ca.crt"), ca).unwrap();
        if let Some(client) = client {
            files.rotate(client);
        }
        files
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Puts another certificate and key in place, each by rename.
    pub(crate) fn rotate(&self, client: &Issued) {
        replace(&self.path("client.crt"), &client.cert);
        replace(&self.path("client.key"), &client.key);
    }

    pub(crate) fn tls(&self) -> Tls {
        let there = |path: PathBuf| path.exists().then_some(path);
        Tls {
            ca: self.path("ca.crt"),
            cert: there(self.path("client.crt")),
            key: there(self.path("client.key")),
            server_name: None,
        }
    }
}

pub(crate) fn replace(path: &Path, content: &str) {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, content).unwrap();
    std::fs::rename(fresh, path).unwrap();
}

/// A server's side; `clients` makes it demand a certificate of that authority.
pub(crate) fn server(
    issued: &Issued,
    clients: Option<&Authority>,
    versions: &[&'static SupportedProtocolVersion],
) -> tokio_rustls::TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions).unwrap();
    let builder = match clients {
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
        None => builder.with_no_client_auth(),
    };
    let chain = vec![CertificateDer::from_pem_slice(issued.cert.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config).into()
}

/// A backend with the defaults of a configuration file, and `endpoint`.
pub(crate) fn backend(endpoint: Endpoint, local: bool) -> BackendConfig {
    BackendConfig {
        endpoint,
        socket: None,
        required: false,
        optional: false,
        local,
        timeouts: Timeouts::default(),
        tls: None,
        streaming: Streaming { relay: RelayMode::Auto, address: None, tls: false },
        max_in_flight: 1000,
        max_list: 32 << 20,
        image_handler: ImageHandler::Auto,
    }
}
