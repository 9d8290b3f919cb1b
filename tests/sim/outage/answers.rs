//! What kubelet judges the whole node by: prompt, and true for longer than an outage should be noticed.

use std::time::Duration;

use testkit::cri::{
    ImageFsInfoRequest, RuntimeConfigRequest, RuntimeConfigResponse, RuntimeStatus, StatusRequest,
    VersionRequest, VersionResponse,
};
use testkit::runtime::Fault;

use super::{Outage, World, timed};
use crate::support::SOON;

async fn status(world: &World) -> RuntimeStatus {
    let reply = world.client.runtime().status(StatusRequest { verbose: false }).await.unwrap();
    reply.into_inner().status.unwrap()
}

fn condition(status: &RuntimeStatus, kind: &str) -> bool {
    let mut found = status.conditions.iter().filter(|condition| condition.r#type == kind);
    let condition = found.next().unwrap_or_else(|| panic!("no condition {kind}"));
    assert!(found.next().is_none(), "{kind} is there twice");
    condition.status
}

#[tokio::test]
async fn the_default_backend_is_lost_and_the_node_stays_ready_for_now() {
    for outage in Outage::ALL {
        let world = World::new().await;
        testkit::eventually(SOON, async || condition(&status(&world).await, "Backend/a")).await;
        outage.begin(&world.a).await;
        testkit::eventually(SOON, async || {
            let status = status(&world).await;
            assert!(condition(&status, "RuntimeReady"), "{outage:?}");
            assert!(condition(&status, "NetworkReady"), "{outage:?}");
            assert!(condition(&status, "Backend/b"), "{outage:?}");
            !condition(&status, "Backend/a")
        })
        .await;
        outage.end(&world.a).await;
        testkit::eventually(SOON, async || {
            let status = status(&world).await;
            assert!(condition(&status, "RuntimeReady"), "{outage:?}");
            condition(&status, "Backend/a")
        })
        .await;
    }
}

#[tokio::test]
async fn what_a_live_default_backend_reports_passes_at_once() {
    let world = World::new().await;
    // Lists that are late for long say nothing about what the backend says of itself.
    world.a.fault("ListContainerStats", Fault::Hang);
    world.a.state().conditions[1].status = false;
    let status = status(&world).await;
    assert!(condition(&status, "RuntimeReady"));
    assert!(!condition(&status, "NetworkReady"));
}

#[tokio::test]
async fn another_backend_that_is_not_ready_says_so_in_a_condition_of_its_own() {
    let world = World::new().await;
    world.b.stop().await;
    world.wait_state("b", "down").await;
    let status = status(&world).await;
    let own = status.conditions.iter().find(|condition| condition.r#type == "Backend/b").unwrap();
    assert!(!own.status);
    assert_eq!(own.reason, "BackendUnavailable");
    assert!(own.message.starts_with("down: "), "{}", own.message);
    assert!(condition(&status, "RuntimeReady"));
}

#[tokio::test]
async fn the_answers_for_the_node_are_prompt_whatever_the_backends_do() {
    for outage in Outage::ALL {
        let world = World::new().await;
        let (before, usually) = timed(rounds(&world)).await;
        outage.begin(&world.a).await;
        outage.begin(&world.b).await;
        let (during, took) = timed(rounds(&world)).await;
        assert_eq!(during, before, "{outage:?}");
        // Rounds that each waited 80 ms for `Status` and as much for `ImageFsInfo` would take 3.2 s more.
        let bound = usually * 3 + Duration::from_millis(1600);
        assert!(took < bound, "{outage:?}: twenty rounds took {took:?}, and {usually:?} before");
    }
}

/// Asks for everything twenty times, and returns what all rounds were told.
async fn rounds(world: &World) -> (VersionResponse, RuntimeConfigResponse, usize) {
    let (mut runtime, mut images) = (world.client.runtime(), world.client.images());
    let mut told = Vec::new();
    for _ in 0..20 {
        let version = runtime.version(VersionRequest::default()).await.unwrap().into_inner();
        let config = runtime.runtime_config(RuntimeConfigRequest {}).await.unwrap().into_inner();
        let filesystems = images.image_fs_info(ImageFsInfoRequest {}).await.unwrap().into_inner();
        assert!(condition(&status(world).await, "RuntimeReady"));
        told.push((version, config, filesystems.image_filesystems.len()));
    }
    told.dedup();
    assert_eq!(told.len(), 1, "{told:?}");
    told.remove(0)
}
