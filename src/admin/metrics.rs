//! `/metrics`: refreshes the gauges of the backends and encodes the registry.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus::TextEncoder;

use crate::admin::api::{Level, RouteView, TargetView};
use crate::admin::status_view::compose_status;
use crate::admin::{AdminState, openmetrics, read, verdict};
use crate::backend::Backend;
use crate::metrics::{BackendSample, HandlerSample, StateSample};
use crate::proxy::Node;
use crate::state::Life;

pub(super) async fn scrape(State(state): State<Arc<AdminState>>, headers: HeaderMap) -> Response {
    refresh(&state);
    let metrics = &state.node.metrics;
    match TextEncoder::new().encode_to_string(&metrics.registry().gather()) {
        Ok(text) if prefers_openmetrics(&headers) => {
            let text = openmetrics::from_text(&text, &metrics.exemplars);
            ([(header::CONTENT_TYPE, openmetrics::CONTENT_TYPE)], text).into_response()
        }
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Tells whether a client accepts OpenMetrics at least as much as Prometheus's text format (RFC 9110,
/// 12.5.1).
pub(super) fn prefers_openmetrics(headers: &HeaderMap) -> bool {
    let listed = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut weights = [0.0_f32; 2];
    for range in listed.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default();
        let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok()).unwrap_or(1.0);
        for (known, name) in weights.iter_mut().zip([openmetrics::MEDIA_TYPE, "text/plain"]) {
            if media_type == name {
                *known = known.max(weight);
            }
        }
    }
    weights[0] > 0.0 && weights[0] >= weights[1]
}

fn refresh(state: &AdminState) {
    let node = &*state.node;
    let backends = node.backends();
    let samples: Vec<_> = backends.iter().map(|backend| sample(node, backend)).collect();
    node.metrics.refresh(&samples);
    node.metrics.state.set(&StateSample {
        saved: node.state_store.write_error().is_none(),
        write_failures: node.state_store.write_failures(),
        written_bytes: node.state_store.written_bytes(),
    });
    let (connections, streams) = node.limits().open();
    node.metrics.clients.set(connections, streams);
    node.metrics.older_processes.set(&node.history.older_processes());
    let routes = read::all_routes(node);
    let status = compose_status(state, &routes);
    let is_ready = status.verdict.level != Level::NotReady;
    let later = status.backends.iter().filter(|backend| backend.comes_later);
    let comes_later: HashSet<_> = later.map(|backend| backend.name.as_str()).collect();
    // Of a handler that a reload removed every new sandbox is refused, too; that counts while pods want it.
    let removed = status.removed_handlers.iter().filter(|removed| verdict::is_wanted(removed));
    let removed = removed.map(|it| HandlerSample { name: &it.handler, is_refused: true, comes_later: false });
    let handlers: Vec<_> =
        routes.iter().map(|route| handler_sample(route, &comes_later)).chain(removed).collect();
    node.metrics.node.set(is_ready, &handlers);
    for route in &routes {
        for target in route.targets.iter().filter(|target| target.state != "gone") {
            node.metrics.start_routed_sandboxes(&route.handler, &target.backend);
        }
    }
}

fn handler_sample<'a>(route: &'a RouteView, comes_later: &HashSet<&str>) -> HandlerSample<'a> {
    let is_refused = !route.targets.iter().any(|target| target.takes_new);
    let later = |target: &TargetView| comes_later.contains(target.backend.as_str());
    let is_excused = route.targets.iter().all(|target| later(target) || target.state == "draining");
    HandlerSample {
        name: &route.handler,
        is_refused,
        comes_later: is_refused && is_excused && route.targets.iter().any(later),
    }
}

fn certificates(backend: &Backend) -> Vec<(&'static str, SystemTime)> {
    backend.certificate_ends().into_iter().map(|(role, end)| (role.word(), end)).collect()
}

fn sample<'a>(node: &Node, backend: &'a Backend) -> BackendSample<'a> {
    let version = backend.last_version();
    let (sandboxes, containers) = node.router.owners.count(backend.id);
    BackendSample {
        name: &backend.name,
        state: node.condition_of(backend).word(),
        up: backend.is_up(),
        draining: backend.state.is_draining(),
        configured: backend.state.instance().life != Life::Removed,
        awaited: node.is_awaited(backend),
        required: backend.config().required || node.config().default_backend == *backend.name,
        comes_later: node.comes_later(backend),
        in_flight: backend.in_flight(),
        runtime: version.map(|version| (version.runtime_name, version.runtime_version)),
        list_age: backend.state.age(),
        sandboxes,
        containers,
        foreign: backend.state.count_foreign(),
        certificates: certificates(backend),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn prefers(accept: &'static str) -> bool {
        prefers_openmetrics(&HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]))
    }

    #[test]
    fn openmetrics_is_for_whom_prefers_it() {
        // What Prometheus 2 and 3 send.
        assert!(prefers(
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        ));
        assert!(prefers(
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=1.0.0;q=0.4"
        ));
        assert!(!prefers("text/plain;version=0.0.4;q=0.5,application/openmetrics-text;q=0.3"));
        assert!(!prefers("application/openmetrics-text;q=0") && !prefers("*/*"));
        assert!(!prefers_openmetrics(&HeaderMap::new()));
    }
}
