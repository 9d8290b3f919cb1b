//! A backend is what answers, not what it is called: edits of the file while pods run.

use std::collections::BTreeMap;
use std::time::Duration;

use testkit::client::sandbox_config;
use testkit::runtime::{Fault, SimRuntime};
use testkit::{cri, eventually};
use tonic::Code;

use crate::cli::{check, on};
use crate::support::{Crimux, SOON, config};

/// How long a slow list takes: longer than crimux waits for it.
const SLOW: Duration = Duration::from_millis(1500);
const LIST: &str = "/runtime.v1.RuntimeService/ListPodSandbox";

/// Returns the IDs of all sandboxes, in order; the code if the list is refused.
async fn listed(crimux: &Crimux) -> Result<Vec<String>, Code> {
    let reply = crimux.client().raw(LIST, &[], "").await.unwrap();
    if reply.code() != Code::Ok {
        return Err(reply.code());
    }
    let items = reply.decode::<cri::ListPodSandboxResponse>().items;
    let mut ids: Vec<_> = items.into_iter().map(|item| item.id).collect();
    ids.sort();
    Ok(ids)
}

async fn status(crimux: &Crimux, id: &str) -> Code {
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
    crimux
        .client()
        .runtime()
        .pod_sandbox_status(request)
        .await
        .map_or_else(|status| status.code(), |_| Code::Ok)
}

async fn stop(crimux: &Crimux, id: &str) -> Code {
    let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
    crimux
        .client()
        .runtime()
        .stop_pod_sandbox(request)
        .await
        .map_or_else(|status| status.code(), |_| Code::Ok)
}

fn pods(runtime: &SimRuntime) -> Vec<String> {
    let mut ids: Vec<_> = runtime.state().sandboxes().map(|sandbox| sandbox.id.clone()).collect();
    ids.sort();
    ids
}

/// Applies another configuration and returns the report.
async fn reload(crimux: &Crimux, yaml: &str) -> String {
    crimux.rewrite(yaml);
    let (code, out, err) = on(crimux, &["reload"], "").await;
    assert_eq!(code, 0, "{out}{err}");
    out
}

async fn two() -> (SimRuntime, SimRuntime) {
    let a = SimRuntime::builder("a").containers(2, 1).start().await;
    let b = SimRuntime::builder("b").containers(1, 1).start().await;
    (a, b)
}

#[tokio::test]
async fn a_renamed_backend_keeps_its_pods_and_each_is_listed_once_by_reload_and_by_restart() {
    let (a, b) = two().await;
    let mut crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let all = listed(&crimux).await.unwrap();
    assert_eq!(all.len(), 3);
    let plan = {
        crimux.rewrite(&config(&crimux.dir, &[("main", &a), ("b", &b)], ""));
        let (code, out, _) = on(
            &crimux,
            &["reload", "--dry-run", "--config", crimux.dir.path().join("crimux.yaml").to_str().unwrap()],
            "",
        )
        .await;
        assert_eq!(code, 0, "{out}");
        out
    };
    // The file is watched, so the reload may have been made before it was asked about.
    assert!(plan.is_empty() || plan.contains("backend a → main: renamed, 2 pods stay with it"), "{plan}");
    reload(&crimux, &config(&crimux.dir, &[("main", &a), ("b", &b)], "")).await;
    assert_eq!(listed(&crimux).await, Ok(all.clone()));
    for id in &all {
        assert_eq!(status(&crimux, id).await, Code::Ok);
    }
    crimux.rewrite(&config(&crimux.dir, &[("b2", &b), ("main", &a)], ""));
    crimux.restart().await;
    crimux.wait_ready().await;
    assert_eq!(listed(&crimux).await, Ok(all));
    assert!(crimux.metric("crimux_backend_up{backend=\"b\"}").await.is_none());
}

#[tokio::test]
async fn endpoints_that_are_swapped_take_their_pods_along_from_the_next_call_on() {
    let (a, b) = two().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let (of_a, of_b) = (pods(&a), pods(&b));
    reload(&crimux, &config(&crimux.dir, &[("a", &b), ("b", &a)], "")).await;
    for id in of_a.iter().chain(&of_b) {
        assert_eq!(status(&crimux, id).await, Code::Ok);
    }
    assert_eq!(stop(&crimux, &of_b[0]).await, Code::Ok);
    assert_eq!(b.calls("StopPodSandbox").len(), 1);
    assert_eq!(a.calls("StopPodSandbox").len(), 0);
    let made = crimux.client().runtime().run_pod_sandbox(sandbox_config("n").run("a")).await.unwrap();
    assert!(pods(&b).contains(&made.into_inner().pod_sandbox_id), "the name is a label");
}

