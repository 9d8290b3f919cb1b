//! The rows of the method table, in the order of the API.

use super::Kind::{Container, Sandbox};
use super::{Deadline, ImageCall, List, LocalReply, OnReply, OnUnknownId, Route};
use crate::cri::{Rpc, field};

/// What crimux knows about one RPC.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) rpc: Rpc,
    pub(super) route: Route,
    pub(super) on_reply: OnReply,
    pub(super) deadline: Deadline,
}

/// The table. A read or action on an unknown ID is `NotFound`; stopping or removing it is OK.
pub(super) const ROWS: [Row; 43] = [
    Row {
        rpc: Rpc::Version,
        route: Route::Local(LocalReply::Version),
        on_reply: OnReply::None,
        deadline: Deadline::Fast,
    },
    Row {
        rpc: Rpc::RunPodSandbox,
        route: Route::Handler(field!(RunPodSandboxRequest.runtime_handler)),
        on_reply: OnReply::SandboxCreated,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::StopPodSandbox,
        route: Route::Owner(Sandbox, OnUnknownId::Ok),
        on_reply: OnReply::SandboxStopped,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::RemovePodSandbox,
        route: Route::Owner(Sandbox, OnUnknownId::Ok),
        on_reply: OnReply::SandboxRemoved,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::PodSandboxStatus,
        route: Route::Owner(Sandbox, OnUnknownId::NotFound),
        on_reply: OnReply::Status(Sandbox),
        deadline: Deadline::Read,
    },
    Row {
        rpc: Rpc::ListPodSandbox,
        route: Route::FanOut(List::Sandboxes),
        on_reply: OnReply::None,
        deadline: Deadline::List,
    },
    Row {
        rpc: Rpc::StreamPodSandboxes,
        route: Route::StreamList(List::Sandboxes),
        on_reply: OnReply::None,
        deadline: Deadline::List,
    },
    Row {
        rpc: Rpc::CreateContainer,
        route: Route::Owner(Sandbox, OnUnknownId::NotFound),
        on_reply: OnReply::ContainerCreated,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::StartContainer,
        route: Route::Owner(Container, OnUnknownId::NotFound),
        on_reply: OnReply::ContainerStarted,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::StopContainer,
        route: Route::Owner(Container, OnUnknownId::Ok),
        on_reply: OnReply::ContainerStopped,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::RemoveContainer,
        route: Route::Owner(Container, OnUnknownId::Ok),
        on_reply: OnReply::ContainerRemoved,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::ListContainers,
        route: Route::FanOut(List::Containers),
        on_reply: OnReply::None,
        deadline: Deadline::List,
    },
    Row {
        rpc: Rpc::StreamContainers,
        route: Route::StreamList(List::Containers),
        on_reply: OnReply::None,
        deadline: Deadline::List,
    },
    Row {
        rpc: Rpc::ContainerStatus,
        route: Route::Owner(Container, OnUnknownId::NotFound),
        on_reply: OnReply::Status(Container),
        deadline: Deadline::Read,
    },
    Row {
        rpc: Rpc::UpdateContainerResources,
        route: Route::Owner(Container, OnUnknownId::NotFound),
        on_reply: OnReply::Changed,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::ReopenContainerLog,
        route: Route::Owner(Container, OnUnknownId::NotFound),
        on_reply: OnReply::None,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::ExecSync,
        route: Route::Owner(Container, OnUnknownId::NotFound),
        on_reply: OnReply::None,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::Exec,
        route: Route::Owner(Container, OnUnknownId::NotFound),
        on_reply: OnReply::StreamUrl,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::Attach,
        route: Route::Owner(Container, OnUnknownId::NotFound),
        on_reply: OnReply::StreamUrl,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::PortForward,
        route: Route::Owner(Sandbox, OnUnknownId::NotFound),
        on_reply: OnReply::StreamUrl,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::ContainerStats,
        route: Route::Owner(Container, OnUnknownId::NotFound),
        on_reply: OnReply::Stats(List::ContainerStats),
        deadline: Deadline::Read,
    },
    Row {
        rpc: Rpc::ListContainerStats,
        route: Route::FanOut(List::ContainerStats),
        on_reply: OnReply::None,
        deadline: Deadline::Stats,
    },
    Row {
        rpc: Rpc::StreamContainerStats,
        route: Route::StreamList(List::ContainerStats),
        on_reply: OnReply::None,
        deadline: Deadline::Stats,
    },
    Row {
        rpc: Rpc::PodSandboxStats,
        route: Route::Owner(Sandbox, OnUnknownId::NotFound),
        on_reply: OnReply::Stats(List::SandboxStats),
        deadline: Deadline::Read,
    },
    Row {
        rpc: Rpc::ListPodSandboxStats,
        route: Route::FanOut(List::SandboxStats),
        on_reply: OnReply::None,
        deadline: Deadline::Stats,
    },
    Row {
        rpc: Rpc::StreamPodSandboxStats,
        route: Route::StreamList(List::SandboxStats),
        on_reply: OnReply::None,
        deadline: Deadline::Stats,
    },
    Row {
        rpc: Rpc::UpdateRuntimeConfig,
        route: Route::Broadcast,
        on_reply: OnReply::None,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::Status,
        route: Route::Local(LocalReply::Status),
        on_reply: OnReply::None,
        deadline: Deadline::Fast,
    },
    Row {
        rpc: Rpc::CheckpointContainer,
        route: Route::Owner(Container, OnUnknownId::NotFound),
        on_reply: OnReply::None,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::CheckpointPod,
        route: Route::Owner(Sandbox, OnUnknownId::NotFound),
        on_reply: OnReply::None,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::RestorePod,
        route: Route::Handler(field!(RestorePodRequest.runtime_handler)),
        on_reply: OnReply::PodRestored,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::GetContainerEvents,
        route: Route::Events,
        on_reply: OnReply::None,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::ListMetricDescriptors,
        route: Route::FanOut(List::MetricDescriptors),
        on_reply: OnReply::None,
        deadline: Deadline::Stats,
    },
    Row {
        rpc: Rpc::ListPodSandboxMetrics,
        route: Route::FanOut(List::SandboxMetrics),
        on_reply: OnReply::None,
        deadline: Deadline::Stats,
    },
    Row {
        rpc: Rpc::StreamPodSandboxMetrics,
        route: Route::StreamList(List::SandboxMetrics),
        on_reply: OnReply::None,
        deadline: Deadline::Stats,
    },
    Row {
        rpc: Rpc::RuntimeConfig,
        route: Route::Local(LocalReply::RuntimeConfig),
        on_reply: OnReply::None,
        deadline: Deadline::Fast,
    },
    Row {
        rpc: Rpc::UpdatePodSandboxResources,
        route: Route::Owner(Sandbox, OnUnknownId::NotFound),
        on_reply: OnReply::Changed,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::ListImages,
        route: Route::FanOut(List::Images),
        on_reply: OnReply::None,
        deadline: Deadline::List,
    },
    Row {
        rpc: Rpc::StreamImages,
        route: Route::StreamList(List::Images),
        on_reply: OnReply::None,
        deadline: Deadline::List,
    },
    Row {
        rpc: Rpc::ImageStatus,
        route: Route::Image(ImageCall::Status),
        on_reply: OnReply::None,
        deadline: Deadline::Read,
    },
    Row {
        rpc: Rpc::PullImage,
        route: Route::Image(ImageCall::Pull),
        on_reply: OnReply::None,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::RemoveImage,
        route: Route::Image(ImageCall::Remove),
        on_reply: OnReply::None,
        deadline: Deadline::Caller,
    },
    Row {
        rpc: Rpc::ImageFsInfo,
        route: Route::FanOut(List::Filesystems),
        on_reply: OnReply::None,
        deadline: Deadline::Fast,
    },
];
