//! `docs/migration.md`, played step by step on a node whose pods run on: to a second containerd, and back.
//!
//! The pieces of configuration are the guide's own, taken out of its text with the sockets of this bed put
//! in, and the commands are those that it names. Where a pod is, is asked at the containerds themselves.

use testkit::bed::Bed;
use testkit::bed::pods::{Pod, container_config};
use testkit::cri::{
    ContainerState, ContainerStatsRequest, CreateContainerRequest, PodSandboxConfig, PodSandboxState,
    RemovePodSandboxRequest, ReopenContainerLogRequest, StartContainerRequest, StopContainerRequest,
    StopPodSandboxRequest,
};
use tonic::Code;

use super::world::{self, container_state, eventually, sandbox_state};
use node::{NEW, Node, OLD, SPEAK, configuration, guide, guide_piece};

mod node;

/// A pod that the guide's split of 9 to 1 sends to the old backend, and one that it sends to the new one: by
/// uid, in every release of crimux.
const CANARIES: [(&str, &str); 2] = [("canary-0", OLD), ("canary-2", NEW)];

/// The node before: one containerd, and the handler that leads to it.
fn before(bed: &Bed) -> String {
    let backends = format!("backends:\n  {OLD}: {{ endpoint: unix://{} }}\n", bed.socket(OLD).display());
    configuration(bed, OLD, &[&backends, &leading_to(OLD)])
}

fn leading_to(backend: &str) -> String {
    format!("handlers:\n  runc: {{ backend: {backend}, handler: runc }}\n")
}

/// The node of step 4: both containerds, and everything that is new goes to the new one.
fn re_pointed(bed: &Bed) -> String {
    configuration(bed, NEW, &[&guide(bed, "2."), &guide(bed, "4.")])
}

/// The pods of the node: one that stays untouched, one that is kept in place, one that is created again, and
/// one without a RuntimeClass.
struct Running {
    untouched: Pod,
    working: Pod,
    moving: Pod,
    plain: Pod,
}

#[tokio::test]
async fn a_node_moves_to_a_second_containerd_and_its_pods_run_on() {
    let Some(bed) = Bed::up_or_skip(&[(OLD, "runc@debian")]) else { return };
    let mut node = Node::start(&bed, &before(&bed)).await;
    let mut running = Running {
        untouched: node.pods.run("untouched", "runc", &SPEAK).await.unwrap(),
        working: node.pods.run("working", "runc", &SPEAK).await.unwrap(),
        moving: node.pods.run("moving", "runc", &SPEAK).await.unwrap(),
        plain: node.pods.run("plain", "", &SPEAK).await.unwrap(),
    };
    let life = node.life(&running.untouched.container).await;

    // "1. Put the second runtime on the node": own root, state, sockets; another subnet.
    bed.backend(NEW, "runc@debian", "10.88.2").unwrap();
    let_crimux_know_it(&bed, &mut node).await;
    try_it_with_a_few_pods(&bed, &mut node).await;
    re_point_the_handler(&bed, &mut node).await;
    drain_the_old_backend(&bed, &mut node).await;
    Box::pin(everything_else_goes_on(&mut node, &mut running.working)).await;
    Box::pin(recreate(&mut node, &running.moving, "runc", NEW)).await;
    assert_eq!(node.life(&running.untouched.container).await, life);
    Box::pin(take_it_out(&bed, &mut node, &running)).await;
    put_it_back(&bed, &mut node).await;
}

