//! `RemoveImage`: from every store that lists the image, in the words of each.
//!
//! kubelet's image collector names an image by the ID that the merged list shows. Each store is asked to list
//! its images first, because CRI-O takes containerd's `sha256:…` for a name and would not find what it has. What
//! can be reached is removed; an owner that cannot makes the call fail, and kubelet comes again.

use std::sync::Arc;

use futures_util::future::join_all;
use http::HeaderMap;
use tonic::Code;

use crate::backend::{Backend, Class, Collected};
use crate::codec::Message;
use crate::error::Error;
use crate::method::{List, Method};
use crate::proxy::reply::Outcome;
use crate::proxy::{Call, ProxyState, fan_out};
use crate::router::images::{self, REFERENCE, StoredImage};
use crate::snapshot::image_name::Named;
use crate::snapshot::{Filter, ListKind};
use crate::wire;

/// What a store lists of the image.
struct Store {
    backend: Arc<Backend>,
    /// Whether it was asked just now.
    live: bool,
    /// Whether anything is known of its images.
    known: bool,
}

impl Call {
    pub(super) async fn remove_image(
        &mut self,
        method: &'static Method,
        message: Message,
    ) -> Result<Outcome, Error> {
        let reference = wire::peek_str(message.encoded(), &REFERENCE)?.to_owned();
        if let [only] = &self.backends()[..] {
            self.watch.at(only);
            let reply = only
                .fetch_within(
                    only.config().timeouts.remove_image,
                    method,
                    self.headers.clone(),
                    message.framed(),
                )
                .await?;
            if is_gone(&reply) {
                forget(&self.node, only, &reference, &listed(only, &reference));
                only.last.saved().await;
            }
            return Ok(reply.into());
        }
        self.watch.at_all(&self.node);
        let backends = self.backends();
        let stores = join_all(backends.iter().map(|backend| self.look(backend))).await;
        let mut held: Vec<_> = stores.iter().map(|store| listed(&store.backend, &reference)).collect();
        images::settle(&mut held, &reference)?;
        let nobody = held.iter().all(Vec::is_empty);
        let unasked = unasked(&stores, nobody, &reference);
        let removed =
            std::iter::zip(&stores, &held).filter(|(_, images)| !images.is_empty()).map(|(store, images)| {
                let headers = self.headers.clone();
                remove(&self.node, &store.backend, method, headers, &message, &reference, images)
            });
        let (mut said, mut lost) = (None, None);
        for outcome in join_all(removed).await {
            match outcome {
                Ok(reply) => said = said.or(reply),
                Err(error) => lost = lost.or(Some(error)),
            }
        }
        match (said, lost) {
            (Some(reply), _) => Ok(reply.into()),
            (None, Some(error)) => Err(error),
            (None, None) => unasked.map_or_else(|| Ok(Outcome::message(&[])), Err),
        }
    }

    /// Asks a store for all its images; they become what is last known of it.
    async fn look(&self, backend: &Arc<Backend>) -> Store {
        let wait = self.at_most(backend.config().timeouts.list);
        // One that is late is not waited for again for each image; its refresh is under way.
        let asked = if backend.health.is_late(Class::Images) {
            None
        } else {
            tokio::time::timeout(wait, fan_out::list_all(&self.node, backend, List::Images)).await.ok()
        };
        if asked.is_none() && backend.is_up() {
            backend.health.mark_late(Class::Images);
            fan_out::refresh(&self.node, backend, Class::Images);
        }
        let known = backend.last.list(ListKind::Images, &Filter::default()).is_some();
        Store { backend: Arc::clone(backend), live: matches!(asked, Some(Ok(()))), known }
    }
}

/// Returns what is last known of the image in one store.
fn listed(backend: &Backend, reference: &str) -> Vec<StoredImage> {
    let list = backend.last.list(ListKind::Images, &Filter::default());
    list.map(|list| images::held(&list, reference)).unwrap_or_default()
}

/// Returns why it cannot be said that the image is gone: stores of which nothing is known, and, if nobody lists
/// it, those that could not be asked.
fn unasked(stores: &[Store], nobody: bool, reference: &str) -> Option<Error> {
    let unasked = stores.iter().filter(|store| !store.known || (nobody && !store.live));
    let backends: Vec<_> = unasked.map(|store| Arc::clone(&store.backend.name)).collect();
    (!backends.is_empty()).then(|| Error::Unasked { kind: "image", id: reference.to_owned(), backends })
}

/// Removes images from one store; returns its answer if that is an error of its own.
async fn remove(
    node: &Arc<ProxyState>,
    backend: &Arc<Backend>,
    method: &'static Method,
    headers: HeaderMap,
    message: &Message,
    reference: &str,
    images: &[StoredImage],
) -> Result<Option<Collected>, Error> {
    let by_name = images.iter().any(|image| image.named == Named::Name);
    // By its name an image is removed once, in the client's words; by ID in those of the store.
    let words = if by_name { vec![reference] } else { images.iter().map(|image| &*image.id).collect() };
    for words in words {
        let framed = if words == reference {
            message.framed()
        } else {
            Message::new(&wire::append_str(message.encoded(), &REFERENCE, words)).framed()
        };
        let limit = backend.config().timeouts.remove_image;
        let reply = backend.fetch_within(limit, method, headers.clone(), framed).await?;
        if !is_gone(&reply) {
            return Ok(Some(reply));
        }
    }
    forget(node, backend, reference, images);
    backend.last.saved().await;
    Ok(None)
}

fn is_gone(reply: &Collected) -> bool {
    matches!(reply.code, Code::Ok | Code::NotFound)
}

/// Forgets removed images at once; the next list tells what is left of them.
fn forget(node: &Arc<ProxyState>, backend: &Arc<Backend>, reference: &str, images: &[StoredImage]) {
    let uses = &node.router.image_uses;
    uses.forget(reference, &backend.name);
    for image in images {
        backend.last.image_removed(&image.id);
        for name in image.names.iter().chain([&image.id]) {
            uses.forget(name, &backend.name);
        }
    }
    fan_out::refresh(node, backend, Class::Images);
}
