//! What is remembered across starts, reloads and a disk that takes nothing.

use testkit::client::sandbox_config;
use testkit::runtime::SimRuntime;
use tonic::Code;

use super::strace::strace;
use super::{World, backend, containers, sandboxes, timeouts};
use crate::support::{Crimux, SOON, config};

#[tokio::test]
async fn a_killed_crimux_that_starts_while_a_backend_is_down_forgets_nothing() {
    let mut world = World::new().await;
    let before =
        (sandboxes(&world.client, None).await.unwrap(), containers(&world.client, None).await.unwrap());
    // The pair is written in the background; the file shows when.
    let file = world.crimux.dir.path().join("state");
    testkit::eventually(SOON, async || snapshot_holds(&file, &world.sandbox_of_b())).await;
    world.b.stop().await;
    for _ in 0..3 {
        world.crimux.kill_and_start().await;
        world.crimux.wait_ready().await;
        let client = world.crimux.client();
        let after = (sandboxes(&client, None).await.unwrap(), containers(&client, None).await.unwrap());
        assert_eq!(after, before);
        let stop = testkit::cri::StopPodSandboxRequest { pod_sandbox_id: world.sandbox_of_b() };
        let refused = client.runtime().stop_pod_sandbox(stop).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
    }
    world.b.start_again().await;
    world.wait_state("b", "ready").await;
}

/// Tells whether a file of this directory holds this text.
pub(crate) fn holds(dir: &std::path::Path, text: &str) -> bool {
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    // What is still being written counts only once it has its name.
    let written = entries.flatten().filter(|entry| !entry.path().to_string_lossy().ends_with("tmp"));
    written.into_iter().any(|entry| {
        let content = std::fs::read(entry.path()).unwrap_or_default();
        content.windows(text.len()).any(|window| window == text.as_bytes())
    })
}

/// Tells whether the snapshot of this state directory holds this text.
pub(crate) fn snapshot_holds(dir: &std::path::Path, text: &str) -> bool {
    let content = std::fs::read(dir.join("snapshot")).unwrap_or_default();
    content.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn a_start_without_state_waits_for_every_backend_and_names_the_one_it_waits_for() {
    let (a, b) = (backend("a").await, backend("b").await);
    b.stop().await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = timeouts(&config(&dir, &[("a", &a), ("b", &b)], ""));
    let mut crimux = Crimux::start_in(dir, &yaml);
    testkit::eventually(SOON, async || crimux.metric("crimux_backend_up{backend=\"a\"}").await == Some(1.0))
        .await;
    for restarted in [false, true] {
        if restarted {
            crimux.kill_and_start().await;
            testkit::eventually(SOON, async || crimux.get("/readyz").await.is_some()).await;
        }
        let error = sandboxes(&crimux.client(), None).await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable);
        assert!(error.message().contains("not listed yet: b;"), "{}", error.message());
        let (code, text) = crimux.get("/readyz").await.unwrap();
        assert_eq!((code, text.as_str()), (503, "not listed yet: b\n"));
    }
    b.start_again().await;
    crimux.wait_ready().await;
    assert_eq!(sandboxes(&crimux.client(), None).await.unwrap().len(), 4);
}

#[tokio::test]
async fn a_backend_added_later_joins_without_freezing_the_node() {
    let (a, b) = (backend("a").await, backend("b").await);
    let late = backend("late").await;
    late.stop().await;
    let dir = tempfile::tempdir().unwrap();
    let both: [(&str, &SimRuntime); 2] = [("a", &a), ("b", &b)];
    let three = [("a", &a), ("b", &b), ("late", &late)];
    let yaml = timeouts(&config(&dir, &both, ""));
    let mut crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    crimux.rewrite(&timeouts(&config(&crimux.dir, &three, "")));
    let joining = "crimux_backend_state{backend=\"late\",state=\"joining\"}";
    testkit::eventually(SOON, async || crimux.metric(joining).await == Some(1.0)).await;
    let file = crimux.dir.path().join("state");
    let of_b = b.state().sandboxes().next().unwrap().id.clone();
    testkit::eventually(SOON, async || snapshot_holds(&file, &of_b)).await;
    for restarted in [false, true] {
        if restarted {
            crimux.kill_and_start().await;
            crimux.wait_ready().await;
        }
        let client = crimux.client();
        assert_eq!(crimux.get("/readyz").await.unwrap().0, 200, "restarted: {restarted}");
        testkit::eventually(SOON, async || sandboxes(&client, None).await.is_ok_and(|all| all.len() == 4))
            .await;
        let refused = client.runtime().run_pod_sandbox(sandbox_config("new").run("late")).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        assert!(refused.message().contains("backend late is joining"), "{}", refused.message());
    }
    late.start_again().await;
    let client = crimux.client();
    testkit::eventually(SOON, async || sandboxes(&client, None).await.unwrap().len() == 6).await;
    client.runtime().run_pod_sandbox(sandbox_config("new").run("late")).await.unwrap();
}

