//! Which backend a reference was last used on, and which pods are between naming it and having a container.
//!
//! The last image call of a container start (`helpers.go getImageUser`) names an image and nothing else, and
//! its answer decides whether the container runs as root. It belongs to a pod that has just been told that the
//! image is there, so each such pod is *awaited* at its backend until that call, or its container, has come. A
//! pod of another backend is held back only if the image has another user there, because then the two calls
//! could be taken for each other. Everything is forgotten after minutes and bounded.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::router::images::User;
use crate::snapshot::image_name::normalise;

/// How long a use tells which backend a call without annotations means.
const REMEMBERED: Duration = Duration::from_secs(300);
/// How long a pod is awaited; there are milliseconds between the calls, unless a node is overloaded.
const AWAITED: Duration = Duration::from_secs(30);
/// The most references that are remembered.
const MAX_REFERENCES: usize = 4096;
/// The most uses of one reference.
const MAX_USES: usize = 256;

/// One use of a reference.
#[derive(Debug)]
struct Use {
    backend: Arc<str>,
    /// The pod's `config.seen`; empty if the call named none.
    pod: Box<str>,
    /// The user that the pod was shown; `None` after a pull, which shows none.
    user: Option<User>,
    awaited: bool,
    at: Instant,
}

impl Use {
    fn is_awaited(&self, now: Instant) -> bool {
        self.awaited && now.saturating_duration_since(self.at) < AWAITED
    }

    fn is_remembered(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < REMEMBERED
    }
}

/// The uses of all references, by normalised reference, the latest last.
#[derive(Debug, Default)]
pub struct RecentUses {
    map: Mutex<HashMap<String, Vec<Use>>>,
}

impl RecentUses {
    /// Records that `pod` pulled an image, or that somebody did if `pod` is empty.
    pub fn pulled(&self, reference: &str, backend: &Arc<str>, pod: &str, now: Instant) {
        let key = normalise(reference);
        let mut map = self.room(&key, now);
        let uses = map.entry(key).or_default();
        push(uses, backend, pod, None, now);
    }

    /// Records that `pod` was shown the image with this user.
    ///
    /// # Errors
    /// The backend of an awaited pod that was shown another user; nothing is recorded then.
    pub fn shown(
        &self,
        reference: &str,
        backend: &Arc<str>,
        pod: &str,
        user: User,
        now: Instant,
    ) -> Result<(), Arc<str>> {
        let key = normalise(reference);
        let mut map = self.room(&key, now);
        let earlier = map.entry(key).or_default();
        let pulled = |used: &Use| *used.pod == *pod && used.backend == *backend && used.user.is_none();
        let differs = |used: &&Use| {
            used.is_awaited(now)
                && *used.pod != *pod
                && used.backend != *backend
                && used.user.as_ref().is_some_and(|other| *other != user)
        };
        // After a pull kubelet goes on whatever it is answered, so refusing it would only hide the use.
        if !earlier.iter().any(pulled)
            && let Some(other) = earlier.iter().find(differs)
        {
            return Err(Arc::clone(&other.backend));
        }
        push(earlier, backend, pod, Some(user), now);
        Ok(())
    }

    /// Returns the backends that pods are awaited at, the latest first.
    pub fn awaited(&self, reference: &str, now: Instant) -> Vec<Arc<str>> {
        let map = self.lock();
        let uses = map.get(&normalise(reference)).map(Vec::as_slice).unwrap_or_default();
        let mut backends: Vec<Arc<str>> = Vec::new();
        for used in uses.iter().rev().filter(|used| used.is_awaited(now)) {
            if !backends.contains(&used.backend) {
                backends.push(Arc::clone(&used.backend));
            }
        }
        backends
    }

    /// Returns the backend that the reference was used on last.
    pub fn latest(&self, reference: &str, now: Instant) -> Option<Arc<str>> {
        let map = self.lock();
        let latest = map.get(&normalise(reference))?.last().filter(|used| used.is_remembered(now))?;
        Some(Arc::clone(&latest.backend))
    }

