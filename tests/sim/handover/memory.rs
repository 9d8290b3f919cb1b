//! What the old process keeps in memory alone goes over too: a call after the handover ends as one before it.

use testkit::client::container_config;

use super::*;
use crate::kubelet::{Kubelet, annotated, bare, see_again};

const IMAGE: &str = "registry.example/app:1";

/// Backends `a`, the default one, and `b`; each has the image, under another user.
async fn two() -> (SimRuntime, SimRuntime, Node) {
    let (a, b) = (SimRuntime::builder("a").start().await, SimRuntime::builder("b").start().await);
    for (runtime, uid) in [(&a, 1), (&b, 2)] {
        let mut state = runtime.state();
        let id = state.add_image(IMAGE);
        state.images.get_mut(&id).unwrap().uid = Some(cri::Int64Value { value: uid });
    }
    let node = Node::start(&[("a", &a), ("b", &b)], "").await;
    (a, b, node)
}

fn kubelet(node: &Node) -> Kubelet {
    let client = node.client();
    Kubelet { runtime: client.runtime(), images: client.images() }
}

/// Runs a sandbox as kubelet does; returns it with its pod.
async fn pod(node: &Node, name: &str, backend: &str) -> (String, cri::PodSandboxConfig) {
    let mut config = sandbox_config(name).build();
    see_again(&mut config);
    let request = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: backend.into() };
    let reply = kubelet(node).runtime.run_pod_sandbox(request).await.unwrap();
    (reply.into_inner().pod_sandbox_id, config)
}

/// How many `ImageStatus` calls came to each of both since [`upgraded`].
fn status_calls(a: &SimRuntime, b: &SimRuntime) -> (usize, usize) {
    (a.calls("ImageStatus").len(), b.calls("ImageStatus").len())
}

/// Hands over, and waits until the old process has ended.
async fn upgraded(node: &Node, a: &SimRuntime, b: &SimRuntime) {
    node.upgraded(&["--wait"]).await;
    a.clear_calls();
    b.clear_calls();
}

#[tokio::test]
async fn a_container_start_under_way_goes_to_the_same_image_store_after_the_handover() {
    let (a, b, node) = two().await;
    pod(&node, "on-a", "a").await;
    let (_, on_b) = pod(&node, "on-b", "b").await;
    assert!(kubelet(&node).image(annotated(IMAGE, &on_b)).await.unwrap().is_some());
    upgraded(&node, &a, &b).await;
    // kubelet's question which user the image runs as; the stores disagree.
    let image = kubelet(&node).image(bare(IMAGE)).await.unwrap().expect("present");
    assert_eq!(image.uid.unwrap().value, 2);
    assert_eq!(status_calls(&a, &b), (0, 1));
}

#[tokio::test]
async fn another_client_is_answered_by_the_default_backend_after_the_handover_too() {
    let (a, b, node) = two().await;
    pod(&node, "on-b", "b").await;
    // Only a process that has seen all calls of a container start can tell.
    let seen_all = async || kubelet(&node).image(bare(IMAGE)).await.is_ok();
    testkit::eventually(SOON * 6, seen_all).await;
    upgraded(&node, &a, &b).await;
    let image = kubelet(&node).image(bare(IMAGE)).await.unwrap().expect("present");
    assert_eq!(image.uid.unwrap().value, 1);
    assert_eq!(status_calls(&a, &b), (1, 0));
}

#[tokio::test]
async fn the_new_config_seen_of_a_restarted_kubelet_is_known_after_two_handovers() {
    let (a, b, node) = two().await;
    pod(&node, "on-a", "a").await;
    let (sandbox, mut on_b) = pod(&node, "on-b", "b").await;
    see_again(&mut on_b);
    let container = container_config("main", "").build();
    let kubelet_before = kubelet(&node);
    let creating = kubelet_before.create(&sandbox, &on_b, container, IMAGE, "sha256:00");
    Box::pin(creating).await.unwrap_err();
    for _ in 0..2 {
        upgraded(&node, &a, &b).await;
        assert!(kubelet(&node).image(annotated(IMAGE, &on_b)).await.unwrap().is_some());
        assert_eq!(status_calls(&a, &b), (0, 1));
    }
}

#[tokio::test]
async fn an_aimed_pod_goes_there_after_the_handover_and_its_next_sandbox_after_another_one() {
    let (a, b) = (SimRuntime::builder("a").start().await, SimRuntime::builder("b").start().await);
    let split = "  both: { split: [ { backend: a, weight: 1 }, { backend: b, weight: 0 } ] }\n";
    let node = Node::start(&[("a", &a), ("b", &b)], split).await;
    let route = ["route", "--next", "default/web-0", "b"];
    assert_eq!(crate::cli::on(&node.crimux, &route, "").await.0, 0);
    for attempt in 0..2 {
        node.upgraded(&["--wait"]).await;
        let (_, routes, _) = crate::cli::on(&node.crimux, &["route"], "").await;
        assert_eq!(routes.contains("next sandbox of pod default/web-0: b (for "), attempt == 0, "{routes}");
        let request = sandbox_config("web-0").attempt(attempt).run("both");
        let created = node.client().runtime().run_pod_sandbox(request).await.unwrap().into_inner();
        assert!(b.state().sandbox(&created.pod_sandbox_id).is_some(), "attempt {attempt}");
    }
    let created = create(&node.client(), "web-1", "both").await.unwrap();
    assert!(a.state().sandbox(&created).is_some(), "another pod");
}

#[tokio::test]
async fn a_question_about_what_was_removed_before_the_handover_is_for_its_owner_alone() {
    let (a, b, node) = two().await;
    let (sandbox, _) = pod(&node, "on-b", "b").await;
    let mut runtime = kubelet(&node).runtime;
    let pod_sandbox_id = sandbox.clone();
    runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id }).await.unwrap();
    node.upgraded(&["--wait"]).await;
    // With a backend that cannot be asked, an unknown ID may be there.
    a.stop().await;
    eventually(SOON, async || node.crimux.metric("crimux_backend_up{backend=\"a\"}").await == Some(0.0))
        .await;
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: sandbox, verbose: false };
    let answer = kubelet(&node).runtime.pod_sandbox_status(request).await;
    assert_eq!(answer.unwrap_err().code(), tonic::Code::NotFound);
    assert_eq!(b.calls("PodSandboxStatus").len(), 1);
}
