//! The changes an operator may make to a backend: drain, undrain, forget.
//!
//! Only the admin socket serves them. A change that is probably a mistake is refused with 409 and a reason
//! unless `force` is set: draining the only backend of a handler, and forgetting a backend that is up and
//! would list the same objects again. All changes survive a restart, through the journal of the last-known
//! state; `forget` is on the disk before it is answered.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::admin::api::{ChangeResult, ReloadReport};
use crate::admin::read::{self, ApiError, api_error};
use crate::admin::{AdminState, effects};
use crate::backend::Backend;
use crate::config::{Config, ConfigWarning, state_dir_advice};
use crate::error::handler_label;
use crate::method::Kind;
use crate::plan::{Plan, Wanted};
use crate::proxy::Node;
use crate::router::IdMatch;

/// How long an operator waits for the disk.
const DISK_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Deserialize)]
pub(super) struct ForceQuery {
    #[serde(default)]
    force: bool,
    /// A sandbox, or the beginning of its ID.
    #[serde(default)]
    pod: Option<String>,
}

/// Stops routing new sandboxes to a backend.
pub(super) async fn drain(
    State(state): State<Arc<AdminState>>,
    Path(name): Path<String>,
    Query(query): Query<ForceQuery>,
) -> Result<Json<ChangeResult>, ApiError> {
    let backend = configured_backend(&state.node, &name)?;
    let mut warnings = Vec::new();
    let cut_off = handlers_served_only_by(&state.node, &name);
    if !cut_off.is_empty() {
        let what = format!("no other backend takes new sandboxes of {}", cut_off.join(", "));
        if !query.force && !backend.state.is_draining() {
            let advice = "re-point it in the configuration first, or use --force to have them refused";
            return Err(api_error(StatusCode::CONFLICT, format!("{what}; {advice}")));
        }
        warnings.push(format!("{what}: they are refused from now on"));
    }
    if backend.state.is_draining() {
        return Ok(change_result(format!("backend {name} was draining already"), warnings));
    }
    backend.state.set_draining(true);
    tracing::info!(backend = name, "drained by the operator: it takes no new sandboxes");
    backend.state.wait_for_journal().await;
    warnings.extend(save_warnings(&state.node));
    let (sandboxes, _) = state.node.router.owners.count(backend.id);
    Ok(change_result(format!("backend {name} takes no new sandboxes; {sandboxes} are still on it"), warnings))
}

/// Routes new sandboxes to a backend again.
pub(super) async fn undrain(
    State(state): State<Arc<AdminState>>,
    Path(name): Path<String>,
) -> Result<Json<ChangeResult>, ApiError> {
    let backend = configured_backend(&state.node, &name)?;
    if !backend.state.is_draining() {
        return Ok(change_result(format!("backend {name} was not draining"), Vec::new()));
    }
    backend.state.set_draining(false);
    backend.state.wait_for_journal().await;
    tracing::info!(backend = name, "undrained by the operator: it takes new sandboxes");
    Ok(change_result(format!("backend {name} takes new sandboxes"), save_warnings(&state.node)))
}

/// Drops everything known of a backend.
pub(super) async fn forget(
    State(state): State<Arc<AdminState>>,
    Path(name): Path<String>,
    Query(query): Query<ForceQuery>,
) -> Result<Json<ChangeResult>, ApiError> {
    let node = &state.node;
    let backend = configured_backend(node, &name)?;
    if let Some(pod) = &query.pod {
        return forget_pod(node, &backend, pod).await;
    }
    let up = backend.is_up();
    if up && !query.force {
        let what =
            format!("backend {name} is up: its next list would bring back everything that is forgotten");
        return Err(api_error(StatusCode::CONFLICT, format!("{what}; use --force to forget it anyway")));
    }
    let (sandboxes, containers) = node.router.owners.count(backend.id);
    node.state_store.declare_empty(backend.id);
    node.router.owners.forget_all_of(backend.id);
    tracing::warn!(backend = name, sandboxes, containers, "forgotten by the operator");
    save(node).await;
    let mut warnings = save_warnings(node);
    if up {
        warnings.push(format!("backend {name} is up: its next list brings back what it still has"));
    }
    let what = format!("forgot {sandboxes} sandboxes and {containers} containers of backend {name}");
    Ok(change_result(what, warnings))
}

