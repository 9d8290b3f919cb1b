//! Lists race with creations and removals: whatever the order, what was acknowledged is shown, once.

use std::collections::BTreeSet;

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
    /// The backend creates or removes pod n; its answer is on the way.
    Create(usize),
    Remove(usize),
    /// All answers arrive and are recorded.
    Record,
}

struct InFlight {
    kind: ListKind,
    epoch: Epoch,
    answer: Option<Bytes>,
}

#[derive(Default)]
struct Model {
    exists: BTreeSet<usize>,
    recorded: BTreeSet<usize>,
    ever: BTreeSet<usize>,
    on_the_way: Vec<(usize, bool)>,
    lists: Vec<InFlight>,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Send),
        (0..6usize).prop_map(Event::Answer),
        (0..6usize).prop_map(Event::Arrive),
        (0..5usize).prop_map(Event::Create),
        (0..5usize).prop_map(Event::Remove),
        Just(Event::Record),
    ]
}

impl Model {
    fn reply(&self, kind: ListKind) -> Bytes {
        let names: Vec<_> = self.exists.iter().map(|pod| (format!("c{pod}"), format!("s{pod}"))).collect();
        match kind {
            ListKind::Sandboxes => sandboxes(&names.iter().map(|(_, s)| s.as_str()).collect::<Vec<_>>()),
            _ => containers(&names.iter().map(|(c, s)| (c.as_str(), s.as_str())).collect::<Vec<_>>()),
        }
    }

    fn step(&mut self, backend: &LastKnown, event: Event) {
        match event {
            Event::Send => {
                for kind in [ListKind::Sandboxes, ListKind::Containers] {
                    self.lists.push(InFlight { kind, epoch: backend.epoch(), answer: None });
                }
            }
            Event::Answer(at) if at < self.lists.len() => {
                self.lists[at].answer = Some(self.reply(self.lists[at].kind));
            }
            Event::Arrive(at) if self.lists.get(at).is_some_and(|list| list.answer.is_some()) => {
                let list = self.lists.remove(at);
                backend.replace_list(list.kind, list.epoch, list.answer.unwrap());
            }
            Event::Create(pod) if self.ever.insert(pod) => {
                self.exists.insert(pod);
                self.on_the_way.push((pod, true));
            }
            Event::Remove(pod) if self.recorded.contains(&pod) && self.exists.remove(&pod) => {
                self.on_the_way.push((pod, false));
            }
            Event::Record => self.record(backend),
            _ => {}
        }
    }

    fn record(&mut self, backend: &LastKnown) {
        for (pod, created) in std::mem::take(&mut self.on_the_way) {
            let (sandbox, container) = (format!("s{pod}"), format!("c{pod}"));
            if created {
                backend.sandbox_created(&sandbox, &run_request("a"));
                backend.container_created(&container, &sandbox, &[]);
                self.recorded.insert(pod);
            } else {
                backend.sandbox_removed(&sandbox);
                self.recorded.remove(&pod);
            }
        }
    }

    fn check(&self, backend: &LastKnown) {
        let (Some(sandboxes), Some(containers)) =
            (ids(backend, ListKind::Sandboxes), ids(backend, ListKind::Containers))
        else {
            return;
        };
        for list in [&sandboxes, &containers] {
            let once: BTreeSet<_> = list.iter().collect();
            assert_eq!(once.len(), list.len(), "listed twice: {list:?}");
        }
        for pod in &self.ever {
            let (sandbox, container) = (format!("s{pod}"), format!("c{pod}"));
            let pending = self.on_the_way.iter().any(|(on_the_way, _)| on_the_way == pod);
            if !pending {
                let there = self.exists.contains(pod);
                assert_eq!(sandboxes.contains(&sandbox), there, "{sandbox}");
                assert_eq!(containers.contains(&container), there, "{container}");
            } else if containers.contains(&container) && self.recorded.contains(pod) {
                assert!(sandboxes.contains(&sandbox), "{container} without its sandbox");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_list_undoes_a_recorded_creation_or_removal(events in prop::collection::vec(event(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let backend = open(dir.path()).backend("runc", true);
        let mut model = Model::default();
        for event in events {
            model.step(&backend, event);
            model.check(&backend);
        }
        // A restart shows the same, as far as a list was ever saved.
        let before = ids(&backend, ListKind::Sandboxes);
        let mut heard = Vec::new();
        open(dir.path()).backend("runc", true).for_each_sandbox(|facts| heard.push(facts.id.to_owned()));
        for pod in model.recorded.iter().filter(|pod| model.exists.contains(pod)) {
            prop_assert!(heard.contains(&format!("s{pod}")), "{before:?} {heard:?}");
        }
    }
}
