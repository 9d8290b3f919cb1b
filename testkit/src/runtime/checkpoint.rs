//! Checkpoints, restored pods and pod-level resources.
//!
//! `RestorePod` is the second RPC that makes sandboxes, and the only one that makes containers together with
//! their sandbox (KEP-5823). Nothing is written: a checkpoint is remembered by its path.

use tonic::Status;

use super::state::State;
use crate::cri;

impl State {
    pub(crate) fn checkpoint_container(
        &mut self,
        request: cri::CheckpointContainerRequest,
    ) -> Result<(), Status> {
        self.running_container(&request.container_id)?;
        self.checkpoints.push(request.location);
        Ok(())
    }

    pub(crate) fn checkpoint_pod(&mut self, request: cri::CheckpointPodRequest) -> Result<(), Status> {
        self.known_sandbox(&request.pod_sandbox_id)?;
        self.checkpoints.push(request.output_path);
        Ok(())
    }

    pub(crate) fn restore_pod(
        &mut self,
        request: cri::RestorePodRequest,
    ) -> Result<cri::RestorePodResponse, Status> {
        let config = request.config.unwrap_or_default();
        let pod_sandbox_id = self.run_sandbox(config, &request.runtime_handler)?;
        let mut restored_containers = Vec::new();
        for config in request.container_configs {
            let name = config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
            // The images are part of the checkpoint.
            if let Some(image) = &config.image {
                self.add_missing_image(&image.image.clone());
            }
            let container_id = self.create_container(&pod_sandbox_id, config)?;
            self.start_container(&container_id)?;
            restored_containers.push(cri::RestoredContainer { name, container_id });
        }
        Ok(cri::RestorePodResponse { pod_sandbox_id, restored_containers })
    }

    pub(crate) fn update_pod_resources(
        &mut self,
        request: cri::UpdatePodSandboxResourcesRequest,
    ) -> Result<(), Status> {
        let id = self.known_sandbox(&request.pod_sandbox_id)?.id.clone();
        let sandbox = self.sandboxes.get_mut(&id).expect("the sandbox was found above");
        let linux = sandbox.config.linux.get_or_insert_default();
        linux.overhead = request.overhead;
        linux.resources = request.resources;
        Ok(())
    }

    fn add_missing_image(&mut self, reference: &str) {
        if self.image(reference).is_none() {
            self.add_image(reference);
        }
    }
}
