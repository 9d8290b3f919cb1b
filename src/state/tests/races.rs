//! Lists race with creations, changes of state and removals, snapshots fail and crimux is killed in between:
//! whatever the order, what was acknowledged is shown, once and in its state.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, Copy)]
enum Event {
    /// Sends both lists; kubelet's own order of arrival is not assumed.
    Send,
    /// The backend makes up its reply to the n-th list in flight.
    Answer(usize),
    /// The reply to the n-th list in flight arrives.
    Arrive(usize),
    /// The backend does this; its answer is on the way.
    Do(Deed),
    /// All answers arrive and are recorded.
    Record,
    /// The snapshot is written.
    Write,
    /// The snapshot cannot be written.
    FailToWrite,
    /// All answers arrive and are recorded, then crimux is killed and started again.
    Kill,
}

/// What a backend does, to the n-th pod. A pod has one container at most, and is never made twice.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Deed {
    CreateSandbox(usize),
    CreateContainer(usize),
    StartContainer(usize),
    StopContainer(usize),
    StopSandbox(usize),
    RemoveSandbox(usize),
    RemoveContainer(usize),
}

struct InFlight {
    kind: ListKind,
    revision: Revision,
    answer: Option<Bytes>,
}

/// The states of what pods have, by their number.
type States = BTreeMap<usize, i32>;

/// The backend, and what it was asked for.
#[derive(Default)]
struct ListModel {
    sandboxes: States,
    containers: States,
    ever: (BTreeSet<usize>, BTreeSet<usize>),
    on_the_way: Vec<Deed>,
    lists: Vec<InFlight>,
}

/// crimux, which can be killed.
struct Memory {
    dir: tempfile::TempDir,
    store: Arc<StateStore>,
    backend: Arc<InstanceState>,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Event::Send),
        6 => (0..6usize).prop_map(Event::Answer),
        6 => (0..6usize).prop_map(Event::Arrive),
        9 => deed().prop_map(Event::Do),
        3 => Just(Event::Record),
        1 => Just(Event::Write),
        1 => Just(Event::FailToWrite),
        1 => Just(Event::Kill),
    ]
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        (0..4usize).prop_map(Deed::CreateSandbox),
        (0..4usize).prop_map(Deed::CreateContainer),
        (0..4usize).prop_map(Deed::StartContainer),
        (0..4usize).prop_map(Deed::StopContainer),
        (0..4usize).prop_map(Deed::StopSandbox),
        (0..4usize).prop_map(Deed::RemoveSandbox),
        (0..4usize).prop_map(Deed::RemoveContainer),
    ]
}

impl Deed {
    fn pod(self) -> usize {
        match self {
            Self::CreateSandbox(pod)
            | Self::CreateContainer(pod)
            | Self::StartContainer(pod)
            | Self::StopContainer(pod)
            | Self::StopSandbox(pod)
            | Self::RemoveSandbox(pod)
            | Self::RemoveContainer(pod) => pod,
        }
    }
}

impl Memory {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let backend = store.backend("runc", true);
        Self { dir, store, backend }
    }

    fn fail_to_write(&self) {
        let in_the_way = self.dir.path().join("snapshot.tmp");
        std::fs::create_dir(&in_the_way).unwrap();
        // It succeeds where there is nothing to write.
        let _ = self.store.flush();
        std::fs::remove_dir(in_the_way).unwrap();
    }

    fn kill(&mut self) {
        self.store = open(self.dir.path());
        self.backend = self.store.backend("runc", true);
    }
}

impl ListModel {
    fn reply(&self, kind: ListKind) -> Bytes {
        let encoded = if kind == ListKind::Sandboxes {
            let with_state = |(pod, state): (&usize, &i32)| cri::PodSandbox {
                state: *state,
                ..sandbox(&format!("s{pod}"))
            };
            let items = self.sandboxes.iter().map(with_state).collect();
            cri::ListPodSandboxResponse { items }.encode_to_vec()
        } else {
            let item =
                |(pod, state): (&usize, &i32)| container(&format!("c{pod}"), &format!("s{pod}"), *state);
            let containers = self.containers.iter().map(item).collect();
            cri::ListContainersResponse { containers }.encode_to_vec()
        };
        encoded.into()
    }

    fn step(&mut self, memory: &mut Memory, event: Event) {
        let backend = &memory.backend;
        match event {
            Event::Send => {
                for kind in [ListKind::Sandboxes, ListKind::Containers] {
                    self.lists.push(InFlight { kind, revision: backend.begin_read(), answer: None });
                }
            }
            Event::Answer(at) if at < self.lists.len() => {
                self.lists[at].answer = Some(self.reply(self.lists[at].kind));
            }
            Event::Arrive(at) if self.lists.get(at).is_some_and(|list| list.answer.is_some()) => {
                let list = self.lists.remove(at);
                backend.replace_list(list.kind, list.revision, list.answer.unwrap());
            }
            Event::Do(deed) if !self.is_busy(deed.pod()) && self.done(deed) => self.on_the_way.push(deed),
            Event::Record => self.record(backend),
            Event::Write => memory.store.flush().unwrap(),
            Event::FailToWrite => memory.fail_to_write(),
            Event::Kill => {
                self.record(backend);
                self.lists.clear();
                memory.kill();
            }
            _ => {}
        }
    }

