//! Small answers and texts that must be so: fatal errors in the format of the log, IDs that nobody owns,
//! names of what conflicts, series that hold something.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;
use testkit::client::{container_config, sandbox_config};
use testkit::runtime::{ApiVersions, Fault, SimRuntime};
use testkit::{cri, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use crate::cli::{check, crimux as run, on, told};
use crate::doctor::over_tls;
use crate::pki::{Authority, Files};
use crate::support::{Crimux, SOON, config};

/// Starts crimux with a file that it refuses, and returns the lines it wrote.
async fn refused_start(dir: &tempfile::TempDir, yaml: &str) -> (i32, Vec<String>) {
    let file = dir.path().join("crimux.yaml");
    std::fs::write(&file, yaml).unwrap();
    let (code, _, errors) = told(&run(&["serve", "--config", file.to_str().unwrap()], "").await);
    (code, errors.lines().map(str::to_owned).collect())
}

#[tokio::test]
async fn fatal_errors_are_json_where_the_file_asks_for_it() {
    let a = SimRuntime::builder("a").start().await;
    let dir = tempfile::tempdir().unwrap();
    let json = config(&dir, &[("a", &a)], "").replace("level: debug", "format: json");
    let taken = std::os::unix::net::UnixListener::bind(dir.path().join("crimux.sock")).unwrap();
    let wrong = json.replace("default_backend: a", "default_backend: c") + "drain_timeout: never\n";
    // Behind a YAML syntax error there is no key to read, but a line that has it.
    let unreadable = json.clone() + "listen_mode: [\n";
    for (yaml, code, problems) in [(&wrong, 64, 2), (&unreadable, 64, 1), (&json, 1, 0)] {
        let (exit, lines) = refused_start(&dir, yaml).await;
        let events: Vec<Value> = lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .collect();
        let located = events.iter().filter(|event| event["fields"]["line"].as_u64() > Some(0)).count();
        assert_eq!((exit, located), (code, problems), "{lines:?}");
        let last = events.last().expect("crimux says why it ends");
        assert!(last["fields"]["message"].as_str().unwrap().starts_with("crimux ends"), "{last}");
    }
    drop(taken);
    let text = config(&dir, &[("a", &a)], "drain_timeout: never\n");
    let (code, lines) = refused_start(&dir, &text).await;
    assert_eq!(code, 64);
    assert!(lines[0].contains("drain_timeout: ") && !lines[0].starts_with('{'), "{lines:?}");
}

#[tokio::test]
async fn a_sandbox_that_its_owner_does_not_know_any_more_can_be_stopped_and_removed() {
    let a = SimRuntime::builder("a").start().await;
    let b = SimRuntime::builder("b").sandboxes(2, 1).start().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let [gone, there] = {
        let mut state = b.state();
        let ids: Vec<_> = state.sandboxes().map(|sandbox| sandbox.id.clone()).collect();
        state.remove_sandbox(&ids[0]).unwrap();
        [ids[0].clone(), ids[1].clone()]
    };
    // As containerd 1.6 answers for a sandbox that is gone.
    let absent = Fault::error(Code::NotFound, "an error occurred when try to find sandbox: not found");
    b.fault("StopPodSandbox", absent.clone());
    b.fault("RemovePodSandbox", absent);
    let mut client = crimux.client().runtime();
    let stop = |id: &str| cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
    client.stop_pod_sandbox(stop(&gone)).await.expect("it is gone, as its owner says");
    let refused = client.stop_pod_sandbox(stop(&there)).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "its owner lists it: that answer passes as it is");
    // Where the owner cannot list, nothing is known to be gone.
    b.fault("ListPodSandbox", Fault::error(Code::Internal, "not now"));
    assert_eq!(client.stop_pod_sandbox(stop(&gone)).await.unwrap_err().code(), Code::NotFound);
    b.clear_fault("ListPodSandbox");
    let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: gone.clone() };
    client.remove_pod_sandbox(remove).await.expect("the same holds for its removal");
    let listed = client.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await.unwrap().into_inner();
    let ids: BTreeSet<_> = listed.items.into_iter().map(|item| item.id).collect();
    assert_eq!(ids, BTreeSet::from([there]));
}

