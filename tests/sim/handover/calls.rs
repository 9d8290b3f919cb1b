//! Calls in flight end in the old process when another one takes over; later calls go to the new one.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crimux::shutdown::Shutdown;
use testkit::client::container_config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::Status;

use super::*;
use crate::outage::{containers, sandboxes};
use crate::systemd::is_unsent;

/// Lists over one connection every 50 ms, and each time over another one, until it is told to stop; returns
/// how many lists there were, and those that were not as they should be.
async fn list_on(
    socket: std::path::PathBuf,
    wanted: usize,
    answered: Arc<AtomicUsize>,
    stop: Shutdown,
) -> (usize, Vec<String>) {
    let (kept, mut lists, mut wrong) = (Client::unix(&socket), 0, Vec::new());
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    while !stop.is_begun() {
        tick.tick().await;
        for client in [&kept, &Client::unix(&socket)] {
            lists += 1;
            match tokio::time::timeout(SOON, sandboxes(client, None)).await {
                Ok(Ok(listed)) if listed.len() == wanted => {}
                Ok(Err(status)) if is_unsent(&status) => {}
                other => wrong.push(format!("{other:?}")),
            }
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
    (lists, wrong)
}

/// A call that hangs at the backend until its fault is cleared.
async fn begin<F>(runtime: &SimRuntime, method: &str, call: F) -> JoinHandle<Result<(), Status>>
where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    runtime.fault(method, Fault::Hang);
    let call = tokio::spawn(call);
    runtime.wait_for_call(method, 1).await;
    call
}

#[tokio::test]
async fn no_list_is_refused_and_no_call_ends_in_ten_handovers() {
    let a = SimRuntime::builder("a").containers(3, 1).events().start().await;
    let node = Node::start(&[("a", &a)], "").await;
    let containers: Vec<_> = a.state().containers().map(|container| container.id.clone()).collect();
    let (answered, stop) = (Arc::new(AtomicUsize::new(0)), Shutdown::default());
    let lister = tokio::spawn(list_on(node.crimux.socket(), 3, Arc::clone(&answered), stop.clone()));
    // Each client's connection is one that the first process accepted.
    let clients: Vec<_> = (0..4).map(|_| node.client()).collect();
    let (mut runtime, id) = (clients[0].runtime(), containers[0].clone());
    let exec = begin(&a, "ExecSync", async move {
        let request = cri::ExecSyncRequest { container_id: id, cmd: vec!["true".into()], timeout: 60 };
        runtime.exec_sync(request).await.map(drop)
    });
    let exec = exec.await;
    let (mut runtime, id) = (clients[1].runtime(), containers[1].clone());
    let stopped = begin(&a, "StopContainer", async move {
        runtime.stop_container(cri::StopContainerRequest { container_id: id, timeout: 60 }).await.map(drop)
    });
    let stopped = stopped.await;
    let mut images = clients[2].images();
    let pull = begin(&a, "PullImage", async move {
        let image = Some(cri::ImageSpec { image: "registry.example/large:1".into(), ..Default::default() });
        images.pull_image(cri::PullImageRequest { image, ..Default::default() }).await.map(drop)
    });
    let pull = pull.await;
    let mut events =
        clients[3].runtime().get_container_events(cri::GetEventsRequest {}).await.unwrap().into_inner();
    let first = node.pid().await;
    for round in 0..10 {
        let before = answered.load(Ordering::Relaxed);
        eventually(SOON, async || answered.load(Ordering::Relaxed) > before + 1).await;
        let serving = node.upgraded(&[]).await;
        assert_eq!(node.pid().await, serving, "round {round}");
    }
    assert!(node.older().await.contains(&first), "it has calls left: {}", node.status().await);
    let before = answered.load(Ordering::Relaxed);
    eventually(SOON, async || answered.load(Ordering::Relaxed) > before + 1).await;
    stop.begin();
    let (lists, wrong) = lister.await.unwrap();
    assert!(wrong.is_empty(), "{} of {lists} lists: {wrong:?}\n{}", wrong.len(), node.crimux.log());

    let made = a.state().run_sandbox(sandbox_config("late").build(), "").unwrap();
    let mut about_it = async || loop {
        let event = tokio::time::timeout(SOON, events.message()).await.unwrap().unwrap().expect("no end");
        if event.container_id == made {
            return;
        }
    };
    about_it().await;
    a.clear_faults();
    for (what, call) in [("ExecSync", exec), ("StopContainer", stopped), ("PullImage", pull)] {
        tokio::time::timeout(SOON, call).await.expect(what).unwrap().expect(what);
        assert_eq!(a.calls(what).len(), 1, "{what} was sent once");
    }
    drop(events);
    drop(clients);
    gone(first).await;
    eventually(SOON, async || node.older().await.is_empty()).await;
}

#[tokio::test]
async fn relayed_streams_go_on_and_a_url_holds_over_three_handovers() {
    let a = SimRuntime::builder("a").containers(1, 1).tcp().start().await;
    let dir = tempfile::tempdir().unwrap();
    let endpoint = format!("endpoint: \"{}\"", a.endpoint());
    let relayed = format!("{endpoint}, streaming: {{ address: \"127.0.0.1:{}\" }}", a.stream_port());
    let yaml = config(&dir, &[("a", &a)], "").replace(&endpoint, &relayed);
    let node = Node::start_with(dir, &yaml).await;
    let container_id = a.state().containers().next().unwrap().id.clone();
    let request =
        cri::ExecRequest { container_id, cmd: vec!["cat".into()], stdout: true, ..Default::default() };
    let client = node.client();
    let url = async || client.runtime().exec(request.clone()).await.unwrap().into_inner().url;
    let pod_sandbox_id = a.state().sandboxes().next().unwrap().id.clone();
    let forward = cri::PortForwardRequest { pod_sandbox_id, port: vec![80] };
    let forward = client.runtime().port_forward(forward).await.unwrap().into_inner().url;
    let (open, unused) = (url().await, url().await);
    let (mut stream, mut forwarded) = (connect(&open).await, connect(&forward).await);
    returns(&mut forwarded, b'1').await;
    let first = node.pid().await;
    for round in 0..3 {
        node.upgraded(&[]).await;
        returns(&mut forwarded, round).await;
    }
    let mut later = connect(&unused).await;
    assert!(node.older().await.contains(&first));
    // 64 MiB through the first, each byte after the handover.
    let (mut read, mut write) = stream.split();
    let chunk: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8).collect();
    let sent = chunk.clone();
    let sending = async {
        for _ in 0..64 {
            write.write_all(&sent).await.unwrap();
        }
        write.shutdown().await.unwrap();
    };
    let receiving = async {
        let mut received = vec![0; chunk.len()];
        for part in 0..64 {
            read.read_exact(&mut received).await.unwrap();
            assert!(received == chunk, "part {part}");
        }
        assert_eq!(read.read(&mut received).await.unwrap(), 0, "the end comes through");
    };
    tokio::time::timeout(SOON * 6, async { tokio::join!(sending, receiving) }).await.unwrap();
    returns(&mut later, b'x').await;
    returns(&mut forwarded, b'2').await;
    drop((stream, later, forwarded));
    gone(first).await;
}

