//! Runs pods on a CRI socket the way kubelet does: sandbox first, then the pull for that sandbox, then the
//! container.
//!
//! Tests need whole pods on a real runtime, directly or through crimux, with the same code. It only sends
//! calls and returns the replies; it asserts nothing. The requests are those of the program `pods`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::cri::image_service_client::ImageServiceClient;
use crate::cri::runtime_service_client::RuntimeServiceClient;
use crate::cri::{ContainerConfig, ExecSyncResponse, PodSandbox, PodSandboxConfig};

#[path = "../../pods/src/requests.rs"]
mod requests;

/// The image of every container that [`Pods::run`] makes.
pub const IMAGE: &str = requests::IMAGE;

/// A client of one CRI socket that runs whole pods.
#[derive(Debug, Clone)]
pub struct Pods {
    /// Calls of the runtime service beyond whole pods.
    pub runtime: RuntimeServiceClient<Channel>,
    /// Calls of the image service.
    pub images: ImageServiceClient<Channel>,
    logs: PathBuf,
}

/// A pod that runs, with its one container.
#[derive(Debug, Clone)]
pub struct Pod {
    /// ID of the sandbox.
    pub sandbox: String,
    /// ID of the container, named `main`.
    pub container: String,
    /// What the sandbox was made from.
    pub config: PodSandboxConfig,
    /// Where the container's output is written.
    pub log: PathBuf,
}

impl Pods {
    /// Connects to a CRI socket; logs of pods are written below `logs`.
    ///
    /// # Errors
    /// If nobody serves the socket.
    pub async fn dial(socket: &Path, logs: &Path) -> Result<Self, tonic::transport::Error> {
        let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))?
            .connect_timeout(Duration::from_secs(5))
            .connect()
            .await?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel),
            logs: logs.to_owned(),
        })
    }

    /// The configuration of a new sandbox whose logs go where this client's logs go.
    pub fn config(&self, name: &str) -> PodSandboxConfig {
        requests::sandbox_config(name, &self.logs)
    }

    /// Runs a pod with one busybox container that runs `command`, under a `RuntimeClass` handler.
    ///
    /// # Errors
    /// The status of the first call that fails; what was made until then stays.
    pub async fn run(&mut self, name: &str, handler: &str, command: &[&str]) -> Result<Pod, Status> {
        let config = self.config(name);
        let sandbox = Box::pin(self.sandbox(&config, handler)).await?;
        Box::pin(self.pull(&config)).await?;
        let container = Box::pin(self.container(&sandbox, &config, command)).await?;
        self.runtime.start_container(requests::start(&container)).await?;
        let log = Path::new(&config.log_directory).join("main.log");
        Ok(Pod { sandbox, container, config, log })
    }

    /// Runs a sandbox alone and returns its ID.
    ///
    /// # Errors
    /// The status of `RunPodSandbox`; `Internal` if its log directory cannot be made.
    pub async fn sandbox(&mut self, config: &PodSandboxConfig, handler: &str) -> Result<String, Status> {
        // kubelet makes it, and containerd expects it.
        std::fs::create_dir_all(&config.log_directory)?;
        let request = requests::run(config, handler);
        Ok(self.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    /// Pulls the image for a sandbox and returns its reference.
    ///
    /// # Errors
    /// The status of `PullImage`.
    pub async fn pull(&mut self, config: &PodSandboxConfig) -> Result<String, Status> {
        Ok(self.images.pull_image(requests::pull(config)).await?.into_inner().image_ref)
    }

    /// Creates, but does not start, the container `main` of a sandbox and returns its ID.
    ///
    /// # Errors
    /// The status of `CreateContainer`.
    pub async fn container(
        &mut self,
        sandbox: &str,
        config: &PodSandboxConfig,
        command: &[&str],
    ) -> Result<String, Status> {
        let request = requests::create(sandbox, config, command);
        Ok(self.runtime.create_container(request).await?.into_inner().container_id)
    }

    /// Runs a command in a container and returns what it said.
    ///
    /// # Errors
    /// The status of `ExecSync`; a command that fails is no error.
    pub async fn exec(&mut self, container: &str, command: &[&str]) -> Result<ExecSyncResponse, Status> {
        Ok(self.runtime.exec_sync(requests::exec(container, command)).await?.into_inner())
    }

    /// Lists every sandbox.
    ///
    /// # Errors
    /// The status of `ListPodSandbox`.
    pub async fn list(&mut self) -> Result<Vec<PodSandbox>, Status> {
        Ok(self.runtime.list_pod_sandbox(requests::list()).await?.into_inner().items)
    }

    /// Stops and removes a sandbox with its containers.
    ///
    /// # Errors
    /// The status of the call that fails.
    pub async fn remove(&mut self, sandbox: &str) -> Result<(), Status> {
        self.runtime.stop_pod_sandbox(requests::stop(sandbox)).await?;
        self.runtime.remove_pod_sandbox(requests::remove(sandbox)).await?;
        Ok(())
    }
}

/// The configuration of the container `main` of a sandbox, which runs `command` in the image of [`IMAGE`].
pub fn container_config(sandbox: &PodSandboxConfig, command: &[&str]) -> ContainerConfig {
    requests::container_config(sandbox, command)
}
