//! Pods come and go over three containerds while each of them, and crimux itself, is killed, stopped and
//! started.
//!
//! A model holds what clients were told. One client for each backend makes and removes pods as kubelet does,
//! another one lists and inspects without pause as PLEG and crictl do, and every answer is held against the
//! model: nothing vanishes, nothing removed comes back, no call is told OK or `NotFound` that is not true, no
//! list is late. After each round the runtimes themselves have the last word.
//!
//! `CRIMUX_CHURN_ROUNDS` and `CRIMUX_CHURN_SEED` make it longer or other; `dev/churn` is one command for
//! both.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use fastrand::Rng;
use testkit::bed::Bed;
use testkit::bed::pods::Pods;
use testkit::cri::{
    Container, ContainerState, ContainerStatusRequest, CreateContainerRequest, ListContainersRequest,
    ListPodSandboxRequest, PodSandbox, PodSandboxState, RemoveContainerRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, StartContainerRequest, StopContainerRequest, StopPodSandboxRequest,
};
use tokio::task::block_in_place;
use tonic::{Code, Request, Status};

use super::world::{self, Crimux, IDLE, SOON};

/// Three containerds; the names are those of the usual configuration.
const RUNTIMES: [(&str, &str); 3] = [("a", "runc@debian"), ("b", "crun@debian"), ("g", "runc@debian")];
const HANDLERS: [(&str, &str, &str); 3] =
    [("runc", "a", "runc"), ("crun", "b", "crun"), ("gvisor", "g", "runc")];

/// What crictl waits for any call, and so for a list.
const LIST_PATIENCE: Duration = Duration::from_secs(2);
/// What the makers of pods wait; kubelet's two minutes would make rounds of minutes.
const PATIENCE: Duration = Duration::from_secs(20);
/// The most pods that one maker has.
const PODS: usize = 3;

/// What clients were told.
#[derive(Debug, Default, Clone)]
struct Model {
    /// Sandboxes that were made and whose removal nobody has begun, and their backends.
    sandboxes: BTreeMap<String, usize>,
    /// Containers that were made and whose removal nobody has begun, and their sandboxes.
    containers: BTreeMap<String, String>,
    /// Sandboxes whose removal has begun and not succeeded, and their backends.
    leaving: BTreeMap<String, usize>,
    /// What was removed.
    gone: BTreeSet<String>,
    /// Sandboxes and containers that were stopped.
    stopped: BTreeSet<String>,
    /// Containers that run and that nobody stops.
    running: BTreeSet<String>,
}

