//! The log: each line has its subject, and a connection that crimux ended itself is no outage.

use std::time::{Duration, Instant};

use testkit::client::sandbox_config;
use testkit::runtime::{Fault, SimRuntime};
use testkit::{cri, eventually};
use tonic::Code;

use crate::cli::on;
use crate::operator::status;
use crate::outage::timed;
use crate::support::{Crimux, SOON};

async fn two() -> (SimRuntime, SimRuntime, Crimux) {
    let a = SimRuntime::builder("a").handlers(["a"]).sandboxes(2, 2).start().await;
    let b = SimRuntime::builder("b").handlers(["b"]).sandboxes(2, 2).start().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    (a, b, crimux)
}

fn lines(crimux: &Crimux, part: &str) -> Vec<String> {
    crimux.log().lines().filter(|line| line.contains(part)).map(str::to_owned).collect()
}

async fn list(crimux: &Crimux) {
    let request = cri::ListPodSandboxRequest::default();
    let listed = crimux.client().runtime().list_pod_sandbox(request).await.unwrap().into_inner();
    assert_eq!(listed.items.len(), 4);
}

#[tokio::test]
async fn a_backend_that_answers_in_time_again_is_said_to() {
    let (_a, b, crimux) = two().await;
    b.freeze();
    list(&crimux).await;
    assert_eq!(lines(&crimux, "backend is late").len(), 1);
    b.thaw();
    eventually(SOON, async || !lines(&crimux, "backend answers in time again").is_empty()).await;
    assert!(lines(&crimux, "backend answers in time again")[0].contains("backend=b"));
}

