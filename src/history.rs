//! The last placements of sandboxes and the last reloads, for the status page.
//!
//! An operator who looks at a node asks first where new pods went and when the configuration last changed. A
//! short list in memory answers that; logs and metrics have the rest. Nothing here is saved.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tonic::Code;

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
    requested_handlers: Mutex<HashMap<Box<str>, Box<str>>>,
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

    /// Records a reload.
    pub fn record_reload(&self, result: ReloadResult, problem: Option<String>) {
        push(&self.reloads, Reload { at: SystemTime::now(), result, problem });
    }

    /// Sets the keys of the file that differ from the running process and need a restart.
    pub fn set_restart_keys(&self, keys: Vec<&'static str>) {
        *lock(&self.restart_keys) = keys;
    }

    /// Returns the keys of the file that take effect only at the next start.
    pub fn restart_keys(&self) -> Vec<&'static str> {
        lock(&self.restart_keys).clone()
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

fn lock<T>(list: &Mutex<T>) -> MutexGuard<'_, T> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

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
