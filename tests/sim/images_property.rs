//! Whatever the order in which pods start, kubelet restarts and backends fail: no container is created where
//! its image is not, none runs as another image's user, and a policy of Never never pulls.
//!
//! Pods on three backends use a handful of image names, which may mean different images with different users
//! in each store. kubelet's calls are played one at a time, in a random interleaving, some of them at once;
//! each answer is judged against the stores themselves.

#![allow(clippy::large_futures)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use testkit::client::{container_config, sandbox_config};
use testkit::cri::{self, PodSandboxConfig};
use testkit::runtime::{Fault, ImageIds, SimRuntime};

use crate::kubelet::{Kubelet, Policy, annotated, see_again};
use crate::support::{Crimux, SOON};

const BACKENDS: [&str; 3] = ["a", "b", "o"];
const IMAGES: usize = 2;
const PODS: usize = 5;
/// The user of what the registry has.
const REGISTRY_UID: i64 = 1000;
/// How long crimux takes a start for one under way whose pod it does not know.
const LONGEST_START: Duration = Duration::from_secs(30);
/// How long all cases together may take; what is not reached by then is left for the next run.
const BUDGET: Duration = Duration::from_secs(25);

/// A pod as a case describes it.
#[derive(Debug, Clone)]
struct Plan {
    backend: usize,
    image: usize,
    policy: Policy,
    /// Whether its annotations are its own, or like those of other pods.
    distinct: bool,
}

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    /// A pod's next call.
    Next(usize),
    /// The next calls of two pods at once.
    Both(usize, usize),
    /// Every pod gets a new `config.seen` and starts again.
    KubeletRestarts,
    /// kubelet's image collection removes an image.
    Collect(usize),
    /// kubelet's image collection removes what is listed by an ID of this image, in either spelling.
    CollectId(usize, bool),
    /// A client that is not kubelet asks for an image.
    Client(usize),
    /// A backend ends, or comes back.
    Toggle(usize),
    /// A backend's image calls hang, or answer again.
    Hang(usize),
}

#[derive(Debug, Clone)]
struct Case {
    /// Images that are in stores from the start: backend, image, user.
    preloaded: Vec<(usize, usize, i64)>,
    pods: Vec<Plan>,
    steps: Vec<Step>,
}

/// What a pod's next call is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Next {
    Inspect,
    Pull,
    Size(String),
    User(String),
    Create(String, i64),
    Done,
}

#[derive(Debug, Clone)]
struct Pod {
    plan: Plan,
    image: String,
    config: PodSandboxConfig,
    sandbox: String,
    /// Whether crimux has seen its `config.seen` together with its uid.
    known: bool,
    /// When it was last told, by a `config.seen` that crimux has not seen with its uid, that its image is
    /// there.
    told: Option<Instant>,
    /// `told` of a kubelet that restarted since: whose start that was, crimux cannot know.
    left: Option<Instant>,
    next: Next,
}

struct World {
    runtimes: [SimRuntime; 3],
    crimux: Crimux,
    kubelet: Kubelet,
}

fn policies() -> impl Strategy<Value = Policy> {
    prop_oneof![
        Just(Policy::Always),
        Just(Policy::IfNotPresent),
        Just(Policy::IfNotPresent),
        Just(Policy::Never)
    ]
}

fn plans() -> impl Strategy<Value = Plan> {
    (0..BACKENDS.len(), 0..IMAGES, policies(), any::<bool>())
        .prop_map(|(backend, image, policy, distinct)| Plan { backend, image, policy, distinct })
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (0..PODS).prop_map(Step::Next),
        8 => (0..PODS, 0..PODS).prop_map(|(one, two)| Step::Both(one, two)),
        2 => Just(Step::KubeletRestarts),
        1 => (0..IMAGES).prop_map(Step::Collect),
        1 => (0..IMAGES, any::<bool>()).prop_map(|(image, plain)| Step::CollectId(image, plain)),
        2 => (0..IMAGES).prop_map(Step::Client),
    ]
}

