//! The last placements of sandboxes, the last reloads, what backends lost, and the last hour of each
//! backend's state, for the status and its page.
//!
//! An operator who looks at a node asks first where new pods went and when the configuration last changed. A
//! short list in memory answers that; logs and metrics have the rest. Nothing here is saved.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tonic::Code;

use crate::handover::OlderProcess;
use crate::mutex::lock;

/// How many events of each kind are kept; a newer one drops the oldest.
const CAPACITY: usize = 20;

/// The backend that a new sandbox went to, or the code it was refused with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// When the call was answered.
    pub at: SystemTime,
    /// The handler; `None` if it is not configured, because it may then be any text.
    pub handler: Option<Box<str>>,
    /// The backend; `None` if the call was refused before one was chosen.
    pub backend: Option<Arc<str>>,
    /// The code of the answer.
    pub code: Code,
}

/// A new sandbox that was not created. Its texts have at most 256 characters each: a client chooses them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// When.
    pub at: SystemTime,
    /// `NAMESPACE/NAME` of its pod.
    pub pod: String,
    /// The handler as in the request.
    pub handler: String,
    /// Why.
    pub reason: String,
}

/// The longest text of a [`Refusal`], in characters.
const REFUSAL_TEXT: usize = 256;

/// How long sandboxes that a backend lost are part of the node's verdict.
pub const LOSS: Duration = Duration::from_secs(600);

/// Sandboxes that a backend lists no more and that nobody removed through crimux: its store was lost or is
/// another, or a client of the backend removed them there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// When the last of them was missed.
    pub at: SystemTime,
    /// How many are gone.
    pub gone: usize,
    /// How many it had.
    pub owned: usize,
}

/// A handler that a reload took out of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RemovedHandler {
    /// Where it led: numbers of instances, and the handler as it is known there.
    pub targets: Vec<(u64, String)>,
    /// When a new sandbox that asked for it was refused last; `None` if none was.
    pub last_refused: Option<SystemTime>,
}

/// A backend's state since a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateChange {
    /// Since when.
    pub at: SystemTime,
    /// One of [`crate::metrics::STATES`].
    pub state: &'static str,
}

/// How long changes of state are kept.
pub const STATES_KEPT: Duration = Duration::from_secs(3600);
/// How many changes of one backend are kept: one that flaps each second fills ten minutes.
const STATE_CHANGES: usize = 600;

/// How a reload of the configuration ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadResult {
    /// The new configuration is current.
    Ok,
    /// The file is wrong or could not be applied; the old configuration stays current where it could not.
    Failed,
    /// The file says what is current already.
    Unchanged,
}

/// One reload of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reload {
    /// When it ended.
    pub at: SystemTime,
    /// How it ended.
    pub result: ReloadResult,
    /// The first problem, and how many more there are; `None` if it did not fail.
    pub problem: Option<String>,
}

/// How many requested handlers are kept. Far more than a node has sandboxes: the rest are of removed ones.
const HANDLERS: usize = 10_000;

/// The last `CAPACITY` placements and reloads, newest first.
#[derive(Debug, Default)]
pub struct RecentEvents {
    placements: Mutex<VecDeque<Placement>>,
    reloads: Mutex<VecDeque<Reload>>,
    restart_keys: Mutex<Vec<&'static str>>,
    new_state_dir: Mutex<Option<PathBuf>>,
    removed_handlers: Mutex<BTreeMap<Box<str>, RemovedHandler>>,
    losses: Mutex<BTreeMap<Box<str>, Loss>>,
    older_processes: Mutex<Vec<OlderProcess>>,
    requested_handlers: Mutex<HashMap<Box<str>, Box<str>>>,
    states: Mutex<BTreeMap<Box<str>, VecDeque<StateChange>>>,
    last_refusal: Mutex<Option<Refusal>>,
}

impl ReloadResult {
    /// Returns the value of the `result` label.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Unchanged => "unchanged",
        }
    }
}

impl RecentEvents {
    /// Records the answer to a request for a new sandbox.
    pub fn record_placement(&self, handler: Option<&str>, backend: Option<&Arc<str>>, code: Code) {
        let at = SystemTime::now();
        let placement = Placement { at, handler: handler.map(Box::from), backend: backend.cloned(), code };
        push(&self.placements, placement);
    }

    /// Records that a new sandbox was not created.
    pub fn record_refusal(&self, pod: &str, handler: &str, reason: &str) {
        if let Some(removed) = lock(&self.removed_handlers).get_mut(handler) {
            removed.last_refused = Some(SystemTime::now());
        }
        let [pod, handler, reason] =
            [pod, handler, reason].map(|text| text.chars().take(REFUSAL_TEXT).collect());
        *lock(&self.last_refusal) = Some(Refusal { at: SystemTime::now(), pod, handler, reason });
    }

