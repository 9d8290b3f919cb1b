//! Random lives of a node: edits of the file, restarts, outages, slow lists, runtimes that move, creations,
//! removals and objects declared lost, against a model that knows where each acknowledged object is.
//!
//! After every step each list that is OK has every acknowledged object exactly once, and every call about one
//! is answered or Unavailable: none is denied, and none is OK unless it is true at the runtime.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nix::sys::signal::Signal;
use testkit::client::{container_config, sandbox_config};
use testkit::runtime::{Fault, SimRuntime};
use testkit::{cri, eventually};
use tonic::{Code, Status};

use super::{listed, pods, reload, status, stop};
use crate::cli::on;
use crate::support::{Crimux, SOON, config};

/// How long a slow list takes: longer than crimux waits for it.
const SLOW: Duration = Duration::from_millis(1500);
const LIST_CONTAINERS: &str = "/runtime.v1.RuntimeService/ListContainers";
const IMAGE: &str = "registry.example/app:1";

/// The names that backends have in the file, at one time or another.
const NAMES: [&str; 4] = ["w", "x", "y", "z"];
const RUNTIMES: usize = 3;

/// The runtime that each name in the file means.
type File = BTreeMap<&'static str, usize>;

struct Life {
    random: fastrand::Rng,
    runtimes: [SimRuntime; RUNTIMES],
    down: [bool; RUNTIMES],
    /// Whose lists take [`SLOW`].
    slow: [bool; RUNTIMES],
    file: File,
    crimux: Crimux,
    /// The runtime of each sandbox that was acknowledged.
    pods: BTreeMap<String, usize>,
    /// The sandbox of each container that was acknowledged.
    containers: BTreeMap<String, String>,
    /// What may be listed or not: declared lost, or created or removed by a call that failed.
    loose: BTreeSet<String>,
    /// Whether something of which only crimux knew may be gone: declared lost, or left by its runtime.
    is_edited_at_end: bool,
    story: Vec<String>,
}

impl Life {
    async fn begin(seed: u64) -> Self {
        let runtimes = [
            SimRuntime::builder("a").start().await,
            SimRuntime::builder("b").start().await,
            SimRuntime::builder("c").start().await,
        ];
        let file = BTreeMap::from([("w", 0), ("x", 1)]);
        let dir = tempfile::tempdir().unwrap();
        let yaml = yaml(&dir, &file, &runtimes);
        let crimux = Crimux::start_in(dir, &yaml);
        crimux.wait_ready().await;
        Self {
            random: fastrand::Rng::with_seed(seed),
            story: vec![format!("seed {seed}: {file:?}")],
            runtimes,
            down: [false; RUNTIMES],
            slow: [false; RUNTIMES],
            file,
            crimux,
            pods: BTreeMap::new(),
            containers: BTreeMap::new(),
            loose: BTreeSet::new(),
            is_edited_at_end: false,
        }
    }

    async fn step(&mut self, step: usize) {
        match self.random.usize(..16) {
            0..=4 => self.edit(step).await,
            5 => self.toggle().await,
            6 => self.slow(),
            7 => self.move_runtime(step).await,
            8 => self.forget().await,
            9 => Box::pin(self.lose_a_reply(step)).await,
            10 if !self.pods.is_empty() => self.remove_pod().await,
            11 if !self.containers.is_empty() => self.remove_container().await,
            12 if !self.pods.is_empty() => self.stop_pod().await,
            13 | 14 if !self.pods.is_empty() => Box::pin(self.create_container(step)).await,
            _ => self.create_pod(&format!("p{step}")).await,
        }
        self.judge().await;
    }

    // What an operator does.

