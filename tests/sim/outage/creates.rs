//! What passed through is remembered at once, and what a backend did without being able to say so is learnt.

use std::time::Duration;

use prost::Message;
use testkit::client::{container_config, sandbox_config};
use testkit::cri::{RemoveContainerRequest, RemovePodSandboxRequest, StopPodSandboxRequest};
use testkit::runtime::Fault;
use tonic::Code;

use super::state::snapshot_holds;
use super::{World, containers, sandboxes};
use crate::support::SOON;

#[tokio::test]
async fn what_was_created_is_in_the_next_list_and_what_was_removed_is_not_though_the_backend_died() {
    let mut world = World::new().await;
    // A start without state has to be told of every backend once; that is written as soon as it is known.
    let state = world.crimux.dir.path().join("state");
    testkit::eventually(SOON, async || snapshot_holds(&state, &world.sandbox_of_b())).await;
    let mut runtime = world.client.runtime();
    let config = sandbox_config("new").label("who", "me").build();
    let image = world.b.state().images.keys().next().unwrap().clone();
    let run = sandbox_config("new").label("who", "me").run("b");
    let sandbox = runtime.run_pod_sandbox(run).await.unwrap().into_inner().pod_sandbox_id;
    let create = container_config("main", &image).create_in(&sandbox, &config);
    let container = runtime.create_container(create).await.unwrap().into_inner().container_id;
    let gone = world.container_of_b();
    runtime.remove_container(RemoveContainerRequest { container_id: gone.clone() }).await.unwrap();
    let gone_sandbox = world.b.state().sandboxes().find(|s| !s.ready).unwrap().id.clone();
    let pod_sandbox_id = gone_sandbox.clone();
    runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() }).await.unwrap();
    runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await.unwrap();

    world.b.stop().await;
    for restarted in [false, true] {
        if restarted {
            world.crimux.kill_and_start().await;
            world.crimux.wait_ready().await;
            world.client = world.crimux.client();
        }
        let listed = sandboxes(&world.client, None).await.unwrap();
        assert!(listed.contains(&sandbox), "restarted: {restarted}");
        assert!(!listed.contains(&gone_sandbox), "restarted: {restarted}");
        let listed = containers(&world.client, None).await.unwrap();
        assert!(listed.contains(&container), "restarted: {restarted}: {listed:?} {}", world.crimux.log());
        assert!(!listed.contains(&gone), "restarted: {restarted}");
        let label_selector = [("who".to_owned(), "me".to_owned())].into();
        let mine = testkit::cri::PodSandboxFilter { label_selector, ..Default::default() };
        assert_eq!(sandboxes(&world.client, Some(mine)).await.unwrap(), [sandbox.clone()].into());
    }
}

#[tokio::test]
async fn a_create_whose_client_went_away_is_cancelled_at_the_backend() {
    let world = World::new().await;
    world.b.fault("RunPodSandbox", Fault::Delay(Duration::from_secs(60)));
    let request = sandbox_config("slow").run("b").encode_to_vec();
    let path = "/runtime.v1.RuntimeService/RunPodSandbox";
    let call = world.client.raw_stream(path, &[("grpc-timeout", "240S")], request).await.unwrap();
    world.b.wait_for_call("RunPodSandbox", 1).await;
    drop(call);
    world.b.wait_for_cancel("RunPodSandbox").await;
    // The name is free again, so that kubelet's retry with the same attempt succeeds.
    world.b.clear_faults();
    world.client.runtime().run_pod_sandbox(sandbox_config("slow").run("b")).await.unwrap();
    assert_eq!(sandboxes(&world.client, None).await.unwrap().len(), 5);
    assert_eq!(world.b.calls("RunPodSandbox").len(), 2, "crimux repeats nothing");
}

#[tokio::test]
async fn a_sandbox_whose_reply_was_lost_is_in_the_next_list_once() {
    for fault in [Fault::LoseReply, Fault::HangReply, Fault::Truncate(3), Fault::Truncate(0)] {
        let world = World::new().await;
        let name = format!("{fault:?}");
        world.b.fault("RunPodSandbox", fault.clone());
        let request = sandbox_config("lost").run("b").encode_to_vec();
        let path = "/runtime.v1.RuntimeService/RunPodSandbox";
        let reply = world.client.raw(path, &[("grpc-timeout", "1S")], request).await.unwrap();
        let expected = if matches!(fault, Fault::Truncate(_)) { Code::Internal } else { Code::Unavailable };
        assert_eq!(reply.code(), expected, "{name}: {}", reply.message());
        let made = world.b.state().sandboxes().map(|s| s.id.clone()).collect::<Vec<_>>();
        assert_eq!(made.len(), 3, "{name}");
        testkit::eventually(SOON, async || sandboxes(&world.client, None).await.unwrap().len() == 5).await;
        world.b.clear_faults();
        assert_eq!(world.b.calls("RunPodSandbox").len(), 1, "{name}: crimux repeats nothing");
        // Known by its owner too: a stop finds it without asking around.
        world.b.clear_calls();
        for pod_sandbox_id in made {
            let stop = StopPodSandboxRequest { pod_sandbox_id };
            world.client.runtime().stop_pod_sandbox(stop).await.unwrap();
        }
        assert_eq!(world.b.calls("StopPodSandbox").len(), 3, "{name}");
        assert_eq!(world.crimux.metric("crimux_unknown_ids_total").await, Some(0.0), "{name}");
    }
}

#[tokio::test]
async fn a_removal_whose_reply_was_lost_is_found_out() {
    let world = World::new().await;
    let id = world.container_of_b();
    world.b.fault("RemoveContainer", Fault::LoseReply);
    let remove = RemoveContainerRequest { container_id: id.clone() };
    let error = world.client.runtime().remove_container(remove.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    testkit::eventually(SOON, async || !containers(&world.client, None).await.unwrap().contains(&id)).await;
    world.b.clear_faults();
    world.client.runtime().remove_container(remove).await.unwrap();
}