    /// Returns the last sandbox that was not created.
    pub fn last_refusal(&self) -> Option<Refusal> {
        lock(&self.last_refusal).clone()
    }

    /// Drops the last refused sandbox if it was of this pod, which has one now.
    pub fn forget_refusal_of(&self, namespace: &str, name: &str) {
        lock(&self.last_refusal)
            .take_if(|refusal| refusal.pod.split_once('/').is_some_and(|pod| pod == (namespace, name)));
    }

    /// Records that a backend no longer lists `gone` of the `owned` sandboxes that it had, and that nobody
    /// removed through crimux. What it lost within [`LOSS`] is one loss.
    pub fn record_lost_sandboxes(&self, backend: &str, gone: usize, owned: usize) {
        let now = SystemTime::now();
        let mut losses = lock(&self.losses);
        losses.retain(|_, loss| now.duration_since(loss.at).is_ok_and(|age| age < LOSS));
        let loss = losses.entry(backend.into()).or_insert(Loss { at: now, gone: 0, owned });
        *loss = Loss { at: now, gone: loss.gone + gone, owned: loss.gone + owned };
    }

    /// Returns what a backend lost within the last [`LOSS`].
    pub fn loss_of(&self, backend: &str) -> Option<Loss> {
        let loss = lock(&self.losses).get(backend).copied();
        loss.filter(|loss| loss.at.elapsed().is_ok_and(|age| age < LOSS))
    }

    /// Records a handler that a reload took out of the configuration, with where it led.
    pub fn record_removed_handler(&self, handler: &str, targets: Vec<(u64, String)>) {
        lock(&self.removed_handlers).insert(handler.into(), RemovedHandler { targets, last_refused: None });
    }

    /// Drops the removed handlers that are configured again.
    pub fn retain_removed_handlers(&self, is_removed: impl Fn(&str) -> bool) {
        lock(&self.removed_handlers).retain(|handler, _| is_removed(handler));
    }

    /// Returns the handlers that reloads took out of the configuration since the start.
    pub fn removed_handlers(&self) -> BTreeMap<Box<str>, RemovedHandler> {
        lock(&self.removed_handlers).clone()
    }

    /// Records a reload.
    pub fn record_reload(&self, result: ReloadResult, problem: Option<String>) {
        push(&self.reloads, Reload { at: SystemTime::now(), result, problem });
    }

    /// Sets the keys of the file that differ from the running process and need a restart, and the file's
    /// `state_dir` if it differs.
    pub fn set_restart_keys(&self, keys: Vec<&'static str>, state_dir: Option<PathBuf>) {
        *lock(&self.restart_keys) = keys;
        *lock(&self.new_state_dir) = state_dir;
    }

    /// Returns the `state_dir` that the file names, if it differs from that of the running process.
    pub fn new_state_dir(&self) -> Option<PathBuf> {
        lock(&self.new_state_dir).clone()
    }

