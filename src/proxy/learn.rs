//! Records owners and last-known state from replies, before they are sent to the client.
//!
//! The owner of a new ID must be known before the client gets the ID, because its next call may come within a
//! millisecond. Every ID in a list belongs to the backend that sent it. A list that cannot be parsed is an
//! error of that backend and never reaches a merged reply.

use bytes::Bytes;

use crate::backend::{Backend, Link};
use crate::codec::Message;
use crate::cri::{CREATED_ID, ContainerEventType, ITEM_ID, LIST_ITEMS, PodSandboxState, field, field_path};
use crate::error::Error;
use crate::merge::required;
use crate::method::{Effect, List, Method};
use crate::proxy::ProxyState;
use crate::router::{Annotations, Pod};
use crate::snapshot::{Filter, InstanceId, ListKind, Revision, SANDBOX_READY, SandboxRef};
use crate::utf8;
use crate::wire::{self, WireError};

/// Returns where a creating request holds the uid of its pod.
pub(super) fn uid_path(method: &Method) -> [u32; 3] {
    match method.effect {
        Effect::PodRestored => field_path!(RestorePodRequest.config.metadata.uid),
        _ => field_path!(RunPodSandboxRequest.config.metadata.uid),
    }
}

/// Returns namespace, name and uid of the pod in a request for a sandbox; empty where they are not set.
pub(super) fn requested_name<'a>(method: &Method, request: &'a [u8]) -> [&'a str; 3] {
    let paths = match method.effect {
        Effect::PodRestored => [
            field_path!(RestorePodRequest.config.metadata.namespace),
            field_path!(RestorePodRequest.config.metadata.name),
            field_path!(RestorePodRequest.config.metadata.uid),
        ],
        _ => [
            field_path!(RunPodSandboxRequest.config.metadata.namespace),
            field_path!(RunPodSandboxRequest.config.metadata.name),
            field_path!(RunPodSandboxRequest.config.metadata.uid),
        ],
    };
    paths.map(|path| wire::peek_str(request, &path).unwrap_or_default())
}

/// Returns the `config.seen` of the pod in a creating request; empty if it has none.
pub(super) fn config_seen<'a>(method: &Method, request: &'a [u8]) -> &'a str {
    let config = match method.effect {
        Effect::PodRestored => field!(RestorePodRequest.config),
        _ => field!(RunPodSandboxRequest.config),
    };
    let entries = wire::items(request, config)
        .flatten()
        .flat_map(|config| wire::items(config, field!(PodSandboxConfig.annotations)).flatten())
        .filter_map(|entry| wire::map_entry(entry).ok());
    Annotations::read(entries).config_seen
}

/// Tells whether a call changes the object that it names.
pub(super) fn is_write(effect: Effect) -> bool {
    !matches!(
        effect,
        Effect::None | Effect::Status(_) | Effect::Stats(_) | Effect::StreamUrl | Effect::ContainerCreated
    )
}

/// Records what a reply created and returns its ID. `sandbox` is the full ID of a new container's sandbox.
///
/// The object is recorded before its owner, because [`ProxyState::prune_owners`] forgets the owners of
/// objects that are not recorded.
pub(super) fn record_created(
    node: &ProxyState,
    backend: &Backend,
    method: &Method,
    sandbox: Option<&str>,
    request: &[u8],
    reply: &[u8],
) -> Result<String, Error> {
    let garbage = |cause: String| backend.garbage(cause);
    let unreadable = |error: WireError| garbage(error.to_string());
    let id = wire::peek_str(reply, &[CREATED_ID]).map_err(unreadable)?;
    if id.is_empty() {
        return Err(garbage(format!("{} was answered with an empty ID", method.name)));
    }
    match (method.effect, sandbox) {
        (Effect::ContainerCreated, Some(sandbox)) => {
            backend.last.record_container_created(id, sandbox, request);
            resolve_owner(node, backend, id, node.router.owners.learn_container(id, backend.id));
        }
        (Effect::PodRestored, _) => {
            let mut containers = Vec::new();
            for restored in wire::items(reply, field!(RestorePodResponse.restored_containers)) {
                let restored = restored.map_err(unreadable)?;
                let id = wire::peek_str(restored, &[field!(RestoredContainer.container_id)]);
                containers.push(id.map_err(unreadable)?);
            }
            let pod = requested_pod(
                request,
                field!(RestorePodRequest.config),
                field!(RestorePodRequest.runtime_handler),
            )?;
            backend.last.record_restored(request, reply).map_err(unreadable)?;
            resolve_owner(node, backend, id, node.router.owners.learn_sandbox(id, backend.id, pod));
            for container in &containers {
                resolve_owner(
                    node,
                    backend,
                    container,
                    node.router.owners.learn_container(container, backend.id),
                );
            }
        }
        _ => {
            let pod = requested_pod(
                request,
                field!(RunPodSandboxRequest.config),
                field!(RunPodSandboxRequest.runtime_handler),
            )?;
            backend.last.record_sandbox_created(id, request);
            resolve_owner(node, backend, id, node.router.owners.learn_sandbox(id, backend.id, pod));
        }
    }
    Ok(id.to_owned())
}

