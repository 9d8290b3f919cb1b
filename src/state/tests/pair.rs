//! Two lists in any order, at any time and with any items: the served pair is the one that the table of
//! `pair.rs` names, and it never lacks a sandbox that it could have.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::state::list_bytes::FullList;
use crate::state::pair::{PAIR_WINDOW, Pair, Pairing};

/// The next thing that happens.
#[derive(Debug, Clone, Copy)]
enum PairStep {
    /// A list is requested.
    Request(ListKind),
    /// The n-th list in flight arrives, with the objects of these numbers.
    Receive(usize, u8),
    /// Time passes.
    Pass(Duration),
}

/// A list of the model: objects as bits, and the order and time of its request and receipt.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Listed {
    objects: u8,
    /// Lists that are equal and follow each other share a buffer.
    buffer: usize,
    seq: u64,
    requested: Instant,
    received: Instant,
    paired: bool,
}

/// The rule, written down as the table of `pair.rs`; a container has the number of its sandbox.
#[derive(Default)]
struct PairModel {
    sandboxes: Option<Listed>,
    containers: Option<Listed>,
    served: Option<(Listed, Listed)>,
    refused: Option<(Instant, u8)>,
    buffers: usize,
}

impl PairModel {
    fn receive(&mut self, kind: ListKind, requested: Revision, received: Instant, objects: u8) {
        let Revision { seq, at: requested } = requested;
        let served =
            self.served.map(|(s, c)| if kind == ListKind::Sandboxes { s.seq.min(c.seq) } else { c.seq });
        let newest = if kind == ListKind::Sandboxes { &mut self.sandboxes } else { &mut self.containers };
        if served.is_some_and(|served| seq < served) || newest.is_some_and(|newest| seq < newest.seq) {
            return;
        }
        self.buffers += 1;
        let buffer = newest.filter(|old| old.objects == objects).map_or(self.buffers, |old| old.buffer);
        *newest = Some(Listed { objects, buffer, seq, requested, received, paired: false });
        self.pair_up(received);
    }

    fn pair_up(&mut self, now: Instant) {
        let (Some(s), Some(c)) = (self.sandboxes, self.containers) else { return };
        let in_order = c.seq >= s.seq;
        let gap = if in_order {
            c.requested.checked_duration_since(s.received)
        } else {
            s.requested.checked_duration_since(c.received)
        };
        let orphans = c.objects & !s.objects;
        let is_same = self.served.is_some_and(|(os, oc)| (os.buffer, oc.buffer) == (s.buffer, c.buffer));
        let serve = match (in_order, gap.unwrap_or_default() <= PAIR_WINDOW) {
            (_, false) => return,
            (false, _) if self.served.is_some() => return,
            _ if c.requested >= s.received && !s.paired => true,
            _ if is_same || orphans == 0 => true,
            _ => match self.refused {
                Some((at, refused)) if orphans & !refused == 0 => s.requested > at && c.requested > at,
                _ => {
                    self.refused = Some((now, orphans));
                    false
                }
            },
        };
        if serve {
            self.served = Some((s, c));
            self.refused = None;
            for list in [&mut self.sandboxes, &mut self.containers].into_iter().flatten() {
                list.paired = true;
            }
        }
    }
}

fn step() -> impl Strategy<Value = PairStep> {
    let kind = || prop_oneof![Just(ListKind::Sandboxes), Just(ListKind::Containers)];
    let wait = prop_oneof![
        Just(Duration::from_millis(1)),
        Just(Duration::from_secs(1)),
        Just(PAIR_WINDOW),
        Just(PAIR_WINDOW + Duration::from_nanos(1)),
    ];
    prop_oneof![
        4 => kind().prop_map(PairStep::Request),
        5 => (0..4usize, 0..8u8).prop_map(|(list, objects)| PairStep::Receive(list, objects)),
        2 => wait.prop_map(PairStep::Pass),
    ]
}

fn objects(bits: u8) -> impl Iterator<Item = u8> {
    (0..8).filter(move |number| bits & (1 << number) != 0)
}

fn encoded(kind: ListKind, bits: u8) -> Bytes {
    let names: Vec<_> = objects(bits).map(|number| (format!("c{number}"), format!("s{number}"))).collect();
    match kind {
        ListKind::Sandboxes => sandboxes(&names.iter().map(|(_, sandbox)| &**sandbox).collect::<Vec<_>>()),
        _ => containers(&names.iter().map(|(id, sandbox)| (&**id, &**sandbox)).collect::<Vec<_>>()),
    }
}

