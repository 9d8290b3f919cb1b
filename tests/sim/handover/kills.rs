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
    half_way_with(a, "1h", |a| a.fault("ListPodSandbox", Fault::Hang)).await
}

/// The same, with this time for lists, and this fault since before the new process is started.
async fn half_way_with(a: &SimRuntime, list: &str, fault: impl FnOnce(&SimRuntime)) -> HalfWay {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = format!("endpoint: \"{}\"", a.endpoint());
    let patient = format!("{endpoint}, timeouts: {{ list: {list} }}");
    let yaml = config(&dir, &[("a", a)], "").replace(&endpoint, &patient);
    let node = Node::start_with(dir, &yaml).await;
    fault(a);
    let upgrade = begin_upgrade(&node, &[]);
    // It says so once it has the state.
    node.logged(" serving listen=", 2).await;
    let new = node.started()[0];
    HalfWay { node, upgrade, new }
}

/// Runs `crimux upgrade` beside the test.
fn begin_upgrade(node: &Node, arguments: &[&str]) -> JoinHandle<Output> {
    let socket = node.path().join("admin.sock").display().to_string();
    let mut all: Vec<_> = ["upgrade", "--within", "1h", "--socket", &socket].map(str::to_owned).into();
    all.extend(arguments.iter().map(ToString::to_string));
    tokio::spawn(async move {
        let all: Vec<_> = all.iter().map(String::as_str).collect();
        crate::cli::crimux(&all, "").await
    })
}

/// A node whose next process has its program to start yet, which it does once it is told to continue.
async fn not_begun(a: &SimRuntime) -> HalfWay {
    let node = Node::start(&[("a", a)], "").await;
    let crimux = env!("CARGO_BIN_EXE_crimux");
    let program = node.program(&format!("kill -STOP $$; exec {crimux} \"$@\""));
    let upgrade = begin_upgrade(&node, &["--binary", &program]);
    node.logged(STARTED, 1).await;
    let new = node.started()[0];
    eventually(SOON, async || is_stopped(new)).await;
    HalfWay { node, upgrade, new }
}

/// A node whose next process has told the old one, which is stopped, that it can serve.
async fn ready(a: &SimRuntime) -> HalfWay {
    let half_way = half_way(a).await;
    let node = &half_way.node;
    node.crimux.signal(Signal::SIGSTOP);
    eventually(SOON, async || is_stopped(node.crimux.pid())).await;
    a.clear_faults();
    node.logged("waiting to be told to serve", 1).await;
    half_way
}

/// Tells whether all of a process is stopped by a signal.
fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|stat| stat.starts_with('T'))
}

/// The new process serves, with these sandboxes, whatever the backend says.
async fn new_one_serves(node: &Node, a: &SimRuntime, new: u32, wanted: &[&String]) {
    eventually(SOON, async || node.crimux.get("/readyz").await.is_some_and(|(code, _)| code == 200)).await;
    assert_eq!(node.pid().await, new);
    a.stop().await;
    let listed = sandboxes(&node.client(), None).await.unwrap();
    let log = node.crimux.log();
    assert!(wanted.iter().all(|id| listed.contains(*id)), "{wanted:?} in {listed:?}\n{log}");
    assert_eq!(listed.len(), 2 + wanted.len(), "{listed:?}\n{log}");
}

/// The old process goes on, with these sandboxes, and so does the next start.
async fn old_one_goes_on(node: &mut Node, a: &SimRuntime, wanted: &[&String]) {
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
        let (log, all) = (node.crimux.log(), [wanted, &[&later]].concat());
        assert!(all.iter().all(|id| listed.contains(*id)), "killed: {killed}: {listed:?}\n{log}");
        assert_eq!(listed.len(), 2 + all.len(), "killed: {killed}: {listed:?}");
    }
}

#[tokio::test]
async fn an_old_process_that_is_killed_before_the_state_passed_leaves_a_new_one_that_serves() {
    let a = SimRuntime::builder("a").containers(2, 1).start().await;
    let HalfWay { mut node, upgrade, new } = not_begun(&a).await;
    let created = create(&node.client(), "created", "a").await.unwrap();
    node.saved().await;
    node.crimux.signal(Signal::SIGKILL);
    assert_eq!(node.crimux.ended().await, None);
    assert!(!upgrade.await.unwrap().status.success(), "who asked for it is told that it was cut");
    kill(Pid::from_raw(new.try_into().unwrap()), Signal::SIGCONT).unwrap();
    new_one_serves(&node, &a, new, &[&created]).await;
}

#[tokio::test]
async fn a_new_process_that_is_killed_before_the_state_passed_changes_nothing() {
    let a = SimRuntime::builder("a").containers(2, 1).start().await;
    let HalfWay { mut node, upgrade, new } = not_begun(&a).await;
    let created = create(&node.client(), "created", "a").await.unwrap();
    node.kill(new);
    let output = upgrade.await.unwrap();
    assert!(errors(&output).contains("signal: 9"), "{}", errors(&output));
    old_one_goes_on(&mut node, &a, &[&created]).await;
}

