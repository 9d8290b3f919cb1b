//! Images of two containerds that share nothing: each pod's image is its own backend's, whatever restarts.
//!
//! kubelet's image calls are played in its order, with its decisions, and what they led to is looked up on
//! the backends themselves, past crimux.

use std::path::Path;

use testkit::bed::Bed;
use testkit::bed::pods::Pods;
use testkit::cri::{
    AuthConfig, ContainerConfig, ContainerMetadata, ContainerStatusRequest, LinuxContainerConfig,
    LinuxContainerSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
};

use super::world::{self, Crimux, HANDLERS, IDLE, eventually};
use crate::kubelet::{Failure, Kubelet, Policy, bare, see_again};

const BUSYBOX: &str = "docker.io/library/busybox";
const WEB: &str = "docker.io/library/web:latest";
/// The same two by names under which nobody has pulled them yet.
const OTHER_BUSYBOX: &str = "quay.io/busybox:latest";
const OTHER_WEB: &str = "quay.io/web:latest";

/// A pod of one backend.
struct Pod {
    backend: &'static str,
    config: PodSandboxConfig,
    sandbox: String,
    containers: u32,
}

async fn kubelet(bed: &Bed, crimux: &Crimux<'_>) -> Kubelet {
    let Pods { runtime, images, .. } = world::dial(bed, &crimux.socket).await;
    Kubelet { runtime, images }
}

/// Runs a pod without annotations but those of kubelet, on the backend whose handler this is.
async fn pod(bed: &Bed, crimux: &Crimux<'_>, backend: &'static str, handler: &str) -> Pod {
    let mut pods = world::dial(bed, &crimux.socket).await;
    let mut config = pods.config(&format!("pod-{backend}"));
    see_again(&mut config);
    let sandbox = pods.sandbox(&config, handler).await.unwrap();
    Pod { backend, config, sandbox, containers: 0 }
}

fn container(name: &str) -> ContainerConfig {
    let namespaces = NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() };
    let security_context =
        LinuxContainerSecurityContext { namespace_options: Some(namespaces), ..Default::default() };
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        command: IDLE.map(str::to_owned).to_vec(),
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig { security_context: Some(security_context), ..Default::default() }),
        ..Default::default()
    }
}

impl Pod {
    /// Starts one more container; tells whether its image was pulled.
    async fn start(
        &mut self,
        bed: &Bed,
        kubelet: &Kubelet,
        image: &str,
        policy: Policy,
    ) -> Result<bool, Failure> {
        self.containers += 1;
        let container = container(&format!("c{}", self.containers));
        let started = kubelet.start(&self.sandbox, &self.config, container, image, policy);
        let created = Box::pin(started).await?;
        let mut own = world::dial(bed, &bed.socket(self.backend)).await;
        let request = ContainerStatusRequest { container_id: created.id, verbose: false };
        let status = own.runtime.container_status(request).await.unwrap().into_inner().status.unwrap();
        let own = Kubelet { runtime: own.runtime, images: own.images };
        let used = own.image(bare(&status.image_ref)).await.unwrap().unwrap();
        assert_eq!(used.id, created.image, "{image} on {}", self.backend);
        Ok(created.pulled)
    }
}

/// Asks a backend itself whether it has an image.
async fn has(bed: &Bed, backend: &str, image: &str) -> bool {
    let Pods { runtime, images, .. } = world::dial(bed, &bed.socket(backend)).await;
    Kubelet { runtime, images }.image(bare(image)).await.unwrap().is_some()
}

#[tokio::test]
async fn an_image_pulled_on_one_backend_is_no_other_backends() {
    let Some(bed) = world::bed() else { return };
    let crimux = world::crimux(&bed, &HANDLERS).await;
    let kubelet = kubelet(&bed, &crimux).await;
    let (mut a, mut b) = (pod(&bed, &crimux, "a", "runc").await, pod(&bed, &crimux, "b", "crun").await);

    assert!(a.start(&bed, &kubelet, BUSYBOX, Policy::IfNotPresent).await.unwrap());
    assert!(!has(&bed, "b", BUSYBOX).await);
    let never = b.start(&bed, &kubelet, BUSYBOX, Policy::Never).await;
    assert!(matches!(never, Err(Failure::NeverPull)), "{never:?}");
    assert!(!has(&bed, "b", BUSYBOX).await, "Never pulled");
    assert!(!a.start(&bed, &kubelet, BUSYBOX, Policy::IfNotPresent).await.unwrap());
    assert!(b.start(&bed, &kubelet, BUSYBOX, Policy::IfNotPresent).await.unwrap());
    for pod in [&mut a, &mut b] {
        assert!(pod.start(&bed, &kubelet, BUSYBOX, Policy::Always).await.unwrap());
        assert!(!pod.start(&bed, &kubelet, BUSYBOX, Policy::Never).await.unwrap());
    }

    let (one, two) = tokio::join!(
        a.start(&bed, &kubelet, WEB, Policy::IfNotPresent),
        b.start(&bed, &kubelet, WEB, Policy::IfNotPresent)
    );
    assert!(one.unwrap() && two.unwrap(), "both pulled, each on its own backend");
    let (one, two) = tokio::join!(
        a.start(&bed, &kubelet, OTHER_WEB, Policy::Always),
        b.start(&bed, &kubelet, OTHER_WEB, Policy::Never)
    );
    assert!(one.unwrap());
    assert!(matches!(two, Err(Failure::NeverPull)), "{two:?}");
    assert!(!has(&bed, "g", BUSYBOX).await && !has(&bed, "g", WEB).await, "gVisor's backend had no pod");
}

