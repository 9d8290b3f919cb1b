//! Container starts in progress: between an annotated call for an image and `CreateContainer`.
//!
//! ```text
//! ImageStatus or PullImage, annotated ── begin ──┐
//! ImageStatus without annotations                │ backends_of: kubelet's call, for these stores
//! CreateContainer of the pod ─────── end_all ────┘ else after 30 s
//! ```
//!
//! The starts of a kubelet that restarts end when the pod's new `config.seen` is learnt. A start whose
//! `config.seen` was never seen with a uid belongs to no known pod, and ends after 30 s.
//!
//! The call in the middle names an image and nothing else, and an absent image makes kubelet run the
//! container as root (`helpers.go getImageUser`). While starts of one image are in progress on stores that
//! disagree about it, the call fails, and kubelet retries the start. Each start sends the call once, so after
//! one failure for each start they all end, a second later.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::mutex::lock;
use crate::router::millis::millis_until;
use crate::state::InstanceId;
use crate::state::image_name::normalise;

/// The longest start; kubelet's calls are milliseconds apart unless the node is overloaded.
const LONGEST_START: Duration = Duration::from_secs(30);
/// The longest pull; after it the pod's start is forgotten.
const LONGEST_PULL: Duration = Duration::from_secs(3600);
/// How long starts last once the call for the user failed for each; kubelet's next attempt comes 10 s later.
const AFTER_UNDECIDED: Duration = Duration::from_secs(1);
/// The most references, and the most starts of one reference, that are kept; beyond that the oldest are
/// dropped.
const MAX_REFERENCES: usize = 4096;
const MAX_STARTS: usize = 256;

/// One pod that is starting a container.
#[derive(Debug)]
struct Start {
    /// The pod's `config.seen`.
    config_seen: Box<str>,
    /// The backends that it may be on.
    backends: Vec<InstanceId>,
    stage: Stage,
    until: Instant,
}

/// How far the image of a start is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// kubelet was told that it is there.
    Present,
    /// The image is being pulled. Only once it was pulled, kubelet calls for its user.
    Pulling,
    /// The image was pulled. kubelet goes on after that whatever it is told about the image.
    Pulled,
}

/// A start, as it passes to the process that takes over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedStart {
    reference: String,
    config_seen: String,
    backends: Vec<u64>,
    pulled: bool,
    left: u64,
}

/// The starts of one image, the latest last.
#[derive(Debug, Default)]
struct ReferenceStarts {
    starts: Vec<Start>,
    /// How often the call without annotations has failed because the stores disagree.
    undecided: usize,
}

/// All starts, by normalised reference.
#[derive(Debug, Default)]
pub struct ContainerStarts {
    map: Mutex<HashMap<String, ReferenceStarts>>,
}

/// A pull for a pod. When it is dropped, the pod's start continues if the pull succeeded, and ends otherwise.
#[derive(Debug)]
pub struct Pull<'a> {
    starts: &'a ContainerStarts,
    reference: &'a str,
    config_seen: &'a str,
    backend: InstanceId,
    succeeded: bool,
}

impl ContainerStarts {
    /// Records that these backends answered the pod of `config_seen` that the image is present. A pod without
    /// `config.seen` is not kubelet's and is not recorded.
    pub fn begin(&self, reference: &str, config_seen: &str, backends: Vec<InstanceId>, now: Instant) {
        let start = Start {
            config_seen: config_seen.into(),
            backends,
            stage: Stage::Present,
            until: now + LONGEST_START,
        };
        self.record(reference, start);
    }

