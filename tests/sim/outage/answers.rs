//! What kubelet judges the whole node by: prompt, and true for longer than an outage should be noticed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use testkit::cri::{
    ExecSyncRequest, ImageFsInfoRequest, RuntimeConfigRequest, RuntimeConfigResponse, RuntimeStatus,
    StatusRequest, VersionRequest, VersionResponse,
};
use testkit::runtime::Fault;

use super::{Outage, World, containers, sandboxes, timed};
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

/// Takes 31 s, because it is about 30 s as a client counts them.
#[tokio::test]
async fn the_default_backend_may_be_lost_for_half_a_minute_and_no_longer() {
    let outages = [Outage::Killed, Outage::Frozen, Outage::Erroring, Outage::Dropping];
    join_all(outages.map(lost_for_long)).await;
}

async fn lost_for_long(outage: Outage) {
    let world = World::new().await;
    testkit::eventually(SOON, async || condition(&status(&world).await, "Backend/a")).await;
    let before =
        (sandboxes(&world.client, None).await.unwrap(), containers(&world.client, None).await.unwrap());
    outage.begin(&world.a).await;
    let lost = Instant::now();
    let of_b = world.container_of_b();
    while lost.elapsed() < Duration::from_secs(25) {
        let now = status(&world).await;
        let ready = condition(&now, "RuntimeReady") && condition(&now, "NetworkReady");
        assert!(ready, "{outage:?} after {:?}", lost.elapsed());
        assert_listed(&world, &before).await;
        let exec = ExecSyncRequest { container_id: of_b.clone(), ..Default::default() };
        world.client.runtime().exec_sync(exec).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let deadline = Instant::now() + SOON;
    while condition(&status(&world).await, "RuntimeReady") {
        assert!(Instant::now() < deadline, "{outage:?}: ready after {:?}", lost.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(lost.elapsed() >= Duration::from_secs(30), "{outage:?} after {:?}", lost.elapsed());
    for _ in 0..20 {
        let now = status(&world).await;
        assert!(!condition(&now, "RuntimeReady") && !condition(&now, "NetworkReady"), "{outage:?}");
        let told = now.conditions.iter().find(|condition| condition.r#type == "RuntimeReady").unwrap();
        assert_eq!(told.reason, "BackendUnreachable", "{outage:?}");
        assert!(told.message.starts_with("backend a is "), "{outage:?}: {}", told.message);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_listed(&world, &before).await;

    outage.end(&world.a).await;
    world.wait_state("a", "ready").await;
    let now = status(&world).await;
    assert!(condition(&now, "RuntimeReady") && condition(&now, "NetworkReady"), "{outage:?}");
    assert_listed(&world, &before).await;
}

async fn assert_listed(world: &World, expected: &(BTreeSet<String>, BTreeSet<String>)) {
    assert_eq!(sandboxes(&world.client, None).await.unwrap(), expected.0);
    assert_eq!(containers(&world.client, None).await.unwrap(), expected.1);
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
        // Rounds that each waited 80 ms for `Status` and as much for `ImageFsInfo` would take 3.2 s more,
        // each time.
        let bound = usually * 3 + Duration::from_millis(1600);
        let mut best = Duration::MAX;
        for _ in 0..5 {
            let (during, took) = timed(rounds(&world)).await;
            assert_eq!(during, before, "{outage:?}");
            best = best.min(took);
            if best < bound {
                break;
            }
        }
        assert!(best < bound, "{outage:?}: twenty rounds took {best:?}, and {usually:?} before");
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
