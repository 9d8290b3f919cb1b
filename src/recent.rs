//! What happened lately: the last placements of sandboxes and the last reloads, for the status page.
//!
//! An operator who looks at a node asks first where new pods went and when the configuration last changed. A
//! short list in memory answers that; logs and metrics have the rest. Nothing here is saved, and nothing may
//! enter that a metric label or a log line at `info` would not say: no pod names, no contents of messages.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tonic::Code;

/// How many of each are kept.
const KEPT: usize = 20;

/// Where a new sandbox went, or why it went nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// When it was answered.
    pub at: SystemTime,
    /// The handler, if it is a configured one; `None` for one that is not, which may be any text.
    pub handler: Option<Box<str>>,
    /// The backend; `None` if none was chosen.
    pub backend: Option<Arc<str>>,
    /// What it was answered with.
    pub code: Code,
}

/// A configuration that was read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reload {
    /// When.
    pub at: SystemTime,
    /// The `result` label: `ok` or `failed`.
    pub result: &'static str,
}

/// The last of both, newest first.
#[derive(Debug, Default)]
pub struct Recent {
    placements: Mutex<VecDeque<Placement>>,
    reloads: Mutex<VecDeque<Reload>>,
}

impl Recent {
    /// Notes where a sandbox went.
    pub fn placed(&self, handler: Option<&str>, backend: Option<&Arc<str>>, code: Code) {
        let at = SystemTime::now();
        let placement = Placement { at, handler: handler.map(Box::from), backend: backend.cloned(), code };
        push(&self.placements, placement);
    }

    /// Notes a reload.
    pub fn reloaded(&self, result: &'static str) {
        push(&self.reloads, Reload { at: SystemTime::now(), result });
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
    list.truncate(KEPT - 1);
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
        let recent = Recent::default();
        for number in 0..KEPT + 5 {
            recent.placed(Some(&format!("h{number}")), None, Code::Ok);
        }
        let placements = recent.placements();
        assert_eq!(placements.len(), KEPT);
        assert_eq!(placements[0].handler.as_deref(), Some("h24"));
        assert_eq!(placements[KEPT - 1].handler.as_deref(), Some("h5"));
    }
}
