//! A backend is what answers, not what it is called: edits of the file while pods run.

use testkit::client::sandbox_config;
use testkit::runtime::{Fault, SimRuntime};
use testkit::{cri, eventually};
use tonic::Code;

use crate::cli::{check, on};
use crate::support::{Crimux, SOON, config};

mod lives;

const LIST: &str = "/runtime.v1.RuntimeService/ListPodSandbox";

/// Returns the IDs of all sandboxes, in order; the code if the list is refused.
async fn listed(crimux: &Crimux) -> Result<Vec<String>, Code> {
    let reply = crimux.client().raw(LIST, &[], "").await.unwrap();
    if reply.code() != Code::Ok {
        return Err(reply.code());
    }
    let items = reply.decode::<cri::ListPodSandboxResponse>().items;
    let mut ids: Vec<_> = items.into_iter().map(|item| item.id).collect();
    ids.sort();
    Ok(ids)
}

async fn status(crimux: &Crimux, id: &str) -> Code {
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
    crimux
        .client()
        .runtime()
        .pod_sandbox_status(request)
        .await
        .map_or_else(|status| status.code(), |_| Code::Ok)
}

async fn stop(crimux: &Crimux, id: &str) -> Code {
    let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
    crimux
        .client()
        .runtime()
        .stop_pod_sandbox(request)
        .await
        .map_or_else(|status| status.code(), |_| Code::Ok)
}

fn pods(runtime: &SimRuntime) -> Vec<String> {
    let mut ids: Vec<_> = runtime.state().sandboxes().map(|sandbox| sandbox.id.clone()).collect();
    ids.sort();
    ids
}

/// Applies another configuration and returns the report.
async fn reload(crimux: &Crimux, yaml: &str) -> String {
    crimux.rewrite(yaml);
    let (code, out, err) = on(crimux, &["reload"], "").await;
    assert_eq!(code, 0, "{out}{err}");
    out
}

async fn two() -> (SimRuntime, SimRuntime) {
    let a = SimRuntime::builder("a").containers(2, 1).start().await;
    let b = SimRuntime::builder("b").containers(1, 1).start().await;
    (a, b)
}

#[tokio::test]
async fn a_renamed_backend_keeps_its_pods_and_each_is_listed_once_by_reload_and_by_restart() {
    let (a, b) = two().await;
    let mut crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let all = listed(&crimux).await.unwrap();
    assert_eq!(all.len(), 3);
    let plan = {
        crimux.rewrite(&config(&crimux.dir, &[("main", &a), ("b", &b)], ""));
        let (code, out, _) = on(
            &crimux,
            &["reload", "--dry-run", "--config", crimux.dir.path().join("crimux.yaml").to_str().unwrap()],
            "",
        )
        .await;
        assert_eq!(code, 0, "{out}");
        out
    };
    // The file is watched, so the reload may have been made before it was asked about.
    let renamed = plan.contains("backend a → main: renamed, 2 pods stay with it");
    assert!(renamed || plan.contains("would change nothing"), "{plan}");
    reload(&crimux, &config(&crimux.dir, &[("main", &a), ("b", &b)], "")).await;
    assert_eq!(listed(&crimux).await, Ok(all.clone()));
    for id in &all {
        assert_eq!(status(&crimux, id).await, Code::Ok);
    }
    crimux.rewrite(&config(&crimux.dir, &[("b2", &b), ("main", &a)], ""));
    crimux.restart().await;
    crimux.wait_ready().await;
    assert_eq!(listed(&crimux).await, Ok(all));
    assert!(crimux.metric("crimux_backend_up{backend=\"b\"}").await.is_none());
}

#[tokio::test]
async fn endpoints_that_are_swapped_take_their_pods_along_from_the_next_call_on() {
    let (a, b) = two().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let (of_a, of_b) = (pods(&a), pods(&b));
    reload(&crimux, &config(&crimux.dir, &[("a", &b), ("b", &a)], "")).await;
    for id in of_a.iter().chain(&of_b) {
        assert_eq!(status(&crimux, id).await, Code::Ok);
    }
    assert_eq!(stop(&crimux, &of_b[0]).await, Code::Ok);
    assert_eq!(b.calls("StopPodSandbox").len(), 1);
    assert_eq!(a.calls("StopPodSandbox").len(), 0);
    let made = crimux.client().runtime().run_pod_sandbox(sandbox_config("n").run("a")).await.unwrap();
    assert!(pods(&b).contains(&made.into_inner().pod_sandbox_id), "the name is a label");
}

