//! Learns the owners that an event names.

use super::{Learner, SeenIn};
use crate::cri::{ContainerEventType, PodSandboxState, field, field_path};
use crate::error::Error;
use crate::router::SandboxRecord;
use crate::wire::{self, WireError};

impl Learner<'_> {
    /// Learns the owners that an event of the backend names. States are taken from the next list, because an
    /// event may be older than a later call.
    ///
    /// Returns false for an event about an object that another backend owns.
    pub(in crate::proxy) fn record_event(self, event: &[u8]) -> Result<bool, Error> {
        self.learn_event(event).map_err(|error| self.unreadable(error))
    }

    fn learn_event(self, event: &[u8]) -> Result<bool, WireError> {
        let owners = &self.node.router.owners;
        let about = wire::peek_str(event, &[field!(ContainerEventResponse.container_id)])?;
        let event_type = wire::peek_varint(event, &[field!(ContainerEventResponse.container_event_type)])?;
        let deleted = event_type == ContainerEventType::ContainerDeletedEvent as u64;
        let known =
            |id: &str| (deleted && id == about) || id.is_empty() || owners.is_owned_by(id, self.backend.id);
        let sandbox = wire::peek_str(event, &field_path!(ContainerEventResponse.pod_sandbox_status.id))?;
        let status = wire::peek_bytes(event, &[field!(ContainerEventResponse.pod_sandbox_status)])?;
        if let Some(status) = status.filter(|_| !known(sandbox)) {
            let annotations = wire::items(status, field!(PodSandboxStatus.annotations)).flatten();
            let annotations = annotations.filter_map(|entry| wire::map_entry(entry).ok());
            let uid = wire::peek_str(status, &field_path!(PodSandboxStatus.metadata.uid))?;
            let handler = wire::peek_str(status, &[field!(PodSandboxStatus.runtime_handler)])?;
            let created = wire::peek_varint(status, &[field!(PodSandboxStatus.created_at)])?.cast_signed();
            let state = wire::peek_varint(status, &[field!(PodSandboxStatus.state)])?;
            let ready = state == PodSandboxState::SandboxReady as u64;
            let record =
                SandboxRecord { created_at: created, ready, ..SandboxRecord::new(uid, handler, annotations) };
            let claim = owners.learn_sandbox(sandbox, self.backend.id, record);
            self.settle_owner(sandbox, claim, SeenIn::Reply);
        }
        for status in wire::items(event, field!(ContainerEventResponse.containers_statuses)) {
            let id = wire::peek_str(status?, &[field!(ContainerStatus.id)])?;
            if !known(id) {
                self.settle_owner(id, owners.learn_container(id, self.backend.id), SeenIn::Reply);
            }
        }
        Ok(!self.backend.state.is_foreign(about) && !self.backend.state.is_foreign(sandbox))
    }
}
