//! Pod stats and metric descriptors: what kubelet was told at its start stands until it starts again.

use bytes::Bytes;
use prost::Message;
use testkit::runtime::{MetricLabels, SimRuntime};
use testkit::{cri, eventually};
use tonic::Code;

use crate::support::{Crimux, SOON, config};

const LIST: &str = "/runtime.v1.RuntimeService/ListPodSandboxStats";
const STREAM: &str = "/runtime.v1.RuntimeService/StreamPodSandboxStats";
const DESCRIPTORS: &str = "/runtime.v1.RuntimeService/ListMetricDescriptors";

async fn runtime(name: &str, pod_stats: bool) -> SimRuntime {
    let builder = SimRuntime::builder(name).containers(2, 1);
    builder.abilities(|abilities| abilities.pod_sandbox_stats = pod_stats).start().await
}

async fn start(backends: &[(&str, &SimRuntime)], policy: &str) -> Crimux {
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&dir, backends, &format!("pod_sandbox_stats: {policy}\n"));
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    crimux
}

/// kubelet's question at its start.
async fn question(crimux: &Crimux) -> Code {
    let request = cri::PodSandboxStatsRequest::default();
    let path = "/runtime.v1.RuntimeService/PodSandboxStats";
    crimux.client().raw_message(path, &request).await.unwrap().code()
}

/// The code of the list and how many pods it has.
async fn list(crimux: &Crimux) -> (Code, usize) {
    let reply = crimux.client().raw(LIST, &[], Bytes::new()).await.unwrap();
    let pods = if reply.code() == Code::Ok {
        reply.decode::<cri::ListPodSandboxStatsResponse>().stats.len()
    } else {
        0
    };
    (reply.code(), pods)
}

#[tokio::test]
async fn the_question_and_the_lists_agree_about_pod_stats() {
    let (a, b) = (runtime("a", true).await, runtime("b", false).await);
    let crimux = start(&[("a", &a), ("b", &b)], "unimplemented").await;
    assert_eq!(question(&crimux).await, Code::Unimplemented);
    assert_eq!(list(&crimux).await, (Code::Unimplemented, 0));
    let crimux = start(&[("a", &a), ("b", &b)], "union").await;
    assert_eq!(question(&crimux).await, Code::NotFound, "what the default backend says to the empty ID");
    assert_eq!(list(&crimux).await, (Code::Ok, 2));
    let series = "crimux_backends_left_out_total{backend=\"b\",method=\"ListPodSandboxStats\"}";
    assert!(crimux.metric(series).await >= Some(1.0));
    assert!(
        crimux
            .get("/v1/status")
            .await
            .unwrap()
            .1
            .contains("ListPodSandboxStats: the whole backend (backend b")
    );
}

#[tokio::test]
async fn a_kubelet_that_was_told_of_pod_stats_keeps_those_of_the_backends_that_have_them() {
    let (a, b) = (runtime("a", true).await, runtime("b", true).await);
    let mut crimux = start(&[("a", &a), ("b", &b)], "unimplemented").await;
    assert_eq!(question(&crimux).await, Code::NotFound);
    assert_eq!(list(&crimux).await, (Code::Ok, 4));
    // b comes back as an older version.
    b.state().abilities.pod_sandbox_stats = false;
    assert_eq!(list(&crimux).await, (Code::Ok, 2));
    let reply = crimux.client().raw(STREAM, &[], Bytes::new()).await.unwrap();
    assert_eq!(reply.code(), Code::Ok, "{}", reply.message());
    crimux.kill_and_start().await;
    crimux.wait_ready().await;
    assert_eq!(list(&crimux).await, (Code::Ok, 2), "over a restart of crimux too");
    assert!(crimux.log().contains("left out of answers"));
    assert_eq!(
        question(&crimux).await,
        Code::Unimplemented,
        "a kubelet that asks again gets the current answer"
    );
    assert_eq!(list(&crimux).await, (Code::Unimplemented, 0));
}

#[tokio::test]
async fn a_kubelet_that_was_told_of_no_pod_stats_gets_none_until_it_asks_again() {
    let (a, b) = (runtime("a", true).await, runtime("b", false).await);
    let mut crimux = start(&[("a", &a), ("b", &b)], "unimplemented").await;
    assert_eq!(question(&crimux).await, Code::Unimplemented);
    b.state().abilities.pod_sandbox_stats = true;
    assert_eq!(list(&crimux).await, (Code::Unimplemented, 0));
    crimux.kill_and_start().await;
    crimux.wait_ready().await;
    assert_eq!(list(&crimux).await, (Code::Unimplemented, 0), "over a restart of crimux too");
    assert_eq!(question(&crimux).await, Code::NotFound);
    assert_eq!(list(&crimux).await, (Code::Ok, 4));
}

