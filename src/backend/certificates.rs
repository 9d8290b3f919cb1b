//! The certificates of a backend's connection, with their dates, for the metric that warns before they end.
//!
//! The files are read again at most once a minute; what the backend showed is that of the last handshake.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use crate::backend::Backend;
use crate::backend::tls::{CertificateInfo, CertificateRole};

use crate::mutex::lock;

/// How long what was read of the files stands.
const READ_EVERY: Duration = Duration::from_secs(60);

/// What is known of a backend's certificates.
#[derive(Debug, Default)]
pub(super) struct Certificates(Mutex<KnownCertificates>);

#[derive(Debug, Default)]
struct KnownCertificates {
    shown: Option<CertificateInfo>,
    files: Vec<CertificateInfo>,
    read: Option<Instant>,
}

impl Certificates {
    /// Records what the backend has shown in a handshake; `None` without TLS.
    pub(super) fn set_shown(&self, shown: Option<CertificateInfo>) {
        self.lock().shown = shown;
    }

    fn lock(&self) -> MutexGuard<'_, KnownCertificates> {
        lock(&self.0)
    }
}

impl Backend {
    /// Returns when the connection's certificates of each role end. Of a chain, and of what was shown, the
    /// first end counts; of the authorities the last, because any of them may have signed.
    pub fn certificate_ends(&self) -> Vec<(CertificateRole, SystemTime)> {
        let mut known = self.certificates.lock();
        if known.read.is_none_or(|read| read.elapsed() >= READ_EVERY) {
            // Files that cannot be read are the connection's error; what they held stands until then.
            if let Some(files) = self.connector().ok().and_then(|connector| connector.describe_tls().ok()) {
                known.files = files;
            }
            known.read = Some(Instant::now());
        }
        let ends = |role| {
            let all = known.files.iter().chain(&known.shown);
            let ends = all.filter(|certificate| certificate.role == role).map(|it| it.not_after);
            if role == CertificateRole::Authority { ends.max() } else { ends.min() }
        };
        let roles = [CertificateRole::Authority, CertificateRole::Client, CertificateRole::Backend];
        roles.into_iter().filter_map(|role| Some((role, ends(role)?))).collect()
    }
}
