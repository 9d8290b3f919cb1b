//! Everything a simulated runtime knows: sandboxes, containers, images, and what was done to it.
//!
//! RPCs and tests change the same state through the same methods, so that what a test does behind a proxy's
//! back also shows in lists and events. Replies to reads are kept, encoded, until something changes: a
//! benchmark must measure the proxy, not this.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Deref, DerefMut};
use std::sync::MutexGuard;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use prost::Message;
use tokio::sync::mpsc;
use tonic::Status;

use super::abilities::Abilities;
use super::containers::container_name;
use super::frame;
use super::ids::Ids;
use super::images::Pull;
use super::sandboxes::sandbox_name;
use crate::cri;

/// Replies kept per method before they are thrown away, a bound on memory.
const KEPT_REPLIES: usize = 8192;

/// A pod sandbox.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// Its ID.
    pub id: String,
    /// The configuration it was run with.
    pub config: cri::PodSandboxConfig,
    /// The handler it was run with, as it was given.
    pub handler: String,
    /// Whether it is READY.
    pub ready: bool,
    /// When it was made, in nanoseconds since 1970.
    pub created_at: i64,
    /// Its address.
    pub ip: String,
}

/// A container.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its ID.
    pub id: String,
    /// The ID of its sandbox.
    pub sandbox_id: String,
    /// The configuration it was created with.
    pub config: cri::ContainerConfig,
    /// Its state.
    pub state: cri::ContainerState,
    /// The ID of its image.
    pub image_id: String,
    /// When it was created, in nanoseconds since 1970.
    pub created_at: i64,
    /// When it was started; 0 before.
    pub started_at: i64,
    /// When it ended; 0 before.
    pub finished_at: i64,
    /// The exit code of its process.
    pub exit_code: i32,
    /// The resources of the last update, if there was one.
    pub resources: Option<cri::LinuxContainerResources>,
}

/// What a simulated runtime knows. IDs may be given as unique prefixes.
#[derive(Debug)]
pub struct State {
    /// What it can do; a change acts on the next call.
    pub abilities: Abilities,
    /// The name that `Version` reports.
    pub name: String,
    /// The conditions of `Status`; both required ones are true at the start.
    pub conditions: Vec<cri::RuntimeCondition>,
    /// The pod CIDR of the last `UpdateRuntimeConfig`.
    pub pod_cidr: Option<String>,
    /// The images by ID.
    pub images: BTreeMap<String, cri::Image>,
    /// The images that were pulled, in order, with the credentials used.
    pub pulls: Vec<Pull>,
    /// Paths that checkpoints were written to, in order.
    pub checkpoints: Vec<String>,
    /// The containers whose logs were reopened, in order.
    pub reopened_logs: Vec<String>,
    pub(crate) sandboxes: BTreeMap<String, Sandbox>,
    pub(crate) containers: BTreeMap<String, Container>,
    pub(crate) names: BTreeMap<String, String>,
    pub(crate) ids: Ids,
    pub(crate) subscribers: Vec<mpsc::UnboundedSender<Result<Bytes, Status>>>,
    kept: HashMap<&'static str, HashMap<Bytes, Bytes>>,
}

impl State {
    pub(crate) fn new(name: &str, abilities: Abilities, seed: Option<u64>) -> Self {
        Self {
            abilities,
            name: name.to_owned(),
            conditions: vec![condition("RuntimeReady"), condition("NetworkReady")],
            pod_cidr: None,
            images: BTreeMap::new(),
            pulls: Vec::new(),
            checkpoints: Vec::new(),
            reopened_logs: Vec::new(),
            sandboxes: BTreeMap::new(),
            containers: BTreeMap::new(),
            names: BTreeMap::new(),
            ids: Ids::new(seed),
            subscribers: Vec::new(),
            kept: HashMap::new(),
        }
    }

    /// Returns the sandbox with this ID or unique prefix.
    pub fn sandbox(&self, id: &str) -> Option<&Sandbox> {
        by_prefix(&self.sandboxes, id).map(|full| &self.sandboxes[full])
    }

    /// Returns the container with this ID or unique prefix.
    pub fn container(&self, id: &str) -> Option<&Container> {
        by_prefix(&self.containers, id).map(|full| &self.containers[full])
    }

    /// Returns all sandboxes in the order of their IDs.
    pub fn sandboxes(&self) -> impl Iterator<Item = &Sandbox> {
        self.sandboxes.values()
    }