    /// Changes the file by a reload, a restart, a kill, or a kill while it is reloaded; half of the time
    /// while a sandbox is created.
    async fn edit(&mut self, step: usize) {
        let name = *self.random.choice(self.file.keys()).unwrap();
        let under_way = self.random.bool().then(|| {
            let mut runtime = self.crimux.client().runtime();
            let pod = sandbox_config(&format!("q{step}")).run(name);
            tokio::spawn(async move { runtime.run_pod_sandbox(pod).await })
        });
        self.file = self.random_file();
        let text = yaml(&self.crimux.dir, &self.file, &self.runtimes);
        self.crimux.rewrite(&text);
        let how = self.random.usize(..6);
        match how {
            0 => self.crimux.restart().await,
            1 => self.crimux.kill_and_start().await,
            2 => {
                self.crimux.signal(Signal::SIGHUP);
                for _ in 0..self.random.usize(..4) {
                    self.crimux.get("/healthz").await;
                }
                self.crimux.kill_and_start().await;
            }
            3 => {
                // Two more while it is under way.
                self.crimux.signal(Signal::SIGHUP);
                self.crimux.rewrite(&text);
                drop(reload(&self.crimux, &text).await);
            }
            _ => drop(reload(&self.crimux, &text).await),
        }
        self.story.push(format!("{:?} by {how}", self.file));
        if let Some(under_way) = under_way {
            let made = under_way.await.unwrap().map(|reply| reply.into_inner().pod_sandbox_id);
            self.record_pod(made, name);
        }
    }

    fn random_file(&mut self) -> File {
        let mut order: Vec<usize> = (0..RUNTIMES).collect();
        self.random.shuffle(&mut order);
        let kept = &order[..self.random.usize(1..=RUNTIMES)];
        let mut file: File = kept.iter().map(|at| (*self.random.choice(&NAMES).unwrap(), *at)).collect();
        if self.random.usize(..8) == 0 {
            // Two names for one runtime, which is a mistake.
            let at = *file.values().next().unwrap();
            file.entry("again").or_insert(at);
        }
        file
    }

    /// Declares what is on a backend that is down lost, or one pod of it.
    async fn forget(&mut self) {
        let lost = self.file.iter().find(|(_, at)| self.down[**at]);
        let Some((name, at)) = lost.map(|(name, at)| (*name, *at)) else { return };
        let pod = self.pods.iter().find(|(_, of)| **of == at).map(|(id, _)| id.clone());
        let pod = pod.filter(|_| self.random.bool());
        let mut words = vec!["backend", "forget", name, "--yes"];
        words.extend(pod.iter().flat_map(|id| ["--pod", id]));
        let (code, out, err) = on(&self.crimux, &words, "").await;
        self.story.push(format!("forget {name} at {at} {pod:?}: {code} {out}{err}"));
        if code == 0 {
            let ids: Vec<_> =
                self.pods.iter().filter(|(_, of)| **of == at).map(|(id, _)| id.clone()).collect();
            let ids = ids.into_iter().filter(|id| pod.as_ref().is_none_or(|pod| pod == id));
            ids.collect::<Vec<_>>().iter().for_each(|id| self.loosen(id));
            self.is_edited_at_end = true;
        }
    }

    // What happens to runtimes.

    async fn toggle(&mut self) {
        let at = self.random.usize(..RUNTIMES);
        if self.down[at] {
            self.runtimes[at].start_again().await;
        } else {
            self.runtimes[at].stop().await;
        }
        self.down[at] = !self.down[at];
        self.story.push(format!("runtime {at} is {}", if self.down[at] { "down" } else { "up" }));
    }

    fn slow(&mut self) {
        let at = self.random.usize(..RUNTIMES);
        self.slow[at] = !self.slow[at];
        self.runtimes[at].clear_faults();
        for list in ["ListPodSandbox", "ListContainers"].into_iter().filter(|_| self.slow[at]) {
            self.runtimes[at].fault(list, Fault::Delay(SLOW));
        }
        let how = if self.slow[at] { "slow" } else { "prompt" };
        self.story.push(format!("lists of runtime {at} are {how}"));
    }