/// Records what an OK reply to a call about `id` changed.
pub(super) fn record_write(
    node: &ProxyState,
    backend: &Backend,
    method: &Method,
    id: &str,
    request: &[u8],
    reply: &[u8],
) -> Result<(), Error> {
    let (last, owners) = (&backend.last, &node.router.owners);
    match method.effect {
        Effect::ContainerCreated => drop(record_created(node, backend, method, Some(id), request, reply)?),
        Effect::ContainerStarted => last.record_container_started(id),
        Effect::ContainerStopped => last.record_container_stopped(id),
        Effect::ContainerRemoved => {
            last.record_container_removed(id);
            owners.remove(id);
        }
        Effect::SandboxStopped => {
            last.record_sandbox_stopped(id);
            owners.note_ready(id, false);
        }
        Effect::SandboxRemoved => {
            last.record_sandbox_removed(id);
            node.history.forget_requested_handler(id);
            owners.remove(id);
        }
        _ => {}
    }
    Ok(())
}

/// Records a list that `backend` sent, and returns it without items that clients cannot read. Only an
/// unfiltered list replaces the last-known one.
pub(super) fn record_list(
    node: &ProxyState,
    backend: &Backend,
    list: List,
    revision: Revision,
    unfiltered: bool,
    reply: &Bytes,
) -> Result<Bytes, Error> {
    let garbage = |error: WireError| backend.garbage(error.to_string());
    // kubelet lists every second and mostly nothing has changed.
    let unchanged =
        list_kind(list).filter(|_| unfiltered).and_then(|kind| backend.last.newest_equal(kind, reply));
    let forgotten = node.router.owners.forgotten();
    let is_learnt = list_kind(list).is_some_and(|kind| backend.last.learnt_at(kind) == forgotten);
    let reply = match unchanged {
        Some(unchanged) if is_learnt => unchanged,
        Some(unchanged) => {
            // It is as it was, but owners that it taught were forgotten since.
            learn_owners(node, backend, list, &unchanged, Claim::List).map_err(garbage)?;
            unchanged
        }
        None => check_and_learn(node, backend, list, reply, Claim::List)?,
    };
    if list == List::Images && unfiltered {
        node.image_lists.record(backend.id);
    }
    match list_kind(list) {
        Some(kind) if unfiltered => {
            backend.last.set_learnt_at(kind, forgotten);
            backend.last.replace_list(kind, revision, reply.clone());
            if backend.last.moved_from().is_some() && backend.last.is_known() {
                node.note_moved_listed();
            }
        }
        Some(kind) => backend.last.update_items(kind, revision, &reply).map_err(garbage)?,
        // Values of metrics are of the moment, and many; those of a backend that does not answer are left
        // out.
        None if list == List::SandboxMetrics => {}
        None => {
            backend.last.remember_reply(list.unary().rpc, &reply);
            backend.health.record_answer(list.unary());
        }
    }
    Ok(reply)
}

/// Learns the owners of the items in one message of a streamed list. Returns it without items that clients
/// cannot read.
pub(super) fn record_frame(
    node: &ProxyState,
    backend: &Backend,
    list: List,
    frame: &Bytes,
) -> Result<Bytes, Error> {
    check_and_learn(node, backend, list, frame, Claim::Frame)
}

fn check_and_learn(
    node: &ProxyState,
    backend: &Backend,
    list: List,
    encoded: &Bytes,
    claim: Claim,
) -> Result<Bytes, Error> {
    let garbage = |error: WireError| backend.garbage(error.to_string());
    let encoded = remove_invalid(node, backend, list, encoded).map_err(garbage)?;
    learn_owners(node, backend, list, &encoded, claim).map_err(garbage)?;
    Ok(encoded)
}

/// Returns a list without items that would crash a client, and with text that protobuf parsers take. Each
/// such item is counted and, once a minute, named in the log.
fn remove_invalid(
    node: &ProxyState,
    backend: &Backend,
    list: List,
    encoded: &Bytes,
) -> Result<Bytes, WireError> {
    let method = list.unary().name;
    let (whole, left_out) = required::remove_incomplete(required::CheckedReply::List(list), encoded)?;
    node.left_out.items(&node.metrics, &backend.name, method, left_out);
    let (text, repaired) = utf8::repair(&format!("{method}Response"), &whole)?;
    node.left_out.texts(&node.metrics, &backend.name, method, repaired);
    Ok(text)
}

