//! Calls to one backend while it is out: refused in milliseconds, by name, never with a code that kubelet
//! acts on.

use std::time::{Duration, Instant};

use prost::Message;
use testkit::client::sandbox_config;
use testkit::cri::{
    AttachRequest, CheckpointContainerRequest, ContainerStatsRequest, ContainerStatusRequest, ExecRequest,
    ExecSyncRequest, PodSandboxStatsRequest, PodSandboxStatusRequest, PortForwardRequest,
    RemoveContainerRequest, RemovePodSandboxRequest, ReopenContainerLogRequest, StartContainerRequest,
    StopContainerRequest, StopPodSandboxRequest, UpdateContainerResourcesRequest,
};
use testkit::runtime::Fault;
use tonic::Code;

use super::{AT_ONCE, Outage, World, timed};
use crate::support::SOON;

const NOBODY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Every call about one object, encoded.
fn calls(sandbox: &str, container: &str) -> Vec<(&'static str, Vec<u8>)> {
    let (pod_sandbox_id, container_id) = (sandbox.to_owned(), container.to_owned());
    let (s, c) = (|| pod_sandbox_id.clone(), || container_id.clone());
    vec![
        ("StopPodSandbox", StopPodSandboxRequest { pod_sandbox_id: s() }.encode_to_vec()),
        ("RemovePodSandbox", RemovePodSandboxRequest { pod_sandbox_id: s() }.encode_to_vec()),
        ("PodSandboxStatus", PodSandboxStatusRequest { pod_sandbox_id: s(), verbose: true }.encode_to_vec()),
        ("PodSandboxStats", PodSandboxStatsRequest { pod_sandbox_id: s() }.encode_to_vec()),
        ("PortForward", PortForwardRequest { pod_sandbox_id: s(), port: vec![80] }.encode_to_vec()),
        ("StartContainer", StartContainerRequest { container_id: c() }.encode_to_vec()),
        ("StopContainer", StopContainerRequest { container_id: c(), timeout: 1 }.encode_to_vec()),
        ("RemoveContainer", RemoveContainerRequest { container_id: c() }.encode_to_vec()),
        ("ContainerStatus", ContainerStatusRequest { container_id: c(), verbose: true }.encode_to_vec()),
        ("ContainerStats", ContainerStatsRequest { container_id: c() }.encode_to_vec()),
        ("UpdateContainerResources", update(c())),
        ("ReopenContainerLog", ReopenContainerLogRequest { container_id: c() }.encode_to_vec()),
        ("ExecSync", ExecSyncRequest { container_id: c(), ..Default::default() }.encode_to_vec()),
        ("Exec", ExecRequest { container_id: c(), stdout: true, ..Default::default() }.encode_to_vec()),
        ("Attach", AttachRequest { container_id: c(), stdout: true, ..Default::default() }.encode_to_vec()),
        ("CheckpointContainer", checkpoint(c())),
    ]
}

fn update(container_id: String) -> Vec<u8> {
    UpdateContainerResourcesRequest { container_id, ..Default::default() }.encode_to_vec()
}

fn checkpoint(container_id: String) -> Vec<u8> {
    CheckpointContainerRequest { container_id, ..Default::default() }.encode_to_vec()
}

fn path(method: &str) -> String {
    format!("/runtime.v1.RuntimeService/{method}")
}

#[tokio::test]
async fn a_call_to_a_down_backend_is_refused_at_once_and_says_which_and_since_when() {
    for outage in [Outage::Killed, Outage::Refusing] {
        let world = World::new().await;
        outage.begin(&world.b).await;
        world.wait_state("b", "down").await;
        for (method, request) in calls(&world.sandbox_of_b(), &world.container_of_b()) {
            let (reply, took) = timed(world.client.raw(&path(method), &[], request)).await;
            let reply = reply.unwrap();
            assert_eq!(reply.code(), Code::Unavailable, "{method}: {}", reply.message());
            let told = reply.message();
            assert!(told.starts_with("crimux: backend b is down since 20"), "{method}: {told}");
            assert!(took < AT_ONCE, "{method} took {took:?}");
        }
        let run = world.client.runtime().run_pod_sandbox(sandbox_config("new").run("b")).await.unwrap_err();
        assert_eq!(run.code(), Code::Unavailable);
        assert!(run.message().contains("backend b is down since 20"), "{}", run.message());
        world.client.runtime().run_pod_sandbox(sandbox_config("new").run("a")).await.unwrap();
    }
}

#[tokio::test]
async fn an_unknown_id_is_neither_absent_nor_gone_while_a_backend_cannot_be_asked() {
    for outage in Outage::ALL {
        let world = World::new().await;
        outage.begin(&world.b).await;
        for (method, request) in calls(NOBODY, NOBODY) {
            let reply = world.client.raw(&path(method), &[], request).await.unwrap();
            assert_eq!(reply.code(), Code::Unavailable, "{outage:?}, {method}: {}", reply.message());
            assert!(reply.message().contains('b'), "{}", reply.message());
        }
    }
}