#[tokio::test]
async fn a_name_given_to_another_runtime_leaves_the_pods_of_the_old_one_listed_and_served() {
    let (a, b) = two().await;
    let g = SimRuntime::builder("g").start().await;
    let mut crimux = Crimux::start(&[("main", &a), ("b", &b)]).await;
    let all = listed(&crimux).await.unwrap();
    let of_a = pods(&a);
    reload(&crimux, &config(&crimux.dir, &[("main", &g), ("b", &b)], "")).await;
    assert_eq!(listed(&crimux).await, Ok(all.clone()));
    assert_eq!(status(&crimux, &of_a[0]).await, Code::Ok);
    // A new pod goes to the new runtime once that has been listed.
    eventually(SOON, async || {
        crimux.client().runtime().run_pod_sandbox(sandbox_config("n").run("main")).await.is_ok()
    })
    .await;
    assert_eq!(pods(&g).len(), 1);
    let mut all = [all, pods(&g)].concat();
    all.sort();
    a.stop().await;
    for killed in [false, true] {
        if killed {
            crimux.kill_and_start().await;
            crimux.wait_ready().await;
        }
        assert_eq!(listed(&crimux).await, Ok(all.clone()), "killed: {killed}");
        assert_eq!(status(&crimux, &of_a[1]).await, Code::Unavailable);
        assert_eq!(stop(&crimux, &of_a[0]).await, Code::Unavailable, "never a false OK");
    }
    // Taken back under another name.
    a.start_again().await;
    reload(&crimux, &config(&crimux.dir, &[("main", &g), ("b", &b), ("old", &a)], "")).await;
    eventually(SOON, async || status(&crimux, &of_a[0]).await == Code::Ok).await;
    assert_eq!(listed(&crimux).await, Ok(all));
}

#[tokio::test]
async fn a_name_given_to_another_runtime_while_crimux_is_down_leaves_no_pod_behind() {
    let (a, b) = two().await;
    let g = SimRuntime::builder("g").start().await;
    let mut crimux = Crimux::start(&[("main", &a), ("b", &b)]).await;
    let all = listed(&crimux).await.unwrap();
    let made = crimux.client().runtime().run_pod_sandbox(sandbox_config("n").run("main")).await.unwrap();
    let mut all = [all, vec![made.into_inner().pod_sandbox_id]].concat();
    all.sort();
    let given = config(&crimux.dir, &[("main", &g), ("b", &b)], "");
    crimux.kill_and_start_with(&given).await;
    crimux.wait_ready().await;
    for _ in 0..3 {
        assert_eq!(listed(&crimux).await, Ok(all.clone()), "{}", crimux.log());
    }
    for id in &all {
        eventually(SOON, async || status(&crimux, id).await == Code::Ok).await;
    }
    eventually(SOON, async || crimux.log().contains("another runtime")).await;
    assert_eq!(listed(&crimux).await, Ok(all));
}

#[tokio::test]
async fn a_runtime_that_moved_to_another_socket_is_the_same_once_it_lists_what_it_had() {
    let (a, b) = two().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let all = listed(&crimux).await.unwrap();
    // The same runtime at a path that nothing tells to be the same: a hard link.
    let other = a.socket().with_extension("other");
    std::fs::hard_link(a.socket(), &other).unwrap();
    let yaml = config(&crimux.dir, &[("a", &a), ("b", &b)], "");
    let moved = yaml.replace(&a.endpoint(), &format!("unix://{}", other.display()));
    let said = reload(&crimux, &moved).await;
    assert!(said.is_empty() || said.contains("moved") || said.contains("as it is"), "{said}");
    for _ in 0..3 {
        assert_eq!(listed(&crimux).await, Ok(all.clone()));
    }
    eventually(SOON, async || crimux.log().contains("it lists what it listed before")).await;
    assert_eq!(listed(&crimux).await, Ok(all.clone()));
    let (_, text) = crimux.get("/v1/status").await.unwrap();
    assert!(!text.contains("a@"), "{text}");
    assert_eq!(status(&crimux, &all[0]).await, Code::Ok);
}