#[tokio::test]
async fn a_node_goes_back_step_by_step_and_its_pods_run_on() {
    let Some(bed) = Bed::up_or_skip(&[(OLD, "runc@debian"), (NEW, "runc@debian")]) else { return };
    let mut node = Node::start(&bed, &re_pointed(&bed)).await;
    // A pod from before: its containerd had it already.
    let mut direct = world::dial(&bed, &bed.socket(OLD)).await;
    let stayed = direct.run("stayed", "runc", &SPEAK).await.unwrap();
    let moved = node.pods.run("moved", "runc", &SPEAK).await.unwrap();
    let life = node.life(&stayed.container).await;
    node.does("backend drain containerd");

    // "5": the drain goes first, or what is pointed back is refused.
    let before_step_4 = configuration(&bed, OLD, &[&guide(&bed, "2."), &leading_to(OLD)]);
    node.reconfigure(&before_step_4);
    node.until_led("runc", OLD).await;
    refused(&mut node, "runc").await;
    refused(&mut node, "").await;
    let said = node.does("backend undrain containerd");
    assert_eq!(said, "backend containerd takes new sandboxes\n");
    assert_eq!(node.backend(OLD)["state"], "ready");

    // "3, 4": the handler leads back already; recreate the pods that moved.
    Box::pin(recreate(&mut node, &moved, "runc", OLD)).await;

    // "2": take the backend out.
    node.reconfigure(&before(&bed));
    eventually("the new backend is gone", async || node.backend(NEW).is_null().then_some(())).await;
    assert_eq!(node.life(&stayed.container).await, life);
    node.says(&stayed, "still-here").await;
    assert_eq!(node.pods.list().await.unwrap().len(), 2);
}

/// "From runc to gVisor is the same step with another handler name"
#[tokio::test]
async fn a_pod_is_on_gvisor_once_it_is_made_anew_and_an_untouched_one_stays() {
    let Some(bed) = Bed::up_or_skip(&[(OLD, "runc@debian")]) else { return };
    let mut node = Node::start(&bed, &before(&bed)).await;
    let untouched = node.pods.run("untouched", "runc", &SPEAK).await.unwrap();
    let moving = node.pods.run("moving", "runc", &SPEAK).await.unwrap();
    let (host, life) = (node.kernel(&moving.container).await, node.life(&untouched.container).await);

    let gvisor = before(&bed).replace("handler: runc", "handler: runsc");
    node.reconfigure(&gvisor);
    eventually("the handler is gVisor's", async || node.does("route runc").contains("runsc").then_some(()))
        .await;
    let stop = StopPodSandboxRequest { pod_sandbox_id: moving.sandbox.clone() };
    node.pods.runtime.stop_pod_sandbox(stop).await.unwrap();
    let uid = &moving.config.metadata.as_ref().unwrap().uid;
    let config = named(moving.config.clone(), uid, 1);
    let fresh = node.pods.sandbox(&config, "runc").await.unwrap();
    assert_eq!(node.places()[&moving.sandbox].1, "notready");
    node.pods.remove(&moving.sandbox).await.unwrap();
    let container = node.pods.container(&fresh, &config, &SPEAK).await.unwrap();
    let start = StartContainerRequest { container_id: container.clone() };
    node.pods.runtime.start_container(start).await.unwrap();
    assert_ne!(node.kernel(&container).await, host);
    assert_eq!(node.kernel(&untouched.container).await, host);
    assert_eq!(node.life(&untouched.container).await, life);
}

/// "2. Let crimux know it"
async fn let_crimux_know_it(bed: &Bed, node: &mut Node<'_>) {
    let own_socket = bed.directory().join("crimux/second.sock");
    let backends = guide(bed, "2.");
    let alone = format!("{}, socket: unix://{} }}", bed.socket(NEW).display(), own_socket.display());
    let tried = backends.replace(&format!("{} }}", bed.socket(NEW).display()), &alone);
    let found = node.reconfigure(&configuration(bed, OLD, &[&tried, &leading_to(OLD)]));
    assert!(found.contains("containerd-2: ") && !found.contains("ERROR"), "{found}");
    node.until(NEW, "ready").await;
    assert!(node.does("status").contains(NEW));

    // "Nothing uses it yet. Try it alone"
    assert!(node.places().values().all(|(backend, _)| backend == OLD), "{:?}", node.places());
    let mut alone = world::dial(bed, &own_socket).await;
    assert_eq!(alone.list().await.unwrap(), []);
    let tried = alone.run("tried", "runc", &SPEAK).await.unwrap();
    assert_eq!(node.places()[&tried.sandbox].0, NEW);
    alone.remove(&tried.sandbox).await.unwrap();

    // Draining now would leave pods with nowhere to go, so it is refused.
    let (code, said) = node.attempts("backend drain containerd");
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("pods without a RuntimeClass, handler runc") && said.contains("--force"), "{said}");
    assert_eq!(node.backend(OLD)["draining"], false);
}

