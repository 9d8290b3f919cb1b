//! Records what a write created, changed or removed.

use super::{Learner, SeenIn};
use crate::cri::{CREATED_ID, field};
use crate::error::Error;
use crate::method::{Effect, Kind, Method};
use crate::proxy::creation::CreationRequest;
use crate::wire::{self, WireError};

impl Learner<'_> {
    /// Records the sandbox that an OK reply created, with the containers of a restored pod, and returns its
    /// ID.
    ///
    /// The object is recorded before its owner, because [`Node::reconcile_owners`] forgets the owners of
    /// objects that are not recorded.
    ///
    /// [`Node::reconcile_owners`]: crate::proxy::Node::reconcile_owners
    pub(in crate::proxy) fn learn_created_sandbox(
        self,
        request: &CreationRequest<'_>,
        reply: &[u8],
    ) -> Result<String, Error> {
        let unreadable = |error: WireError| self.unreadable(error);
        let id = self.created_id(request.method, reply)?;
        let restored = match request.method.effect {
            Effect::PodRestored => restored_containers(reply).map_err(unreadable)?,
            _ => Vec::new(),
        };
        let record = request.sandbox_record()?;
        if request.method.effect == Effect::PodRestored {
            self.backend.state.record_restored(request.encoded, reply).map_err(unreadable)?;
        } else {
            self.backend.state.record_sandbox_created(id, request.encoded);
        }
        let owners = &self.node.router.owners;
        self.settle_owner(id, owners.learn_sandbox(id, self.backend.id, record), SeenIn::Reply);
        for container in restored {
            let claim = owners.learn_container(container, self.backend.id);
            self.settle_owner(container, claim, SeenIn::Reply);
        }
        Ok(id.to_owned())
    }

    /// Records the container that an OK reply created in this sandbox.
    fn record_container_created(
        self,
        method: &Method,
        sandbox: &str,
        request: &[u8],
        reply: &[u8],
    ) -> Result<(), Error> {
        let id = self.created_id(method, reply)?;
        self.backend.state.record_container_created(id, sandbox, request);
        let claim = self.node.router.owners.learn_container(id, self.backend.id);
        self.settle_owner(id, claim, SeenIn::Reply);
        Ok(())
    }

    fn created_id<'r>(self, method: &Method, reply: &'r [u8]) -> Result<&'r str, Error> {
        let id = wire::peek_str(reply, &[CREATED_ID]).map_err(|error| self.unreadable(error))?;
        if id.is_empty() {
            return Err(self
                .backend
                .invalid_reply_error(format!("{} was answered with an empty ID", method.name)));
        }
        Ok(id)
    }

    /// Records what an OK reply to a call about the object `id` changed.
    pub(in crate::proxy) fn record_write(
        self,
        method: &Method,
        id: &str,
        request: &[u8],
        reply: &[u8],
    ) -> Result<(), Error> {
        let (state, owners) = (&self.backend.state, &self.node.router.owners);
        match method.effect {
            Effect::ContainerCreated => self.record_container_created(method, id, request, reply)?,
            Effect::ContainerStarted => state.record_container_started(id),
            Effect::ContainerStopped => state.record_container_stopped(id),
            Effect::ContainerRemoved => {
                state.record_container_removed(id);
                self.node.record_gone_elsewhere(Kind::Container, id);
                owners.remove(id);
            }
            Effect::SandboxStopped => {
                state.record_sandbox_stopped(id);
                owners.record_ready(id, false);
            }
            Effect::SandboxRemoved => {
                state.record_sandbox_removed(id);
                self.node.record_gone_elsewhere(Kind::Sandbox, id);
                self.node.history.forget_requested_handler(id);
                owners.remove(id);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Returns the IDs of the containers that were restored with their pod.
fn restored_containers(reply: &[u8]) -> Result<Vec<&str>, WireError> {
    wire::items(reply, field!(RestorePodResponse.restored_containers))
        .map(|restored| wire::peek_str(restored?, &[field!(RestoredContainer.container_id)]))
        .collect()
}