#[tokio::test]
async fn a_removed_backend_outlives_restarts_until_it_owns_nothing() {
    let (a, b) = two().await;
    let mut crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let all = listed(&crimux).await.unwrap();
    let of_b = pods(&b);
    let said = reload(&crimux, &config(&crimux.dir, &[("a", &a)], "")).await;
    assert!(
        said.is_empty()
            || said.contains("backend b: removed, 1 pod stays until it ends")
            || said.contains("as it is"),
        "{said}"
    );
    assert_eq!(crimux.metric("crimux_backend_configured{backend=\"a\"}").await, Some(1.0));
    b.stop().await;
    crimux.restart().await;
    crimux.wait_ready().await;
    assert_eq!(crimux.metric("crimux_backend_configured{backend=\"b\"}").await, Some(0.0));
    assert!(crimux.log().contains("not configured; kept until it owns nothing"), "{}", crimux.log());
    let (_, said, _) = check(&crimux.dir.path().join("crimux.yaml"), &[], "").await;
    assert!(said.contains("b: not configured, 1 pod on it"), "{said}");
    assert_eq!(listed(&crimux).await, Ok(all.clone()));
    assert_eq!(stop(&crimux, &of_b[0]).await, Code::Unavailable);
    let (_, text) = crimux.get("/v1/status").await.unwrap();
    assert!(text.contains("\"configured\":false"), "{text}");
    b.start_again().await;
    eventually(SOON, async || stop(&crimux, &of_b[0]).await == Code::Ok).await;
    let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: of_b[0].clone() };
    crimux.client().runtime().remove_pod_sandbox(remove).await.unwrap();
    assert_eq!(listed(&crimux).await.unwrap().len(), 2);
    eventually(3 * SOON, async || crimux.log().contains("owns nothing any more and is gone")).await;
}

#[tokio::test]
async fn two_names_for_one_runtime_list_each_pod_once_and_are_named_in_one_line() {
    let a = SimRuntime::builder("a").containers(3, 1).start().await;
    let crimux = Crimux::start(&[("a", &a)]).await;
    let all = listed(&crimux).await.unwrap();
    let yaml = config(&crimux.dir, &[("a", &a), ("again", &a)], "");
    let (code, out, _) = {
        let path = crimux.dir.path().join("twice.yaml");
        std::fs::write(&path, &yaml).unwrap();
        check(&path, &[], "").await
    };
    assert_eq!(code, 1, "nobody can mean it: {out}");
    assert!(out.contains(": error: backends.again.endpoint: backends.a has the same endpoint"), "{out}");
    reload(&crimux, &yaml).await;
    let both = "crimux_backend_state{backend=\"again\",state=\"ready\"}";
    eventually(SOON, async || crimux.metric(both).await == Some(1.0)).await;
    for _ in 0..5 {
        assert_eq!(listed(&crimux).await, Ok(all.clone()));
    }
    eventually(SOON, async || crimux.log().contains("two backends list the same IDs")).await;
    assert_eq!(crimux.log().matches("two backends list the same IDs").count(), 1);
    assert_eq!(crimux.metric("crimux_id_conflicts_total").await, Some(6.0), "each ID is counted once");
    assert_eq!(
        crimux.metric("crimux_foreign_ids{backend=\"again\"}").await,
        Some(6.0),
        "as long as it lasts"
    );
    let (_, status) = crimux.get("/v1/status").await.unwrap();
    assert!(status.contains("again lists 6 IDs that another backend owns"), "{status}");
}

#[tokio::test]
async fn two_names_for_one_runtime_list_each_pod_once_from_the_start_on() {
    let a = SimRuntime::builder("a").containers(3, 1).start().await;
    let mut crimux = Crimux::start(&[("a", &a)]).await;
    let all = listed(&crimux).await.unwrap();
    for killed in [false, true] {
        let yaml = config(&crimux.dir, &[("a", &a), ("again", &a)], "");
        crimux.rewrite(&yaml);
        if killed {
            crimux.kill_and_start().await;
        } else {
            crimux.restart().await;
        }
        crimux.wait_ready().await;
        for _ in 0..5 {
            assert_eq!(listed(&crimux).await, Ok(all.clone()), "killed: {killed}");
        }
        // The name that is left has all of them, also those that the other one owned.
        reload(&crimux, &config(&crimux.dir, &[("again", &a)], "")).await;
        assert_eq!(listed(&crimux).await, Ok(all.clone()), "killed: {killed}");
    }
}

