//! Image calls, each to the store that it means.
//!
//! Images live in each backend's own store and kubelet's calls rarely say which they mean; the router decides
//! that from what is known of pods. A pull goes to one backend and never to two of them: it carries
//! credentials. A status is never "absent" on behalf of a backend that could not be asked, because kubelet
//! would pull again, refuse to start or, worst, run the container as root. No deadline of ours cuts a pull.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tonic::Code;

use crate::backend::{Backend, Class, Collected};
use crate::codec::Message;
use crate::config::ImageHandler;
use crate::cri::{field, field_path};
use crate::error::Error;
use crate::method::{ImageCall, Method, Rpc};
use crate::proxy::reply::Outcome;
use crate::proxy::{Call, fan_out};
use crate::router::images::{self, HANDLER, ImageRequest, StoreTarget};
use crate::router::{Choice, Pod};
use crate::wire;

mod remove;
mod status;

impl Call {
    /// Sends an image call to the store that it means.
    pub(super) async fn image(
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
        let asked = ImageRequest::read(message.encoded())?;
        self.node.router.owners.note_seen(asked.uid, asked.pod.config_seen);
        let place = self.store_of_pull(&asked)?;
        let backend = self.node.backend(&place.backend)?;
        self.watch.at(&backend);
        let headers = std::mem::take(&mut self.headers);
        let reply = backend.fetch(method, headers, with_handler(&message, &place)).await?;
        if reply.code == Code::Ok {
            if self.scope.is_none() {
                let (uses, pod) = (&self.node.router.image_uses, asked.pod.config_seen);
                uses.pulled(asked.reference, &backend.name, pod, Instant::now());
            }
            // What was pulled just before an outage must not be missing from the last-known list.
            fan_out::refresh(&self.node, &backend, Class::Images);
        }
        Ok(reply.into())
    }

    fn store_of_pull(&self, asked: &ImageRequest<'_>) -> Result<StoreTarget, Error> {
        if let Some(scope) = &self.scope {
            return Ok(StoreTarget::plain(Arc::clone(scope)));
        }
        let sandbox = self.node.router.pod_of_pull(asked);
        if !asked.handler.is_empty() {
            let handlers = self.node.router.handlers();
            // A pod that runs is pulled for where it runs, whatever a new one of its handler would get.
            let own = sandbox.and_then(|(owner, _)| {
                let targets = handlers.targets_of(asked.handler).ok()?;
                let (backend, target) = targets.iter().find(|(backend, _)| *backend == owner)?;
                Some(Choice { backend: Arc::clone(backend), handler: target.handler.clone() })
            });
            let Choice { backend, handler } =
                own.map_or_else(|| self.node.choose(asked.handler, asked.uid), Ok)?;
            return Ok(StoreTarget {
                backend,
                handler: Some(handler).filter(|handler| handler != asked.handler),
            });
        }
        let Some((owner, pod)) = sandbox else { return Ok(StoreTarget::plain(self.node.default_in(None))) };
        let backend = self.node.backend(&owner)?;
        Ok(StoreTarget { backend: owner, handler: handler_to_fill_in(&backend, &pod) })
    }

    /// Notes what the creation of a container tells of its pod, before it is sent.
    pub(super) fn note_creation(&self, request: &[u8]) -> Result<(), Error> {
        let uid = wire::peek_str(request, &images::SANDBOX_UID)?;
        self.node.router.owners.note_seen(uid, images::created_pod(request).config_seen);
        Ok(())
    }

    /// Notes how the creation of a container went: its image calls are over, and if its image is missing after
    /// all, what was remembered of that image is wrong.
    pub(super) fn note_created(
        &self,
        backend: &Backend,
        request: &[u8],
        reply: &Collected,
    ) -> Result<(), Error> {
        let uses = &self.node.router.image_uses;
        uses.went_on(images::created_pod(request).config_seen);
        if reply.code == Code::Ok {
            return Ok(());
        }
        let said = reply.trailers.get("grpc-message").and_then(|text| text.to_str().ok()).unwrap_or_default();
        let image = wire::peek_str(request, &field_path!(CreateContainerRequest.config.image.image))?;
        let path = field_path!(CreateContainerRequest.config.image.user_specified_image);
        let named = wire::peek_str(request, &path)?;
        for reference in [image, named] {
            if !reference.is_empty() && (reply.code == Code::NotFound || said.contains(reference)) {
                uses.forget(image, &backend.name);
                uses.forget(named, &backend.name);
            }
        }
        Ok(())
    }
}

/// Returns the handler that a pull is given, so that the image is unpacked for it (containerd 2.3 and newer,
/// `snapshotterFromPodSandboxConfig`): the sandbox's own, if the backend announces it and the operator lets us.
fn handler_to_fill_in(backend: &Backend, pod: &Pod) -> Option<String> {
    if pod.handler.is_empty() || backend.config().image_handler != ImageHandler::Auto {
        return None;
    }
    let status = backend.last.reply(Rpc::Status)?;
    let announced = wire::items(&status, field!(StatusResponse.runtime_handlers))
        .map_while(Result::ok)
        .any(|handler| wire::peek_str(handler, &[field!(RuntimeHandler.name)]) == Ok(&*pod.handler));
    announced.then(|| pod.handler.to_string())
}

/// Returns the framed request, with the handler that the place knows.
fn with_handler(message: &Message, place: &StoreTarget) -> Bytes {
    match &place.handler {
        Some(handler) => Message::new(&wire::append_str(message.encoded(), &HANDLER, handler)).framed(),
        None => message.framed(),
    }
}