#[tokio::test]
async fn an_unknown_id_is_gone_once_every_backend_was_asked() {
    let world = World::new().await;
    for (method, request) in calls(NOBODY, NOBODY) {
        let reply = world.client.raw(&path(method), &[], request).await.unwrap();
        let idempotent = ["StopPodSandbox", "RemovePodSandbox", "StopContainer", "RemoveContainer"];
        let expected = if idempotent.contains(&method) { Code::Ok } else { Code::NotFound };
        assert_eq!(reply.code(), expected, "{method}: {}", reply.message());
    }
}

#[tokio::test]
async fn a_hung_exec_ends_as_unavailable_before_its_caller_takes_it_for_a_failed_probe() {
    let world = World::new().await;
    let request = ExecSyncRequest { container_id: world.container_of_b(), timeout: 1, ..Default::default() };
    for frozen in [true, false] {
        if frozen {
            world.b.freeze();
        } else {
            world.b.fault("ExecSync", Fault::Hang);
        }
        let timeout = [("grpc-timeout", "1500m")];
        let (reply, took) =
            timed(world.client.raw(&path("ExecSync"), &timeout, request.encode_to_vec())).await;
        let reply = reply.unwrap();
        assert_eq!(reply.code(), Code::Unavailable, "{}", reply.message());
        assert!(reply.message().contains("backend b did not answer"), "{}", reply.message());
        assert!(took < Duration::from_millis(1500), "the caller gave up first: {took:?}");
        world.b.thaw();
        world.b.clear_faults();
    }
}

#[tokio::test]
async fn a_call_in_flight_when_its_backend_dies_ends_as_unavailable() {
    let world = World::new().await;
    world.b.fault("StopContainer", Fault::Hang);
    let mut runtime = world.client.runtime();
    let stop = StopContainerRequest { container_id: world.container_of_b(), timeout: 30 };
    let stopping = tokio::spawn(async move { runtime.stop_container(stop).await });
    world.b.wait_for_call("StopContainer", 1).await;
    world.b.stop().await;
    let error = stopping.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("backend b was lost during the call"), "{}", error.message());
}

#[tokio::test]
async fn a_goodbye_ends_no_call_and_refuses_none() {
    let world = World::new().await;
    // One that says goodbye as soon as it is greeted is taken for broken.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    world.b.fault("ExecSync", Fault::Hang);
    let mut runtime = world.client.runtime();
    let exec = ExecSyncRequest { container_id: world.container_of_b(), timeout: 30, ..Default::default() };
    let running = tokio::spawn(async move { runtime.exec_sync(exec).await });
    world.b.wait_for_call("ExecSync", 1).await;
    world.b.say_goodbye();
    let end = Instant::now() + Duration::from_millis(500);
    while Instant::now() < end {
        let request = ContainerStatusRequest { container_id: world.container_of_b(), verbose: true };
        world.client.runtime().container_status(request).await.expect("another connection takes it");
    }
    world.b.clear_faults();
    running.await.unwrap().expect("the old connection finishes what it has");
}

#[tokio::test]
async fn calls_beyond_the_bound_are_refused_by_its_name_and_the_other_backend_is_free() {
    let bound = |yaml: String| yaml.replace("timeouts:", "max_in_flight: 8, timeouts:");
    let world = World::with(bound).await;
    // What crimux asks by itself counts too; a new backend is asked this last.
    world.b.wait_for_call("RuntimeConfig", 1).await;
    let flying = "crimux_requests_in_flight{backend=\"b\"}";
    testkit::eventually(SOON, async || world.crimux.metric(flying).await == Some(0.0)).await;
    world.b.fault("ExecSync", Fault::Hang);
    let request = ExecSyncRequest { container_id: world.container_of_b(), ..Default::default() };
    let mut hanging = Vec::new();
    for _ in 0..8 {
        let (mut runtime, request) = (world.client.runtime(), request.clone());
        hanging.push(tokio::spawn(async move { runtime.exec_sync(request).await }));
    }
    world.b.wait_for_call("ExecSync", 8).await;
    let refused = world.client.runtime().exec_sync(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("max_in_flight"), "{}", refused.message());
    assert!(refused.message().contains("backend b"), "{}", refused.message());
    world.client.runtime().run_pod_sandbox(sandbox_config("free").run("a")).await.unwrap();
    assert_eq!(super::sandboxes(&world.client, None).await.unwrap().len(), 5, "b's part is the last known");
    world.b.clear_faults();
    for exec in hanging {
        exec.await.unwrap().unwrap();
    }
    world.wait_state("b", "ready").await;
}
