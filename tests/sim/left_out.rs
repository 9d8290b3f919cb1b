//! What one backend gets wrong costs that one item, never a list, a Status or the kubelet that reads it.

use bytes::{Bytes, BytesMut};
use crimux::wire;
use prost::Message;
use testkit::cri;
use testkit::runtime::{Fault, Reply, SimRuntime};
use tonic::Code;

use crate::support::Crimux;

const RUNTIME: &str = "/runtime.v1.RuntimeService/";

async fn two() -> (SimRuntime, SimRuntime, Crimux) {
    let a = SimRuntime::builder("a").containers(2, 1).start().await;
    let b = SimRuntime::builder("b").containers(2, 1).start().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    (a, b, crimux)
}

/// What crimux answers while b's answer has this item before its own.
async fn with_item(crimux: &Crimux, b: &SimRuntime, method: &str, item: impl Message) -> (Bytes, Bytes) {
    let path = format!("{RUNTIME}{method}");
    let own = testkit::Client::unix(b.socket()).raw(&path, &[], Bytes::new()).await.unwrap().single();
    let before = crimux.client().raw(&path, &[], Bytes::new()).await.unwrap().single();
    let mut list = BytesMut::new();
    wire::put_bytes(&mut list, 1, &item.encode_to_vec());
    list.extend_from_slice(&own);
    b.reply_raw(method, Reply::message(list.freeze()));
    let after = crimux.client().raw(&path, &[], Bytes::new()).await.unwrap().single();
    b.clear_replies();
    (before, after)
}

#[tokio::test]
async fn items_that_would_crash_kubelet_are_left_out_alone_and_counted() {
    let (_a, b, crimux) = two().await;
    let (before, after) = with_item(&crimux, &b, "ListContainerStats", cri::ContainerStats::default()).await;
    let stats = |list: Bytes| cri::ListContainerStatsResponse::decode(list).unwrap().stats.len();
    assert_eq!((stats(before), stats(after)), (4, 4));
    let attributes = Some(cri::PodSandboxAttributes { id: "x".into(), ..Default::default() });
    let no_platform = cri::PodSandboxStats { attributes, ..Default::default() };
    let (before, after) = with_item(&crimux, &b, "ListPodSandboxStats", no_platform).await;
    let stats = |list: Bytes| cri::ListPodSandboxStatsResponse::decode(list).unwrap().stats.len();
    assert_eq!((stats(before), stats(after)), (4, 4));
    let no_metadata = cri::PodSandbox { id: "x".into(), ..Default::default() };
    let (before, after) = with_item(&crimux, &b, "ListPodSandbox", no_metadata).await;
    assert_eq!(before, after);
    let no_id = cri::Container { metadata: Some(cri::ContainerMetadata::default()), ..Default::default() };
    let (before, after) = with_item(&crimux, &b, "ListContainers", no_id).await;
    assert_eq!(before, after);
    for method in ["ListContainerStats", "ListPodSandboxStats", "ListPodSandbox", "ListContainers"] {
        let series = format!("crimux_items_left_out_total{{backend=\"b\",method=\"{method}\"}}");
        assert!(crimux.metric(&series).await >= Some(1.0), "{series}");
    }
    let log = crimux.log();
    let lines =
        log.lines().filter(|line| line.contains("left out of answers") && line.contains("ListContainers"));
    assert_eq!(lines.count(), 1, "once a minute: {log}");
    let (_, page) = crimux.get("/v1/status").await.unwrap();
    assert!(page.contains("ListPodSandbox: items"), "{page}");
}

#[tokio::test]
async fn a_status_that_would_crash_kubelet_sends_it_to_the_container_statuses() {
    let (a, _b, crimux) = two().await;
    let sandbox = a.state().sandboxes().next().unwrap().id.clone();
    let status = cri::PodSandboxStatusResponse {
        status: Some(cri::PodSandboxStatus { id: sandbox.clone(), ..Default::default() }),
        containers_statuses: vec![cri::ContainerStatus { id: "c".into(), ..Default::default() }],
        timestamp: 7,
        ..Default::default()
    };
    a.reply_raw("PodSandboxStatus", Reply::message(status.encode_to_vec()));
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: sandbox, verbose: false };
    let reply = crimux.client().raw_message(&format!("{RUNTIME}PodSandboxStatus"), &request).await.unwrap();
    assert_eq!(reply.decode::<cri::PodSandboxStatusResponse>().timestamp, 0);
}