    /// Records that the pod of `config_seen` pulls the image to `backend`.
    pub fn begin_pull<'a>(
        &'a self,
        reference: &'a str,
        config_seen: &'a str,
        backend: InstanceId,
    ) -> Pull<'a> {
        let pull = Pull { starts: self, reference, config_seen, backend, succeeded: false };
        self.record(reference, pull.start(Stage::Pulling, LONGEST_PULL));
        pull
    }

    /// Returns the backends of the starts of an image that a call without annotations may belong to, the
    /// latest first: of those in progress all that are not being pulled for.
    pub fn backends_of(&self, reference: &str, now: Instant) -> Vec<InstanceId> {
        let map = self.lock();
        let mut backends: Vec<InstanceId> = Vec::new();
        let starts = map.get(&normalise(reference)).map(|entry| &entry.starts[..]).unwrap_or_default();
        let may_ask = |start: &&Start| start.until > now && start.stage != Stage::Pulling;
        for backend in starts.iter().rev().filter(may_ask).flat_map(|start| &start.backends) {
            if !backends.contains(backend) {
                backends.push(*backend);
            }
        }
        backends
    }

    /// Records that the call for the user of an image failed because the stores disagree.
    pub fn record_undecided(&self, reference: &str, now: Instant) {
        if let Some(entry) = self.lock().get_mut(&normalise(reference)) {
            entry.starts.retain(|start| start.until > now);
            entry.undecided += 1;
            if entry.undecided >= entry.starts.len() {
                entry.undecided = 0;
                for start in &mut entry.starts {
                    start.until = start.until.min(now + AFTER_UNDECIDED);
                }
            }
        }
    }

    /// Ends the start of the pod of `config_seen`, which was answered that the image is absent, unless the
    /// image was pulled for it: kubelet calls for the size of what it pulled, ignores the answer
    /// (`image_manager.go pullImage`), and calls for the image's user next.
    pub fn end(&self, reference: &str, config_seen: &str) {
        self.retain(reference, |start| start.stage != Stage::Present || *start.config_seen != *config_seen);
    }

    fn retain(&self, reference: &str, keep: impl Fn(&Start) -> bool) {
        let mut map = self.lock();
        let key = normalise(reference);
        if let Some(entry) = map.get_mut(&key) {
            entry.starts.retain(keep);
            if entry.starts.is_empty() {
                map.remove(&key);
            }
        }
    }

    /// Ends all starts of the pod of `config_seen`, which creates its container.
    pub fn end_all(&self, config_seen: &str) {
        if !config_seen.is_empty() {
            self.lock().retain(|_, entry| {
                entry.starts.retain(|start| *start.config_seen != *config_seen);
                !entry.starts.is_empty()
            });
        }
    }

    /// Returns the starts under way for another process. One that is being pulled for counts there as pulled,
    /// for as long as a pull may last: this process finishes it, and the other does not hear of that.
    pub fn memory(&self) -> Vec<HandedStart> {
        let map = self.lock();
        let of = |(reference, entry): (&String, &ReferenceStarts)| {
            let handed = |start: &Start| HandedStart {
                reference: reference.clone(),
                config_seen: start.config_seen.to_string(),
                backends: start.backends.iter().map(|backend| backend.0).collect(),
                pulled: start.stage != Stage::Present,
                left: millis_until(start.until),
            };
            entry.starts.iter().map(handed).collect::<Vec<_>>()
        };
        map.iter().flat_map(of).filter(|start| start.left > 0).collect()
    }

    /// Takes over the starts of another process.
    pub fn take_over(&self, handed: Vec<HandedStart>) {
        for HandedStart { reference, config_seen, backends, pulled, left } in handed {
            let backends = backends.into_iter().map(InstanceId).collect();
            let until = Instant::now() + Duration::from_millis(left).min(LONGEST_PULL);
            let stage = if pulled { Stage::Pulled } else { Stage::Present };
            self.record(&reference, Start { config_seen: config_seen.into(), backends, stage, until });
        }
    }

    fn record(&self, reference: &str, new: Start) {
        if new.config_seen.is_empty() {
            return;
        }
        let now = Instant::now();
        let key = normalise(reference);
        let mut map = self.lock();
        if !map.contains_key(&key) && map.len() >= MAX_REFERENCES {
            map.retain(|_, entry| entry.starts.iter().any(|start| start.until > now));
            let latest = |entry: &ReferenceStarts| entry.starts.last().map(|start| start.until);
            let oldest = map.iter().min_by_key(|(_, of)| latest(of)).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest.filter(|_| map.len() >= MAX_REFERENCES) {
                map.remove(&oldest);
            }
        }
        let entry = map.entry(key).or_default();
        let before = entry.starts.len();
        entry.starts.retain(|start| start.until > now && start.config_seen != new.config_seen);
        if entry.starts.len() < before {
            // A pod that starts again has received the answer to its last call without annotations.
            entry.undecided = entry.undecided.saturating_sub(1);
        }
        if entry.starts.len() >= MAX_STARTS {
            entry.starts.remove(0);
        }
        entry.starts.push(new);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, ReferenceStarts>> {
        lock(&self.map)
    }
}

