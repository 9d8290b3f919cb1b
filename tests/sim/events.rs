//! Container events: one stream, fed by every backend, stable while backends come and go.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use testkit::client::RawStream;
use testkit::runtime::{Abilities, Call, End, Events, Fault, Reply, SimRuntime};
use testkit::{Client, cri, eventually};
use tokio::net::UnixStream;
use tonic::{Code, Status};

use crate::support::{Crimux, SOON, config};

const EVENTS: &str = "/runtime.v1.RuntimeService/GetContainerEvents";
const CONTAINERS: &str = "/runtime.v1.RuntimeService/ListContainers";

async fn with_events(name: &str) -> SimRuntime {
    SimRuntime::builder(name).containers(2, 1).events().start().await
}

/// crimux with more configuration, ready.
async fn start(backends: &[(&str, &SimRuntime)], more: &str) -> Crimux {
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&dir, backends, more);
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    crimux
}

/// A client's event stream, once it is offered.
async fn subscribe(client: &Client) -> RawStream {
    let mut stream = client.raw_stream(EVENTS, &[], Bytes::new()).await.unwrap();
    tokio::time::timeout(SOON, stream.headers()).await.expect("events are offered").unwrap();
    stream
}

async fn next(stream: &mut RawStream) -> Bytes {
    tokio::time::timeout(SOON, stream.next()).await.expect("an event comes").unwrap().expect("no end")
}

/// The next event about this sandbox or container; a new sandbox has two.
async fn next_about(stream: &mut RawStream, id: &str) -> Bytes {
    loop {
        let event = next(stream).await;
        if about(&event) == id {
            return event;
        }
    }
}

/// How the stream ends.
async fn end(stream: RawStream) -> Status {
    tokio::time::timeout(SOON, stream.finish()).await.expect("the stream ends").unwrap().status()
}

/// Makes something happen: a new sandbox, which has an event.
fn happen(runtime: &SimRuntime, name: &str) -> String {
    runtime.state().run_sandbox(testkit::client::sandbox_config(name).build(), "").unwrap()
}

fn about(event: &Bytes) -> String {
    cri::ContainerEventResponse::decode(event.clone()).unwrap().container_id
}

#[tokio::test]
async fn events_of_all_backends_pass_as_the_bytes_they_came_in() {
    let (a, b) = (with_events("a").await, with_events("b").await);
    let crimux = start(&[("a", &a), ("b", &b)], "").await;
    let client = crimux.client();
    let mut stream = subscribe(&client).await;
    sources(&crimux, &["stream", "stream"]).await;
    for runtime in [&a, &b, &a] {
        let direct_client = Client::unix(runtime.socket());
        let before = runtime.state().event_streams();
        let mut direct = direct_client.raw_stream(EVENTS, &[], Bytes::new()).await.unwrap();
        eventually(SOON, async || runtime.state().event_streams() == before + 1).await;
        let id = happen(runtime, &format!("pod-of-{before}-{}", runtime.calls("*").len()));
        for _ in ["created", "started"] {
            let event = next_about(&mut stream, &id).await;
            assert_eq!(event, next_about(&mut direct, &id).await);
        }
    }
}

#[tokio::test]
async fn clients_share_one_stream_of_each_backend_and_it_ends_with_the_last_of_them() {
    let a = with_events("a").await;
    let crimux = start(&[("a", &a)], "").await;
    assert_eq!(a.calls("GetContainerEvents").len(), 0, "nobody wants events yet");
    let (one, other) = (crimux.client(), crimux.client());
    let (mut first, mut second) = (subscribe(&one).await, subscribe(&other).await);
    let id = happen(&a, "pod");
    next_about(&mut first, &id).await;
    next_about(&mut second, &id).await;
    assert_eq!(a.state().event_streams(), 1);
    drop(first);
    let id = happen(&a, "another");
    next_about(&mut second, &id).await;
    drop(second);
    a.wait_for_cancel("GetContainerEvents").await;
}

