//! The life of containers, and what is reported of them.
//!
//! A container has no process: it runs from `StartContainer` until it is stopped or a test lets it exit.
//! Errors carry containerd's codes (containerd, `internal/cri/server/container_*.go`).

use tonic::Status;

use super::sandboxes::sandbox_name;
use super::state::{Container, State, now, selected};
use crate::cri::{self, ContainerEventType, ContainerState};

impl State {
    /// Creates a container in a sandbox and returns its ID.
    ///
    /// # Errors
    /// `NotFound` if sandbox or image are unknown; `Unknown` if the sandbox has ended or the name is taken.
    pub fn create_container(
        &mut self,
        sandbox_id: &str,
        config: cri::ContainerConfig,
    ) -> Result<String, Status> {
        let sandbox = self.sandbox(sandbox_id).ok_or_else(|| {
            Status::not_found(format!("failed to find sandbox id {sandbox_id:?}: not found"))
        })?;
        if !sandbox.ready {
            return Err(Status::unknown(format!("sandbox {:?} is not running", sandbox.id)));
        }
        let sandbox_id = sandbox.id.clone();
        let metadata = config
            .metadata
            .as_ref()
            .ok_or_else(|| Status::invalid_argument("container config must include metadata"))?;
        let name = container_name(metadata, &sandbox.config);
        let image = config.image.as_ref().map(|spec| spec.image.clone()).unwrap_or_default();
        let image_id = self
            .image(&image)
            .map(|image| image.id.clone())
            .ok_or_else(|| Status::not_found(format!("failed to resolve image {image:?}: not found")))?;
        if let Some(owner) = self.names.get(&name) {
            return Err(Status::unknown(format!(
                "failed to reserve container name {name:?}: name {name:?} is reserved for {owner:?}"
            )));
        }
        let id = self.ids.next_id();
        self.names.insert(name, id.clone());
        let container = Container {
            id: id.clone(),
            sandbox_id,
            config,
            state: ContainerState::ContainerCreated,
            image_id,
            created_at: now(),
            started_at: 0,
            finished_at: 0,
            exit_code: 0,
            resources: None,
        };
        self.containers.insert(id.clone(), container);
        self.emit(&id, ContainerEventType::ContainerCreatedEvent);
        Ok(id)
    }

    /// Starts a created container.
    ///
    /// # Errors
    /// `NotFound` for an unknown ID, `Unknown` if it was started before.
    pub fn start_container(&mut self, id: &str) -> Result<(), Status> {
        let (id, state) = self.known_container(id).map(|found| (found.id.clone(), found.state))?;
        if state != ContainerState::ContainerCreated {
            return Err(Status::unknown(format!(
                "failed to start container {id:?}: container is in {} state",
                state.as_str_name()
            )));
        }
        self.update(&id, |container| {
            container.state = ContainerState::ContainerRunning;
            container.started_at = now();
        });
        self.emit(&id, ContainerEventType::ContainerStartedEvent);
        Ok(())
    }

    /// Lets a container end with an exit code; nothing happens if it is unknown or has ended.
    pub fn exit_container(&mut self, id: &str, exit_code: i32) {
        let Some(container) = self.container(id) else { return };
        if container.state == ContainerState::ContainerExited {
            return;
        }
        let id = container.id.clone();
        self.update(&id, |container| {
            container.state = ContainerState::ContainerExited;
            container.finished_at = now();
            container.exit_code = exit_code;
        });
        self.emit(&id, ContainerEventType::ContainerStoppedEvent);
    }

    /// Stops and removes a container.
    ///
    /// # Errors
    /// `NotFound` for an unknown ID, if that is the runtime's habit.
    pub fn remove_container(&mut self, id: &str) -> Result<(), Status> {
        let Some(id) = self.container(id).map(|container| container.id.clone()) else {
            return self.unknown_id("container", id);
        };
        self.exit_container(&id, 137);
        self.emit(&id, ContainerEventType::ContainerDeletedEvent);
        self.release_name_of(&id);
        self.containers.remove(&id);
        Ok(())
    }

    pub(crate) fn stop_container(&mut self, request: &cri::StopContainerRequest) -> Result<(), Status> {
        if self.container(&request.container_id).is_none() {
            return self.unknown_id("container", &request.container_id);
        }
        // A process that was given time ends by SIGTERM, one that was not by SIGKILL.
        let exit_code = if request.timeout > 0 { 143 } else { 137 };
        self.exit_container(&request.container_id, exit_code);
        Ok(())
    }

    pub(crate) fn update_resources(
        &mut self,
        request: cri::UpdateContainerResourcesRequest,
    ) -> Result<(), Status> {
        let id = self.known_container(&request.container_id)?.id.clone();
        self.update(&id, |container| container.resources = request.linux);
        Ok(())
    }

    pub(crate) fn reopen_log(&mut self, id: &str) -> Result<(), Status> {
        let container = self.running_container(id)?;
        let id = container.id.clone();
        self.reopened_logs.push(id);
        Ok(())
    }

