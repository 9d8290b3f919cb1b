//! Builds the events that crimux synthesizes, with the pod's statuses read from its backend.
//!
//! kubelet finds the pod of an event by the metadata in the sandbox's status and drops events without it. If
//! the sandbox is gone, the metadata comes from its last list item.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use tonic::Code;

use super::Source;
use super::client_view::MissingEvent;
use crate::backend::own_headers;
use crate::codec::Message;
use crate::cri::{OBJECT_ID, Rpc, field};
use crate::merge::required;
use crate::method;
use crate::state::container_items;
use crate::wire;

/// The status in the replies to both status reads.
const STATUS: u32 = field!(PodSandboxStatusResponse.status);
const _: () = assert!(STATUS == field!(ContainerStatusResponse.status), "one number for both");

/// The encoded statuses of one pod.
#[derive(Default)]
struct PodStatuses {
    sandbox: Option<Bytes>,
    containers: Vec<Bytes>,
}

impl Source {
    /// Returns changes as framed events. `containers` is the list that shows them.
    pub(super) async fn events_of(&self, changes: &[MissingEvent], containers: &Bytes) -> Vec<Bytes> {
        let mut pods: HashMap<&str, Vec<&str>> =
            changes.iter().map(|change| (&*change.sandbox, Vec::new())).collect();
        for facts in container_items(containers).map_while(Result::ok) {
            if let Some(of_pod) = pods.get_mut(facts.sandbox_id) {
                of_pod.push(facts.id);
            }
        }
        let asked = pods
            .into_iter()
            .map(|(sandbox, containers)| async move { (sandbox, self.statuses(sandbox, &containers).await) });
        let statuses: HashMap<&str, PodStatuses> = join_all(asked).await.into_iter().collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let none = PodStatuses::default();
        let events = changes.iter().filter_map(|change| {
            let statuses = statuses.get(&*change.sandbox).unwrap_or(&none);
            let sandbox = statuses.sandbox.as_ref().unwrap_or(&change.status);
            let event = (!sandbox.is_empty()).then(|| event(change, sandbox, &statuses.containers, now))?;
            // A runtime's status may lack fields that kubelet dereferences.
            let checked = required::remove_incomplete(required::CheckedReply::Event, &event).ok();
            checked.filter(|(_, broken)| *broken == 0).map(|(event, _)| Message::new(&event).framed())
        });
        events.collect()
    }

    async fn statuses(&self, sandbox: &str, containers: &[&str]) -> PodStatuses {
        let asked = containers.iter().map(|id| self.status(Rpc::ContainerStatus, id));
        let (sandbox, containers) =
            tokio::join!(self.status(Rpc::PodSandboxStatus, sandbox), join_all(asked));
        PodStatuses { sandbox, containers: containers.into_iter().flatten().collect() }
    }

    /// Reads one encoded status; `None` if the call fails.
    async fn status(&self, rpc: Rpc, id: &str) -> Option<Bytes> {
        let method = method::row(rpc);
        let wait = self.backend.deadline(method);
        let mut request = BytesMut::new();
        wire::put_bytes(&mut request, OBJECT_ID, id.as_bytes());
        let message = Message::new(&request).framed();
        let asked = self.backend.fetch(method, own_headers(wait), message);
        let reply = tokio::time::timeout(wait, asked).await.ok()?.ok()?;
        let encoded = reply.message.encoded_bytes();
        let status = wire::peek_bytes(&encoded, &[STATUS]).ok()??;
        (reply.code == Code::Ok).then(|| encoded.slice_ref(status))
    }
}

fn event(change: &MissingEvent, sandbox: &[u8], containers: &[Bytes], now: u64) -> Bytes {
    let mut event = BytesMut::new();
    wire::put_bytes(&mut event, field!(ContainerEventResponse.container_id), change.id.as_bytes());
    wire::put_varint(&mut event, field!(ContainerEventResponse.container_event_type), change.kind as u64);
    wire::put_varint(&mut event, field!(ContainerEventResponse.created_at), now);
    wire::put_bytes(&mut event, field!(ContainerEventResponse.pod_sandbox_status), sandbox);
    for container in containers {
        wire::put_bytes(&mut event, field!(ContainerEventResponse.containers_statuses), container);
    }
    event.freeze()
}
