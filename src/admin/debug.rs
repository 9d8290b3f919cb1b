//! The routes for a closer look: the current configuration, the log filter, and a dump of the proxy's state.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::admin::api::{LogLevelView, StatusView};
use crate::admin::duration;
use crate::admin::read::{ApiError, api_error};
use crate::admin::status_view::compose_status;
use crate::admin::{AdminState, read};
use crate::backend::Backend;
use crate::proxy::Node;
use crate::telemetry;

#[derive(Debug, Deserialize)]
pub(super) struct LevelQuery {
    level: String,
}

/// Returns the current configuration, defaults included.
pub(super) async fn config(State(state): State<Arc<AdminState>>) -> Json<Value> {
    Json(state.node.config().view())
}

pub(super) async fn log_level() -> Json<LogLevelView> {
    Json(LogLevelView { level: telemetry::level() })
}

/// Sets the log filter until the next start, or until a reload changes `log.level`.
pub(super) async fn set_log_level(Query(query): Query<LevelQuery>) -> Result<Json<LogLevelView>, ApiError> {
    crate::config::check_filter(&query.level).map_err(|error| api_error(StatusCode::BAD_REQUEST, error))?;
    telemetry::set_level(&query.level)
        .map_err(|error| api_error(StatusCode::BAD_REQUEST, format!("{error:#}")))?;
    tracing::info!(level = query.level, "log level set by the operator");
    Ok(log_level().await)
}

/// Returns counts, states and ages of everything that a support case needs. No message contents, no pod
/// names.
pub(super) async fn dump(State(state): State<Arc<AdminState>>) -> Json<Value> {
    let node = &state.node;
    let backends = node.backends();
    let routes = read::all_routes(node);
    // It names a pod.
    let status = StatusView { last_refusal: None, ..compose_status(&state, &routes) };
    Json(json!({
        "status": status,
        "routes": routes,
        "config": node.config().view(),
        "restart_keys": node.history.restart_keys(),
        "log_level": telemetry::level(),
        "backends": backends.iter().map(|backend| backend_dump(node, backend)).collect::<Vec<_>>(),
        "placements": node.history.placements().iter().map(|placement| json!({
            "at": duration::rfc3339(placement.at),
            "handler": placement.handler,
            "backend": placement.backend.as_deref(),
            "code": crate::metrics::code_name(placement.code),
        })).collect::<Vec<_>>(),
    }))
}

fn backend_dump(node: &Node, backend: &Backend) -> Value {
    let (sandboxes, containers) = node.router.owners.count(backend.id);
    json!({
        "name": &*backend.name,
        "connected": backend.is_up(),
        "joining": node.is_outside_lists(backend),
        "in_flight": backend.in_flight(),
        "late": backend.health.late_classes().iter().map(|(class, since)| json!({
            "class": format!("{class:?}"), "since": duration::rfc3339(*since),
        })).collect::<Vec<_>>(),
        "refreshing": backend.health.refreshing().iter().map(|class| format!("{class:?}")).collect::<Vec<_>>(),
        "owned_sandboxes": sandboxes,
        "owned_containers": containers,
        "list_age_seconds": backend.state.age().map(|age| age.as_secs_f64()),
        "states": node.history.states(&backend.name).iter().map(|change| json!({
            "at": duration::rfc3339(change.at), "state": change.state,
        })).collect::<Vec<_>>(),
        "calls_answered": node.metrics.calls_answered_by(&backend.name),
    })
}