#[tokio::test]
async fn an_id_that_a_client_has_just_removed_is_asked_of_its_owner_alone_and_is_no_unknown_id() {
    let a = SimRuntime::builder("a").start().await;
    let b = SimRuntime::builder("b").start().await;
    b.state().add_image("app:1");
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let mut client = crimux.client().runtime();
    let config = sandbox_config("pod");
    let sandbox = client.run_pod_sandbox(config.clone().run("b")).await.unwrap().into_inner().pod_sandbox_id;
    let create = container_config("main", "app:1").create_in(&sandbox, &config.build());
    let container = client.create_container(create).await.unwrap().into_inner().container_id;
    let remove = cri::RemoveContainerRequest { container_id: container.clone() };
    client.remove_container(remove).await.unwrap();
    a.clear_calls();
    b.clear_calls();
    // kubelet asks once more for the status of a container that it has removed.
    let status = cri::ContainerStatusRequest { container_id: container.clone(), verbose: false };
    let answer = client.container_status(status.clone()).await.unwrap_err();
    assert_eq!(answer.code(), Code::NotFound);
    assert_eq!((a.calls("ContainerStatus").len(), b.calls("ContainerStatus").len()), (0, 1));
    assert_eq!(crimux.metric("crimux_unknown_ids_total").await, Some(0.0));
    let unknown = cri::ContainerStatusRequest { container_id: "5".repeat(64), verbose: false };
    assert_eq!(client.container_status(unknown).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(crimux.metric("crimux_unknown_ids_total").await, Some(1.0));
    let line =
        crimux.log().lines().find(|line| line.contains("was looked up at the backends")).map(str::to_owned);
    let line = line.expect("the journal names what the alert counts");
    assert!(line.contains("ContainerStatus") && line.contains(&"5".repeat(64)), "{line}");
    // A backend that cannot be asked has not denied it, although a client removed it there.
    b.stop().await;
    eventually(SOON, async || crimux.metric("crimux_backend_up{backend=\"b\"}").await == Some(0.0)).await;
    assert_eq!(client.container_status(status).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn no_histogram_is_exposed_that_has_no_observation() {
    let a = SimRuntime::builder("a").sandboxes(2, 1).start().await;
    let b = SimRuntime::builder("b").sandboxes(2, 1).start().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    crimux.client().runtime().list_pod_sandbox(cri::ListPodSandboxRequest::default()).await.unwrap();
    let (_, text) = crimux.get("/metrics").await.unwrap();
    let counts: Vec<_> = text.lines().filter(|line| line.contains("_seconds_count{")).collect();
    assert!(counts.iter().any(|line| line.contains("backend=\"all\"")), "{text}");
    let empty: Vec<_> = counts.iter().filter(|line| line.ends_with(" 0")).collect();
    assert!(empty.is_empty(), "{empty:?}");
    assert!(!text.contains("crimux_backend_duration_seconds_count{backend=\"all\""), "{text}");
}

#[tokio::test]
async fn the_ends_of_the_certificates_of_a_connection_are_a_metric() {
    let a = SimRuntime::builder("a").sandboxes(1, 1).start().await;
    let far = SimRuntime::builder("far").sandboxes(1, 1).start().await;
    let authority = Authority::new("ca");
    let shown = authority.issue_for("far", &["localhost"], (2020, 1, 1), (2050, 1, 1));
    let files = Files::new(
        &authority.pem(),
        Some(&authority.issue_for("crimux", &["crimux"], (2020, 1, 1), (2040, 1, 1))),
    );
    let port = over_tls(&far, &shown, &authority).await;
    let dir = tempfile::tempdir().unwrap();
    let at = files.dir.path().display();
    let backend = format!(
        "  far: {{ endpoint: \"https://localhost:{port}\", local: false, timeouts: {{ connect: 10s }}, \
         tls: {{ ca: {at}/ca.crt, cert: {at}/client.crt, key: {at}/client.key }} }}\nhandlers:\n"
    );
    let yaml = config(&dir, &[("a", &a)], "").replace("handlers:\n", &backend);
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    let end = async |role: &str| {
        let labels = format!("{{backend=\"far\",role=\"{role}\"}}");
        crimux.metric(&format!("crimux_certificate_expiration_timestamp_seconds{labels}")).await
    };
    // Midnight of 2040-01-01 and of 2050-01-01.
    assert_eq!((end("client").await, end("backend").await), (Some(2_208_988_800.0), Some(2_524_608_000.0)));
    assert!(end("authority").await.is_some());
    let (_, text) = crimux.get("/metrics").await.unwrap();
    assert!(!text.contains("expiration_timestamp_seconds{backend=\"a\""), "{text}");
}

#[tokio::test]
async fn open_connections_and_streams_of_clients_are_counted() {
    let a = SimRuntime::builder("a").events().sandboxes(1, 1).start().await;
    let crimux = Crimux::start(&[("a", &a)]).await;
    let open = async || {
        let connections = crimux.metric("crimux_client_connections").await.unwrap();
        (connections, crimux.metric("crimux_client_streams").await.unwrap())
    };
    eventually(SOON, async || open().await == (0.0, 0.0)).await;
    let client = crimux.client();
    let events = client.runtime().get_container_events(cri::GetEventsRequest {}).await.unwrap();
    eventually(SOON, async || open().await == (1.0, 1.0)).await;
    drop(events);
    drop(client);
    eventually(SOON, async || open().await == (0.0, 0.0)).await;
}

#[tokio::test]
async fn check_names_missing_tls_files_and_a_state_dir_in_the_place_of_a_socket() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("crimux.yaml");
    let at = dir.path().display();
    let remote = "default_backend: a\nbackends:\n  a: { endpoint: 'https://[::1]:1', tls: { ca: ca.crt, cert: c.crt, key: c.key } }\n";
    std::fs::write(&file, remote).unwrap();
    std::fs::write(dir.path().join("c.crt"), "").unwrap();
    let (code, found, _) = check(&file, &[], "").await;
    assert_eq!(code, 0, "another machine may have them: {found}");
    for (key, named) in [("ca", true), ("cert", false), ("key", true)] {
        assert_eq!(found.contains(&format!("backends.a.tls.{key}: {at}")), named, "{found}");
    }
    for (listen, state_dir) in [("/run/x/crimux.sock", "/run/x/crimux.sock"), ("/run/x", "/var/run/x/state")]
    {
        let yaml = format!("listen: {listen}\nstate_dir: {state_dir}\n{remote}");
        std::fs::write(&file, yaml).unwrap();
        let (code, _, errors) = check(&file, &[], "").await;
        assert!(
            code == 64 && errors.contains(":2:12: error: state_dir: this is where listen listens"),
            "{errors}"
        );
    }
}

#[tokio::test]
async fn who_may_not_set_the_owner_of_a_socket_is_told_of_listen_owner_self() {
    let a = SimRuntime::builder("a").start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("crimux.yaml");
    // An owner other than the user that runs this test.
    let yaml = config(&dir, &[("a", &a)], "").replace("listen_owner: self", "listen_owner: '12:12'");
    std::fs::write(&file, yaml).unwrap();
    let serve = move || {
        // Without CAP_CHOWN root is like anyone else here.
        let mut command = if nix::unistd::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--bounding-set", "-chown", "--inh-caps", "-chown", env!("CARGO_BIN_EXE_crimux")]);
            command
        } else {
            Command::new(env!("CARGO_BIN_EXE_crimux"))
        };
        command.args(["serve", "--config"]).arg(file).output().unwrap()
    };
    let (code, _, errors) = told(&tokio::task::spawn_blocking(serve).await.unwrap());
    assert!(code == 1 && errors.contains("set `listen_owner: self`"), "{errors}");
}

#[tokio::test]
async fn a_pod_is_named_by_the_handler_that_was_asked_for_where_two_lead_to_one_place() {
    let a = SimRuntime::builder("a").handlers(["runc"]).start().await;
    let b = SimRuntime::builder("b").handlers(["runc"]).start().await;
    let dir = tempfile::tempdir().unwrap();
    // By name the canary comes first.
    let more = "  canary: { split: [ { backend: a, handler: runc, weight: 9 }, { backend: b, handler: runc, weight: 0 } ] }\n  \
                runc: { backend: a, handler: runc }\n";
    let yaml = config(&dir, &[("a", &a), ("b", &b)], more);
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    for handler in ["runc", "canary"] {
        crimux.client().runtime().run_pod_sandbox(sandbox_config(handler).run(handler)).await.unwrap();
        let (_, json, _) = on(&crimux, &["ps", "--handler", handler, "-o", "json"], "").await;
        let pods: Value = serde_json::from_str(&json).unwrap();
        let names: Vec<_> = pods["pods"].as_array().unwrap().iter().map(|pod| &pod["name"]).collect();
        assert_eq!(names, [handler], "{pods}");
    }
}

#[tokio::test]
async fn a_backend_of_v1alpha2_that_is_slow_at_first_is_listed_once_its_api_is_known() {
    let old = SimRuntime::builder("old").abilities(|abilities| abilities.api = ApiVersions::V1alpha2);
    let old = old.containers(2, 1).start().await;
    let dir = tempfile::tempdir().unwrap();
    let timeouts = "timeouts: { connect: 300ms, read: 300ms } }";
    let yaml =
        config(&dir, &[("old", &old)], "").replacen(" }\nhandlers", &format!(", {timeouts}\nhandlers"), 1);
    // At one question in 5 s, which is how often a known backend is probed, these would last 40 s.
    old.fault_next("Version", 8, Fault::Hang);
    let mut crimux = Crimux::start_in(dir, &yaml);
    let list = async |crimux: &Crimux| {
        let list = crimux.client().runtime().list_pod_sandbox(cri::ListPodSandboxRequest::default()).await;
        list.map(|list| list.into_inner().items.len()).map_err(|status| status.code())
    };
    let listens = async |crimux: &Crimux| tokio::net::UnixStream::connect(crimux.socket()).await.is_ok();
    eventually(SOON, async || listens(&crimux).await).await;
    eventually(SOON, async || list(&crimux).await == Ok(2)).await;
    // The owner of a container is remembered, so a call reaches a backend whose API is not known. It answers
    // Unimplemented to the wrong one, which would make a client give up a feature.
    let id = old.state().containers().next().unwrap().id.clone();
    old.fault("Version", Fault::Hang);
    crimux.restart().await;
    eventually(SOON, async || listens(&crimux).await).await;
    let exec = cri::ExecSyncRequest { container_id: id, cmd: vec!["true".into()], timeout: 0 };
    let refused = crimux.client().runtime().exec_sync(exec.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    old.clear_fault("Version");
    eventually(SOON, async || crimux.client().runtime().exec_sync(exec.clone()).await.is_ok()).await;
}

#[tokio::test]
async fn each_refused_stream_is_a_line_of_the_log() {
    let a = SimRuntime::builder("a").containers(1, 1).start().await;
    let dir = tempfile::tempdir().unwrap();
    let relay = ", streaming: { relay: always } }\nhandlers";
    let yaml = config(&dir, &[("a", &a)], "").replacen(" }\nhandlers", relay, 1);
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    let id = a.state().containers().next().unwrap().id.clone();
    let exec =
        cri::ExecRequest { container_id: id, cmd: vec!["true".into()], stdout: true, ..Default::default() };
    let url = crimux.client().runtime().exec(exec).await.unwrap().into_inner().url;
    let address = url.split('/').nth(2).unwrap().to_owned();
    for _ in 0..2 {
        let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        let request =
            "GET /exec/guessed HTTP/1.1\r\nhost: crimux\r\nconnection: Upgrade\r\nupgrade: SPDY/3.1\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 404");
    }
    eventually(SOON, async || crimux.log().matches("stream refused").count() == 2).await;
    assert_eq!(crimux.metric("crimux_relay_refused_tokens_total").await, Some(2.0));
}
