//! Image calls, each to the store that the rules of `router/images` name.
//!
//! A pull goes to one backend and never to two: it carries credentials. A status is never "absent" on behalf
//! of a backend that could not be asked, because kubelet would pull again, refuse to start or, worst, run the
//! container as root. No deadline of ours cuts a pull.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tonic::Code;

use crate::backend::{Backend, MethodClass};
use crate::codec::Message;
use crate::config::ImageHandler;
use crate::cri::{field, field_path};
use crate::error::Error;
use crate::method::{ImageCall, Method, Rpc};
use crate::proxy::failed_commands::Failure;
use crate::proxy::reply::Outcome;
use crate::proxy::{Call, Node, refresh};
use crate::router::images::{self, BackendFacts, HANDLER, ImageRequest, ImageRoute, Rule, StoreTarget};
use crate::router::{OwnedSandbox, SandboxRecord};
use crate::state::image_name::{bare_id, normalise};
use crate::state::{ContainerRef, Filter, InstanceId, ListKind};
use crate::wire;

pub use explain::{CallExplanation, ImageExplanation, StoreExplanation};

mod explain;
mod remove;
mod status;

/// How long a process is young: the annotated call of a container start under way may have come before it.
const YOUNG_FOR: Duration = Duration::from_secs(30);

impl Call {
    /// Sends an image call to the store that it means.
    pub(super) async fn forward_to_store(
        &mut self,
        method: &'static Method,
        call: ImageCall,
        message: Message,
    ) -> Result<Outcome, Error> {
        match call {
            ImageCall::Pull => self.pull(method, message).await,
            ImageCall::Status => self.image_status(method, message).await,
            ImageCall::Remove => self.remove_image(method, message).await,
        }
    }

    async fn pull(&mut self, method: &'static Method, message: Message) -> Result<Outcome, Error> {
        let request = ImageRequest::read(message.encoded())?;
        let router = &self.node.router;
        router.record_config_seen(request.uid, request.annotations.config_seen);
        let pod = self.node.sandbox_of_pull(request.uid);
        let choose = |handler: &str, uid: &str| self.node.choose(handler, uid);
        let ImageRoute { rule, mut stores } = match self.scope {
            Some(scope) => ImageRoute::to(Rule::OwnSocket, scope),
            None => router.route_of_pull(&request, pod.as_ref(), choose)?,
        };
        let mut store = stores.swap_remove(0);
        let backend = self.node.backend(store.backend)?;
        if let Some(pod) = pod.filter(|_| rule == Rule::PodUid)
            && request.handler.is_empty()
        {
            store.backend_handler = handler_to_fill_in(&backend, &pod.record);
        }
        tracing::debug!(image = request.reference, backend = %backend.name, ?rule, "pull routed");
        self.recorder.set_backend(&backend);
        let headers = self.take_headers();
        // On a backend's own socket nothing is unclear, and nothing is to be remembered.
        let config_seen = if self.scope.is_none() { request.annotations.config_seen } else { "" };
        let node = Arc::clone(&self.node);
        let mut start = node.router.image_starts.begin_pull(request.reference, config_seen, backend.id);
        let reply = backend.fetch(method, headers, with_handler(&message, &store)).await;
        self.node.log_failed_command(&backend, method, message.encoded(), Failure::in_reply(&reply));
        let reply = reply?;
        if reply.code == Code::Ok {
            start.succeed();
            // What was pulled just before an outage must not be missing from the last-known list.
            self.node.image_lists.invalidate(backend.id);
            refresh::start_refresh(&self.node, &backend, MethodClass::Images);
        }
        Ok(reply.into())
    }

    /// Learns from a `CreateContainer`, before it is sent, its pod's `config.seen`, and that the pod's image
    /// calls are over.
    pub(super) fn end_image_starts(&self, request: &[u8]) -> Result<(), Error> {
        let uid = wire::peek_str(request, &images::SANDBOX_UID)?;
        let seen = images::annotations_of_sandbox(request).config_seen;
        self.node.router.record_config_seen(uid, seen);
        self.node.router.image_starts.end_all(seen);
        Ok(())
    }
}

impl Node {
    /// Returns where an `ImageStatus` goes.
    fn route_of_status(&self, request: &ImageRequest<'_>) -> Result<ImageRoute, Error> {
        let known = BackendFacts {
            is_down: &|id| !self.backend(id).is_ok_and(|backend| backend.is_up()),
            sandboxes_using: &|id, reference| {
                self.backend(id).map(|backend| sandboxes_using(&backend, reference)).unwrap_or_default()
            },
            is_young_process: self.watching_for() < YOUNG_FOR,
        };
        self.router.route_of_status(request, &known)
    }