/// Declares one sandbox, with its containers, to be gone.
async fn forget_pod(node: &Arc<Node>, backend: &Backend, pod: &str) -> Result<Json<ChangeResult>, ApiError> {
    let id = match node.router.owners.find(Some(Kind::Sandbox), pod, Some(backend.id)) {
        IdMatch::Exact(_) if node.router.owners.is_owned_by(pod, backend.id) => pod.to_owned(),
        IdMatch::Prefix(_, id) => id,
        IdMatch::Ambiguous => {
            return Err(api_error(StatusCode::CONFLICT, format!("several sandboxes begin with {pod:?}")));
        }
        IdMatch::Exact(_) | IdMatch::Unknown => {
            let what = format!("backend {} has no sandbox {pod:?}; `crimux ps` names them", backend.name);
            return Err(api_error(StatusCode::NOT_FOUND, what));
        }
    };
    if backend.is_up() {
        let what = format!("backend {} is up: what it has is learnt again from its next list", backend.name);
        return Err(api_error(StatusCode::CONFLICT, format!("{what}; remove the pod itself (crictl rmp)")));
    }
    let mut containers = Vec::new();
    backend.state.for_each_container(|facts| {
        if facts.sandbox_id == id {
            containers.push(facts.id.to_owned());
        }
    });
    backend.state.record_sandbox_removed(&id);
    node.router.owners.remove(&id);
    for container in &containers {
        node.router.owners.remove(container);
    }
    tracing::warn!(backend = %backend.name, sandbox = id, "forgotten by the operator");
    save(node).await;
    let what = format!("forgot sandbox {id} and {} containers of backend {}", containers.len(), backend.name);
    Ok(change_result(what, save_warnings(node)))
}

/// A reload that an operator asks for.
#[derive(Debug)]
pub struct ReloadRequest {
    /// Whether to do what is refused otherwise.
    pub force: bool,
    /// Receives the report.
    pub reply: oneshot::Sender<ReloadReport>,
}

/// Reads the configuration file again.
pub(super) async fn reload(
    State(state): State<Arc<AdminState>>,
    Query(how): Query<ForceQuery>,
) -> Result<Json<ReloadReport>, ApiError> {
    let (reply, reloaded) = oneshot::channel();
    let ending = || api_error(StatusCode::SERVICE_UNAVAILABLE, "crimux is shutting down");
    state.requests.reload.send(ReloadRequest { force: how.force, reply }).await.map_err(|_| ending())?;
    reloaded.await.map(Json).map_err(|_| ending())
}

/// Which configuration is meant.
#[derive(Debug, Deserialize)]
pub(super) struct PlanQuery {
    /// Where relative paths in the text of the body start; without it the file of this process is meant.
    base: Option<PathBuf>,
}

/// Tells what the configuration in the body, or the file as it is now, would do; changes nothing.
pub(super) async fn plan(
    State(state): State<Arc<AdminState>>,
    Query(of): Query<PlanQuery>,
    text: String,
) -> Result<Json<ReloadReport>, ApiError> {
    let problems = |error: String| api_error(StatusCode::UNPROCESSABLE_ENTITY, error);
    let Some(base) = of.base else {
        let path = state.config_file.clone();
        let file = path.display().to_string();
        let loaded = tokio::task::spawn_blocking(move || Config::load(&path)).await;
        let loaded = loaded.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let config = loaded.map_err(|error| problems(error.to_string()))?;
        return Ok(Json(ReloadReport { file, ..plan_reload(&state.node, &config) }));
    };
    let config = Config::parse(&text, &base).map_err(|error| problems(error.to_string()))?;
    Ok(Json(plan_reload(&state.node, &config)))
}

/// Returns what a reload of this configuration would report. Blocks, as [`Wanted::of`] does.
fn plan_reload(node: &Node, config: &Config) -> ReloadReport {
    let plan = Plan::new(&node.known_instances(), &Wanted::of(config));
    report_plan(node, &plan, config)
}

