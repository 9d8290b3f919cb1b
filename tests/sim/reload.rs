//! Another configuration under a client that calls without pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::Signal;
use testkit::client::sandbox_config;
use testkit::runtime::{Fault, SimRuntime};
use testkit::{Client, cri, eventually};
use tokio::task::JoinHandle;
use tonic::Code;

use crate::support::{Crimux, SOON, config};

const LIST: &str = "/runtime.v1.RuntimeService/ListPodSandbox";
const STATUS: &str = "/runtime.v1.RuntimeService/Status";

/// A client that lists, reads and runs pods under a handler until it is stopped. No call of it may fail.
struct Busy {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Busy {
    fn start(client: Client, handler: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let calls = Arc::new(AtomicUsize::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&calls));
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let number = counted.fetch_add(1, Ordering::Relaxed);
                let pod = sandbox_config(&format!("busy-{number}")).run(handler);
                let made = client.runtime().run_pod_sandbox(pod).await.unwrap().into_inner();
                let id = made.pod_sandbox_id;
                for path in [LIST, STATUS] {
                    let reply = client.raw(path, &[], "").await.unwrap();
                    assert_eq!(reply.code(), Code::Ok, "{path}: {}", reply.message());
                }
                let status = cri::PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: false };
                client.runtime().pod_sandbox_status(status).await.unwrap();
                let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: id };
                client.runtime().remove_pod_sandbox(remove).await.unwrap();
            }
        });
        Self { stop, calls, task }
    }

    /// Waits until it has gone round a few more times.
    async fn goes_on(&self) {
        let now = self.calls.load(Ordering::Relaxed);
        eventually(SOON, async || self.calls.load(Ordering::Relaxed) > now + 5 || self.task.is_finished())
            .await;
        assert!(!self.task.is_finished(), "a call failed");
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("no call failed");
    }
}

/// How many reloads had this result.
async fn reloads(crimux: &Crimux, result: &str) -> usize {
    let series = format!("crimux_config_reloads_total{{result=\"{result}\"}}");
    crimux.metric(&series).await.map_or(0, |count| count.to_string().parse().unwrap())
}

/// Applies a configuration by SIGHUP.
async fn reload(crimux: &Crimux, yaml: &str) {
    let before = reloads(crimux, "ok").await;
    crimux.rewrite(yaml);
    crimux.signal(Signal::SIGHUP);
    eventually(SOON, async || reloads(crimux, "ok").await > before).await;
}

async fn listed(crimux: &Crimux) -> Vec<String> {
    let reply = crimux.client().raw(LIST, &[], "").await.unwrap();
    assert_eq!(reply.code(), Code::Ok, "{}", reply.message());
    reply.decode::<cri::ListPodSandboxResponse>().items.into_iter().map(|item| item.id).collect()
}

#[tokio::test]
async fn handlers_and_backends_come_and_go_under_calls_and_none_fails() {
    let a = SimRuntime::builder("a").containers(2, 1).start().await;
    let b = SimRuntime::builder("b").containers(0, 1).start().await;
    let crimux = Crimux::start(&[("a", &a)]).await;
    let busy = Busy::start(crimux.client(), "a");
    let alone = config(&crimux.dir, &[("a", &a)], "");
    let with_b = config(&crimux.dir, &[("a", &a), ("b", &b)], "  more: { backend: b }\n");
    for _ in 0..3 {
        reload(&crimux, &with_b).await;
        busy.goes_on().await;
        crimux.wait_ready().await;
        // A new backend takes pods once it is listed.
        eventually(SOON, async || {
            let pod = sandbox_config("more").run("more");
            crimux.client().runtime().run_pod_sandbox(pod).await.is_ok()
        })
        .await;
        let id = b.state().sandboxes().next().unwrap().id.clone();
        let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: id };
        crimux.client().runtime().remove_pod_sandbox(remove).await.unwrap();
        reload(&crimux, &alone).await;
        busy.goes_on().await;
        let refused = crimux.client().runtime().run_pod_sandbox(sandbox_config("n").run("more")).await;
        assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
        // Two looks in a row, five seconds apart, must find no call of it in flight, and lists go on all the
        // time.
        eventually(6 * SOON, async || crimux.metric("crimux_backend_up{backend=\"b\"}").await.is_none())
            .await;
    }
    busy.stop().await;
}