#[tokio::test]
async fn a_name_given_to_another_runtime_leaves_the_pods_of_the_old_one_listed_and_served() {
    let (a, b) = two().await;
    let g = SimRuntime::builder("g").start().await;
    let mut crimux = Crimux::start(&[("main", &a), ("b", &b)]).await;
    let all = listed(&crimux).await.unwrap();
    let of_a = pods(&a);
    reload(&crimux, &config(&crimux.dir, &[("main", &g), ("b", &b)], "")).await;
    assert_eq!(listed(&crimux).await, Ok(all.clone()));
    assert_eq!(status(&crimux, &of_a[0]).await, Code::Ok);
    // A new pod goes to the new runtime once that has been listed.
    eventually(SOON, async || {
        crimux.client().runtime().run_pod_sandbox(sandbox_config("n").run("main")).await.is_ok()
    })
    .await;
    assert_eq!(pods(&g).len(), 1);
    let mut all = [all, pods(&g)].concat();
    all.sort();
    a.stop().await;
    for killed in [false, true] {
        if killed {
            crimux.kill_and_start().await;
            crimux.wait_ready().await;
        }
        assert_eq!(listed(&crimux).await, Ok(all.clone()), "killed: {killed}");
        assert_eq!(status(&crimux, &of_a[1]).await, Code::Unavailable);
        assert_eq!(stop(&crimux, &of_a[0]).await, Code::Unavailable, "never a false OK");
    }
    // Taken back under another name.
    a.start_again().await;
    reload(&crimux, &config(&crimux.dir, &[("main", &g), ("b", &b), ("old", &a)], "")).await;
    eventually(SOON, async || status(&crimux, &of_a[0]).await == Code::Ok).await;
    assert_eq!(listed(&crimux).await, Ok(all));
}

#[tokio::test]
async fn a_name_given_to_another_runtime_while_crimux_is_down_leaves_no_pod_behind() {
    let (a, b) = two().await;
    let g = SimRuntime::builder("g").start().await;
    let mut crimux = Crimux::start(&[("main", &a), ("b", &b)]).await;
    let all = listed(&crimux).await.unwrap();
    let made = crimux.client().runtime().run_pod_sandbox(sandbox_config("n").run("main")).await.unwrap();
    let mut all = [all, vec![made.into_inner().pod_sandbox_id]].concat();
    all.sort();
    let given = config(&crimux.dir, &[("main", &g), ("b", &b)], "");
    crimux.kill_and_start_with(&given).await;
    crimux.wait_ready().await;
    for _ in 0..3 {
        assert_eq!(listed(&crimux).await, Ok(all.clone()), "{}", crimux.log());
    }
    for id in &all {
        eventually(SOON, async || status(&crimux, id).await == Code::Ok).await;
    }
    eventually(SOON, async || crimux.log().contains("another runtime")).await;
    assert_eq!(listed(&crimux).await, Ok(all));
}

#[tokio::test]
async fn a_runtime_that_moved_to_another_socket_is_the_same_once_it_lists_what_it_had() {
    let (a, b) = two().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let all = listed(&crimux).await.unwrap();
    // The same runtime at a path that nothing tells to be the same: a hard link.
    let other = a.socket().with_extension("other");
    std::fs::hard_link(a.socket(), &other).unwrap();
    let yaml = config(&crimux.dir, &[("a", &a), ("b", &b)], "");
    let moved = yaml.replace(&a.endpoint(), &format!("unix://{}", other.display()));
    let said = reload(&crimux, &moved).await;
    assert!(said.is_empty() || said.contains("moved") || said.contains("as it is"), "{said}");
    for _ in 0..3 {
        assert_eq!(listed(&crimux).await, Ok(all.clone()));
    }
    eventually(SOON, async || crimux.log().contains("it lists what it listed before")).await;
    assert_eq!(listed(&crimux).await, Ok(all.clone()));
    let (_, text) = crimux.get("/v1/status").await.unwrap();
    assert!(!text.contains("a@"), "{text}");
    assert_eq!(status(&crimux, &all[0]).await, Code::Ok);
}