#[tokio::test]
async fn a_backend_whose_lists_are_always_slow_stays_late_and_takes_new_sandboxes() {
    let (_a, b, crimux) = two().await;
    b.fault("ListPodSandbox", Fault::Delay(Duration::from_millis(1300)));
    let of_lists = |what: &str, part: &str| {
        let said = lines(&crimux, what);
        said.iter().filter(|line| line.contains("backend=b") && line.contains(part)).count()
    };
    let told = || (of_lists("backend is late", "ListPodSandbox"), of_lists("in time again", "class=Lists"));
    eventually(SOON, async || {
        list(&crimux).await;
        told() >= (2, 1)
    })
    .await;
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(5) {
        list(&crimux).await;
        assert_eq!(told(), (2, 1), "its slow answers end nothing: the next list would be late again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let status = status(&crimux).await;
    let late = "(ListPodSandbox and ListContainers not in time), 2 sandboxes as last known";
    assert!(status.contains(late) && !status.contains("wait until"), "{status}");
    let (_, routes, _) = on(&crimux, &["route"], "").await;
    assert!(!routes.contains("wait"), "{routes}");
    crimux.client().runtime().run_pod_sandbox(sandbox_config("new").run("b")).await.unwrap();
    b.clear_fault("ListPodSandbox");
    eventually(SOON, async || told() == (2, 2)).await;
}

#[tokio::test]
async fn sandboxes_that_a_backend_lost_are_told() {
    let (_a, b, crimux) = two().await;
    let lost = async || crimux.metric("crimux_lost_sandboxes_total{backend=\"b\"}").await;
    list(&crimux).await;
    assert_eq!(lost().await, Some(0.0));
    let ids: Vec<_> = b.state().sandboxes().map(|sandbox| sandbox.id.clone()).collect();
    // kubelet stops a sandbox before it removes it, and its removal may not be answered.
    b.state().stop_sandbox(&ids[0]).unwrap();
    list(&crimux).await;
    b.stop().await;
    for id in &ids {
        b.state().remove_sandbox(id).unwrap();
    }
    b.start_again().await;
    eventually(SOON, async || lost().await == Some(1.0)).await;
    let said = lines(&crimux, "no longer lists ready sandboxes");
    assert!(said.len() == 1 && said[0].contains(" WARN ") && said[0].contains("backend=b"), "{said:?}");
    let (code, verdict, _) = on(&crimux, &["status", "--check"], "").await;
    assert!(code == 0 && verdict.contains("b lost 1 of its 1 ready sandboxes"), "{verdict}");
    assert!(verdict.contains("#crimuxsandboxeslost"), "{verdict}");
}

#[tokio::test]
async fn a_backend_whose_lists_cannot_be_used_is_said_to_with_its_words() {
    let (_a, b, crimux) = two().await;
    b.fault("ListPodSandbox", Fault::error(Code::Internal, "metadata store is closed"));
    for _ in 0..3 {
        list(&crimux).await;
    }
    let said = lines(&crimux, "lists cannot be used");
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains(" WARN ") && said[0].contains("metadata store is closed"), "{said:?}");
    let (_, status) = crimux.get("/v1/status").await.unwrap();
    assert!(status.contains("backend b answered ListPodSandbox with Internal: metadata store is closed"));
    b.clear_fault("ListPodSandbox");
    eventually(SOON, async || !lines(&crimux, "backend answers in time again").is_empty()).await;
}

#[tokio::test]
async fn a_status_that_is_late_begins_and_ends_in_the_log() {
    let (_a, b, crimux) = two().await;
    b.fault("Status", Fault::Hang);
    crimux.client().runtime().status(cri::StatusRequest::default()).await.unwrap();
    eventually(SOON, async || !lines(&crimux, "backend is late").is_empty()).await;
    assert!(lines(&crimux, "backend is late")[0].contains("method=\"Status\""), "{}", crimux.log());
    b.clear_fault("Status");
    eventually(SOON, async || !lines(&crimux, "backend answers in time again").is_empty()).await;
}

#[tokio::test]
async fn a_bad_file_is_one_line_for_each_problem_and_is_read_once_for_each_save() {
    let (_a, _b, crimux) = two().await;
    let (file, next) = (crimux.dir.path().join("crimux.yaml"), crimux.dir.path().join("next"));
    let good = std::fs::read_to_string(&file).unwrap();
    // Renamed into place, as editors do: nobody sees half of it.
    let save = |yaml: &str| {
        std::fs::write(&next, yaml).unwrap();
        std::fs::rename(&next, &file).unwrap();
    };
    save("listen: [");
    eventually(SOON, async || !lines(&crimux, "configuration not reloaded").is_empty()).await;
    save("listen: [");
    save(&good);
    eventually(SOON, async || !lines(&crimux, "the configuration file is valid again").is_empty()).await;
    assert_eq!(lines(&crimux, "is not closed").len(), 1, "{}", crimux.log());
    assert_eq!(lines(&crimux, "configuration not reloaded").len(), 1, "{}", crimux.log());
}

#[tokio::test]
async fn a_refused_sandbox_is_one_warning_with_its_pod_and_the_reason() {
    let (_a, b, crimux) = two().await;
    let run = async |handler: &str| {
        crimux.client().runtime().run_pod_sandbox(sandbox_config("web").run(handler)).await.unwrap_err()
    };
    run("nowhere").await;
    let said = lines(&crimux, "sandbox refused");
    assert_eq!(said.len(), 1, "{said:?}");
    for part in [" WARN ", "name=\"web\"", "uid=\"uid-web\"", "handler=\"nowhere\"", "reason="] {
        assert!(said[0].contains(part), "{part}: {said:?}");
    }
    b.fault_next("RunPodSandbox", 1, Fault::error(Code::Unknown, "the pod's network has no address left"));
    run("b").await;
    let said = lines(&crimux, "sandbox refused");
    assert!(
        said.len() == 2 && said[1].contains("with Unknown: the pod's network has no address"),
        "{said:?}"
    );
    b.stop().await;
    eventually(SOON, async || crimux.metric("crimux_backend_up{backend=\"b\"}").await == Some(0.0)).await;
    run("b").await;
    let said = lines(&crimux, "sandbox refused");
    assert!(said.len() == 3 && said[2].contains("is down"), "{said:?}");
}

#[tokio::test]
async fn a_restarted_crimux_counts_the_pods_of_a_backend_once() {
    let (_a, _b, mut crimux) = two().await;
    list(&crimux).await;
    crimux.restart().await;
    eventually(SOON, async || !lines(&crimux, "backend is up backend=b").is_empty()).await;
    for said in lines(&crimux, "backend is up backend=b") {
        assert!(said.contains("sandboxes=2 containers=2"), "{said}");
    }
}

#[tokio::test]
async fn a_backend_that_was_taken_out_of_the_file_is_not_called_down() {
    let a = SimRuntime::builder("a").handlers(["a"]).sandboxes(2, 2).start().await;
    let b = SimRuntime::builder("b").handlers(["b"]).start().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let without = crate::support::config(&crimux.dir, &[("a", &a)], "");
    crimux.rewrite(&without);
    crimux.signal(nix::sys::signal::Signal::SIGHUP);
    eventually(SOON, async || crimux.metric("crimux_backend_up{backend=\"b\"}").await.is_none()).await;
    assert_eq!(lines(&crimux, "backend is down"), [""; 0]);
}

/// Makes each kind of command that kubelet repeats to `b`, twice; all must fail.
async fn fail_commands(crimux: &Crimux, b: &SimRuntime) {
    let (sandbox, container) = {
        let state = b.state();
        let container = state.containers().next().unwrap();
        (container.sandbox_id.clone(), container.id.clone())
    };
    let pull = cri::PullImageRequest {
        image: Some(testkit::client::image_spec("app:1")),
        sandbox_config: Some(sandbox_config("web").build()),
        ..Default::default()
    };
    let (mut runtime, mut images) = (crimux.client().runtime(), crimux.client().images());
    for _ in 0..2 {
        let (pod_sandbox_id, container_id) = (sandbox.clone(), container.clone());
        let stop = cri::StopPodSandboxRequest { pod_sandbox_id };
        runtime.stop_pod_sandbox(stop).await.unwrap_err();
        let stop = cri::StopContainerRequest { container_id: container_id.clone(), timeout: 1 };
        runtime.stop_container(stop).await.unwrap_err();
        let reopen = cri::ReopenContainerLogRequest { container_id: container_id.clone() };
        runtime.reopen_container_log(reopen).await.unwrap_err();
        let update = cri::UpdateRuntimeConfigRequest::default();
        runtime.update_runtime_config(update).await.unwrap_err();
        images.pull_image(pull.clone()).await.unwrap_err();
        let remove = cri::RemoveImageRequest { image: Some(testkit::client::image_spec("old:1")) };
        images.remove_image(remove).await.unwrap_err();
        let exec = cri::ExecSyncRequest { container_id, cmd: vec!["probe".into()], timeout: 1 };
        runtime.exec_sync(exec).await.unwrap_err();
    }
}

/// The commands that a line of the log says the failure of, as [`fail_commands`] calls them.
const COMMANDS: [&str; 6] = [
    "StopPodSandbox",
    "StopContainer",
    "ReopenContainerLog",
    "UpdateRuntimeConfig",
    "PullImage",
    "RemoveImage",
];

#[tokio::test]
async fn a_command_that_keeps_failing_is_one_line_a_minute_with_its_pod_and_the_backends_words() {
    let (_a, b, crimux) = two().await;
    b.state().add_image("old:1");
    // The pod of the pull.
    crimux.client().runtime().run_pod_sandbox(sandbox_config("web").run("b")).await.unwrap();
    for method in COMMANDS.into_iter().chain(["ExecSync"]) {
        b.fault(method, Fault::error(Code::Unknown, format!("the shim is gone {}", "x".repeat(5000))));
    }
    Box::pin(timed(fail_commands(&crimux, &b))).await;
    let said = lines(&crimux, "a command failed");
    for method in COMMANDS {
        let of: Vec<_> = said.iter().filter(|line| line.contains(&format!("method=\"{method}\""))).collect();
        assert_eq!(of.len(), 1, "{method}: {said:?}");
        for part in [" WARN ", "backend=b", "code=Unknown", "the shim is gone", "failures=1"] {
            assert!(of[0].contains(part), "{part}: {of:?}");
        }
        assert!(of[0].len() < 2000, "{of:?}");
        let (namespace, name) = if method.contains("Image") || method.contains("Config") {
            ("namespace=\"\"", "name=\"\"")
        } else {
            ("namespace=\"sim\"", "name=\"pod-")
        };
        assert!(of[0].contains(namespace) && of[0].contains(name), "{of:?}");
    }
    assert_eq!(said.len(), COMMANDS.len(), "a probe is no command: {said:?}");
    assert!(lines(&crimux, "method=\"PullImage\"").iter().any(|line| line.contains("object=\"app:1\"")));
}

#[tokio::test]
async fn commands_to_a_backend_that_is_down_have_no_lines_of_their_own() {
    let (_a, b, crimux) = two().await;
    let id = b.state().sandboxes().next().unwrap().id.clone();
    b.stop().await;
    eventually(SOON, async || crimux.metric("crimux_backend_up{backend=\"b\"}").await == Some(0.0)).await;
    let stop = cri::StopPodSandboxRequest { pod_sandbox_id: id };
    crimux.client().runtime().stop_pod_sandbox(stop).await.unwrap_err();
    assert_eq!(lines(&crimux, "a command failed"), [""; 0]);
    assert_eq!(lines(&crimux, "backend is down").len(), 1);
}