#[tokio::test]
async fn a_runtime_that_is_moved_and_renamed_in_one_edit_keeps_its_pods_and_ends_under_its_old_name() {
    let (mut a, b) = two().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let all = listed(&crimux).await.unwrap();
    let elsewhere = a.socket().with_extension("moved");
    a.move_to(elsewhere).await;
    reload(&crimux, &config(&crimux.dir, &[("b", &b), ("main", &a)], "")).await;
    let of_a = pods(&a);
    eventually(SOON, async || {
        assert_eq!(listed(&crimux).await, Ok(all.clone()));
        let code = status(&crimux, &of_a[0]).await;
        assert!(matches!(code, Code::Ok | Code::Unavailable), "{code:?}");
        code == Code::Ok
    })
    .await;
    // What is removed there is gone, and not listed again as last known of the old name.
    let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: of_a[0].clone() };
    crimux.client().runtime().remove_pod_sandbox(remove).await.unwrap();
    let left: Vec<_> = all.into_iter().filter(|id| *id != of_a[0]).collect();
    assert_eq!(listed(&crimux).await, Ok(left.clone()));
    eventually(3 * SOON, async || {
        assert_eq!(listed(&crimux).await, Ok(left.clone()));
        let (_, text) = crimux.get("/v1/status").await.unwrap();
        !text.contains("\"configured\":false")
    })
    .await;
}

#[tokio::test]
async fn a_sandbox_that_is_created_while_its_backend_is_taken_out_of_the_file_is_listed() {
    let a = SimRuntime::builder("a").start().await;
    let b = SimRuntime::builder("b").start().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    b.fault_next("RunPodSandbox", 1, Fault::Hang);
    let mut runtime = crimux.client().runtime();
    let creation = tokio::spawn(async move { runtime.run_pod_sandbox(sandbox_config("n").run("b")).await });
    b.wait_for_call("RunPodSandbox", 1).await;
    // The name goes to another runtime, so that the backend runs on under another label.
    reload(&crimux, &config(&crimux.dir, &[("b", &a)], "")).await;
    b.clear_faults();
    let made = creation.await.unwrap().unwrap().into_inner().pod_sandbox_id;
    assert_eq!(listed(&crimux).await, Ok(vec![made.clone()]));
    assert_eq!(status(&crimux, &made).await, Code::Ok);
}

#[tokio::test]
async fn a_second_crimux_on_one_state_dir_is_refused_by_naming_the_first() {
    let a = SimRuntime::builder("a").start().await;
    let crimux = Crimux::start(&[("a", &a)]).await;
    let dir = tempfile::tempdir().unwrap();
    let own = config(&dir, &[("a", &a)], "");
    let state = |dir: &tempfile::TempDir| format!("state_dir: {}/state", dir.path().display());
    let mut second = Crimux::start_in(dir, &own);
    // With a directory of its own it runs; with the first one's it does not.
    second.wait_ready().await;
    let yaml = own.replace(&state(&second.dir), &state(&crimux.dir));
    second.rewrite(&yaml);
    second.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(second.ended().await, Some(0));
    let mut third = Crimux::start_in(std::mem::replace(&mut second.dir, tempfile::tempdir().unwrap()), &yaml);
    assert_eq!(third.ended().await, Some(1));
    let pid = format!("pid {}", crimux.pid());
    assert!(third.log().contains("is in use by") && third.log().contains(&pid), "{}", third.log());
    assert_eq!(listed(&crimux).await, Ok(vec![]));
}

#[tokio::test]
async fn one_pod_of_a_lost_backend_can_be_forgotten() {
    let (a, b) = two().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let of_a = pods(&a);
    let (code, _, err) = on(&crimux, &["backend", "forget", "a", "--pod", &of_a[0], "--yes"], "").await;
    assert_eq!(code, 1, "it is up");
    assert!(err.contains("is up"), "{err}");
    a.stop().await;
    eventually(SOON, async || crimux.metric("crimux_backend_up{backend=\"a\"}").await == Some(0.0)).await;
    let (code, out, err) =
        on(&crimux, &["backend", "forget", "a", "--pod", &of_a[0][..20], "--yes"], "").await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains(&of_a[0]), "{out}");
    let left = listed(&crimux).await.unwrap();
    assert!(!left.contains(&of_a[0]) && left.contains(&of_a[1]), "{left:?}");
}