#[tokio::test]
async fn a_changed_file_is_noticed_whether_written_in_place_or_renamed_into_it() {
    let a = SimRuntime::builder("a").start().await;
    let crimux = Crimux::start(&[("a", &a)]).await;
    let knows = async |handler: &str| {
        let status = crimux.client().runtime().status(cri::StatusRequest::default()).await.unwrap();
        status.into_inner().runtime_handlers.iter().any(|known| known.name == handler)
    };
    crimux.rewrite(&config(&crimux.dir, &[("a", &a)], "  in-place: { backend: a }\n"));
    eventually(SOON, async || knows("in-place").await).await;
    let other = crimux.dir.path().join("other");
    std::fs::write(&other, config(&crimux.dir, &[("a", &a)], "  renamed: { backend: a }\n")).unwrap();
    std::fs::rename(&other, crimux.dir.path().join("crimux.yaml")).unwrap();
    eventually(SOON, async || knows("renamed").await && !knows("in-place").await).await;
    assert_eq!(reloads(&crimux, "ok").await, 2);
}

#[tokio::test]
async fn a_file_that_is_linked_in_as_a_config_map_does_is_noticed() {
    let a = SimRuntime::builder("a").start().await;
    let crimux = Crimux::start(&[("a", &a)]).await;
    let at = crimux.dir.path();
    let publish = |version: &str, handler: &str| {
        std::fs::create_dir(at.join(version)).unwrap();
        let yaml = config(&crimux.dir, &[("a", &a)], &format!("  {handler}: {{ backend: a }}\n"));
        std::fs::write(at.join(version).join("crimux.yaml"), yaml).unwrap();
        std::os::unix::fs::symlink(version, at.join("..data_tmp")).unwrap();
        std::fs::rename(at.join("..data_tmp"), at.join("..data")).unwrap();
    };
    let knows = async |handler: &str| {
        let status = crimux.client().runtime().status(cri::StatusRequest::default()).await.unwrap();
        status.into_inner().runtime_handlers.iter().any(|known| known.name == handler)
    };
    publish("..1", "one");
    std::fs::remove_file(at.join("crimux.yaml")).unwrap();
    std::os::unix::fs::symlink("..data/crimux.yaml", at.join("crimux.yaml")).unwrap();
    eventually(SOON, async || knows("one").await).await;
    publish("..2", "two");
    eventually(SOON, async || knows("two").await && !knows("one").await).await;
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_is_counted_once() {
    let a = SimRuntime::builder("a").containers(2, 1).start().await;
    let crimux = Crimux::start(&[("a", &a)]).await;
    let good = config(&crimux.dir, &[("a", &a)], "");
    let broken = good.replace("default_backend: a", "default_backend: nobody");
    for wrong in [broken.as_str(), "", "listen: [\n"] {
        let before = reloads(&crimux, "failed").await;
        crimux.rewrite(wrong);
        eventually(SOON, async || reloads(&crimux, "failed").await > before).await;
        assert_eq!(listed(&crimux).await.len(), 2);
        let run = crimux.client().runtime().run_pod_sandbox(sandbox_config("p").run("a")).await.unwrap();
        let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: run.into_inner().pod_sandbox_id };
        crimux.client().runtime().remove_pod_sandbox(remove).await.unwrap();
    }
    assert_eq!(reloads(&crimux, "failed").await, 3, "{}", crimux.log());
    assert_eq!(reloads(&crimux, "ok").await, 0);
    assert!(crimux.log().contains("the old one stays current"), "{}", crimux.log());
}

#[tokio::test]
async fn a_removed_backend_stays_until_it_owns_nothing() {
    let a = SimRuntime::builder("a").start().await;
    let b = SimRuntime::builder("b").containers(1, 1).start().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let (sandbox, container) = {
        let state = b.state();
        (state.sandboxes().next().unwrap().id.clone(), state.containers().next().unwrap().id.clone())
    };
    reload(&crimux, &config(&crimux.dir, &[("a", &a)], "")).await;
    let refused = crimux.client().runtime().run_pod_sandbox(sandbox_config("n").run("b")).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument, "it takes no new pods");
    assert_eq!(listed(&crimux).await, std::slice::from_ref(&sandbox));
    let mut runtime = crimux.client().runtime();
    let status = cri::ContainerStatusRequest { container_id: container, verbose: false };
    runtime.container_status(status).await.unwrap();
    assert!(crimux.log().contains("removed; kept until it owns nothing"), "{}", crimux.log());
    let stop = cri::StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() };
    runtime.stop_pod_sandbox(stop).await.unwrap();
    assert_eq!(listed(&crimux).await, std::slice::from_ref(&sandbox));
    let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: sandbox };
    runtime.remove_pod_sandbox(remove).await.unwrap();
    assert_eq!(listed(&crimux).await, [""; 0]);
    eventually(SOON * 3, async || crimux.metric("crimux_backend_up{backend=\"b\"}").await.is_none()).await;
    assert!(crimux.log().contains("owns nothing any more and is gone"), "{}", crimux.log());
}