    /// Returns the sandbox that a pull is for: the newest of its uid, a ready one first. Credentials go
    /// nowhere because of a mere claim: the sandbox was created through crimux, or all of the pod are at one
    /// backend, in a live list that no other contests. The claims that are not followed are counted.
    fn sandbox_of_pull(&self, uid: &str) -> Option<OwnedSandbox> {
        let sandboxes = self.router.owners.sandboxes(|pod| !uid.is_empty() && &*pod.uid == uid);
        let rank = |owned: &&OwnedSandbox| (owned.record.ready, owned.record.created_at);
        let backend = |id: InstanceId| self.backend(id).ok();
        let is_ours = |owned: &&OwnedSandbox| {
            backend(owned.backend).is_some_and(|backend| backend.state.has_created(&owned.id))
        };
        let only = || {
            let first = sandboxes.first()?;
            let is_alone = sandboxes.iter().all(|other| other.backend == first.backend);
            let is_live = backend(first.backend).is_some_and(|backend| backend.state.was_listed_live());
            let backends = self.backends();
            let is_foreign =
                |owned: &OwnedSandbox| backends.iter().any(|backend| backend.state.is_foreign(&owned.id));
            let is_contested = sandboxes.iter().any(is_foreign);
            (is_alone && is_live && !is_contested).then(|| sandboxes.iter().max_by_key(rank))?
        };
        let chosen = sandboxes.iter().filter(is_ours).max_by_key(rank).or_else(only);
        let claimants: HashSet<_> = sandboxes.iter().map(|sandbox| sandbox.backend).collect();
        let ignored =
            claimants.iter().filter(|id| chosen.is_none_or(|chosen| chosen.backend != **id)).count();
        self.metrics.count_foreign_pods(ignored);
        chosen.cloned()
    }
}

/// Returns the sandboxes that have, or had, a container of this reference, as last known.
fn sandboxes_using(backend: &Backend, reference: &str) -> HashSet<String> {
    let full = normalise(reference);
    let list = backend.state.list(ListKind::Images, &Filter::default()).unwrap_or_default();
    let ids: HashSet<String> = images::matching_images(&list, reference)
        .into_iter()
        .map(|image| bare_id(&image.id).to_owned())
        .collect();
    let mut sandboxes = HashSet::new();
    backend.state.for_each_container(|facts| {
        if uses(&facts, &full, &ids) {
            sandboxes.insert(facts.sandbox_id.to_owned());
        }
    });
    sandboxes
}

/// Returns whether a container was made of the image with this full name or of one of these IDs.
fn uses(facts: &ContainerRef<'_>, full: &str, ids: &HashSet<String>) -> bool {
    let specified = wire::peek_str(facts.item, &field_path!(Container.image.user_specified_image));
    let is_named = |name: &str| !name.is_empty() && normalise(name) == full;
    specified.is_ok_and(is_named)
        || [facts.image, facts.image_ref, facts.image_id]
            .iter()
            .any(|name| ids.contains(bare_id(name)) || is_named(name))
}

/// Returns the handler that a pull is given, so that the image is unpacked for it (containerd 2.3 and newer,
/// `snapshotterFromPodSandboxConfig`): the sandbox's own, if the backend announces it and the operator lets
/// us.
fn handler_to_fill_in(backend: &Backend, pod: &SandboxRecord) -> Option<String> {
    if pod.backend_handler.is_empty() || backend.config().image_handler != ImageHandler::Auto {
        return None;
    }
    let status = backend.state.reply(Rpc::Status)?;
    let announced = wire::items(&status, field!(StatusResponse.runtime_handlers))
        .map_while(Result::ok)
        .any(|handler| wire::peek_str(handler, &[field!(RuntimeHandler.name)]) == Ok(&*pod.backend_handler));
    announced.then(|| pod.backend_handler.to_string())
}

/// Returns the framed request with the handler that the store knows.
fn with_handler(message: &Message, store: &StoreTarget) -> Bytes {
    match &store.backend_handler {
        Some(handler) => Message::new(&wire::append_str(message.encoded(), &HANDLER, handler)).framed(),
        None => message.framed(),
    }
}
