//! From method and request bytes to reply bytes: the one place that knows every RPC of the CRI.
//!
//! Reads come from kept replies while nothing has changed. Decoding happens here and not before, so that what
//! was recorded is what was received.

use bytes::{Bytes, BytesMut};
use prost::Message;
use tonic::Status;

use super::abilities::ApiVersions;
use super::containers::exec_sync;
use super::frame;
use super::reply::Body;
use super::state::State;
use super::streaming::Streams;
use crate::cri;

/// RPCs that change nothing and whose replies may be kept. `Version` is not among them: it names the API it
/// came over.
const READS: [&str; 21] = [
    "Status",
    "RuntimeConfig",
    "PodSandboxStatus",
    "ListPodSandbox",
    "ContainerStatus",
    "ListContainers",
    "ContainerStats",
    "ListContainerStats",
    "PodSandboxStats",
    "ListPodSandboxStats",
    "ListMetricDescriptors",
    "ListPodSandboxMetrics",
    "ListImages",
    "ImageStatus",
    "ImageFsInfo",
    "StreamPodSandboxes",
    "StreamContainers",
    "StreamContainerStats",
    "StreamPodSandboxStats",
    "StreamPodSandboxMetrics",
    "StreamImages",
];

/// Further RPCs that leave lists and statuses as they are.
const HARMLESS: [&str; 7] =
    ["Version", "ExecSync", "Exec", "Attach", "PortForward", "ReopenContainerLog", "GetContainerEvents"];

/// RPCs that `runtime.v1alpha2` never had: it ended with cri-api 0.25, without two of that release.
const NOT_IN_V1ALPHA2: [&str; 14] = [
    "CheckpointContainer",
    "GetContainerEvents",
    "ListMetricDescriptors",
    "ListPodSandboxMetrics",
    "RuntimeConfig",
    "UpdatePodSandboxResources",
    "CheckpointPod",
    "RestorePod",
    "StreamPodSandboxes",
    "StreamContainers",
    "StreamContainerStats",
    "StreamPodSandboxStats",
    "StreamPodSandboxMetrics",
    "StreamImages",
];

/// Answers a call that no fault and no override has taken.
pub(crate) fn answer(
    state: &mut State,
    streams: &Streams,
    path: &str,
    message: &Bytes,
) -> Result<Body, Status> {
    let (api, service, method) = split(state, path)?;
    let read = READS.iter().find(|read| **read == method);
    if let Some(frames) = read.and_then(|read| state.kept(read, message)) {
        return Ok(Body::Whole(frames));
    }
    if read.is_none() && !HARMLESS.contains(&method) {
        state.changed();
    }
    let body = match service {
        "ImageService" => images(state, method, message),
        _ => runtime(state, streams, api, method, message),
    };
    let body = body.unwrap_or_else(|| {
        Err(Status::unimplemented(format!("unknown method {method} for service runtime.{api}.{service}")))
    })?;
    if let (Some(read), Body::Whole(frames)) = (read, &body) {
        state.keep(read, message, frames);
    }
    Ok(body)
}

/// Splits a path into API version, service and method, and refuses what this runtime does not serve.
fn split<'a>(state: &State, path: &'a str) -> Result<(&'a str, &'a str, &'a str), Status> {
    let malformed = || Status::unimplemented(format!("malformed method name: {path:?}"));
    let (full_service, method) =
        path.strip_prefix('/').and_then(|path| path.split_once('/')).ok_or_else(malformed)?;
    let unknown = || Status::unimplemented(format!("unknown service {full_service}"));
    let (api, service) =
        full_service.strip_prefix("runtime.").and_then(|rest| rest.split_once('.')).ok_or_else(unknown)?;
    let served = match api {
        "v1" => state.abilities.api != ApiVersions::V1alpha2,
        "v1alpha2" => state.abilities.api != ApiVersions::V1,
        _ => false,
    };
    if !served || !["RuntimeService", "ImageService"].contains(&service) {
        return Err(unknown());
    }
    if api == "v1alpha2" && NOT_IN_V1ALPHA2.contains(&method) {
        return Err(Status::unimplemented(format!("unknown method {method} for service {full_service}")));
    }
    Ok((api, service, method))
}

type Answer = Option<Result<Body, Status>>;

