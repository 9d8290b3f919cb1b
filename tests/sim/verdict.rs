//! Answers that are not whole are in the verdict, its exit code, the heading of the page, and a metric.

use nix::sys::signal::Signal;
use prost::Message as _;
use testkit::runtime::{Fault, Reply, SimRuntime};
use testkit::{cri, eventually};

use crate::cli::on;
use crate::operator::{document, reload, status, two};
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

#[tokio::test]
async fn the_status_begins_with_a_headline_and_check_says_all_in_one_line() {
    let (a, b, running) = two().await;
    assert_eq!(on(&running, &["status", "--check"], "").await.0, 0);
    b.stop().await;
    eventually(SOON, async || on(&running, &["status", "--check"], "").await.0 == 1).await;
    let (code, table, _) = on(&running, &["status"], "").await;
    let headline = table.lines().next().unwrap();
    assert!(code == 0 && headline.starts_with("DEGRADED: b down "), "{table}");
    assert!(headline.ends_with("; the node stays Ready"), "{table}");
    let (_, verdict, _) = on(&running, &["status", "--check"], "").await;
    assert_eq!(verdict.lines().count(), 1, "{verdict}");
    let flat = status(&running).await;
    for part in ["2 sandboxes as last known", "handler b refused", "stays Ready", "#crimuxbackenddown"] {
        assert!(verdict.contains(part) && flat.contains(part), "{part}: {verdict}{table}");
    }
    a.stop().await;
    eventually(SOON, async || {
        let table = status(&running).await;
        table.starts_with("NOT READY: a down ") && table.contains("a is the default backend")
    })
    .await;
    assert_eq!(document(&running, &["status"]).await["verdict"]["level"], "not_ready");
}

