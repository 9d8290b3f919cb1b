//! The operator's side: Prometheus, probes of health, the status page, and the answers behind `crimux status`.
//!
//! Two listeners, on purpose unequal. The Unix socket is root's and serves everything, among it what changes
//! something (`POST /v1/backends/…`) and what names pods. The HTTP port has no authentication, so it serves only
//! what a metric label would say, and changes nothing. Nothing here is on the way of a call.

use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use prometheus::TextEncoder;
use tokio::task::JoinSet;

use crate::config;
use crate::drain::Drain;
use crate::proxy::ProxyState;
use crate::server::{Listener, SocketFile};
use load::Load;

mod change;
pub mod documents;
mod load;
mod page;
mod read;

/// The admin socket commands; only root may.
const SOCKET_MODE: u32 = 0o600;

/// What every answer is made from.
#[derive(Debug)]
pub(crate) struct AdminState {
    node: Arc<ProxyState>,
    load: Load,
    started: SystemTime,
}

/// Starts the admin listeners.
///
/// # Errors
/// If one of them cannot be bound.
pub async fn spawn(
    servers: &mut JoinSet<()>,
    config: &config::Admin,
    node: &Arc<ProxyState>,
    drain: &Drain,
) -> anyhow::Result<()> {
    let desk =
        Arc::new(AdminState { node: Arc::clone(node), load: Load::default(), started: SystemTime::now() });
    let (listener, file) = Listener::bind(&config.socket, SOCKET_MODE, None).await?.split();
    let routes = pages().merge(commands()).with_state(Arc::clone(&desk));
    serve(servers, listener, routes, drain, Some(file));
    if let Some(address) = config.http {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} (admin.http)"))?;
        tracing::info!(address = %listener.local_addr()?, "admin.http serves metrics and the status page");
        serve(servers, listener, pages().with_state(Arc::clone(&desk)), drain, None);
    }
    servers.spawn(sample(desk, drain.clone()));
    Ok(())
}

fn serve<L>(servers: &mut JoinSet<()>, listener: L, routes: Router, drain: &Drain, file: Option<SocketFile>)
where
    L: axum::serve::Listener,
    L::Addr: std::fmt::Debug,
{
    let drain = drain.clone();
    let serving = axum::serve(listener, routes).with_graceful_shutdown(async move { drain.begun().await });
    servers.spawn(async move {
        let _file = file;
        if let Err(error) = serving.await {
            tracing::error!(%error, "an admin listener stopped being served");
        }
    });
}

async fn sample(desk: Arc<AdminState>, drain: Drain) {
    let mut tick = tokio::time::interval(load::STEP);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => desk.load.sample(&desk.node.metrics.registry),
            () = drain.begun() => return,
        }
    }
}

/// What everybody may see who reaches the port.
fn pages() -> Router<Arc<AdminState>> {
    Router::new()
        .route("/", get(page::page))
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
}

/// What only root may see and do.
fn commands() -> Router<Arc<AdminState>> {
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

async fn metrics(State(desk): State<Arc<AdminState>>) -> Response {
    desk.node.refresh_gauges();
    match TextEncoder::new().encode_to_string(&desk.node.metrics.registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Ready once lists can be complete: every backend was listed, or saved state stands for it.
async fn ready(State(desk): State<Arc<AdminState>>) -> impl IntoResponse {
    let unknown: Vec<_> = desk
        .node
        .backends()
        .iter()
        .filter(|backend| !backend.last.known() && !desk.node.is_joining(backend))
        .map(|backend| backend.name.to_string())
        .collect();
    if unknown.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not listed yet: {}\n", unknown.join(", ")))
    }
}
