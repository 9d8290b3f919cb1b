//! A containerd is killed or stopped under running pods: nobody who asks crimux notices more than he must.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use testkit::bed::pods::Pods;
use testkit::cri::{
    ContainerState, ListContainersRequest, RuntimeStatus, StatusRequest, StopContainerRequest,
    StopPodSandboxRequest,
};
use tonic::Code;

use super::world::{self, HANDLERS, IDLE, container_state, eventually};

/// The default of `timeouts.list`.
const LIST: Duration = Duration::from_secs(1);
/// What a busy machine may add to it.
const SLACK: Duration = Duration::from_secs(1);
/// What "at once" may take on a busy machine.
const AT_ONCE: Duration = Duration::from_millis(500);

/// What is listed, by ID: the states of sandboxes and of containers.
type Listed = (BTreeMap<String, i32>, BTreeMap<String, i32>);

async fn listed(pods: &mut Pods) -> Listed {
    let sandboxes = pods.list().await.unwrap();
    let containers = pods.runtime.list_containers(ListContainersRequest::default()).await.unwrap();
    let containers = containers.into_inner().containers;
    let count = (sandboxes.len(), containers.len());
    let listed: Listed = (
        sandboxes.into_iter().map(|sandbox| (sandbox.id, sandbox.state)).collect(),
        containers.into_iter().map(|container| (container.id, container.state)).collect(),
    );
    assert_eq!((listed.0.len(), listed.1.len()), count, "something is listed twice");
    listed
}

async fn status(pods: &mut Pods) -> RuntimeStatus {
    pods.runtime.status(StatusRequest::default()).await.unwrap().into_inner().status.unwrap()
}

fn condition(status: &RuntimeStatus, kind: &str) -> bool {
    status.conditions.iter().find(|condition| condition.r#type == kind).unwrap().status
}

/// Takes 20 s, because kubelet would have given up many times by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_default_containerd_is_gone_for_twenty_seconds_and_nothing_changes_on_the_node() {
    let Some(bed) = world::bed() else { return };
    let crimux = world::crimux(&bed, &HANDLERS).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    let ran = world::one_pod_per_handler(&mut pods).await;
    let before = listed(&mut pods).await;
    assert_eq!((before.0.len(), before.1.len()), (3, 3));
    let running = Ok(ContainerState::ContainerRunning);
    assert_eq!(container_state(&mut pods, &ran[0].container).await, running);

    tokio::task::block_in_place(|| bed.kill("a").unwrap());
    let lost = Instant::now();
    while lost.elapsed() < Duration::from_secs(20) {
        let now = status(&mut pods).await;
        assert!(condition(&now, "RuntimeReady") && condition(&now, "NetworkReady"), "{:?}", lost.elapsed());
        assert_eq!(listed(&mut pods).await, before, "after {:?}", lost.elapsed());
        assert_eq!(container_state(&mut pods, &ran[0].container).await, running);
        let refused = pods.exec(&ran[0].container, &["true"]).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{}", refused.message());
        assert_eq!(pods.exec(&ran[1].container, &["echo", "alive"]).await.unwrap().stdout, b"alive\n");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert!(!condition(&status(&mut pods).await, "Backend/a"));

    tokio::task::block_in_place(|| bed.restart("a").unwrap());
    eventually("the container of a can be reached again", async || {
        assert_eq!(listed(&mut pods).await, before);
        let exec = pods.exec(&ran[0].container, &["echo", "alive"]).await.ok()?;
        (exec.stdout == b"alive\n").then_some(())
    })
    .await;
    assert!(condition(&status(&mut pods).await, "RuntimeReady"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_list_waits_for_a_stopped_containerd_and_the_next_does_not() {
    let Some(bed) = world::bed() else { return };
    let crimux = world::crimux(&bed, &HANDLERS).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    world::one_pod_per_handler(&mut pods).await;
    let before = listed(&mut pods).await;
    for victim in ["b", "a"] {
        tokio::task::block_in_place(|| bed.stop(victim).unwrap());
        let asked = Instant::now();
        assert_eq!(listed(&mut pods).await, before, "{victim}");
        assert!(asked.elapsed() < LIST + SLACK, "the first lists took {:?}", asked.elapsed());
        let asked = Instant::now();
        assert_eq!(listed(&mut pods).await, before, "{victim}");
        assert!(asked.elapsed() < AT_ONCE, "the next lists took {:?}", asked.elapsed());
        let socket = crimux.socket.with_file_name("admin.sock");
        let status =
            [env!("CARGO_BIN_EXE_crimux"), "status", "--check", "--socket", socket.to_str().unwrap()];
        let told = bed.run(&status).unwrap().stdout;
        let told = String::from_utf8_lossy(&told);
        assert!(
            told.contains(&format!("{victim} late")) && told.contains("is stopped (kill -CONT "),
            "{told}"
        );
        tokio::task::block_in_place(|| bed.cont(victim).unwrap());
        let ready = format!("crimux_backend_state{{backend=\"{victim}\",state=\"ready\"}} 1");
        eventually("it is in time again", async || {
            let metrics = bed.run(&["curl", "-s", "http://127.0.0.1:19440/metrics"]).ok()?;
            String::from_utf8_lossy(&metrics.stdout).contains(&ready).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_never_started_is_listed_after_a_stop_as_containerd_itself_lists_it() {
    let Some(bed) = world::bed() else { return };
    let crimux = world::crimux(&bed, &HANDLERS).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    let config = pods.config("never-started");
    let sandbox = pods.sandbox(&config, "runc").await.unwrap();
    pods.pull(&config).await.unwrap();
    let container = pods.container(&sandbox, &config, &IDLE).await.unwrap();
    let stop = StopContainerRequest { container_id: container.clone(), timeout: 1 };
    pods.runtime.stop_container(stop).await.unwrap();
    pods.runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() }).await.unwrap();
    let mut direct = world::dial(&bed, &bed.socket("a")).await;
    let truth = listed(&mut direct).await;
    assert_eq!(truth.1[&container], i32::from(ContainerState::ContainerCreated));
    // No list has passed since, so this is what crimux makes of the calls.
    tokio::task::block_in_place(|| bed.kill("a").unwrap());
    assert_eq!(listed(&mut pods).await, truth);
}