#[tokio::test]
async fn a_removed_backend_outlives_restarts_until_it_owns_nothing() {
    let (a, b) = two().await;
    let mut crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let all = listed(&crimux).await.unwrap();
    let of_b = pods(&b);
    let said = reload(&crimux, &config(&crimux.dir, &[("a", &a)], "")).await;
    assert!(
        said.is_empty()
            || said.contains("backend b: removed, 1 pod stays until it ends")
            || said.contains("as it is"),
        "{said}"
    );
    assert_eq!(crimux.metric("crimux_backend_configured{backend=\"a\"}").await, Some(1.0));
    b.stop().await;
    crimux.restart().await;
    crimux.wait_ready().await;
    assert_eq!(crimux.metric("crimux_backend_configured{backend=\"b\"}").await, Some(0.0));
    assert!(crimux.log().contains("not configured; kept until it owns nothing"), "{}", crimux.log());
    let (_, said, _) = check(&crimux.dir.path().join("crimux.yaml"), &[], "").await;
    assert!(said.contains("b: not configured, 1 pod on it"), "{said}");
    assert_eq!(listed(&crimux).await, Ok(all.clone()));
    assert_eq!(stop(&crimux, &of_b[0]).await, Code::Unavailable);
    let (_, text) = crimux.get("/v1/status").await.unwrap();
    assert!(text.contains("\"configured\":false"), "{text}");
    b.start_again().await;
    eventually(SOON, async || stop(&crimux, &of_b[0]).await == Code::Ok).await;
    let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: of_b[0].clone() };
    crimux.client().runtime().remove_pod_sandbox(remove).await.unwrap();
    assert_eq!(listed(&crimux).await.unwrap().len(), 2);
    eventually(3 * SOON, async || crimux.log().contains("owns nothing any more and is gone")).await;
}

#[tokio::test]
async fn two_names_for_one_runtime_list_each_pod_once_and_are_named_in_one_line() {
    let a = SimRuntime::builder("a").containers(3, 1).start().await;
    let crimux = Crimux::start(&[("a", &a)]).await;
    let all = listed(&crimux).await.unwrap();
    let yaml = config(&crimux.dir, &[("a", &a), ("again", &a)], "");
    let (code, out, _) = {
        let path = crimux.dir.path().join("twice.yaml");
        std::fs::write(&path, &yaml).unwrap();
        check(&path, &[], "").await
    };
    assert_eq!(code, 0);
    assert!(out.contains("backends.a has the same endpoint"), "{out}");
    reload(&crimux, &yaml).await;
    let both = "crimux_backend_state{backend=\"again\",state=\"ready\"}";
    eventually(SOON, async || crimux.metric(both).await == Some(1.0)).await;
    for _ in 0..5 {
        assert_eq!(listed(&crimux).await, Ok(all.clone()));
    }
    eventually(SOON, async || crimux.log().contains("two backends list the same IDs")).await;
    assert_eq!(crimux.log().matches("two backends list the same IDs").count(), 1);
    assert_eq!(crimux.metric("crimux_id_conflicts_total").await, Some(6.0), "each ID is counted once");
    assert_eq!(
        crimux.metric("crimux_foreign_ids{backend=\"again\"}").await,
        Some(6.0),
        "as long as it lasts"
    );
    let (_, status) = crimux.get("/v1/status").await.unwrap();
    assert!(status.contains("again lists 6 IDs that another backend owns"), "{status}");
}

#[tokio::test]
async fn a_second_crimux_on_one_state_dir_is_refused_by_naming_the_first() {
    let a = SimRuntime::builder("a").start().await;
    let crimux = Crimux::start(&[("a", &a)]).await;
    let dir = tempfile::tempdir().unwrap();
    let own = config(&dir, &[("a", &a)], "");
    let state = |dir: &tempfile::TempDir| format!("state_dir: {}/state", dir.path().display());
    let mut second = Crimux::start_in(dir, &own);
    // With a directory of its own it runs; with the first one's it does not.
    second.wait_ready().await;
    let yaml = own.replace(&state(&second.dir), &state(&crimux.dir));
    second.rewrite(&yaml);
    second.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(second.ended().await, Some(0));
    let mut third = Crimux::start_in(std::mem::replace(&mut second.dir, tempfile::tempdir().unwrap()), &yaml);
    assert_eq!(third.ended().await, Some(1));
    let pid = format!("pid {}", crimux.pid());
    assert!(third.log().contains("is in use by") && third.log().contains(&pid), "{}", third.log());
    assert_eq!(listed(&crimux).await, Ok(vec![]));
}

#[tokio::test]
async fn one_pod_of_a_lost_backend_can_be_forgotten() {
    let (a, b) = two().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let of_a = pods(&a);
    let (code, _, err) = on(&crimux, &["backend", "forget", "a", "--pod", &of_a[0], "--yes"], "").await;
    assert_eq!(code, 1, "it is up");
    assert!(err.contains("is up"), "{err}");
    a.stop().await;
    eventually(SOON, async || crimux.metric("crimux_backend_up{backend=\"a\"}").await == Some(0.0)).await;
    let (code, out, err) =
        on(&crimux, &["backend", "forget", "a", "--pod", &of_a[0][..20], "--yes"], "").await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains(&of_a[0]), "{out}");
    let left = listed(&crimux).await.unwrap();
    assert!(!left.contains(&of_a[0]) && left.contains(&of_a[1]), "{left:?}");
}