#[tokio::test]
async fn a_joining_backend_that_cannot_list_at_first_joins_by_itself() {
    let (a, late) = (backend("a").await, backend("late").await);
    let dir = tempfile::tempdir().unwrap();
    let yaml = timeouts(&config(&dir, &[("a", &a)], ""));
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    let not_yet = testkit::runtime::Fault::error(Code::Unavailable, "server is not initialized yet");
    late.fault("ListPodSandbox", not_yet);
    crimux.rewrite(&timeouts(&config(&crimux.dir, &[("a", &a), ("late", &late)], "")));
    late.wait_for_call("ListPodSandbox", 2).await;
    assert_eq!(sandboxes(&crimux.client(), None).await.unwrap().len(), 2);
    late.clear_faults();
    let ready = "crimux_backend_state{backend=\"late\",state=\"ready\"}";
    testkit::eventually(SOON, async || crimux.metric(ready).await == Some(1.0)).await;
}

#[tokio::test]
async fn a_state_dir_that_takes_nothing_is_told_in_log_and_metric_and_calls_go_on() {
    let (a, b) = (backend("a").await, backend("b").await);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let yaml = timeouts(&config(&dir, &[("a", &a), ("b", &b)], ""));
    let at = dir.path().display();
    let yaml = yaml.replace(&format!("state_dir: {at}/state"), &format!("state_dir: {at}/file/state"));
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    let client = crimux.client();
    let run = sandbox_config("new").run("b");
    let made = client.runtime().run_pod_sandbox(run).await.unwrap().into_inner().pod_sandbox_id;
    b.stop().await;
    assert!(sandboxes(&client, None).await.unwrap().contains(&made), "memory alone serves it");
    let errors = "crimux_state_write_errors_total";
    testkit::eventually(SOON, async || crimux.metric(errors).await.is_some_and(|count| count >= 2.0)).await;
    assert!(crimux.log().contains("lives in memory alone"), "{}", crimux.log());
}

#[tokio::test]
async fn a_create_costs_one_write_to_the_journal_and_no_sync() {
    let world = World::new().await;
    // The first snapshot is written now, and the next one not before something has changed for three seconds.
    let dir = world.crimux.dir.path().join("state");
    testkit::eventually(SOON, async || snapshot_holds(&dir, &world.sandbox_of_b())).await;
    let trace = world.crimux.dir.path().join("trace");
    let options = ["-e", "trace=write,writev,pwrite64,fsync,fdatasync"];
    let Some(mut strace) = strace(&world.crimux, &trace, &options).await else { return };
    for number in 0..5 {
        let run = sandbox_config(&format!("new-{number}")).run("b");
        world.client.runtime().run_pod_sandbox(run).await.unwrap();
    }
    let traced = std::fs::read_to_string(&trace).unwrap();
    strace.kill().await.unwrap();
    let journal: Vec<_> = traced.lines().filter(|line| line.contains("/state/journal-")).collect();
    // A journal that a snapshot began has a head.
    let is_record = |line: &&&str| line.contains("write(") && !line.contains("\"crmxjrn");
    let writes = journal.iter().filter(is_record).count();
    assert_eq!(writes, 5, "{traced}");
    assert!(!journal.iter().any(|line| line.contains("sync(")), "{traced}");
}