#[tokio::test]
async fn a_backend_without_a_stream_has_its_lists_compared() {
    let a = with_events("a").await;
    for events in [Events::Unimplemented, Events::EndAtOnce] {
        let b = SimRuntime::builder("b").containers(2, 1);
        let b = b.abilities(|abilities: &mut Abilities| abilities.events = events).start().await;
        let crimux = start(&[("a", &a), ("b", &b)], "").await;
        let client = crimux.client();
        let mut stream = subscribe(&client).await;
        sources(&crimux, &["stream", "lists"]).await;
        let container = b.state().containers().next().unwrap().id.clone();
        b.state().exit_container(&container, 3);
        let stopped = decoded(&next_about(&mut stream, &container).await);
        assert_eq!(
            stopped.container_event_type(),
            cri::ContainerEventType::ContainerStoppedEvent,
            "{events:?}"
        );
        let pod = stopped.pod_sandbox_status.unwrap().metadata.unwrap();
        assert!(!pod.uid.is_empty(), "kubelet finds the pod by it");
        assert_eq!(stopped.containers_statuses[0].exit_code, 3);
        let id = happen(&a, &format!("{events:?}").to_lowercase());
        next_about(&mut stream, &id).await;
    }
}

fn decoded(event: &Bytes) -> cri::ContainerEventResponse {
    cri::ContainerEventResponse::decode(event.clone()).unwrap()
}

/// Waits until the events of the backends, in the order of their names, come from these sources.
async fn sources(crimux: &Crimux, wanted: &[&str]) {
    eventually(SOON, async || {
        let status: serde_json::Value =
            serde_json::from_str(&crimux.get("/v1/status").await.unwrap().1).unwrap();
        let backends = status["backends"].as_array().unwrap();
        backends
            .iter()
            .map(|backend| backend["event_source"].as_str().unwrap_or("none"))
            .eq(wanted.iter().copied())
    })
    .await;
}

#[tokio::test]
async fn events_are_offered_while_a_backend_is_down_and_tell_what_happened_once_it_is_back() {
    let (a, b) = (with_events("a").await, with_events("b").await);
    let crimux = start(&[("a", &a), ("b", &b)], "events: { grace: 100ms }\n").await;
    b.stop().await;
    eventually(SOON, async || crimux.metric("crimux_backend_up{backend=\"b\"}").await == Some(0.0)).await;
    let client = crimux.client();
    let mut stream = subscribe(&client).await;
    let id = happen(&a, "meanwhile");
    next_about(&mut stream, &id).await;
    let container = b.state().containers().next().unwrap().id.clone();
    b.state().exit_container(&container, 9);
    b.start_again().await;
    let stopped = decoded(&next_about(&mut stream, &container).await);
    assert_eq!(stopped.container_event_type(), cri::ContainerEventType::ContainerStoppedEvent);
}

#[tokio::test]
async fn what_happened_while_a_stream_was_away_is_told_once() {
    let a = with_events("a").await;
    let crimux = start(&[("a", &a)], "").await;
    let client = crimux.client();
    let mut stream = subscribe(&client).await;
    sources(&crimux, &["stream"]).await;
    let ids: Vec<_> = a.state().containers().map(|container| container.id.clone()).collect();
    a.state().exit_container(&ids[0], 1);
    next_about(&mut stream, &ids[0]).await;
    a.fault("GetContainerEvents", Fault::error(Code::Unavailable, "not yet"));
    a.state().end_event_streams(&Status::unavailable("restarting"));
    sources(&crimux, &["lists"]).await;
    a.state().exit_container(&ids[1], 1);
    assert_eq!(about(&next(&mut stream).await), ids[1], "the first is not told again");
    a.clear_faults();
    sources(&crimux, &["stream"]).await;
    let id = happen(&a, "after");
    assert_eq!(about(&next(&mut stream).await), id, "neither is the second");
}