    /// A runtime with all that it has answers at another socket; half of the time the file says so at once.
    async fn move_runtime(&mut self, step: usize) {
        let at = self.random.usize(..RUNTIMES);
        let path = self.runtimes[at].socket().with_extension(format!("moved-{step}"));
        self.runtimes[at].move_to(path).await;
        self.down[at] = false;
        self.is_edited_at_end = true;
        self.story.push(format!("runtime {at} moved"));
        if self.random.bool() {
            let text = yaml(&self.crimux.dir, &self.file, &self.runtimes);
            reload(&self.crimux, &text).await;
            self.story.push("the file follows".to_owned());
        }
    }

    /// The next creation or removal at a runtime is done, and its reply is lost.
    async fn lose_a_reply(&mut self, step: usize) {
        let method = *self.random.choice(&["RunPodSandbox", "RemovePodSandbox", "CreateContainer"]).unwrap();
        self.story.push(format!("the next reply to {method} is lost"));
        self.runtimes.iter().for_each(|runtime| runtime.fault_next(method, 1, Fault::LoseReply));
        match method {
            "RemovePodSandbox" if !self.pods.is_empty() => self.remove_pod().await,
            "CreateContainer" if !self.pods.is_empty() => Box::pin(self.create_container(step)).await,
            _ => self.create_pod(&format!("p{step}")).await,
        }
        self.runtimes.iter().for_each(|runtime| runtime.clear_fault(method));
    }

    // What kubelet does.

    async fn create_pod(&mut self, pod: &str) {
        let name = *self.random.choice(self.file.keys()).unwrap();
        let made = self.crimux.client().runtime().run_pod_sandbox(sandbox_config(pod).run(name)).await;
        self.record_pod(made.map(|reply| reply.into_inner().pod_sandbox_id), name);
    }

    fn record_pod(&mut self, made: Result<String, Status>, name: &str) {
        match made {
            Ok(id) => {
                let at = self.runtimes.iter().position(|runtime| pods(runtime).contains(&id)).unwrap();
                self.story.push(format!("{} on {at} by {name}", &id[..8]));
                self.pods.insert(id, at);
            }
            Err(status) => {
                self.story.push(format!("no pod by {name}: {:?}", status.code()));
                self.loosen_unknown();
            }
        }
    }

    async fn create_container(&mut self, step: usize) {
        let (pod, at) = self.random_pod();
        let sandbox = {
            let mut state = self.runtimes[at].state();
            state.add_image(IMAGE);
            state.sandbox(&pod).expect("it is there").config.clone()
        };
        let request = container_config(&format!("c{step}"), IMAGE).create_in(&pod, &sandbox);
        match self.crimux.client().runtime().create_container(request).await {
            Ok(reply) => {
                let id = reply.into_inner().container_id;
                self.story.push(format!("container {} in {} on {at}", &id[..8], &pod[..8]));
                assert!(self.runtimes[at].state().container(&id).is_some(), "{}", self.told());
                self.containers.insert(id, pod);
            }
            Err(status) => {
                self.story.push(format!("no container in {}: {status:?}", &pod[..8]));
                assert_ne!(status.code(), Code::NotFound, "{}", self.told());
                self.loosen_unknown();
            }
        }
    }

