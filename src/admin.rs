//! The operator's side: Prometheus, probes of health, and the answers behind `crimux status` and its like.
//!
//! HTTP on a loopback port for machines, the same router on a Unix socket for the command line. Nothing here
//! is on the way of a call.

use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus::TextEncoder;
use tokio::task::JoinSet;

use crate::config::Admin;
use crate::drain::Drain;
use crate::proxy::Node;
use crate::server::{Bound, SocketFile};

/// The admin socket commands; only root may.
const SOCKET_MODE: u32 = 0o600;

/// Starts the admin listeners.
///
/// # Errors
/// If one of them cannot be bound.
pub async fn spawn(
    servers: &mut JoinSet<()>,
    config: &Admin,
    node: &Arc<Node>,
    drain: &Drain,
) -> anyhow::Result<()> {
    let (listener, file) = Bound::bind(&config.socket, SOCKET_MODE, None).await?.split();
    serve(servers, listener, routes(Arc::clone(node)), drain, Some(file));
    if let Some(address) = config.http {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} (admin.http)"))?;
        serve(servers, listener, routes(Arc::clone(node)), drain, None);
    }
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

fn routes(node: Arc<Node>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(node)
}

async fn metrics(State(node): State<Arc<Node>>) -> impl IntoResponse {
    node.refresh_gauges();
    match TextEncoder::new().encode_to_string(&node.metrics.registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Ready once lists can be complete: every backend was listed, or saved state stands for it.
async fn ready(State(node): State<Arc<Node>>) -> impl IntoResponse {
    let unknown: Vec<_> = node
        .backends()
        .iter()
        .filter(|backend| !backend.last.known() && !node.is_joining(backend))
        .map(|backend| backend.name.to_string())
        .collect();
    if unknown.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not listed yet: {}\n", unknown.join(", ")))
    }
}
