//! The requests of a pod's life as kubelet makes them, of a pod with one busybox container.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crimux::cri::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecSyncRequest, ImageSpec,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, ListPodSandboxRequest, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, PullImageRequest, RemovePodSandboxRequest, RunPodSandboxRequest,
    StartContainerRequest, StopPodSandboxRequest,
};

const IMAGE: &str = "docker.io/library/busybox:latest";

/// Sleeps until told to end: as PID 1 a plain `sleep` would ignore the request.
const IDLE: [&str; 3] = ["sh", "-c", "trap 'exit 0' TERM; sleep 86400 & wait"];

/// Seconds a command inside a container may take: gVisor on a busy machine is slow, a hang is longer.
const EXEC_SECONDS: i64 = 60;

/// The configuration of a sandbox with a fresh uid, in the namespace `default`.
pub(crate) fn sandbox_config(name: &str, logs: &Path) -> PodSandboxConfig {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let uid = format!("{name}-{nanos:x}");
    let security =
        LinuxSandboxSecurityContext { namespace_options: Some(namespaces()), ..Default::default() };
    PodSandboxConfig {
        log_directory: logs.join(&uid).display().to_string(),
        metadata: Some(PodSandboxMetadata {
            name: name.into(),
            uid,
            namespace: "default".into(),
            attempt: 0,
        }),
        hostname: name.into(),
        labels: [("app".into(), name.into())].into(),
        linux: Some(LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() }),
        ..Default::default()
    }
}

pub(crate) fn run(config: &PodSandboxConfig, handler: &str) -> RunPodSandboxRequest {
    RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() }
}

pub(crate) fn pull(config: &PodSandboxConfig) -> PullImageRequest {
    PullImageRequest { image: Some(image()), auth: None, sandbox_config: Some(config.clone()) }
}

/// Makes the container `main`, which waits for its end.
pub(crate) fn create(sandbox: &str, config: &PodSandboxConfig) -> CreateContainerRequest {
    let security =
        LinuxContainerSecurityContext { namespace_options: Some(namespaces()), ..Default::default() };
    let container = ContainerConfig {
        metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
        image: Some(image()),
        command: IDLE.map(String::from).to_vec(),
        labels: config.labels.clone(),
        log_path: "main.log".into(),
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources { cpu_shares: 128, ..Default::default() }),
            security_context: Some(security),
        }),
        ..Default::default()
    };
    CreateContainerRequest {
        pod_sandbox_id: sandbox.into(),
        config: Some(container),
        sandbox_config: Some(config.clone()),
    }
}

pub(crate) fn start(container: &str) -> StartContainerRequest {
    StartContainerRequest { container_id: container.into() }
}

pub(crate) fn exec(container: &str, command: &[&str]) -> ExecSyncRequest {
    let cmd = command.iter().map(|&word| word.to_owned()).collect();
    ExecSyncRequest { container_id: container.into(), cmd, timeout: EXEC_SECONDS }
}

pub(crate) fn list() -> ListPodSandboxRequest {
    ListPodSandboxRequest::default()
}

pub(crate) fn stop(sandbox: &str) -> StopPodSandboxRequest {
    StopPodSandboxRequest { pod_sandbox_id: sandbox.into() }
}

pub(crate) fn remove(sandbox: &str) -> RemovePodSandboxRequest {
    RemovePodSandboxRequest { pod_sandbox_id: sandbox.into() }
}

/// What kubelet asks for unless a pod says otherwise: network and IPC of the pod, processes of the container.
fn namespaces() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() }
}

fn image() -> ImageSpec {
    ImageSpec { image: IMAGE.into(), ..Default::default() }
}
