//! The rows of the method table, in the order of the API.

use super::Kind::{Container, Sandbox};
use super::{Deadline, Effect, ImageCall, List, LocalReply, OnUnknownId, Route};
use crate::cri::{Rpc, field};

/// What crimux knows about one RPC.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) rpc: Rpc,
    pub(super) route: Route,
    pub(super) effect: Effect,
    pub(super) deadline: Deadline,
}

/// The table. A read or action on an unknown ID is `NotFound`; stopping or removing it is OK.
pub(super) const ROWS: [Row; 43] = [
    Row {
        rpc: Rpc::Version,
        route: Route::Local(LocalReply::Version),
        effect: Effect::None,
        deadline: Deadline::Fast,
    },
    Row {
        rpc: Rpc::RunPodSandbox,
        route: Route::Handler(field!(RunPodSandboxRequest.runtime_handler)),
        effect: Effect::SandboxCreated,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::StopPodSandbox,
        route: Route::Owner(Sandbox, OnUnknownId::Ok),
        effect: Effect::SandboxStopped,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::RemovePodSandbox,
        route: Route::Owner(Sandbox, OnUnknownId::Ok),
        effect: Effect::SandboxRemoved,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::PodSandboxStatus,
        route: Route::Owner(Sandbox, OnUnknownId::NotFound),
        effect: Effect::Status(Sandbox),
        deadline: Deadline::Read,
    },
    Row {
        rpc: Rpc::ListPodSandbox,
        route: Route::FanOut(List::Sandboxes),
        effect: Effect::None,
        deadline: Deadline::List,
    },
    Row {
        rpc: Rpc::StreamPodSandboxes,
        route: Route::StreamList(List::Sandboxes),
        effect: Effect::None,
        deadline: Deadline::List,
    },
    Row {
        rpc: Rpc::CreateContainer,
        route: Route::Owner(Sandbox, OnUnknownId::NotFound),
        effect: Effect::ContainerCreated,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::StartContainer,
        route: Route::Owner(Container, OnUnknownId::NotFound),
        effect: Effect::ContainerStarted,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::StopContainer,
        route: Route::Owner(Container, OnUnknownId::Ok),
        effect: Effect::ContainerStopped,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::RemoveContainer,
        route: Route::Owner(Container, OnUnknownId::Ok),
        effect: Effect::ContainerRemoved,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::ListContainers,
        route: Route::FanOut(List::Containers),
        effect: Effect::None,
        deadline: Deadline::List,
    },
    Row {
        rpc: Rpc::StreamContainers,
        route: Route::StreamList(List::Containers),
        effect: Effect::None,
        deadline: Deadline::List,
    },
    Row {
        rpc: Rpc::ContainerStatus,
        route: Route::Owner(Container, OnUnknownId::NotFound),
        effect: Effect::Status(Container),
        deadline: Deadline::Read,
    },
    Row {
        rpc: Rpc::UpdateContainerResources,
        route: Route::Owner(Container, OnUnknownId::NotFound),
        effect: Effect::Changed,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::ReopenContainerLog,
        route: Route::Owner(Container, OnUnknownId::NotFound),
        effect: Effect::None,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::ExecSync,
        route: Route::Owner(Container, OnUnknownId::NotFound),
        effect: Effect::None,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::Exec,
        route: Route::Owner(Container, OnUnknownId::NotFound),
        effect: Effect::StreamUrl,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::Attach,
        route: Route::Owner(Container, OnUnknownId::NotFound),
        effect: Effect::StreamUrl,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::PortForward,
        route: Route::Owner(Sandbox, OnUnknownId::NotFound),
        effect: Effect::StreamUrl,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::ContainerStats,
        route: Route::Owner(Container, OnUnknownId::NotFound),
        effect: Effect::Stats(List::ContainerStats),
        deadline: Deadline::Read,
    },
    Row {
        rpc: Rpc::ListContainerStats,
        route: Route::FanOut(List::ContainerStats),
        effect: Effect::None,
        deadline: Deadline::Stats,
    },
    Row {
        rpc: Rpc::StreamContainerStats,
        route: Route::StreamList(List::ContainerStats),
        effect: Effect::None,
        deadline: Deadline::Stats,
    },
    Row {
        rpc: Rpc::PodSandboxStats,
        route: Route::Owner(Sandbox, OnUnknownId::NotFound),
        effect: Effect::Stats(List::SandboxStats),
        deadline: Deadline::Read,
    },
    Row {
        rpc: Rpc::ListPodSandboxStats,
        route: Route::FanOut(List::SandboxStats),
        effect: Effect::None,
        deadline: Deadline::Stats,
    },
    Row {
        rpc: Rpc::StreamPodSandboxStats,
        route: Route::StreamList(List::SandboxStats),
        effect: Effect::None,
        deadline: Deadline::Stats,
    },
    Row {
        rpc: Rpc::UpdateRuntimeConfig,
        route: Route::Broadcast,
        effect: Effect::None,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::Status,
        route: Route::Local(LocalReply::Status),
        effect: Effect::None,
        deadline: Deadline::Fast,
    },
    Row {
        rpc: Rpc::CheckpointContainer,
        route: Route::Owner(Container, OnUnknownId::NotFound),
        effect: Effect::None,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::CheckpointPod,
        route: Route::Owner(Sandbox, OnUnknownId::NotFound),
        effect: Effect::None,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::RestorePod,
        route: Route::Handler(field!(RestorePodRequest.runtime_handler)),
        effect: Effect::PodRestored,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::GetContainerEvents,
        route: Route::Events,
        effect: Effect::None,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::ListMetricDescriptors,
        route: Route::FanOut(List::MetricDescriptors),
        effect: Effect::None,
        deadline: Deadline::Stats,
    },
    Row {
        rpc: Rpc::ListPodSandboxMetrics,
        route: Route::FanOut(List::SandboxMetrics),
        effect: Effect::None,
        deadline: Deadline::Stats,
    },
    Row {
        rpc: Rpc::StreamPodSandboxMetrics,
        route: Route::StreamList(List::SandboxMetrics),
        effect: Effect::None,
        deadline: Deadline::Stats,
    },
    Row {
        rpc: Rpc::RuntimeConfig,
        route: Route::Local(LocalReply::RuntimeConfig),
        effect: Effect::None,
        deadline: Deadline::Fast,
    },
    Row {
        rpc: Rpc::UpdatePodSandboxResources,
        route: Route::Owner(Sandbox, OnUnknownId::NotFound),
        effect: Effect::Changed,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::ListImages,
        route: Route::FanOut(List::Images),
        effect: Effect::None,
        deadline: Deadline::List,
    },
    Row {
        rpc: Rpc::StreamImages,
        route: Route::StreamList(List::Images),
        effect: Effect::None,
        deadline: Deadline::List,
    },
    Row {
        rpc: Rpc::ImageStatus,
        route: Route::Image(ImageCall::Status),
        effect: Effect::None,
        deadline: Deadline::Read,
    },
    Row {
        rpc: Rpc::PullImage,
        route: Route::Image(ImageCall::Pull),
        effect: Effect::None,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::RemoveImage,
        route: Route::Image(ImageCall::Remove),
        effect: Effect::None,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::ImageFsInfo,
        route: Route::FanOut(List::Filesystems),
        effect: Effect::None,
        deadline: Deadline::Fast,
    },
];
