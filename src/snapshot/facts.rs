//! What is known of a backend as a whole: its last replies that are not lists, and what follows from others.

use crate::cri::Rpc;

/// One thing that is known of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fact {
    /// The last good reply of this RPC.
    Reply(Rpc),
    /// The backend answered `RuntimeConfig` with `Unimplemented`.
    LacksRuntimeConfig,
    /// Whether the backend streams container events: empty means that it does not.
    StreamsEvents,
    /// The metric descriptors that clients were told.
    AnnouncedDescriptors,
}

impl Fact {
    /// Returns the key under which the fact is saved; a later crimux must find what this one saved.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Reply(rpc) => rpc.name(),
            Self::LacksRuntimeConfig => "RuntimeConfig/Unimplemented",
            Self::StreamsEvents => "GetContainerEvents/streams",
            Self::AnnouncedDescriptors => "ListMetricDescriptors/announced",
        }
    }
}
