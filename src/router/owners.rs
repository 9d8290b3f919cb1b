//! IDs and the backends that hold them.
//!
//! Sandboxes and containers share one map, as they share one space of IDs in kubelet's PLEG. An owner is
//! learnt from a reply or a list and forgotten when the object was removed; it is never guessed. The same ID
//! at two backends keeps its first owner, unless `proxy/learn/conflicts.rs` decides for the other one, and is
//! reported. A prefix is looked for over all backends at once
//! (containerd `truncindex`, CRI-O `podIDIndex`), which costs a pass over the map: people type prefixes,
//! kubelet does not.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use crate::method::Kind;
use crate::mutex::lock;
use crate::state::InstanceId;

pub(super) use handed::{HandedCreation, HandedRemoval};
pub use record::{Annotations, SandboxRecord};

mod handed;
mod record;

/// How long it is remembered who owned an ID that was removed: kubelet asks once more for what it has just
/// removed (`pod_container_deletor.go`, `kuberuntime_gc.go`), and that question is for its owner alone.
const REMOVED_FOR: Duration = Duration::from_secs(300);
/// Beyond this many removed IDs, the oldest are not remembered.
const MAX_REMOVED: usize = 10_000;

/// How long a creation that was sent counts as possibly done without a list that shows its sandbox.
const SENT: Duration = Duration::from_secs(600);

/// An ID of the map.
#[derive(Debug, Clone)]
struct OwnedId {
    /// The owner.
    pub backend: InstanceId,
    /// What the ID names.
    pub kind: Kind,
    record: Option<Arc<SandboxRecord>>,
}

/// The answer of [`Owners`] to a backend that claims an ID by showing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// The claimant is the owner, perhaps from now on.
    Granted,
    /// Another backend is the owner; nothing was changed.
    HeldBy(InstanceId),
}

/// How an ID in a request matches the IDs of the map; nothing is asked of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdMatch {
    /// Exactly this ID is owned, or was until it was removed, at most 300 s ago.
    Exact(InstanceId),
    /// The prefix of one ID only, which is given in full.
    Prefix(InstanceId, String),
    /// The prefix of several IDs.
    Ambiguous,
    /// Nobody is known to own it.
    Unknown,
}

/// Where the sandboxes of one pod are, or may be.
#[derive(Debug, Default)]
struct PodOwners {
    /// How many of its sandboxes each backend holds.
    held: Vec<(InstanceId, usize)>,
    /// The backends that a creation was sent to: its reply may be lost, and until its next list such a
    /// backend may hold a sandbox of the pod that is not known.
    sent: Vec<(InstanceId, Instant)>,
}

/// A sandbox and its owner.
#[derive(Debug, Clone)]
pub struct OwnedSandbox {
    /// The sandbox's ID.
    pub id: Box<str>,
    /// The backend that holds it.
    pub backend: InstanceId,
    /// What is remembered of it.
    pub record: Arc<SandboxRecord>,
}

/// The map.
#[derive(Debug, Default)]
pub struct Owners {
    map: DashMap<Box<str>, OwnedId, foldhash::fast::RandomState>,
    pods: DashMap<Box<str>, PodOwners, foldhash::fast::RandomState>,
    removed: Mutex<Removed>,
    /// Increases with each forgotten ID. An unchanged list is read again if this has changed since.
    version: AtomicU64,
}

/// The IDs that were removed lately, and whose they were.
#[derive(Debug, Default)]
struct Removed {
    owners: HashMap<Box<str>, (InstanceId, Kind)>,
    order: VecDeque<(Instant, Box<str>)>,
}

impl Owners {
    /// Learns that `backend` holds a container, unless another one owns it.
    pub fn learn_container(&self, id: &str, backend: InstanceId) -> Claim {
        self.learn(id, OwnedId { backend, kind: Kind::Container, record: None })
    }

    /// Learns that `backend` holds a sandbox, unless another one owns it.
    pub fn learn_sandbox(&self, id: &str, backend: InstanceId, record: SandboxRecord) -> Claim {
        self.learn(id, OwnedId { backend, kind: Kind::Sandbox, record: Some(Arc::new(record)) })
    }

    /// Gives an ID to another owner than the one that it has.
    pub fn transfer(&self, id: &str, backend: InstanceId) {
        let Some(mut owner) = self.map.get_mut(id) else { return };
        let before = owner.clone();
        owner.backend = backend;
        drop(owner);
        if let Some(record) = &before.record {
            self.hold(&record.uid, backend);
            self.release(&before);
        }
    }

    /// Returns the owner of exactly this ID.
    pub fn owner_of(&self, id: &str) -> Option<InstanceId> {
        self.map.get(id).map(|owner| owner.backend)
    }