/// Learns the owners that an event of a backend names. States are taken from the next list, because an event
/// may be older than a later call.
///
/// Tells whether the event is the backend's to give, and not about what another one owns.
pub(super) fn record_event(node: &ProxyState, backend: &Backend, event: &[u8]) -> Result<bool, Error> {
    let garbage = |error: WireError| backend.garbage(error.to_string());
    learn_event(node, backend, event).map_err(garbage)
}

fn learn_event(node: &ProxyState, backend: &Backend, event: &[u8]) -> Result<bool, WireError> {
    let owners = &node.router.owners;
    let about = wire::peek_str(event, &[field!(ContainerEventResponse.container_id)])?;
    let event_type = wire::peek_varint(event, &[field!(ContainerEventResponse.container_event_type)])?;
    let deleted = event_type == ContainerEventType::ContainerDeletedEvent as u64;
    let known = |id: &str| (deleted && id == about) || id.is_empty() || owners.is_owned_by(id, backend.id);
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
        let pod = Pod::new(uid, handler, annotations, created, ready);
        resolve_owner(node, backend, sandbox, owners.learn_sandbox(sandbox, backend.id, pod));
    }
    for status in wire::items(event, field!(ContainerEventResponse.containers_statuses)) {
        let id = wire::peek_str(status?, &[field!(ContainerStatus.id)])?;
        if !known(id) {
            resolve_owner(node, backend, id, owners.learn_container(id, backend.id));
        }
    }
    Ok(!backend.last.is_foreign(about) && !backend.last.is_foreign(sandbox))
}

/// Reads the filter of a list request.
pub(super) fn parse_filter(list: List, message: &Message) -> Result<Filter, Error> {
    Ok(match list_kind(list) {
        Some(kind) => Filter::parse(kind, message.encoded())?,
        None => Filter::default(),
    })
}

/// Validates a list and learns IDs not seen before, in one pass.
fn learn_owners(
    node: &ProxyState,
    backend: &Backend,
    list: List,
    reply: &[u8],
    claim: Claim,
) -> Result<(), WireError> {
    let owners = &node.router.owners;
    // One that may be another instance owns nothing until that is known.
    let may_be_moved = backend.last.moved_from().is_some();
    for item in wire::items(reply, LIST_ITEMS) {
        let item = item?;
        match list {
            List::Sandboxes | List::Containers => {
                let (id, state) = id_and_sandbox_state(item)?;
                if may_be_moved {
                    continue;
                }
                if owners.is_owned_by(id, backend.id) {
                    if list == List::Sandboxes {
                        owners.note_ready(id, state == u64::from(SANDBOX_READY.cast_unsigned()));
                    }
                    continue;
                }
                let of_other = list == List::Containers && is_in_sandbox_of_another(node, backend, item)?;
                let other = if of_other {
                    owners.owner_of(wire::peek_str(item, &[field!(Container.pod_sandbox_id)])?)
                } else if list == List::Sandboxes {
                    owners.learn_sandbox(id, backend.id, listed_pod(item)?)
                } else {
                    owners.learn_container(id, backend.id)
                };
                match other {
                    Some(_) if of_other || claim == Claim::Frame => record_foreign(node, backend, id),
                    other => resolve_owner(node, backend, id, other),
                }
            }
            _ => wire::fields(item).try_for_each(|field| field.map(drop))?,
        }
    }
    Ok(())
}

/// Returns the ID of a `PodSandbox` or `Container` and, of the former, its state; checks that all fields are
/// readable.
fn id_and_sandbox_state(item: &[u8]) -> Result<(&str, u64), WireError> {
    let (mut id, mut state) = ("", 0);
    for field in wire::fields(item) {
        let field = field?;
        match field.number {
            ITEM_ID => id = field.string()?,
            // Of a container this is the metadata, which is no varint.
            field!(PodSandbox.state) => state = field.varint().unwrap_or_default(),
            _ => {}
        }
    }
    Ok((id, state))
}

/// Returns the kind of a list that the snapshot keeps item by item; `None` for lists that are cached as
/// replies.
pub(super) fn list_kind(list: List) -> Option<ListKind> {
    match list {
        List::Sandboxes => Some(ListKind::Sandboxes),
        List::Containers => Some(ListKind::Containers),
        List::ContainerStats => Some(ListKind::ContainerStats),
        List::SandboxStats => Some(ListKind::PodSandboxStats),
        List::Images => Some(ListKind::Images),
        List::Filesystems | List::MetricDescriptors | List::SandboxMetrics => None,
    }
}

