//! Composes the status of the node, which the admin socket, the page and the metrics show.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::admin::api::{
    BackendView, CertificateView, ClientProcessView, ClientsView, ErrorView, HttpView, LossView,
    OlderProcessView, ReachedLimitView, RefusalView, ReloadView, ReloadsView, RemovedHandlerView, RouteView,
    StateView, StatusView, VerdictView,
};
use crate::admin::duration::rfc3339;
use crate::admin::pods_view::pods_of;
use crate::admin::{AdminState, verdict};
use crate::backend::{Backend, Condition, Link};
use crate::cri::RuntimeCondition;
use crate::handover::OlderProcess;
use crate::history::ReloadResult;
use crate::limits::LargestClient;
use crate::merge::status;
use crate::method::Rpc;
use crate::process;
use crate::proxy::Node;
use crate::telemetry;

/// Composes the status of the node; `routes` are those of `read::all_routes`.
pub(super) fn compose_status(state: &AdminState, routes: &[RouteView]) -> StatusView {
    let node = &state.node;
    let last = node.history.reloads().into_iter().next();
    let port = state.port.state();
    let mut status = StatusView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        config_file: state.config_file.display().to_string(),
        started_at: rfc3339(state.started),
        default_backend: node.config().default_backend.clone(),
        backends: node.backends().iter().map(|backend| backend_view(node, backend)).collect(),
        state: StateView {
            dir: node.config().state_dir.display().to_string(),
            write_errors: node.state_store.write_failures(),
            written_bytes: node.state_store.written_bytes(),
            problem: node.state_store.write_error(),
        },
        admin_http: HttpView {
            address: port.address.map(|address| address.to_string()),
            problem: port.problem,
        },
        pod_sandbox_stats: node.promised_pod_stats(),
        unannounced_metrics: node.unannounced.names(),
        reloads: ReloadsView {
            ok: node.metrics.reloads(ReloadResult::Ok),
            failed: node.metrics.reloads(ReloadResult::Failed),
            last: last.map(|last| ReloadView {
                at: rfc3339(last.at),
                result: last.result.word().to_owned(),
                problem: last.problem,
            }),
            new_state_dir: node.history.new_state_dir().map(|dir| dir.display().to_string()),
            restart_keys: node.history.restart_keys().into_iter().map(str::to_owned).collect(),
        },
        last_refusal: node.history.last_refusal().map(|refusal| RefusalView {
            at: rfc3339(refusal.at),
            pod: refusal.pod,
            handler: refusal.handler,
            reason: refusal.reason,
        }),
        removed_handlers: removed_handlers(node),
        clients: Some(clients_view(node)),
        older_processes: node.history.older_processes().into_iter().map(older_process_view).collect(),
        log_level: Some(telemetry::level()).filter(|level| *level != node.config().log.level),
        verdict: VerdictView::default(),
    };
    status.verdict = verdict::judge(&status, routes);
    status
}

/// Returns the handlers that are no longer configured: those that a reload has removed since the start, and
/// those that sandboxes were requested with before an upgrade.
pub(super) fn removed_handlers(node: &Node) -> Vec<RemovedHandlerView> {
    let (handlers, removed) = (node.router.handlers(), node.history.removed_handlers());
    let is_removed = |handler: &str| !handler.is_empty() && handlers.targets_of(handler).is_err();
    let mut names = node.history.requested_handler_names();
    names.extend(removed.keys().cloned());
    names.retain(|handler| is_removed(handler));
    if names.is_empty() {
        return Vec::new();
    }
    let mut sandboxes: HashMap<String, usize> = HashMap::new();
    for pod in node.backends().iter().flat_map(|backend| pods_of(node, backend)) {
        *sandboxes.entry(pod.handler).or_default() += 1;
    }
    let view = |handler: Box<str>| RemovedHandlerView {
        sandboxes: sandboxes.get(&*handler).copied().unwrap_or(0),
        last_refused: removed.get(&handler).and_then(|removed| removed.last_refused).map(rfc3339),
        handler: handler.into(),
    };
    names.into_iter().map(view).collect()
}

fn older_process_view(older: OlderProcess) -> OlderProcessView {
    let OlderProcess { pid, version, since, calls, streams } = older;
    let since = rfc3339(UNIX_EPOCH + Duration::from_secs(since));
    OlderProcessView { pid, version, since, calls, streams }
}

