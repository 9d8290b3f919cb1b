//! Statuses from memory: the very bytes that passed, and only while nothing contradicts them.

use testkit::cri::{
    ContainerStatsRequest, ContainerStatusRequest, PodSandboxStatusRequest, StopContainerRequest,
    StopPodSandboxRequest, UpdateContainerResourcesRequest,
};
use testkit::runtime::Fault;
use tonic::Code;

use super::{AT_ONCE, Outage, World, containers, sandboxes, timed};

const CONTAINER: &str = "/runtime.v1.RuntimeService/ContainerStatus";
const SANDBOX: &str = "/runtime.v1.RuntimeService/PodSandboxStatus";

fn of_container(id: &str) -> ContainerStatusRequest {
    ContainerStatusRequest { container_id: id.to_owned(), verbose: false }
}

async fn code_of(world: &World, id: &str) -> Code {
    world.client.raw_message(CONTAINER, &of_container(id)).await.unwrap().code()
}

#[tokio::test]
async fn a_status_that_passed_answers_for_a_backend_that_cannot_and_a_verbose_one_never_does() {
    for outage in [Outage::Killed, Outage::Frozen] {
        let world = World::new().await;
        let (container, sandbox) = (world.container_of_b(), world.sandbox_of_b());
        let other = world.b.state().containers().last().unwrap().id.clone();
        let of_sandbox = PodSandboxStatusRequest { pod_sandbox_id: sandbox, verbose: false };
        let verbose = ContainerStatusRequest { verbose: true, ..of_container(&other) };
        let container_status = world.client.raw_message(CONTAINER, &of_container(&container)).await.unwrap();
        let sandbox_status = world.client.raw_message(SANDBOX, &of_sandbox).await.unwrap();
        assert_eq!(world.client.raw_message(CONTAINER, &verbose).await.unwrap().code(), Code::Ok);

        outage.begin(&world.b).await;
        let first = world.client.raw_message(CONTAINER, &of_container(&container)).await.unwrap();
        assert_eq!(first.messages, container_status.messages, "{outage:?}");
        let (again, took) = timed(world.client.raw_message(CONTAINER, &of_container(&container))).await;
        assert_eq!(again.unwrap().messages, container_status.messages, "{outage:?}");
        assert!(took < AT_ONCE, "{outage:?}: {took:?}");
        let again = world.client.raw_message(SANDBOX, &of_sandbox).await.unwrap();
        assert_eq!(again.messages, sandbox_status.messages, "{outage:?}");
        // Only its verbose status has passed, and that holds anything.
        assert_eq!(code_of(&world, &other).await, Code::Unavailable, "{outage:?}");
        let verbose = ContainerStatusRequest { verbose: true, ..of_container(&container) };
        let (refused, took) = timed(world.client.raw_message(CONTAINER, &verbose)).await;
        assert_eq!(refused.unwrap().code(), Code::Unavailable, "{outage:?}");
        assert!(took < AT_ONCE, "{outage:?}: {took:?}");
        outage.end(&world.b).await;
        testkit::eventually(crate::support::SOON, async || code_of(&world, &other).await == Code::Ok).await;
    }
}

#[tokio::test]
async fn a_status_is_not_told_after_a_write_that_passed() {
    for changes_state in [true, false] {
        let world = World::new().await;
        let id = world.container_of_b();
        assert_eq!(code_of(&world, &id).await, Code::Ok);
        let mut runtime = world.client.runtime();
        if changes_state {
            let stop = StopContainerRequest { container_id: id.clone(), timeout: 0 };
            runtime.stop_container(stop).await.unwrap();
        } else {
            let update = UpdateContainerResourcesRequest { container_id: id.clone(), ..Default::default() };
            runtime.update_container_resources(update).await.unwrap();
        }
        world.b.stop().await;
        world.wait_state("b", "down").await;
        assert_eq!(code_of(&world, &id).await, Code::Unavailable);
        assert!(containers(&world.client, None).await.unwrap().contains(&id));
    }
}