    fn learn(&self, id: &str, owner: OwnedId) -> Claim {
        let pod = owner.record.as_ref().map(|record| (record.uid.clone(), owner.backend));
        match self.map.entry(id.into()) {
            Entry::Vacant(vacant) => {
                vacant.insert(owner);
                if let Some((uid, backend)) = pod {
                    self.hold(&uid, backend);
                }
                Claim::Granted
            }
            Entry::Occupied(mut known) if known.get().backend == owner.backend => {
                let before = known.insert(owner);
                if let Some((uid, backend)) = pod {
                    self.hold(&uid, backend);
                    self.release(&before);
                }
                Claim::Granted
            }
            Entry::Occupied(known) => Claim::HeldBy(known.get().backend),
        }
    }

    /// Tells whether `backend` is known to own exactly this ID.
    pub fn is_owned_by(&self, id: &str, backend: InstanceId) -> bool {
        self.map.get(id).is_some_and(|owner| owner.backend == backend)
    }

    /// Records whether a sandbox is ready.
    pub fn record_ready(&self, id: &str, ready: bool) {
        let differs = |owner: &OwnedId| owner.record.as_ref().is_some_and(|record| record.ready != ready);
        if self.map.get(id).is_some_and(|owner| differs(&owner)) {
            self.change(id, |record| record.ready = ready);
        }
    }

    /// Tells whether this is a sandbox that was ready when it was listed last.
    pub fn is_ready_sandbox(&self, id: &str) -> bool {
        self.map.get(id).is_some_and(|owner| owner.record.as_ref().is_some_and(|record| record.ready))
    }

