//! Each fault does what it says, to the calls it names and to no others.

use std::time::Duration;

use bytes::Bytes;
use testkit::client::{RawError, sandbox_config};
use testkit::cri;
use testkit::eventually;
use testkit::runtime::{Fault, SimRuntime};
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::{client_of, path};

const SOON: Duration = Duration::from_secs(5);
/// Long enough for an answer that comes at once, short enough to wait for one that must not come.
const MOMENT: Duration = Duration::from_millis(50);

#[tokio::test]
async fn a_delayed_call_is_answered_later() {
    let sim = SimRuntime::builder("containerd").start().await;
    sim.fault("Version", Fault::Delay(MOMENT));
    let before = std::time::Instant::now();
    client_of(&sim).runtime().version(cri::VersionRequest::default()).await.unwrap();
    assert!(before.elapsed() >= MOMENT);
}

#[tokio::test]
async fn a_hanging_call_is_answered_once_released_and_others_meanwhile() {
    let sim = SimRuntime::builder("containerd").start().await;
    let client = client_of(&sim);
    sim.fault("Version", Fault::Hang);
    let mut runtime = client.runtime();
    let hanging = tokio::spawn(async move { runtime.version(cri::VersionRequest::default()).await });
    sim.wait_for_call("Version", 1).await;
    client.runtime().status(cri::StatusRequest::default()).await.unwrap();
    assert!(!hanging.is_finished());
    sim.clear_faults();
    timeout(SOON, hanging).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_call_the_client_gives_up_is_recorded_as_cancelled_and_has_no_effect() {
    let sim = SimRuntime::builder("containerd").start().await;
    sim.fault("RunPodSandbox", Fault::Hang);
    let mut runtime = client_of(&sim).runtime();
    let running = tokio::spawn(async move { runtime.run_pod_sandbox(sandbox_config("web").run("")).await });
    sim.wait_for_call("RunPodSandbox", 1).await;
    running.abort();
    assert!(sim.wait_for_cancel("RunPodSandbox").await[0].cancelled());
    sim.clear_faults();
    assert_eq!(sim.state().sandboxes().count(), 0);
}

#[tokio::test]
async fn a_slow_create_holds_its_name_until_it_is_cancelled() {
    let sim = SimRuntime::builder("containerd").start().await;
    sim.fault_next("RunPodSandbox", 1, Fault::Hang);
    let mut runtime = client_of(&sim).runtime();
    let mut slow = runtime.clone();
    let running = tokio::spawn(async move { slow.run_pod_sandbox(sandbox_config("web").run("")).await });
    sim.wait_for_call("RunPodSandbox", 1).await;
    let refused = runtime.run_pod_sandbox(sandbox_config("web").run("")).await.unwrap_err();
    assert!(refused.message().starts_with("failed to reserve sandbox name"), "{refused}");
    running.abort();
    sim.wait_for_cancel("RunPodSandbox").await;
    runtime.run_pod_sandbox(sandbox_config("web").run("")).await.unwrap();
}

#[tokio::test]
async fn an_error_carries_code_text_details_and_trailers() {
    let sim = SimRuntime::builder("containerd").start().await;
    let mut metadata = tonic::metadata::MetadataMap::new();
    metadata.insert("x-extra", "kept".parse().unwrap());
    let details = Bytes::from_static(b"\x08\x05\xff");
    let status = Status::with_details_and_metadata(Code::Aborted, "tell \"me\" ✓", details.clone(), metadata);
    sim.fault("ListPodSandbox", Fault::Error(status));
    let reply = client_of(&sim).raw(&path("ListPodSandbox"), &[], Bytes::new()).await.unwrap();
    assert_eq!(
        (reply.code(), reply.message(), reply.details()),
        (Code::Aborted, "tell \"me\" ✓".into(), details)
    );
    assert_eq!(reply.trailers["x-extra"], "kept");
    assert!(reply.messages.is_empty());
}

#[tokio::test]
async fn a_fault_for_the_next_calls_ends_by_itself() {
    let sim = SimRuntime::builder("containerd").start().await;
    sim.fault_next("*", 2, Fault::error(Code::Unavailable, "not yet"));
    let mut runtime = client_of(&sim).runtime();
    for expected in [false, false, true] {
        assert_eq!(runtime.version(cri::VersionRequest::default()).await.is_ok(), expected);
    }
}

#[tokio::test]
async fn garbage_arrives_as_it_was_given() {
    let sim = SimRuntime::builder("containerd").sandboxes(3, 0).start().await;
    let client = client_of(&sim);
    let list = path("ListPodSandbox");
    let whole = client.raw(&list, &[], Bytes::new()).await.unwrap().single();

    sim.fault("ListPodSandbox", Fault::GarbageMessage(Bytes::from_static(b"\xff\xff")));
    assert_eq!(client.raw(&list, &[], Bytes::new()).await.unwrap().single(), &b"\xff\xff"[..]);
    sim.fault("ListPodSandbox", Fault::GarbageFrame(Bytes::from_static(b"\x00\x7f\xff\xff\xffxx")));
    let reply = client.raw(&list, &[], Bytes::new()).await.unwrap();
    assert_eq!((reply.messages.len(), reply.rest.as_ref()), (0, &b"\x00\x7f\xff\xff\xffxx"[..]));
    sim.fault("ListPodSandbox", Fault::Truncate(20));
    let reply = client.raw(&list, &[], Bytes::new()).await.unwrap();
    assert_eq!((reply.messages.len(), &reply.rest[5..]), (0, &whole[..15]));
}

#[tokio::test]
async fn a_reset_spares_the_connection_and_a_drop_does_not() {
    let sim = SimRuntime::builder("containerd").start().await;
    let client = client_of(&sim);
    sim.fault("Version", Fault::Reset);
    sim.fault("Status", Fault::Hang);
    let hanging = client.raw_stream(&path("Status"), &[], Bytes::new()).await.unwrap();
    let error = client.raw(&path("Version"), &[], Bytes::new()).await.unwrap_err();
    assert!(matches!(&error, RawError::Broken(error) if error.is_reset()), "{error}");
    sim.wait_for_call("Status", 1).await;
    assert!(!sim.calls("Status")[0].cancelled());

    sim.fault("Version", Fault::DropConnection);
    client.raw(&path("Version"), &[], Bytes::new()).await.unwrap_err();
    timeout(SOON, hanging.finish()).await.unwrap().unwrap_err();
    sim.clear_faults();
    client.raw(&path("Version"), &[], Bytes::new()).await.unwrap();
}

#[tokio::test]
async fn a_lost_reply_leaves_its_effect() {
    let sim = SimRuntime::builder("containerd").start().await;
    sim.fault("RunPodSandbox", Fault::LoseReply);
    let mut runtime = client_of(&sim).runtime();
    runtime.run_pod_sandbox(sandbox_config("web").run("")).await.unwrap_err();
    assert_eq!(sim.state().sandboxes().count(), 1);

    sim.fault("StopPodSandbox", Fault::HangReply);
    let id = sim.state().sandboxes().next().unwrap().id.clone();
    let stop = cri::StopPodSandboxRequest { pod_sandbox_id: id.clone() };
    let stopping = tokio::spawn(async move { runtime.stop_pod_sandbox(stop).await });
    eventually(SOON, async || !sim.state().sandbox(&id).unwrap().ready).await;
    assert!(!stopping.is_finished());
    sim.clear_fault("StopPodSandbox");
    timeout(SOON, stopping).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_stopped_runtime_refuses_and_comes_back_with_its_state() {
    let sim = SimRuntime::builder("containerd").sandboxes(1, 0).start().await;
    let ask = async || client_of(&sim).raw(&path("ListPodSandbox"), &[], Bytes::new()).await;
    ask().await.unwrap();
    sim.stop().await;
    assert!(!sim.socket().exists());
    let error = ask().await.unwrap_err();
    assert!(
        matches!(&error, RawError::Connect(error) if error.kind() == std::io::ErrorKind::NotFound),
        "{error}"
    );

    sim.start_again().await;
    assert_eq!(ask().await.unwrap().messages.len(), 1);
    sim.refuse_connections().await;
    let error = ask().await.unwrap_err();
    let RawError::Connect(error) = error else { panic!("{error}") };
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    sim.start_again().await;
    let reply: cri::ListPodSandboxResponse = ask().await.unwrap().decode();
    assert_eq!(reply.items.len(), 1);
}

#[tokio::test]
async fn a_frozen_runtime_accepts_but_stands_still_until_thawed() {
    let sim = SimRuntime::builder("containerd").tcp().start().await;
    let client = client_of(&sim);
    client.raw(&path("Version"), &[], Bytes::new()).await.unwrap();
    sim.clear_calls();
    sim.freeze();
    let (old, new) = (client.clone(), client_of(&sim));
    let calls = [old, new]
        .map(|client| tokio::spawn(async move { client.raw(&path("Version"), &[], Bytes::new()).await }));
    assert!(timeout(MOMENT, sim.wait_for_call("Version", 1)).await.is_err());
    sim.thaw();
    for call in calls {
        assert_eq!(timeout(SOON, call).await.unwrap().unwrap().unwrap().code(), Code::Ok);
    }
}

#[tokio::test]
async fn dropped_connections_end_calls_but_not_the_listener() {
    let sim = SimRuntime::builder("containerd").start().await;
    let client = client_of(&sim);
    sim.fault("Version", Fault::Hang);
    let hanging = client.raw_stream(&path("Version"), &[], Bytes::new()).await.unwrap();
    sim.wait_for_call("Version", 1).await;
    sim.drop_connections();
    timeout(SOON, hanging.finish()).await.unwrap().unwrap_err();
    sim.clear_faults();
    assert_eq!(client.raw(&path("Version"), &[], Bytes::new()).await.unwrap().code(), Code::Ok);
}