/// "3. Try it with a few pods"
async fn try_it_with_a_few_pods(bed: &Bed, node: &mut Node<'_>) {
    node.reconfigure(&configuration(bed, OLD, &[&guide(bed, "2."), &guide(bed, "3.")]));
    eventually("the handler is split", async || node.does("route runc").contains("90%").then_some(())).await;
    let route = node.does("route runc");
    assert!(route.contains("10%") && route.contains(NEW), "{route}");

    // "The choice depends on the pod's uid, so a retry lands where the first try did", over a restart as
    // well.
    for restarted in [false, true] {
        if restarted {
            node.kill_and_start().await;
        }
        for (uid, backend) in CANARIES {
            for attempt in 0..2 {
                let config = named(node.pods.config(uid), uid, attempt);
                let (id, holder) = node.place(&config, "runc").await.unwrap();
                assert_eq!(holder, backend, "{uid}, attempt {attempt}");
                assert!(node.does("ps").contains(uid));
                node.pods.remove(&id).await.unwrap();
            }
        }
    }

    // "Pods without a RuntimeClass … are shared by `default_split` in the same way. Without it they go to
    // `default_backend`."
    let config = node.pods.config("without");
    let (id, holder) = node.place(&config, "").await.unwrap();
    assert_eq!(holder, OLD);
    node.pods.remove(&id).await.unwrap();
    let shares = guide_piece(bed, "3.", 2);
    node.reconfigure(&configuration(bed, OLD, &[&guide(bed, "2."), &guide(bed, "3."), &shares]));
    eventually("the default is split", async || {
        node.does("route").lines().any(|row| row.starts_with('-') && row.contains("10%")).then_some(())
    })
    .await;
    for (uid, backend) in CANARIES {
        let (id, holder) = node.place(&named(node.pods.config(uid), uid, 0), "").await.unwrap();
        assert_eq!(holder, backend, "{uid}");
        node.pods.remove(&id).await.unwrap();
    }
    // "To try one pod, aim it, whatever the weights"
    let config = named(node.pods.config("web-0"), CANARIES[0].0, 0);
    let metadata = config.metadata.clone().unwrap();
    let said = node.does(&format!("route --next {}/{} {NEW}", metadata.namespace, metadata.name));
    assert!(said.contains("goes to backend containerd-2"), "{said}");
    let (id, holder) = node.place(&config, "").await.unwrap();
    assert_eq!(holder, NEW);
    node.pods.remove(&id).await.unwrap();
}

/// "4. Re-point the handler"
async fn re_point_the_handler(bed: &Bed, node: &mut Node<'_>) {
    node.reconfigure(&configuration(bed, OLD, &[&guide(bed, "2."), &guide(bed, "4.")]));
    node.hang_up();
    node.until_led("runc", NEW).await;
    let (id, holder) = node.place(&node.pods.config("fresh"), "runc").await.unwrap();
    assert_eq!(holder, NEW);
    node.pods.remove(&id).await.unwrap();

    // "`default_backend` moves last": until then the drain would cut off the pods without a RuntimeClass.
    let (code, said) = node.attempts("backend drain containerd");
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("pods without a RuntimeClass;"), "{said}");
    node.reconfigure(&re_pointed(bed));
    node.until_led("", NEW).await;
    let (id, holder) = node.place(&node.pods.config("fresh"), "").await.unwrap();
    assert_eq!(holder, NEW);
    node.pods.remove(&id).await.unwrap();
}

