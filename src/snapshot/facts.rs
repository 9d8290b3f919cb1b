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
    /// The metric descriptors that clients were told, as a crimux saved them that kept no time with them.
    OldDescriptors,
    /// The metric descriptors that clients were told, and when.
    AnnouncedDescriptors,
    /// The backend answered `ListPodSandboxStats` with `Unimplemented`; empty means that it has it.
    LacksPodStats,
    /// The same of `ListMetricDescriptors`.
    LacksDescriptors,
    /// The same of `ListPodSandboxMetrics`.
    LacksPodMetrics,
    /// Whether clients were told that there are pod stats, and when.
    PodStatsAnswer,
}

impl Fact {
    /// Returns the fact that a backend lacks this RPC; `None` for one that is as old as the API.
    pub(super) fn lack_of(rpc: Rpc) -> Option<Self> {
        match rpc {
            Rpc::ListPodSandboxStats => Some(Self::LacksPodStats),
            Rpc::ListMetricDescriptors => Some(Self::LacksDescriptors),
            Rpc::ListPodSandboxMetrics => Some(Self::LacksPodMetrics),
            Rpc::RuntimeConfig => Some(Self::LacksRuntimeConfig),
            _ => None,
        }
    }

    /// Tells whether the fact is one that clients were told, or that decides what they are told: it is on the
    /// disk at once.
    pub(super) fn is_urgent(self) -> bool {
        !matches!(self, Self::Reply(_))
    }

    /// Returns the key under which the fact is saved; a later crimux must find what this one saved.
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
