//! The requests of a pod's life as kubelet makes them, of a pod with one busybox container.
//!
//! `testkit` compiles this file too, with the types of its own clients.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::cri::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecSyncRequest, ImageSpec,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, ListPodSandboxRequest, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, PullImageRequest, RemovePodSandboxRequest, RunPodSandboxRequest,
    StartContainerRequest, StopPodSandboxRequest,
};

/// The image of every container.
pub(crate) const IMAGE: &str = "docker.io/library/busybox:latest";

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

/// The configuration of the container `main` of a sandbox, which runs `command` in [`IMAGE`].
pub(crate) fn container_config(sandbox: &PodSandboxConfig, command: &[&str]) -> ContainerConfig {
    let security =
        LinuxContainerSecurityContext { namespace_options: Some(namespaces()), ..Default::default() };
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
        image: Some(image()),
        command: strings(command),
        labels: sandbox.labels.clone(),
        log_path: "main.log".into(),
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources { cpu_shares: 128, ..Default::default() }),
            security_context: Some(security),
        }),
        ..Default::default()
    }
}

/// Makes the container `main`.
pub(crate) fn create(sandbox: &str, config: &PodSandboxConfig, command: &[&str]) -> CreateContainerRequest {
    CreateContainerRequest {
        pod_sandbox_id: sandbox.into(),
        config: Some(container_config(config, command)),
        sandbox_config: Some(config.clone()),
    }
}

pub(crate) fn start(container: &str) -> StartContainerRequest {
    StartContainerRequest { container_id: container.into() }
}

pub(crate) fn exec(container: &str, command: &[&str]) -> ExecSyncRequest {
    ExecSyncRequest { container_id: container.into(), cmd: strings(command), timeout: EXEC_SECONDS }
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

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}