#[tokio::test]
async fn a_question_about_what_was_just_removed_is_for_its_owner_alone() {
    let (a, b) = two().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    listed(&crimux).await.unwrap();
    let id = pods(&a)[0].clone();
    let mut runtime = crimux.client().runtime();
    runtime.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await.unwrap();
    runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id.clone() }).await.unwrap();
    b.stop().await;
    eventually(SOON, async || crimux.metric("crimux_backend_up{backend=\"b\"}").await == Some(0.0)).await;
    assert_eq!(status(&crimux, &id).await, Code::NotFound, "its owner says so, whatever the other cannot");
    assert_eq!(crimux.metric("crimux_unknown_ids_total").await, Some(0.0));
}

#[tokio::test]
async fn a_start_awaits_every_backend_that_is_neither_known_nor_optional() {
    let (a, b) = two().await;
    let mut crimux = Crimux::start(&[("a", &a)]).await;
    b.stop().await;
    let both = config(&crimux.dir, &[("a", &a), ("b", &b)], "");
    crimux.kill_and_start_with(&both).await;
    eventually(SOON, async || crimux.get("/readyz").await.is_some()).await;
    assert_eq!(listed(&crimux).await, Err(Code::Unavailable), "it was never listed");
    let optional = both
        .replace(&format!("\"{}\" }}", b.endpoint()), &format!("\"{}\", optional: true }}", b.endpoint()));
    assert_ne!(optional, both);
    reload(&crimux, &optional).await;
    assert_eq!(listed(&crimux).await, Ok(pods(&a)));
    b.start_again().await;
    eventually(SOON, async || listed(&crimux).await.is_ok_and(|all| all.len() == 3)).await;
}

#[tokio::test]
async fn a_drained_backend_that_is_declared_lost_ends_once_it_left_the_file() {
    let (a, b) = two().await;
    let mut crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    listed(&crimux).await.unwrap();
    assert_eq!(on(&crimux, &["backend", "drain", "b", "--force"], "").await.0, 0);
    b.stop().await;
    reload(&crimux, &config(&crimux.dir, &[("a", &a)], "")).await;
    // What was listed before a restart may have changed since: it is the operator who says that it is lost.
    crimux.restart().await;
    crimux.wait_ready().await;
    let (code, _, error) = on(&crimux, &["backend", "forget", "b"], "b\n").await;
    assert_eq!(code, 0, "{error}");
    eventually(3 * SOON, async || crimux.log().contains("owns nothing any more and is gone")).await;
    assert_eq!(listed(&crimux).await, Ok(pods(&a)));
}

#[tokio::test]
async fn a_new_backend_whose_endpoint_is_corrected_is_still_left_out_until_it_is_listed() {
    let (a, b) = two().await;
    let crimux = Crimux::start(&[("a", &a)]).await;
    b.stop().await;
    let right = config(&crimux.dir, &[("a", &a), ("b", &b)], "");
    let wrong = right.replace(&b.endpoint(), "unix:///nowhere/b.sock");
    reload(&crimux, &wrong).await;
    assert_eq!(listed(&crimux).await, Ok(pods(&a)));
    reload(&crimux, &right).await;
    assert_eq!(listed(&crimux).await, Ok(pods(&a)), "the node does not wait for what a reload added");
    b.start_again().await;
    eventually(SOON, async || listed(&crimux).await.is_ok_and(|all| all.len() == 3)).await;
}

#[tokio::test]
async fn what_was_never_listed_is_kept_when_its_name_is_given_to_another_endpoint() {
    let (a, b) = two().await;
    let c = SimRuntime::builder("c").containers(1, 1).start().await;
    b.stop().await;
    let dir = tempfile::tempdir().unwrap();
    let first = config(&dir, &[("a", &a), ("b", &b)], "");
    let crimux = Crimux::start_in(dir, &first);
    eventually(SOON, async || crimux.get("/readyz").await.is_some()).await;
    reload(&crimux, &config(&crimux.dir, &[("a", &a)], "")).await;
    let given = config(&crimux.dir, &[("a", &a), ("b", &c)], "");
    reload(&crimux, &given).await;
    b.start_again().await;
    let mut all = [pods(&a), pods(&b), pods(&c)].concat();
    all.sort();
    eventually(3 * SOON, async || listed(&crimux).await.as_ref() == Ok(&all)).await;
}