    /// Does it, as containerd does, if it can be done.
    fn done(&mut self, deed: Deed) -> bool {
        let Self { sandboxes, containers, ever, .. } = self;
        let ready = sandboxes.get(&deed.pod()) == Some(&SANDBOX_READY);
        match deed {
            Deed::CreateSandbox(pod) => ever.0.insert(pod) && sandboxes.insert(pod, SANDBOX_READY).is_none(),
            Deed::CreateContainer(pod) => {
                ready && ever.1.insert(pod) && containers.insert(pod, CONTAINER_CREATED).is_none()
            }
            Deed::StartContainer(pod) => match containers.get_mut(&pod) {
                Some(state) if ready && *state == CONTAINER_CREATED => {
                    *state = CONTAINER_RUNNING;
                    true
                }
                _ => false,
            },
            Deed::StopContainer(pod) => containers.get_mut(&pod).map(stop).is_some(),
            Deed::StopSandbox(pod) => {
                containers.get_mut(&pod).map(stop);
                sandboxes.get_mut(&pod).map(|state| *state = SANDBOX_NOTREADY).is_some()
            }
            Deed::RemoveSandbox(pod) => {
                containers.remove(&pod);
                sandboxes.remove(&pod).is_some()
            }
            Deed::RemoveContainer(pod) => containers.remove(&pod).is_some(),
        }
    }

    /// Tells whether an answer about this pod is on the way, so that either side of it may be shown.
    fn is_busy(&self, pod: usize) -> bool {
        self.on_the_way.iter().any(|deed| deed.pod() == pod)
    }

    fn record(&mut self, backend: &InstanceState) {
        for deed in std::mem::take(&mut self.on_the_way) {
            let (sandbox, container) = (format!("s{}", deed.pod()), format!("c{}", deed.pod()));
            match deed {
                Deed::CreateSandbox(_) => backend.record_sandbox_created(&sandbox, &run_request("a")),
                Deed::CreateContainer(_) => backend.record_container_created(&container, &sandbox, &[]),
                Deed::StartContainer(_) => backend.record_container_started(&container),
                Deed::StopContainer(_) => backend.record_container_stopped(&container),
                Deed::StopSandbox(_) => backend.record_sandbox_stopped(&sandbox),
                Deed::RemoveSandbox(_) => backend.record_sandbox_removed(&sandbox),
                Deed::RemoveContainer(_) => backend.record_container_removed(&container),
            }
        }
    }

    fn check(&self, backend: &InstanceState) {
        let (Some(sandboxes), Some(containers)) =
            (shown(backend, ListKind::Sandboxes), shown(backend, ListKind::Containers))
        else {
            return;
        };
        let by_id = |list: Vec<(String, i32)>| {
            let count = list.len();
            let by_id: BTreeMap<_, _> = list.into_iter().collect();
            assert_eq!(by_id.len(), count, "listed twice: {by_id:?}");
            by_id
        };
        let (sandboxes, containers) = (by_id(sandboxes), by_id(containers));
        for pod in &self.ever.0 {
            let (sandbox, container) = (format!("s{pod}"), format!("c{pod}"));
            if !self.is_busy(*pod) {
                assert_eq!(sandboxes.get(&sandbox), self.sandboxes.get(pod), "{sandbox}");
                assert_eq!(containers.get(&container), self.containers.get(pod), "{container}");
            } else if containers.contains_key(&container)
                && !self.on_the_way.contains(&Deed::CreateSandbox(*pod))
            {
                assert!(sandboxes.contains_key(&sandbox), "{container} without its sandbox");
            }
        }
    }
}

/// What a stop does to a container.
fn stop(state: &mut i32) {
    if *state == CONTAINER_RUNNING {
        *state = CONTAINER_EXITED;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_list_and_no_kill_undoes_what_was_recorded(
        events in prop::collection::vec(event(), 1..60),
    ) {
        let (mut memory, mut model) = (Memory::new(), ListModel::default());
        for event in events {
            model.step(&mut memory, event);
            model.check(&memory.backend);
        }
        // Of what was created it is known even where no list ever was.
        model.step(&mut memory, Event::Kill);
        model.check(&memory.backend);
        let mut heard = BTreeSet::new();
        memory.backend.for_each_sandbox(|facts| { heard.insert(facts.id.to_owned()); });
        memory.backend.for_each_container(|facts| { heard.insert(facts.id.to_owned()); });
        let made = model.sandboxes.keys().map(|pod| format!("s{pod}"));
        let made = made.chain(model.containers.keys().map(|pod| format!("c{pod}")));
        for id in made {
            prop_assert!(heard.contains(&id), "{id} of {heard:?}");
        }
    }
}
