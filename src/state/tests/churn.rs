//! How many bytes a day a busy node makes crimux write.

use std::collections::HashMap;

use super::*;
use crate::state::writer::MAX_JOURNAL;

const PODS: usize = 120;
/// A restart every 5 s.
const RESTARTS_A_DAY: u64 = 24 * 3600 / 5;
/// 100 MB.
const A_DAY: u64 = 100_000_000;

fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn id(kind: &str, number: usize) -> String {
    format!("{:x<64}", format!("{kind}-{number}-"))
}

fn labels(pod: usize) -> HashMap<String, String> {
    let (name, uid) = (format!("web-7d4b9c6f5d-{pod:05}"), format!("0e1f3c52-8f3b-4c59-9f6e-{pod:012}"));
    let mut labels = map(&[("app.kubernetes.io/name", "web"), ("pod-template-hash", "7d4b9c6f5d")]);
    labels.extend(map(&[
        ("io.kubernetes.pod.name", &name),
        ("io.kubernetes.pod.namespace", "production"),
        ("io.kubernetes.pod.uid", &uid),
        ("io.kubernetes.container.name", "server"),
    ]));
    labels
}

fn annotations(attempt: u32) -> HashMap<String, String> {
    map(&[
        ("io.kubernetes.container.hash", "8d1f4e2a"),
        ("io.kubernetes.container.restartCount", &attempt.to_string()),
        ("io.kubernetes.container.terminationMessagePath", "/dev/termination-log"),
        ("io.kubernetes.container.terminationMessagePolicy", "File"),
        ("io.kubernetes.pod.terminationGracePeriod", "30"),
        ("io.kubernetes.container.ports", r#"[{"name":"http","containerPort":8080,"protocol":"TCP"}]"#),
    ])
}

fn image() -> cri::ImageSpec {
    cri::ImageSpec {
        image: format!("sha256:{:0>64}", "7f4e2a"),
        user_specified_image: "registry.example.com/team/web/server:v1.27.4".into(),
        ..Default::default()
    }
}

/// One incarnation of the container of a pod.
#[derive(Clone, Copy)]
struct Incarnation {
    pod: usize,
    attempt: u32,
    state: i32,
}

impl Incarnation {
    fn id(self) -> String {
        id(&format!("c{}", self.attempt), self.pod)
    }

    fn metadata(self) -> cri::ContainerMetadata {
        cri::ContainerMetadata { name: "server".into(), attempt: self.attempt }
    }

    fn created_at(self) -> i64 {
        1_790_000_000_123_456_789 + 5_000_000_000 * i64::from(self.attempt)
    }

    fn listed(self) -> cri::Container {
        cri::Container {
            id: self.id(),
            pod_sandbox_id: id("s", self.pod),
            metadata: Some(self.metadata()),
            image: Some(image()),
            image_ref: format!("sha256:{:0>64}", "7f4e2a"),
            image_id: format!("sha256:{:0>64}", "7f4e2a"),
            state: self.state,
            created_at: self.created_at(),
            labels: labels(self.pod),
            annotations: annotations(self.attempt),
        }
    }

    fn status(self) -> Vec<u8> {
        let mounts = [
            ("/etc/hosts", "etc-hosts"),
            ("/dev/termination-log", "containers/server/0a1b2c3d"),
            (
                "/var/run/secrets/kubernetes.io/serviceaccount",
                "volumes/kubernetes.io~projected/kube-api-access-x2x4x",
            ),
            ("/etc/config", "volumes/kubernetes.io~configmap/config"),
        ];
        let uid = format!("0e1f3c52-8f3b-4c59-9f6e-{:012}", self.pod);
        let mount = |(to, from): (&str, &str)| cri::Mount {
            container_path: to.into(),
            host_path: format!("/var/lib/kubelet/pods/{uid}/{from}"),
            readonly: true,
            ..Default::default()
        };
        let exited = self.state == CONTAINER_EXITED;
        let status = cri::ContainerStatus {
            id: self.id(),
            metadata: Some(self.metadata()),
            state: self.state,
            created_at: self.created_at(),
            started_at: self.created_at() + 98_765_432,
            finished_at: if exited { self.created_at() + 3_198_765_432 } else { 0 },
            exit_code: i32::from(exited),
            image: Some(image()),
            image_ref: format!("registry.example.com/team/web/server@sha256:{:0>64}", "19ac3e"),
            image_id: format!("sha256:{:0>64}", "7f4e2a"),
            reason: if exited { "Error".into() } else { String::new() },
            labels: labels(self.pod),
            annotations: annotations(self.attempt),
            mounts: mounts.map(mount).to_vec(),
            log_path: format!(
                "/var/log/pods/production_web-7d4b9c6f5d-{:05}_{uid}/server/{}.log",
                self.pod, self.attempt
            ),
            ..Default::default()
        };
        cri::ContainerStatusResponse { status: Some(status), ..Default::default() }.encode_to_vec()
    }

    fn create(self) -> Vec<u8> {
        let config = cri::ContainerConfig {
            metadata: Some(self.metadata()),
            image: Some(image()),
            labels: labels(self.pod),
            annotations: annotations(self.attempt),
            ..Default::default()
        };
        let pod_sandbox_id = id("s", self.pod);
        cri::CreateContainerRequest { pod_sandbox_id, config: Some(config), sandbox_config: None }
            .encode_to_vec()
    }
}

fn pod(number: usize) -> cri::PodSandbox {
    let labels = labels(number);
    cri::PodSandbox {
        id: id("s", number),
        metadata: Some(cri::PodSandboxMetadata {
            name: labels["io.kubernetes.pod.name"].clone(),
            uid: labels["io.kubernetes.pod.uid"].clone(),
            namespace: "production".into(),
            attempt: 0,
        }),
        created_at: 1_790_000_000_123_456_789,
        labels,
        annotations: map(&[
            ("kubernetes.io/config.seen", "2026-09-21T10:11:12.123456789Z"),
            ("kubernetes.io/config.source", "api"),
        ]),
        ..Default::default()
    }
}

fn take(backend: &InstanceState, containers: &[Incarnation]) {
    let revision = backend.begin_read();
    let items = (0..PODS).map(pod).collect();
    let list = cri::ListPodSandboxResponse { items }.encode_to_vec();
    backend.replace_list(ListKind::Sandboxes, revision, list.into());
    let containers = containers.iter().map(|container| container.listed()).collect();
    let list = cri::ListContainersResponse { containers }.encode_to_vec();
    backend.replace_list(ListKind::Containers, revision, list.into());
}

fn read_status(backend: &InstanceState, container: Incarnation) {
    backend.remember_status(Kind::Container, &container.id(), backend.begin_read(), &container.status());
}

/// Takes what a node has beside its containers.
fn take_the_rest(backend: &InstanceState) {
    for number in 0..PODS {
        let pod = pod(number);
        let status = cri::PodSandboxStatus {
            id: pod.id.clone(),
            metadata: pod.metadata,
            created_at: pod.created_at,
            network: Some(cri::PodSandboxNetworkStatus {
                ip: format!("10.0.0.{number}"),
                ..Default::default()
            }),
            labels: pod.labels,
            annotations: pod.annotations,
            ..Default::default()
        };
        let reply = cri::PodSandboxStatusResponse { status: Some(status), ..Default::default() };
        let revision = backend.begin_read();
        backend.remember_status(Kind::Sandbox, &pod.id, revision, &reply.encode_to_vec());
    }
    let image = |number: usize| cri::Image {
        id: format!("sha256:{number:0>64}"),
        repo_tags: vec![format!("registry.example.com/team/web/server-{number}:v1.27.4")],
        repo_digests: vec![format!("registry.example.com/team/web/server-{number}@sha256:{number:0>64}")],
        size: 123_456_789,
        ..Default::default()
    };
    let images = cri::ListImagesResponse { images: (0..100).map(image).collect() }.encode_to_vec();
    backend.replace_list(ListKind::Images, backend.begin_read(), images.into());
}

/// Plays what kubelet and the runtime do for one restart, with the two writes that fit between two restarts.
fn restart(store: &StateStore, backend: &InstanceState, containers: &mut Vec<Incarnation>) {
    let write = || store.write(false, &mut |_| ()).unwrap();
    let last = containers.last_mut().unwrap();
    last.state = CONTAINER_EXITED;
    let exited = *last;
    take(backend, containers);
    read_status(backend, exited);
    let next = Incarnation { attempt: exited.attempt + 1, state: CONTAINER_RUNNING, ..exited };
    backend.invalidate_status(&id("s", next.pod));
    backend.record_container_created(&next.id(), &id("s", next.pod), &next.create());
    write();
    backend.invalidate_status(&next.id());
    backend.record_container_started(&next.id());
    containers.push(next);
    // kubelet keeps the last dead container of each name.
    if let Some(at) = containers.iter().position(|old| old.pod == next.pod && old.attempt + 1 < next.attempt)
    {
        let dead = containers.remove(at);
        backend.invalidate_status(&dead.id());
        backend.record_container_removed(&dead.id());
    }
    take(backend, containers);
    read_status(backend, next);
    write();
}

#[test]
fn a_container_that_restarts_every_5_s_among_120_pods_costs_at_most_100_mb_a_day() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let backend = store.backend("runc", true);
    let running = |pod| Incarnation { pod, attempt: 0, state: CONTAINER_RUNNING };
    let mut containers: Vec<_> = (0..PODS).map(running).collect();
    take(&backend, &containers);
    for container in &containers {
        read_status(&backend, *container);
    }
    take_the_rest(&backend);
    store.write(false, &mut |_| ()).unwrap();
    let size = store.written_bytes();
    let restarts = 40;
    for _ in 0..restarts {
        restart(&store, &backend, &mut containers);
    }
    let journal = (store.written_bytes() - size) / restarts;
    let compaction = size * journal / MAX_JOURNAL.max(2 * size);
    let a_day = (journal + compaction) * RESTARTS_A_DAY;
    assert!(a_day <= A_DAY, "{journal} bytes and {compaction} of snapshots a restart, {a_day} a day");
    assert!(size > 450_000, "{size} bytes: the node is as large as a real one");
    let after = open(copy(dir.path()).path()).backend("runc", true);
    assert_eq!(shown(&after, ListKind::Containers), shown(&backend, ListKind::Containers));
}