/// Sends a byte through a stream whose other end sends it back.
async fn returns(stream: &mut TcpStream, byte: u8) {
    stream.write_all(&[byte]).await.unwrap();
    assert_eq!(tokio::time::timeout(SOON, stream.read_u8()).await.unwrap().unwrap(), byte);
}

/// Opens the stream of a URL of the relay.
async fn connect(url: &str) -> TcpStream {
    let (authority, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = TcpStream::connect(authority).await.unwrap();
    let head = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n";
    let request = format!("POST /{path} HTTP/1.1\r\nHost: {authority}\r\n{head}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
    stream
}

#[tokio::test]
async fn a_sandbox_that_the_old_process_creates_is_the_new_ones_before_the_client_hears_of_it() {
    let (a, b) = (SimRuntime::builder("a").start().await, SimRuntime::builder("b").start().await);
    let node = Node::start(&[("a", &a), ("b", &b)], "").await;
    b.fault("RunPodSandbox", Fault::Hang);
    let client = node.client();
    let creating = tokio::spawn(async move { create(&client, "slow", "b").await });
    b.wait_for_call("RunPodSandbox", 1).await;
    let first = node.pid().await;
    let serving = node.upgraded(&[]).await;
    // No list of the new process can show it.
    assert_eq!(b.state().sandboxes().count(), 0);
    b.fault("ListPodSandbox", Fault::Hang);
    b.clear_fault("RunPodSandbox");
    let id = creating.await.unwrap().unwrap();
    b.stop().await;
    let listed = sandboxes(&node.client(), None).await.unwrap();
    assert!(listed.contains(&id), "{listed:?}\n{}", node.crimux.log());
    gone(first).await;
    node.saved().await;
    node.kill(serving);
    gone(serving).await;
    let mut node = node;
    node.crimux.start_again();
    node.crimux.wait_ready().await;
    let listed = sandboxes(&node.client(), None).await.unwrap();
    assert!(listed.contains(&id), "it is on the disk: {listed:?}\n{}", node.crimux.log());
}

#[tokio::test]
async fn what_the_old_process_creates_stops_and_removes_is_known_to_the_new_one() {
    let a = SimRuntime::builder("a").start().await;
    let b = SimRuntime::builder("b").containers(3, 1).start().await;
    let node = Node::start(&[("a", &a), ("b", &b)], "").await;
    let ids: Vec<_> = b.state().sandboxes().map(|sandbox| sandbox.id.clone()).collect();
    b.state().add_image("app:1");
    let [holder, stopped, removed] = [0, 1, 2].map(|at| ids[at].clone());
    let client = node.client();
    let mut runtime = client.runtime();
    let request = container_config("slow", "app:1").create_in(&holder, &sandbox_config("holder").build());
    let creating =
        begin(&b, "CreateContainer", async move { runtime.create_container(request).await.map(drop) });
    let (mut runtime, id) = (client.runtime(), stopped.clone());
    let stopping = begin(&b, "StopPodSandbox", async move {
        runtime.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: id }).await.map(drop)
    });
    let (mut runtime, id) = (client.runtime(), removed.clone());
    let removing = begin(&b, "RemovePodSandbox", async move {
        runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id }).await.map(drop)
    });
    let calls = [Box::pin(creating).await, Box::pin(stopping).await, Box::pin(removing).await];
    node.upgraded(&[]).await;
    // No list of the new process can show what they do.
    b.fault("ListPodSandbox", Fault::Hang);
    b.fault("ListContainers", Fault::Hang);
    for method in ["CreateContainer", "StopPodSandbox", "RemovePodSandbox"] {
        b.clear_fault(method);
    }
    for call in calls {
        tokio::time::timeout(SOON, call).await.unwrap().unwrap().unwrap();
    }
    let before: BTreeSet<_> = b.state().containers().map(|container| container.id.clone()).collect();
    b.stop().await;
    let client = node.client();
    let listed = client.runtime().list_pod_sandbox(cri::ListPodSandboxRequest::default()).await.unwrap();
    let states: HashMap<_, _> =
        listed.into_inner().items.into_iter().map(|item| (item.id, item.state)).collect();
    assert_eq!(states.get(&stopped), Some(&cri::PodSandboxState::SandboxNotready.into()));
    assert_eq!(states.get(&removed), None, "{states:?}");
    assert_eq!(
        containers(&client, None).await.unwrap(),
        before,
        "with the new one, without that of the removed sandbox"
    );
    let lost = node.crimux.metric("crimux_lost_sandboxes_total{backend=\"b\"}").await;
    assert_eq!(lost, Some(0.0), "it was removed through crimux");
}

