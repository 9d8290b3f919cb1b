//! The read-only routes of the admin socket.
//!
//! Answers are composed from the proxy's state. Pods and images are first listed again at every backend that
//! is up, so that an operator does not see an older list. A backend that does not answer is shown as last
//! known, and the answer says so.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use prost::Message;

use crate::admin::AdminState;
use crate::admin::api::{
    AimView, ErrorBody, ImageView, ImagesView, PodView, PodsView, RouteView, RoutesView, StatusView,
    TargetView,
};
use crate::admin::pods_view::{is_answering, pods_of};
use crate::admin::status_view::{compose_status, is_silent, removed_handlers};
use crate::cri::ListImagesResponse;
use crate::method::List;
use crate::proxy::Node;
use crate::router::Handlers;
use crate::state::{Filter, InstanceId, ListKind};

/// The states of a backend in which a new sandbox fails.
const UNABLE: [&str; 3] = ["down", "joining", "gone"];

/// The HTTP status and reason of a refused request.
pub(super) type ApiError = (StatusCode, Json<ErrorBody>);

pub(super) fn api_error(status: StatusCode, error: impl Into<String>) -> ApiError {
    (status, Json(ErrorBody { error: error.into() }))
}

pub(super) async fn status(State(state): State<Arc<AdminState>>) -> Json<StatusView> {
    Json(compose_status(&state, &all_routes(&state.node)))
}

pub(super) async fn pods(State(state): State<Arc<AdminState>>) -> Json<PodsView> {
    state.relist(List::Sandboxes).await;
    state.relist(List::Containers).await;
    let mut pods: Vec<_> =
        state.node.backends().iter().flat_map(|backend| pods_of(&state.node, backend)).collect();
    pods.sort_by(|a, b| {
        (&a.namespace, &a.name, a.attempt, &a.backend).cmp(&(&b.namespace, &b.name, b.attempt, &b.backend))
    });
    Json(PodsView { pods })
}

/// Returns the pod of this name as it was listed last, the latest attempt of several.
pub(super) fn known_pod(node: &Node, namespace: &str, name: &str) -> Option<PodView> {
    let backends = node.backends();
    let pods = backends.iter().flat_map(|backend| pods_of(node, backend));
    let named = pods.filter(|pod| pod.namespace == namespace && pod.name == name);
    named.max_by(|a, b| a.created_at.cmp(&b.created_at))
}

pub(super) async fn routes(State(state): State<Arc<AdminState>>) -> Json<RoutesView> {
    Json(RoutesView {
        routes: all_routes(&state.node),
        aimed: aims(&state.node),
        removed: removed_handlers(&state.node),
    })
}

/// Returns the aims that wait for their pod.
fn aims(node: &Node) -> Vec<AimView> {
    let view = |(aim, left): (crate::router::Aim, std::time::Duration)| {
        let backend = node.backend(aim.backend).map_or_else(|_| "gone".to_owned(), |b| b.name.to_string());
        AimView { pod: format!("{}/{}", aim.namespace, aim.name), backend, seconds_left: left.as_secs() }
    };
    node.router.aims.waiting().into_iter().map(view).collect()
}

pub(super) async fn default_route(State(state): State<Arc<AdminState>>) -> Result<Json<RouteView>, ApiError> {
    one_route(&state.node, "")
}

pub(super) async fn route(
    State(state): State<Arc<AdminState>>,
    Path(handler): Path<String>,
) -> Result<Json<RouteView>, ApiError> {
    one_route(&state.node, &handler)
}

pub(super) async fn images(State(admin): State<Arc<AdminState>>) -> Json<ImagesView> {
    admin.relist(List::Images).await;
    let (mut unknown, mut stale) = (Vec::new(), Vec::new());
    let mut images: BTreeMap<String, ImageView> = BTreeMap::new();
    for backend in admin.node.backends().iter() {
        let name = backend.name.to_string();
        let list = backend.state.list(ListKind::Images, &Filter::default());
        let Some(list) = list.and_then(|list| ListImagesResponse::decode(list).ok()) else {
            unknown.push(name);
            continue;
        };
        if !is_answering(&admin.node, backend) {
            stale.push(name.clone());
        }
        list.images.into_iter().for_each(|image| add_image(&mut images, &name, image));
    }
    let mut images: Vec<_> = images.into_values().collect();
    images.sort_by(|a, b| (a.tags.first(), &a.id).cmp(&(b.tags.first(), &b.id)));
    Json(ImagesView { images, unknown, stale })
}

