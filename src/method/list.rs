//! The replies that are lists, and what each may lack.

use super::{Method, Rpc, row};

/// The replies that can be merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum List {
    /// `PodSandbox` items.
    Sandboxes,
    /// `Container` items.
    Containers,
    /// `ContainerStats` items.
    ContainerStats,
    /// `PodSandboxStats` items.
    SandboxStats,
    /// `Image` items, merged by ID.
    Images,
    /// `FilesystemUsage` items, ordered.
    Filesystems,
    /// `MetricDescriptor` items, merged by name.
    MetricDescriptors,
    /// `PodSandboxMetrics` items, with reordered labels.
    SandboxMetrics,
}

impl List {
    /// Every list.
    pub const ALL: [Self; 8] = [
        Self::Sandboxes,
        Self::Containers,
        Self::ContainerStats,
        Self::SandboxStats,
        Self::Images,
        Self::Filesystems,
        Self::MetricDescriptors,
        Self::SandboxMetrics,
    ];

    /// Returns the unary method that lists these items.
    pub fn unary(self) -> &'static Method {
        row(match self {
            Self::Sandboxes => Rpc::ListPodSandbox,
            Self::Containers => Rpc::ListContainers,
            Self::ContainerStats => Rpc::ListContainerStats,
            Self::SandboxStats => Rpc::ListPodSandboxStats,
            Self::Images => Rpc::ListImages,
            Self::Filesystems => Rpc::ImageFsInfo,
            Self::MetricDescriptors => Rpc::ListMetricDescriptors,
            Self::SandboxMetrics => Rpc::ListPodSandboxMetrics,
        })
    }
    /// Tells whether an incomplete list is worse than an error: kubelet acts on missing items.
    pub fn must_be_complete(self) -> bool {
        matches!(self, Self::Sandboxes | Self::Containers | Self::Images)
    }

    /// Tells whether the list is of measured values: stats, metrics and their descriptors.
    pub fn is_measured(self) -> bool {
        matches!(
            self,
            Self::ContainerStats | Self::SandboxStats | Self::SandboxMetrics | Self::MetricDescriptors
        )
    }

    /// Tells whether a runtime may lack this list. Every runtime has the others; a backend that answers them
    /// with `Unimplemented` is faulty.
    pub fn is_optional(self) -> bool {
        matches!(self, Self::SandboxStats | Self::MetricDescriptors | Self::SandboxMetrics)
    }
}