/// "5. Drain the old backend"
async fn drain_the_old_backend(bed: &Bed, node: &mut Node<'_>) {
    let said = node.does("backend drain containerd");
    assert_eq!(said, "backend containerd takes no new sandboxes; 4 are still on it\n");
    // "It survives restarts", and is shown.
    node.kill_and_start().await;
    node.until(OLD, "draining").await;
    let status = node.does("status");
    assert!(status.lines().any(|row| row.starts_with("containerd ") && row.contains("draining")), "{status}");
    let left = node.places();
    assert_eq!(left.values().filter(|(backend, _)| backend == OLD).count(), 4, "{left:?}");

    // Whatever still leads there is refused, and told why; it is not sent elsewhere.
    node.reconfigure(&configuration(bed, NEW, &[&guide(bed, "2."), &leading_to(OLD)]));
    node.until_led("runc", OLD).await;
    refused(node, "runc").await;
    node.reconfigure(&re_pointed(bed));
    node.until_led("runc", NEW).await;
}

/// "Everything else goes on working on a drained backend: stop, exec, logs, stats, container restarts."
async fn everything_else_goes_on(node: &mut Node<'_>, pod: &mut Pod) {
    node.says(pod, "drained").await;
    let rotated = pod.log.with_extension("log.1");
    std::fs::rename(&pod.log, &rotated).unwrap();
    let reopen = ReopenContainerLogRequest { container_id: pod.container.clone() };
    node.pods.runtime.reopen_container_log(reopen).await.unwrap();
    node.says(pod, "rotated").await;
    let stats = ContainerStatsRequest { container_id: pod.container.clone() };
    let stats = node.pods.runtime.container_stats(stats).await.unwrap().into_inner().stats.unwrap();
    assert!(stats.memory.is_some(), "{stats:?}");

    // A container that is restarted stays in its sandbox, and that where it is.
    let stop = StopContainerRequest { container_id: pod.container.clone(), timeout: 10 };
    node.pods.runtime.stop_container(stop).await.unwrap();
    assert_eq!(container_state(&mut node.pods, &pod.container).await, Ok(ContainerState::ContainerExited));
    let mut config = container_config(&pod.config, &SPEAK);
    config.metadata.as_mut().unwrap().attempt = 1;
    let create = CreateContainerRequest {
        pod_sandbox_id: pod.sandbox.clone(),
        config: Some(config),
        sandbox_config: Some(pod.config.clone()),
    };
    pod.container = node.pods.runtime.create_container(create).await.unwrap().into_inner().container_id;
    let start = StartContainerRequest { container_id: pod.container.clone() };
    node.pods.runtime.start_container(start).await.unwrap();
    assert_eq!(container_state(&mut node.pods, &pod.container).await, Ok(ContainerState::ContainerRunning));
    node.says(pod, "again").await;
    assert_eq!(node.places()[&pod.sandbox].0, OLD);
}

/// "kubelet then makes a sandbox with `attempt + 1` on the new backend, while the old one is still listed as
/// NOTREADY on the old backend."
async fn recreate(node: &mut Node<'_>, pod: &Pod, handler: &str, to: &str) {
    let from = if to == NEW { OLD } else { NEW };
    let stop = StopPodSandboxRequest { pod_sandbox_id: pod.sandbox.clone() };
    node.pods.runtime.stop_pod_sandbox(stop).await.unwrap();
    let old = pod.config.metadata.as_ref().unwrap();
    let config = named(pod.config.clone(), &old.uid, old.attempt + 1);
    let (fresh, holder) = node.place(&config, handler).await.unwrap();
    assert_eq!(holder, to);

    let mut listed: Vec<_> = node.pods.list().await.unwrap();
    listed.retain(|sandbox| sandbox.metadata.as_ref().is_some_and(|metadata| metadata.uid == old.uid));
    listed.sort_by_key(|sandbox| sandbox.metadata.as_ref().map(|metadata| metadata.attempt));
    let told: Vec<_> = listed.iter().map(|sandbox| (sandbox.id.as_str(), sandbox.state())).collect();
    let (ready, notready) = (PodSandboxState::SandboxReady, PodSandboxState::SandboxNotready);
    assert_eq!(told, [(pod.sandbox.as_str(), notready), (fresh.as_str(), ready)]);
    assert_eq!(sandbox_state(&mut node.pods, &pod.sandbox).await, Ok(notready));
    assert_eq!(sandbox_state(&mut node.pods, &fresh).await, Ok(ready));
    let places = node.places();
    assert_eq!(places[&pod.sandbox], (from.to_owned(), "notready".to_owned()));
    assert_eq!(places[&fresh], (to.to_owned(), "ready".to_owned()));

    // Images are each containerd's own, so the new one pulls.
    node.pods.pull(&config).await.unwrap();
    let container = node.pods.container(&fresh, &config, &SPEAK).await.unwrap();
    let start = StartContainerRequest { container_id: container.clone() };
    node.pods.runtime.start_container(start).await.unwrap();
    // "Both are kubelet's to clean up."
    let remove = RemovePodSandboxRequest { pod_sandbox_id: pod.sandbox.clone() };
    node.pods.runtime.remove_pod_sandbox(remove).await.unwrap();
    assert_eq!(sandbox_state(&mut node.pods, &pod.sandbox).await, Err(Code::NotFound));
    assert_eq!(container_state(&mut node.pods, &container).await, Ok(ContainerState::ContainerRunning));
}

