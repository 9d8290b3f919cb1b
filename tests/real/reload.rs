//! The configuration is read again while calls are under way: none fails, and the new one counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use testkit::bed::pods::Pods;

use super::world::{self, HANDLERS, IDLE, eventually};

/// Times the configuration changes to and fro under calls.
const RELOADS: usize = 10;

/// One handler more than the usual ones.
const MORE: [(&str, &str, &str); 4] = [HANDLERS[0], HANDLERS[1], HANDLERS[2], ("second", "b", "runc")];

#[tokio::test]
async fn a_reload_drops_no_call_and_the_new_handlers_count() {
    let Some(bed) = world::bed() else { return };
    let crimux = world::crimux(&bed, &HANDLERS).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    let pod = pods.run("busy", "runc", &IDLE).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let calls = Arc::new(AtomicU64::new(0));
    let caller = tokio::spawn(call(pods.clone(), pod.container.clone(), stop.clone(), calls.clone()));

    for round in 0..RELOADS {
        let more = round % 2 == 0;
        let handlers = if more { &MORE[..] } else { &HANDLERS[..] };
        let before = calls.load(Ordering::Relaxed);
        std::fs::write(&crimux.config, world::configuration(&bed, handlers)).unwrap();
        crimux.process.signal("HUP").unwrap();
        eventually("the reload counts", async || (known(&mut pods, "second").await == more).then_some(()))
            .await;
        eventually("calls go on", async || (calls.load(Ordering::Relaxed) > before).then_some(())).await;
    }
    stop.store(true, Ordering::Relaxed);
    caller.await.unwrap();
}

#[tokio::test]
async fn a_broken_configuration_changes_nothing() {
    let Some(bed) = world::bed() else { return };
    let crimux = world::crimux(&bed, &HANDLERS).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    let lines = crimux.process.log().unwrap().lines().count();
    std::fs::write(&crimux.config, "listen: 7\nhandlers: { runc: { backend: nowhere } }\n").unwrap();
    crimux.process.signal("HUP").unwrap();
    eventually("crimux says that the file is bad", async || {
        let log = crimux.process.log().unwrap();
        log.lines().skip(lines).any(|line| line.contains("is not an absolute path")).then_some(())
    })
    .await;
    assert!(known(&mut pods, "gvisor").await);
    assert!(!known(&mut pods, "second").await);
}

/// Lists and execs without pause; the first call that fails ends the test.
async fn call(mut pods: Pods, container: String, stop: Arc<AtomicBool>, calls: Arc<AtomicU64>) {
    while !stop.load(Ordering::Relaxed) {
        assert_eq!(pods.list().await.expect("a list under reload").len(), 1);
        let said = pods.exec(&container, &["echo", "on"]).await.expect("an exec under reload");
        assert_eq!(said.stdout, b"on\n");
        calls.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether a handler exists, without making a sandbox of it: crimux names its handlers in its status.
async fn known(pods: &mut Pods, handler: &str) -> bool {
    let status = pods.runtime.status(testkit::cri::StatusRequest::default()).await.unwrap().into_inner();
    status.runtime_handlers.iter().any(|known| known.name == handler)
}