    /// Records that a call without annotations was answered: if only one pod is awaited, it was its.
    pub fn told(&self, reference: &str, now: Instant) {
        if let Some(uses) = self.lock().get_mut(&normalise(reference)) {
            let mut awaited = uses.iter_mut().filter(|used| used.is_awaited(now));
            if let (Some(only), None) = (awaited.next(), awaited.next()) {
                only.awaited = false;
            }
        }
    }

    /// Records that `pod` went on to create its container, whatever came of it.
    pub fn went_on(&self, pod: &str) {
        if !pod.is_empty() {
            let mut map = self.lock();
            for used in map.values_mut().flatten().filter(|used| *used.pod == *pod) {
                used.awaited = false;
            }
        }
    }

    /// Records that `pod` was told that the image is not there: it starts anew, unless it has just pulled, after
    /// which kubelet goes on whatever it is answered.
    pub fn missed(&self, reference: &str, pod: &str) {
        self.retain(reference, |used| *used.pod != *pod || used.user.is_none());
    }

    /// Forgets that a reference was used on a backend: the image is gone from there. A pod that is awaited there
    /// stays awaited, lest it be told another backend's user.
    pub fn forget(&self, reference: &str, backend: &str) {
        self.retain(reference, |used| used.awaited || &*used.backend != backend);
    }

    fn retain(&self, reference: &str, keep: impl Fn(&Use) -> bool) {
        let mut map = self.lock();
        let key = normalise(reference);
        if let Some(uses) = map.get_mut(&key) {
            uses.retain(keep);
            if uses.is_empty() {
                map.remove(&key);
            }
        }
    }