fn cases() -> impl Strategy<Value = Case> {
    let uid = prop_oneof![Just(0), Just(7), Just(REGISTRY_UID)];
    let preloaded = proptest::collection::vec((0..BACKENDS.len(), 0..IMAGES, uid), 0..6);
    let toggled = proptest::option::weighted(0.3, (0..BACKENDS.len(), 0..40_usize, any::<bool>()));
    let pods = proptest::collection::vec(plans(), 2..=PODS);
    (preloaded, pods, proptest::collection::vec(steps(), 10..80), toggled).prop_map(
        |(preloaded, pods, mut steps, toggled)| {
            if let Some((backend, at, hangs)) = toggled {
                let step = if hangs { Step::Hang(backend) } else { Step::Toggle(backend) };
                let at = at.min(steps.len());
                steps.insert(at, step.clone());
                // What hangs costs two seconds for each call of its own pods.
                let back = (at + if hangs { 3 } else { 12 }).min(steps.len());
                steps.insert(back, step);
            }
            Case { preloaded, pods, steps }
        },
    )
}

#[test]
fn no_container_without_its_image_none_as_another_user_and_never_never_pulls() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let world = runtime.block_on(World::start());
    let config = Config { cases: 400, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let (started, ran) = (Instant::now(), AtomicUsize::new(0));
    let created = AtomicUsize::new(0);
    let outcome = TestRunner::new(config).run(&cases(), |case| {
        // A slow machine has its twenty cases too.
        if ran.load(Ordering::Relaxed) < 20 || started.elapsed() < BUDGET {
            let number = ran.fetch_add(1, Ordering::Relaxed);
            created.fetch_add(runtime.block_on(world.play(number, &case))?, Ordering::Relaxed);
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}\n{}", world.crimux.log());
    }
    let (ran, created) = (ran.into_inner(), created.into_inner());
    println!("{ran} cases, {created} containers in {:?}", started.elapsed());
    assert!(ran >= 20 && created > ran, "{ran} cases with {created} containers show little");
}

impl World {
    async fn start() -> Self {
        let start = async |name: &str, image_ids: ImageIds| {
            let builder = SimRuntime::builder(name).record(false);
            let can = |can: &mut testkit::runtime::Abilities| {
                (can.image_ids, can.image_uid) = (image_ids, REGISTRY_UID);
            };
            builder.abilities(can).start().await
        };
        let runtimes = [
            start("a", ImageIds::Containerd).await,
            start("b", ImageIds::Containerd).await,
            start("o", ImageIds::Crio).await,
        ];
        let backends: Vec<_> = std::iter::zip(BACKENDS, &runtimes).collect();
        let crimux = Crimux::start(&backends).await;
        let client = crimux.client();
        let kubelet = Kubelet { runtime: client.runtime(), images: client.images() };
        let world = Self { runtimes, crimux, kubelet };
        world.all_up().await;
        world
    }

    async fn all_up(&self) {
        for name in BACKENDS {
            self.is(name, 1.0).await;
        }
    }

    async fn is(&self, name: &str, up: f64) {
        let series = format!("crimux_backend_up{{backend=\"{name}\"}}");
        testkit::eventually(SOON, async || self.crimux.metric(&series).await == Some(up)).await;
    }

    /// Starts a backend again once crimux has seen it go: else what follows may meet the end of a connection
    /// that crimux still takes for a good one.
    async fn back(&self, backend: usize) {
        self.is(BACKENDS[backend], 0.0).await;
        self.runtimes[backend].start_again().await;
    }

    /// Plays a case, and returns how many containers it created.
    async fn play(&self, number: usize, case: &Case) -> Result<usize, TestCaseError> {
        let image = |image: usize| format!("registry.example/case-{number}/image-{image}:1");
        for &(backend, reference, uid) in &case.preloaded {
            self.preload(backend, &image(reference), uid, number);
        }
        let mut pods = Vec::new();
        for (place, plan) in case.pods.iter().enumerate() {
            pods.push(self.sandbox(number, place, plan, image(plan.image)).await);
        }
        let (mut down, mut hung) = (BTreeSet::new(), BTreeSet::new());
        let steady = !case.steps.iter().any(|step| matches!(step, Step::Toggle(0) | Step::Hang(0)));
        let played: Result<(), TestCaseError> = async {
            for step in &case.steps {
                match *step {
                    Step::Next(pod) => self.next(pod % pods.len(), &mut pods).await?,
                    Step::Both(one, two) if one % pods.len() != two % pods.len() => {
                        self.both(one % pods.len(), two % pods.len(), &mut pods).await?;
                    }
                    Step::Both(one, _) => self.next(one % pods.len(), &mut pods).await?,
                    Step::KubeletRestarts => pods.iter_mut().for_each(restart),
                    Step::Collect(reference) => self.collect(&image(reference)).await,
                    Step::CollectId(reference, plain) => self.collect_id(&image(reference), plain).await?,
                    // Soon after its start crimux answers from the other stores while the default backend's
                    // is away.
                    Step::Client(_) if !steady => {}
                    Step::Client(reference) => self.ask_as_client(&image(reference), &pods).await?,
                    Step::Hang(backend) if hung.remove(&backend) => self.runtimes[backend].clear_faults(),
                    Step::Hang(backend) => {
                        hung.insert(backend);
                        self.runtimes[backend].fault("ImageStatus", Fault::Hang);
                    }
                    Step::Toggle(backend) if down.remove(&backend) => self.back(backend).await,
                    Step::Toggle(backend) => {
                        down.insert(backend);
                        self.runtimes[backend].refuse_connections().await;
                    }
                }
            }
            Ok(())
        }
        .await;
        // A case that failed leaves nothing behind either: it is played again, smaller.
        for &backend in &down {
            self.back(backend).await;
        }
        for &backend in &hung {
            self.runtimes[backend].clear_faults();
        }
        self.all_up().await;
        let judged = match played {
            Ok(()) => self.finish(case, &mut pods).await.and_then(|()| self.judge_pulls(number, &pods)),
            failed => failed,
        };
        self.clean(&pods).await;
        judged.map(|()| pods.iter().filter(|pod| pod.next == Next::Done).count())
    }

    async fn sandbox(&self, number: usize, place: usize, plan: &Plan, image: String) -> Pod {
        let mut builder = sandbox_config(&format!("pod-{number}-{place}"));
        if plan.distinct {
            builder = builder.annotation("pod", &place.to_string());
        }
        let mut config = builder.build();
        see_again(&mut config);
        let request = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: BACKENDS[plan.backend].into(),
        };
        let reply = self.kubelet.runtime.clone().run_pod_sandbox(request).await.unwrap().into_inner();
        let plan = plan.clone();
        let (sandbox, next) = (reply.pod_sandbox_id, first(plan.policy));
        Pod { image, config, sandbox, known: true, told: None, left: None, next, plan }
    }

    /// Puts an image of that name into a store: the registry's, or an older one with an ID of its own.
    fn preload(&self, backend: usize, image: &str, uid: i64, number: usize) {
        let mut state = self.runtimes[backend].state();
        let id = state.add_image(image);
        if uid == REGISTRY_UID {
            return;
        }
        let mut found = state.images.remove(&id).unwrap();
        let prefix = if BACKENDS[backend] == "o" { "" } else { "sha256:" };
        let last = image.as_bytes()[image.len() - 3];
        found.id = format!("{prefix}{number:032x}{last:016x}{uid:016x}");
        found.uid = Some(cri::Int64Value { value: uid });
        // A digest of its own, or the next pull would take it for the registry's.
        found.repo_digests =
            vec![format!("registry.example/old@sha256:{}", found.id.trim_start_matches("sha256:"))];
        for other in state.images.values_mut() {
            other.repo_tags.retain(|tag| tag != image);
        }
        state.images.insert(found.id.clone(), found);
    }

    async fn next(&self, place: usize, pods: &mut [Pod]) -> Result<(), TestCaseError> {
        pods[place] = self.advance(pods[place].clone()).await?;
        Ok(())
    }

    async fn both(&self, one: usize, two: usize, pods: &mut [Pod]) -> Result<(), TestCaseError> {
        let (first, second) = (pods[one].clone(), pods[two].clone());
        let (first, second) = tokio::join!(self.advance(first), self.advance(second));
        (pods[one], pods[two]) = (first?, second?);
        Ok(())
    }

    /// Makes a pod's next call, judges the answer, and decides as kubelet does.
    async fn advance(&self, mut pod: Pod) -> Result<Pod, TestCaseError> {
        pod.next = match pod.next.clone() {
            Next::Done => Next::Done,
            Next::Inspect => self.inspect(&mut pod).await?,
            Next::Pull => {
                prop_assert!(pod.plan.policy != Policy::Never);
                let pulled = self.kubelet.pull(&pod.image, &pod.config, None).await;
                pod.known = true;
                pulled.map_or(first(pod.plan.policy), Next::Size)
            }
            Next::Size(id) => {
                // kubelet ignores what this says.
                let _ = self.kubelet.image(annotated(&pod.image, &pod.config)).await;
                Next::User(id)
            }
            Next::User(id) => self.user(&pod, id).await?,
            Next::Create(id, uid) => {
                pod.known = true;
                self.create(&pod, &id, uid).await?
            }
        };
        Ok(pod)
    }

    async fn inspect(&self, pod: &mut Pod) -> Result<Next, TestCaseError> {
        let before = self.own(pod);
        let Ok(found) = self.kubelet.image(annotated(&pod.image, &pod.config)).await else {
            return Ok(first(pod.plan.policy));
        };
        if pod.known && before == self.own(pod) {
            let (own, found) = (before.map(|own| own.0), found.as_ref().map(|found| found.id.clone()));
            prop_assert_eq!(own, found, "its own store decides");
        }
        pod.told = found.as_ref().filter(|_| !pod.known).map(|_| Instant::now());
        Ok(match (found, pod.plan.policy) {
            (Some(found), _) => Next::User(found.id),
            (None, Policy::Never) => Next::Inspect,
            (None, _) => Next::Pull,
        })
    }

    async fn user(&self, pod: &Pod, id: String) -> Result<Next, TestCaseError> {
        let before = self.own(pod);
        let Ok(uid) = self.kubelet.uid(&pod.image).await else { return Ok(first(pod.plan.policy)) };
        if let Some((own, expected)) = before.clone().filter(|_| before == self.own(pod)) {
            // If its store has another image by that name now, kubelet mixes them up without crimux too.
            if bare_id(&own) == bare_id(&id) {
                prop_assert_eq!(uid, expected, "the user of {:?}", pod);
            }
        }
        Ok(Next::Create(id, uid))
    }

    async fn create(&self, pod: &Pod, id: &str, uid: i64) -> Result<Next, TestCaseError> {
        let before = self.own(pod);
        let container = container_config("main", "").build();
        let created = self.kubelet.create(&pod.sandbox, &pod.config, container, &pod.image, id).await;
        let Ok(created) = created else { return Ok(first(pod.plan.policy)) };
        for (place, runtime) in self.runtimes.iter().enumerate() {
            let state = runtime.state();
            let Some(container) = state.container(&created) else {
                prop_assert_ne!(place, pod.plan.backend, "it is not where its pod is");
                continue;
            };
            prop_assert_eq!(place, pod.plan.backend);
            prop_assert_eq!(bare_id(&container.image_id), bare_id(id));
            if before.as_ref().is_some_and(|(own, _)| bare_id(own) == bare_id(id)) {
                prop_assert_eq!(Some(uid), before.as_ref().map(|(_, uid)| *uid), "it runs as {:?}", pod);
            }
        }
        Ok(Next::Done)
    }

    /// The image that a pod's own store has by its name: ID and user.
    fn own(&self, pod: &Pod) -> Option<(String, i64)> {
        let state = self.runtimes[pod.plan.backend].state();
        let image = state.image(&pod.image)?;
        Some((image.id.clone(), image.uid.map_or(0, |uid| uid.value)))
    }

    /// Removes an image by an ID: of the stores that list this very ID it is gone, and in all others as
    /// before.
    async fn collect_id(&self, image: &str, plain: bool) -> Result<(), TestCaseError> {
        let lists = || {
            self.runtimes.each_ref().map(|runtime| {
                let state = runtime.state();
                state.images.keys().cloned().collect::<BTreeSet<_>>()
            })
        };
        let before = lists();
        let of_image = |runtime: &SimRuntime| runtime.state().image(image).map(|image| image.id.clone());
        let Some(id) =
            self.runtimes.iter().filter_map(of_image).find(|id| id.starts_with("sha256:") != plain)
        else {
            return Ok(());
        };
        self.collect(&id).await;
        for (before, after) in std::iter::zip(&before, &lists()) {
            let gone: Vec<_> = before.difference(after).collect();
            prop_assert!(gone.is_empty() || gone == [&id], "{id} was removed, and {gone:?} is gone");
        }
        Ok(())
    }

    /// What a client that names no pod is told while no pod is starting this image is what the default
    /// backend has, or nothing while that is not certain.
    async fn ask_as_client(&self, image: &str, pods: &[Pod]) -> Result<(), TestCaseError> {
        let is_left = |pod: &Pod| pod.left.is_some_and(|told| told.elapsed() < LONGEST_START);
        let is_starting = |pod: &Pod| pod.image == image && (pod.next != Next::Done || is_left(pod));
        let own = || self.runtimes[0].state().image(image).map(|image| image.id.clone());
        let (before, asked) = (own(), self.kubelet.image(crate::kubelet::bare(image)).await);
        if let Ok(found) = asked
            && !pods.iter().any(is_starting)
            && before == own()
        {
            let found = found.map(|image| bare_id(&image.id).to_owned());
            prop_assert_eq!(found, before.map(|id| bare_id(&id).to_owned()), "the default backend's");
        }
        Ok(())
    }

    async fn collect(&self, image: &str) {
        let request = cri::RemoveImageRequest { image: Some(crate::kubelet::bare(image)) };
        // It is refused while an owner is down.
        let _ = self.kubelet.images.clone().remove_image(request).await;
    }

    /// With everything in order again every pod starts, unless its image cannot be had or is another one
    /// elsewhere: pods of such names may have to wait for each other.
    async fn finish(&self, case: &Case, pods: &mut [Pod]) -> Result<(), TestCaseError> {
        for _ in 0..3 {
            for place in 0..pods.len() {
                for _ in 0..6 {
                    self.next(place, pods).await?;
                }
            }
        }
        let collected = |image| {
            case.steps
                .iter()
                .any(|step| matches!(step, Step::Collect(one) | Step::CollectId(one, _) if *one == image))
        };
        let same =
            |image| case.preloaded.iter().all(|&(_, other, uid)| other != image || uid == REGISTRY_UID);
        for pod in pods.iter().filter(|pod| pod.plan.policy != Policy::Never) {
            let simple = same(pod.plan.image) && !collected(pod.plan.image);
            prop_assert!(!simple || pod.next == Next::Done, "it never started: {:?}", pod);
        }
        for pod in pods.iter().filter(|pod| pod.plan.policy == Policy::Never && pod.known) {
            let simple = same(pod.plan.image) && !collected(pod.plan.image) && self.own(pod).is_some();
            prop_assert!(!simple || pod.next == Next::Done, "it never started: {:?}", pod);
        }
        Ok(())
    }

    /// Every pull was some pod's, on its own backend, and no pod of Never pulled.
    fn judge_pulls(&self, number: usize, pods: &[Pod]) -> Result<(), TestCaseError> {
        let ours = format!("uid-pod-{number}-");
        for (backend, runtime) in self.runtimes.iter().enumerate() {
            for pull in &runtime.state().pulls {
                let uid = pull.sandbox_config.clone().unwrap().metadata.unwrap().uid;
                let Some(place) = uid.strip_prefix(&ours) else { continue };
                let pod = &pods[place.parse::<usize>().unwrap()];
                prop_assert_eq!(pod.plan.backend, backend, "credentials reached another backend: {:?}", pod);
                prop_assert!(pod.plan.policy != Policy::Never, "{:?}", pod);
            }
        }
        Ok(())
    }

    /// Removes the pods, so that those of the next case are not taken for them.
    async fn clean(&self, pods: &[Pod]) {
        for pod in pods {
            let pod_sandbox_id = pod.sandbox.clone();
            let request = cri::RemovePodSandboxRequest { pod_sandbox_id };
            self.kubelet.runtime.clone().remove_pod_sandbox(request).await.unwrap();
        }
    }
}

fn first(policy: Policy) -> Next {
    if policy == Policy::Always { Next::Pull } else { Next::Inspect }
}

fn restart(pod: &mut Pod) {
    see_again(&mut pod.config);
    let told = pod.told.take().filter(|_| !pod.known);
    (pod.known, pod.left) = (false, told.or(pod.left));
    if pod.next != Next::Done {
        pod.next = first(pod.plan.policy);
    }
}

fn bare_id(id: &str) -> &str {
    id.trim_start_matches("sha256:")
}
