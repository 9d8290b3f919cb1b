//! Handlers that do not exist, IDs that nobody knows, IDs that are only begun.

use testkit::bed::pods::Pods;
use testkit::cri::{
    ContainerState, ContainerStatsRequest, PodSandboxState, RemoveContainerRequest, RemovePodSandboxRequest,
    StopContainerRequest, StopPodSandboxRequest,
};
use tonic::Code;

use super::world::{self, HANDLERS, IDLE, container_state, sandbox_state};

#[tokio::test]
async fn an_unknown_handler_is_refused_and_the_known_ones_are_named() {
    let Some(bed) = world::bed() else { return };
    let crimux = world::crimux(&bed, &HANDLERS).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    let config = pods.config("lost");
    let refusal = pods.sandbox(&config, "kata").await.unwrap_err();
    for name in ["kata", "runc", "crun", "gvisor"] {
        assert!(refusal.message().contains(name), "{refusal:?} does not name {name}");
    }
    assert_eq!(pods.list().await.unwrap(), [], "a refused sandbox exists");
}

#[tokio::test]
async fn what_nobody_knows_can_be_stopped_and_removed_but_not_read() {
    let Some(bed) = world::bed() else { return };
    let crimux = world::crimux(&bed, &HANDLERS).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    let unknown = "0123456789abcdef".repeat(4);

    // kubelet's garbage collection repeats these calls and takes any error for a failure.
    stop_and_remove(&mut pods, &unknown).await.unwrap();
    assert_eq!(sandbox_state(&mut pods, &unknown).await, Err(Code::NotFound));
    assert_eq!(container_state(&mut pods, &unknown).await, Err(Code::NotFound));
    let stats = ContainerStatsRequest { container_id: unknown.clone() };
    assert_eq!(pods.runtime.container_stats(stats).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(pods.exec(&unknown, &["true"]).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn an_empty_id_is_invalid_and_touches_nothing() {
    let Some(bed) = world::bed() else { return };
    let crimux = world::crimux(&bed, &HANDLERS).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    let pod = pods.run("bystander", "runc", &IDLE).await.unwrap();
    assert_eq!(stop_and_remove(&mut pods, "").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(sandbox_state(&mut pods, "").await, Err(Code::InvalidArgument));
    assert_eq!(sandbox_state(&mut pods, &pod.sandbox).await, Ok(PodSandboxState::SandboxReady));
}

#[tokio::test]
async fn the_beginning_of_an_id_works_through_crimux() {
    let Some(bed) = world::bed() else { return };
    let crimux = world::crimux(&bed, &HANDLERS).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    for (handler, _, _) in HANDLERS {
        Box::pin(prefixes_work(&mut pods, handler)).await;
    }
}

#[tokio::test]
async fn the_beginning_of_an_id_works_on_a_containerd_itself() {
    let Some(bed) = world::bed() else { return };
    let mut pods = world::dial(&bed, &bed.socket("a")).await;
    Box::pin(prefixes_work(&mut pods, "crun")).await;
}

/// crictl prints thirteen digits of an ID, and its user types those.
async fn prefixes_work(pods: &mut Pods, handler: &str) {
    let pod = pods.run("prefix", handler, &IDLE).await.unwrap();
    let (sandbox, container) = (&pod.sandbox[..13], &pod.container[..13]);
    assert_eq!(sandbox_state(pods, sandbox).await, Ok(PodSandboxState::SandboxReady));
    assert_eq!(container_state(pods, container).await, Ok(ContainerState::ContainerRunning));
    assert_eq!(pods.exec(container, &["echo", "found"]).await.unwrap().stdout, b"found\n");
    pods.remove(sandbox).await.unwrap();
    assert_eq!(sandbox_state(pods, &pod.sandbox).await, Err(Code::NotFound));
}

async fn stop_and_remove(pods: &mut Pods, id: &str) -> Result<(), tonic::Status> {
    let (container_id, pod_sandbox_id) = (id.to_owned(), id.to_owned());
    let stop = StopContainerRequest { container_id: container_id.clone(), timeout: 0 };
    pods.runtime.stop_container(stop).await?;
    pods.runtime.remove_container(RemoveContainerRequest { container_id }).await?;
    let stop = StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
    pods.runtime.stop_pod_sandbox(stop).await?;
    pods.runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await?;
    Ok(())
}