    /// Makes room for one more reference, unless it is there already.
    fn room(&self, key: &str, now: Instant) -> MutexGuard<'_, HashMap<String, Vec<Use>>> {
        let mut map = self.lock();
        if map.contains_key(key) {
            return map;
        }
        if map.len() >= MAX_REFERENCES {
            map.retain(|_, uses| uses.last().is_some_and(|used| used.is_remembered(now)));
        }
        if map.len() >= MAX_REFERENCES {
            let oldest = map.iter().min_by_key(|(_, uses)| uses.last().map(|used| used.at));
            if let Some(oldest) = oldest.map(|(reference, _)| reference.clone()) {
                map.remove(&oldest);
            }
        }
        map
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<Use>>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts a use at the end, in the place of the same pod's earlier one.
fn push(earlier: &mut Vec<Use>, backend: &Arc<str>, pod: &str, user: Option<User>, now: Instant) {
    earlier.retain(|used| used.is_remembered(now) && *used.pod != *pod);
    if earlier.len() >= MAX_USES {
        earlier.remove(0);
    }
    let backend = Arc::clone(backend);
    earlier.push(Use { backend, pod: pod.into(), user, awaited: !pod.is_empty(), at: now });
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFERENCE: &str = "app:1";

    fn start() -> (RecentUses, Arc<str>, Arc<str>, Instant) {
        (RecentUses::default(), "a".into(), "b".into(), Instant::now())
    }

    fn names(backends: &[Arc<str>]) -> Vec<&str> {
        backends.iter().map(|backend| &**backend).collect()
    }

    #[test]
    fn the_latest_use_counts_under_any_form_of_its_name_and_for_five_minutes() {
        let (uses, a, b, now) = start();
        uses.pulled("app", &a, "", now);
        uses.pulled("docker.io/library/app:latest", &b, "", now);
        assert_eq!(uses.latest("app:latest", now), Some(Arc::clone(&b)));
        assert_eq!(uses.latest("app", now + Duration::from_secs(299)), Some(b));
        assert_eq!(uses.latest("app", now + Duration::from_secs(300)), None);
        assert_eq!(names(&uses.awaited("app", now)), [""; 0], "nobody said for which pod");
    }

    #[test]
    fn pods_of_two_backends_are_awaited_until_they_went_on() {
        let (uses, a, b, now) = start();
        assert_eq!(uses.shown(REFERENCE, &a, "p1", User::Uid(7), now), Ok(()));
        assert_eq!(uses.shown(REFERENCE, &b, "p2", User::Uid(7), now), Ok(()));
        uses.told(REFERENCE, now);
        assert_eq!(names(&uses.awaited(REFERENCE, now)), ["b", "a"], "it cannot be known whose call it was");
        uses.went_on("p2");
        assert_eq!(names(&uses.awaited(REFERENCE, now)), ["a"]);
        uses.told(REFERENCE, now);
        assert_eq!(names(&uses.awaited(REFERENCE, now)), [""; 0]);
        assert_eq!(uses.latest(REFERENCE, now), Some(b));
    }

    #[test]
    fn a_pod_is_held_back_while_another_backends_pod_is_awaited_with_another_user() {
        let (uses, a, b, now) = start();
        assert_eq!(uses.shown(REFERENCE, &a, "p1", User::Uid(7), now), Ok(()));
        assert_eq!(uses.shown(REFERENCE, &b, "p2", User::Uid(0), now), Err(Arc::clone(&a)));
        assert_eq!(names(&uses.awaited(REFERENCE, now)), ["a"]);
        uses.told(REFERENCE, now);
        assert_eq!(uses.shown(REFERENCE, &b, "p2", User::Uid(0), now), Ok(()));
        let later = now + AWAITED;
        assert_eq!(uses.shown(REFERENCE, &a, "p1", User::Uid(7), later), Ok(()), "awaited for 30 s only");
    }

    #[test]
    fn a_pod_that_pulled_is_never_held_back() {
        let (uses, a, b, now) = start();
        assert_eq!(uses.shown(REFERENCE, &a, "p1", User::Uid(7), now), Ok(()));
        uses.pulled(REFERENCE, &b, "p2", now);
        assert_eq!(uses.shown(REFERENCE, &b, "p2", User::Uid(0), now), Ok(()));
        assert_eq!(names(&uses.awaited(REFERENCE, now)), ["b", "a"]);
    }

    #[test]
    fn a_forgotten_use_counts_no_more_but_who_is_awaited_stays_so() {
        let (uses, a, b, now) = start();
        uses.pulled(REFERENCE, &a, "", now);
        uses.pulled(REFERENCE, &b, "p2", now);
        uses.forget("docker.io/library/app:1", "b");
        assert_eq!(names(&uses.awaited(REFERENCE, now)), ["b"]);
        uses.went_on("p2");
        uses.forget("docker.io/library/app:1", "b");
        assert_eq!(uses.latest(REFERENCE, now), Some(a));
    }

    #[test]
    fn a_pod_that_was_told_that_the_image_is_absent_is_not_awaited() {
        let (uses, a, b, now) = start();
        uses.pulled(REFERENCE, &a, "p1", now);
        assert_eq!(uses.shown(REFERENCE, &b, "p2", User::Uid(7), now), Ok(()));
        uses.missed(REFERENCE, "p1");
        uses.missed(REFERENCE, "p2");
        assert_eq!(names(&uses.awaited(REFERENCE, now)), ["a"], "after a pull kubelet goes on");
    }

    #[test]
    fn memory_is_bounded() {
        let (uses, a, _, now) = start();
        for number in 0..MAX_REFERENCES + 10 {
            uses.pulled(&format!("app:{number}"), &a, "p", now + Duration::from_millis(number as u64));
        }
        for number in 0..MAX_USES + 10 {
            uses.pulled("app:100", &a, &format!("p{number}"), now + Duration::from_secs(60));
        }
        let map = uses.lock();
        assert_eq!(map.len(), MAX_REFERENCES);
        assert_eq!(map.values().map(Vec::len).max(), Some(MAX_USES));
    }
}
