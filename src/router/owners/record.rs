//! What is remembered of a sandbox beside its owner.

use std::hash::{Hash, Hasher};

/// What is remembered of a sandbox beside its owner.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SandboxRecord {
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// The backend's name for the handler.
    pub backend_handler: Box<str>,
    /// Annotation `kubernetes.io/config.seen`: ties kubelet's image calls to a sandbox.
    pub config_seen: Box<str>,
    /// Digest of the other annotations without `kubernetes.io/config.*`.
    pub annotations: u64,
    /// `created_at` in nanoseconds: the newest sandbox of a pod decides.
    pub created_at: i64,
    /// Whether the sandbox was ready when a list, an event or a call last showed it.
    pub ready: bool,
}

impl SandboxRecord {
    /// Makes it from what a request or a list says of a sandbox; `created_at` and `ready` are not set.
    pub fn new<'a>(
        uid: &str,
        backend_handler: &str,
        annotations: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let annotations = Annotations::read(annotations);
        Self {
            uid: uid.into(),
            backend_handler: backend_handler.into(),
            config_seen: annotations.config_seen.into(),
            annotations: annotations.digest,
            created_at: 0,
            ready: false,
        }
    }
}

/// The part of a pod's annotations that ties an image call to its sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Annotations<'a> {
    /// `kubernetes.io/config.seen`: set once for each pod by each kubelet process.
    pub config_seen: &'a str,
    /// Digest of all others but `kubernetes.io/config.*`; it does not depend on their order. Zero if none.
    pub digest: u64,
}

impl<'a> Annotations<'a> {
    /// Reads the entries of an annotation map.
    pub fn read(entries: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        entries.fold(Self::default(), |read, (key, value)| match key {
            "kubernetes.io/config.seen" => Self { config_seen: value, ..read },
            _ if key.starts_with("kubernetes.io/config.") => read,
            _ => Self { digest: read.digest.wrapping_add(entry_digest(key, value)), ..read },
        })
    }
}

fn entry_digest(key: &str, value: &str) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    (key, value).hash(&mut hasher);
    hasher.finish() | 1
}