#[tokio::test]
async fn every_policy_holds_after_restarts_of_crimux_and_of_kubelet() {
    let Some(bed) = world::bed() else { return };
    let crimux = world::crimux(&bed, &HANDLERS).await;
    let before = kubelet(&bed, &crimux).await;
    let (mut a, mut b) = (pod(&bed, &crimux, "a", "runc").await, pod(&bed, &crimux, "b", "crun").await);
    assert!(b.start(&bed, &before, BUSYBOX, Policy::IfNotPresent).await.unwrap());
    assert!(a.start(&bed, &before, WEB, Policy::IfNotPresent).await.unwrap());

    crimux.process.kill().unwrap();
    drop(crimux);
    let crimux = world::crimux(&bed, &HANDLERS).await;
    let after = kubelet(&bed, &crimux).await;
    assert!(!b.start(&bed, &after, BUSYBOX, Policy::Never).await.unwrap());
    assert!(!b.start(&bed, &after, BUSYBOX, Policy::IfNotPresent).await.unwrap());
    let never = a.start(&bed, &after, BUSYBOX, Policy::Never).await;
    assert!(matches!(never, Err(Failure::NeverPull)), "{never:?}");
    assert!(!has(&bed, "a", BUSYBOX).await);

    // Nothing but config.seen tells these two pods apart, and both get a new one.
    for pod in [&mut a, &mut b] {
        see_again(&mut pod.config);
    }
    // Only a's pod has a container of this image, so that it is meant, and nothing is pulled.
    assert!(!a.start(&bed, &after, WEB, Policy::IfNotPresent).await.unwrap());
    assert!(!a.start(&bed, &after, WEB, Policy::Never).await.unwrap());
    assert!(!has(&bed, "b", WEB).await);
    assert!(b.start(&bed, &after, BUSYBOX, Policy::Always).await.unwrap());
    assert!(!b.start(&bed, &after, BUSYBOX, Policy::Never).await.unwrap());
    let never = b.start(&bed, &after, WEB, Policy::Never).await;
    assert!(matches!(never, Err(Failure::NeverPull)), "{never:?}");

    // Both at once: the saved sandboxes still have their first config.seen.
    crimux.process.kill().unwrap();
    drop(crimux);
    for pod in [&mut a, &mut b] {
        see_again(&mut pod.config);
    }
    let crimux = world::crimux(&bed, &HANDLERS).await;
    let again = kubelet(&bed, &crimux).await;
    assert!(a.start(&bed, &again, OTHER_BUSYBOX, Policy::IfNotPresent).await.unwrap());
    // b has the same image under another name, so that IfNotPresent may start it without a pull.
    assert!(b.start(&bed, &again, OTHER_BUSYBOX, Policy::Always).await.unwrap());
    for pod in [&mut a, &mut b] {
        assert!(!pod.start(&bed, &again, OTHER_BUSYBOX, Policy::Never).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_kubelet_starts_containers_of_one_runtime_while_the_other_is_down() {
    let Some(bed) = world::bed() else { return };
    let crimux = world::crimux(&bed, &HANDLERS).await;
    let before = kubelet(&bed, &crimux).await;
    let (mut a, mut b) = (pod(&bed, &crimux, "a", "runc").await, pod(&bed, &crimux, "b", "crun").await);
    for pod in [&mut a, &mut b] {
        assert!(pod.start(&bed, &before, BUSYBOX, Policy::IfNotPresent).await.unwrap());
    }
    let mut crimux = Some(crimux);
    for (down, up) in [("b", &mut a), ("a", &mut b)] {
        tokio::task::block_in_place(|| bed.kill(down).unwrap());
        // Once with the crimux that saw it go, once with one that has never reached it.
        for _ in ["old", "new"] {
            let running = crimux.take().unwrap();
            see_again(&mut up.config);
            let after = kubelet(&bed, &running).await;
            for policy in [Policy::Never, Policy::IfNotPresent, Policy::Always] {
                let pulled = up.start(&bed, &after, BUSYBOX, policy).await.unwrap();
                assert_eq!(pulled, policy == Policy::Always, "{policy:?} with {down} down");
            }
            running.process.kill().unwrap();
            drop(running);
            crimux = Some(world::crimux(&bed, &HANDLERS).await);
        }
        tokio::task::block_in_place(|| bed.restart(down).unwrap());
        let mut own = world::dial(&bed, &crimux.as_ref().unwrap().socket).await;
        eventually("the backend is asked again", async || {
            let handler = if down == "a" { "runc" } else { "crun" };
            let config = own.config(&format!("again-{down}"));
            own.sandbox(&config, handler).await.ok()
        })
        .await;
    }
}

/// Users of the private registry, by the backend that pulls with their credentials.
const USERS: [(&str, &str, &str); 2] = [("a", "alice", "wonderland"), ("b", "bob", "builder")];

/// What must not be found anywhere: the passwords, and what a client of the registry makes of them.
const SECRETS: [&str; 4] = ["wonderland", "YWxpY2U6d29uZGVybGFuZA", "bob:builder", "Ym9iOmJ1aWxkZXI"];

#[tokio::test]
async fn credentials_reach_the_registry_by_the_pods_own_backend_and_nothing_else() {
    let Some(bed) = world::bed() else { return };
    bed.registry_auth().unwrap();
    let crimux = crimux_that_tells_all(&bed).await;
    let kubelet = kubelet(&bed, &crimux).await;
    for (backend, user, password) in USERS {
        let handler = if backend == "a" { "runc" } else { "crun" };
        let mut pod = pod(&bed, &crimux, backend, handler).await;
        let image = format!("private.bed/{user}/busybox:latest");
        assert!(kubelet.pull(&image, &pod.config, None).await.is_err(), "the registry asks for a password");
        let auth = |password: &str| {
            let (username, password) = (user.to_owned(), password.to_owned());
            Some(AuthConfig { username, password, ..Default::default() })
        };
        let wrong = format!("not-{password}");
        assert!(kubelet.pull(&image, &pod.config, auth(&wrong)).await.is_err());
        kubelet.pull(&image, &pod.config, auth(password)).await.unwrap();
        assert!(!pod.start(&bed, &kubelet, &image, Policy::Never).await.unwrap());
        for (other, _, _) in USERS {
            assert_eq!(has(&bed, other, &image).await, other == backend, "{image} on {other}");
            let asked = bed.log(other).unwrap().contains(&format!("PullImage \\\"{image}\\\""));
            assert_eq!(asked, other == backend, "pulls of {image} in the log of {other}");
        }
    }
    let metrics = bed.run(&["curl", "-s", "http://127.0.0.1:19440/metrics"]).unwrap().stdout;
    let metrics = String::from_utf8(metrics).unwrap();
    assert!(metrics.contains("PullImage"), "{metrics}");
    crimux.process.signal("TERM").unwrap();
    assert_eq!(crimux.process.wait(world::SOON).unwrap(), 0);
    let log = crimux.process.log().unwrap();
    assert!(log.contains("PullImage") && log.contains("TRACE"), "{log}");
    look_for_secrets("the metrics", metrics.as_bytes());
    look_for_secrets("the log", log.as_bytes());
    let mut files = 0;
    for entry in std::fs::read_dir(bed.directory().join("crimux/state")).unwrap() {
        let path = entry.unwrap().path();
        look_for_secrets(&path.display().to_string(), &std::fs::read(&path).unwrap());
        files += 1;
    }
    assert!(files > 0, "there is saved state to look at");
}

fn look_for_secrets(place: &str, bytes: &[u8]) {
    for secret in SECRETS {
        let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "{secret} is in {place}");
    }
}

/// Starts crimux with every log line there is.
async fn crimux_that_tells_all(bed: &Bed) -> Crimux<'_> {
    let directory = bed.directory().join("crimux");
    std::fs::create_dir_all(&directory).unwrap();
    let config = directory.join("crimux.yaml");
    let yaml = world::configuration(bed, &HANDLERS) + "log: { level: trace }\n";
    std::fs::write(&config, yaml).unwrap();
    let arguments = ["serve", "--config", config.to_str().unwrap()];
    let process = bed.spawn("crimux", Path::new(env!("CARGO_BIN_EXE_crimux")), &arguments).unwrap();
    let crimux = Crimux { process, socket: directory.join("crimux.sock"), config };
    eventually("crimux serves", async || {
        let mut pods = Pods::dial(&crimux.socket, Path::new("")).await.ok()?;
        pods.list().await.ok()
    })
    .await;
    crimux
}
