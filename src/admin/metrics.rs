//! `/metrics`: refreshes the gauges of the backends and encodes the registry.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus::TextEncoder;
use prost::Message;

use crate::admin::AdminState;
use crate::backend::Backend;
use crate::cri::VersionResponse;
use crate::method::Rpc;
use crate::metrics::BackendSample;
use crate::proxy::ProxyState;
use crate::snapshot::Life;

pub(super) async fn scrape(State(state): State<Arc<AdminState>>) -> Response {
    refresh(&state.node);
    match TextEncoder::new().encode_to_string(&state.node.metrics.registry().gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn refresh(node: &ProxyState) {
    let backends = node.backends();
    let samples: Vec<_> = backends.iter().map(|backend| sample(node, backend)).collect();
    node.metrics.refresh(&samples, node.snapshot.write_failures(), node.snapshot.written_bytes());
    let (connections, streams) = node.limits().open();
    node.metrics.clients.set(connections, streams);
}

fn certificates(backend: &Backend) -> Vec<(&'static str, SystemTime)> {
    backend.certificate_ends().into_iter().map(|(role, end)| (role.word(), end)).collect()
}

fn sample<'a>(node: &ProxyState, backend: &'a Backend) -> BackendSample<'a> {
    let version = backend.last.reply(Rpc::Version).and_then(|reply| VersionResponse::decode(reply).ok());
    let (sandboxes, containers) = node.router.owners.count(backend.id);
    BackendSample {
        name: &backend.name,
        state: node.state(backend).word(),
        up: backend.is_up(),
        draining: backend.last.is_draining(),
        configured: backend.last.instance().life != Life::Removed,
        in_flight: backend.in_flight(),
        runtime: version.map(|version| (version.runtime_name, version.runtime_version)),
        list_age: backend.last.age(),
        sandboxes,
        containers,
        certificates: certificates(backend),
    }
}
