//! Facts about a backend as a whole: its last replies that are not lists, and its abilities.

use crate::cri::Rpc;

/// A kind of fact; each has one saved value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fact {
    /// The last OK reply to this RPC.
    Reply(Rpc),
    /// The backend answered `RuntimeConfig` with `Unimplemented`.
    LacksRuntimeConfig,
    /// Whether the backend streams container events; empty means no.
    StreamsEvents,
    /// The announced metric descriptors in the format of an older crimux, without a time.
    OldDescriptors,
    /// The metric descriptors last announced to clients, and when.
    AnnouncedDescriptors,
    /// The backend answered `ListPodSandboxStats` with `Unimplemented`; empty means that it has the RPC.
    LacksPodStats,
    /// The backend answered `ListMetricDescriptors` with `Unimplemented`.
    LacksDescriptors,
    /// The backend answered `ListPodSandboxMetrics` with `Unimplemented`.
    LacksPodMetrics,
    /// The last answer to kubelet's question whether pod stats exist, and when.
    PodStatsAnswer,
}

impl Fact {
    /// Returns the fact that a backend lacks this RPC; `None` for the RPCs that every runtime has.
    pub(super) fn lack_of(rpc: Rpc) -> Option<Self> {
        match rpc {
            Rpc::ListPodSandboxStats => Some(Self::LacksPodStats),
            Rpc::ListMetricDescriptors => Some(Self::LacksDescriptors),
            Rpc::ListPodSandboxMetrics => Some(Self::LacksPodMetrics),
            Rpc::RuntimeConfig => Some(Self::LacksRuntimeConfig),
            _ => None,
        }
    }

    /// Tells whether the fact is written to the journal at once, because a reply to a client depends on it.
    pub(super) fn is_urgent(self) -> bool {
        !matches!(self, Self::Reply(_))
    }

    /// Returns the key of the fact in the snapshot. Keys never change: a later crimux reads them.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Reply(rpc) => rpc.name(),
            Self::LacksRuntimeConfig => "RuntimeConfig/Unimplemented",
            Self::StreamsEvents => "GetContainerEvents/streams",
            Self::OldDescriptors => "ListMetricDescriptors/announced",
            Self::AnnouncedDescriptors => "ListMetricDescriptors/announcement",
            Self::LacksPodStats => "ListPodSandboxStats/Unimplemented",
            Self::LacksDescriptors => "ListMetricDescriptors/Unimplemented",
            Self::LacksPodMetrics => "ListPodSandboxMetrics/Unimplemented",
            Self::PodStatsAnswer => "PodSandboxStats/answer",
        }
    }
}
