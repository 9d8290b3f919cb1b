//! Random lives of a node, played against a model: ten thousand short ones.
//!
//! The model knows where every acknowledged pod runs. Whatever a file says and wherever a runtime moves, each
//! pod must be owned by one instance, and that one must lead to the runtime that has the pod, or to where it
//! was last.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use super::*;

/// How many lives, and how many steps each has.
const LIVES: u64 = 10_000;
const STEPS: usize = 14;
const NAMES: [&str; 4] = ["w", "x", "y", "z"];
const ENDPOINTS: [&str; 5] = ["/A", "/B", "/C", "/D", "/E"];

/// An instance as `app/backends.rs` keeps it.
#[derive(Debug, Clone)]
struct Kept {
    id: InstanceId,
    name: String,
    endpoint: String,
    life: Life,
    maybe_moved_from: Option<InstanceId>,
    pods: BTreeSet<u32>,
    /// Whether it was listed since it is where it is.
    listed: bool,
}

#[derive(Debug, Default)]
struct Model {
    kept: Vec<Kept>,
    file: BTreeMap<&'static str, &'static str>,
    /// What each runtime has, by the endpoint at which it answers.
    runtimes: BTreeMap<&'static str, BTreeSet<u32>>,
    last_id: u64,
    last_pod: u32,
    story: Vec<String>,
}

impl Model {
    fn instance(&mut self, id: InstanceId) -> &mut Kept {
        self.kept.iter_mut().find(|kept| kept.id == id).expect("it is kept")
    }

    fn add(&mut self, step: &PlanStep, life: Life, maybe_moved_from: Option<InstanceId>) {
        self.last_id += 1;
        let (id, pods) = (InstanceId(self.last_id), BTreeSet::new());
        let (name, endpoint) = (step.name.clone(), step.endpoint.clone());
        self.kept.push(Kept { id, name, endpoint, life, maybe_moved_from, pods, listed: false });
    }

    /// Applies a file as a reload does, or a start.
    fn edit(&mut self, file: BTreeMap<&'static str, &'static str>) {
        self.story.push(format!("file {file:?}"));
        let known: Vec<_> = self.kept.iter().map(Kept::as_known).collect();
        let wanted = |(name, endpoint): (&&str, &&str)| Wanted {
            name: (*name).to_owned(),
            endpoint: (*endpoint).to_owned(),
        };
        let plan = Plan::new(&known, &file.iter().map(wanted).collect::<Vec<_>>());
        for removal in &plan.removed {
            let kept = self.instance(removal.id);
            (kept.life, kept.maybe_moved_from) = (Life::Removed, None);
            kept.name.clone_from(&removal.label);
        }
        for step in &plan.steps {
            match (&step.meaning, step.instance) {
                (Meaning::New, _) | (_, None) => self.add(step, Life::Joining, None),
                (Meaning::MaybeMoved { .. }, old) => self.add(step, Life::Joining, old),
                (Meaning::MovedEmpty { .. }, Some(id)) => {
                    let kept = self.instance(id);
                    assert_eq!(kept.pods, BTreeSet::new(), "pods are left behind: {step:?}");
                    (kept.endpoint, kept.name) = (step.endpoint.clone(), step.name.clone());
                    (kept.life, kept.listed) = (Life::Joining, false);
                }
                (_, Some(id)) => {
                    let kept = self.instance(id);
                    kept.name.clone_from(&step.name);
                    if kept.life == Life::Removed {
                        kept.life = Life::Member;
                    }
                }
            }
        }
        self.file = file;
    }

    /// Every runtime is listed: what joins has joined, what moved is decided, what is gone is learnt.
    fn list(&mut self) {
        self.story.push("listed".to_owned());
        for at in 0..self.kept.len() {
            let Some(there) = self.runtimes.get(self.kept[at].endpoint.as_str()).cloned() else { continue };
            let Kept { id, maybe_moved_from, .. } = self.kept[at];
            self.kept[at].listed = true;
            let Some(old) = maybe_moved_from else { continue };
            let old = self.kept.iter().position(|kept| kept.id == old && kept.life == Life::Removed);
            self.kept[at].maybe_moved_from = None;
            if let Some(old) = old.filter(|old| !self.kept[*old].pods.is_disjoint(&there)) {
                let Kept { name, endpoint, .. } = self.kept[at].clone();
                let one = &mut self.kept[old];
                (one.name, one.endpoint, one.life, one.listed) = (name, endpoint, Life::Member, true);
                self.kept[at].pods.clear();
                self.kept[at].name = format!("ended {id}");
            }
        }
        self.kept.retain(|kept| !kept.name.starts_with("ended "));
        for kept in self.kept.iter_mut().filter(|kept| kept.listed && kept.life == Life::Joining) {
            kept.life = Life::Member;
        }
        let ends = |kept: &Kept| kept.life == Life::Removed && kept.pods.is_empty() && kept.listed;
        self.kept.retain(|kept| !ends(kept));
    }