fn images(state: &mut State, method: &str, message: &Bytes) -> Answer {
    Some(match method {
        "ListImages" => unary(message, |request: cri::ListImagesRequest| {
            Ok(cri::ListImagesResponse { images: state.list_images(request.filter.as_ref()) })
        }),
        "StreamImages" => streamed(state, message, |request: cri::StreamImagesRequest| {
            Ok(state.list_images(request.filter.as_ref()))
        }),
        "ImageStatus" => unary(message, |request| Ok(state.image_status(&request))),
        "PullImage" => unary(message, |request| state.pull_image(request)),
        "RemoveImage" => unary(message, |request: cri::RemoveImageRequest| {
            state.remove_image(&request.image.unwrap_or_default().image);
            Ok(cri::RemoveImageResponse {})
        }),
        "ImageFsInfo" => unary(message, |_: cri::ImageFsInfoRequest| Ok(state.image_fs_info())),
        _ => return None,
    })
}

fn runtime(state: &mut State, streams: &Streams, api: &str, method: &str, message: &Bytes) -> Answer {
    sandboxes(state, method, message)
        .or_else(|| containers(state, method, message))
        .or_else(|| usage(state, method, message))
        .or_else(|| node(state, api, method, message))
        .or_else(|| urls(state, streams, method, message))
}

fn sandboxes(state: &mut State, method: &str, message: &Bytes) -> Answer {
    Some(match method {
        "RunPodSandbox" => unary(message, |request: cri::RunPodSandboxRequest| {
            let id = state.run_sandbox(request.config.unwrap_or_default(), &request.runtime_handler)?;
            Ok(cri::RunPodSandboxResponse { pod_sandbox_id: id })
        }),
        "StopPodSandbox" => unary(message, |request: cri::StopPodSandboxRequest| {
            state.stop_sandbox(&request.pod_sandbox_id).map(|()| cri::StopPodSandboxResponse {})
        }),
        "RemovePodSandbox" => unary(message, |request: cri::RemovePodSandboxRequest| {
            state.remove_sandbox(&request.pod_sandbox_id).map(|()| cri::RemovePodSandboxResponse {})
        }),
        "PodSandboxStatus" => unary(message, |request| state.sandbox_status(&request)),
        "ListPodSandbox" => unary(message, |request: cri::ListPodSandboxRequest| {
            Ok(cri::ListPodSandboxResponse { items: state.list_sandboxes(request.filter.as_ref()) })
        }),
        "StreamPodSandboxes" => streamed(state, message, |request: cri::StreamPodSandboxesRequest| {
            Ok(state.list_sandboxes(request.filter.as_ref()))
        }),
        "CheckpointPod" => {
            unary(message, |request| state.checkpoint_pod(request).map(|()| cri::CheckpointPodResponse {}))
        }
        "RestorePod" => unary(message, |request| state.restore_pod(request)),
        "UpdatePodSandboxResources" => unary(message, |request| {
            state.update_pod_resources(request).map(|()| cri::UpdatePodSandboxResourcesResponse {})
        }),
        _ => return None,
    })
}

fn containers(state: &mut State, method: &str, message: &Bytes) -> Answer {
    Some(match method {
        "CreateContainer" => unary(message, |request: cri::CreateContainerRequest| {
            let config = request.config.unwrap_or_default();
            let container_id = state.create_container(&request.pod_sandbox_id, config)?;
            Ok(cri::CreateContainerResponse { container_id })
        }),
        "StartContainer" => unary(message, |request: cri::StartContainerRequest| {
            state.start_container(&request.container_id).map(|()| cri::StartContainerResponse {})
        }),
        "StopContainer" => {
            unary(message, |request| state.stop_container(&request).map(|()| cri::StopContainerResponse {}))
        }
        "RemoveContainer" => unary(message, |request: cri::RemoveContainerRequest| {
            state.remove_container(&request.container_id).map(|()| cri::RemoveContainerResponse {})
        }),
        "ListContainers" => unary(message, |request: cri::ListContainersRequest| {
            Ok(cri::ListContainersResponse { containers: state.list_containers(request.filter.as_ref()) })
        }),
        "StreamContainers" => streamed(state, message, |request: cri::StreamContainersRequest| {
            Ok(state.list_containers(request.filter.as_ref()))
        }),
        "ContainerStatus" => unary(message, |request| state.container_status(&request)),
        "UpdateContainerResources" => unary(message, |request| {
            state.update_resources(request).map(|()| cri::UpdateContainerResourcesResponse {})
        }),
        "ReopenContainerLog" => unary(message, |request: cri::ReopenContainerLogRequest| {
            state.reopen_log(&request.container_id).map(|()| cri::ReopenContainerLogResponse {})
        }),
        "ExecSync" => unary(message, |request: cri::ExecSyncRequest| {
            state.running_container(&request.container_id).map(|_| exec_sync(&request.cmd))
        }),
        "CheckpointContainer" => unary(message, |request| {
            state.checkpoint_container(request).map(|()| cri::CheckpointContainerResponse {})
        }),
        _ => return None,
    })
}