impl Pull<'_> {
    /// Returns the pod's start, which ends after `longest` from now.
    fn start(&self, stage: Stage, longest: Duration) -> Start {
        let until = Instant::now() + longest;
        Start { config_seen: self.config_seen.into(), backends: vec![self.backend], stage, until }
    }

    /// Records that the pull succeeded.
    pub fn succeed(&mut self) {
        self.succeeded = true;
    }
}

impl Drop for Pull<'_> {
    fn drop(&mut self) {
        if self.succeeded {
            self.starts.record(self.reference, self.start(Stage::Pulled, LONGEST_START));
        } else {
            self.starts.retain(self.reference, |start| *start.config_seen != *self.config_seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &str = "app:1";

    fn start() -> (ContainerStarts, InstanceId, InstanceId, Instant) {
        (ContainerStarts::default(), InstanceId(1), InstanceId(2), Instant::now())
    }

    fn names(backends: &[InstanceId]) -> Vec<&'static str> {
        backends.iter().map(|backend| if *backend == InstanceId(1) { "a" } else { "b" }).collect()
    }

    #[test]
    fn a_start_is_under_way_under_any_form_of_its_name_until_its_container_is_created() {
        let (starts, a, b, now) = start();
        starts.begin("app", "p1", vec![a], now);
        starts.begin("docker.io/library/app:latest", "p2", vec![b], now);
        assert_eq!(names(&starts.backends_of("app:latest", now)), ["b", "a"]);
        starts.end_all("p2");
        assert_eq!(names(&starts.backends_of("app", now)), ["a"]);
        assert_eq!(names(&starts.backends_of("app", now + LONGEST_START)), [""; 0]);
        starts.end("app", "p1");
        assert_eq!(names(&starts.backends_of("app", now)), [""; 0]);
    }

    #[test]
    fn a_call_that_names_no_pod_begins_nothing() {
        let (starts, a, _, now) = start();
        starts.begin(IMAGE, "", vec![a], now);
        assert_eq!(names(&starts.backends_of(IMAGE, now)), [""; 0]);
    }

    #[test]
    fn a_pull_is_a_start_once_it_has_succeeded() {
        let (starts, a, b, now) = start();
        starts.begin(IMAGE, "p2", vec![b], now);
        let mut pull = starts.begin_pull(IMAGE, "p1", a);
        assert_eq!(names(&starts.backends_of(IMAGE, Instant::now())), ["b"], "p1 asks after its pull");
        starts.end(IMAGE, "p2");
        pull.succeed();
        drop(pull);
        starts.end(IMAGE, "p1");
        assert_eq!(
            names(&starts.backends_of(IMAGE, Instant::now())),
            ["a"],
            "absent after a pull ends nothing"
        );
        drop(starts.begin_pull(IMAGE, "p1", a));
        assert_eq!(names(&starts.backends_of(IMAGE, Instant::now())), [""; 0]);
    }

    #[test]
    fn starts_that_were_refused_once_each_end_soon_and_those_that_begin_again_do_not() {
        let (starts, a, b, now) = start();
        starts.begin(IMAGE, "p1", vec![a], now);
        starts.begin(IMAGE, "p2", vec![b], now);
        starts.record_undecided(IMAGE, now);
        let soon = now + AFTER_UNDECIDED;
        assert_eq!(names(&starts.backends_of(IMAGE, soon)), ["b", "a"], "one call is still to come");
        starts.begin(IMAGE, "p1", vec![a], now);
        starts.record_undecided(IMAGE, now);
        assert_eq!(
            names(&starts.backends_of(IMAGE, soon)),
            ["a", "b"],
            "p1 begins again, p2's call is to come"
        );
        starts.record_undecided(IMAGE, now);
        assert_eq!(names(&starts.backends_of(IMAGE, now)), ["a", "b"]);
        starts.begin(IMAGE, "p1", vec![a], now);
        assert_eq!(names(&starts.backends_of(IMAGE, soon)), ["a"]);
    }

    #[test]
    fn memory_is_bounded() {
        let (starts, a, _, now) = start();
        for number in 0..MAX_REFERENCES + 10 {
            starts.begin(&format!("app:{number}"), "p", vec![a], now);
        }
        for number in 0..MAX_STARTS + 10 {
            starts.begin("app:100", &format!("p{number}"), vec![a], now);
        }
        let map = starts.lock();
        assert_eq!(map.len(), MAX_REFERENCES);
        assert_eq!(map.values().map(|entry| entry.starts.len()).max(), Some(MAX_STARTS));
    }
}
