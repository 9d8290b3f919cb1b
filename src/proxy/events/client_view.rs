//! What clients know of one backend from its events, and the events that newer lists show to be missing.
//!
//! While a backend streams, clients know what its events say. Without a stream, its lists are compared with
//! that, and each difference is one missing event. The runtime may send the same event later, over a stream
//! that was opened meanwhile; it is then not sent twice. Only an object that a list shows becomes an event,
//! because kubelet looks for it in a list next. No I/O.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use crate::cri::{ContainerEventType as Type, field, field_path};
use crate::state::{
    CONTAINER_CREATED, CONTAINER_EXITED, CONTAINER_RUNNING, CONTAINER_UNKNOWN, ContainerRef, SANDBOX_READY,
    SandboxRef, container_items, sandbox_items,
};
use crate::wire::{self, WireError};

/// Beyond so many objects with events, the oldest events are forgotten.
const MAX_LAST_EVENTS: usize = 1000;
/// How long a runtime's own event may come after the event that crimux made in its place.
const LATE_EVENTS: Duration = Duration::from_secs(60);

/// What clients know of the sandboxes and containers of one backend.
#[derive(Debug, Default)]
pub(super) struct ClientView {
    sandboxes: HashMap<Box<str>, Sandbox>,
    containers: HashMap<Box<str>, Container>,
    /// Events that crimux made, by ID and type.
    synthesized: HashMap<(Box<str>, u64), Instant>,
    /// The number and time of the runtime's last event about each object: a list that was requested before
    /// it is older.
    last_events: HashMap<Box<str>, (u64, Instant)>,
    events: u64,
    /// The lists that were compared last: the same bytes have nothing new.
    compared: Option<(Bytes, Bytes)>,
}

#[derive(Debug, Clone, Default)]
struct Sandbox {
    ready: bool,
    /// An encoded `PodSandboxStatus`, with what a list or an event says.
    status: Bytes,
}

#[derive(Debug, Clone, Default)]
struct Container {
    state: i32,
    sandbox: Box<str>,
}

/// An event that clients have not received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MissingEvent {
    /// The container or sandbox.
    pub(super) id: String,
    /// Its sandbox, or itself.
    pub(super) sandbox: String,
    /// What happened to it.
    pub(super) kind: Type,
    /// An encoded `PodSandboxStatus` for a runtime that cannot give one any more.
    pub(super) status: Bytes,
}

impl ClientView {
    /// Starts with these lists as known to clients.
    ///
    /// # Errors
    /// Whatever makes one of them unreadable.
    pub(super) fn begin(sandboxes: &Bytes, containers: &Bytes) -> Result<Self, WireError> {
        let mut view = Self::default();
        view.compare(sandboxes, containers, 0)?;
        view.synthesized.clear();
        Ok(view)
    }

    /// Returns how many events of the runtime came so far; take it *before* asking for lists to compare.
    pub(super) fn event_count(&self) -> u64 {
        self.events
    }

    /// Records an event that a runtime sent. Returns whether it is new to clients.
    ///
    /// # Errors
    /// Whatever makes it unreadable.
    pub(super) fn record_event(&mut self, event: &[u8]) -> Result<bool, WireError> {
        let id = wire::peek_str(event, &[field!(ContainerEventResponse.container_id)])?;
        let kind = wire::peek_varint(event, &[field!(ContainerEventResponse.container_event_type)])?;
        let path = field_path!(ContainerEventResponse.pod_sandbox_status.id);
        let sandbox = wire::peek_str(event, &path)?;
        self.note_event(id);
        if self.synthesized.remove(&(id.into(), kind)).is_some_and(|made| made.elapsed() < LATE_EVENTS) {
            return Ok(false);
        }
        if id == sandbox {
            if kind == Type::ContainerDeletedEvent as u64 {
                self.sandboxes.remove(id);
            } else {
                let status = wire::peek_bytes(event, &[field!(ContainerEventResponse.pod_sandbox_status)])?;
                let status = Bytes::copy_from_slice(status.unwrap_or_default());
                let ready = kind != Type::ContainerStoppedEvent as u64;
                self.sandboxes.insert(id.into(), Sandbox { ready, status });
            }
        } else if kind == Type::ContainerDeletedEvent as u64 {
            self.containers.remove(id);
        } else {
            let state = match kind {
                kind if kind == Type::ContainerStartedEvent as u64 => CONTAINER_RUNNING,
                kind if kind == Type::ContainerStoppedEvent as u64 => CONTAINER_EXITED,
                _ => CONTAINER_CREATED,
            };
            self.containers.insert(id.into(), Container { state, sandbox: sandbox.into() });
        }
        Ok(true)
    }

