//! Lists through crimux are the lists of all runtimes together, and their filters still filter.

use std::collections::BTreeSet;

use testkit::bed::pods::{Pod, Pods};
use testkit::cri::{
    ContainerFilter, ListContainerStatsRequest, ListContainersRequest, ListPodSandboxRequest,
    PodSandboxFilter, PodSandboxState, PodSandboxStateValue,
};

use super::world::{self, HANDLERS, IDLE};

#[tokio::test]
async fn lists_are_those_of_all_runtimes_together() {
    let Some(bed) = world::bed() else { return };
    let crimux = world::crimux(&bed, &HANDLERS).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    let ran = world::one_pod_per_handler(&mut pods).await;

    let merged: BTreeSet<_> = sandboxes(&mut pods, PodSandboxFilter::default()).await;
    assert_eq!(merged, ran.iter().map(|pod| pod.sandbox.clone()).collect());
    let containers = containers(&mut pods, ContainerFilter::default()).await;
    assert_eq!(containers, ran.iter().map(|pod| pod.container.clone()).collect());
    let stats = pods.runtime.list_container_stats(ListContainerStatsRequest::default()).await.unwrap();
    let measured: BTreeSet<_> =
        stats.into_inner().stats.into_iter().map(|stats| stats.attributes.unwrap().id).collect();
    assert_eq!(measured, containers);

    for ((_, backend, _), pod) in HANDLERS.iter().zip(&ran) {
        let mut direct = world::dial(&bed, &bed.socket(backend)).await;
        let alone = sandboxes(&mut direct, PodSandboxFilter::default()).await;
        assert_eq!(alone, BTreeSet::from([pod.sandbox.clone()]), "on {backend}");
    }
}

#[tokio::test]
async fn filters_filter_through_crimux() {
    let Some(bed) = world::bed() else { return };
    let crimux = world::crimux(&bed, &HANDLERS).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    let ran = world::one_pod_per_handler(&mut pods).await;
    Box::pin(filters_filter(&mut pods, &ran)).await;
}

#[tokio::test]
async fn filters_filter_on_a_containerd_itself() {
    let Some(bed) = world::bed() else { return };
    let mut pods = world::dial(&bed, &bed.socket("a")).await;
    let mut ran = Vec::new();
    for handler in ["runc", "crun", "runsc"] {
        ran.push(pods.run(handler, handler, &IDLE).await.unwrap());
    }
    Box::pin(filters_filter(&mut pods, &ran)).await;
}

/// Each of three running pods is found by its ID, by its label, by its state, and its container by its
/// sandbox.
async fn filters_filter(pods: &mut Pods, ran: &[Pod]) {
    for pod in ran {
        let only = BTreeSet::from([pod.sandbox.clone()]);
        let by_id = PodSandboxFilter { id: pod.sandbox.clone(), ..Default::default() };
        assert_eq!(sandboxes(pods, by_id).await, only);
        let by_label = PodSandboxFilter { label_selector: pod.config.labels.clone(), ..Default::default() };
        assert_eq!(sandboxes(pods, by_label).await, only);
        let of_sandbox = ContainerFilter { pod_sandbox_id: pod.sandbox.clone(), ..Default::default() };
        assert_eq!(containers(pods, of_sandbox).await, BTreeSet::from([pod.container.clone()]));
    }
    let in_state = |state: PodSandboxState| PodSandboxFilter {
        state: Some(PodSandboxStateValue { state: state.into() }),
        ..Default::default()
    };
    assert_eq!(sandboxes(pods, in_state(PodSandboxState::SandboxReady)).await.len(), ran.len());
    assert_eq!(sandboxes(pods, in_state(PodSandboxState::SandboxNotready)).await.len(), 0);
    let of_nobody = ContainerFilter { pod_sandbox_id: "f".repeat(64), ..Default::default() };
    assert_eq!(containers(pods, of_nobody).await.len(), 0);
}

async fn sandboxes(pods: &mut Pods, filter: PodSandboxFilter) -> BTreeSet<String> {
    let request = ListPodSandboxRequest { filter: Some(filter) };
    let items = pods.runtime.list_pod_sandbox(request).await.unwrap().into_inner().items;
    let count = items.len();
    let ids: BTreeSet<_> = items.into_iter().map(|sandbox| sandbox.id).collect();
    assert_eq!(ids.len(), count, "an ID is listed twice");
    ids
}

async fn containers(pods: &mut Pods, filter: ContainerFilter) -> BTreeSet<String> {
    let request = ListContainersRequest { filter: Some(filter) };
    let items = pods.runtime.list_containers(request).await.unwrap().into_inner().containers;
    let count = items.len();
    let ids: BTreeSet<_> = items.into_iter().map(|container| container.id).collect();
    assert_eq!(ids.len(), count, "an ID is listed twice");
    ids
}
