//! Tells the clients of `GetContainerEvents` what happens.
//!
//! Sandboxes have events too, under their own ID. Every event carries the status of the sandbox, the one of a
//! deletion included: kubelet drops events without it (kubelet, `pleg/evented.go`).

use bytes::Bytes;
use tokio::sync::mpsc;
use tonic::Status;

use super::abilities::Events;
use super::reply::Body;
use super::state::{State, now};
use super::{containers, frame, sandboxes};
use crate::cri::{self, ContainerEventType};

impl State {
    /// Ends the event streams of all clients with `status`, as a runtime that shuts down does.
    pub fn end_event_streams(&mut self, status: &Status) {
        for subscriber in self.subscribers.drain(..) {
            // A client that has left needs no end.
            let _ = subscriber.send(Err(status.clone()));
        }
    }

    /// Returns how many clients listen for events.
    pub fn event_streams(&self) -> usize {
        self.subscribers.iter().filter(|subscriber| !subscriber.is_closed()).count()
    }

    pub(crate) fn subscribe(&mut self) -> Result<Body, Status> {
        match self.abilities.events {
            Events::Unimplemented => Err(Status::unimplemented("method GetContainerEvents not implemented")),
            Events::EndAtOnce => Ok(Body::empty()),
            Events::Stream => {
                let (sender, receiver) = mpsc::unbounded_channel::<Result<Bytes, Status>>();
                self.subscribers.push(sender);
                Ok(Body::Stream(receiver))
            }
        }
    }

    /// Sends an event about the container or sandbox with this full ID.
    pub(crate) fn emit(&mut self, id: &str, kind: ContainerEventType) {
        if self.subscribers.is_empty() {
            return;
        }
        let sandbox_id = self.containers.get(id).map_or(id, |container| &container.sandbox_id);
        let event = cri::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: now(),
            pod_sandbox_status: self.sandboxes.get(sandbox_id).map(sandboxes::status_of),
            containers_statuses: self.containers_of(sandbox_id).map(containers::status_of).collect(),
        };
        let event = frame::encode(&event);
        self.subscribers.retain(|subscriber| subscriber.send(Ok(event.clone())).is_ok());
    }
}
