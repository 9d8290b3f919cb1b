//! The operator's side: Prometheus metrics, health probes, the status page, and the API behind `crimux
//! status`.
//!
//! There are two listeners with different rights. The Unix socket is root's and serves everything, including
//! changes (`POST /v1/backends/…`) and the names of pods. The HTTP port has no authentication, so it serves
//! only what a metric label would say, and changes nothing. No CRI call waits for anything here.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use tokio::task::JoinSet;

use crate::config;
use crate::drain::{self, Drain, DrainResult};
use crate::proxy::ProxyState;
use crate::server::{Listener, SocketFile};

pub mod api;
mod change;
pub mod duration;
mod metrics;
mod page;
mod read;

/// Permission bits of the admin socket: a process that may connect may command crimux.
const SOCKET_MODE: u32 = 0o600;

/// What the handlers of the admin listeners share.
#[derive(Debug)]
pub(crate) struct AdminState {
    node: Arc<ProxyState>,
    started: SystemTime,
}

/// Starts the admin listeners in `servers`. After the drain has begun, each has `deadline` to answer its last
/// requests.
///
/// # Errors
/// If one of them cannot be bound.
pub async fn spawn(
    servers: &mut JoinSet<DrainResult>,
    config: &config::Admin,
    node: &Arc<ProxyState>,
    drain: &Drain,
    deadline: Duration,
) -> anyhow::Result<()> {
    let state = Arc::new(AdminState { node: Arc::clone(node), started: SystemTime::now() });
    let (listener, file) = Listener::bind(&config.socket, SOCKET_MODE, None).await?.split();
    let routes = public_routes().merge(root_routes()).with_state(Arc::clone(&state));
    servers.spawn(serve(listener, routes, drain.clone(), deadline, Some(file)));
    if let Some(address) = config.http {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} (admin.http)"))?;
        tracing::info!(address = %listener.local_addr()?, "admin.http serves metrics and the status page");
        servers.spawn(serve(listener, public_routes().with_state(state), drain.clone(), deadline, None));
    }
    Ok(())
}

/// Serves until the drain begins and the last request is answered, at most `deadline` longer. `_file` is
/// removed then.
async fn serve<L>(
    listener: L,
    routes: Router,
    drain: Drain,
    deadline: Duration,
    _file: Option<SocketFile>,
) -> DrainResult
where
    L: axum::serve::Listener,
    L::Addr: std::fmt::Debug,
{
    let begun = drain.clone().into_begun();
    let serving = async {
        if let Err(error) = axum::serve(listener, routes).with_graceful_shutdown(begun).await {
            tracing::error!(%error, "an admin listener failed and no longer serves");
        }
    };
    drain::run_with_deadline("admin", &drain, deadline, serving).await
}

/// Routes without authentication.
fn public_routes() -> Router<Arc<AdminState>> {
    Router::new()
        .route("/", get(page::page))
        .route("/metrics", get(metrics::scrape))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
}

/// Routes of the admin socket alone.
fn root_routes() -> Router<Arc<AdminState>> {
    Router::new()
        .route("/v1/status", get(read::status))
        .route("/v1/pods", get(read::pods))
        .route("/v1/images", get(read::images))
        .route("/v1/routes", get(read::routes))
        .route("/v1/routes/", get(read::default_route))
        .route("/v1/routes/{handler}", get(read::route))
        .route("/v1/backends/{name}/drain", post(change::drain))
        .route("/v1/backends/{name}/undrain", post(change::undrain))
        .route("/v1/backends/{name}/forget", post(change::forget))
}

/// Answers 200 once lists can be complete: every backend was listed, or has saved state to answer from.
async fn ready(State(state): State<Arc<AdminState>>) -> impl IntoResponse {
    let unknown: Vec<_> = state
        .node
        .backends()
        .iter()
        .filter(|backend| !backend.last.known() && !state.node.is_joining(backend))
        .map(|backend| backend.name.to_string())
        .collect();
    if unknown.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not listed yet: {}\n", unknown.join(", ")))
    }
}