    fn create(&mut self, name: &str) {
        let Some(kept) = self.kept.iter_mut().find(|kept| kept.name == name && kept.life == Life::Member)
        else {
            return;
        };
        let Some(runtime) = self.runtimes.get_mut(kept.endpoint.as_str()) else { return };
        self.last_pod += 1;
        kept.pods.insert(self.last_pod);
        runtime.insert(self.last_pod);
        self.story.push(format!("pod {} by {name}", self.last_pod));
    }

    fn remove(&mut self, random: &mut Rng) {
        let reachable = |kept: &&mut Kept| self.runtimes.contains_key(kept.endpoint.as_str());
        let Some(kept) = self.kept.iter_mut().filter(reachable).find(|kept| !kept.pods.is_empty()) else {
            return;
        };
        let pod = *random.choice(kept.pods.iter()).expect("it has pods");
        kept.pods.remove(&pod);
        for pods in self.runtimes.values_mut() {
            pods.remove(&pod);
        }
        self.story.push(format!("pod {pod} removed"));
    }

    /// A runtime with all its pods answers at another endpoint, at which nothing was and which no instance
    /// has.
    fn move_runtime(&mut self, random: &mut Rng) {
        let is_free = |to: &&&str| {
            !self.runtimes.contains_key(**to) && self.kept.iter().all(|kept| kept.endpoint != **to)
        };
        let free: Vec<_> = ENDPOINTS.iter().filter(is_free).collect();
        let from = *random.choice(self.runtimes.keys()).expect("there are runtimes");
        let Some(to) = random.choice(free) else { return };
        let pods = self.runtimes.remove(from).expect("it was there");
        self.runtimes.insert(to, pods);
        self.story.push(format!("the runtime at {from} is at {to}"));
    }

    fn check(&self, seed: u64) {
        let story = || format!("seed {seed}: {:#?}\n{:#?}", self.story, self.kept);
        let mut owned = BTreeSet::new();
        for kept in &self.kept {
            for pod in &kept.pods {
                assert!(owned.insert(*pod), "pod {pod} has two owners: {}", story());
                let at = self.runtimes.get(kept.endpoint.as_str());
                assert!(at.is_none_or(|pods| pods.contains(pod)), "pod {pod} would be denied: {}", story());
            }
        }
        let running: BTreeSet<_> = self.runtimes.values().flatten().copied().collect();
        assert_eq!(owned, running, "{}", story());
        for (name, endpoint) in &self.file {
            let named: Vec<_> = self.kept.iter().filter(|kept| kept.name == *name).collect();
            assert!(
                matches!(named[..], [one] if one.endpoint == *endpoint && one.life != Life::Removed),
                "{name}: {}",
                story()
            );
        }
        let labels: BTreeSet<_> = self.kept.iter().map(|kept| &kept.name).collect();
        assert_eq!(labels.len(), self.kept.len(), "{}", story());
    }
}

impl Kept {
    fn as_known(&self) -> KnownInstance {
        KnownInstance {
            id: self.id,
            name: self.name.clone(),
            endpoint: self.endpoint.clone(),
            life: self.life,
            pods: self.pods.len(),
            is_occupied: !self.pods.is_empty() || (self.life == Life::Member && !self.listed),
        }
    }
}

fn file(random: &mut Rng) -> BTreeMap<&'static str, &'static str> {
    let mut endpoints = ENDPOINTS;
    random.shuffle(&mut endpoints);
    let count = random.usize(1..=3);
    endpoints[..count].iter().map(|endpoint| (*random.choice(&NAMES).expect("names"), *endpoint)).collect()
}

#[test]
fn whatever_is_edited_and_moved_every_pod_has_one_owner_that_leads_to_it() {
    for seed in 0..LIVES {
        let mut random = Rng::with_seed(seed);
        let mut node = Model::default();
        for endpoint in &ENDPOINTS[..3] {
            node.runtimes.insert(endpoint, BTreeSet::new());
        }
        node.edit(file(&mut random));
        for _ in 0..STEPS {
            match random.usize(..9) {
                0..=2 => node.edit(file(&mut random)),
                3 => node.list(),
                4 => node.remove(&mut random),
                5 => node.move_runtime(&mut random),
                _ => {
                    node.list();
                    node.create(random.choice(&NAMES).expect("names"));
                }
            }
            node.check(seed);
        }
    }
}
