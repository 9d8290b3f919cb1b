//! The sockets, how crimux ends, and what it never says.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use nix::sys::signal::Signal;
use prost::Message;
use tempfile::TempDir;
use testkit::client::{container_config, sandbox_config};
use testkit::runtime::{Fault, SimRuntime};
use testkit::{Client, cri, eventually};
use tokio::net::UnixListener;
use tonic::Code;

use crate::cli::on;
use crate::support::{Crimux, SOON, config};

const LIST: &str = "/runtime.v1.RuntimeService/ListPodSandbox";
const EXEC_SYNC: &str = "/runtime.v1.RuntimeService/ExecSync";

/// Starts crimux with the ordinary configuration, changed by `change`.
async fn start_with(runtime: &SimRuntime, change: impl Fn(String, &Path) -> String) -> Crimux {
    let dir = tempfile::tempdir().unwrap();
    let yaml = change(config(&dir, &[("a", runtime)], ""), dir.path());
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    crimux
}

/// Runs crimux until it gives up; returns its exit code and what it said.
async fn fails(config: &Path) -> (Option<i32>, String) {
    let crimux = tokio::process::Command::new(env!("CARGO_BIN_EXE_crimux"))
        .args(["serve", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(SOON, crimux).await.expect("crimux gives up").unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn a_client_that_closes_none_of_its_connections_locks_nobody_out() {
    let runtime = SimRuntime::builder("a").events().start().await;
    let crimux = start_with(&runtime, |yaml, _| format!("{yaml}limits: {{ connections: 16 }}\n")).await;
    let is_served = async |client: &Client| {
        let request = cri::VersionRequest { version: "0.1.0".to_owned() };
        client.runtime().version(request).await.is_ok()
    };
    let listening = crimux.client();
    let events = listening.runtime().get_container_events(cri::GetEventsRequest {}).await.unwrap();
    let mut events = events.into_inner();
    let mut clients = Vec::new();
    for number in 0..100 {
        let client = Client::unix(crimux.socket());
        // The last places are given back once an idle client has heard that it makes room.
        eventually(SOON, async || is_served(&client).await).await;
        clients.push(client);
        let open = crimux.metric("crimux_client_connections").await.unwrap();
        assert!(open <= 16.0, "{open} connections are open after {number}");
    }
    crimux.client().runtime().run_pod_sandbox(sandbox_config("p").run("")).await.unwrap();
    let event = events.message().await.unwrap();
    assert!(event.is_some(), "a connection with a call in flight is not idle");
    for client in &clients {
        eventually(SOON, async || is_served(client).await).await;
    }
}

#[tokio::test]
async fn the_socket_has_its_mode_and_owner_and_its_directory_is_made() {
    let runtime = SimRuntime::builder("a").start().await;
    let crimux = start_with(&runtime, |yaml, _| yaml.replace("/crimux.sock", "/deep/er/crimux.sock")).await;
    let socket = crimux.dir.path().join("deep/er/crimux.sock");
    let metadata = std::fs::symlink_metadata(&socket).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o660);
    let own = std::fs::metadata(crimux.dir.path()).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (own.uid(), own.gid()));
    assert_eq!(Client::unix(socket).raw(LIST, &[], "").await.unwrap().code(), Code::Ok);
    let mode = |yaml: String, _: &Path| format!("listen_mode: \"0600\"\n{yaml}");
    let crimux = start_with(&runtime, mode).await;
    let metadata = std::fs::symlink_metadata(crimux.socket()).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
}

#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let runtime = SimRuntime::builder("a").start().await;
    let crimux = start_with(&runtime, |yaml, dir| {
        // The file of a socket outlives its listener.
        drop(std::os::unix::net::UnixListener::bind(dir.join("crimux.sock")).unwrap());
        yaml
    })
    .await;
    assert_eq!(crimux.client().raw(LIST, &[], "").await.unwrap().code(), Code::Ok);
}