#[tokio::test]
async fn events_of_cri_0_25_make_its_lists_the_source() {
    let a = SimRuntime::builder("a").containers(1, 1).start().await;
    // Field 4 was the metadata of the sandbox.
    let metadata =
        cri::PodSandboxMetadata { name: "pod".into(), uid: "u".into(), namespace: "n".into(), attempt: 0 };
    let mut event = bytes::BytesMut::new();
    crimux::wire::put_bytes(&mut event, 1, b"c");
    crimux::wire::put_bytes(&mut event, 4, &metadata.encode_to_vec());
    let event = event.freeze();
    a.unknown_method("GetContainerEvents", move |_| {
        let (messages, reply) = Reply::stream();
        messages.send(Ok(event.clone())).unwrap();
        reply
    });
    let crimux = start(&[("a", &a)], "").await;
    let client = crimux.client();
    let mut stream = subscribe(&client).await;
    let id = happen(&a, "pod");
    next_about(&mut stream, &id).await;
    sources(&crimux, &["lists"]).await;
}

#[tokio::test]
async fn nothing_is_asked_of_a_backend_once_nobody_listens() {
    let a = SimRuntime::builder("a").containers(1, 1).start().await;
    let crimux = start(&[("a", &a)], "").await;
    let client = crimux.client();
    let stream = subscribe(&client).await;
    sources(&crimux, &["lists"]).await;
    drop(stream);
    sources(&crimux, &["none"]).await;
}

#[tokio::test]
async fn a_clients_stream_outlives_the_restart_of_a_backend() {
    let (a, b) = (with_events("a").await, with_events("b").await);
    let crimux = start(&[("a", &a), ("b", &b)], "").await;
    let client = crimux.client();
    let mut stream = subscribe(&client).await;
    b.stop().await;
    eventually(SOON, async || crimux.metric("crimux_backend_up{backend=\"b\"}").await == Some(0.0)).await;
    let id = happen(&a, "meanwhile");
    next_about(&mut stream, &id).await;
    // A client that comes now waits for the backend too: it is known to stream.
    let late_client = crimux.client();
    let mut late = subscribe(&late_client).await;
    let before = b.state().event_streams();
    b.start_again().await;
    eventually(SOON, async || b.state().event_streams() > before).await;
    let id = happen(&b, "back");
    next_about(&mut stream, &id).await;
    next_about(&mut late, &id).await;
}

#[tokio::test]
async fn a_restarted_crimux_remembers_who_streams() {
    let (a, b) = (with_events("a").await, with_events("b").await);
    let mut crimux = start(&[("a", &a), ("b", &b)], "").await;
    let client = crimux.client();
    drop(subscribe(&client).await);
    // What is remembered is written within seconds; killing crimux earlier would lose it, so it ends well.
    crimux.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(crimux.ended().await, Some(0));
    b.stop().await;
    crimux.kill_and_start().await;
    crimux.wait_ready().await;
    let client = crimux.client();
    let mut stream = subscribe(&client).await;
    b.start_again().await;
    eventually(SOON, async || b.state().event_streams() > 0).await;
    let id = happen(&b, "back");
    next_about(&mut stream, &id).await;
}

#[tokio::test]
async fn a_stream_that_a_backend_ends_is_asked_for_again() {
    let a = with_events("a").await;
    let crimux = start(&[("a", &a)], "").await;
    let client = crimux.client();
    let mut stream = subscribe(&client).await;
    sources(&crimux, &["stream"]).await;
    for status in [Status::ok(""), Status::unavailable("restarting"), Status::unimplemented("not yet")] {
        let calls = a.calls("GetContainerEvents").len();
        eventually(SOON, async || a.state().event_streams() == 1).await;
        a.state().end_event_streams(&status);
        a.wait_for_call("GetContainerEvents", calls + 1).await;
        eventually(SOON, async || a.state().event_streams() == 1).await;
        let id = happen(&a, &format!("after-{calls}"));
        next_about(&mut stream, &id).await;
    }
}

