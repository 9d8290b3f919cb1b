//! Either process is killed at a step of the handover: the other one serves, and nothing acknowledged is
//! lost.

use tokio::task::JoinHandle;

use super::*;
use crate::outage::sandboxes;

/// A node whose next process has the state and waits for its first lists, and the upgrade that is under way.
struct HalfWay {
    node: Node,
    upgrade: JoinHandle<Output>,
    /// The process that is to take over.
    new: u32,
}

async fn half_way(a: &SimRuntime) -> HalfWay {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = format!("endpoint: \"{}\"", a.endpoint());
    let patient = format!("{endpoint}, timeouts: {{ list: 1h }}");
    let yaml = config(&dir, &[("a", a)], "").replace(&endpoint, &patient);
    let node = Node::start_with(dir, &yaml).await;
    a.fault("ListPodSandbox", Fault::Hang);
    let socket = node.path().join("admin.sock").display().to_string();
    let upgrade = tokio::spawn(async move {
        let arguments = ["upgrade", "--within", "1h", "--socket", &socket];
        crate::cli::crimux(&arguments, "").await
    });
    // It says so once it has the state.
    node.logged(" serving listen=", 2).await;
    let new = node.started()[0];
    HalfWay { node, upgrade, new }
}

#[tokio::test]
async fn a_new_process_that_is_killed_with_the_state_gives_it_back() {
    let a = SimRuntime::builder("a").containers(2, 1).start().await;
    let HalfWay { mut node, upgrade, new } = half_way(&a).await;
    let before = node.pid().await;
    let meanwhile = create(&node.client(), "meanwhile", "a").await.unwrap();
    node.kill(new);
    let output = upgrade.await.unwrap();
    assert!(errors(&output).contains("signal: 9"), "{}", errors(&output));
    assert_eq!(node.pid().await, before);
    let later = create(&node.client(), "later", "a").await.unwrap();
    node.saved().await;
    a.clear_faults();
    a.stop().await;
    for killed in [false, true] {
        if killed {
            node.crimux.kill_and_start().await;
            node.crimux.wait_ready().await;
        }
        let listed = sandboxes(&node.client(), None).await.unwrap();
        let log = node.crimux.log();
        assert!(
            listed.contains(&meanwhile) && listed.contains(&later),
            "killed: {killed}: {listed:?}\n{log}"
        );
        assert_eq!(listed.len(), 4, "killed: {killed}: {listed:?}");
    }
}

#[tokio::test]
async fn an_old_process_that_is_killed_after_the_state_passed_leaves_the_new_one_serving() {
    let a = SimRuntime::builder("a").containers(2, 1).start().await;
    let HalfWay { mut node, upgrade, new } = half_way(&a).await;
    let meanwhile = create(&node.client(), "meanwhile", "a").await.unwrap();
    node.crimux.signal(Signal::SIGKILL);
    assert_eq!(node.crimux.ended().await, None);
    assert!(!upgrade.await.unwrap().status.success(), "who asked for it is told that it was cut");
    a.clear_faults();
    eventually(SOON, async || node.crimux.get("/readyz").await.is_some_and(|(code, _)| code == 200)).await;
    assert_eq!(node.pid().await, new);
    a.stop().await;
    let listed = sandboxes(&node.client(), None).await.unwrap();
    assert!(listed.contains(&meanwhile) && listed.len() == 3, "{listed:?}\n{}", node.crimux.log());
}

/// A call that the first process finishes while a second one serves.
async fn finishing(a: &SimRuntime, more: &str) -> (Node, JoinHandle<Result<(), tonic::Status>>, u32) {
    let node = Node::start(&[("a", a)], more).await;
    let container_id = a.state().containers().next().unwrap().id.clone();
    a.fault("ExecSync", Fault::Hang);
    let client = node.client();
    let call = tokio::spawn(async move {
        let request = cri::ExecSyncRequest { container_id, cmd: vec!["true".into()], timeout: 60 };
        client.runtime().exec_sync(request).await.map(drop)
    });
    a.wait_for_call("ExecSync", 1).await;
    let serving = node.upgraded(&[]).await;
    (node, call, serving)
}

#[tokio::test]
async fn status_and_metrics_show_what_the_old_process_has_left() {
    let a = SimRuntime::builder("a").containers(2, 1).start().await;
    let (node, call, serving) = finishing(&a, "").await;
    let old = node.crimux.pid();
    eventually(SOON, async || node.status().await["older_processes"][0]["calls"] == 1).await;
    let older = &node.status().await["older_processes"][0];
    assert_eq!((&older["pid"], &older["streams"]), (&old.into(), &0.into()));
    assert_eq!(older["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(node.crimux.metric("crimux_older_processes").await, Some(1.0));
    assert_eq!(node.crimux.metric("crimux_older_process_calls").await, Some(1.0));
    let (_, table, _) = crate::cli::on(&node.crimux, &["status"], "").await;
    let line = format!("pid {old} (version {}) was replaced", env!("CARGO_PKG_VERSION"));
    assert!(table.contains(&line) && table.contains("finishes calls: 1, relayed streams: 0"), "{table}");
    a.clear_faults();
    call.await.unwrap().unwrap();
    eventually(SOON, async || node.older().await.is_empty()).await;
    assert_eq!(node.crimux.metric("crimux_older_processes").await, Some(0.0));
    assert_eq!(node.pid().await, serving);
}

#[tokio::test]
async fn another_process_is_started_if_the_new_one_is_killed_while_the_old_one_finishes() {
    let a = SimRuntime::builder("a").containers(2, 1).start().await;
    let (node, call, serving) = finishing(&a, "").await;
    let created = create(&node.client(), "created", "a").await.unwrap();
    node.kill(serving);
    node.logged("took over pid=", 2).await;
    let listed = sandboxes(&node.client(), None).await.unwrap();
    assert!(listed.contains(&created) && listed.len() == 3, "{listed:?}\n{}", node.crimux.log());
    let third = node.pid().await;
    assert_eq!(node.started(), [serving, third]);
    a.clear_faults();
    call.await.unwrap().unwrap();
    eventually(SOON, async || node.older().await.is_empty()).await;
    assert_eq!(node.pid().await, third);
}

#[tokio::test]
async fn an_old_process_that_is_killed_while_it_finishes_takes_its_own_calls_alone() {
    let a = SimRuntime::builder("a").containers(2, 1).start().await;
    let (mut node, call, serving) = finishing(&a, "").await;
    node.crimux.signal(Signal::SIGKILL);
    assert_eq!(node.crimux.ended().await, None);
    assert!(call.await.unwrap().is_err());
    eventually(SOON, async || node.older().await.is_empty()).await;
    assert_eq!(node.pid().await, serving);
    assert_eq!(sandboxes(&node.client(), None).await.unwrap().len(), 2);
}

#[tokio::test]
async fn the_end_of_the_new_process_ends_the_old_one_too() {
    let a = SimRuntime::builder("a").containers(2, 1).start().await;
    let (mut node, call, serving) = finishing(&a, "drain_timeout: 200ms\n").await;
    kill(Pid::from_raw(serving.try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert!(call.await.unwrap().is_err());
    assert_eq!(node.crimux.ended().await, Some(0), "{}", node.crimux.log());
    gone(serving).await;
    assert_eq!(node.started(), [serving], "none was started in its place");
}