#[tokio::test]
async fn a_call_in_flight_outlives_the_removal_of_its_backend() {
    let a = SimRuntime::builder("a").start().await;
    let b = SimRuntime::builder("b").start().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    b.fault("RunPodSandbox", Fault::Hang);
    let client = crimux.client();
    let running =
        tokio::spawn(async move { client.runtime().run_pod_sandbox(sandbox_config("p").run("b")).await });
    b.wait_for_call("RunPodSandbox", 1).await;
    reload(&crimux, &config(&crimux.dir, &[("a", &a)], "")).await;
    b.clear_faults();
    let made = running.await.unwrap().unwrap().into_inner();
    assert_eq!(listed(&crimux).await, [made.pod_sandbox_id]);
}

#[tokio::test]
async fn a_backend_can_move_to_another_endpoint_under_calls() {
    let a = SimRuntime::builder("a").start().await;
    let [first, second] = [SimRuntime::builder("b").start().await, SimRuntime::builder("b").start().await];
    let crimux = Crimux::start(&[("a", &a), ("b", &first)]).await;
    first.fault("RunPodSandbox", Fault::Hang);
    let client = crimux.client();
    let running =
        tokio::spawn(async move { client.runtime().run_pod_sandbox(sandbox_config("p").run("b")).await });
    first.wait_for_call("RunPodSandbox", 1).await;
    let busy = Busy::start(crimux.client(), "a");
    reload(&crimux, &config(&crimux.dir, &[("a", &a), ("b", &second)], "")).await;
    busy.goes_on().await;
    busy.stop().await;
    let pod = sandbox_config("q").run("b");
    crimux.client().runtime().run_pod_sandbox(pod).await.unwrap();
    assert_eq!((first.calls("RunPodSandbox").len(), second.calls("RunPodSandbox").len()), (1, 1));
    first.clear_faults();
    running.await.unwrap().expect("the call in flight was finished where it was begun");
}

#[tokio::test]
async fn a_reload_that_was_applied_in_part_is_finished_by_the_next_of_the_same_file() {
    let a = SimRuntime::builder("a").sandboxes(1, 1).start().await;
    let crimux = Crimux::start(&[("a", &a)]).await;
    let [first, second] = ["first.sock", "second.sock"].map(|name| crimux.dir.path().join(name));
    std::fs::create_dir(&first).unwrap();
    let b = SimRuntime::builder("b").start().await;
    let with_socket = |yaml: String, runtime: &SimRuntime, socket: &std::path::Path| {
        let endpoint = format!("endpoint: \"{}\"", runtime.endpoint());
        yaml.replace(&endpoint, &format!("{endpoint}, socket: {}", socket.display()))
    };
    let yaml = config(&crimux.dir, &[("a", &a), ("b", &b)], "");
    let yaml = with_socket(with_socket(yaml, &a, &first), &b, &second);
    crimux.rewrite(&yaml);
    let (code, _, error) = crate::cli::on(&crimux, &["reload"], "").await;
    assert!(code == 1 && error.contains("first.sock"), "{error}");
    assert!(second.exists(), "a socket that cannot be bound keeps no other from being bound");
    std::fs::remove_dir(&first).unwrap();
    let (code, text, error) = crate::cli::on(&crimux, &["reload"], "").await;
    assert_eq!(code, 0, "{text}{error}");
    assert!(first.exists());
}

#[tokio::test]
async fn each_problem_of_a_failed_reload_is_an_event_of_its_own_where_the_log_is_json() {
    let a = SimRuntime::builder("a").start().await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&dir, &[("a", &a)], "").replace("level: debug", "level: info, format: json");
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    crimux.rewrite(&(yaml + "drain_timeout: never\nlisten_modes: 1\n"));
    eventually(SOON, async || crimux.log().contains("the old one stays current")).await;
    let events: Vec<serde_json::Value> = crimux
        .log()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let of_key = |key: &str| events.iter().filter(|event| event["fields"]["key"] == key).count();
    assert_eq!((of_key("drain_timeout"), of_key("listen_modes")), (1, 1), "{events:?}");
    assert!(events.iter().all(|event| !event["fields"].to_string().contains("\\n")), "{events:?}");
}
