//! Pods that an operator has aimed at a backend: `crimux route --next`.
//!
//! An aim is for the next sandbox of a pod, and from then on for every sandbox of the same uid, so that
//! kubelet's retry, and a later attempt of the same pod, land where the first one did. It is in memory
//! alone: a restart of crimux ends it, an upgrade hands it over. This module must not judge whether
//! the pod's handler leads there.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::state::InstanceId;

use crate::mutex::lock;
use crate::router::millis::{millis_since, moment_ago};

/// How long an aim waits for its pod.
pub const AIM_LIFETIME: Duration = Duration::from_secs(3600);
/// How many aims are kept; a newer one drops the oldest.
const MOST: usize = 256;

/// One pod, aimed at one backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aim {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// The backend.
    pub backend: InstanceId,
    /// The uid of the pod that the aim is bound to; `None` while it waits for one.
    pub uid: Option<String>,
    /// When it was set.
    since: Instant,
}

/// An aim, as it passes to the process that takes over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedAim {
    namespace: String,
    name: String,
    backend: u64,
    uid: Option<String>,
    age: u64,
}

/// The aims, oldest first.
#[derive(Debug, Default)]
pub struct Aims(Mutex<Vec<Aim>>);

impl Aims {
    /// Aims the next sandbox of a pod, in place of an aim that waits for the same name.
    pub fn set(&self, namespace: &str, name: &str, backend: InstanceId) {
        self.cancel(namespace, name);
        let mut aims = self.lock();
        if aims.len() >= MOST {
            aims.remove(0);
        }
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        aims.push(Aim { namespace, name, backend, uid: None, since: Instant::now() });
    }

    /// Drops the aim that waits for this pod; tells whether there was one.
    pub fn cancel(&self, namespace: &str, name: &str) -> bool {
        let mut aims = self.lock();
        let before = aims.len();
        aims.retain(|aim| aim.uid.is_some() || aim.namespace != namespace || aim.name != name);
        aims.len() < before
    }

    /// Returns the backend that a new sandbox of this pod is aimed at, and binds the aim to its uid.
    pub fn bind_to_uid(&self, namespace: &str, name: &str, uid: &str) -> Option<InstanceId> {
        let mut aims = self.lock();
        let waits = |aim: &Aim| aim.uid.is_none() && aim.namespace == namespace && aim.name == name;
        let met = aims.iter().position(waits);
        let met = met.or_else(|| aims.iter().position(|aim| aim.uid.as_deref() == Some(uid)))?;
        let aim = &mut aims[met];
        if aim.uid.is_none() {
            aim.uid = Some(uid.to_owned());
        }
        Some(aim.backend)
    }

    /// Returns the aims that wait for their pod, with the time that each has left.
    pub fn waiting(&self) -> Vec<(Aim, Duration)> {
        let aims = self.lock();
        let left = |aim: &Aim| AIM_LIFETIME.saturating_sub(aim.since.elapsed());
        aims.iter().filter(|aim| aim.uid.is_none()).map(|aim| (aim.clone(), left(aim))).collect()
    }

    /// Returns all aims for another process.
    pub fn memory(&self) -> Vec<HandedAim> {
        let handed = |aim: &Aim| HandedAim {
            namespace: aim.namespace.clone(),
            name: aim.name.clone(),
            backend: aim.backend.0,
            uid: aim.uid.clone(),
            age: millis_since(aim.since),
        };
        self.lock().iter().map(handed).collect()
    }

    /// Takes over the aims of another process.
    pub fn take_over(&self, handed: Vec<HandedAim>) {
        let aim = |HandedAim { namespace, name, backend, uid, age }| {
            let (backend, since) = (InstanceId(backend), moment_ago(age));
            Aim { namespace, name, backend, uid, since }
        };
        self.lock().extend(handed.into_iter().map(aim));
    }

    /// Locks the aims, and drops those that have waited too long.
    fn lock(&self) -> MutexGuard<'_, Vec<Aim>> {
        let mut aims = lock(&self.0);
        aims.retain(|aim| aim.uid.is_some() || aim.since.elapsed() < AIM_LIFETIME);
        aims
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aim_is_for_one_pod_and_all_of_its_sandboxes() {
        let (aims, b, c) = (Aims::default(), InstanceId(2), InstanceId(3));
        aims.set("default", "web-0", b);
        assert_eq!(aims.bind_to_uid("default", "web-1", "u1"), None);
        assert_eq!(aims.bind_to_uid("default", "web-0", "u2"), Some(b));
        assert_eq!(aims.bind_to_uid("default", "web-0", "u2"), Some(b), "the next attempt of the same pod");
        assert_eq!(aims.bind_to_uid("default", "web-0", "u3"), None, "the pod after it");
        aims.set("default", "web-0", b);
        aims.set("default", "web-0", c);
        assert_eq!(aims.waiting().len(), 1);
        assert_eq!(aims.bind_to_uid("default", "web-0", "u2"), Some(c), "the newer aim counts");
    }

    #[test]
    fn a_cancelled_aim_is_met_by_nobody() {
        let aims = Aims::default();
        aims.set("default", "web-0", InstanceId(2));
        assert!(aims.cancel("default", "web-0") && !aims.cancel("default", "web-0"));
        assert_eq!(aims.bind_to_uid("default", "web-0", "u1"), None);
    }
}