#[tokio::test]
async fn a_backend_that_lacks_pod_stats_lacks_them_while_it_is_down() {
    let (a, b) = (runtime("a", true).await, runtime("b", false).await);
    let mut crimux = start(&[("a", &a), ("b", &b)], "unimplemented").await;
    assert_eq!(list(&crimux).await, (Code::Unimplemented, 0));
    b.stop().await;
    eventually(SOON, async || crimux.metric("crimux_backend_up{backend=\"b\"}").await == Some(0.0)).await;
    assert_eq!(list(&crimux).await, (Code::Unimplemented, 0));
    crimux.restart().await;
    crimux.wait_ready().await;
    assert_eq!(list(&crimux).await, (Code::Unimplemented, 0));
    assert_eq!(question(&crimux).await, Code::Unimplemented);
}

async fn descriptors(crimux: &Crimux) -> Vec<cri::MetricDescriptor> {
    let reply = crimux.client().raw(DESCRIPTORS, &[], Bytes::new()).await.unwrap();
    reply.decode::<cri::ListMetricDescriptorsResponse>().descriptors
}

#[tokio::test]
async fn descriptors_of_a_backend_that_is_down_are_those_that_are_remembered() {
    let (a, b) = (runtime("a", true).await, runtime("b", true).await);
    let own = cri::MetricDescriptor { name: "of_b".into(), ..Default::default() };
    let own = cri::ListMetricDescriptorsResponse { descriptors: vec![own] };
    b.reply_raw("ListMetricDescriptors", testkit::runtime::Reply::message(own.encode_to_vec()));
    let mut crimux = start(&[("a", &a), ("b", &b)], "union").await;
    eventually(SOON, async || !b.calls("ListMetricDescriptors").is_empty()).await;
    let before = descriptors(&crimux).await;
    assert!(before.iter().any(|descriptor| descriptor.name == "of_b"));
    b.stop().await;
    crimux.restart().await;
    crimux.wait_ready().await;
    assert_eq!(descriptors(&crimux).await, before);
}

#[tokio::test]
async fn descriptors_that_appear_after_kubelet_has_asked_are_named_once() {
    let (a, b) = (runtime("a", true).await, runtime("b", true).await);
    let crimux = start(&[("a", &a), ("b", &b)], "union").await;
    descriptors(&crimux).await;
    let own = cri::MetricDescriptor { name: "appeared_later".into(), ..Default::default() };
    let own = cri::ListMetricDescriptorsResponse { descriptors: vec![own] };
    b.reply_raw("ListMetricDescriptors", testkit::runtime::Reply::message(own.encode_to_vec()));
    b.drop_connections();
    let told = async || crimux.get("/v1/status").await.unwrap().1.contains("appeared_later");
    eventually(SOON, told).await;
    let log = crimux.log();
    assert_eq!(log.matches("kubelet shows these metrics once it is restarted").count(), 1, "{log}");
    // A kubelet that is restarted asks again.
    assert!(descriptors(&crimux).await.iter().any(|descriptor| descriptor.name == "appeared_later"));
    assert!(!told().await);
}

#[tokio::test]
async fn a_changed_descriptor_is_announced_as_it_is_now() {
    let a = runtime("a", true).await;
    let crimux = start(&[("a", &a)], "union").await;
    let before = descriptors(&crimux).await;
    a.state().abilities.metric_labels = MetricLabels::Crio;
    a.drop_connections();
    eventually(SOON, async || a.calls("ListMetricDescriptors").len() > 2).await;
    assert_eq!(descriptors(&crimux).await, before, "the same labels keep the order that clients know");
    let own =
        cri::MetricDescriptor { name: before[0].name.clone(), help: "new".into(), ..Default::default() };
    let own = cri::ListMetricDescriptorsResponse { descriptors: vec![own.clone()] };
    a.reply_raw("ListMetricDescriptors", testkit::runtime::Reply::message(own.encode_to_vec()));
    assert_eq!(descriptors(&crimux).await, own.descriptors);
}