fn usage(state: &State, method: &str, message: &Bytes) -> Answer {
    Some(match method {
        "ContainerStats" => unary(message, |request| state.container_stats(&request)),
        "ListContainerStats" => unary(message, |request: cri::ListContainerStatsRequest| {
            Ok(cri::ListContainerStatsResponse { stats: state.list_container_stats(request.filter.as_ref()) })
        }),
        "StreamContainerStats" => streamed(state, message, |request: cri::StreamContainerStatsRequest| {
            Ok(state.list_container_stats(request.filter.as_ref()))
        }),
        "PodSandboxStats" => unary(message, |request| state.pod_sandbox_stats(&request)),
        "ListPodSandboxStats" => unary(message, |request: cri::ListPodSandboxStatsRequest| {
            let listed = state.list_pod_sandbox_stats(request.filter.as_ref())?;
            Ok(cri::ListPodSandboxStatsResponse { stats: listed })
        }),
        "StreamPodSandboxStats" => streamed(state, message, |request: cri::StreamPodSandboxStatsRequest| {
            state.list_pod_sandbox_stats(request.filter.as_ref())
        }),
        "ListMetricDescriptors" => unary(message, |_: cri::ListMetricDescriptorsRequest| {
            Ok(cri::ListMetricDescriptorsResponse { descriptors: state.metric_descriptors() })
        }),
        "ListPodSandboxMetrics" => unary(message, |_: cri::ListPodSandboxMetricsRequest| {
            Ok(cri::ListPodSandboxMetricsResponse { pod_metrics: state.pod_metrics() })
        }),
        "StreamPodSandboxMetrics" => {
            streamed(state, message, |_: cri::StreamPodSandboxMetricsRequest| Ok(state.pod_metrics()))
        }
        _ => return None,
    })
}

fn node(state: &mut State, api: &str, method: &str, message: &Bytes) -> Answer {
    Some(match method {
        "Version" => unary(message, |_: cri::VersionRequest| Ok(state.version(api))),
        "Status" => unary(message, |request| Ok(state.status(request))),
        "RuntimeConfig" => unary(message, |_: cri::RuntimeConfigRequest| state.runtime_config()),
        "UpdateRuntimeConfig" => unary(message, |request| {
            state.update_runtime_config(request);
            Ok(cri::UpdateRuntimeConfigResponse {})
        }),
        "GetContainerEvents" => state.subscribe(),
        _ => return None,
    })
}

fn urls(state: &State, streams: &Streams, method: &str, message: &Bytes) -> Answer {
    Some(match method {
        "Exec" => unary(message, |request: cri::ExecRequest| {
            state.running_container(&request.container_id)?;
            Ok(cri::ExecResponse { url: streams.mint(&state.abilities.stream_url, "exec") })
        }),
        "Attach" => unary(message, |request: cri::AttachRequest| {
            state.running_container(&request.container_id)?;
            Ok(cri::AttachResponse { url: streams.mint(&state.abilities.stream_url, "attach") })
        }),
        "PortForward" => unary(message, |request: cri::PortForwardRequest| {
            state.known_sandbox(&request.pod_sandbox_id)?;
            Ok(cri::PortForwardResponse { url: streams.mint(&state.abilities.stream_url, "portforward") })
        }),
        _ => return None,
    })
}

fn unary<Q, R>(message: &Bytes, work: impl FnOnce(Q) -> Result<R, Status>) -> Result<Body, Status>
where
    Q: Message + Default,
    R: Message,
{
    Ok(Body::Whole(frame::encode(&work(decode(message)?)?)))
}

/// Answers a streaming list: every list message is one repeated field with number 1 (KEP-5825).
fn streamed<Q, I>(
    state: &State,
    message: &Bytes,
    work: impl FnOnce(Q) -> Result<Vec<I>, Status>,
) -> Result<Body, Status>
where
    Q: Message + Default,
    I: Message,
{
    if !state.abilities.stream_lists {
        return Err(Status::unimplemented("streaming lists are not implemented"));
    }
    let items = work(decode(message)?)?;
    let batches = items.chunks(state.abilities.stream_batch.max(1)).map(|batch| {
        let mut encoded = BytesMut::new();
        for item in batch {
            prost::encoding::message::encode(1, item, &mut encoded);
        }
        encoded.freeze()
    });
    Ok(Body::Whole(frame::join(&batches.collect::<Vec<_>>())))
}

fn decode<Q: Message + Default>(message: &Bytes) -> Result<Q, Status> {
    Q::decode(message.clone())
        .map_err(|error| Status::internal(format!("grpc: error unmarshalling request: {error}")))
}
