//! The operator's side: Prometheus metrics, health probes, the status page, and the API behind `crimux
//! status`.
//!
//! There are two listeners with different rights. The Unix socket is root's and serves everything, including
//! changes (`POST /v1/backends/…`) and the names of pods. The HTTP port has no authentication, so it serves
//! only what a metric label would say, and changes nothing. No CRI call waits for anything here.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::method::List;
use crate::proxy::Node;
use crate::server::Sockets;
use crate::shutdown::Servers;
use crate::side::Side;
use cache::Cache;
pub use change::ReloadRequest;
pub(crate) use change::{prefix_change, report_plan};
use http::Port;
pub use upgrade::UpgradeRequest;

pub mod aim;
pub mod api;
mod cache;
mod change;
mod debug;
pub mod duration;
pub(crate) mod effects;
pub mod explain;
mod http;
mod metrics;
mod openmetrics;
mod page;
mod pods_view;
mod read;
pub mod socket_note;
mod status_view;
mod timeline;
mod upgrade;
pub(crate) mod verdict;

pub(crate) use verdict::RUNBOOK;

/// Permission bits of the admin socket: a process that may connect may command crimux.
const SOCKET_MODE: u32 = 0o600;

/// What the handlers of the admin listeners share.
#[derive(Debug)]
pub(crate) struct AdminState {
    node: Arc<Node>,
    /// The runtime of the calls, where backends are asked; the listeners are on another thread.
    calls: Handle,
    port: Port,
    started: SystemTime,
    /// An absolute path.
    config_file: PathBuf,
    requests: Requests,
}

/// Where the requests go that only the main loop of the process can answer.
#[derive(Debug)]
pub struct Requests {
    /// Reloads.
    pub reload: mpsc::Sender<ReloadRequest>,
    /// Upgrades.
    pub upgrade: mpsc::Sender<UpgradeRequest>,
}

/// Starts the admin listeners in `servers`, on the thread of `side`.
///
/// # Errors
/// If the socket cannot be bound. A port that is taken is no error: it is tried again.
pub async fn spawn(
    servers: &mut Servers,
    node: &Arc<Node>,
    side: &Side,
    sockets: &Sockets,
    config_file: &Path,
    requests: Requests,
) -> anyhow::Result<()> {
    let config = node.config().admin.clone();
    let (calls, port, started) = (Handle::current(), Port::new(sockets), SystemTime::now());
    let config_file = std::path::absolute(config_file)?;
    let state = AdminState { node: Arc::clone(node), calls, port, started, config_file, requests };
    let state = Arc::new(state);
    side.handle().spawn(timeline::record(Arc::clone(node)));
    let all = sockets.clone();
    let (socket, state_dir) = (config.socket.clone(), node.config().state_dir.clone());
    let bound = side.run(async move { all.listen(&config.socket, SOCKET_MODE, None).await }).await??;
    side.handle().spawn_blocking(move || socket_note::write(&state_dir, &socket));
    let routes = public_routes().merge(root_routes()).with_state(Arc::clone(&state));
    let (shutdown, all) = (servers.shutdown().clone(), sockets.clone());
    servers.spawn("admin", side.handle(), async move {
        all.may_accept().await;
        // The file is removed once the last request is answered.
        let (listener, file) = bound.split();
        let socket = file.socket();
        let begun = async move {
            shutdown.into_begun().await;
            if let Some(socket) = socket {
                socket.close();
            }
        };
        if let Err(error) = axum::serve(listener, routes).with_graceful_shutdown(begun).await {
            tracing::error!(%error, "an admin listener failed and no longer serves");
        }
    });
    if let Some(address) = config.http {
        let first = Arc::clone(&state);
        let listener = side.run(async move { first.port.listen(address).await.ok() }).await?;
        let routes = cached_routes().with_state(Arc::clone(&state));
        let (shutdown, all) = (servers.shutdown().clone(), sockets.clone());
        servers.spawn("admin.http", side.handle(), async move {
            all.may_accept().await;
            let listen = || state.port.listen(address);
            http::serve(listener, listen, routes, shutdown).await;
        });
    }
    Ok(())
}

/// Routes without authentication.
fn public_routes() -> Router<Arc<AdminState>> {
    Router::new()
        .route("/", get(page::page))
        .route("/paused", get(page::paused_page))
        .route("/metrics", get(metrics::scrape))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
}

/// Those routes, with answers that cost something made at most once a second.
fn cached_routes() -> Router<Arc<AdminState>> {
    let cached = || middleware::from_fn_with_state(Arc::new(Cache::default()), cache::serve_cached);
    Router::new()
        .route("/", get(page::page).layer(cached()))
        .route("/paused", get(page::paused_page).layer(cached()))
        .route("/metrics", get(metrics::scrape).layer(cached()))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
}

/// Routes of the admin socket alone.
fn root_routes() -> Router<Arc<AdminState>> {
    Router::new()
        .route("/v1/status", get(read::status))
        .route("/v1/pods", get(read::pods))
        .route("/v1/images", get(read::images))
        .route("/v1/images/explain", get(explain::explain))
        .route("/v1/config", get(debug::config))
        .route("/v1/debug", get(debug::dump))
        .route("/v1/log-level", get(debug::log_level).post(debug::set_log_level))
        .route("/v1/routes", get(read::routes))
        .route("/v1/routes/", get(read::default_route))
        .route("/v1/routes/{handler}", get(read::route))
        .route("/v1/next", post(aim::aim))
        .route("/v1/reload", post(change::reload))
        .route("/v1/plan", post(change::plan))
        .route("/v1/upgrade", post(upgrade::upgrade))
        .route("/v1/backends/{name}/drain", post(change::drain))
        .route("/v1/backends/{name}/undrain", post(change::undrain))
        .route("/v1/backends/{name}/forget", post(change::forget))
}

impl AdminState {
    /// Lists this at every backend, on the thread of the calls.
    async fn relist(&self, list: List) {
        let node = Arc::clone(&self.node);
        // What was last known is shown where this fails.
        self.calls.spawn(async move { node.relist(list).await }).await.ok();
    }
}

/// Answers 200 once lists can be complete: every backend was listed, or has saved state to answer from.
async fn ready(State(state): State<Arc<AdminState>>) -> impl IntoResponse {
    let unknown: Vec<_> = state
        .node
        .backends()
        .iter()
        .filter(|backend| state.node.is_awaited(backend))
        .map(|backend| backend.name.to_string())
        .collect();
    if unknown.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not listed yet: {}\n", unknown.join(", ")))
    }
}
