//! `RemoveImage`: removes an image from every store that lists it, under the ID that each store lists.
//!
//! kubelet's image collector names images by the IDs of the merged list. Each store is listed first, unless
//! the call names an ID and the store was listed within the last minute: then one list of each store serves a
//! whole collection, and a store that does not answer costs its deadline once. The image is removed from all
//! stores that can be reached; if a store that lists it cannot be reached, the call fails, and kubelet
//! retries.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tonic::Code;

use crate::backend::{Backend, BufferedReply, MethodClass};
use crate::codec::Message;
use crate::error::Error;
use crate::method::{List, Method};
use crate::proxy::failed_commands::Failure;
use crate::proxy::reply::Outcome;
use crate::proxy::{Call, Node, refresh};
use crate::router::images::{self, REFERENCE, StoredImage};
use crate::state::image_name::{MatchKind, is_whole_id};
use crate::state::{Filter, ListKind};
use crate::wire;

/// How long a list of images is trusted for IDs, if no image was pulled through crimux since. kubelet lists
/// all images right before it removes some by the IDs of that list.
const FRESH: Duration = Duration::from_secs(60);

/// One store, and how recent its list of images is.
struct Store {
    backend: Arc<Backend>,
    /// Whether its list is recent enough for this call.
    live: bool,
    /// Whether it was ever listed.
    known: bool,
}

/// A request to remove an image.
struct RemoveRequest<'a> {
    method: &'static Method,
    message: &'a Message,
    /// The name or ID in it.
    reference: &'a str,
}

impl Call {
    pub(super) async fn remove_image(
        &mut self,
        method: &'static Method,
        message: Message,
    ) -> Result<Outcome, Error> {
        let reference = wire::peek_str(message.encoded(), &REFERENCE)?.to_owned();
        let backends = self.backends();
        if let [only] = &backends[..] {
            self.recorder.set_backend(only);
            let reply = only
                .fetch_within(only.config().timeouts.remove_image, method, self.headers(), message.framed())
                .await;
            log_failure(&self.node, only, method, &message, &reply);
            let reply = reply?;
            if is_gone(&reply) {
                forget_images(&self.node, only, &matches_in(only, &reference));
                only.state.wait_for_journal().await;
            }
            return Ok(reply.into());
        }
        self.recorder.set_all_backends(&self.node);
        let age = if is_whole_id(&reference) { FRESH } else { Duration::ZERO };
        let mut stores = self.list_stores(&backends, age).await;
        let mut found = self.find_images(&stores, &reference)?;
        // A recent list may only confirm that a store has exactly this ID.
        if !age.is_zero() && !found.iter().flatten().any(|image| image.match_kind == MatchKind::Id) {
            stores = self.list_stores(&backends, Duration::ZERO).await;
            found = self.find_images(&stores, &reference)?;
        }
        let is_other_spelling =
            found.iter().flatten().any(|image| image.match_kind == MatchKind::OtherSpelling);
        let is_unlisted = found.iter().all(Vec::is_empty);
        let unreachable = match unreachable(&stores, is_unlisted || is_other_spelling, &reference) {
            // The store may have got the image with exactly this ID since it was listed.
            Some(error) if is_other_spelling => return Err(error),
            unreachable => unreachable,
        };
        let having = std::iter::zip(&stores, &found).filter(|(_, images)| !images.is_empty());
        let request = RemoveRequest { method, message: &message, reference: &reference };
        let removed = having.map(|(store, images)| self.remove_from(&store.backend, &request, images));
        let (mut refused, mut lost) = (None, None);
        for outcome in join_all(removed).await {
            match outcome {
                Ok(reply) => refused = refused.or(reply),
                Err(error) => lost = lost.or(Some(error)),
            }
        }
        match (refused, lost) {
            (Some(reply), _) => Ok(reply.into()),
            (None, Some(error)) => Err(error),
            (None, None) => unreachable.map_or_else(|| Ok(Outcome::message(&[])), Err),
        }
    }

    /// Lists the images of these backends, unless a list is younger than `age`.
    async fn list_stores(&self, backends: &[Arc<Backend>], age: Duration) -> Vec<Store> {
        join_all(backends.iter().map(|backend| async move {
            let live = self.list_store(backend, age).await;
            let known = backend.state.list(ListKind::Images, &Filter::default()).is_some();
            Store { backend: Arc::clone(backend), live, known }
        }))
        .await
    }