#[tokio::test]
async fn a_backend_that_switched_events_off_has_its_lists_compared() {
    let a = with_events("a").await;
    let crimux = start(&[("a", &a)], "events: { grace: 500ms }\n").await;
    let client = crimux.client();
    let mut stream = subscribe(&client).await;
    eventually(SOON, async || a.state().event_streams() == 1).await;
    a.state().abilities.events = Events::EndAtOnce;
    a.state().end_event_streams(&Status::ok(""));
    sources(&crimux, &["lists"]).await;
    let id = happen(&a, "pod");
    next_about(&mut stream, &id).await;
}

#[tokio::test]
async fn a_slow_client_is_dropped_and_counted_and_nobody_waits_for_it() {
    let a = with_events("a").await;
    let crimux = start(&[("a", &a)], "events: { buffer: 10 }\n").await;
    let slow = slow_client(&crimux).await;
    let client = crimux.client();
    let mut fast = subscribe(&client).await;
    // The window of the slow client takes the first, its queue ten, and what is on the way between them some.
    for number in 0..80 {
        let large = testkit::client::sandbox_config(&format!("pod-{number}"));
        let id = a.state().run_sandbox(large.annotation("large", &"x".repeat(64 << 10)).build(), "").unwrap();
        next_about(&mut fast, &id).await;
    }
    assert_eq!(crimux.metric("crimux_events_dropped_clients_total").await, Some(1.0));
    let (events, code) = slow.read_on().await;
    assert_eq!(code, Some(Code::ResourceExhausted));
    assert!((10..400).contains(&events), "{events}");
}

/// An event stream that is not read, with a window of 64 KiB.
struct SlowClient {
    body: h2::RecvStream,
}