#[tokio::test]
async fn a_status_read_beside_a_write_whose_end_nobody_saw_is_not_told() {
    let world = World::new().await;
    let id = world.container_of_b();
    world.b.fault("StopContainer", Fault::Hang);
    let mut runtime = world.client.runtime();
    let stop = StopContainerRequest { container_id: id.clone(), timeout: 0 };
    let stopping = tokio::spawn(async move { runtime.stop_container(stop).await });
    world.b.wait_for_call("StopContainer", 1).await;
    assert_eq!(code_of(&world, &id).await, Code::Ok);
    world.b.stop().await;
    assert_eq!(stopping.await.unwrap().unwrap_err().code(), Code::Unavailable);
    assert_eq!(code_of(&world, &id).await, Code::Unavailable);
}

#[tokio::test]
async fn a_status_that_the_last_list_contradicts_is_not_told() {
    let world = World::new().await;
    let id = world.container_of_b();
    assert_eq!(code_of(&world, &id).await, Code::Ok);
    world.b.state().exit_container(&id, 1);
    sandboxes(&world.client, None).await.unwrap();
    containers(&world.client, None).await.unwrap();
    world.b.stop().await;
    world.wait_state("b", "down").await;
    assert_eq!(code_of(&world, &id).await, Code::Unavailable);
}

#[tokio::test]
async fn one_hung_status_costs_its_caller_the_deadline_and_the_next_reads_nothing() {
    let world = World::new().await;
    world.b.fault_next("ContainerStatus", 1, Fault::Hang);
    let id = world.container_of_b();
    assert_eq!(code_of(&world, &id).await, Code::Unavailable);
    world.wait_state("b", "ready").await;
    let (code, took) = timed(code_of(&world, &id)).await;
    assert_eq!(code, Code::Ok);
    assert!(took < AT_ONCE, "{took:?}");
}

#[tokio::test]
async fn the_stats_of_one_container_of_a_silent_backend_are_those_last_listed() {
    for outage in [Outage::Killed, Outage::Frozen] {
        let world = World::new().await;
        // Only what runs has stats.
        let request = ContainerStatsRequest { container_id: world.container_of_b() };
        world
            .client
            .runtime()
            .list_container_stats(testkit::cri::ListContainerStatsRequest::default())
            .await
            .unwrap();
        outage.begin(&world.b).await;
        let stats = world.client.runtime().container_stats(request.clone()).await.unwrap().into_inner().stats;
        assert_eq!(stats.unwrap().attributes.unwrap().id, request.container_id, "{outage:?}");
    }
}

#[tokio::test]
async fn a_write_that_was_not_sent_forgets_no_status() {
    let world = World::new().await;
    let (container, sandbox) = (world.container_of_b(), world.sandbox_of_b());
    let of_sandbox = PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: false };
    let status = world.client.raw_message(CONTAINER, &of_container(&container)).await.unwrap();
    let sandbox_status = world.client.raw_message(SANDBOX, &of_sandbox).await.unwrap();
    Outage::Killed.begin(&world.b).await;
    let mut runtime = world.client.runtime();
    let stop = StopContainerRequest { container_id: container.clone(), timeout: 0 };
    assert_eq!(runtime.stop_container(stop).await.unwrap_err().code(), Code::Unavailable);
    let stop = StopPodSandboxRequest { pod_sandbox_id: sandbox };
    assert_eq!(runtime.stop_pod_sandbox(stop).await.unwrap_err().code(), Code::Unavailable);
    let again = world.client.raw_message(CONTAINER, &of_container(&container)).await.unwrap();
    assert_eq!((again.code(), again.messages), (Code::Ok, status.messages), "image collection goes on");
    let again = world.client.raw_message(SANDBOX, &of_sandbox).await.unwrap();
    assert_eq!((again.code(), again.messages), (Code::Ok, sandbox_status.messages));
}
