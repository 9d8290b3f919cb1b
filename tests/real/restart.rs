//! A crimux that dies with pods running: another one takes over and nothing has vanished.

use std::collections::BTreeSet;

use super::world::{self, HANDLERS, IDLE};

#[tokio::test]
async fn a_killed_crimux_comes_back_and_nothing_has_vanished() {
    let Some(bed) = world::bed() else { return };
    let crimux = world::crimux(&bed, &HANDLERS).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    let ran = world::one_pod_per_handler(&mut pods).await;

    crimux.process.kill().unwrap();
    assert!(pods.list().await.is_err(), "the old process still serves");
    // SIGKILL leaves the socket's file behind, which the next one must take over.
    assert!(crimux.socket.exists());
    drop(crimux);

    let crimux = world::crimux(&bed, &HANDLERS).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    let listed: BTreeSet<_> = pods.list().await.unwrap().into_iter().map(|sandbox| sandbox.id).collect();
    assert_eq!(listed, ran.iter().map(|pod| pod.sandbox.clone()).collect());
    for pod in &ran {
        assert_eq!(pods.exec(&pod.container, &["echo", "alive"]).await.unwrap().stdout, b"alive\n");
        pods.remove(&pod.sandbox).await.unwrap();
    }
    assert_eq!(pods.list().await.unwrap(), []);
}

#[tokio::test]
async fn a_crimux_told_to_end_removes_its_socket_and_leaves_pods_alone() {
    let Some(bed) = world::bed() else { return };
    let crimux = world::crimux(&bed, &HANDLERS).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    let pod = pods.run("stays", "runc", &IDLE).await.unwrap();

    crimux.process.signal("TERM").unwrap();
    assert_eq!(crimux.process.wait(world::SOON).unwrap(), 0);
    assert!(!crimux.socket.exists());
    let mut direct = world::dial(&bed, &bed.socket("a")).await;
    assert_eq!(direct.exec(&pod.container, &["echo", "alive"]).await.unwrap().stdout, b"alive\n");
}