#[tokio::test]
async fn each_of_three_faults_has_its_own_lines_within_80_columns_the_worst_first() {
    let (a, b, running) = two().await;
    b.stop().await;
    eventually(SOON, async || status(&running).await.starts_with("DEGRADED: b down ")).await;
    a.stop().await;
    eventually(SOON, async || status(&running).await.starts_with("NOT READY: a down ")).await;
    reload(&running, "listen: [", "failed").await;
    let (_, table, _) = on(&running, &["status"], "").await;
    let verdict = table.split("\n\n").next().unwrap();
    let mut lines = verdict.lines();
    let headline = lines.next().unwrap();
    assert!(headline.ends_with(", and 2 more; the node becomes NotReady"), "{table}");
    for line in verdict.lines() {
        let is_one_word = line.split_whitespace().count() == 1;
        assert!(line.chars().count() <= 80 || is_one_word, "{line}\n{table}");
    }
    let starts: Vec<_> = lines.filter(|line| line.starts_with("- ")).map(|line| &line[..8]).collect();
    assert_eq!(starts, ["- a down", "- b down", "- the la"], "{table}");
    for section in ["#crimuxbackenddown", "#crimuxconfigreloadfailed"] {
        assert!(verdict.contains(section), "{section}: {table}");
    }
    // As wide as it gets, and on the page: one line for each.
    let (_, wide, _) = on(&running, &["status", "-o", "wide"], "").await;
    assert_eq!(wide.split("\n\n").next().unwrap().lines().count(), 4, "{wide}");
    let faults = document(&running, &["status"]).await["verdict"]["faults"].clone();
    let (_, page) = running.get("/").await.unwrap();
    for fault in faults.as_array().unwrap() {
        let problem = fault["problem"].as_str().unwrap().split(' ').next().unwrap();
        assert!(page.contains(&format!("<li>{problem} ")), "{fault}: {page}");
    }
    assert_eq!(faults.as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_condition_by_which_kubelet_judges_is_in_the_verdict() {
    let (a, b, running) = two().await;
    let no_network = ["RuntimeReady", "NetworkReady"].map(|kind| cri::RuntimeCondition {
        r#type: kind.to_owned(),
        status: kind == "RuntimeReady",
        reason: "NetworkPluginNotReady".to_owned(),
        message: "cni plugin not initialized".to_owned(),
    });
    let no_network = cri::StatusResponse {
        status: Some(cri::RuntimeStatus { conditions: no_network.to_vec() }),
        ..Default::default()
    };
    let verdict = async || {
        running.client().runtime().status(cri::StatusRequest::default()).await.unwrap();
        status(&running).await
    };
    b.reply_raw("Status", Reply::message(no_network.encode_to_vec()));
    let said = verdict().await;
    let fault = "DEGRADED: b: NetworkReady is false; the node stays Ready \
                 - b: NetworkReady is false (cni plugin not initialized)";
    assert!(said.starts_with(fault), "{said}");
    a.reply_raw("Status", Reply::message(no_network.encode_to_vec()));
    let said = verdict().await;
    let headline = "NOT READY: a: NetworkReady is false, and 1 more; the node becomes NotReady - a: ";
    assert!(said.starts_with(headline) && said.contains("the node becomes NotReady: a is"), "{said}");
    a.clear_replies();
    b.clear_replies();
    eventually(SOON, async || verdict().await.starts_with("OK: ")).await;
    a.fault("Status", Fault::Hang);
    let said = verdict().await;
    assert!(said.starts_with("NOT READY: a") && said.contains("Status is not answered"), "{said}");
    a.clear_fault("Status");
    eventually(SOON, async || verdict().await.starts_with("OK: ")).await;
}

#[tokio::test]
async fn a_removed_handler_is_in_the_verdict_while_its_pods_run_or_are_refused() {
    let (a, b, running) = two().await;
    let pod = |name: &str| testkit::client::sandbox_config(name).run("b");
    running.client().runtime().run_pod_sandbox(pod("runs")).await.unwrap();
    reload(&running, &config(&running.dir, &[("a", &a)], ""), "ok").await;
    let headline = "OK: 1 of 1 backends ready; b is not in the configuration, and 1 more";
    // On a busy machine a list may outlast its deadline meanwhile.
    eventually(SOON, async || status(&running).await.starts_with(headline)).await;
    let removed = "- handler b was removed from the configuration: its new sandboxes are refused";
    let table = status(&running).await;
    assert!(table.contains(&format!("{removed}, ")), "{table}");
    assert_eq!(running.metric("crimux_handler_refused{handler=\"b\"}").await, Some(1.0));
    running.client().runtime().run_pod_sandbox(pod("refused")).await.unwrap_err();
    let table = status(&running).await;
    assert!(table.contains(&format!("{removed}, the last one ")), "{table}");
    let (_, pods, _) = on(&running, &["ps", "--backend", "b"], "").await;
    assert!(pods.contains("b (removed)"), "{pods}");
    let (_, routes, _) = on(&running, &["route"], "").await;
    assert!(routes.contains("handler b was removed: its new sandboxes are refused; "), "{routes}");
    running.rewrite(&config(&running.dir, &[("a", &a), ("b", &b)], ""));
    running.signal(Signal::SIGHUP);
    eventually(SOON, async || !status(&running).await.contains("was removed")).await;
    assert_eq!(running.metric("crimux_handler_refused{handler=\"b\"}").await, Some(0.0));
}

#[tokio::test]
async fn an_optional_backend_that_is_not_there_yet_is_no_fault_until_it_was_there() {
    let a = SimRuntime::builder("a").sandboxes(1, 1).start().await;
    let b = SimRuntime::builder("b").sandboxes(1, 1).start().await;
    b.stop().await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&dir, &[("a", &a), ("b", &b)], "")
        .replace(&format!("\"{}\" }}", b.endpoint()), &format!("\"{}\", optional: true }}", b.endpoint()));
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    let optional = "OK: 1 of 2 backends ready; b is optional and not there yet";
    eventually(SOON, async || status(&crimux).await.starts_with(optional)).await;
    assert!(
        status(&crimux).await.contains("; new sandboxes of handler b refused."),
        "{}",
        status(&crimux).await
    );
    let handler = "crimux_handler_comes_later{handler=\"b\"}";
    for (series, value) in [
        ("crimux_backend_state{backend=\"b\",state=\"joining\"}", 1.0),
        ("crimux_backend_comes_later{backend=\"b\"}", 1.0),
        ("crimux_backend_comes_later{backend=\"a\"}", 0.0),
        ("crimux_handler_refused{handler=\"b\"}", 1.0),
        (handler, 1.0),
        ("crimux_backend_required{backend=\"a\"}", 1.0),
        ("crimux_backend_required{backend=\"b\"}", 0.0),
    ] {
        assert_eq!(crimux.metric(series).await, Some(value), "{series}");
    }
    b.start_again().await;
    eventually(SOON, async || status(&crimux).await.starts_with("OK: 2 of 2 backends ready")).await;
    b.stop().await;
    eventually(SOON, async || status(&crimux).await.starts_with("DEGRADED: b down")).await;
    assert_eq!(crimux.metric("crimux_backend_comes_later{backend=\"b\"}").await, Some(0.0));
    assert_eq!(crimux.metric(handler).await, Some(0.0));
}