/// Returns what a reload of this configuration by this plan reports, before it is applied.
pub(crate) fn report_plan(node: &Node, plan: &Plan, config: &Config) -> ReloadReport {
    let old = node.config();
    let backends = node.backends();
    let pods = |backend: &Backend| node.router.owners.count(backend.id).0;
    let down = backends.iter().filter(|backend| !backend.is_up());
    let refused = plan.refusal(&old, config, down.map(|backend| (backend.name.to_string(), pods(backend))));
    ReloadReport {
        file: String::new(),
        applied: false,
        plan: plan.changes().into_iter().chain(removed_handlers(node, &old, config)).collect(),
        changes: old.changes(config),
        warnings: warnings(node, &old, config),
        restart: old.restart_keys(config).into_iter().map(str::to_owned).collect(),
        refused,
        partly_applied: false,
        error: None,
    }
}

/// Returns what `crimux check` would warn of.
fn warnings(node: &Node, old: &Config, new: &Config) -> Vec<String> {
    let is_drained = |name: &str| node.backend_named(name).is_some_and(|backend| backend.state.is_draining());
    let state_dir = (old.state_dir != new.state_dir)
        .then(|| format!("state_dir: {}", state_dir_advice(&old.state_dir, &new.state_dir)));
    let mut warnings: Vec<_> = state_dir.into_iter().collect();
    let effects = prefix_change(node, old, new).into_iter().chain(effects::drained_handlers(new, is_drained));
    warnings.extend(effects.chain(new.warnings()).map(|warning| warning.to_string()));
    warnings
}

/// Warns if the prefix of every container ID of the node changes.
pub(crate) fn prefix_change(node: &Node, old: &Config, new: &Config) -> Option<ConfigWarning> {
    let runtime_name = |backend: &str| Some(node.backend_named(backend)?.last_version()?.runtime_name);
    effects::prefix_change((old.identity, &old.default_backend), new, runtime_name)
}

/// Says which handlers are not in the new configuration, and how many sandboxes asked for them.
fn removed_handlers(node: &Node, old: &Config, new: &Config) -> Vec<String> {
    let line = |handler: &String| {
        let asked = match node.history.count_requests_for(handler) {
            0 => String::new(),
            sandboxes => format!(", and {sandboxes} of those created since the start asked for it"),
        };
        format!("{}: removed; its new sandboxes are refused{asked}", handler_label(handler))
    };
    old.removed_handlers(new).map(line).collect()
}

pub(super) fn change_result(message: String, warnings: Vec<String>) -> Json<ChangeResult> {
    Json(ChangeResult { message, warnings })
}

/// Returns the backend that an operator wants to change.
pub(super) fn configured_backend(node: &Node, name: &str) -> Result<Arc<Backend>, ApiError> {
    if node.state_store.is_handed_over() {
        let what = "an upgrade is under way, and the new process keeps the state; try again";
        return Err(api_error(StatusCode::SERVICE_UNAVAILABLE, what));
    }
    node.backend_named(name).ok_or_else(|| unknown(node, name))
}

fn unknown(node: &Node, name: &str) -> ApiError {
    let backends = node.backends();
    let names: Vec<_> = backends.iter().map(|backend| &*backend.name).collect();
    let error = format!("there is no backend {name:?} (backends: {})", names.join(", "));
    api_error(StatusCode::NOT_FOUND, error)
}

/// Returns the handlers, in words, that only `backend` serves.
fn handlers_served_only_by(node: &Node, backend: &str) -> Vec<String> {
    let routes = read::all_routes(node).into_iter().filter(|route| {
        let leads_here = route.targets.iter().any(|target| target.backend == backend && target.weight > 0);
        let elsewhere = route.targets.iter().any(|target| target.backend != backend && target.share > 0.0);
        leads_here && !elsewhere
    });
    routes.map(|route| handler_label(&route.handler)).collect()
}

/// Writes the last-known state to the disk, at most for [`DISK_TIMEOUT`]. A failure is reported by
/// [`save_warnings`].
async fn save(node: &Node) {
    let store = Arc::clone(&node.state_store);
    node.state_store.wait_for_journal().await;
    tokio::time::timeout(DISK_TIMEOUT, tokio::task::spawn_blocking(move || store.flush())).await.ok();
}

/// Returns a warning if the last write failed, so that the change would not survive a restart.
fn save_warnings(node: &Node) -> Vec<String> {
    let problem = node.state_store.write_error();
    problem
        .map(|problem| format!("this is not saved and ends with a restart: {problem}"))
        .into_iter()
        .collect()
}