/// What all clients share.
struct Churn {
    socket: PathBuf,
    logs: PathBuf,
    model: Mutex<Model>,
    /// Whether crimux itself is being killed: its clients then see what a client sees of a server that is
    /// gone.
    no_crimux: AtomicBool,
    /// Counts the times that crimux was killed.
    kills: AtomicU32,
    /// Whether makers shall pause, so that the runtimes can be asked.
    pause: AtomicBool,
    ended: AtomicBool,
    longest: Mutex<Duration>,
    lists: AtomicU32,
    told: AtomicU32,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_vanishes_and_nothing_lies_while_everything_is_killed_in_turn() {
    let Some(bed) = Bed::up_or_skip(&RUNTIMES) else { return };
    let rounds = number("CRIMUX_CHURN_ROUNDS").unwrap_or(6);
    let seed = number("CRIMUX_CHURN_SEED").unwrap_or(1);
    println!("churn: {rounds} rounds, seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let mut crimux = Some(world::crimux(&bed, &HANDLERS).await);
    let churn = Arc::new(Churn::new(&bed, crimux.as_ref().unwrap()));
    for (handler, backend, _) in HANDLERS {
        churn.anchor(handler, backend).await;
    }
    let mut clients = Vec::new();
    for backend in 0..RUNTIMES.len() {
        clients.push(tokio::spawn(make(Arc::clone(&churn), backend, rng.fork())));
    }
    clients.push(tokio::spawn(look(Arc::clone(&churn), rng.fork())));
    for round in 0..rounds {
        let victim = RUNTIMES[usize::try_from(round).unwrap() % RUNTIMES.len()].0;
        let kind = rng.u32(0..3);
        // A crimux that dies while a backend is down is the worst case, so every other time it does.
        let with_crimux = round % 2 == 1;
        println!("churn: round {round}: {victim} {}", ["killed", "stopped", "restarted"][kind as usize]);
        block_in_place(|| begin(&bed, victim, kind));
        tokio::time::sleep(Duration::from_millis(rng.u64(300..1500))).await;
        if with_crimux {
            crimux = Some(churn.kill_crimux(&bed, crimux.take().unwrap()).await);
        }
        tokio::time::sleep(Duration::from_millis(rng.u64(300..1500))).await;
        block_in_place(|| end(&bed, victim, kind));
        churn.compare(&bed, round).await;
        assert!(clients.iter().all(|client| !client.is_finished()), "a client failed in round {round}");
    }
    churn.ended.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    let longest = *churn.longest.lock().unwrap();
    let (lists, calls) = (churn.lists.load(Ordering::SeqCst), churn.told.load(Ordering::SeqCst));
    println!(
        "churn: {lists} pairs of lists (the longest list took {longest:?}), {calls} writes told OK, no lie"
    );
    assert!(lists > 20 && calls > 20, "{lists} lists and {calls} calls are no churn");
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{variable}={value}")))
}

fn begin(bed: &Bed, victim: &str, kind: u32) {
    match kind {
        0 => bed.kill(victim).unwrap(),
        1 => bed.stop(victim).unwrap(),
        _ => bed.restart(victim).unwrap(),
    }
}

fn end(bed: &Bed, victim: &str, kind: u32) {
    match kind {
        0 => bed.restart(victim).unwrap(),
        1 => bed.cont(victim).unwrap(),
        _ => {}
    }
}

impl Churn {
    fn new(bed: &Bed, crimux: &Crimux<'_>) -> Self {
        Self {
            socket: crimux.socket.clone(),
            logs: bed.directory().join("pod-logs"),
            model: Mutex::default(),
            no_crimux: AtomicBool::new(false),
            kills: AtomicU32::new(0),
            pause: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            longest: Mutex::default(),
            lists: AtomicU32::new(0),
            told: AtomicU32::new(0),
        }
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        // A client that failed while it held this has said why.
        self.model.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn pods(&self) -> Pods {
        let end = Instant::now() + SOON;
        loop {
            match Pods::dial(&self.socket, &self.logs).await {
                Ok(pods) => return pods,
                Err(error) => assert!(Instant::now() < end, "crimux cannot be dialled: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Makes a pod that lives from beginning to end, and so pulls the image.
    async fn anchor(&self, handler: &str, backend: &str) {
        let pod = self.pods().await.run(&format!("anchor-{backend}"), handler, &IDLE).await.unwrap();
        let mut model = self.model();
        model.sandboxes.insert(pod.sandbox.clone(), RUNTIMES.len());
        model.containers.insert(pod.container.clone(), pod.sandbox);
        model.running.insert(pod.container);
    }

    async fn kill_crimux<'bed>(&self, bed: &'bed Bed, crimux: Crimux<'bed>) -> Crimux<'bed> {
        self.no_crimux.store(true, Ordering::SeqCst);
        self.kills.fetch_add(1, Ordering::SeqCst);
        block_in_place(|| {
            crimux.process.kill().unwrap();
            drop(crimux);
        });
        let crimux = world::crimux(bed, &HANDLERS).await;
        self.no_crimux.store(false, Ordering::SeqCst);
        crimux
    }

    /// Judges a refusal: a backend may be out, and crimux itself may be.
    fn refused(&self, what: &str, status: &Status, kills: u32) {
        let killed = self.no_crimux.load(Ordering::SeqCst) || self.kills.load(Ordering::SeqCst) != kills;
        // What a runtime says by itself is its own affair, as long as it does not deny what exists. A removal
        // whose reply was lost may have been done.
        let leaving = self.model().leaving.keys().any(|id| status.message().contains(id.as_str()));
        let own = !status.message().starts_with("crimux") && (status.code() != Code::NotFound || leaving);
        let ours = status.code() == Code::Unavailable;
        assert!(killed || own || ours, "{what} was refused with {:?}: {}", status.code(), status.message());
    }

    /// Waits until the runtimes and crimux agree, and settles what nobody was told of.
    async fn compare(&self, bed: &Bed, round: u64) {
        self.pause.store(true, Ordering::SeqCst);
        let mut pods = self.pods().await;
        // The makers have ended what they were at once nothing changes any more.
        let truth = world::eventually("the makers pause and lists are live again", async || {
            let before = truth(bed).await?;
            let listed = lists(&mut pods, SOON).await.ok()?;
            let listed = (ids(&listed.0, |s| &s.id), ids(&listed.1, |c| &c.id));
            tokio::time::sleep(Duration::from_millis(300)).await;
            let after = truth(bed).await?;
            (before == after && listed == after).then_some(after)
        })
        .await;
        let mut model = self.model();
        let lost = model.sandboxes.keys().filter(|id| !truth.0.contains(*id));
        let lost: Vec<_> = lost.chain(model.containers.keys().filter(|id| !truth.1.contains(*id))).collect();
        assert!(lost.is_empty(), "round {round}: {lost:?} are gone from their runtimes");
        let left = model.gone.iter().filter(|id| truth.0.contains(*id) || truth.1.contains(*id));
        let left: Vec<_> = left.collect();
        assert!(left.is_empty(), "round {round}: a false OK: {left:?} were said to be removed and are there");
        let Model { sandboxes, containers, stopped, .. } = &mut *model;
        stopped.retain(|id| sandboxes.contains_key(id) || containers.contains_key(id));
        drop(model);
        self.pause.store(false, Ordering::SeqCst);
    }

    async fn paused(&self) {
        while self.pause.load(Ordering::SeqCst) && !self.ended.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Lists at crimux.
async fn lists(pods: &mut Pods, patience: Duration) -> Result<(Vec<PodSandbox>, Vec<Container>), Status> {
    let sandboxes =
        within(patience, pods.runtime.list_pod_sandbox(limited(ListPodSandboxRequest::default(), patience)));
    let sandboxes = sandboxes.await?.items;
    let containers =
        within(patience, pods.runtime.list_containers(limited(ListContainersRequest::default(), patience)));
    Ok((sandboxes, containers.await?.containers))
}

/// What the runtimes themselves have; `None` while one of them does not answer.
async fn truth(bed: &Bed) -> Option<(BTreeSet<String>, BTreeSet<String>)> {
    let mut truth = (BTreeSet::new(), BTreeSet::new());
    for (backend, _) in RUNTIMES {
        let mut direct = Pods::dial(&bed.socket(backend), Path::new("")).await.ok()?;
        let (sandboxes, containers) = lists(&mut direct, SOON).await.ok()?;
        truth.0.extend(ids(&sandboxes, |sandbox| &sandbox.id));
        truth.1.extend(ids(&containers, |container| &container.id));
    }
    Some(truth)
}

/// Collects IDs, none of which may come twice.
fn ids<T>(items: &[T], id: impl Fn(&T) -> &String) -> BTreeSet<String> {
    let ids: BTreeSet<String> = items.iter().map(|item| id(item).clone()).collect();
    assert_eq!(ids.len(), items.len(), "something is listed twice");
    ids
}

fn limited<T>(message: T, patience: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(patience);
    request
}

async fn within<T>(
    patience: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(patience, call).await {
        Ok(reply) => reply.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!("no answer within {patience:?}"))),
    }
}

/// Lists and inspects without pause, and holds every answer against the model.
async fn look(churn: Arc<Churn>, mut rng: Rng) {
    let mut pods = churn.pods().await;
    while !churn.ended.load(Ordering::SeqCst) {
        let (kills, before) = (churn.kills.load(Ordering::SeqCst), churn.model().clone());
        let started = Instant::now();
        let listed = lists(&mut pods, LIST_PATIENCE).await;
        let took = started.elapsed();
        match listed {
            Ok(listed) => {
                let mut longest = churn.longest.lock().unwrap();
                *longest = took.max(*longest);
                drop(longest);
                // Two lists, of which one may wait for a backend's deadline.
                assert!(took < LIST_PATIENCE, "a pair of lists took {took:?}");
                judge(&before, &churn.model(), &listed.0, &listed.1);
                churn.lists.fetch_add(1, Ordering::SeqCst);
            }
            Err(status) => {
                let killed =
                    churn.no_crimux.load(Ordering::SeqCst) || churn.kills.load(Ordering::SeqCst) != kills;
                assert!(killed, "a list failed: {status}");
            }
        }
        inspect(&churn, &mut pods, &mut rng).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Holds a pair of lists against what was known before and after it.
fn judge(before: &Model, after: &Model, sandboxes: &[PodSandbox], containers: &[Container]) {
    let (listed, held) = (ids(sandboxes, |sandbox| &sandbox.id), ids(containers, |container| &container.id));
    for id in before.sandboxes.keys().filter(|id| after.sandboxes.contains_key(*id)) {
        assert!(listed.contains(id), "sandbox {id} vanished");
    }
    for id in before.containers.keys().filter(|id| after.containers.contains_key(*id)) {
        assert!(held.contains(id), "container {id} vanished");
    }
    for id in &before.gone {
        assert!(!listed.contains(id) && !held.contains(id), "{id} was removed and is listed");
    }
    for sandbox in sandboxes.iter().filter(|sandbox| before.stopped.contains(&sandbox.id)) {
        assert_eq!(sandbox.state(), PodSandboxState::SandboxNotready, "{} was stopped", sandbox.id);
    }
    for container in containers {
        if before.stopped.contains(&container.id) {
            // One that was never started is stopped as it is, created.
            assert_ne!(container.state(), ContainerState::ContainerRunning, "{} was stopped", container.id);
        }
        if before.running.contains(&container.id) && after.running.contains(&container.id) {
            assert_eq!(container.state(), ContainerState::ContainerRunning, "{} runs", container.id);
        }
    }
}

/// Asks for the status of something that exists.
async fn inspect(churn: &Churn, pods: &mut Pods, rng: &mut Rng) {
    let (kills, before) = (churn.kills.load(Ordering::SeqCst), churn.model().clone());
    let Some(container_id) = rng.choice(before.containers.keys()).cloned() else { return };
    let request = ContainerStatusRequest { container_id: container_id.clone(), verbose: false };
    let told = within(PATIENCE, pods.runtime.container_status(limited(request, PATIENCE))).await;
    let after = churn.model().clone();
    if !after.containers.contains_key(&container_id) {
        return;
    }
    match told {
        Ok(reply) => {
            let state = reply.status.unwrap().state();
            if before.stopped.contains(&container_id) {
                assert_ne!(state, ContainerState::ContainerRunning, "the status of {container_id}");
            }
            if before.running.contains(&container_id) && after.running.contains(&container_id) {
                assert_eq!(state, ContainerState::ContainerRunning, "the status of {container_id}");
            }
        }
        Err(status) => churn.refused("a status", &status, kills),
    }
}

/// Makes pods at one backend and removes them, as kubelet does.
async fn make(churn: Arc<Churn>, backend: usize, mut rng: Rng) {
    let mut pods = churn.pods().await;
    for number in 0_u32.. {
        if churn.ended.load(Ordering::SeqCst) {
            return;
        }
        churn.paused().await;
        let kills = churn.kills.load(Ordering::SeqCst);
        let (mine, leaving): (Vec<_>, _) = {
            let model = churn.model();
            let leaving =
                model.leaving.iter().find(|(_, owner)| **owner == backend).map(|(id, _)| id.clone());
            let mine =
                model.sandboxes.iter().filter(|(_, owner)| **owner == backend).map(|(id, _)| id.clone());
            (mine.collect(), leaving)
        };
        let done = match rng.u32(0..4) {
            0 if leaving.is_some() => finish(&churn, &mut pods, leaving.unwrap()).await,
            0 if !mine.is_empty() => remove(&churn, &mut pods, &rng.choice(mine).unwrap()).await,
            1 => again(&churn, &mut pods, &mut rng).await,
            _ if mine.len() < PODS => Box::pin(run(&churn, &mut pods, backend, number)).await,
            _ => stop(&churn, &mut pods, &rng.choice(mine).unwrap()).await,
        };
        match done {
            Ok(()) => {
                churn.told.fetch_add(1, Ordering::SeqCst);
            }
            Err(status) => {
                churn.refused("a write", &status, kills);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn run(churn: &Churn, pods: &mut Pods, backend: usize, number: u32) -> Result<(), Status> {
    let name = format!("pod-{}-{number}", RUNTIMES[backend].0);
    let config = pods.config(&name);
    std::fs::create_dir_all(&config.log_directory).unwrap();
    let runtime_handler = HANDLERS[backend].0.to_owned();
    let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler };
    let sandbox = Box::pin(within(PATIENCE, pods.runtime.run_pod_sandbox(limited(request, PATIENCE))))
        .await?
        .pod_sandbox_id;
    churn.model().sandboxes.insert(sandbox.clone(), backend);
    let request = CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(testkit::bed::pods::container_config(&config, &IDLE)),
        sandbox_config: Some(config),
    };
    let container = Box::pin(within(PATIENCE, pods.runtime.create_container(limited(request, PATIENCE))))
        .await?
        .container_id;
    churn.model().containers.insert(container.clone(), sandbox);
    let request = StartContainerRequest { container_id: container.clone() };
    within(PATIENCE, pods.runtime.start_container(limited(request, PATIENCE))).await?;
    churn.model().running.insert(container);
    Ok(())
}

/// Stops the containers of a pod and leaves it at that.
async fn stop(churn: &Churn, pods: &mut Pods, sandbox: &str) -> Result<(), Status> {
    let containers: Vec<_> = {
        let mut model = churn.model();
        let of_pod = model.containers.iter().filter(|(_, of)| *of == sandbox);
        let containers: Vec<_> = of_pod.map(|(id, _)| id.clone()).collect();
        model.running.retain(|id| !containers.contains(id));
        containers
    };
    for container_id in containers {
        let request = StopContainerRequest { container_id: container_id.clone(), timeout: 2 };
        within(PATIENCE, pods.runtime.stop_container(limited(request, PATIENCE))).await?;
        churn.model().stopped.insert(container_id);
    }
    Ok(())
}

async fn remove(churn: &Churn, pods: &mut Pods, sandbox: &str) -> Result<(), Status> {
    stop(churn, pods, sandbox).await?;
    let pod_sandbox_id = sandbox.to_owned();
    let request = StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
    within(PATIENCE, pods.runtime.stop_pod_sandbox(limited(request, PATIENCE))).await?;
    let containers: Vec<_> = {
        let mut model = churn.model();
        model.stopped.insert(pod_sandbox_id.clone());
        let of_pod = model.containers.iter().filter(|(_, of)| **of == pod_sandbox_id);
        let containers: Vec<_> = of_pod.map(|(id, _)| id.clone()).collect();
        let backend = model.sandboxes.remove(sandbox).expect("only its own maker removes a sandbox");
        model.leaving.insert(pod_sandbox_id.clone(), backend);
        for id in &containers {
            model.containers.remove(id);
        }
        containers
    };
    for container_id in containers {
        let request = RemoveContainerRequest { container_id: container_id.clone() };
        within(PATIENCE, pods.runtime.remove_container(limited(request, PATIENCE))).await?;
        churn.model().gone.insert(container_id);
    }
    finish(churn, pods, pod_sandbox_id).await
}

/// Removes a sandbox whose removal has begun.
async fn finish(churn: &Churn, pods: &mut Pods, pod_sandbox_id: String) -> Result<(), Status> {
    let request = StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
    within(PATIENCE, pods.runtime.stop_pod_sandbox(limited(request, PATIENCE))).await?;
    let request = RemovePodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
    within(PATIENCE, pods.runtime.remove_pod_sandbox(limited(request, PATIENCE))).await?;
    let mut model = churn.model();
    model.leaving.remove(&pod_sandbox_id);
    model.gone.insert(pod_sandbox_id);
    Ok(())
}

/// Removes again what is gone: that has succeeded, or cannot be told. It is never an error of ours.
async fn again(churn: &Churn, pods: &mut Pods, rng: &mut Rng) -> Result<(), Status> {
    let gone: Vec<_> = churn.model().gone.iter().cloned().collect();
    let Some(pod_sandbox_id) = rng.choice(gone) else { return Ok(()) };
    let request = RemovePodSandboxRequest { pod_sandbox_id };
    within(PATIENCE, pods.runtime.remove_pod_sandbox(limited(request, PATIENCE))).await.map(drop)
}