    /// Returns whether the list of a store is younger than `age`, or was made now.
    async fn list_store(&self, backend: &Arc<Backend>, age: Duration) -> bool {
        if !backend.is_up() || backend.health.is_late(MethodClass::Images) {
            return false;
        }
        if self.node.image_lists.is_younger(backend.id, age) {
            return true;
        }
        let method = List::Images.unary();
        let wait = self.wait_within(backend.deadline(method));
        let listing = refresh::list_all(&self.node, backend, List::Images);
        if let Ok(listed) = tokio::time::timeout(wait.time, listing).await {
            return listed.is_ok();
        }
        if wait.is_backends_own {
            refresh::mark_late_and_refresh(&self.node, backend, MethodClass::Images, method);
        }
        false
    }

    /// Returns the images that match the reference in each store; over all stores, only those of the best
    /// kind of match.
    fn find_images(&self, stores: &[Store], reference: &str) -> Result<Vec<Vec<StoredImage>>, Error> {
        let mut found: Vec<_> = stores.iter().map(|store| matches_in(&store.backend, reference)).collect();
        let rule = images::keep_best_match(&mut found, reference)?;
        tracing::debug!(image = reference, ?rule, scope = ?self.scope, "removal routed");
        Ok(found)
    }

    /// Removes images from one store. Returns the backend's reply if its code is neither OK nor `NotFound`.
    async fn remove_from(
        &self,
        backend: &Arc<Backend>,
        request: &RemoveRequest<'_>,
        images: &[StoredImage],
    ) -> Result<Option<BufferedReply>, Error> {
        let RemoveRequest { method, message, reference } = request;
        if backend.health.is_late(MethodClass::Images) {
            return Err(backend.late_error(backend.deadline(List::Images.unary())));
        }
        let by_name = images.iter().any(|image| image.match_kind == MatchKind::Name);
        // By its name an image is removed once, as the client wrote it; by ID as the store lists it.
        let names = if by_name { vec![*reference] } else { images.iter().map(|image| &*image.id).collect() };
        for name in names {
            let framed = if name == *reference {
                message.framed()
            } else {
                Message::new(&wire::append_str(message.encoded(), &REFERENCE, name)).framed()
            };
            let limit = backend.config().timeouts.remove_image;
            let reply = backend.fetch_within(limit, method, self.headers(), framed).await;
            log_failure(&self.node, backend, method, message, &reply);
            let reply = reply?;
            if !is_gone(&reply) {
                return Ok(Some(reply));
            }
        }
        if by_name {
            // The runtime decides whether removing a tag removes the image.
            self.node.image_lists.invalidate(backend.id);
            refresh::start_refresh(&self.node, backend, MethodClass::Images);
        }
        forget_images(&self.node, backend, images);
        backend.state.wait_for_journal().await;
        Ok(None)
    }
}

/// Logs why an image was not removed; `NotFound` is no failure.
fn log_failure(
    node: &Node,
    backend: &Backend,
    method: &'static Method,
    message: &Message,
    reply: &Result<BufferedReply, Error>,
) {
    let is_gone = reply.as_ref().is_ok_and(is_gone);
    let failure = if is_gone { None } else { Failure::in_reply(reply) };
    node.log_failed_command(backend, method, message.encoded(), failure);
}

/// Returns the images of one store's last-known list that match the reference.
fn matches_in(backend: &Backend, reference: &str) -> Vec<StoredImage> {
    let list = backend.state.list(ListKind::Images, &Filter::default());
    list.map(|list| images::matching_images(&list, reference)).unwrap_or_default()
}

/// Returns an error if the image may remain somewhere: in stores that were never listed, or, if no store
/// lists exactly this image, in those that could not be listed now.
fn unreachable(stores: &[Store], is_not_exact: bool, reference: &str) -> Option<Error> {
    let unasked = stores.iter().filter(|store| !store.known || (is_not_exact && !store.live));
    let backends: Vec<_> = unasked.map(|store| Arc::clone(&store.backend.name)).collect();
    (!backends.is_empty()).then(|| Error::LookupIncomplete {
        kind: "image",
        id: reference.to_owned(),
        backends,
    })
}

fn is_gone(reply: &BufferedReply) -> bool {
    matches!(reply.code, Code::Ok | Code::NotFound)
}

/// Removes images from the last-known list at once; the next list shows what is left.
fn forget_images(node: &Arc<Node>, backend: &Arc<Backend>, images: &[StoredImage]) {
    for image in images {
        backend.state.record_image_removed(&image.id);
    }
    tracing::debug!(backend = %backend.name, count = images.len(), joining = node.is_outside_lists(backend), "removed");
}