    /// Returns all containers in the order of their IDs.
    pub fn containers(&self) -> impl Iterator<Item = &Container> {
        self.containers.values()
    }

    /// Returns the containers of a sandbox, given by its full ID.
    pub fn containers_of<'a>(&'a self, sandbox_id: &'a str) -> impl Iterator<Item = &'a Container> {
        self.containers.values().filter(move |container| container.sandbox_id == sandbox_id)
    }

    /// Reserves the name that a create asks for; `None` if it is no create or the name is taken.
    pub(crate) fn reserve(&mut self, method: &str, message: &Bytes) -> Option<String> {
        let name = match method {
            "RunPodSandbox" => {
                let config = cri::RunPodSandboxRequest::decode(message.clone()).ok()?.config?;
                sandbox_name(&config.metadata?)
            }
            "CreateContainer" => {
                let request = cri::CreateContainerRequest::decode(message.clone()).ok()?;
                let metadata = request.config?.metadata?;
                container_name(&metadata, &self.sandbox(&request.pod_sandbox_id)?.config)
            }
            _ => return None,
        };
        if self.names.contains_key(&name) {
            return None;
        }
        self.names.insert(name.clone(), "a create that has not ended".to_owned());
        Some(name)
    }

    /// Gives up a name, so that it can be used again.
    pub(crate) fn release_name_of(&mut self, id: &str) {
        self.names.retain(|_, owner| owner != id);
    }

    pub(crate) fn kept(&mut self, method: &str, message: &Bytes) -> Option<Bytes> {
        let kept = self.kept.get_mut(method)?.get_mut(message)?;
        if self.abilities.rotate_lists && ["ListPodSandbox", "ListContainers"].contains(&method) {
            *kept = frame::rotated(kept);
        }
        Some(kept.clone())
    }

    pub(crate) fn keep(&mut self, method: &'static str, message: &Bytes, frames: &Bytes) {
        let replies = self.kept.entry(method).or_default();
        if replies.len() >= KEPT_REPLIES {
            replies.clear();
        }
        // A copy: the message is a slice of a connection's read buffer, which must not be held for long.
        replies.insert(Bytes::copy_from_slice(message), frames.clone());
    }

    pub(crate) fn changed(&mut self) {
        self.kept.clear();
    }
}

/// Exclusive access to the state of a runtime; the runtime answers nothing while it is held.
#[derive(Debug)]
pub struct StateGuard<'a>(pub(crate) MutexGuard<'a, State>);

impl Deref for StateGuard<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}

impl DerefMut for StateGuard<'_> {
    fn deref_mut(&mut self) -> &mut State {
        self.0.changed();
        &mut self.0
    }
}

/// Finds the one key that starts with `prefix`; an empty one finds nothing (containerd, `truncindex`).
pub(crate) fn by_prefix<'a, T>(table: &'a BTreeMap<String, T>, prefix: &str) -> Option<&'a str> {
    if prefix.is_empty() {
        return None;
    }
    let mut matches = table
        .range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded))
        .map(|(id, _)| id.as_str())
        .take_while(|id| id.starts_with(prefix));
    let first = matches.next()?;
    // An exact match is the smallest of its matches, and is meant even where longer ones follow.
    (first == prefix || matches.next().is_none()).then_some(first)
}

/// Whether `labels` has every pair of `selector`.
pub(crate) fn selected<S1, S2>(
    selector: &HashMap<String, String, S1>,
    labels: &HashMap<String, String, S2>,
) -> bool
where
    S1: std::hash::BuildHasher,
    S2: std::hash::BuildHasher,
{
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX)
}

fn condition(name: &str) -> cri::RuntimeCondition {
    cri::RuntimeCondition { r#type: name.to_owned(), status: true, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_finds_one_key_or_none() {
        let table: BTreeMap<String, u8> = ["abc", "abd", "b", "ba"].map(|key| (key.to_owned(), 0)).into();
        assert_eq!(by_prefix(&table, "abc"), Some("abc"));
        assert_eq!(by_prefix(&table, "ab"), None, "ambiguous");
        assert_eq!(by_prefix(&table, "b"), Some("b"), "exact");
        assert_eq!(by_prefix(&table, "x"), None);
        assert_eq!(by_prefix(&table, ""), None);
    }
}
