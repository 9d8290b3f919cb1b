//! The handover to a newly started process, as an operator asks for it.
//!
//! Only the admin socket serves it: a client that may connect there is root, and names the program that is
//! started.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::admin::AdminState;
use crate::admin::api::UpgradeView;
use crate::admin::read::{ApiError, api_error};

/// A handover that an operator asks for.
#[derive(Debug)]
pub struct UpgradeRequest {
    /// The program to start; `None` is the one that crimux was started from, as it is installed now.
    pub binary: Option<PathBuf>,
    /// How long the new process may take until it serves.
    pub within: Duration,
    /// Receives the process that serves, or why the new one does not.
    pub reply: oneshot::Sender<Result<UpgradeView, String>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct UpgradeQuery {
    binary: Option<PathBuf>,
    /// In milliseconds.
    within: u64,
}

/// Starts a new process, and hands over to it.
pub(super) async fn upgrade(
    State(state): State<Arc<AdminState>>,
    Query(UpgradeQuery { binary, within }): Query<UpgradeQuery>,
) -> Result<Json<UpgradeView>, ApiError> {
    let (reply, done) = oneshot::channel();
    let within = Duration::from_millis(within);
    let request = UpgradeRequest { binary, within, reply };
    // There is room for none: what is not taken at once waits for a handover that is under way.
    if state.requests.upgrade.try_send(request).is_err() {
        return Err(api_error(StatusCode::CONFLICT, "an upgrade is under way already"));
    }
    match done.await {
        Ok(Ok(done)) => Ok(Json(done)),
        Ok(Err(error)) => Err(api_error(StatusCode::CONFLICT, error)),
        Err(_) => Err(api_error(StatusCode::SERVICE_UNAVAILABLE, "crimux is shutting down")),
    }
}