    fn note_event(&mut self, id: &str) {
        self.events += 1;
        if self.last_events.len() >= MAX_LAST_EVENTS {
            self.last_events.retain(|_, (_, at)| at.elapsed() < LATE_EVENTS);
        }
        self.last_events.insert(id.into(), (self.events, Instant::now()));
    }

    /// Compares lists, asked for when `since` events had come, with what clients were view, and takes the
    /// changes for view.
    ///
    /// # Errors
    /// Whatever makes one of them unreadable; nothing changes then.
    pub(super) fn compare(
        &mut self,
        sandboxes: &Bytes,
        containers: &Bytes,
        since: u64,
    ) -> Result<Vec<MissingEvent>, WireError> {
        let same = |old: &Bytes, new: &Bytes| old.as_ptr() == new.as_ptr() && old.len() == new.len();
        if self.compared.as_ref().is_some_and(|(s, c)| same(s, sandboxes) && same(c, containers)) {
            return Ok(Vec::new());
        }
        self.last_events.retain(|_, (event, _)| *event > since);
        let newer = |id: &str| self.last_events.contains_key(id);
        let mut listed_sandboxes: Vec<SandboxRef<'_>> = sandbox_items(sandboxes).collect::<Result<_, _>>()?;
        let mut listed_containers: Vec<ContainerRef<'_>> =
            container_items(containers).collect::<Result<_, _>>()?;
        listed_sandboxes.retain(|facts| !newer(facts.id));
        listed_containers.retain(|facts| !newer(facts.id));
        let mut changes = Vec::new();
        self.new_sandboxes(&listed_sandboxes, &mut changes);
        self.new_containers(&listed_containers, &mut changes);
        self.stopped_sandboxes(&listed_sandboxes, &mut changes);
        self.find_removed(&listed_sandboxes, &listed_containers, &mut changes);
        self.compared = Some((sandboxes.clone(), containers.clone()));
        let now = Instant::now();
        self.synthesized.retain(|_, made| now.duration_since(*made) < LATE_EVENTS);
        self.synthesized
            .extend(changes.iter().map(|change| ((change.id.as_str().into(), change.kind as u64), now)));
        Ok(changes)
    }

