//! Reads a request that creates a sandbox: `RunPodSandbox` or `RestorePod`.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::codec::Message;
use crate::cri::{field, field_path};
use crate::error::Error;
use crate::method::{Effect, Method};
use crate::router::{Annotations, SandboxRecord};
use crate::wire::{self, WireError};

/// A request that creates a sandbox.
#[derive(Debug, Clone, Copy)]
pub(super) struct CreationRequest<'a> {
    pub(super) method: &'static Method,
    /// The field of the handler, as the method's row has it.
    pub(super) handler_field: u32,
    pub(super) encoded: &'a [u8],
}

/// The pod in a creating request, as log lines name it; empty where a field is not set.
#[derive(Debug, Clone, Copy)]
pub(super) struct PodName<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) uid: &'a str,
}

/// The name of a pod, of which the last-known state tells; empty where it does not.
#[derive(Debug, Clone, Default)]
pub(super) struct OwnedPodName {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
}

impl<'a> CreationRequest<'a> {
    /// Returns the handler; empty for a pod without a `RuntimeClass`.
    ///
    /// # Errors
    /// If the request cannot be read.
    pub(super) fn handler(self) -> Result<&'a str, WireError> {
        wire::peek_str(self.encoded, &[self.handler_field])
    }

    /// Returns the request with another handler.
    pub(super) fn with_handler(self, handler: &str) -> Message {
        Message::new(&wire::append_str(self.encoded, &[self.handler_field], handler))
    }

    /// Returns the uid of the pod.
    ///
    /// # Errors
    /// If the request cannot be read.
    pub(super) fn uid(self) -> Result<&'a str, WireError> {
        let [metadata, uid] = field_path!(PodSandboxConfig.metadata.uid);
        wire::peek_str(self.encoded, &[self.config(), metadata, uid])
    }

    /// Returns the name of the pod.
    pub(super) fn pod_name(self) -> PodName<'a> {
        let peek = |path: [u32; 2]| {
            let [metadata, field] = path;
            wire::peek_str(self.encoded, &[self.config(), metadata, field]).unwrap_or_default()
        };
        PodName {
            namespace: peek(field_path!(PodSandboxConfig.metadata.namespace)),
            name: peek(field_path!(PodSandboxConfig.metadata.name)),
            uid: peek(field_path!(PodSandboxConfig.metadata.uid)),
        }
    }

    /// Returns the `config.seen` of the pod; empty if it has none.
    pub(super) fn config_seen(self) -> &'a str {
        Annotations::read(self.annotations()).config_seen
    }

    /// Returns what the owners' map keeps of the sandbox.
    pub(super) fn sandbox_record(self) -> Result<SandboxRecord, Error> {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let created = i64::try_from(created.as_nanos()).unwrap_or(i64::MAX);
        let record = SandboxRecord::new(self.uid()?, self.handler()?, self.annotations());
        Ok(SandboxRecord { created_at: created, ready: true, ..record })
    }

    fn annotations(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        wire::items(self.encoded, self.config())
            .flatten()
            .flat_map(|config| wire::items(config, field!(PodSandboxConfig.annotations)).flatten())
            .filter_map(|entry| wire::map_entry(entry).ok())
    }

    /// Returns the field of the request that holds the pod's `PodSandboxConfig`.
    fn config(self) -> u32 {
        match self.method.effect {
            Effect::PodRestored => field!(RestorePodRequest.config),
            _ => field!(RunPodSandboxRequest.config),
        }
    }
}