    /// Returns the keys of the file that take effect only at the next start.
    pub fn restart_keys(&self) -> Vec<&'static str> {
        lock(&self.restart_keys).clone()
    }

    /// Sets the processes that were replaced and still finish calls.
    pub fn set_older_processes(&self, processes: Vec<OlderProcess>) {
        *lock(&self.older_processes) = processes;
    }

    /// Returns the processes that were replaced and still finish calls, the latest first.
    pub fn older_processes(&self) -> Vec<OlderProcess> {
        lock(&self.older_processes).clone()
    }

    /// Records the handler that a sandbox was requested with. Several handlers may lead to one handler of a
    /// backend.
    pub fn record_requested_handler(&self, sandbox: &str, handler: &str) {
        let mut handlers = lock(&self.requested_handlers);
        if handlers.len() >= HANDLERS {
            handlers.clear();
        }
        handlers.insert(sandbox.into(), handler.into());
    }

    /// Drops the handler of a sandbox that was removed.
    pub fn forget_requested_handler(&self, sandbox: &str) {
        lock(&self.requested_handlers).remove(sandbox);
    }

    /// Returns the handler that a sandbox was requested with; `None` if it was created before the start.
    pub fn requested_handler(&self, sandbox: &str) -> Option<Box<str>> {
        lock(&self.requested_handlers).get(sandbox).cloned()
    }

    /// Counts the sandboxes that were requested with this handler since the start and are not removed.
    pub fn count_requests_for(&self, handler: &str) -> usize {
        lock(&self.requested_handlers).values().filter(|requested| &***requested == handler).count()
    }

    /// Returns the names of the handlers that sandboxes were requested with, each once.
    pub fn requested_handler_names(&self) -> BTreeSet<Box<str>> {
        let handlers = lock(&self.requested_handlers);
        handlers.values().collect::<BTreeSet<_>>().into_iter().cloned().collect()
    }

    /// Returns the handlers that sandboxes were requested with, by sandbox.
    pub fn requested_handlers(&self) -> HashMap<Box<str>, Box<str>> {
        lock(&self.requested_handlers).clone()
    }

    /// Adds the handlers that sandboxes were requested with before the process that serves was started.
    pub fn take_over_requested_handlers(&self, handlers: HashMap<Box<str>, Box<str>>) {
        lock(&self.requested_handlers).extend(handlers);
    }

    /// Records the states that all backends have now, `None` for one that is not known yet; drops backends
    /// that are not among them.
    pub fn record_states(&self, at: SystemTime, now: &[(&str, Option<&'static str>)]) {
        let mut states = lock(&self.states);
        states.retain(|name, _| now.iter().any(|(backend, _)| **backend == **name));
        for (backend, state) in now {
            let changes = states.entry((*backend).into()).or_default();
            if let Some(state) = *state
                && changes.back().is_none_or(|last| last.state != state)
            {
                changes.push_back(StateChange { at, state });
            }
            // The last change before the hour tells the state at its beginning.
            let is_old =
                |change: &StateChange| at.duration_since(change.at).is_ok_and(|age| age > STATES_KEPT);
            while changes.get(1).is_some_and(is_old) || changes.len() > STATE_CHANGES {
                changes.pop_front();
            }
        }
    }

    /// Returns the changes of a backend's state, oldest first: those of the last hour, and the one before.
    pub fn states(&self, backend: &str) -> Vec<StateChange> {
        lock(&self.states).get(backend).map(|changes| changes.iter().copied().collect()).unwrap_or_default()
    }

    /// Returns since when a backend has been in this state; `None` if it was in another when the states were
    /// recorded last.
    pub fn state_since(&self, backend: &str, state: &str) -> Option<SystemTime> {
        let states = lock(&self.states);
        states.get(backend)?.back().filter(|change| change.state == state).map(|change| change.at)
    }

    /// Tells whether the last reload failed, so that the file is not what is current.
    pub fn is_reload_failed(&self) -> bool {
        lock(&self.reloads).front().is_some_and(|reload| reload.result == ReloadResult::Failed)
    }

    /// Returns the last placements, newest first.
    pub fn placements(&self) -> Vec<Placement> {
        lock(&self.placements).iter().cloned().collect()
    }

    /// Returns the last reloads, newest first.
    pub fn reloads(&self) -> Vec<Reload> {
        lock(&self.reloads).iter().cloned().collect()
    }
}

fn push<T>(list: &Mutex<VecDeque<T>>, item: T) {
    let mut list = lock(list);
    list.truncate(CAPACITY - 1);
    list.push_front(item);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_kept_for_an_hour_with_the_one_before_it() {
        let events = RecentEvents::default();
        let at = |minute: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(minute * 60);
        for (minute, state) in [(0, "ready"), (1, "ready"), (10, "down"), (20, "ready"), (75, "ready")] {
            events.record_states(at(minute), &[("a", Some(state)), ("b", Some("ready"))]);
        }
        let kept: Vec<_> = events.states("a").into_iter().map(|change| (change.at, change.state)).collect();
        assert_eq!(
            kept,
            [(at(10), "down"), (at(20), "ready")],
            "the first hour has the state at its beginning"
        );
        events.record_states(at(75), &[("a", None), ("b", Some("ready"))]);
        assert_eq!(events.states("a").len(), 2, "while it connects again, nothing is known");
        events.record_states(at(76), &[("b", Some("late"))]);
        assert!(events.states("a").is_empty(), "it runs no longer");
        assert_eq!(events.states("b").len(), 2);
    }

    #[test]
    fn only_the_newest_are_kept_and_they_come_first() {
        let events = RecentEvents::default();
        for number in 0..CAPACITY + 5 {
            events.record_placement(Some(&format!("h{number}")), None, Code::Ok);
        }
        let placements = events.placements();
        assert_eq!(placements.len(), CAPACITY);
        assert_eq!(placements[0].handler.as_deref(), Some("h24"));
        assert_eq!(placements[CAPACITY - 1].handler.as_deref(), Some("h5"));
    }
}