async fn slow_client(crimux: &Crimux) -> SlowClient {
    let socket = UnixStream::connect(crimux.socket()).await.unwrap();
    let (requests, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(async move { connection.await.unwrap_or_default() });
    let request = http::Request::post(format!("http://localhost{EVENTS}"))
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let (response, mut outgoing) = requests.ready().await.unwrap().send_request(request, false).unwrap();
    outgoing.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
    SlowClient { body: response.await.unwrap().into_body() }
}

impl SlowClient {
    /// Reads all that comes; returns how many whole events there were, and the code.
    async fn read_on(mut self) -> (usize, Option<Code>) {
        let mut deframer = crimux::codec::Deframer::default();
        let mut events = 0;
        while let Some(chunk) = tokio::time::timeout(SOON, self.body.data()).await.unwrap() {
            let chunk = chunk.unwrap();
            self.body.flow_control().release_capacity(chunk.len()).unwrap();
            deframer.push(&chunk);
            while deframer.next(1 << 20).unwrap().is_some() {
                events += 1;
            }
        }
        assert!(deframer.is_empty(), "no event is cut");
        let trailers = self.body.trailers().await.unwrap().unwrap();
        (events, crimux::codec::status_code(&trailers))
    }
}

#[tokio::test]
async fn owners_and_lists_learn_from_events() {
    let (a, b) = (with_events("a").await, with_events("b").await);
    let crimux = start(&[("a", &a), ("b", &b)], "").await;
    let client = crimux.client();
    let mut stream = subscribe(&client).await;
    // Made behind crimux's back, so that nothing but the event tells of it.
    let sandbox = happen(&b, "unseen");
    let image = b.state().add_image("registry.example/app:1");
    let config = testkit::client::container_config("unseen", &image).build();
    let container = b.state().create_container(&sandbox, config).unwrap();
    b.state().start_container(&container).unwrap();
    next_about(&mut stream, &container).await;
    let unknown = crimux.metric("crimux_unknown_ids_total").await;
    let status = cri::ContainerStatusRequest { container_id: container.clone(), verbose: false };
    let path = "/runtime.v1.RuntimeService/ContainerStatus";
    assert_eq!(client.raw_message(path, &status).await.unwrap().code(), Code::Ok);
    assert_eq!(crimux.metric("crimux_unknown_ids_total").await, unknown, "its owner was known");

    // No client has listed since; crimux has, after the event.
    let exited = std::time::Instant::now();
    b.state().exit_container(&container, 3);
    let listed = |calls: &[Call]| calls.iter().any(|call| call.at > exited && call.end == End::Answered);
    b.wait_for("ListContainers", listed).await;
    b.fault("ListContainers", Fault::Hang);
    eventually(SOON, async || {
        let reply = client.raw(CONTAINERS, &[], Bytes::new()).await.unwrap();
        let list: cri::ListContainersResponse = reply.decode();
        let state = list.containers.iter().find(|known| known.id == container).map(cri::Container::state);
        state == Some(cri::ContainerState::ContainerExited)
    })
    .await;
}

#[tokio::test]
async fn a_deleted_container_is_not_learnt_again() {
    let a = with_events("a").await;
    let crimux = start(&[("a", &a)], "").await;
    let client = crimux.client();
    let mut stream = subscribe(&client).await;
    let id = a.state().containers().next().unwrap().id.clone();
    let remove = cri::RemoveContainerRequest { container_id: id.clone() };
    let removed = client.raw_message("/runtime.v1.RuntimeService/RemoveContainer", &remove).await.unwrap();
    assert_eq!(removed.code(), Code::Ok, "{:?}", removed.status());
    next_about(&mut stream, &id).await;
    let reply = client.raw(CONTAINERS, &[], Bytes::new()).await.unwrap();
    let listed: cri::ListContainersResponse = reply.decode();
    assert!(listed.containers.iter().all(|container| container.id != id));
}

#[tokio::test]
async fn an_unreadable_event_is_not_passed_and_the_stream_goes_on() {
    let a = with_events("a").await;
    let crimux = start(&[("a", &a)], "").await;
    let client = crimux.client();
    let mut stream = subscribe(&client).await;
    eventually(SOON, async || a.state().event_streams() == 1).await;
    let garbage = Fault::GarbageMessage(Bytes::from_static(&[0x0a, 0x7f]));
    a.fault_next("GetContainerEvents", 1, garbage);
    a.state().end_event_streams(&Status::unavailable("again"));
    a.wait_for_call("GetContainerEvents", 3).await;
    eventually(SOON, async || a.state().event_streams() == 1).await;
    let id = happen(&a, "after");
    next_about(&mut stream, &id).await;
}

#[tokio::test]
async fn shutting_down_ends_event_streams_at_once() {
    let a = with_events("a").await;
    let mut crimux = start(&[("a", &a)], "drain_timeout: 20s\n").await;
    let client = crimux.client();
    let stream = subscribe(&client).await;
    crimux.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(end(stream).await.code(), Code::Unavailable);
    drop(client);
    assert_eq!(crimux.ended().await, Some(0));
}

#[tokio::test]
async fn a_quiet_backend_that_sends_no_headers_streams() {
    // As grpc-go does: headers come with the first event.
    let a = with_events("a").await;
    let event = cri::ContainerEventResponse { container_id: "x".into(), ..Default::default() };
    let (sender, reply) = Reply::stream();
    let replies = std::sync::Mutex::new(Some(reply));
    a.unknown_method("GetContainerEvents", move |_| replies.lock().unwrap().take().unwrap());
    a.fault_next("GetContainerEvents", 1, Fault::Delay(Duration::from_secs(1)));
    let crimux = start(&[("a", &a)], "").await;
    let client = crimux.client();
    let mut stream = subscribe(&client).await;
    sender.send(Ok(event.encode_to_vec().into())).unwrap();
    assert_eq!(next(&mut stream).await, event.encode_to_vec());
}
