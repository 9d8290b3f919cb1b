//! One pod's whole life, call by call as kubelet makes them, under every handler.

use testkit::bed::pods::{IMAGE, Pods};
use testkit::cri::{
    ContainerState, ContainerStatsRequest, ImageSpec, ImageStatusRequest, LinuxContainerResources,
    PodSandboxConfig, PodSandboxState, RemoveContainerRequest, RemovePodSandboxRequest,
    StartContainerRequest, StopContainerRequest, StopPodSandboxRequest, UpdateContainerResourcesRequest,
};
use tonic::Code;

use super::world::{self, HANDLERS, container_state, eventually, sandbox_state};

/// Whose kernel a pod has, which is what runtimes differ in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// This machine's.
    Host,
    /// gVisor's.
    Gvisor,
    /// That of a virtual machine.
    Guest,
}

/// What the pod's container runs: says one line, then waits for its end.
const SPEAK: [&str; 3] = ["sh", "-c", "echo hello from inside; trap 'exit 7' TERM; sleep 86400 & wait"];

#[tokio::test]
async fn a_pod_of_each_handler_lives_its_whole_life_through_crimux() {
    let Some(bed) = world::bed() else { return };
    let crimux = world::crimux(&bed, &HANDLERS).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    for (handler, kernel) in
        [("", Kernel::Host), ("runc", Kernel::Host), ("crun", Kernel::Host), ("gvisor", Kernel::Gvisor)]
    {
        Box::pin(whole_life(&mut pods, handler, kernel)).await;
    }
}

#[tokio::test]
async fn a_pod_lives_its_whole_life_on_each_containerd_itself() {
    let Some(bed) = world::bed() else { return };
    for (backend, handler, kernel) in
        [("a", "", Kernel::Host), ("b", "", Kernel::Host), ("g", "runsc", Kernel::Gvisor)]
    {
        let mut pods = world::dial(&bed, &bed.socket(backend)).await;
        Box::pin(whole_life(&mut pods, handler, kernel)).await;
    }
}

/// Lives a pod's whole life on whatever this client reaches.
pub(crate) async fn whole_life(pods: &mut Pods, handler: &str, kernel: Kernel) {
    let config = pods.config("life");
    let sandbox = pods.sandbox(&config, handler).await.unwrap();
    assert_eq!(sandbox_state(pods, &sandbox).await, Ok(PodSandboxState::SandboxReady));
    pull(pods, &config, handler).await;

    let container = pods.container(&sandbox, &config, &SPEAK).await.unwrap();
    assert_eq!(container_state(pods, &container).await, Ok(ContainerState::ContainerCreated));
    let start = StartContainerRequest { container_id: container.clone() };
    pods.runtime.start_container(start).await.unwrap();
    assert_eq!(container_state(pods, &container).await, Ok(ContainerState::ContainerRunning));

    look_inside(pods, &container, kernel).await;
    read_log(&config).await;
    measure(pods, &container).await;
    update(pods, &container, kernel).await;
    end_container(pods, &container).await;
    end_sandbox(pods, &sandbox).await;
}

async fn pull(pods: &mut Pods, config: &PodSandboxConfig, handler: &str) {
    let reference = pods.pull(config).await.unwrap();
    // A call that names neither a pod nor a handler is the default backend's.
    let runtime_handler = handler.to_owned();
    let image = Some(ImageSpec { image: IMAGE.to_owned(), runtime_handler, ..Default::default() });
    let status = ImageStatusRequest { image, verbose: false };
    let image = pods.images.image_status(status).await.unwrap().into_inner().image.unwrap();
    assert_eq!(image.id, reference);
    assert!(image.repo_tags.contains(&IMAGE.to_owned()), "{:?}", image.repo_tags);
}

async fn look_inside(pods: &mut Pods, container: &str, kernel: Kernel) {
    let said = pods.exec(container, &["sh", "-c", "echo out; echo err >&2; exit 3"]).await.unwrap();
    assert_eq!(said.stdout, b"out\n");
    assert_eq!(said.stderr, b"err\n");
    assert_eq!(said.exit_code, 3);

    let release = pods.exec(container, &["uname", "-r"]).await.unwrap().stdout;
    let host = std::fs::read("/proc/sys/kernel/osrelease").unwrap();
    let text = String::from_utf8_lossy(&release);
    assert_eq!(release == host, kernel == Kernel::Host, "kernel in the pod: {text}");
}

/// The log file is read by kubelet itself, so it must be a file of this node, in the format of the CRI: time,
/// stream, tag, text.
async fn read_log(config: &PodSandboxConfig) {
    let path = std::path::Path::new(&config.log_directory).join("main.log");
    let line = eventually("the container's line is in its log", async || {
        let text = tokio::fs::read_to_string(&path).await.ok()?;
        text.lines().next().map(str::to_owned)
    })
    .await;
    let fields: Vec<_> = line.splitn(4, ' ').collect();
    assert_eq!(fields[1..], ["stdout", "F", "hello from inside"]);
}

async fn measure(pods: &mut Pods, container: &str) {
    let request = ContainerStatsRequest { container_id: container.to_owned() };
    let stats = pods.runtime.container_stats(request).await.unwrap().into_inner().stats.unwrap();
    let attributes = stats.attributes.unwrap();
    assert_eq!(attributes.id, container);
    assert_eq!(attributes.metadata.unwrap().name, "main");
    assert!(stats.cpu.is_some() && stats.memory.is_some());
}

async fn update(pods: &mut Pods, container: &str, kernel: Kernel) {
    let request = UpdateContainerResourcesRequest {
        container_id: container.to_owned(),
        linux: Some(LinuxContainerResources { cpu_shares: 512, ..Default::default() }),
        ..Default::default()
    };
    pods.runtime.update_container_resources(request).await.unwrap();
    // Debian's gVisor cannot change limits; the call is accepted and that is all.
    if kernel == Kernel::Gvisor {
        return;
    }
    let read = "cat /sys/fs/cgroup/cpu/cpu.shares 2>/dev/null || cat /sys/fs/cgroup/cpu.weight";
    let shares = pods.exec(container, &["sh", "-c", read]).await.unwrap().stdout;
    // cgroup v2 counts CPU as a weight: 1 + (512 - 2) * 9999 / 262142.
    assert!(shares == b"512\n" || shares == b"20\n", "{}", String::from_utf8_lossy(&shares));
}

async fn end_container(pods: &mut Pods, container: &str) {
    let container_id = container.to_owned();
    let stop = StopContainerRequest { container_id: container_id.clone(), timeout: 10 };
    pods.runtime.stop_container(stop).await.unwrap();
    assert_eq!(container_state(pods, container).await, Ok(ContainerState::ContainerExited));
    pods.runtime.remove_container(RemoveContainerRequest { container_id }).await.unwrap();
    assert_eq!(container_state(pods, container).await, Err(Code::NotFound));
}

async fn end_sandbox(pods: &mut Pods, sandbox: &str) {
    let pod_sandbox_id = sandbox.to_owned();
    let stop = StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
    pods.runtime.stop_pod_sandbox(stop).await.unwrap();
    assert_eq!(sandbox_state(pods, sandbox).await, Ok(PodSandboxState::SandboxNotready));
    pods.runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await.unwrap();
    assert_eq!(sandbox_state(pods, sandbox).await, Err(Code::NotFound));
}
