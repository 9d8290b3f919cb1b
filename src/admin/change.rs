//! The changes an operator may make to a backend: drain, undrain, forget.
//!
//! Only the admin socket serves them. A change that is probably a mistake is refused with 409 and a reason
//! unless `force` is set: draining the only backend of a handler, and forgetting a backend that is up and
//! would list the same objects again. All changes survive a restart, through the journal of the last-known
//! state; `forget` is on the disk before it is answered.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;

use crate::admin::AdminState;
use crate::admin::api::ChangeResult;
use crate::admin::read::{self, ApiError, refusal};
use crate::backend::Backend;
use crate::error::handler_label;
use crate::proxy::ProxyState;

/// How long an operator waits for the disk.
const DISK_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Deserialize)]
pub(super) struct ForceQuery {
    #[serde(default)]
    force: bool,
}

/// Stops routing new sandboxes to a backend.
pub(super) async fn drain(
    State(state): State<Arc<AdminState>>,
    Path(name): Path<String>,
    Query(query): Query<ForceQuery>,
) -> Result<Json<ChangeResult>, ApiError> {
    let backend = configured(&state.node, &name)?;
    let mut warnings = Vec::new();
    let cut_off = handlers_served_only_by(&state.node, &name);
    if !cut_off.is_empty() {
        let what = format!("no other backend takes new sandboxes of {}", cut_off.join(", "));
        if !query.force && !backend.last.drained() {
            let advice = "re-point it in the configuration first, or use --force to have them refused";
            return Err(refusal(StatusCode::CONFLICT, format!("{what}; {advice}")));
        }
        warnings.push(format!("{what}: they are refused from now on"));
    }
    if backend.last.drained() {
        return Ok(changed(format!("backend {name} was draining already"), warnings));
    }
    backend.last.set_drained(true);
    tracing::info!(backend = name, "drained by the operator: it takes no new sandboxes");
    backend.last.saved().await;
    warnings.extend(unsaved(&state.node));
    let (sandboxes, _) = state.node.router.owners.count(&name);
    Ok(changed(format!("backend {name} takes no new sandboxes; {sandboxes} are still on it"), warnings))
}

/// Routes new sandboxes to a backend again.
pub(super) async fn undrain(
    State(state): State<Arc<AdminState>>,
    Path(name): Path<String>,
) -> Result<Json<ChangeResult>, ApiError> {
    let backend = configured(&state.node, &name)?;
    if !backend.last.drained() {
        return Ok(changed(format!("backend {name} was not draining"), Vec::new()));
    }
    backend.last.set_drained(false);
    backend.last.saved().await;
    tracing::info!(backend = name, "undrained by the operator: it takes new sandboxes");
    Ok(changed(format!("backend {name} takes new sandboxes"), unsaved(&state.node)))
}

/// Drops everything known of a backend.
pub(super) async fn forget(
    State(state): State<Arc<AdminState>>,
    Path(name): Path<String>,
    Query(query): Query<ForceQuery>,
) -> Result<Json<ChangeResult>, ApiError> {
    let node = &state.node;
    let backend = node.backends().iter().find(|backend| *backend.name == name).cloned();
    let up = backend.as_ref().is_some_and(|backend| backend.is_up());
    if up && !query.force {
        let what =
            format!("backend {name} is up: its next list would bring back everything that is forgotten");
        return Err(refusal(StatusCode::CONFLICT, format!("{what}; use --force to forget it anyway")));
    }
    let drained = backend.as_ref().is_some_and(|backend| backend.last.drained());
    let (sandboxes, containers) = node.router.owners.count(&name);
    if !node.snapshot.forget(&name) {
        return Err(unknown(node, &name));
    }
    node.router.owners.of(&name).iter().for_each(|id| node.router.owners.forget(id));
    // Forgetting drops the objects, not the drain.
    if let Some(backend) = backend.filter(|_| drained) {
        backend.last.set_drained(true);
    }
    tracing::warn!(backend = name, sandboxes, containers, "forgotten by the operator");
    save(node).await;
    let mut warnings = unsaved(node);
    if up {
        warnings.push(format!("backend {name} is up: its next list brings back what it still has"));
    }
    let what = format!("forgot {sandboxes} sandboxes and {containers} containers of backend {name}");
    Ok(changed(what, warnings))
}

fn changed(message: String, warnings: Vec<String>) -> Json<ChangeResult> {
    Json(ChangeResult { message, warnings })
}

fn configured(node: &ProxyState, name: &str) -> Result<Arc<Backend>, ApiError> {
    node.backend(name).map_err(|_| unknown(node, name))
}

fn unknown(node: &ProxyState, name: &str) -> ApiError {
    let backends = node.backends();
    let names: Vec<_> = backends.iter().map(|backend| &*backend.name).collect();
    let error = format!("there is no backend {name:?} (backends: {})", names.join(", "));
    refusal(StatusCode::NOT_FOUND, error)
}

/// Returns the handlers, in words, that only `backend` serves.
fn handlers_served_only_by(node: &ProxyState, backend: &str) -> Vec<String> {
    let routes = read::all_routes(node).into_iter().filter(|route| {
        let leads_here = route.targets.iter().any(|target| target.backend == backend && target.weight > 0);
        let elsewhere = route.targets.iter().any(|target| target.backend != backend && target.share > 0.0);
        leads_here && !elsewhere
    });
    routes.map(|route| handler_label(&route.handler)).collect()
}

/// Writes the last-known state to the disk, at most for [`DISK_TIMEOUT`]. A failure is reported by
/// [`unsaved`].
async fn save(node: &ProxyState) {
    let snapshot = Arc::clone(&node.snapshot);
    node.snapshot.saved().await;
    tokio::time::timeout(DISK_TIMEOUT, tokio::task::spawn_blocking(move || snapshot.flush())).await.ok();
}

/// Returns a warning if the last write failed, so that the change would not survive a restart.
fn unsaved(node: &ProxyState) -> Vec<String> {
    let problem = node.snapshot.write_error();
    problem
        .map(|problem| format!("this is not saved and ends with a restart: {problem}"))
        .into_iter()
        .collect()
}