    async fn remove_pod(&mut self) {
        let (id, at) = self.random_pod();
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.clone() };
        let removed = self.crimux.client().runtime().remove_pod_sandbox(request).await;
        let code = removed.as_ref().err().map(Status::code);
        self.story.push(format!("removal of {} of {at}: {code:?}", &id[..8]));
        let is_gone = !pods(&self.runtimes[at]).contains(&id);
        match removed {
            Ok(_) => {
                assert!(is_gone, "a false OK: {}", self.told());
                self.pods.remove(&id);
                self.containers.retain(|_, pod| *pod != id);
            }
            Err(status) => {
                assert_ne!(status.code(), Code::NotFound, "{}", self.told());
                if is_gone {
                    self.loosen(&id);
                }
            }
        }
    }

    async fn remove_container(&mut self) {
        let (id, pod) =
            self.random.choice(self.containers.iter()).map(|(id, pod)| (id.clone(), pod)).unwrap();
        let at = self.pods[pod];
        let request = cri::RemoveContainerRequest { container_id: id.clone() };
        let removed = self.crimux.client().runtime().remove_container(request).await;
        let code = removed.as_ref().err().map(Status::code);
        self.story.push(format!("removal of container {} of {at}: {code:?}", &id[..8]));
        assert_ne!(code, Some(Code::NotFound), "{}", self.told());
        if removed.is_ok() {
            let is_gone = self.runtimes[at].state().container(&id).is_none();
            assert!(is_gone, "a false OK: {}", self.told());
            self.containers.remove(&id);
        }
    }

    /// A stop that is OK is true at the runtime of its pod, and none reaches another.
    async fn stop_pod(&mut self) {
        let (id, at) = self.random_pod();
        self.story.push(format!("stop of {} of {at}", &id[..8]));
        let calls = || self.runtimes.each_ref().map(|runtime| runtime.calls("StopPodSandbox").len());
        let before = calls();
        let code = stop(&self.crimux, &id).await;
        let mut expected = before;
        expected[at] += usize::from(code == Code::Ok);
        assert!(matches!(code, Code::Ok | Code::Unavailable), "{code:?}: {}", self.told());
        assert_eq!(calls(), expected, "{code:?}: {}", self.told());
        let is_ready = self.runtimes[at].state().sandbox(&id).expect("it is there").ready;
        assert!(code != Code::Ok || !is_ready, "a false OK: {}", self.told());
    }

    // The model.

    fn random_pod(&mut self) -> (String, usize) {
        self.random.choice(self.pods.iter()).map(|(id, at)| (id.clone(), *at)).unwrap()
    }

    /// Lets a pod and its containers be listed or not.
    fn loosen(&mut self, pod: &str) {
        self.pods.remove(pod);
        self.loose.insert(pod.to_owned());
        let all = std::mem::take(&mut self.containers);
        let (of_pod, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.into_iter().partition(|(_, of)| of == pod);
        self.containers = others;
        self.loose.extend(of_pod.into_keys());
    }

    /// Lets be listed or not what a call that failed may have created.
    fn loosen_unknown(&mut self) {
        for id in self.runtimes.iter().flat_map(all_ids) {
            if !self.pods.contains_key(&id) && !self.containers.contains_key(&id) {
                self.loose.insert(id);
            }
        }
    }

    fn told(&self) -> String {
        format!("{:#?}\n{}", self.story, self.crimux.log())
    }

    /// What is listed is every object, once, and no call for one is denied.
    async fn judge(&self) {
        let crimux = &self.crimux;
        eventually(SOON, async || crimux.socket().exists() && crimux.get("/healthz").await.is_some()).await;
        let sandboxes = self.pods.keys().collect::<Vec<_>>();
        let containers = self.containers.keys().collect::<Vec<_>>();
        for (list, expected) in
            [(listed(crimux).await, sandboxes), (listed_containers(crimux).await, containers)]
        {
            let Ok(list) = list else { continue };
            assert!(list.is_sorted_by(|a, b| a < b), "one is listed twice: {list:?}: {}", self.told());
            let known: Vec<_> = list.iter().filter(|id| !self.loose.contains(*id)).collect();
            assert_eq!(known, expected, "{}", self.told());
        }
        for (id, at) in &self.pods {
            let code = status(crimux, id).await;
            let right = matches!(code, Code::Unavailable | Code::Ok);
            assert!(right, "{code:?} for {} on {at}: {}", &id[..8], self.told());
        }
        for id in self.containers.keys() {
            let code = container_status(crimux, id).await;
            let right = matches!(code, Code::Unavailable | Code::Ok);
            assert!(right, "{code:?} for container {}: {}", &id[..8], self.told());
        }
    }

    /// With every runtime up again every object is listed and reached.
    async fn end(mut self) {
        self.runtimes.iter().for_each(SimRuntime::clear_faults);
        for at in (0..RUNTIMES).filter(|at| self.down[*at]) {
            self.runtimes[at].start_again().await;
        }
        if self.is_edited_at_end {
            self.file = std::iter::zip(NAMES, 0..RUNTIMES).collect();
            let text = yaml(&self.crimux.dir, &self.file, &self.runtimes);
            reload(&self.crimux, &text).await;
            self.story.push(format!("at the end {:?}", self.file));
        }
        // A runtime that is in no file is not listed, but for what it was given through crimux; what may be
        // listed or not is, at the latest now, if the file names every runtime.
        let there: BTreeSet<_> = self.runtimes.iter().flat_map(all_ids).collect();
        let is_expected =
            |id: &String| there.contains(id) && (self.is_edited_at_end || !self.loose.contains(id));
        let mut list = Vec::new();
        let mut whole = false;
        for _ in 0..2000 {
            let (Ok(pods), Ok(containers)) =
                (listed(&self.crimux).await, listed_containers(&self.crimux).await)
            else {
                self.forget_unheard().await;
                continue;
            };
            list = [pods, containers].concat();
            let expected: Vec<_> = there.iter().filter(|id| is_expected(id)).collect();
            whole = expected.iter().all(|id| list.contains(id))
                && list.iter().all(|id| there.contains(id) || self.loose.contains(id));
            if whole {
                break;
            }
        }
        assert!(whole, "{list:#?}\nis not\n{there:#?}\nless\n{:#?}: {}", self.loose, self.told());
        for id in self.pods.keys() {
            let reached = eventually(4 * SOON, async || status(&self.crimux, id).await == Code::Ok);
            let reached = tokio::time::timeout(2 * SOON, reached).await;
            assert!(reached.is_ok(), "{} is not reached: {}", &id[..8], self.told());
        }
    }
}