/// Returns what the owners' map keeps of a sandbox in a list, or in the saved state.
pub(super) fn pod_of(facts: &SandboxRef<'_>) -> Pod {
    let ready = facts.state == SANDBOX_READY;
    Pod::new(facts.uid, facts.runtime_handler, facts.annotations(), facts.created_at, ready)
}

fn listed_pod(item: &[u8]) -> Result<Pod, WireError> {
    Ok(pod_of(&SandboxRef::parse(item)?))
}

fn requested_pod(request: &[u8], config: u32, handler: u32) -> Result<Pod, WireError> {
    let [metadata, uid] = field_path!(PodSandboxConfig.metadata.uid);
    let uid = wire::peek_str(request, &[config, metadata, uid])?;
    let annotations = wire::items(request, config)
        .flatten()
        .flat_map(|config| wire::items(config, field!(PodSandboxConfig.annotations)).flatten())
        .filter_map(|entry| wire::map_entry(entry).ok());
    let created = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let created = i64::try_from(created.as_nanos()).unwrap_or(i64::MAX);
    Ok(Pod::new(uid, wire::peek_str(request, &[handler])?, annotations, created, true))
}

/// How an ID was seen at a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// In a list as a whole, which may take an ID from another owner.
    List,
    /// In one frame of a list whose other frames may have gone out already: nothing changes hands.
    Frame,
}

/// Tells whether a listed container belongs to a sandbox that another backend owns: a pod is never in two
/// places.
fn is_in_sandbox_of_another(node: &ProxyState, backend: &Backend, item: &[u8]) -> Result<bool, WireError> {
    let sandbox = wire::peek_str(item, &[field!(Container.pod_sandbox_id)])?;
    Ok(node.router.owners.owner_of(sandbox).is_some_and(|owner| owner != backend.id))
}

/// Decides who owns an ID that `claimant` shows and `other` owns; each ID is served once, by its owner.
fn resolve_owner(node: &ProxyState, claimant: &Backend, id: &str, other: Option<InstanceId>) {
    let Some(other) = other else { return claimant.last.mark_owned(id) };
    let holder = node.backend(other).ok();
    if holder.as_ref().is_some_and(|holder| !is_new_owner(claimant, holder, id)) {
        return record_foreign(node, claimant, id);
    }
    take_over(node, claimant, id, holder.as_deref());
    let mut containers = Vec::new();
    claimant.last.for_each_container(|facts| {
        if facts.sandbox_id == id {
            containers.push(facts.id.to_owned());
        }
    });
    for container in containers {
        if node.router.owners.owner_of(&container) == Some(other) {
            take_over(node, claimant, &container, holder.as_deref());
        }
    }
}

fn take_over(node: &ProxyState, claimant: &Backend, id: &str, holder: Option<&Backend>) {
    node.router.owners.transfer(id, claimant.id);
    claimant.last.mark_owned(id);
    if holder.is_some_and(|holder| holder.last.has_id(id) && holder.last.mark_foreign(id)) {
        node.metrics.count_id_conflict();
    }
}

/// Notes that what `claimant` shows under this ID is another's: nothing of it is served.
fn record_foreign(node: &ProxyState, claimant: &Backend, id: &str) {
    if claimant.last.mark_foreign(id) {
        node.metrics.count_id_conflict();
    }
}

/// Tells whether `claimant`, which shows this ID, owns it from now on instead of `holder`.
///
/// | who created it through crimux | where they are | `holder` | it goes to |
/// |---|---|---|---|
/// | the claimant alone | | | the claimant |
/// | the holder alone | | answers, or the claimant is remote | the holder |
/// | | | does not list it any more | the claimant |
/// | | the claimant is remote, the holder local | | the holder |
/// | | the claimant is local, the holder remote | | the claimant |
/// | | | answers | the holder |
/// | | | cannot be asked | the claimant: a live list beats what was saved |
fn is_new_owner(claimant: &Backend, holder: &Backend, id: &str) -> bool {
    let (by_holder, by_claimant) = (holder.last.has_created(id), claimant.last.has_created(id));
    let (local, holder_is_local) = (claimant.config().local, holder.config().local);
    let answers = !matches!(holder.link(), Link::Down { .. });
    if by_claimant != by_holder && (by_claimant || answers || !local) {
        return by_claimant;
    }
    if holder.last.is_listed() && !holder.last.has_id(id) {
        return true;
    }
    if local == holder_is_local { !answers } else { local }
}