/// "6. Take it out", too early at first.
async fn take_it_out(bed: &Bed, node: &mut Node<'_>, running: &Running) {
    let new_alone = guide(bed, "2.");
    let new_alone: Vec<_> = new_alone.lines().filter(|line| !line.contains("  containerd:")).collect();
    node.reconfigure(&configuration(bed, NEW, &[&(new_alone.join("\n") + "\n"), &guide(bed, "4.")]));
    // "If a sandbox is left after all, crimux keeps the backend until it is gone, and says so."
    eventually("the old backend is removed", async || {
        (node.backend(OLD)["configured"] == false).then_some(())
    })
    .await;
    assert!(node.does("status").contains("draining+removed"), "{}", node.does("status"));
    assert!(node.log().contains("removed; kept until it owns nothing"), "{}", node.log());
    node.says(&running.untouched, "kept").await;

    Box::pin(recreate(node, &running.untouched, "runc", NEW)).await;
    Box::pin(recreate(node, &running.working, "runc", NEW)).await;
    assert!(!node.backend(OLD).is_null());
    Box::pin(recreate(node, &running.plain, "", NEW)).await;
    let gone = "owns nothing any more and is gone backend=containerd";
    eventually("the old backend is gone", async || node.log().contains(gone).then_some(())).await;
    assert!(node.backend(OLD).is_null());
    // "then stop and uninstall the daemon"
    bed.kill(OLD).unwrap();
    assert_eq!(node.pods.list().await.unwrap().len(), 4);
}

/// "Going back", from step 6: "put it back into the configuration, reload; it recovers its sandboxes by
/// listing"
async fn put_it_back(bed: &Bed, node: &mut Node<'_>) {
    bed.restart(OLD).unwrap();
    let mut direct = world::dial(bed, &bed.socket(OLD)).await;
    let found = direct.run("found", "runc", &SPEAK).await.unwrap();
    node.reconfigure(&configuration(bed, OLD, &[&guide(bed, "2."), &leading_to(OLD)]));
    node.until(OLD, "ready").await;
    assert_eq!(node.pods.list().await.unwrap().len(), 5);
    node.says(&found, "recovered").await;
    let (_, holder) = node.place(&node.pods.config("back"), "runc").await.unwrap();
    assert_eq!(holder, OLD);
}

/// Tries a new sandbox where only the drained backend could take it.
async fn refused(node: &mut Node<'_>, handler: &str) {
    let config = node.pods.config("refused");
    let status = node.pods.sandbox(&config, handler).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let whose = if handler.is_empty() {
        "pods without a RuntimeClass".to_owned()
    } else {
        format!("handler {handler}")
    };
    let why = format!(
        "crimux: backend containerd is draining and takes no new sandboxes of {whose}; \
         `crimux backend undrain containerd` ends that"
    );
    assert_eq!(status.message(), why);
}

/// The sandbox of this pod, tried for the nth time.
fn named(mut config: PodSandboxConfig, uid: &str, attempt: u32) -> PodSandboxConfig {
    let metadata = config.metadata.as_mut().unwrap();
    uid.clone_into(&mut metadata.uid);
    metadata.attempt = attempt;
    config
}