#[tokio::test]
async fn a_second_crimux_on_the_same_socket_is_refused_and_harms_nothing() {
    let runtime = SimRuntime::builder("a").start().await;
    let mut crimux = Crimux::start(&[("a", &runtime)]).await;
    let pod = sandbox_config("p").run("a");
    let id = crimux.client().runtime().run_pod_sandbox(pod).await.unwrap().into_inner().pod_sandbox_id;
    let (code, said) = fails(&crimux.dir.path().join("crimux.yaml")).await;
    assert_eq!(code, Some(1), "{said}");
    let expected = format!(
        "{} is in use: another process listens on it, perhaps another crimux",
        crimux.socket().display()
    );
    let end = said.lines().last().unwrap();
    assert!(end.contains("ERROR") && end.contains(&expected), "{said}");
    // The journal that the first writes is still in the directory.
    let open = format!("/proc/{}/fd", crimux.pid());
    let journals = || {
        let links =
            std::fs::read_dir(&open).unwrap().filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
        links.filter(|link| link.to_string_lossy().contains("/state/journal")).collect::<Vec<_>>()
    };
    eventually(SOON, async || {
        let journals = journals();
        !journals.is_empty() && journals.iter().all(|journal| journal.exists())
    })
    .await;
    assert_eq!(crimux.client().raw(LIST, &[], "").await.unwrap().code(), Code::Ok);
    crimux.kill_and_start().await;
    crimux.wait_ready().await;
    let list = crimux.client().raw(LIST, &[], "").await.unwrap().decode::<cri::ListPodSandboxResponse>();
    assert_eq!(list.items.iter().map(|item| &item.id).collect::<Vec<_>>(), [&id]);
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_never_replaced() {
    let runtime = SimRuntime::builder("a").start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("crimux.yaml");
    std::fs::write(&path, config(&dir, &[("a", &runtime)], "")).unwrap();
    let file = dir.path().join("crimux.sock");
    std::fs::write(&file, "precious").unwrap();
    let (code, said) = fails(&path).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.ends_with("crimux.sock exists and is not a socket\"\n"), "{said}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[tokio::test]
async fn the_sockets_are_removed_at_the_end() {
    let runtime = SimRuntime::builder("a").start().await;
    let mut crimux = start_with(&runtime, |yaml, dir| own_socket(&yaml, "a", dir)).await;
    let sockets = ["crimux.sock", "admin.sock", "a.sock"].map(|name| crimux.dir.path().join(name));
    for socket in &sockets {
        assert!(socket.exists(), "{}", socket.display());
    }
    crimux.signal(Signal::SIGTERM);
    assert_eq!(crimux.ended().await, Some(0));
    for socket in &sockets {
        assert!(!socket.exists(), "{}", socket.display());
    }
}

#[tokio::test]
async fn a_socket_that_another_has_put_in_the_place_of_ours_stays() {
    let runtime = SimRuntime::builder("a").start().await;
    let mut crimux = Crimux::start(&[("a", &runtime)]).await;
    std::fs::remove_file(crimux.socket()).unwrap();
    let other = UnixListener::bind(crimux.socket()).unwrap();
    crimux.signal(Signal::SIGTERM);
    assert_eq!(crimux.ended().await, Some(0));
    assert!(crimux.socket().exists());
    drop(other);
}

/// One runtime with a container behind crimux, and an `ExecSync` on its way that hangs at the runtime.
async fn with_a_call_in_flight(
    change: impl Fn(String, &Path) -> String,
    socket: &str,
) -> (SimRuntime, Crimux, testkit::client::RawStream) {
    let runtime = SimRuntime::builder("a").containers(1, 1).start().await;
    let crimux = start_with(&runtime, change).await;
    runtime.fault("ExecSync", Fault::Hang);
    let id = runtime.state().containers().next().unwrap().id.clone();
    let request = cri::ExecSyncRequest { container_id: id, ..Default::default() };
    let client = Client::unix(crimux.dir.path().join(socket));
    let call = client.raw_stream(EXEC_SYNC, &[], request.encode_to_vec()).await.unwrap();
    runtime.wait_for_call("ExecSync", 1).await;
    (runtime, crimux, call)
}

/// Gives a backend a socket of its own.
fn own_socket(yaml: &str, name: &str, dir: &Path) -> String {
    let own = format!("  {name}: {{ socket: \"unix://{}/{name}.sock\", endpoint", dir.display());
    yaml.replace(&format!("  {name}: {{ endpoint"), &own)
}

#[tokio::test]
async fn a_call_in_flight_is_finished_after_sigterm() {
    let changes = |yaml: String, dir: &Path| own_socket(&yaml, "a", dir);
    for socket in ["crimux.sock", "a.sock"] {
        let (runtime, mut crimux, call) = with_a_call_in_flight(changes, socket).await;
        crimux.signal(Signal::SIGTERM);
        eventually(SOON, async || !crimux.socket().exists()).await;
        runtime.clear_faults();
        let reply = call.finish().await.unwrap();
        assert_eq!((reply.code(), reply.messages.len()), (Code::Ok, 1), "{socket}: {}", reply.message());
        assert_eq!(crimux.ended().await, Some(0));
        assert!(crimux.log().contains("all calls have ended"), "{}", crimux.log());
    }
}

#[tokio::test]
async fn a_call_is_cut_when_the_drain_takes_too_long() {
    let quick = |yaml: String, _: &Path| format!("drain_timeout: 200ms\n{yaml}");
    let (runtime, mut crimux, call) = with_a_call_in_flight(quick, "crimux.sock").await;
    crimux.signal(Signal::SIGTERM);
    assert_eq!(crimux.ended().await, Some(0));
    assert!(crimux.log().contains("calls still in flight are cut"), "{}", crimux.log());
    assert!(call.finish().await.is_err(), "the call broke");
    runtime.wait_for_cancel("ExecSync").await;
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let slow = |yaml: String, _: &Path| format!("drain_timeout: 20s\n{yaml}");
    let (_runtime, mut crimux, _call) = with_a_call_in_flight(slow, "crimux.sock").await;
    let told = Instant::now();
    crimux.signal(Signal::SIGTERM);
    eventually(SOON, async || crimux.log().contains("draining")).await;
    crimux.signal(Signal::SIGINT);
    assert_eq!(crimux.ended().await, Some(0));
    assert!(told.elapsed() < SOON, "{:?}", told.elapsed());
    assert!(crimux.log().contains("second signal"), "{}", crimux.log());
}

#[tokio::test]
async fn a_socket_of_its_own_shows_one_backend_alone() {
    let a = SimRuntime::builder("a").containers(2, 1).start().await;
    let b = SimRuntime::builder("b").containers(3, 1).handlers(["b-own"]).start().await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = own_socket(&config(&dir, &[("a", &a), ("b", &b)], ""), "b", dir.path());
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    let client = Client::unix(crimux.dir.path().join("b.sock"));
    let list = client.raw(LIST, &[], "").await.unwrap().decode::<cri::ListPodSandboxResponse>();
    assert_eq!(list.items.len(), 3);
    let version = client.runtime().version(cri::VersionRequest::default()).await.unwrap();
    assert_eq!(version.into_inner().runtime_name, "b");
    let status = client.runtime().status(cri::StatusRequest::default()).await.unwrap().into_inner();
    let conditions = status.status.unwrap().conditions;
    let names: Vec<_> = conditions.iter().map(|condition| condition.r#type.as_str()).collect();
    assert_eq!(names, ["RuntimeReady", "NetworkReady", "Backend/b"]);
    a.clear_calls();
    let foreign = a.state().sandboxes().next().unwrap().id.clone();
    let status = cri::PodSandboxStatusRequest { pod_sandbox_id: foreign.clone(), verbose: false };
    let refused = client.runtime().pod_sandbox_status(status).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let stop = cri::StopPodSandboxRequest { pod_sandbox_id: foreign };
    client.runtime().stop_pod_sandbox(stop).await.unwrap();
    // Handlers are the backend's own here.
    client.runtime().run_pod_sandbox(sandbox_config("p").run("b-own")).await.unwrap();
    client.runtime().run_pod_sandbox(sandbox_config("q").run("")).await.unwrap();
    assert_eq!(b.state().sandboxes().count(), 5);
    let others: Vec<_> = a.calls("*").into_iter().filter(|call| call.method() != "Version").collect();
    assert_eq!(others.len(), 0, "nothing reached the other backend");
    let all = crimux.client().raw(LIST, &[], "").await.unwrap().decode::<cri::ListPodSandboxResponse>();
    let all = all.items.len();
    assert_eq!(all, 2 + 5, "the node knows what was made there");
}

#[tokio::test]
async fn a_drained_backend_still_takes_what_its_own_socket_is_given() {
    let (a, b) = (SimRuntime::builder("a").start().await, SimRuntime::builder("b").start().await);
    let dir = tempfile::tempdir().unwrap();
    let yaml = own_socket(&config(&dir, &[("a", &a), ("b", &b)], ""), "b", dir.path());
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    assert_eq!(on(&crimux, &["backend", "drain", "b", "--force"], "").await.0, 0);
    let refused =
        crimux.client().runtime().run_pod_sandbox(sandbox_config("pod").run("b")).await.unwrap_err();
    assert_eq!(
        refused.message(),
        "crimux: backend b is draining and takes no new sandboxes of handler b; `crimux backend undrain b` ends that"
    );
    let alone = Client::unix(crimux.dir.path().join("b.sock"));
    alone.runtime().run_pod_sandbox(sandbox_config("trial").run("")).await.unwrap();
    assert_eq!(b.state().sandboxes().count(), 1);
}

/// Everything that a directory holds, as one string.
fn contents(dir: &Path) -> String {
    let mut all = String::new();
    for file in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if file.is_dir() {
            all.push_str(&contents(&file));
        } else if file.is_file() {
            all.push_str(&String::from_utf8_lossy(&std::fs::read(file).unwrap()));
        }
    }
    all
}

/// Makes every kind of call that carries a secret, good and bad.
async fn tell_secrets(client: &Client, runtime: &SimRuntime, secret: &str) {
    let auth = cri::AuthConfig {
        username: "user".into(),
        password: secret.into(),
        auth: secret.into(),
        registry_token: secret.into(),
        identity_token: secret.into(),
        ..Default::default()
    };
    let pull = cri::PullImageRequest {
        image: Some(testkit::client::image_spec("app:1")),
        auth: Some(auth),
        sandbox_config: None,
    };
    let pod = sandbox_config("p");
    let config = pod.clone().build();
    client.images().pull_image(pull.clone()).await.unwrap();
    let sandbox = client.runtime().run_pod_sandbox(pod.run("a")).await.unwrap().into_inner().pod_sandbox_id;
    let create = container_config("c", "app:1").env("PASSWORD", secret).create_in(&sandbox, &config);
    let created = client.runtime().create_container(create.clone()).await.unwrap().into_inner();
    let start = cri::StartContainerRequest { container_id: created.container_id.clone() };
    client.runtime().start_container(start).await.unwrap();
    let exec = cri::ExecSyncRequest {
        container_id: created.container_id.clone(),
        cmd: vec!["login".into(), secret.into()],
        timeout: 1,
    };
    client.runtime().exec_sync(exec.clone()).await.unwrap();
    let status = cri::ContainerStatusRequest { container_id: created.container_id, verbose: true };
    client.runtime().container_status(status).await.unwrap();
    client.runtime().container_status(cri::ContainerStatusRequest::default()).await.unwrap_err();
    for method in ["PullImage", "CreateContainer", "ExecSync"] {
        runtime.fault(method, Fault::Reset);
    }
    client.images().pull_image(pull).await.unwrap_err();
    client.runtime().create_container(create).await.unwrap_err();
    client.runtime().exec_sync(exec).await.unwrap_err();
}

#[tokio::test]
async fn no_secret_reaches_the_log_the_metrics_or_the_state() {
    let runtime = SimRuntime::builder("a").start().await;
    let mut crimux =
        start_with(&runtime, |yaml, _| yaml.replace("log: { level: debug }", "log: { level: trace }")).await;
    let secret = "s3cr3t-that-nobody-may-see";
    Box::pin(tell_secrets(&crimux.client(), &runtime, secret)).await;
    let (_, metrics) = crimux.get("/metrics").await.unwrap();
    assert!(!metrics.contains(secret));
    crimux.signal(Signal::SIGTERM);
    assert_eq!(crimux.ended().await, Some(0));
    let written: TempDir = crimux.dir;
    assert!(written.path().join("state").read_dir().unwrap().count() > 0, "there is a state");
    let all = contents(written.path());
    assert!(all.contains("TRACE"), "the log was at its most talkative");
    assert!(all.contains("uid-p"), "the state names the pod");
    assert!(!all.contains(secret), "the secret stayed where it belongs");
}