impl Life {
    /// Gives up what was removed before it was ever listed, as the error says.
    async fn forget_unheard(&self) {
        let Some((_, text)) = self.crimux.get("/v1/status").await else { return };
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        for backend in status["backends"].as_array().unwrap() {
            if backend["configured"] == false && self.is_edited_at_end {
                let name = backend["name"].as_str().unwrap();
                on(&self.crimux, &["backend", "forget", name, "--yes"], "").await;
            }
        }
    }
}

fn yaml(dir: &tempfile::TempDir, file: &File, runtimes: &[SimRuntime; RUNTIMES]) -> String {
    let backends: Vec<_> = file.iter().map(|(name, at)| (*name, &runtimes[*at])).collect();
    config(dir, &backends, "")
}

/// Returns the IDs of all sandboxes and containers of a runtime.
fn all_ids(runtime: &SimRuntime) -> Vec<String> {
    let state = runtime.state();
    let containers = state.containers().map(|container| container.id.clone());
    state.sandboxes().map(|sandbox| sandbox.id.clone()).chain(containers).collect()
}

async fn listed_containers(crimux: &Crimux) -> Result<Vec<String>, Code> {
    let reply = crimux.client().raw(LIST_CONTAINERS, &[], "").await.unwrap();
    if reply.code() != Code::Ok {
        return Err(reply.code());
    }
    let items = reply.decode::<cri::ListContainersResponse>().containers;
    let mut ids: Vec<_> = items.into_iter().map(|item| item.id).collect();
    ids.sort();
    Ok(ids)
}

async fn container_status(crimux: &Crimux, id: &str) -> Code {
    let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    let reply = crimux.client().runtime().container_status(request).await;
    reply.map_or_else(|status| status.code(), |_| Code::Ok)
}

/// `CRIMUX_IDENTITY_LIVES` and `CRIMUX_IDENTITY_SEED` make it longer, or one life again (`dev/identity`).
#[tokio::test]
async fn whatever_is_edited_restarted_and_lost_every_object_is_listed_once_and_called_where_it_is() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (lives, seed) =
        (number("CRIMUX_IDENTITY_LIVES").unwrap_or(6), number("CRIMUX_IDENTITY_SEED").unwrap_or(1));
    for seed in seed..seed + lives {
        let mut life = Life::begin(seed).await;
        for step in 0..16 {
            Box::pin(life.step(step)).await;
        }
        life.end().await;
    }
}
