//! One slow thing is one slow thing: what a disk, a port, a stream, a call or an object that hangs leaves
//! alone.
//!
//! Bounds on time are those that a hang would break; nothing here measures how fast something is.

use std::time::Duration;

use serde_json::Value;
use testkit::client::sandbox_config;
use testkit::runtime::{Fault, SimRuntime};
use testkit::{cri, eventually};
use tonic::Code;

use crate::support::{Crimux, SOON, config};

mod disk;
mod port;

/// Longer than an attempt of a refresh stays alone, and well below the 30 s after which conditions turn.
const SECONDS: Duration = Duration::from_secs(20);

/// Starts crimux in front of `a`, with `change` made to its configuration.
async fn start(a: &SimRuntime, change: impl FnOnce(String) -> String) -> Crimux {
    let dir = tempfile::tempdir().unwrap();
    let yaml = change(config(&dir, &[("a", a)], ""));
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    crimux
}

/// Gives backend `a` more keys.
fn with(yaml: &str, keys: &str) -> String {
    assert!(yaml.contains("\" }\n"));
    yaml.replacen("\" }\n", &format!("\", {keys} }}\n"), 1)
}

async fn status(crimux: &Crimux) -> Value {
    let (code, text) = crimux.get("/v1/status").await.unwrap();
    assert_eq!(code, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

async fn in_time<T>(call: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, call).await.expect("it is answered")
}

#[tokio::test]
async fn calls_that_last_take_no_place_of_lists_and_reads() {
    // Six places: crimux's own refreshes take some of the reads'.
    let a = SimRuntime::builder("a").containers(7, 1).start().await;
    let crimux = start(&a, |yaml| with(&yaml, "max_in_flight: 6")).await;
    a.fault("StopContainer", Fault::Hang);
    let ids: Vec<_> = a.state().containers().map(|container| container.id.clone()).collect();
    let stop = |id: &String| {
        let (client, container_id) = (crimux.client(), id.clone());
        async move {
            let request = cri::StopContainerRequest { container_id, timeout: 600 };
            client.runtime().stop_container(request).await
        }
    };
    let stops: Vec<_> = ids[..6].iter().map(|id| tokio::spawn(stop(id))).collect();
    a.wait_for_call("StopContainer", 6).await;
    let busy = in_time(stop(&ids[6])).await.unwrap_err();
    assert!(busy.code() == Code::Unavailable && busy.message().contains("max_in_flight"), "{busy}");

    let listed = a.calls("ListContainers").len();
    let list = crimux.client().runtime().list_containers(cri::ListContainersRequest::default()).await;
    assert_eq!(list.unwrap().into_inner().containers.len(), 7);
    assert!(a.calls("ListContainers").len() > listed, "it was asked, not remembered");
    for id in &ids {
        let request = cri::ContainerStatusRequest { container_id: id.clone(), verbose: true };
        crimux
            .client()
            .runtime()
            .container_status(request)
            .await
            .expect("a verbose status is never remembered");
    }
    a.clear_faults();
    for stop in stops {
        in_time(stop).await.unwrap().expect("the stop ends");
    }
}

#[tokio::test]
async fn reads_of_one_object_that_hangs_leave_those_of_others_live() {
    let a = SimRuntime::builder("a").containers(2, 1).start().await;
    let crimux = start(&a, |yaml| with(&yaml, "timeouts: { read: 400ms }")).await;
    let ids: Vec<_> = a.state().containers().map(|container| container.id.clone()).collect();
    let read = async |id: &str, verbose: bool| {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose };
        in_time(crimux.client().runtime().container_status(request)).await
    };
    read(&ids[0], false).await.unwrap();
    a.fault_next("ContainerStatus", 2, Fault::Hang);
    let told = read(&ids[0], false).await.expect("the last-known status answers");
    assert_eq!(told.into_inner().status.unwrap().id, ids[0]);
    // The read that hung, and the one that asks on beside the calls.
    a.wait_for_call("ContainerStatus", 3).await;
    assert!(crimux.log().contains("is late for this object alone"), "{}", crimux.log());

    read(&ids[1], true).await.expect("another object is asked for");
    assert_eq!(status(&crimux).await["backends"][0]["state"], "ready");
    assert_eq!(read(&ids[0], true).await.unwrap_err().code(), Code::Unavailable, "and this one is not");
    a.clear_faults();
    eventually(SECONDS, async || read(&ids[0], true).await.is_ok()).await;
}

#[tokio::test]
async fn a_refresh_whose_reply_was_lost_is_not_waited_for_before_another_is_sent() {
    let a = SimRuntime::builder("a").containers(1, 1).start().await;
    let crimux = start(&a, |yaml| with(&yaml, "timeouts: { list: 200ms }")).await;
    let state = |state: &str| format!("crimux_backend_state{{backend=\"a\",state=\"{state}\"}}");
    // The list of a client and the first attempt of the refresh that follows it are never answered.
    a.fault_next("ListContainers", 2, Fault::HangReply);
    let list = crimux.client().runtime().list_containers(cri::ListContainersRequest::default()).await;
    assert_eq!(list.unwrap().into_inner().containers.len(), 1);
    assert_eq!(crimux.metric(&state("late")).await, Some(1.0));
    eventually(SECONDS, async || crimux.metric(&state("ready")).await == Some(1.0)).await;
}

