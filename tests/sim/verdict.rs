//! Answers that are not whole are in the verdict, its exit code, the heading of the page, and a metric.

use prost::Message as _;
use testkit::runtime::{Reply, SimRuntime};
use testkit::{cri, eventually};

use crate::cli::on;
use crate::support::{Crimux, SOON, config};

/// Checks that the verdict begins with these words, and that exit code and page agree.
async fn assert_verdict(crimux: &Crimux, code: i32, words: &str) {
    let (exit, verdict, errors) = on(crimux, &["status", "--check"], "").await;
    assert!(exit == code && verdict.starts_with(words), "{verdict}{errors}");
    let (_, page) = crimux.get("/").await.unwrap();
    let level = words.split(':').next().unwrap();
    assert!(page.contains(&format!("<strong>{level}</strong>")), "{page}");
}

#[tokio::test]
async fn lists_that_are_refused_for_a_backend_make_the_node_not_ready() {
    let a = SimRuntime::builder("a").sandboxes(1, 1).start().await;
    let b = SimRuntime::builder("b").sandboxes(1, 1).start().await;
    b.stop().await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&dir, &[("a", &a), ("b", &b)], "");
    let crimux = Crimux::start_in(dir, &yaml);
    let awaited =
        async |name: &str| crimux.metric(&format!("crimux_backend_awaited{{backend=\"{name}\"}}")).await;
    eventually(SOON, async || awaited("a").await == Some(0.0) && awaited("b").await == Some(1.0)).await;
    crimux.client().runtime().list_pod_sandbox(cri::ListPodSandboxRequest::default()).await.unwrap_err();
    eventually(SOON, async || on(&crimux, &["status"], "").await.1.starts_with("NOT READY: b down")).await;
    assert_verdict(&crimux, 1, "NOT READY: b down").await;
    let (_, verdict, _) = on(&crimux, &["status", "--check"], "").await;
    assert!(verdict.contains("lists are refused until b is listed: the node becomes NotReady"), "{verdict}");
    assert!(verdict.trim().ends_with("#crimuxlistsrefused"), "{verdict}");
    b.start_again().await;
    eventually(SOON, async || on(&crimux, &["status", "--check"], "").await.0 == 0).await;
    assert_eq!(awaited("b").await, Some(0.0));
}

#[tokio::test]
async fn items_that_are_left_out_of_lists_are_in_the_verdict() {
    let a = SimRuntime::builder("a").sandboxes(1, 1).start().await;
    let b = SimRuntime::builder("b").sandboxes(1, 1).start().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    assert_verdict(&crimux, 0, "OK: 2 of 2").await;
    let no_metadata = cri::PodSandbox { id: "x".into(), ..Default::default() };
    let list = cri::ListPodSandboxResponse { items: vec![no_metadata] };
    b.reply_raw("ListPodSandbox", Reply::message(list.encode_to_vec()));
    crimux.client().runtime().list_pod_sandbox(cri::ListPodSandboxRequest::default()).await.unwrap();
    assert_verdict(&crimux, 1, "DEGRADED: b is left out of ListPodSandbox: items").await;
    let (_, verdict, _) = on(&crimux, &["status", "--check"], "").await;
    assert!(
        verdict.contains("the node stays Ready. See ") && verdict.contains("#crimuxitemsleftout"),
        "{verdict}"
    );
    let series = "crimux_items_left_out_total{backend=\"b\",method=\"ListPodSandbox\"}";
    assert!(crimux.metric(series).await >= Some(1.0));
}