    pub(crate) fn container_status(
        &self,
        request: &cri::ContainerStatusRequest,
    ) -> Result<cri::ContainerStatusResponse, Status> {
        let container = self.known_container(&request.container_id)?;
        let mut response =
            cri::ContainerStatusResponse { status: Some(status_of(container)), ..Default::default() };
        if request.verbose {
            let env = container.config.envs.iter();
            let env: Vec<_> =
                env.map(|pair| format!("{}={}", pair.key, String::from_utf8_lossy(&pair.value))).collect();
            let info = serde_json::json!({
                "sandboxID": container.sandbox_id,
                "pid": 4343,
                "runtimeSpec": { "process": { "args": container.config.command, "env": env } },
            });
            response.info.insert("info".into(), info.to_string());
        }
        Ok(response)
    }

    pub(crate) fn list_containers(&self, filter: Option<&cri::ContainerFilter>) -> Vec<cri::Container> {
        let none = cri::ContainerFilter::default();
        let filter = filter.unwrap_or(&none);
        let sandbox = self.sandbox(&filter.pod_sandbox_id).map(|sandbox| sandbox.id.as_str());
        let wanted = |container: &&Container| {
            (filter.pod_sandbox_id.is_empty() || sandbox == Some(container.sandbox_id.as_str()))
                && filter.state.is_none_or(|wanted| wanted.state == i32::from(container.state))
                && selected(&filter.label_selector, &container.config.labels)
        };
        if filter.id.is_empty() {
            return self.containers().filter(wanted).map(item_of).collect();
        }
        self.container(&filter.id).filter(wanted).map(item_of).into_iter().collect()
    }

    pub(crate) fn known_container(&self, id: &str) -> Result<&Container, Status> {
        self.container(id).ok_or_else(|| {
            Status::not_found(format!("an error occurred when try to find container {id:?}: not found"))
        })
    }

    pub(crate) fn running_container(&self, id: &str) -> Result<&Container, Status> {
        let container = self.known_container(id)?;
        if container.state != ContainerState::ContainerRunning {
            let state = container.state.as_str_name();
            return Err(Status::unknown(format!("container {:?} is in {state} state", container.id)));
        }
        Ok(container)
    }

    fn update(&mut self, id: &str, change: impl FnOnce(&mut Container)) {
        change(self.containers.get_mut(id).expect("callers have found the container"));
    }
}

pub(crate) fn container_name(metadata: &cri::ContainerMetadata, pod: &cri::PodSandboxConfig) -> String {
    let pod = pod.metadata.as_ref().map(sandbox_name).unwrap_or_default();
    format!("{}_{pod}_{}", metadata.name, metadata.attempt)
}

/// Answers `ExecSync` without a process: the command is echoed, `exit N` exits with N, `bytes N` prints N
/// bytes.
pub(crate) fn exec_sync(command: &[String]) -> cri::ExecSyncResponse {
    let number = |text: &String| text.parse::<usize>().unwrap_or(0);
    match command {
        [verb, code] if verb == "exit" => cri::ExecSyncResponse {
            exit_code: i32::try_from(number(code)).unwrap_or(255),
            ..Default::default()
        },
        [verb, count] if verb == "bytes" => {
            cri::ExecSyncResponse { stdout: vec![b'x'; number(count)], ..Default::default() }
        }
        _ => cri::ExecSyncResponse { stdout: command.join(" ").into_bytes(), ..Default::default() },
    }
}

pub(crate) fn status_of(container: &Container) -> cri::ContainerStatus {
    let reason = match (container.state, container.exit_code) {
        (ContainerState::ContainerExited, 0) => "Completed",
        (ContainerState::ContainerExited, _) => "Error",
        _ => "",
    };
    let config = &container.config;
    cri::ContainerStatus {
        id: container.id.clone(),
        metadata: config.metadata.clone(),
        state: container.state.into(),
        created_at: container.created_at,
        started_at: container.started_at,
        finished_at: container.finished_at,
        exit_code: container.exit_code,
        image: Some(reported_image(container)),
        image_ref: container.image_id.clone(),
        reason: reason.to_owned(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: config.mounts.clone(),
        log_path: config.log_path.clone(),
        resources: container
            .resources
            .clone()
            .map(|linux| cri::ContainerResources { linux: Some(linux), windows: None }),
        image_id: container.image_id.clone(),
        stop_signal: config.stop_signal,
        ..Default::default()
    }
}

fn item_of(container: &Container) -> cri::Container {
    cri::Container {
        id: container.id.clone(),
        pod_sandbox_id: container.sandbox_id.clone(),
        metadata: container.config.metadata.clone(),
        image: Some(reported_image(container)),
        image_ref: container.image_id.clone(),
        state: container.state.into(),
        created_at: container.created_at,
        labels: container.config.labels.clone(),
        annotations: container.config.annotations.clone(),
        image_id: container.image_id.clone(),
    }
}

fn reported_image(container: &Container) -> cri::ImageSpec {
    container.config.image.clone().unwrap_or_default()
}