#[tokio::test]
async fn calls_after_handover_timeout_are_cut() {
    let a = SimRuntime::builder("a").containers(1, 1).start().await;
    let node = Node::start(&[("a", &a)], "handover_timeout: 300ms\n").await;
    let container_id = a.state().containers().next().unwrap().id.clone();
    let client = node.client();
    let exec = begin(&a, "ExecSync", async move {
        let request = cri::ExecSyncRequest { container_id, cmd: vec!["true".into()], timeout: 60 };
        client.runtime().exec_sync(request).await.map(drop)
    });
    let exec = exec.await;
    let first = node.pid().await;
    node.upgraded(&["--wait"]).await;
    assert!(exec.await.unwrap().is_err());
    gone(first).await;
}

#[tokio::test]
async fn the_port_of_the_status_page_stays_the_same_and_wait_is_until_the_old_process_has_ended() {
    let a = SimRuntime::builder("a").containers(1, 1).start().await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&dir, &[("a", &a)], "").replace("http: off", "http: \"127.0.0.1:0\"");
    let node = Node::start_with(dir, &yaml).await;
    let (address, first) = (node.crimux.http_address(), node.pid().await);
    let second = node.upgraded(&["--wait"]).await;
    gone(first).await;
    assert_eq!(node.crimux.http_address(), address);
    assert_eq!(node.crimux.http("GET", "/healthz").await.0, 200);
    // What the first has left does not end with it: the file of its socket.
    kill(Pid::from_raw(second.try_into().unwrap()), Signal::SIGTERM).unwrap();
    gone(second).await;
    assert!(!node.crimux.socket().exists() && !node.path().join("admin.sock").exists());
}