fn clients_view(node: &Node) -> ClientsView {
    let limits = node.limits();
    let (connections, calls) = limits.open();
    let largest = limits.largest_client().map(|LargestClient { pid, connections }| ClientProcessView {
        pid,
        program: process::program(pid),
        connections,
    });
    let reached = limits.shared_reached().into_iter();
    let reached_limits =
        reached.map(|(limit, at)| ReachedLimitView { limit: limit.to_owned(), at: rfc3339(at) }).collect();
    ClientsView { connections, calls, max_connections: limits.max_connections(), largest, reached_limits }
}

fn backend_view(node: &Node, backend: &Backend) -> BackendView {
    let config = backend.config();
    let state = node.condition_of(backend);
    let (sandboxes, containers) = node.router.owners.count(backend.id);
    let version = backend.last_version();
    let (since, api) = match backend.link() {
        Link::Connecting => (None, None),
        Link::Down { since, .. } => (Some(since), None),
        Link::Up { since, api, .. } => (Some(since), Some(api.version().to_owned())),
    };
    // A connection outlasts a backend that is late, and a drain.
    let since = match state {
        Condition::Late => backend.health.first_late_since().or(since),
        Condition::Ready | Condition::Draining => {
            since.max(node.history.state_since(&backend.name, state.word()))
        }
        Condition::Joining | Condition::Down => since,
    };
    BackendView {
        name: backend.name.to_string(),
        id: backend.id.0,
        endpoint: config.endpoint.to_string(),
        default: node.config().default_backend == *backend.name,
        required: config.required,
        optional: config.optional,
        comes_later: node.comes_later(backend),
        local: config.local,
        configured: node.config().backends.contains_key(&*backend.name),
        state: state.word().to_owned(),
        since: since.map(rfc3339),
        draining: backend.state.is_draining(),
        list_age_seconds: backend.state.age().map(|age| age.as_secs_f64()),
        last_error: backend
            .health
            .last_error()
            .map(|error| ErrorView { at: rfc3339(error.at), text: error.text.to_string() }),
        in_flight: backend.in_flight(),
        sandboxes,
        containers,
        runtime_name: version.as_ref().map(|version| version.runtime_name.clone()),
        runtime_version: version.map(|version| version.runtime_version),
        api,
        late: backend.health.late_classes().iter().map(|(class, _)| class.methods().to_owned()).collect(),
        unready: unready(backend),
        silent_since: backend
            .health
            .status_unanswered_since()
            .filter(|_| is_silent(backend))
            .map(|since| rfc3339(SystemTime::now() - since.elapsed())),
        foreign_ids: backend.state.count_foreign(),
        event_source: node.event_source(backend.id).map(str::to_owned),
        left_out: node.left_out.of(&backend.name),
        lacking: node.left_out.faults_of(&backend.name),
        awaited: node.is_awaited(backend),
        lost: node.history.loss_of(&backend.name).map(|loss| LossView {
            at: rfc3339(loss.at),
            sandboxes: loss.gone,
            owned: loss.owned,
        }),
        certificate: backend
            .certificate_ends()
            .into_iter()
            .min_by_key(|(_, ends)| *ends)
            .map(|(role, ends)| CertificateView { role: role.word().to_owned(), ends: rfc3339(ends) }),
        stopped_pid: backend.peer_pid().filter(|pid| process::is_stopped_by_signal(*pid)),
    }
}

/// Tells whether a backend is connected and answers nothing.
pub(super) fn is_silent(backend: &Backend) -> bool {
    backend.is_up() && backend.health.answers_nothing()
}

/// Returns why kubelet would not take a connected backend for ready.
fn unready(backend: &Backend) -> Vec<String> {
    if !backend.is_up() {
        return Vec::new();
    }
    if backend.health.status_unanswered_since().is_some() {
        return vec!["Status is not answered".to_owned()];
    }
    let reply = backend.state.reply(Rpc::Status).and_then(|reply| status::decode(&reply));
    let conditions = reply.and_then(|reply| reply.status).map(|status| status.conditions).unwrap_or_default();
    let failed = conditions.iter().filter(|condition| {
        !condition.status && status::NODE_CONDITIONS.contains(&condition.r#type.as_str())
    });
    let text = |condition: &RuntimeCondition| {
        let cause = [&condition.message, &condition.reason].into_iter().find(|text| !text.is_empty());
        let cause = cause.map_or_else(String::new, |text| format!(" ({text})"));
        format!("{} is false{cause}", condition.r#type)
    };
    failed.map(text).collect()
}