#[tokio::test]
async fn a_question_about_what_was_just_removed_is_for_its_owner_alone() {
    let (a, b) = two().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    listed(&crimux).await.unwrap();
    let id = pods(&a)[0].clone();
    let mut runtime = crimux.client().runtime();
    runtime.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await.unwrap();
    runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id.clone() }).await.unwrap();
    b.stop().await;
    eventually(SOON, async || crimux.metric("crimux_backend_up{backend=\"b\"}").await == Some(0.0)).await;
    assert_eq!(status(&crimux, &id).await, Code::NotFound, "its owner says so, whatever the other cannot");
    assert_eq!(crimux.metric("crimux_unknown_ids_total").await, Some(0.0));
}

#[tokio::test]
async fn a_start_awaits_every_backend_that_is_neither_known_nor_optional() {
    let (a, b) = two().await;
    let mut crimux = Crimux::start(&[("a", &a)]).await;
    b.stop().await;
    let both = config(&crimux.dir, &[("a", &a), ("b", &b)], "");
    crimux.kill_and_start_with(&both).await;
    eventually(SOON, async || crimux.get("/readyz").await.is_some()).await;
    assert_eq!(listed(&crimux).await, Err(Code::Unavailable), "it was never listed");
    let optional = both
        .replace(&format!("\"{}\" }}", b.endpoint()), &format!("\"{}\", optional: true }}", b.endpoint()));
    assert_ne!(optional, both);
    reload(&crimux, &optional).await;
    assert_eq!(listed(&crimux).await, Ok(pods(&a)));
    b.start_again().await;
    eventually(SOON, async || listed(&crimux).await.is_ok_and(|all| all.len() == 3)).await;
}

/// The names that backends have in the file, at one time or another.
const NAMES: [&str; 4] = ["w", "x", "y", "z"];

