//! The pods of a backend as operators see them, with the RuntimeClass handler that leads to each.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, UNIX_EPOCH};

use crate::admin::api::PodView;
use crate::admin::duration::rfc3339;
use crate::backend::{Backend, Condition};
use crate::history::RemovedHandler;
use crate::proxy::Node;
use crate::router::Handlers;
use crate::state::{InstanceId, SANDBOX_READY};

/// Returns the pods of one backend.
pub(super) fn pods_of(node: &Node, backend: &Backend) -> Vec<PodView> {
    let mut containers: HashMap<String, usize> = HashMap::new();
    backend.state.for_each_container(|facts| {
        *containers.entry(facts.sandbox_id.to_owned()).or_default() += 1;
    });
    let (handlers, removed) = (node.router.handlers(), node.history.removed_handlers());
    let stale = !is_answering(node, backend);
    let mut pods = Vec::new();
    backend.state.for_each_sandbox(|facts| {
        let created = UNIX_EPOCH + Duration::from_nanos(u64::try_from(facts.created_at).unwrap_or(0));
        let handler = node.history.requested_handler(facts.id).map_or_else(
            || public_handler(&handlers, &removed, backend.id, facts.runtime_handler),
            String::from,
        );
        let handler_removed = removed.contains_key(&*handler)
            || !handler.is_empty()
                && handler != facts.runtime_handler
                && handlers.targets_of(&handler).is_err();
        pods.push(PodView {
            namespace: facts.namespace.to_owned(),
            name: facts.name.to_owned(),
            uid: facts.uid.to_owned(),
            attempt: facts.attempt,
            handler,
            handler_removed,
            backend_handler: facts.runtime_handler.to_owned(),
            backend: backend.name.to_string(),
            state: if facts.state == SANDBOX_READY { "ready" } else { "notready" }.to_owned(),
            stale,
            created_at: rfc3339(created),
            sandbox_id: facts.id.to_owned(),
            containers: containers.get(facts.id).copied().unwrap_or(0),
        });
    });
    pods
}

/// Returns the `RuntimeClass` handler that leads to the handler `known_as` of `backend`, or did before it was
/// `removed`.
fn public_handler(
    handlers: &Handlers,
    removed: &BTreeMap<Box<str>, RemovedHandler>,
    backend: InstanceId,
    known_as: &str,
) -> String {
    let leads = |targets: &[(InstanceId, crate::config::Target)]| {
        targets.iter().any(|(id, target)| *id == backend && target.backend_handler == known_as)
    };
    if known_as.is_empty() && handlers.targets_of("").is_ok_and(leads) {
        return String::new();
    }
    let mut public: Vec<_> = handlers
        .iter()
        .filter(|(_, targets)| leads(targets))
        .map(|(handler, targets)| (targets.len(), handler))
        .collect();
    // A handler that leads nowhere else, and one of the same name, is the likelier one.
    public.sort_by_key(|(targets, handler)| (*targets, *handler != known_as));
    if let Some((_, handler)) = public.first() {
        return (*handler).to_owned();
    }
    let led =
        |removed: &RemovedHandler| removed.targets.iter().any(|(id, of)| *id == backend.0 && of == known_as);
    if let Some((handler, _)) = removed.iter().find(|(_, removed)| led(removed)) {
        return handler.to_string();
    }
    // cri-dockerd lists no handlers: the only one that leads there is the one that was asked for.
    let here = |targets: &[(InstanceId, crate::config::Target)]| targets.iter().any(|(id, _)| *id == backend);
    let mut to_backend = handlers.iter().filter(|(_, targets)| here(targets)).map(|(handler, _)| handler);
    match (to_backend.next(), to_backend.next()) {
        (Some(only), None) if known_as.is_empty() => only.to_owned(),
        _ => known_as.to_owned(),
    }
}

/// Tells whether the backend's lists are live, not last known.
pub(super) fn is_answering(node: &Node, backend: &Backend) -> bool {
    !matches!(node.condition_of(backend), Condition::Down | Condition::Late)
}
