//! What the operator declares lost is gone from that moment on, whatever happens to crimux next.

use tonic::Code;

use super::{World, backend, sandboxes, state::snapshot_holds, timeouts};
use crate::cli::on;
use crate::support::{Crimux, SOON, config};

/// Types the verb and confirms it; returns what was asked.
async fn forget(crimux: &Crimux, name: &str) -> String {
    let (code, _, asked) = on(crimux, &["backend", "forget", name], &format!("{name}\n")).await;
    assert_eq!(code, 0, "{asked}");
    asked
}

#[tokio::test]
async fn what_is_forgotten_stays_so_though_crimux_is_killed_right_after() {
    let mut world = World::new().await;
    let state = world.crimux.dir.path().join("state");
    testkit::eventually(SOON, async || snapshot_holds(&state, &world.sandbox_of_b())).await;
    let before = sandboxes(&world.client, None).await.unwrap();
    world.b.stop().await;
    world.wait_state("b", "down").await;
    assert_eq!(sandboxes(&world.client, None).await.unwrap(), before);

    let asked = forget(&world.crimux, "b").await;
    assert!(asked.contains("Backend b is down. This forgets 2 sandboxes and 4 containers:"), "{asked}");
    let names: Vec<_> =
        world.b.state().sandboxes().map(|s| s.config.metadata.clone().unwrap().name).collect();
    assert!(names.iter().all(|name| asked.contains(&format!("sim/{name} "))), "{names:?}: {asked}");
    world.crimux.kill_and_start().await;
    world.crimux.wait_ready().await;
    let client = world.crimux.client();
    let of_a = world.a.state().sandboxes().map(|sandbox| sandbox.id.clone()).collect();
    assert_eq!(sandboxes(&client, None).await.unwrap(), of_a);

    world.b.start_again().await;
    testkit::eventually(SOON, async || sandboxes(&client, None).await.unwrap() == before).await;
}

#[tokio::test]
async fn a_start_without_state_does_not_wait_again_for_what_was_forgotten_though_it_is_killed_right_after() {
    for other_is_known in [true, false] {
        let (a, b) = (backend("a").await, backend("b").await);
        b.stop().await;
        if !other_is_known {
            a.stop().await;
        }
        let dir = tempfile::tempdir().unwrap();
        let yaml = timeouts(&config(&dir, &[("a", &a), ("b", &b)], ""));
        let mut crimux = Crimux::start_in(dir, &yaml);
        let awaited = if other_is_known { "not listed yet: b\n" } else { "not listed yet: a, b\n" };
        testkit::eventually(SOON, async || crimux.get("/readyz").await == Some((503, awaited.to_owned())))
            .await;
        assert_eq!(sandboxes(&crimux.client(), None).await.unwrap_err().code(), Code::Unavailable);
        forget(&crimux, "b").await;
        if other_is_known {
            assert_eq!(sandboxes(&crimux.client(), None).await.unwrap().len(), 2);
        }
        crimux.kill_and_start().await;
        if !other_is_known {
            let awaited = Some((503, "not listed yet: a\n".to_owned()));
            testkit::eventually(SOON, async || crimux.get("/readyz").await == awaited).await;
            a.start_again().await;
        }
        crimux.wait_ready().await;
        let client = crimux.client();
        assert_eq!(sandboxes(&client, None).await.unwrap().len(), 2, "other known: {other_is_known}");
        b.start_again().await;
        testkit::eventually(SOON, async || sandboxes(&client, None).await.unwrap().len() == 4).await;
    }
}