/// A node that lives at random: edits of the file by reload, TERM or KILL, outages, creations and removals.
struct Life {
    random: fastrand::Rng,
    runtimes: [SimRuntime; 3],
    down: [bool; 3],
    /// Whose lists take [`SLOW`].
    slow: [bool; 3],
    /// The runtime of each name in the file.
    file: BTreeMap<&'static str, usize>,
    crimux: Crimux,
    /// The runtime of each pod that was acknowledged.
    made: BTreeMap<String, usize>,
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
        let (random, story) = (fastrand::Rng::with_seed(seed), vec![format!("seed {seed}: {file:?}")]);
        Self {
            random,
            runtimes,
            down: [false; 3],
            slow: [false; 3],
            file,
            crimux,
            made: BTreeMap::new(),
            story,
        }
    }

    async fn step(&mut self, step: usize) {
        match self.random.usize(..10) {
            0..=3 => self.edit().await,
            4 => self.toggle().await,
            6 => self.slow(),
            5 if !self.made.is_empty() => self.remove().await,
            7 if !self.made.is_empty() => {
                let (id, at) = self.random.choice(self.made.iter()).unwrap();
                let (id, at) = (id.clone(), *at);
                self.story.push(format!("stop of {} of {at}", &id[..8]));
                self.reach(&id, at).await;
            }
            _ => self.create(step).await,
        }
        self.judge().await;
    }

    async fn edit(&mut self) {
        let mut order: Vec<usize> = (0..3).collect();
        self.random.shuffle(&mut order);
        let kept = &order[..self.random.usize(1..=3)];
        self.file = kept.iter().map(|at| (*self.random.choice(&NAMES).unwrap(), *at)).collect();
        let text = yaml(&self.crimux.dir, &self.file, &self.runtimes);
        self.crimux.rewrite(&text);
        match self.random.usize(..4) {
            0 => self.crimux.restart().await,
            1 => self.crimux.kill_and_start().await,
            _ => drop(reload(&self.crimux, &text).await),
        }
        self.story.push(format!("{:?}", self.file));
    }

    async fn toggle(&mut self) {
        let at = self.random.usize(..3);
        if self.down[at] {
            self.runtimes[at].start_again().await;
        } else {
            self.runtimes[at].stop().await;
        }
        self.down[at] = !self.down[at];
        self.story.push(format!("runtime {at} is {}", if self.down[at] { "down" } else { "up" }));
    }

    fn slow(&mut self) {
        let at = self.random.usize(..3);
        self.slow[at] = !self.slow[at];
        self.runtimes[at].clear_faults();
        for list in ["ListPodSandbox", "ListContainers"].into_iter().filter(|_| self.slow[at]) {
            self.runtimes[at].fault(list, Fault::Delay(SLOW));
        }
        let how = if self.slow[at] { "slow" } else { "prompt" };
        self.story.push(format!("lists of runtime {at} are {how}"));
    }

    async fn remove(&mut self) {
        let id = self.random.choice(self.made.keys()).unwrap().clone();
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.clone() };
        let removed = self.crimux.client().runtime().remove_pod_sandbox(request).await;
        let code = removed.as_ref().err().map(tonic::Status::code);
        self.story.push(format!("removal of {} of {}: {code:?}", &id[..8], self.made[&id]));
        if removed.is_ok() {
            let at = self.made.remove(&id).unwrap();
            let gone = !pods(&self.runtimes[at]).contains(&id);
            assert!(gone, "a false OK: {:#?}\n{}", self.story, self.crimux.log());
        }
    }

    async fn create(&mut self, step: usize) {
        let name = *self.random.choice(self.file.keys()).unwrap();
        let pod = sandbox_config(&format!("p{step}")).run(name);
        if let Ok(reply) = self.crimux.client().runtime().run_pod_sandbox(pod).await {
            let id = reply.into_inner().pod_sandbox_id;
            let at = self.runtimes.iter().position(|runtime| pods(runtime).contains(&id)).unwrap();
            self.story.push(format!("{} on {at} by {name}", &id[..8]));
            self.made.insert(id, at);
        }
    }

    /// What is listed is every pod, once, and no call for one is denied.
    async fn judge(&self) {
        let Self { crimux, made, story, .. } = self;
        eventually(SOON, async || crimux.socket().exists() && crimux.get("/healthz").await.is_some()).await;
        if let Ok(listed) = listed(crimux).await {
            let expected: Vec<_> = made.keys().cloned().collect();
            assert_eq!(listed, expected, "{story:#?}\n{}", crimux.log());
        }
        for (id, at) in made {
            let code = status(crimux, id).await;
            let right = code == Code::Unavailable || code == Code::Ok;
            assert!(right, "{code:?} for {} on {at}: {story:#?}\n{}", &id[..8], crimux.log());
        }
    }

    /// A stop that is OK has reached the runtime of its pod; none reaches another.
    async fn reach(&self, id: &str, at: usize) {
        let calls = || self.runtimes.each_ref().map(|runtime| runtime.calls("StopPodSandbox").len());
        let before = calls();
        let code = stop(&self.crimux, id).await;
        let mut expected = before;
        expected[at] += usize::from(code == Code::Ok);
        let story = || format!("{code:?} for {} on {at}: {:#?}\n{}", &id[..8], self.story, self.crimux.log());
        assert!(matches!(code, Code::Ok | Code::Unavailable), "{}", story());
        assert_eq!(calls(), expected, "{}", story());
    }

    /// With every runtime up again every pod is listed and reached.
    async fn end(self) {
        self.runtimes.iter().for_each(SimRuntime::clear_faults);
        for at in (0..3).filter(|at| self.down[*at]) {
            self.runtimes[at].start_again().await;
        }
        let expected: Vec<_> = self.made.keys().cloned().collect();
        eventually(SOON, async || listed(&self.crimux).await.as_ref() == Ok(&expected)).await;
        for id in self.made.keys() {
            eventually(SOON, async || status(&self.crimux, id).await == Code::Ok).await;
        }
    }
}

fn yaml(dir: &tempfile::TempDir, file: &BTreeMap<&str, usize>, runtimes: &[SimRuntime; 3]) -> String {
    let backends: Vec<_> = file.iter().map(|(name, at)| (*name, &runtimes[*at])).collect();
    config(dir, &backends, "")
}

/// `CRIMUX_IDENTITY_LIVES` and `CRIMUX_IDENTITY_SEED` make it longer, or one life again (`dev/identity`).
#[tokio::test]
async fn whatever_is_edited_restarted_and_lost_every_pod_is_listed_once_and_called_where_it_is() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (lives, seed) =
        (number("CRIMUX_IDENTITY_LIVES").unwrap_or(6), number("CRIMUX_IDENTITY_SEED").unwrap_or(1));
    for seed in seed..seed + lives {
        let mut life = Life::begin(seed).await;
        for step in 0..12 {
            Box::pin(life.step(step)).await;
        }
        life.end().await;
    }
}