fn served(pair: Option<&Pair>) -> Option<(Bytes, Bytes)> {
    pair.map(|pair| (pair.sandboxes.bytes.clone(), pair.containers.bytes.clone()))
}

/// Plays steps to both, and compares what they serve after each.
struct Run {
    sync: Pairing,
    model: PairModel,
    in_flight: Vec<(ListKind, Revision)>,
    seq: u64,
    now: Instant,
}

impl Run {
    fn new() -> Self {
        let (sync, model) = (Pairing::default(), PairModel::default());
        Self { sync, model, in_flight: Vec::new(), seq: 0, now: Instant::now() }
    }

    fn request(&mut self, kind: ListKind) {
        self.seq += 1;
        self.in_flight.push((kind, Revision { seq: self.seq, at: self.now }));
    }

    fn receive(&mut self, index: usize, bits: u8) -> Result<(), TestCaseError> {
        let (kind, revision) = self.in_flight.remove(index);
        let encoded_list = encoded(kind, bits);
        let list = FullList { kind, requested: revision, received: self.now, encoded: encoded_list };
        self.sync.receive(list, &[]);
        self.model.receive(kind, revision, self.now, bits);
        let expected = self.model.served.map(|(sandboxes, containers)| {
            (
                encoded(ListKind::Sandboxes, sandboxes.objects),
                encoded(ListKind::Containers, containers.objects),
            )
        });
        prop_assert_eq!(served(self.sync.pair.as_ref()), expected);
        Ok(())
    }

    /// Takes these steps, at most four requests in flight.
    fn play(&mut self, steps: Vec<PairStep>) -> Result<(), TestCaseError> {
        for step in steps {
            match step {
                PairStep::Request(kind) if self.in_flight.len() < 4 => self.request(kind),
                PairStep::Receive(index, bits) if index < self.in_flight.len() => {
                    self.receive(index, bits)?;
                }
                PairStep::Pass(time) => self.now += time,
                _ => {}
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_served_pair_is_the_one_that_the_table_names(steps in prop::collection::vec(step(), 1..80)) {
        let mut run = Run::new();
        run.play(steps)?;
    }

    /// Once a pair is served, kubelet's own order, sandboxes then containers, is served whatever happened
    /// before.
    #[test]
    fn sandboxes_and_then_containers_are_always_served(
        steps in prop::collection::vec(step(), 0..40),
        bits in (0..8u8, 0..8u8),
    ) {
        let mut run = Run::new();
        for kind in [ListKind::Sandboxes, ListKind::Containers] {
            run.request(kind);
            run.receive(0, 0)?;
        }
        run.play(steps)?;
        for (kind, bits) in [(ListKind::Sandboxes, bits.0), (ListKind::Containers, bits.1)] {
            run.request(kind);
            run.now += Duration::from_millis(1);
            run.receive(run.in_flight.len() - 1, bits)?;
        }
        let expected = (encoded(ListKind::Sandboxes, bits.0), encoded(ListKind::Containers, bits.1));
        prop_assert_eq!(served(run.sync.pair.as_ref()), Some(expected));
    }

    /// A container shows without its sandbox only if the backend says so twice, or in kubelet's own order.
    #[test]
    fn lists_in_flight_together_never_show_a_container_without_its_sandbox(
        received in prop::collection::vec((any::<bool>(), 0..8u8), 1..20),
    ) {
        let mut run = Run::new();
        for _ in 0..received.len() {
            run.request(ListKind::Sandboxes);
            run.request(ListKind::Containers);
        }
        for (sandboxes_first, bits) in received {
            run.now += Duration::from_millis(1);
            let kind = if sandboxes_first { ListKind::Sandboxes } else { ListKind::Containers };
            let Some(index) = run.in_flight.iter().position(|(of, _)| *of == kind) else { continue };
            run.receive(index, bits)?;
            if let Some((sandboxes, containers)) = run.model.served {
                let orphans: BTreeSet<_> = objects(containers.objects & !sandboxes.objects).collect();
                prop_assert_eq!(orphans, BTreeSet::new());
            }
        }
    }
}
