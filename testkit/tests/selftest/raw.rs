//! Bytes go in and come out as they are, for RPCs that exist and for those that do not.

use bytes::Bytes;
use prost::Message;
use testkit::cri;
use testkit::runtime::{Reply, SimRuntime};
use tonic::{Code, Status};

use crate::{client_of, path};

#[tokio::test]
async fn calls_are_recorded_with_every_byte_and_header() {
    let sim = SimRuntime::builder("containerd").start().await;
    // Field 1 as the CRI has it, then a field that no CRI has.
    let message = Bytes::from_static(b"\x0a\x01v\xfa\x3f\x03new");
    let metadata = [("traceparent", "00-1"), ("x-twice", "a"), ("x-twice", "b"), ("raw-bin", "AAEC")];
    let reply = client_of(&sim).raw(&path("Version"), &metadata, message.clone()).await.unwrap();
    assert_eq!(reply.decode::<cri::VersionResponse>().runtime_name, "containerd");

    let calls = sim.calls("Version");
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].path, path("Version"));
    assert_eq!(calls[0].message, message);
    assert_eq!(calls[0].header("traceparent"), Some("00-1"));
    assert_eq!(calls[0].metadata.get_all("x-twice").iter().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(calls[0].header("raw-bin"), Some("AAEC"));
    sim.clear_calls();
    assert!(sim.calls("*").is_empty());
}

#[tokio::test]
async fn nothing_is_recorded_when_recording_is_off() {
    let sim = SimRuntime::builder("containerd").record(false).start().await;
    client_of(&sim).raw(&path("Version"), &[], Bytes::new()).await.unwrap();
    assert!(sim.calls("*").is_empty());
}

#[tokio::test]
async fn a_raw_reply_is_sent_as_given() {
    let sim = SimRuntime::builder("containerd").start().await;
    let given = Reply::message(&b"\xfa\x3f\x03new"[..]).header("x-head", "1").trailer("x-trail", "2");
    sim.reply_raw("Version", given);
    for _ in 0..2 {
        let reply = client_of(&sim).raw(&path("Version"), &[], Bytes::new()).await.unwrap();
        assert_eq!(reply.single(), &b"\xfa\x3f\x03new"[..]);
        assert_eq!(
            (&reply.headers["x-head"], &reply.trailers["x-trail"]),
            (&"1".parse().unwrap(), &"2".parse().unwrap())
        );
        assert_eq!(reply.code(), Code::Ok);
    }
    sim.clear_replies();
    let reply = client_of(&sim).raw(&path("Version"), &[], Bytes::new()).await.unwrap();
    assert_eq!(reply.decode::<cri::VersionResponse>().version, "0.1.0");
}

#[tokio::test]
async fn methods_no_cri_has_can_be_added() {
    let sim = SimRuntime::builder("containerd").start().await;
    let client = client_of(&sim);
    let unknown = client.raw(&path("Fancy"), &[], Bytes::new()).await.unwrap();
    assert_eq!(unknown.code(), Code::Unimplemented);
    assert_eq!(unknown.message(), "unknown method Fancy for service runtime.v1.RuntimeService");
    let unknown = client.raw("/other.v1.Service/Fancy", &[], Bytes::new()).await.unwrap();
    assert_eq!(unknown.message(), "unknown service other.v1.Service");

    sim.unknown_method("/other.v1.Service/Fancy", |call| {
        Reply::messages([call.message, Bytes::from_static(b"2")])
    });
    let reply = client.raw("/other.v1.Service/Fancy", &[], &b"1"[..]).await.unwrap();
    assert_eq!(reply.messages, [&b"1"[..], &b"2"[..]]);
}

#[tokio::test]
async fn a_stream_in_both_directions_answers_message_by_message() {
    let sim = SimRuntime::builder("containerd").start().await;
    sim.unknown_stream("/other.v1.Service/Chat", |_, mut messages| {
        let (sender, reply) = Reply::stream();
        tokio::spawn(async move {
            while let Some(message) = messages.recv().await {
                sender.send(Ok(message)).unwrap();
            }
            sender.send(Err(Status::aborted("enough"))).unwrap();
        });
        reply
    });
    let client = client_of(&sim);
    let first = [Bytes::from_static(b"one")];
    let mut chat = client.raw_open("/other.v1.Service/Chat", &[], &first, false).await.unwrap();
    assert_eq!(chat.next().await.unwrap().unwrap(), first[0]);
    chat.send(&b"two"[..], true).unwrap();
    assert_eq!(chat.next().await.unwrap().unwrap(), &b"two"[..]);
    assert_eq!(chat.next().await.unwrap(), None);
    assert_eq!(chat.finish().await.unwrap().code(), Code::Aborted);
}

#[tokio::test]
async fn a_list_of_megabytes_arrives_whole() {
    let sim = SimRuntime::builder("containerd").containers(5000, 1).record(false).start().await;
    let request = cri::ListContainersRequest::default();
    let reply = client_of(&sim).raw_message(&path("ListContainers"), &request).await.unwrap();
    assert!(reply.single().len() > 1 << 20);
    assert_eq!(reply.decode::<cri::ListContainersResponse>().containers.len(), 5000);
}

#[tokio::test]
async fn a_request_larger_than_the_limit_is_refused() {
    let sim = SimRuntime::builder("containerd").max_request(1000).start().await;
    let request = cri::VersionRequest { version: "x".repeat(2000) };
    let reply = client_of(&sim).raw(&path("Version"), &[], request.encode_to_vec()).await.unwrap();
    assert_eq!(reply.code(), Code::ResourceExhausted);
}
