//! Which statuses and replies are remembered, and when they are served.

use super::*;
use crate::cri::Rpc;

fn backend() -> (tempfile::TempDir, Arc<InstanceState>) {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).backend("runc", true);
    take_pair(&backend, &["s1"], &[("c1", "s1")]);
    (dir, backend)
}

fn status_of(id: &str, state: i32) -> cri::ContainerStatus {
    cri::ContainerStatus { id: id.into(), state, ..Default::default() }
}

fn container_status(id: &str, state: i32) -> Vec<u8> {
    let status = Some(status_of(id, state));
    cri::ContainerStatusResponse { status, ..Default::default() }.encode_to_vec()
}

fn served(backend: &InstanceState) -> Option<Bytes> {
    backend.status(Kind::Container, "c1")
}

#[test]
fn a_status_is_served_while_the_list_agrees_with_its_state() {
    let (_dir, backend) = backend();
    let running = container_status("c1", CONTAINER_RUNNING);
    backend.remember_status(Kind::Container, "c1", backend.begin_read(), &running);
    assert_eq!(served(&backend).unwrap(), running);
    let exited = cri::ListContainersResponse { containers: vec![container("c1", "s1", CONTAINER_EXITED)] };
    let revision = backend.begin_read();
    backend.replace_list(ListKind::Sandboxes, revision, sandboxes(&["s1"]));
    backend.replace_list(ListKind::Containers, revision, exited.encode_to_vec().into());
    assert_eq!(served(&backend), None);
    assert_eq!(backend.status(Kind::Container, "never-seen"), None);
}

#[test]
fn a_status_is_not_served_for_what_is_not_listed() {
    let (_dir, backend) = backend();
    let running = container_status("c9", CONTAINER_RUNNING);
    backend.remember_status(Kind::Container, "c9", backend.begin_read(), &running);
    assert_eq!(backend.status(Kind::Container, "c9"), None);
}

#[test]
fn a_write_forgets_the_status_and_so_does_a_read_that_was_sent_before_it() {
    let (_dir, backend) = backend();
    let running = container_status("c1", CONTAINER_RUNNING);
    backend.remember_status(Kind::Container, "c1", backend.begin_read(), &running);
    let before = backend.begin_read();
    backend.invalidate_status("c1");
    assert_eq!(served(&backend), None);
    backend.remember_status(Kind::Container, "c1", before, &running);
    assert_eq!(served(&backend), None);
    backend.remember_status(Kind::Container, "c1", backend.begin_read(), &running);
    assert_eq!(served(&backend).unwrap(), running);
}

#[test]
fn a_verbose_status_is_never_remembered() {
    let (_dir, backend) = backend();
    let mut verbose = container_status("c1", CONTAINER_RUNNING);
    crate::wire::put_bytes(&mut verbose, 2, b"");
    backend.remember_status(Kind::Container, "c1", backend.begin_read(), &verbose);
    assert_eq!(served(&backend), None);
    backend.remember_reply(Rpc::Status, &verbose);
    assert_eq!(backend.reply(Rpc::Status), None);
}

#[test]
fn a_sandbox_status_is_served_while_its_containers_agree_too() {
    let (_dir, backend) = backend();
    let status = cri::PodSandboxStatus { id: "s1".into(), ..Default::default() };
    let reply = cri::PodSandboxStatusResponse {
        status: Some(status),
        containers_statuses: vec![status_of("c1", CONTAINER_RUNNING)],
        ..Default::default()
    };
    let served = || backend.status(Kind::Sandbox, "s1");
    let remember = || {
        backend.remember_status(Kind::Sandbox, "s1", backend.begin_read(), &reply.encode_to_vec());
    };
    remember();
    assert!(served().is_some());
    backend.record_container_stopped("c1");
    assert_eq!(served(), None);
    take_pair(&backend, &["s1"], &[("c1", "s1")]);
    assert!(served().is_some());
    backend.record_container_created("c2", "s1", &[]);
    assert_eq!(served(), None, "it says nothing of the new container");
    remember();
    backend.record_sandbox_stopped("s1");
    assert_eq!(served(), None);
}

#[test]
fn statuses_of_what_is_no_longer_listed_are_dropped() {
    let (_dir, backend) = backend();
    for id in ["c1", "gone"] {
        let reply = container_status(id, CONTAINER_RUNNING);
        backend.remember_status(Kind::Container, id, backend.begin_read(), &reply);
    }
    assert_eq!(backend.lock().statuses.len(), 2);
    backend.compact();
    assert_eq!(backend.lock().statuses.len(), 1);
    assert!(served(&backend).is_some());
}

#[test]
fn replies_for_the_whole_backend_are_remembered() {
    let (_dir, backend) = backend();
    assert_eq!(backend.reply(Rpc::Version), None);
    let version = cri::VersionResponse { runtime_name: "containerd".into(), ..Default::default() };
    backend.remember_reply(Rpc::Version, &version.encode_to_vec());
    assert_eq!(backend.reply(Rpc::Version).unwrap(), version.encode_to_vec());
}