    /// Records a new `config.seen` of the pod `uid`: kubelet sets one when it restarts, while a sandbox keeps
    /// the one it was created with. Returns the replaced ones that no sandbox has any more.
    pub(super) fn record_config_seen(&self, uid: &str, config_seen: &str) -> Vec<Box<str>> {
        if uid.is_empty() || config_seen.is_empty() {
            return Vec::new();
        }
        let outdated = |record: &SandboxRecord| &*record.uid == uid && &*record.config_seen != config_seen;
        let ids: Vec<_> = self
            .map
            .iter()
            .filter(|entry| entry.record.as_ref().is_some_and(|record| outdated(record)))
            .map(|entry| entry.key().clone())
            .collect();
        let mut replaced = Vec::new();
        for id in ids {
            self.change(&id, |record| {
                replaced.push(std::mem::replace(&mut record.config_seen, config_seen.into()));
            });
        }
        let is_meant = |seen: &str| {
            self.map
                .iter()
                .any(|entry| entry.record.as_ref().is_some_and(|record| &*record.config_seen == seen))
        };
        replaced.retain(|seen| !seen.is_empty() && !is_meant(seen));
        replaced
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut SandboxRecord)) {
        if let Some(mut owner) = self.map.get_mut(id)
            && let Some(record) = &mut owner.record
        {
            change(Arc::make_mut(record));
        }
    }

    /// Finds the owner of an ID or of a unique prefix of one, within `scope` if that is given.
    pub fn find(&self, kind: Option<Kind>, id: &str, scope: Option<InstanceId>) -> IdMatch {
        let fits = |owner: InstanceId, of: Kind| {
            kind.is_none_or(|kind| kind == of) && scope.is_none_or(|scope| scope == owner)
        };
        if let Some(owner) = self.map.get(id).filter(|owner| fits(owner.backend, owner.kind)) {
            return IdMatch::Exact(owner.backend);
        }
        let of_removed = self.removed_ids().owner(id);
        if let Some((owner, _)) = of_removed.filter(|(owner, of)| fits(*owner, *of)) {
            return IdMatch::Exact(owner);
        }
        let mut hits = self
            .map
            .iter()
            .filter(|entry| entry.key().starts_with(id) && fits(entry.value().backend, entry.value().kind));
        match (hits.next(), hits.next()) {
            (None, _) => IdMatch::Unknown,
            (Some(hit), None) => IdMatch::Prefix(hit.backend, hit.key().to_string()),
            _ => IdMatch::Ambiguous,
        }
    }

    /// Forgets an ID whose object was removed through crimux. Calls about it still go to its owner for 300 s.
    pub fn remove(&self, id: &str) {
        if let Some((id, owner)) = self.map.remove(id) {
            self.version.fetch_add(1, Ordering::Relaxed);
            self.release(&owner);
            self.removed_ids().push(id, owner.backend, owner.kind);
        }
    }

    /// Forgets an ID at once: its owner lists it no more, or is no more. Returns what it named.
    pub fn forget(&self, id: &str) -> Option<Kind> {
        let (_, owner) = self.map.remove(id)?;
        self.version.fetch_add(1, Ordering::Relaxed);
        self.release(&owner);
        Some(owner.kind)
    }

    /// Records that the creation of a sandbox of the pod `uid` is about to be sent to `backend`.
    pub fn record_create_sent(&self, uid: &str, backend: InstanceId) {
        if !uid.is_empty() {
            let mut pod = self.pods.entry(uid.into()).or_default();
            pod.sent.retain(|(other, at)| *other != backend && at.elapsed() < SENT);
            pod.sent.push((backend, Instant::now()));
        }
    }

    /// Returns the only backend that holds, or may hold, sandboxes of the pod `uid`; `None` if there are
    /// several or none.
    pub fn sole_backend_of_pod(&self, uid: &str) -> Option<InstanceId> {
        let pod = self.pods.get(uid)?;
        let (first, _) = pod.held.first()?;
        let sent = pod.sent.iter().filter(|(_, at)| at.elapsed() < SENT).map(|(backend, _)| backend);
        let mut all = pod.held.iter().map(|(backend, _)| backend).chain(sent);
        all.all(|backend| backend == first).then_some(*first)
    }

    /// Drops creations that were sent too long ago to be pending.
    pub fn expire_sent(&self) {
        self.pods.retain(|_, pod| {
            pod.sent.retain(|(_, at)| at.elapsed() < SENT);
            !pod.held.is_empty() || !pod.sent.is_empty()
        });
    }

    fn hold(&self, uid: &str, backend: InstanceId) {
        let mut pod = self.pods.entry(uid.into()).or_default();
        match pod.held.iter_mut().find(|(holder, _)| *holder == backend) {
            Some((_, count)) => *count += 1,
            None => pod.held.push((backend, 1)),
        }
    }

    fn release(&self, owner: &OwnedId) {
        let Some(uid) = owner.record.as_ref().map(|record| &record.uid) else { return };
        if let Some(mut pod) = self.pods.get_mut(uid) {
            pod.held
                .iter_mut()
                .filter(|(holder, _)| *holder == owner.backend)
                .for_each(|(_, count)| *count -= 1);
            pod.held.retain(|(_, count)| *count > 0);
        }
        self.pods.remove_if(uid, |_, pod| pod.held.is_empty() && pod.sent.is_empty());
    }

    /// Forgets all IDs of `backend`, the removed ones too.
    pub fn forget_all_of(&self, backend: InstanceId) {
        self.ids_of(backend).iter().for_each(|id| _ = self.forget(id));
        self.removed_ids().owners.retain(|_, (owner, _)| *owner != backend);
    }

    /// Returns the version of the map, which increases with each forgotten ID.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    fn removed_ids(&self) -> std::sync::MutexGuard<'_, Removed> {
        lock(&self.removed)
    }

    /// Returns the IDs of `backend`.
    pub fn ids_of(&self, backend: InstanceId) -> HashSet<Box<str>> {
        let owned = self.map.iter().filter(|entry| entry.backend == backend);
        owned.map(|entry| entry.key().clone()).collect()
    }

    /// Counts the sandboxes and containers of `backend`.
    pub fn count(&self, backend: InstanceId) -> (usize, usize) {
        self.count_where(|owner| owner == backend)
    }

    /// Counts the sandboxes and containers of all backends.
    pub fn count_all(&self) -> (usize, usize) {
        self.count_where(|_| true)
    }

    fn count_where(&self, matches: impl Fn(InstanceId) -> bool) -> (usize, usize) {
        self.map.iter().filter(|entry| matches(entry.backend)).fold((0, 0), |(s, c), entry| {
            match entry.kind {
                Kind::Sandbox => (s + 1, c),
                Kind::Container => (s, c + 1),
            }
        })
    }

    /// Returns the sandboxes that `matches` picks.
    pub fn sandboxes(&self, matches: impl Fn(&SandboxRecord) -> bool) -> Vec<OwnedSandbox> {
        let sandboxes = self.map.iter().filter_map(|entry| {
            let record = Arc::clone(entry.record.as_ref().filter(|record| matches(record))?);
            Some(OwnedSandbox { id: entry.key().clone(), backend: entry.backend, record })
        });
        sandboxes.collect()
    }

    /// Returns the newest sandbox that `matches` picks, a ready one if there is any.
    pub fn newest(&self, matches: impl Fn(&SandboxRecord) -> bool) -> Option<OwnedSandbox> {
        self.sandboxes(matches).into_iter().max_by_key(|owned| (owned.record.ready, owned.record.created_at))
    }
}

impl Removed {
    fn owner(&self, id: &str) -> Option<(InstanceId, Kind)> {
        if self.owners.is_empty() { None } else { self.owners.get(id).copied() }
    }

    fn push(&mut self, id: Box<str>, backend: InstanceId, kind: Kind) {
        let now = Instant::now();
        while let Some((since, _)) = self.order.front()
            && (now.duration_since(*since) > REMOVED_FOR || self.order.len() >= MAX_REMOVED)
        {
            if let Some((_, oldest)) = self.order.pop_front() {
                self.owners.remove(&oldest);
            }
        }
        self.order.push_back((now, id.clone()));
        self.owners.insert(id, (backend, kind));
    }
}

#[cfg(test)]
mod tests;
