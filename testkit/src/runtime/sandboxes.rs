//! The life of pod sandboxes, and what is reported of them.
//!
//! Errors carry containerd's codes and, where clients match on them, its words (containerd,
//! `internal/cri/server/sandbox_*.go`).

use tonic::Status;

use super::abilities::{Events, UnknownIds};
use super::state::{Sandbox, State, now, selected};
use crate::cri::{self, ContainerEventType};

impl State {
    /// Adds a READY sandbox and returns its ID.
    ///
    /// # Errors
    /// If the configuration has no metadata, the handler is unknown or the name is taken.
    pub fn run_sandbox(&mut self, config: cri::PodSandboxConfig, handler: &str) -> Result<String, Status> {
        let metadata = config
            .metadata
            .as_ref()
            .ok_or_else(|| Status::invalid_argument("sandbox config must include metadata"))?;
        if !handler.is_empty() && !self.abilities.handlers.iter().any(|known| known == handler) {
            return Err(Status::unknown(format!(
                "failed to get sandbox runtime: no runtime for {handler:?} is configured"
            )));
        }
        let name = sandbox_name(metadata);
        if let Some(owner) = self.names.get(&name) {
            return Err(Status::unknown(format!(
                "failed to reserve sandbox name {name:?}: name {name:?} is reserved for {owner:?}"
            )));
        }
        let id = self.ids.next_id();
        self.names.insert(name, id.clone());
        let number = self.sandboxes.len() + 2;
        let sandbox = Sandbox {
            id: id.clone(),
            config,
            handler: handler.to_owned(),
            ready: true,
            created_at: now(),
            ip: format!("10.88.{}.{}", number / 250 % 250, number % 250),
        };
        self.sandboxes.insert(id.clone(), sandbox);
        self.emit(&id, ContainerEventType::ContainerCreatedEvent);
        self.emit(&id, ContainerEventType::ContainerStartedEvent);
        Ok(id)
    }

    /// Ends a sandbox and its containers.
    ///
    /// # Errors
    /// `NotFound` for an unknown ID, if that is the runtime's habit.
    pub fn stop_sandbox(&mut self, id: &str) -> Result<(), Status> {
        let Some(id) = self.sandbox(id).map(|sandbox| sandbox.id.clone()) else {
            return self.unknown_id("sandbox", id);
        };
        let containers: Vec<_> = self.containers_of(&id).map(|container| container.id.clone()).collect();
        for container in containers {
            self.exit_container(&container, 137);
        }
        let sandbox = self.sandboxes.get_mut(&id);
        if sandbox.is_some_and(|sandbox| std::mem::replace(&mut sandbox.ready, false)) {
            self.emit(&id, ContainerEventType::ContainerStoppedEvent);
        }
        Ok(())
    }

    /// Stops and removes a sandbox with its containers.
    ///
    /// # Errors
    /// `NotFound` for an unknown ID, if that is the runtime's habit.
    pub fn remove_sandbox(&mut self, id: &str) -> Result<(), Status> {
        let Some(id) = self.sandbox(id).map(|sandbox| sandbox.id.clone()) else {
            return self.unknown_id("sandbox", id);
        };
        self.stop_sandbox(&id)?;
        let containers: Vec<_> = self.containers_of(&id).map(|container| container.id.clone()).collect();
        for container in containers {
            self.remove_container(&container)?;
        }
        // The event carries the status, which must be taken while the sandbox is there.
        self.emit(&id, ContainerEventType::ContainerDeletedEvent);
        self.release_name_of(&id);
        self.sandboxes.remove(&id);
        Ok(())
    }

    pub(crate) fn sandbox_status(
        &self,
        request: &cri::PodSandboxStatusRequest,
    ) -> Result<cri::PodSandboxStatusResponse, Status> {
        let sandbox = self.known_sandbox(&request.pod_sandbox_id)?;
        let mut response =
            cri::PodSandboxStatusResponse { status: Some(status_of(sandbox)), ..Default::default() };
        if self.abilities.events == Events::Stream {
            response.containers_statuses =
                self.containers_of(&sandbox.id).map(super::containers::status_of).collect();
            response.timestamp = now();
        }
        if request.verbose {
            let info = serde_json::json!({
                "pid": 4242,
                "runtimeHandler": sandbox.handler,
                "config": { "hostname": sandbox.config.hostname, "annotations": sandbox.config.annotations },
            });
            response.info.insert("info".into(), info.to_string());
        }
        Ok(response)
    }

    pub(crate) fn list_sandboxes(&self, filter: Option<&cri::PodSandboxFilter>) -> Vec<cri::PodSandbox> {
        let none = cri::PodSandboxFilter::default();
        let filter = filter.unwrap_or(&none);
        let wanted = |sandbox: &&Sandbox| {
            filter.state.is_none_or(|wanted| wanted.state == i32::from(state_of(sandbox)))
                && selected(&filter.label_selector, &sandbox.config.labels)
        };
        if filter.id.is_empty() {
            return self.sandboxes().filter(wanted).map(item_of).collect();
        }
        self.sandbox(&filter.id).filter(wanted).map(item_of).into_iter().collect()
    }

    pub(crate) fn known_sandbox(&self, id: &str) -> Result<&Sandbox, Status> {
        let unknown =
            || Status::not_found(format!("an error occurred when try to find sandbox {id:?}: not found"));
        self.sandbox(id).ok_or_else(unknown)
    }

    pub(crate) fn unknown_id(&self, kind: &str, id: &str) -> Result<(), Status> {
        match self.abilities.unknown_ids {
            UnknownIds::Ok => Ok(()),
            UnknownIds::NotFound => {
                Err(Status::not_found(format!("an error occurred when try to find {kind} {id:?}: not found")))
            }
        }
    }
}

pub(crate) fn sandbox_name(metadata: &cri::PodSandboxMetadata) -> String {
    let cri::PodSandboxMetadata { name, namespace, uid, attempt } = metadata;
    format!("{name}_{namespace}_{uid}_{attempt}")
}

pub(crate) fn status_of(sandbox: &Sandbox) -> cri::PodSandboxStatus {
    cri::PodSandboxStatus {
        id: sandbox.id.clone(),
        metadata: sandbox.config.metadata.clone(),
        state: state_of(sandbox).into(),
        created_at: sandbox.created_at,
        network: Some(cri::PodSandboxNetworkStatus { ip: sandbox.ip.clone(), additional_ips: Vec::new() }),
        linux: Some(cri::LinuxPodSandboxStatus {
            namespaces: Some(cri::Namespace { options: Some(cri::NamespaceOption::default()) }),
        }),
        labels: sandbox.config.labels.clone(),
        annotations: sandbox.config.annotations.clone(),
        runtime_handler: sandbox.handler.clone(),
    }
}

fn item_of(sandbox: &Sandbox) -> cri::PodSandbox {
    cri::PodSandbox {
        id: sandbox.id.clone(),
        metadata: sandbox.config.metadata.clone(),
        state: state_of(sandbox).into(),
        created_at: sandbox.created_at,
        labels: sandbox.config.labels.clone(),
        annotations: sandbox.config.annotations.clone(),
        runtime_handler: sandbox.handler.clone(),
    }
}

fn state_of(sandbox: &Sandbox) -> cri::PodSandboxState {
    if sandbox.ready { cri::PodSandboxState::SandboxReady } else { cri::PodSandboxState::SandboxNotready }
}
