//! The snapshot as its users see it: restarts, the background writer, a disk that takes no writes, who may
//! read.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crimux::cri::{self, Rpc};
use crimux::state::{Filter, InstanceState, Kind, Life, ListKind, StateStore};
use prost::Message;
use tokio::sync::oneshot;

const BOOT: &str = "6f1c";

fn open(dir: &Path) -> Arc<StateStore> {
    let (store, warnings) = StateStore::open(dir, BOOT);
    assert_eq!(warnings, []);
    store
}

/// Returns the state of the instance `kata`; makes a member of which nothing is known if there is none.
fn kata(store: &StateStore) -> Arc<InstanceState> {
    let id = store.instances().into_iter().find(|instance| instance.name == "kata").map(|kata| kata.id);
    let state = id.and_then(|id| store.get(id)).unwrap_or_else(|| store.create("kata", Life::Member));
    store.expire_if_rebooted(&state, true);
    state
}

fn list_both(backend: &InstanceState, ids: &[&str]) {
    let items = ids.iter().map(|id| cri::PodSandbox { id: (*id).into(), ..Default::default() }).collect();
    let epoch = backend.begin_read();
    let reply = cri::ListPodSandboxResponse { items }.encode_to_vec();
    backend.replace_list(ListKind::Sandboxes, epoch, reply.into());
    backend.replace_list(ListKind::Containers, epoch, bytes::Bytes::new());
}

fn sandboxes(backend: &InstanceState) -> Option<Vec<String>> {
    let list = backend.list(ListKind::Sandboxes, &Filter::default())?;
    let list = cri::ListPodSandboxResponse::decode(list).expect("a list that was composed can be read");
    Some(list.items.into_iter().map(|item| item.id).collect())
}

fn request_with_secret() -> Vec<u8> {
    let config = cri::ContainerConfig {
        envs: vec![cri::KeyValue { key: "TOKEN".into(), value: "s3cr3t-env".into() }],
        ..Default::default()
    };
    let request = cri::CreateContainerRequest { config: Some(config), ..Default::default() };
    request.encode_to_vec()
}

#[test]
fn a_killed_crimux_remembers_what_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert!(!store.was_whole());
    let backend = kata(&store);
    list_both(&backend, &["s1"]);
    store.flush().unwrap();
    backend.record_sandbox_created("s2", &[]);
    backend.record_sandbox_removed("s1");
    backend.set_draining(true);
    // No flush and no orderly end: only what write(2) took is left.
    let again = open(dir.path());
    assert!(again.was_whole());
    let backend = kata(&again);
    assert_eq!(sandboxes(&backend).unwrap(), ["s2"]);
    assert!(backend.is_draining() && backend.has_lists() && !backend.was_listed_live());
    assert!(backend.age().is_some());
}

#[test]
fn everything_survives_an_orderly_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let backend = kata(&store);
    list_both(&backend, &["s1"]);
    let image = cri::Image { id: "sha256:aa".into(), ..Default::default() };
    let images = bytes::Bytes::from(cri::ListImagesResponse { images: vec![image] }.encode_to_vec());
    backend.replace_list(ListKind::Images, backend.begin_read(), images.clone());
    let status = cri::PodSandboxStatus { id: "s1".into(), ..Default::default() };
    let status = cri::PodSandboxStatusResponse { status: Some(status), ..Default::default() }.encode_to_vec();
    backend.remember_status(Kind::Sandbox, "s1", backend.begin_read(), &status);
    backend.remember_reply(Rpc::Version, b"\x0a\x050.1.0");
    store.flush().unwrap();
    let backend = kata(&open(dir.path()));
    assert_eq!(sandboxes(&backend).unwrap(), ["s1"]);
    assert_eq!(backend.list(ListKind::Images, &Filter::default()).unwrap(), images);
    assert_eq!(backend.status(Kind::Sandbox, "s1").unwrap(), status);
    assert_eq!(&backend.reply(Rpc::Version).unwrap()[..], b"\x0a\x050.1.0");
}

