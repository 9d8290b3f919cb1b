//! Tests of the snapshot as a whole, from inside: what crashes and damaged files leave, what lists show.

mod churn;
mod crash;
mod deltas;
mod filters;
mod lists;
mod pair;
mod races;
mod statuses;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::*;
use crate::cri;

impl StateStore {
    /// Returns the state of the instance with this name; if the store has no such instance, adds a member
    /// that was never listed. See [`StateStore::expire_if_rebooted`] for `local`.
    fn backend(&self, name: &str, local: bool) -> Arc<InstanceState> {
        let known = self.states().values().find(|known| known.instance().name == name).cloned();
        let state = known.unwrap_or_else(|| self.create(name, Life::Member));
        self.expire_if_rebooted(&state, local);
        state
    }
}

const BOOT: &str = "boot-1";

fn open(dir: &Path) -> Arc<StateStore> {
    let (store, warnings) = StateStore::open(dir, BOOT);
    assert_eq!(warnings, []);
    store
}

/// Copies the directory, as a kill leaves it.
fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    let files = fs::read_dir(from).unwrap().map(Result::unwrap);
    for entry in files.filter(|entry| entry.path().is_file()) {
        fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
    to
}

fn sandbox(id: &str) -> cri::PodSandbox {
    let metadata =
        cri::PodSandboxMetadata { name: format!("pod-{id}"), uid: id.into(), ..Default::default() };
    cri::PodSandbox { id: id.into(), metadata: Some(metadata), ..Default::default() }
}

fn container(id: &str, sandbox: &str, state: i32) -> cri::Container {
    let image = Some(cri::ImageSpec { image: "busybox".into(), ..Default::default() });
    cri::Container { id: id.into(), pod_sandbox_id: sandbox.into(), state, image, ..Default::default() }
}

fn sandboxes(ids: &[&str]) -> Bytes {
    let items = ids.iter().map(|id| sandbox(id)).collect();
    cri::ListPodSandboxResponse { items }.encode_to_vec().into()
}

fn containers(all: &[(&str, &str)]) -> Bytes {
    let containers = all.iter().map(|(id, sandbox)| container(id, sandbox, CONTAINER_RUNNING)).collect();
    cri::ListContainersResponse { containers }.encode_to_vec().into()
}

fn run_request(name: &str) -> Vec<u8> {
    let metadata = cri::PodSandboxMetadata { name: name.into(), ..Default::default() };
    let config = cri::PodSandboxConfig { metadata: Some(metadata), ..Default::default() };
    cri::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() }.encode_to_vec()
}

/// Takes both lists as one pair that was just sent.
fn take_pair(backend: &InstanceState, sandbox_ids: &[&str], container_ids: &[(&str, &str)]) {
    let revision = backend.begin_read();
    backend.replace_list(ListKind::Sandboxes, revision, sandboxes(sandbox_ids));
    backend.replace_list(ListKind::Containers, revision, containers(container_ids));
}

fn list(backend: &InstanceState, kind: ListKind) -> Option<Bytes> {
    backend.list(kind, &Filter::default())
}

/// Returns the IDs and states listed, sorted.
fn shown(backend: &InstanceState, kind: ListKind) -> Option<Vec<(String, i32)>> {
    let list = list(backend, kind)?;
    let mut shown: Vec<_> = if kind == ListKind::Sandboxes {
        let list = cri::ListPodSandboxResponse::decode(list).unwrap();
        list.items.into_iter().map(|item| (item.id, item.state)).collect()
    } else {
        let list = cri::ListContainersResponse::decode(list).unwrap();
        list.containers.into_iter().map(|item| (item.id, item.state)).collect()
    };
    shown.sort();
    Some(shown)
}

fn ids(backend: &InstanceState, kind: ListKind) -> Option<Vec<String>> {
    Some(shown(backend, kind)?.into_iter().map(|(id, _)| id).collect())
}
