//! `crimux route --next`: aims the next sandbox of one pod at a backend.
//!
//! A canary of one pod needs no change of the file. What would surely be refused later is refused here: an
//! unknown backend, one that takes no new sandboxes, and one that the pod's handler does not lead to.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use serde::Deserialize;

use crate::admin::AdminState;
use crate::admin::api::ChangeResult;
use crate::admin::change::{change_result, configured_backend};
use crate::admin::duration;
use crate::admin::read::{ApiError, api_error, known_pod};
use crate::error::handler_label;
use crate::router::AIM_LIFETIME;

/// The word in place of a backend that drops an aim; no backend can have that name.
pub const NO_AIM: &str = "none";

#[derive(Debug, Deserialize)]
pub(super) struct AimQuery {
    /// `NAMESPACE/NAME`.
    pod: String,
    backend: String,
}

/// Aims the next sandbox of a pod, or drops the aim.
pub(super) async fn aim(
    State(state): State<Arc<AdminState>>,
    Query(AimQuery { pod, backend }): Query<AimQuery>,
) -> Result<Json<ChangeResult>, ApiError> {
    let node = &state.node;
    let parts = pod
        .split_once('/')
        .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty() && !name.contains('/'));
    let (namespace, name) = parts.ok_or_else(|| {
        api_error(StatusCode::BAD_REQUEST, format!("{pod:?} is not a pod (expected NAMESPACE/NAME)"))
    })?;
    if backend == NO_AIM {
        let dropped = node.router.aims.cancel(namespace, name);
        let what = if dropped { "is no longer aimed" } else { "was not aimed" };
        return Ok(change_result(format!("pod {pod} {what}"), Vec::new()));
    }
    let target = configured_backend(node, &backend)?;
    if !node.config().backends.contains_key(&backend) {
        let error =
            format!("backend {backend} is not in the configuration any more and takes no new sandboxes");
        return Err(api_error(StatusCode::CONFLICT, error));
    }
    let state_word = node.condition_of(&target).word();
    if target.state.is_draining() || state_word == "joining" {
        let state = if target.state.is_draining() { "draining" } else { state_word };
        let error = format!("backend {backend} is {state} and takes no new sandboxes");
        return Err(api_error(StatusCode::CONFLICT, error));
    }
    let mut warnings = Vec::new();
    match known_pod(node, namespace, name) {
        Some(known) if node.router.handlers().target_at(&known.handler, target.id).is_none() => {
            let handler = handler_label(&known.handler);
            let advice = "give it a share there, of weight 0 if no other pod is to follow";
            let error =
                format!("pod {pod} has {handler}, which does not lead to backend {backend}; {advice}");
            return Err(api_error(StatusCode::CONFLICT, error));
        }
        Some(known) if known.backend == backend => {
            warnings.push(format!("pod {pod} is on backend {backend} already"));
        }
        _ => {}
    }
    if state_word == "down" {
        warnings.push(format!("backend {backend} is down: the sandbox waits until it is back"));
    }
    node.router.aims.set(namespace, name, target.id);
    tracing::info!(namespace, name, backend, "pod aimed by the operator: its next sandbox goes there");
    let hold = duration::human(AIM_LIFETIME);
    Ok(change_result(
        format!("the next sandbox of pod {pod} goes to backend {backend} (for {hold})"),
        warnings,
    ))
}
