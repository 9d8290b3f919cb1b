//! Records what calls created, changed and removed.

use super::InstanceState;
use crate::cri::{CREATED_ID, field, field_path};
use crate::state::changes::{Item, Op};
use crate::state::items::{CONTAINER_CREATED, CONTAINER_RUNNING, container_item, sandbox_item};
use crate::wire::{self, WireError};

impl InstanceState {
    /// Records the sandbox that an encoded `RunPodSandboxRequest`, as sent to the backend, created.
    pub fn record_sandbox_created(&self, id: &str, request: &[u8]) {
        let item = sandbox_item(
            id,
            request,
            field!(RunPodSandboxRequest.config),
            field!(RunPodSandboxRequest.runtime_handler),
        );
        self.change(vec![Op::SandboxAdded(Item { id: id.to_owned(), item })]);
    }

    /// Records the container that an encoded `CreateContainerRequest` created.
    pub fn record_container_created(&self, id: &str, sandbox_id: &str, request: &[u8]) {
        let configs: Vec<&[u8]> =
            wire::items(request, field!(CreateContainerRequest.config)).map_while(Result::ok).collect();
        let item = container_item(id, sandbox_id, &configs, CONTAINER_CREATED);
        self.change(vec![Op::ContainerAdded(Item { id: id.to_owned(), item })]);
    }

    /// Records the sandbox and the running containers that a `RestorePod` created, from the encoded request
    /// as sent to the backend and the encoded response.
    ///
    /// # Errors
    /// Whatever makes the response unreadable; nothing is recorded then.
    pub fn record_restored(&self, request: &[u8], response: &[u8]) -> Result<(), WireError> {
        let id = wire::peek_str(response, &[CREATED_ID])?;
        let item = sandbox_item(
            id,
            request,
            field!(RestorePodRequest.config),
            field!(RestorePodRequest.runtime_handler),
        );
        let mut ops = vec![Op::SandboxAdded(Item { id: id.to_owned(), item })];
        for restored in wire::items(response, field!(RestorePodResponse.restored_containers)) {
            ops.push(restored_container(id, request, restored?)?);
        }
        self.change(ops);
        Ok(())
    }

    /// Records that a container runs.
    pub fn record_container_started(&self, id: &str) {
        self.change(vec![Op::ContainerStarted(id.to_owned())]);
    }

    /// Records that a container exited, if it was ever started.
    pub fn record_container_stopped(&self, id: &str) {
        self.change(vec![Op::ContainerStopped(id.to_owned())]);
    }

    /// Records that a sandbox is not ready, and those of its containers that were started exited.
    pub fn record_sandbox_stopped(&self, id: &str) {
        self.change(vec![Op::SandboxStopped(id.to_owned())]);
    }

    /// Records that a sandbox is gone, with its containers.
    pub fn record_sandbox_removed(&self, id: &str) {
        self.change(vec![Op::SandboxRemoved(id.to_owned())]);
    }

    /// Records that a container is gone.
    pub fn record_container_removed(&self, id: &str) {
        self.change(vec![Op::ContainerRemoved(id.to_owned())]);
    }

    /// Records that the image named by ID, tag or digest is gone.
    pub fn record_image_removed(&self, reference: &str) {
        self.change(vec![Op::ImageRemoved(reference.to_owned())]);
    }

    /// Forgets the image list; it is unknown until the next one arrives.
    pub fn forget_images(&self) {
        self.change(vec![Op::ImagesForgotten(true)]);
    }
}

fn restored_container(sandbox_id: &str, request: &[u8], restored: &[u8]) -> Result<Op, WireError> {
    let name = wire::peek_str(restored, &[field!(RestoredContainer.name)])?;
    let id = wire::peek_str(restored, &[field!(RestoredContainer.container_id)])?;
    let named =
        |config: &&[u8]| wire::peek_str(config, &field_path!(ContainerConfig.metadata.name)) == Ok(name);
    let config =
        wire::items(request, field!(RestorePodRequest.container_configs)).map_while(Result::ok).find(named);
    let mut name_alone = Vec::new();
    if config.is_none() {
        let mut metadata = Vec::new();
        wire::put_bytes(&mut metadata, field!(ContainerMetadata.name), name.as_bytes());
        wire::put_bytes(&mut name_alone, field!(ContainerConfig.metadata), &metadata);
    }
    let item = container_item(id, sandbox_id, &[config.unwrap_or(&name_alone)], CONTAINER_RUNNING);
    Ok(Op::ContainerAdded(Item { id: id.to_owned(), item }))
}