/// An encoded `StatusResponse` of a ready runtime; a condition's message has a byte that is not UTF-8.
fn odd_status() -> Bytes {
    let mut status = BytesMut::new();
    for kind in ["RuntimeReady", "NetworkReady"] {
        let condition = cri::RuntimeCondition { r#type: kind.into(), status: true, ..Default::default() };
        let mut condition = BytesMut::from(&condition.encode_to_vec()[..]);
        wire::put_bytes(&mut condition, 4, b"caf\xe9");
        wire::put_bytes(&mut status, 1, &condition);
    }
    let mut response = BytesMut::new();
    wire::put_bytes(&mut response, 1, &status);
    response.freeze()
}

#[tokio::test]
async fn a_byte_that_is_not_utf8_costs_that_byte_in_a_status_and_in_a_list() {
    let (a, b, crimux) = two().await;
    a.reply_raw("Status", Reply::message(odd_status()));
    let reply = crimux.client().raw(&format!("{RUNTIME}Status"), &[], Bytes::new()).await.unwrap();
    let status = reply.decode::<cri::StatusResponse>().status.unwrap();
    assert_eq!((status.conditions[0].status, status.conditions[0].message.as_str()), (true, "caf\u{fffd}"));
    let mut item = BytesMut::from(
        &cri::PodSandbox {
            id: "x".into(),
            metadata: Some(cri::PodSandboxMetadata::default()),
            ..Default::default()
        }
        .encode_to_vec()[..],
    );
    wire::put_bytes(&mut item, 7, b"h\xff");
    let mut list = BytesMut::new();
    wire::put_bytes(&mut list, 1, &item);
    b.reply_raw("ListPodSandbox", Reply::message(list.freeze()));
    let reply = crimux.client().raw(&format!("{RUNTIME}ListPodSandbox"), &[], Bytes::new()).await.unwrap();
    let items = reply.decode::<cri::ListPodSandboxResponse>().items;
    assert_eq!(items.len(), 3);
    assert!(items.iter().any(|item| item.runtime_handler == "h\u{fffd}"), "{items:?}");
    let series = "crimux_texts_repaired_total{backend=\"b\",method=\"ListPodSandbox\"}";
    assert!(crimux.metric(series).await >= Some(1.0));
}

#[tokio::test]
async fn an_error_goes_out_where_no_backend_has_measured_values_to_give() {
    let a = SimRuntime::builder("a").start().await;
    let b = SimRuntime::builder("b").containers(2, 1).start().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let refused = Fault::error(Code::Unknown, "failed to get cgroup metrics: cgroupPath is empty");
    for method in ["ListPodSandboxStats", "ListContainerStats", "ListPodSandboxMetrics"] {
        let path = format!("{RUNTIME}{method}");
        b.fault(method, refused.clone());
        let reply = crimux.client().raw(&path, &[], Bytes::new()).await.unwrap();
        assert_eq!(reply.code(), Code::Unknown, "{method}: the empty list of a is no answer");
        assert!(reply.message().contains("backend b"), "{}", reply.message());
        assert!(reply.message().contains("cgroupPath is empty"), "{}", reply.message());
        // One dying sandbox makes a runtime refuse once; it is asked again.
        b.fault_next(method, 1, Fault::error(Code::NotFound, "sandbox is gone"));
        let reply = crimux.client().raw(&path, &[], Bytes::new()).await.unwrap();
        assert_eq!((reply.code(), reply.single().is_empty()), (Code::Ok, false), "{method}");
    }
}

#[tokio::test]
async fn a_backend_without_an_answer_beside_one_with_values_is_named_as_left_out() {
    let (_a, b, crimux) = two().await;
    b.fault("ListPodSandboxMetrics", Fault::error(Code::Unknown, "no cgroup"));
    let path = format!("{RUNTIME}ListPodSandboxMetrics");
    let reply = crimux.client().raw(&path, &[], Bytes::new()).await.unwrap();
    assert_eq!(reply.code(), Code::Ok, "{}", reply.message());
    let metrics = reply.decode::<cri::ListPodSandboxMetricsResponse>().pod_metrics;
    assert_eq!(metrics.len(), 2, "those of a");
    let series = "crimux_backends_left_out_total{backend=\"b\",method=\"ListPodSandboxMetrics\"}";
    assert_eq!(crimux.metric(series).await, Some(1.0));
    let (_, status) = crimux.get("/v1/status").await.unwrap();
    assert!(status.contains("ListPodSandboxMetrics: the whole backend (backend b"), "{status}");
}