    fn new_sandboxes(&mut self, listed: &[SandboxRef<'_>], changes: &mut Vec<MissingEvent>) {
        for facts in listed.iter().filter(|facts| !self.sandboxes.contains_key(facts.id)) {
            let change = |kind| sandbox_change(facts.id, kind, &status_of(facts.item));
            changes.push(change(Type::ContainerCreatedEvent));
            changes.extend((facts.state == SANDBOX_READY).then(|| change(Type::ContainerStartedEvent)));
        }
        for facts in listed {
            let known = self.sandboxes.entry(facts.id.into()).or_insert_with(|| Sandbox {
                // A new sandbox that is not ready has stopped.
                ready: true,
                status: Bytes::new(),
            });
            known.status = status_of(facts.item);
        }
    }

    /// Containers stop before their sandbox does.
    fn stopped_sandboxes(&mut self, listed: &[SandboxRef<'_>], changes: &mut Vec<MissingEvent>) {
        for facts in listed {
            let Some(known) = self.sandboxes.get_mut(facts.id) else { continue };
            // A sandbox that has stopped is never ready again.
            if known.ready && facts.state != SANDBOX_READY {
                changes.push(sandbox_change(facts.id, Type::ContainerStoppedEvent, &known.status));
                known.ready = false;
            }
        }
    }

    fn new_containers(&mut self, listed: &[ContainerRef<'_>], changes: &mut Vec<MissingEvent>) {
        for facts in listed {
            let known = self.containers.get(facts.id).map(|known| known.state);
            let status = self.sandboxes.get(facts.sandbox_id).map(|sandbox| sandbox.status.clone());
            let status = status.unwrap_or_default();
            let mut push = |kind| {
                let (id, sandbox) = (facts.id.to_owned(), facts.sandbox_id.to_owned());
                changes.push(MissingEvent { id, sandbox, kind, status: status.clone() });
            };
            if known.is_none() {
                push(Type::ContainerCreatedEvent);
            }
            match facts.state {
                // States only move forward.
                state if known.is_some_and(|known| known >= state && known != CONTAINER_UNKNOWN) => continue,
                CONTAINER_RUNNING => push(Type::ContainerStartedEvent),
                CONTAINER_EXITED => push(Type::ContainerStoppedEvent),
                _ => {}
            }
            let container = Container { state: facts.state, sandbox: facts.sandbox_id.into() };
            self.containers.insert(facts.id.into(), container);
        }
    }

    fn find_removed(
        &mut self,
        sandboxes: &[SandboxRef<'_>],
        containers: &[ContainerRef<'_>],
        changes: &mut Vec<MissingEvent>,
    ) {
        let listed: std::collections::HashSet<&str> =
            sandboxes.iter().map(|facts| facts.id).chain(containers.iter().map(|facts| facts.id)).collect();
        let is_gone = |id: &str| !listed.contains(id) && !self.last_events.contains_key(id);
        let gone: Vec<_> = self.containers.keys().filter(|id| is_gone(id)).cloned().collect();
        let gone_sandboxes: Vec<_> = self.sandboxes.keys().filter(|id| is_gone(id)).cloned().collect();
        for id in gone {
            let Some(Container { sandbox, .. }) = self.containers.remove(&id) else { continue };
            let status =
                self.sandboxes.get(&sandbox).map(|sandbox| sandbox.status.clone()).unwrap_or_default();
            let kind = Type::ContainerDeletedEvent;
            changes.push(MissingEvent { id: id.into(), sandbox: sandbox.into(), kind, status });
        }
        for id in gone_sandboxes {
            let Some(Sandbox { status, .. }) = self.sandboxes.remove(&id) else { continue };
            changes.push(sandbox_change(&id, Type::ContainerDeletedEvent, &status));
        }
    }
}

fn sandbox_change(id: &str, kind: Type, status: &Bytes) -> MissingEvent {
    MissingEvent { id: id.to_owned(), sandbox: id.to_owned(), kind, status: status.clone() }
}

/// Returns an encoded `PodSandboxStatus` with what an encoded `PodSandbox` says.
fn status_of(item: &[u8]) -> Bytes {
    let numbers = [
        (field!(PodSandbox.id), field!(PodSandboxStatus.id)),
        (field!(PodSandbox.metadata), field!(PodSandboxStatus.metadata)),
        (field!(PodSandbox.state), field!(PodSandboxStatus.state)),
        (field!(PodSandbox.created_at), field!(PodSandboxStatus.created_at)),
        (field!(PodSandbox.labels), field!(PodSandboxStatus.labels)),
        (field!(PodSandbox.annotations), field!(PodSandboxStatus.annotations)),
        (field!(PodSandbox.runtime_handler), field!(PodSandboxStatus.runtime_handler)),
    ];
    let mut status = BytesMut::with_capacity(item.len());
    for field in wire::fields(item).map_while(Result::ok) {
        let Some((_, number)) = numbers.iter().find(|(number, _)| *number == field.number) else { continue };
        match field.value {
            wire::Value::Bytes(bytes) => wire::put_bytes(&mut status, *number, bytes),
            wire::Value::Varint(value) => wire::put_varint(&mut status, *number, value),
            _ => {}
        }
    }
    status.freeze()
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::cri;
    use crate::state::SANDBOX_NOTREADY;

    fn sandboxes(listed: &[(&str, i32)]) -> Bytes {
        let sandbox = |&(id, state): &(&str, i32)| cri::PodSandbox {
            id: id.to_owned(),
            metadata: Some(cri::PodSandboxMetadata { uid: format!("uid-{id}"), ..Default::default() }),
            state,
            runtime_handler: "runc".into(),
            ..Default::default()
        };
        cri::ListPodSandboxResponse { items: listed.iter().map(sandbox).collect() }.encode_to_vec().into()
    }

    fn containers(listed: &[(&str, i32)]) -> Bytes {
        let container = |&(id, state): &(&str, i32)| cri::Container {
            id: id.to_owned(),
            pod_sandbox_id: "s".into(),
            state,
            ..Default::default()
        };
        cri::ListContainersResponse { containers: listed.iter().map(container).collect() }
            .encode_to_vec()
            .into()
    }

    fn changes(view: &mut ClientView, s: &[(&str, i32)], c: &[(&str, i32)]) -> Vec<(String, Type)> {
        let since = view.event_count();
        let changes = view.compare(&sandboxes(s), &containers(c), since).expect("lists");
        changes.into_iter().map(|change| (change.id, change.kind)).collect()
    }

    fn event(id: &str, kind: Type) -> Vec<u8> {
        cri::ContainerEventResponse {
            container_id: id.into(),
            container_event_type: kind.into(),
            pod_sandbox_status: Some(cri::PodSandboxStatus { id: "s".into(), ..Default::default() }),
            ..Default::default()
        }
        .encode_to_vec()
    }

    const READY: [(&str, i32); 1] = [("s", SANDBOX_READY)];

    #[test]
    fn each_step_that_lists_show_is_one_change_and_none_comes_twice() {
        use Type::{ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted};
        use Type::{ContainerStartedEvent as Started, ContainerStoppedEvent as Stopped};
        let mut view = ClientView::begin(&Bytes::new(), &Bytes::new()).expect("lists");
        let of = |id: &str, kind| (id.to_owned(), kind);
        let new = changes(&mut view, &READY, &[("c", CONTAINER_CREATED)]);
        assert_eq!(new, [of("s", Created), of("s", Started), of("c", Created)]);
        assert_eq!(changes(&mut view, &READY, &[("c", CONTAINER_RUNNING)]), [of("c", Started)]);
        assert_eq!(changes(&mut view, &READY, &[("c", CONTAINER_RUNNING)]), []);
        let both = changes(&mut view, &[("s", SANDBOX_NOTREADY)], &[("c", CONTAINER_EXITED)]);
        assert_eq!(both, [of("c", Stopped), of("s", Stopped)]);
        assert_eq!(changes(&mut view, &[], &[]), [of("c", Deleted), of("s", Deleted)]);
    }

    #[test]
    fn a_change_has_the_metadata_of_its_sandbox_also_when_both_are_gone() {
        let mut view =
            ClientView::begin(&sandboxes(&READY), &containers(&[("c", CONTAINER_RUNNING)])).expect("lists");
        let changes = view.compare(&Bytes::new(), &Bytes::new(), 0).expect("lists");
        for change in changes {
            let status = cri::PodSandboxStatus::decode(change.status).expect("a status");
            assert_eq!((status.id.as_str(), status.runtime_handler.as_str()), ("s", "runc"));
            assert_eq!(status.metadata.expect("metadata").uid, "uid-s");
        }
    }

    #[test]
    fn what_an_event_told_is_no_change_and_what_was_made_is_not_told_again() {
        let mut view =
            ClientView::begin(&sandboxes(&READY), &containers(&[("c", CONTAINER_RUNNING)])).expect("lists");
        assert_eq!(view.record_event(&event("c", Type::ContainerStoppedEvent)), Ok(true));
        assert_eq!(changes(&mut view, &READY, &[("c", CONTAINER_EXITED)]), []);
        let stopped = changes(&mut view, &[("s", SANDBOX_NOTREADY)], &[("c", CONTAINER_EXITED)]);
        assert_eq!(stopped, [("s".to_owned(), Type::ContainerStoppedEvent)]);
        assert_eq!(
            view.record_event(&event("s", Type::ContainerStoppedEvent)),
            Ok(false),
            "it was made here"
        );
        assert_eq!(view.record_event(&event("s", Type::ContainerDeletedEvent)), Ok(true));
        assert_eq!(changes(&mut view, &[], &[("c", CONTAINER_EXITED)]), []);
    }

    #[test]
    fn a_list_that_was_asked_for_before_an_event_says_nothing_about_its_object() {
        let mut view =
            ClientView::begin(&sandboxes(&READY), &containers(&[("c", CONTAINER_RUNNING)])).expect("lists");
        let since = view.event_count();
        view.record_event(&event("c", Type::ContainerDeletedEvent)).expect("an event");
        view.record_event(&event("d", Type::ContainerCreatedEvent)).expect("an event");
        let old = containers(&[("c", CONTAINER_RUNNING)]);
        assert_eq!(view.compare(&sandboxes(&READY), &old, since), Ok(Vec::new()));
    }
}