/// Returns where the handler `""` and every configured one lead.
pub(super) fn all_routes(node: &Node) -> Vec<RouteView> {
    let handlers = node.router.handlers();
    let named = handlers.iter().map(|(handler, _)| compose_route(node, &handlers, handler));
    std::iter::once(compose_route(node, &handlers, "")).chain(named).collect()
}

fn one_route(node: &Node, handler: &str) -> Result<Json<RouteView>, ApiError> {
    let handlers = node.router.handlers();
    if !handler.is_empty() {
        let known = handlers.targets_of(handler);
        known.map_err(|error| api_error(StatusCode::NOT_FOUND, error.to_string()))?;
    }
    Ok(Json(compose_route(node, &handlers, handler)))
}

fn compose_route(node: &Node, handlers: &Handlers, handler: &str) -> RouteView {
    let configured = handlers.targets_of(handler).unwrap_or_default();
    let targets: Vec<(InstanceId, String, u32)> =
        configured.iter().map(|(b, target)| (*b, target.backend_handler.clone(), target.weight)).collect();
    let drained = |id| node.backend(id).is_ok_and(|backend| backend.state.is_draining());
    let open = |(id, _, weight): &(InstanceId, String, u32)| if drained(*id) { 0 } else { *weight };
    let name = |id| node.backend(id).map_or_else(|_| "gone".to_owned(), |backend| backend.name.to_string());
    let total: u32 = targets.iter().map(open).sum();
    let share = |weight: u32| if total == 0 { 0.0 } else { f64::from(weight) / f64::from(total) };
    let target_views = targets.iter().map(|target| {
        let share = share(open(target));
        let backend = node.backend(target.0);
        let state = backend.as_ref().map_or("gone", |backend| node.condition_of(backend).word());
        let takes_new = share > 0.0 && !UNABLE.contains(&state);
        TargetView {
            backend: name(target.0),
            backend_handler: target.1.clone(),
            weight: target.2,
            share,
            state: state.to_owned(),
            takes_new,
            waits: takes_new && backend.is_ok_and(|backend| is_silent(&backend)),
        }
    });
    let target_views: Vec<_> = target_views.collect();
    RouteView { handler: handler.to_owned(), refused: refusal_reason(&target_views), targets: target_views }
}

/// Returns why new sandboxes, or which share of them, would be refused now; `None` if none would be.
fn refusal_reason(targets: &[TargetView]) -> Option<String> {
    let open: Vec<_> = targets.iter().filter(|target| target.share > 0.0).collect();
    if open.is_empty() {
        let names: Vec<_> = targets.iter().map(|target| target.backend.as_str()).collect();
        return Some(format!("draining: {}", names.join(", ")));
    }
    let unable = open.iter().filter(|target| UNABLE.contains(&target.state.as_str()));
    let reasons: Vec<_> = unable
        .map(|target| {
            let part = if open.len() > 1 { format!("{:.0}%: ", target.share * 100.0) } else { String::new() };
            format!("{part}backend {} is {}", target.backend, target.state)
        })
        .collect();
    (!reasons.is_empty()).then(|| reasons.join(", "))
}

fn add_image(images: &mut BTreeMap<String, ImageView>, backend: &str, image: crate::cri::Image) {
    let known = images.entry(image.id.clone()).or_insert_with(|| ImageView {
        id: image.id,
        tags: Vec::new(),
        digests: Vec::new(),
        size: 0,
        backends: Vec::new(),
    });
    for (own, theirs) in [(&mut known.tags, image.repo_tags), (&mut known.digests, image.repo_digests)] {
        for name in theirs {
            if !own.contains(&name) {
                own.push(name);
            }
        }
    }
    known.size = known.size.max(image.size);
    if known.backends.last().is_none_or(|last| last != backend) {
        known.backends.push(backend.to_owned());
    }
}
