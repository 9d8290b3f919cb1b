//! The file is edited under running pods: a runtime is what answers, whatever it is called.
//!
//! Each edit is judged as kubelet judges: the same sandboxes and containers, each listed once and in the same
//! state, and the processes in them are those that were started.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use testkit::bed::Bed;
use testkit::bed::pods::{Pod, Pods};
use testkit::cri::{ContainerState, ListContainersRequest};

use super::world::{self, Crimux, IDLE, eventually};

/// How long the busy runtime is stopped.
const BUSY: Duration = Duration::from_millis(2500);

/// One pod on each of the two runtimes, and what its process was started as.
struct Running {
    pods: Vec<Pod>,
    started: Vec<Vec<u8>>,
}

/// What is listed, by ID: the states of sandboxes and of containers, with the attempts of the latter.
type Listed = (BTreeMap<String, i32>, BTreeMap<String, (i32, u32)>);

async fn listed(pods: &mut Pods) -> Listed {
    let sandboxes = pods.list().await.unwrap();
    let containers = pods.runtime.list_containers(ListContainersRequest::default()).await.unwrap();
    let containers = containers.into_inner().containers;
    let count = (sandboxes.len(), containers.len());
    let attempt = |container: &testkit::cri::Container| container.metadata.as_ref().unwrap().attempt;
    let listed: Listed = (
        sandboxes.into_iter().map(|sandbox| (sandbox.id, sandbox.state)).collect(),
        containers.into_iter().map(|c| (c.id.clone(), (c.state, attempt(&c)))).collect(),
    );
    assert_eq!((listed.0.len(), listed.1.len()), count, "something is listed twice");
    listed
}

impl Running {
    /// Runs a pod of each of these handlers.
    async fn start(pods: &mut Pods, handlers: &[&str]) -> Self {
        let mut running = Self { pods: Vec::new(), started: Vec::new() };
        for handler in handlers {
            let pod = pods.run(handler, handler, &IDLE).await.unwrap();
            running.started.push(started(pods, &pod).await.unwrap());
            running.pods.push(pod);
        }
        running
    }

    /// Asserts that every container runs, with the process that it was started with.
    async fn assert_untouched(&self, pods: &mut Pods, what: &str) {
        for (pod, before) in std::iter::zip(&self.pods, &self.started) {
            let state = world::container_state(pods, &pod.container).await;
            assert_eq!(state, Ok(ContainerState::ContainerRunning), "{what}");
            assert_eq!(started(pods, pod).await.as_ref(), Ok(before), "{what}: another process");
        }
    }
}

/// When the first process of a container was started, in clock ticks since the boot.
async fn started(pods: &mut Pods, pod: &Pod) -> Result<Vec<u8>, tonic::Code> {
    let script = ["sh", "-c", "cut -d' ' -f22 /proc/1/stat"];
    pods.exec(&pod.container, &script).await.map(|reply| reply.stdout).map_err(|status| status.code())
}

/// A configuration with these backends, each a name and the runtime of the bed that it leads to, and a
/// handler named like each.
fn file(bed: &Bed, backends: &[(&str, &str)]) -> String {
    let entry = |(name, at): &(&str, &str)| {
        format!("  {name}: {{ endpoint: \"unix://{}\" }}\n", bed.socket(at).display())
    };
    let handler = |(name, _): &(&str, &str)| format!("  {name}: {{ backend: {name} }}\n");
    let backends_text: String = backends.iter().map(entry).collect();
    let handlers: String = backends.iter().map(handler).collect();
    world::with_default(bed, backends[0].0, &format!("backends:\n{backends_text}handlers:\n{handlers}"))
}

/// Applies a file with `crimux reload` and returns its output.
fn reload(bed: &Bed, crimux: &Crimux<'_>, text: &str) -> String {
    std::fs::write(&crimux.config, text).unwrap();
    let config = crimux.config.to_str().unwrap();
    let output =
        bed.run(&[env!("CARGO_BIN_EXE_crimux"), "reload", "--timeout", "30s", "--config", config]).unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_run_on_while_their_runtimes_are_renamed_swapped_and_moved() {
    let Some(bed) = Bed::up_or_skip(&[("a", "runc@newest"), ("g", "crun@2.1")]) else { return };
    let crimux = world::crimux_with(&bed, &file(&bed, &[("containerd", "a")])).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    let first = Running::start(&mut pods, &["containerd"]).await;
    let before = listed(&mut pods).await;

    reload(&bed, &crimux, &file(&bed, &[("main", "a")]));
    assert_eq!(listed(&mut pods).await, before, "renamed");
    first.assert_untouched(&mut pods, "renamed").await;

    // Its name goes to a new runtime and it gets another one, while it takes no call.
    tokio::task::block_in_place(|| bed.stop("a").unwrap());
    let stopped = Instant::now();
    reload(&bed, &crimux, &file(&bed, &[("main", "g"), ("main-old", "a")]));
    while stopped.elapsed() < BUSY {
        assert_eq!(listed(&mut pods).await, before, "its name was given away");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::task::block_in_place(|| bed.cont("a").unwrap());
    eventually("it answers again", async || started(&mut pods, &first.pods[0]).await.ok()).await;
    first.assert_untouched(&mut pods, "its name was given away").await;
    eventually("the new runtime takes pods", async || {
        let config = pods.config("probe");
        let sandbox = pods.sandbox(&config, "main").await.ok()?;
        pods.remove(&sandbox).await.ok()
    })
    .await;
    assert_eq!(listed(&mut pods).await, before);

    let both = Running::start(&mut pods, &["main"]).await;
    let before = listed(&mut pods).await;
    let direct = world::dial(&bed, &bed.socket("g")).await.list().await.unwrap();
    assert_eq!(direct[0].id, both.pods[0].sandbox, "the name leads to the new runtime");

    let swapped = file(&bed, &[("main", "a"), ("main-old", "g")]);
    reload(&bed, &crimux, &swapped);
    assert_eq!(listed(&mut pods).await, before, "swapped");
    first.assert_untouched(&mut pods, "swapped").await;
    both.assert_untouched(&mut pods, "swapped").await;

    crimux.process.kill().unwrap();
    drop(crimux);
    let crimux = world::crimux_with(&bed, &swapped).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    assert_eq!(listed(&mut pods).await, before, "killed");
    for running in [&first, &both] {
        eventually("it answers again", async || started(&mut pods, &running.pods[0]).await.ok()).await;
        running.assert_untouched(&mut pods, "killed").await;
    }
}