#[tokio::test]
async fn a_lost_reply_to_status_does_not_turn_the_conditions() {
    let a = SimRuntime::builder("a").containers(1, 1).start().await;
    let crimux = start(&a, |yaml| yaml).await;
    let asked = a.calls("Status").len();
    a.fault_next("Status", 2, Fault::HangReply);
    let ready = async || {
        let reply = in_time(crimux.client().runtime().status(cri::StatusRequest::default())).await.unwrap();
        let conditions = reply.into_inner().status.unwrap().conditions;
        conditions.iter().find(|condition| condition.r#type == "RuntimeReady").unwrap().status
    };
    assert!(ready().await);
    let more = async || {
        assert!(ready().await, "conditions stand while the backend is asked again");
        a.calls("Status").len() >= asked + 3
    };
    eventually(SECONDS, more).await;
}

#[tokio::test]
async fn what_is_asked_once_for_each_connection_is_asked_until_it_is_answered() {
    let a = SimRuntime::builder("a").containers(1, 1).start().await;
    let not_yet = || Fault::error(Code::Unavailable, "server is not initialized yet");
    for method in ["RuntimeConfig", "ListMetricDescriptors", "ListImages", "ImageFsInfo"] {
        a.fault_next(method, 3, not_yet());
    }
    let crimux = start(&a, |yaml| yaml).await;
    for method in ["RuntimeConfig", "ListMetricDescriptors", "ListImages", "ImageFsInfo"] {
        a.wait_for_call(method, 4).await;
    }
    crimux.client().runtime().runtime_config(cri::RuntimeConfigRequest {}).await.unwrap();

    // Another runtime comes up at the same socket, with another driver.
    a.stop().await;
    let driver = cri::CgroupDriver::Cgroupfs;
    let linux = Some(cri::LinuxRuntimeConfiguration { cgroup_driver: driver.into() });
    let reply = prost::Message::encode_to_vec(&cri::RuntimeConfigResponse { linux });
    a.reply_raw("RuntimeConfig", testkit::runtime::Reply::message(reply));
    a.fault_next("RuntimeConfig", 1, not_yet());
    a.start_again().await;
    let told = async || {
        let reply = crimux.client().runtime().runtime_config(cri::RuntimeConfigRequest {}).await.unwrap();
        reply.into_inner().linux.unwrap().cgroup_driver()
    };
    eventually(SOON, async || told().await == driver).await;
}

#[tokio::test]
async fn a_hung_backend_holds_up_neither_the_runtime_config_nor_the_removal_of_an_image() {
    let a = SimRuntime::builder("a").images(1).start().await;
    let timeouts = "timeouts: { runtime_config: 200ms, remove_image: 200ms }";
    let crimux = start(&a, |yaml| with(&yaml, timeouts)).await;
    a.fault("UpdateRuntimeConfig", Fault::Hang);
    a.fault("RemoveImage", Fault::Hang);
    let client = crimux.client();
    let mut runtime = client.runtime();
    let update = in_time(runtime.update_runtime_config(cri::UpdateRuntimeConfigRequest::default())).await;
    let update = update.unwrap_err();
    assert_eq!(update.code(), Code::Unavailable);
    assert_eq!(update.message(), "crimux: backend a did not answer UpdateRuntimeConfig within 200ms");
    let image = Some(testkit::client::image_spec("registry.example/image-0:1"));
    let remove = in_time(client.images().remove_image(cri::RemoveImageRequest { image })).await.unwrap_err();
    assert_eq!(remove.message(), "crimux: backend a did not answer RemoveImage within 200ms");
}

#[tokio::test]
async fn what_is_no_call_has_threads_of_its_own_and_a_stall_of_the_calls_is_measured() {
    let a = SimRuntime::builder("a").start().await;
    let crimux = start(&a, |yaml| yaml).await;
    let tasks = std::fs::read_dir(format!("/proc/{}/task", crimux.pid())).unwrap();
    let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    let names: Vec<_> = names.map(|name| name.trim().to_owned()).collect();
    assert!(
        names.iter().any(|name| name == "side") && names.iter().any(|name| name == "journal"),
        "{names:?}"
    );

    let longest = "crimux_thread_longest_stall_seconds";
    crimux.signal(nix::sys::signal::Signal::SIGSTOP);
    // A stall of a known length.
    tokio::time::sleep(Duration::from_secs(2)).await;
    crimux.signal(nix::sys::signal::Signal::SIGCONT);
    eventually(SOON, async || crimux.metric(longest).await.is_some_and(|seconds| seconds > 1.0)).await;
    let count = crimux.metric("crimux_thread_stall_seconds_count").await.unwrap();
    eventually(SOON, async || crimux.metric("crimux_thread_stall_seconds_count").await > Some(count)).await;
}

#[tokio::test]
async fn a_sandbox_is_created_while_others_wait_for_their_event_streams() {
    let a = SimRuntime::builder("a").events().start().await;
    let crimux = start(&a, |yaml| with(&yaml, "max_in_flight: 1")).await;
    let mut events = crimux.client().runtime();
    let _stream = in_time(events.get_container_events(cri::GetEventsRequest {})).await.unwrap();
    a.wait_for_call("GetContainerEvents", 1).await;
    in_time(crimux.client().runtime().run_pod_sandbox(sandbox_config("pod").run(""))).await.unwrap();
}