#[tokio::test]
async fn an_old_process_that_is_killed_before_it_says_serve_leaves_a_new_one_that_serves() {
    let a = SimRuntime::builder("a").containers(2, 1).start().await;
    let HalfWay { mut node, upgrade, new } = ready(&a).await;
    node.crimux.signal(Signal::SIGKILL);
    assert_eq!(node.crimux.ended().await, None);
    assert!(!upgrade.await.unwrap().status.success(), "who asked for it is told that it was cut");
    new_one_serves(&node, &a, new, &[]).await;
}

#[tokio::test]
async fn a_new_process_that_is_killed_before_it_is_told_to_serve_gives_the_state_back() {
    let a = SimRuntime::builder("a").containers(2, 1).start().await;
    let HalfWay { mut node, upgrade, new } = ready(&a).await;
    node.kill(new);
    gone(new).await;
    node.crimux.signal(Signal::SIGCONT);
    let output = upgrade.await.unwrap();
    assert!(errors(&output).contains("signal: 9"), "{}", errors(&output));
    old_one_goes_on(&mut node, &a, &[]).await;
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
    old_one_goes_on(&mut node, &a, &[&meanwhile]).await;
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
    new_one_serves(&node, &a, new, &[&meanwhile]).await;
}

/// A call that the first process finishes while a second one serves.
async fn finishing(a: &SimRuntime, more: &str) -> (Node, JoinHandle<Result<(), tonic::Status>>, u32) {
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&dir, &[("a", a)], more).replace("http: off", "http: \"127.0.0.1:0\"");
    let node = Node::start_with(dir, &yaml).await;
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
    // The page is made once a second at most.
    let page = async || node.crimux.http("GET", "/").await.1;
    let left = ["was replaced at", "and finishes calls: 1, relayed streams: 0."];
    let process = format!("Process {old} (version ");
    eventually(SOON, async || {
        let page = page().await;
        page.contains(&process) && left.iter().all(|part| page.contains(part))
    })
    .await;
    a.clear_faults();
    call.await.unwrap().unwrap();
    eventually(SOON, async || node.older().await.is_empty()).await;
    assert_eq!(node.crimux.metric("crimux_older_processes").await, Some(0.0));
    eventually(SOON, async || !page().await.contains(&process)).await;
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

#[tokio::test]
async fn both_processes_end_if_both_are_told_to_as_systemd_does() {
    let a = SimRuntime::builder("a").containers(2, 1).start().await;
    let (mut node, call, serving) = finishing(&a, "drain_timeout: 200ms\n").await;
    node.crimux.signal(Signal::SIGTERM);
    kill(Pid::from_raw(serving.try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert!(call.await.unwrap().is_err());
    assert_eq!(node.crimux.ended().await, Some(0), "{}", node.crimux.log());
    gone(serving).await;
    assert_eq!(node.started(), [serving], "none was started in its place");
    assert!(!node.crimux.socket().exists() && !node.path().join("admin.sock").exists());
}

#[tokio::test]
async fn what_the_old_process_listed_last_is_shown_of_a_backend_that_is_lost_meanwhile() {
    let a = SimRuntime::builder("a").containers(2, 1).start().await;
    // Of all lists, the first one of the new process hangs.
    let fault = |a: &SimRuntime| {
        a.clear_calls();
        a.fault_next("ListPodSandbox", 1, Fault::Hang);
    };
    let HalfWay { node, upgrade, new } = half_way_with(&a, "20s", fault).await;
    a.wait_for_call("ListPodSandbox", 1).await;
    let new_pid = Pid::from_raw(new.try_into().unwrap());
    kill(new_pid, Signal::SIGSTOP).unwrap();
    eventually(SOON, async || is_stopped(new)).await;
    let made = a.state().run_sandbox(sandbox_config("late").build(), "").unwrap();
    let client = node.client();
    assert!(sandboxes(&client, None).await.unwrap().contains(&made));
    client.runtime().list_containers(cri::ListContainersRequest::default()).await.unwrap();
    a.stop().await;
    kill(new_pid, Signal::SIGCONT).unwrap();
    let output = upgrade.await.unwrap();
    assert!(output.status.success(), "{}{}", errors(&output), node.crimux.log());
    let listed = sandboxes(&node.client(), None).await.unwrap();
    assert!(listed.contains(&made) && listed.len() == 3, "{listed:?}\n{}", node.crimux.log());
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: made, verbose: false };
    let status = node.client().runtime().pod_sandbox_status(request).await.map(drop);
    assert!(status.is_err_and(|status| status.code() != tonic::Code::NotFound), "its owner is known");
}
