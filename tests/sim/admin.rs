//! What operators read and change: the admin socket, and the port that only shows.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};
use testkit::client::sandbox_config;
use testkit::cri;
use testkit::eventually;
use testkit::runtime::SimRuntime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use crate::support::{Crimux, SOON, config};

/// Two runtimes, each with two sandboxes and a container in each.
async fn two() -> [SimRuntime; 2] {
    let start = |name: &'static str| async move {
        SimRuntime::builder(name).handlers([name, "inner"]).sandboxes(2, 2).images(1).start().await
    };
    [start("a").await, start("b").await]
}

/// Asks the admin socket for a document that must be there.
async fn document(crimux: &Crimux, path: &str) -> Value {
    let (code, body) = crimux.get(path).await.expect("the admin socket answers");
    assert_eq!(code, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

/// Asks the admin socket for a change; returns the HTTP status and the answer.
async fn change(crimux: &Crimux, path: &str) -> (u16, Value) {
    let socket = crimux.dir.path().join("admin.sock");
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let request = format!("POST {path} HTTP/1.0\r\nhost: crimux\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
}

/// The IDs of all sandboxes that crimux lists, or the code of its refusal.
async fn sandboxes(crimux: &Crimux) -> Result<Vec<String>, Code> {
    let listed = crimux.client().runtime().list_pod_sandbox(cri::ListPodSandboxRequest::default()).await;
    let items = listed.map_err(|status| status.code())?.into_inner().items;
    let mut ids: Vec<_> = items.into_iter().map(|sandbox| sandbox.id).collect();
    ids.sort_unstable();
    Ok(ids)
}

fn ids(runtime: &SimRuntime) -> Vec<String> {
    let mut ids: Vec<_> = runtime.state().sandboxes().map(|sandbox| sandbox.id.clone()).collect();
    ids.sort_unstable();
    ids
}

async fn state_of(crimux: &Crimux, backend: &str) -> Value {
    let status = document(crimux, "/v1/status").await;
    let backends = status["backends"].as_array().unwrap();
    backends.iter().find(|candidate| candidate["name"] == backend).unwrap().clone()
}

async fn wait_for_state(crimux: &Crimux, backend: &str, state: &str) {
    eventually(SOON, async || state_of(crimux, backend).await["state"] == state).await;
}

#[tokio::test]
async fn status_tells_state_load_and_what_went_wrong_last() {
    let [a, b] = two().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    b.stop().await;
    wait_for_state(&crimux, "b", "down").await;
    let up = state_of(&crimux, "a").await;
    assert_eq!((&up["state"], &up["sandboxes"], &up["containers"]), (&json!("ready"), &json!(2), &json!(2)));
    assert_eq!((&up["runtime_name"], &up["runtime_version"]), (&json!("a"), &json!("2.1.0")));
    assert_eq!((&up["api"], &up["default"], &up["draining"]), (&json!("v1"), &json!(true), &json!(false)));
    assert!(up["list_age_seconds"].as_f64().unwrap() < 60.0, "{up}");
    let down = state_of(&crimux, "b").await;
    assert_eq!((&down["sandboxes"], &down["api"]), (&json!(2), &Value::Null));
    let socket = b.socket().display().to_string();
    eventually(SOON, async || {
        state_of(&crimux, "b").await["last_error"]["text"].as_str().is_some_and(|text| text.contains(&socket))
    })
    .await;
    let status = document(&crimux, "/v1/status").await;
    assert_eq!(status["state"]["write_errors"], 0);
}

#[tokio::test]
async fn pods_are_named_by_the_handler_that_clients_use_and_by_their_backend() {
    let [a, b] = two().await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&dir, &[("a", &a), ("b", &b)], "  public: { backend: b, handler: inner }\n");
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    for (name, handler) in [("one", ""), ("two", "public")] {
        let request = sandbox_config(name).namespace("team").run(handler);
        crimux.client().runtime().run_pod_sandbox(request).await.unwrap();
    }
    let pods = document(&crimux, "/v1/pods").await;
    let pods: Vec<_> =
        pods["pods"].as_array().unwrap().iter().filter(|pod| pod["namespace"] == "team").collect();
    let told: Vec<_> =
        pods.iter().map(|p| [&p["name"], &p["handler"], &p["backend_handler"], &p["backend"]]).collect();
    assert_eq!(told, [["one", "", "", "a"], ["two", "public", "inner", "b"]]);
    assert_eq!((&pods[0]["state"], &pods[0]["stale"]), (&json!("ready"), &json!(false)));
}

#[tokio::test]
async fn pods_of_a_backend_that_is_down_are_still_shown_and_marked() {
    let [a, b] = two().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    b.stop().await;
    wait_for_state(&crimux, "b", "down").await;
    let pods = document(&crimux, "/v1/pods").await;
    let stale = |backend| {
        let pods = pods["pods"].as_array().unwrap().iter().filter(|pod| pod["backend"] == backend);
        pods.map(|pod| pod["stale"].as_bool().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!((stale("a"), stale("b")), (vec![false; 2], vec![true; 2]));
}

#[tokio::test]
async fn images_say_which_backend_has_what() {
    let [a, b] = two().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let image = Some(testkit::client::image_spec("registry.test/only-on-b:1"));
    let pull = cri::PullImageRequest { image, ..Default::default() };
    testkit::Client::unix(b.socket()).images().pull_image(pull).await.unwrap();
    let images = document(&crimux, "/v1/images").await;
    let named =
        |image: &&Value| image["tags"].as_array().unwrap().contains(&json!("registry.test/only-on-b:1"));
    let image = images["images"].as_array().unwrap().iter().find(named).expect("it is listed again");
    assert_eq!(image["backends"], json!(["b"]));
    assert_eq!((&images["unknown"], &images["stale"]), (&json!([]), &json!([])));
}

#[tokio::test]
async fn a_drain_and_its_end_survive_a_kill_and_new_sandboxes_alone_are_refused() {
    let [a, b] = two().await;
    let mut crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let (code, refused) = change(&crimux, "/v1/backends/b/drain").await;
    assert_eq!(code, 409);
    assert!(refused["error"].as_str().unwrap().contains("handler b"), "{refused}");
    let (code, drained) = change(&crimux, "/v1/backends/b/drain?force=true").await;
    assert_eq!((code, drained["warnings"].as_array().unwrap().len()), (200, 1), "{drained}");

    crimux.kill_and_start().await;
    crimux.wait_ready().await;
    wait_for_state(&crimux, "b", "draining").await;
    let request = sandbox_config("new").run("b");
    let status = crimux.client().runtime().run_pod_sandbox(request.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("draining"), "{}", status.message());
    assert_eq!(sandboxes(&crimux).await.unwrap().len(), 4);
    let id = ids(&b)[0].clone();
    let stop = cri::StopPodSandboxRequest { pod_sandbox_id: id };
    crimux.client().runtime().stop_pod_sandbox(stop).await.unwrap();

    assert_eq!(change(&crimux, "/v1/backends/b/undrain").await.0, 200);
    crimux.kill_and_start().await;
    crimux.wait_ready().await;
    wait_for_state(&crimux, "b", "ready").await;
    crimux.client().runtime().run_pod_sandbox(request).await.unwrap();
}

#[tokio::test]
async fn a_drained_member_of_a_split_needs_no_force_and_leaves_its_share_to_the_others() {
    let [a, b] = two().await;
    let dir = tempfile::tempdir().unwrap();
    let split = "  split: { split: [ { backend: a, handler: inner, weight: 1 }, { backend: b, handler: inner, weight: 9 } ] }\n";
    let yaml = config(&dir, &[("a", &a), ("b", &b)], split).replace("  b: { backend: b }\n", "");
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    assert_eq!(change(&crimux, "/v1/backends/b/drain").await.0, 200);
    let route = document(&crimux, "/v1/routes/split").await;
    let shares: Vec<_> =
        route["targets"].as_array().unwrap().iter().map(|t| t["share"].as_f64().unwrap()).collect();
    assert_eq!((shares, &route["refused"]), (vec![1.0, 0.0], &Value::Null));
    let before = a.state().sandboxes().count();
    for number in 0..5 {
        let request = sandbox_config(&format!("pod-{number}")).run("split");
        crimux.client().runtime().run_pod_sandbox(request).await.unwrap();
    }
    assert_eq!(a.state().sandboxes().count(), before + 5);
}

#[tokio::test]
async fn what_is_forgotten_leaves_the_lists_for_good_and_nothing_else_does() {
    let [a, b] = two().await;
    let mut crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let lost = ids(&b)[0].clone();
    b.stop().await;
    wait_for_state(&crimux, "b", "down").await;
    assert_eq!(sandboxes(&crimux).await.unwrap().len(), 4);
    let (code, forgotten) = change(&crimux, "/v1/backends/b/forget").await;
    assert_eq!(code, 200);
    assert_eq!(forgotten["message"], "forgot 2 sandboxes and 2 containers of backend b");
    assert_eq!(sandboxes(&crimux).await, Ok(ids(&a)));

    crimux.restart().await;
    eventually(SOON, async || sandboxes(&crimux).await == Ok(ids(&a))).await;
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: lost, verbose: false };
    let status = crimux.client().runtime().pod_sandbox_status(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "a backend that cannot be asked may know an unknown ID");

    b.start_again().await;
    eventually(SOON, async || sandboxes(&crimux).await.is_ok_and(|ids| ids.len() == 4)).await;
}

#[tokio::test]
async fn forgetting_ends_the_wait_for_a_backend_that_was_never_listed() {
    let [a, b] = two().await;
    b.stop().await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&dir, &[("a", &a), ("b", &b)], "");
    let crimux = Crimux::start_in(dir, &yaml);
    let waiting = Some((503, "not listed yet: b\n".to_owned()));
    eventually(SOON, async || crimux.get("/readyz").await == waiting).await;
    assert_eq!(sandboxes(&crimux).await, Err(Code::Unavailable));
    assert_eq!(change(&crimux, "/v1/backends/b/forget").await.0, 200);
    assert_eq!(sandboxes(&crimux).await, Ok(ids(&a)));
    crimux.wait_ready().await;
}

#[tokio::test]
async fn a_backend_that_is_up_is_not_forgotten_unless_forced() {
    let [a, b] = two().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let (code, refused) = change(&crimux, "/v1/backends/b/forget").await;
    assert_eq!(code, 409);
    assert!(refused["error"].as_str().unwrap().contains("is up"), "{refused}");
    assert_eq!(sandboxes(&crimux).await.unwrap().len(), 4);
    assert_eq!(change(&crimux, "/v1/backends/b/forget?force=true").await.0, 200);
    eventually(SOON, async || sandboxes(&crimux).await.is_ok_and(|ids| ids.len() == 4)).await;
}

#[tokio::test]
async fn a_removed_backend_that_is_lost_goes_when_it_is_forgotten() {
    let [a, b] = two().await;
    let mut crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    b.stop().await;
    // Nothing of it was listed in this life, so only the operator can end it.
    crimux.restart().await;
    crimux.wait_ready().await;
    crimux.rewrite(&config(&crimux.dir, &[("a", &a)], ""));
    eventually(SOON, async || state_of(&crimux, "b").await["configured"] == false).await;
    assert_eq!(sandboxes(&crimux).await.unwrap().len(), 4);
    assert_eq!(change(&crimux, "/v1/backends/b/forget").await.0, 200);
    eventually(SOON, async || {
        document(&crimux, "/v1/status").await["backends"]
            .as_array()
            .is_some_and(|backends| backends.len() == 1)
    })
    .await;
}

#[tokio::test]
async fn what_does_not_exist_is_named_with_what_does() {
    let [a, b] = two().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let (code, body) = crimux.get("/v1/routes/kata").await.unwrap();
    assert_eq!(code, 404);
    assert!(body.contains("configured handlers: a, b"), "{body}");
    for verb in ["drain", "undrain", "forget"] {
        let (code, answer) = change(&crimux, &format!("/v1/backends/kata/{verb}")).await;
        assert_eq!((code, &answer["error"]), (404, &json!("there is no backend \"kata\" (backends: a, b)")));
    }
}

#[tokio::test]
async fn the_port_shows_but_neither_names_pods_nor_changes_anything() {
    let [a, b] = two().await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&dir, &[("a", &a), ("b", &b)], "").replace("http: off", "http: 127.0.0.1:0");
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    let mode = std::fs::metadata(crimux.dir.path().join("admin.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let request = sandbox_config("secret-name").namespace("secret-namespace").run("b");
    crimux.client().runtime().run_pod_sandbox(request).await.unwrap();
    let unknown = sandbox_config("p").run("<script>alert(1)</script>");
    crimux.client().runtime().run_pod_sandbox(unknown).await.unwrap_err();

    let (code, page) = crimux.http("GET", "/").await;
    assert_eq!(code, 200);
    for wanted in ["2 of 2 backends ready", "Last placements", "not configured", "InvalidArgument"] {
        assert!(page.contains(wanted), "{wanted}: {page}");
    }
    for never in ["secret-name", "secret-namespace", "<script", "src=", "http://", "https://"] {
        assert!(!page.contains(never), "{never}: {page}");
    }
    assert!(page.contains("content-security-policy: default-src 'none'"), "{page}");
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(crimux.http("GET", path).await.0, 200, "{path}");
    }
    for path in ["/v1/status", "/v1/pods", "/v1/images", "/v1/routes"] {
        assert_eq!(crimux.http("GET", path).await.0, 404, "{path}");
    }
    for path in ["/v1/backends/b/drain?force=true", "/v1/backends/b/forget?force=true"] {
        assert_eq!(crimux.http("POST", path).await.0, 404, "{path}");
    }
    assert_eq!(crimux.http("POST", "/").await.0, 405);
    assert_eq!(state_of(&crimux, "b").await["draining"], false);
}

#[tokio::test]
async fn a_state_directory_that_cannot_be_written_is_said() {
    let [a, b] = two().await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("state"), "in the way").unwrap();
    let yaml = config(&dir, &[("a", &a), ("b", &b)], "");
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    let status = document(&crimux, "/v1/status").await;
    assert!(status["state"]["problem"].as_str().unwrap().contains("cannot write"), "{status}");
    assert!(crimux.metric("crimux_state_write_errors_total").await.unwrap() >= 1.0);
    let (_, drained) = change(&crimux, "/v1/backends/b/drain?force=true").await;
    assert!(drained["warnings"].to_string().contains("ends with a restart"), "{drained}");
}