#[test]
fn only_the_owner_may_read_and_no_env_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = dir.path().join("deep/state");
    fs::create_dir_all(&state_dir).unwrap();
    fs::set_permissions(&state_dir, fs::Permissions::from_mode(0o755)).unwrap();
    let store = open(&state_dir);
    let backend = kata(&store);
    backend.record_sandbox_created("s1", &[]);
    backend.record_container_created("c1", "s1", &request_with_secret());
    list_both(&backend, &["s1"]);
    store.flush().unwrap();
    backend.record_container_created("c2", "s1", &request_with_secret());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&state_dir), 0o700);
    let files: Vec<_> = fs::read_dir(&state_dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 2, "{files:?}");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
        let content = fs::read(&file).unwrap();
        assert!(!content.windows(10).any(|bytes| bytes == b"s3cr3t-env"), "{}", file.display());
    }
}

#[test]
fn a_directory_that_cannot_be_used_makes_a_snapshot_that_serves_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = dir.path().join("a-file");
    fs::write(&state_dir, "").unwrap();
    let (store, warnings) = StateStore::open(&state_dir, BOOT);
    assert_eq!(warnings.len(), 1);
    assert!(!store.was_whole() && store.write_error().is_some());
    let backend = kata(&store);
    list_both(&backend, &["s1"]);
    backend.record_sandbox_created("s2", &[]);
    assert_eq!(sandboxes(&backend).unwrap(), ["s1", "s2"]);
    let failures = store.write_failures();
    assert!(store.flush().is_err() && store.write_failures() > failures);
    // The operator repairs it.
    fs::remove_file(&state_dir).unwrap();
    store.flush().unwrap();
    assert_eq!(store.write_error(), None);
    assert_eq!(sandboxes(&kata(&open(&state_dir))).unwrap(), ["s1", "s2"]);
}

#[test]
fn foreign_files_are_set_aside_or_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("snapshot"), "#!/bin/sh\nexit 0 # not ours at all\n").unwrap();
    fs::write(dir.path().join("journal-0000000000000005"), "not a journal").unwrap();
    fs::write(dir.path().join("notes.txt"), "keep me").unwrap();
    let (store, warnings) = StateStore::open(dir.path(), BOOT);
    let told: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("it is no snapshot; kept as"), "{told:?}");
    assert_eq!(store.write_error(), None);
    assert_eq!(fs::read(dir.path().join("notes.txt")).unwrap(), b"keep me");
    drop(store);
    open(dir.path());
}

#[tokio::test(start_paused = true)]
async fn the_writer_writes_when_something_changes_and_once_more_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let backend = kata(&store);
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async { drop(stopped.await) };
    let writer = tokio::spawn(Arc::clone(&store).run(shutdown));
    list_both(&backend, &["s1"]);
    let file = dir.path().join("snapshot");
    let written = async {
        while !file.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), written).await.unwrap();
    // Too soon after the last for another on its own account; the end writes it.
    backend.remember_reply(Rpc::Version, b"\x0a\x050.1.0");
    stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(60), writer).await.unwrap().unwrap();
    assert_eq!(store.write_error(), None);
    assert!(kata(&open(dir.path())).reply(Rpc::Version).is_some());
}

#[test]
fn thousands_of_containers_are_listed_in_a_moment() {
    let dir = tempfile::tempdir().unwrap();
    let backend = kata(&open(dir.path()));
    let ids: Vec<String> = (0..5000).map(|n| format!("{n:064}")).collect();
    list_both(&backend, &ids.iter().map(String::as_str).collect::<Vec<_>>());
    for id in &ids {
        backend.record_sandbox_stopped(id);
    }
    let mut stopped = 0;
    backend.for_each_sandbox(|facts| stopped += usize::from(facts.state == crimux::state::SANDBOX_NOTREADY));
    assert_eq!(stopped, 5000);
}
