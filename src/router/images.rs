//! Which image store a call means, decided from what the call says and what is known of pods.
//!
//! kubelet's image calls name no pod, but most carry its annotations, and `kubernetes.io/config.seen` among
//! them is practically unique (`config/config.go recordFirstSeenTime`): it ties the call to a sandbox and so to
//! a backend. A kubelet that restarted gives every pod a new one, which is unknown until a pull or a container
//! that also carries the pod's uid teaches it; until then the other annotations must do, and if they fit pods
//! of several backends, all of those are meant. Nothing here asks anyone, and nothing is guessed where a wrong
//! answer would let a container run as root.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::cri::{ITEM_ID, LIST_ITEMS, field, field_path};
use crate::error::Error;
use crate::router::{Annotations, Pod, Router};
use crate::snapshot::image_name::{self, Named, bare_id};
use crate::wire::{self, WireError};

pub use uses::RecentUses;

mod uses;

/// `ImageSpec.runtime_handler`, as a path in the requests of image calls.
pub const HANDLER: [u32; 2] = field_path!(ImageStatusRequest.image.runtime_handler);
/// `ImageSpec.image`, as a path in the requests of image calls.
pub const REFERENCE: [u32; 2] = field_path!(ImageStatusRequest.image.image);
const _: () = assert!(
    field!(PullImageRequest.image) == REFERENCE[0] && field!(RemoveImageRequest.image) == REFERENCE[0],
    "all image calls hold their image under one number"
);

/// The uid of the pod in a `PullImageRequest` or `CreateContainerRequest`.
pub const SANDBOX_UID: [u32; 3] = field_path!(PullImageRequest.sandbox_config.metadata.uid);
const _: () = assert!(
    field!(CreateContainerRequest.sandbox_config) == SANDBOX_UID[0],
    "both calls hold their sandbox_config under one number"
);

/// What an image call says of the store that it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImageRequest<'a> {
    /// The image: a tag, a digest, an ID or the beginning of one.
    pub reference: &'a str,
    /// `image.runtime_handler`: kubelet's gate `RuntimeClassInImageCriApi`.
    pub handler: &'a str,
    /// `sandbox_config.metadata.uid`, which only pulls carry.
    pub uid: &'a str,
    /// The pod's annotations.
    pub pod: Annotations<'a>,
}

impl<'a> ImageRequest<'a> {
    /// Reads an encoded `PullImageRequest` or `ImageStatusRequest`.
    ///
    /// # Errors
    /// Whatever makes it unreadable.
    pub fn read(request: &'a [u8]) -> Result<Self, WireError> {
        let of_image = Annotations::read(entries(
            request,
            field!(ImageStatusRequest.image),
            field!(ImageSpec.annotations),
        ));
        let pod = if of_image.config_seen.is_empty() { created_pod(request) } else { of_image };
        Ok(Self {
            reference: wire::peek_str(request, &REFERENCE)?,
            handler: wire::peek_str(request, &HANDLER)?,
            uid: wire::peek_str(request, &SANDBOX_UID)?,
            pod,
        })
    }
}

/// Reads the pod's annotations out of the `sandbox_config` of a `PullImageRequest` or `CreateContainerRequest`.
pub fn created_pod(request: &[u8]) -> Annotations<'_> {
    Annotations::read(entries(
        request,
        field!(PullImageRequest.sandbox_config),
        field!(PodSandboxConfig.annotations),
    ))
}

/// Iterates over the map `number` of the message `holder`; what cannot be read is left out.
fn entries(request: &[u8], holder: u32, number: u32) -> impl Iterator<Item = (&str, &str)> {
    let holders = fields(request, holder);
    holders.flat_map(move |message| fields(message, number)).filter_map(|entry| wire::map_entry(entry).ok())
}

/// Iterates over the payloads of `number`, and ends at what cannot be read.
fn fields(message: &[u8], number: u32) -> impl Iterator<Item = &[u8]> {
    wire::items(message, number).map_while(Result::ok)
}

/// A store, and the handler that it knows the asked one by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreTarget {
    /// The backend.
    pub backend: Arc<str>,
    /// What is put in the place of `image.runtime_handler`; `None` leaves it as it is.
    pub handler: Option<String>,
}

impl StoreTarget {
    /// A store, with the call as it is.
    pub fn plain(backend: Arc<str>) -> Self {
        Self { backend, handler: None }
    }
}

/// Where an `ImageStatus` goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatusRoute {
    /// The store of the pod.
    One(StoreTarget),
    /// The pod is in one of these: the image is there only if all of them have it.
    Every(Vec<StoreTarget>),
    /// The call says nothing of a pod.
    Unspecified,
}

impl StatusRoute {
    fn of(mut places: Vec<StoreTarget>) -> Self {
        if places.len() == 1 { Self::One(places.swap_remove(0)) } else { Self::Every(places) }
    }
}

impl Router {
    /// Decides where an `ImageStatus` goes.
    ///
    /// # Errors
    /// [`Error::UnknownHandler`].
    pub fn way_of_status(&self, asked: &ImageRequest<'_>) -> Result<StatusRoute, Error> {
        let handlers = self.handlers();
        let seen = asked.pod.config_seen;
        let known = self.stores_of(|pod| !seen.is_empty() && &*pod.config_seen == seen);
        if !asked.handler.is_empty() {
            let targets = handlers.targets_of(asked.handler)?;
            let places = targets.iter().map(|(backend, target)| StoreTarget {
                backend: Arc::clone(backend),
                handler: Some(target.handler.clone()).filter(|handler| handler != asked.handler),
            });
            let mut places: Vec<_> = places.collect();
            if places.iter().any(|place| known.contains(&place.backend)) {
                places.retain(|place| known.contains(&place.backend));
            }
            return Ok(StatusRoute::of(places));
        }
        if seen.is_empty() {
            return Ok(StatusRoute::Unspecified);
        }
        // A pod of kubelet has a config.seen of its own, so a sandbox without one is never meant.
        let alike = |pod: &Pod| !pod.config_seen.is_empty() && pod.annotations == asked.pod.digest;
        let meant = if known.is_empty() { self.stores_of(alike) } else { known };
        if meant.is_empty() {
            return Ok(StatusRoute::One(StoreTarget::plain(Arc::clone(handlers.default_backend()))));
        }
        Ok(StatusRoute::of(meant.into_iter().map(StoreTarget::plain).collect()))
    }

    /// Returns the sandbox that a pull is for, with its owner.
    pub fn pod_of_pull(&self, asked: &ImageRequest<'_>) -> Option<(Arc<str>, Arc<Pod>)> {
        self.owners.newest(|pod| !asked.uid.is_empty() && &*pod.uid == asked.uid)
    }

    /// Returns the owners of the sandboxes that `matches` picks. Image calls come while the pod's sandbox is
    /// ready, so others count only if none is.
    fn stores_of(&self, matches: impl Fn(&Pod) -> bool) -> BTreeSet<Arc<str>> {
        let pods = self.owners.pods(matches);
        let ready = pods.iter().any(|(_, pod)| pod.ready);
        pods.into_iter().filter(|(_, pod)| pod.ready == ready).map(|(owner, _)| owner).collect()
    }
}

/// As whom kubelet runs a container of an image whose pod does not say (`helpers.go getImageUser`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum User {
    /// By number; 0 also where the image says nothing.
    Uid(u64),
    /// By name.
    Name(String),
}

/// Returns the user of the image in an encoded `ImageStatusResponse`; `None` if it says that there is no image.
pub fn user(reply: &[u8]) -> Option<User> {
    if !wire::has_path(reply, &[field!(ImageStatusResponse.image)]).unwrap_or(false) {
        return None;
    }
    let name = wire::peek_str(reply, &field_path!(ImageStatusResponse.image.username)).unwrap_or_default();
    let uid = wire::peek_varint(reply, &field_path!(ImageStatusResponse.image.uid.value)).unwrap_or_default();
    let numbered = wire::has_path(reply, &field_path!(ImageStatusResponse.image.uid)).unwrap_or(false)
        || name.is_empty();
    Some(if numbered { User::Uid(uid) } else { User::Name(name.to_owned()) })
}

/// What a store says of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreAnswer {
    /// It has it, and that is its user.
    Has(User),
    /// It does not have it.
    Lacks,
    /// It could not be asked, or answered with an error.
    Nothing,
}

/// What a call that says nothing of a pod is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The answer at this place.
    Answer(usize),
    /// The image is nowhere.
    Absent,
    /// Any answer might be another store's.
    Undecided(&'static str),
}

/// Decides among the answers of stores. `awaited` tells on which of them pods are between being shown the image
/// and having a container; `latest` is where the image was used last.
///
/// An absent image makes kubelet run the container as root. So that is only said where every store denies it,
/// and never to a pod that is awaited: its image may be back by the time its container is created.
pub fn judge(answers: &[StoreAnswer], awaited: impl Fn(usize) -> bool, latest: Option<usize>) -> Verdict {
    let has = |place: usize| matches!(answers[place], StoreAnswer::Has(_));
    let all_equal = |places: &[usize]| places.windows(2).all(|pair| answers[pair[0]] == answers[pair[1]]);
    let holders: Vec<_> = (0..answers.len()).filter(|place| has(*place)).collect();
    let awaited: Vec<_> = (0..answers.len()).filter(|place| awaited(*place)).collect();
    match (awaited.first(), holders.first()) {
        (Some(&place), _) if awaited.iter().all(|place| has(*place)) && all_equal(&awaited) => {
            Verdict::Answer(place)
        }
        (Some(_), _) => Verdict::Undecided("a backend that it is being started on shows none or another one"),
        (None, None) if answers.contains(&StoreAnswer::Nothing) => {
            Verdict::Undecided("no backend that answered has it, and not every backend answered")
        }
        (None, None) => Verdict::Absent,
        (None, Some(&place)) if all_equal(&holders) => Verdict::Answer(place),
        (None, Some(_)) => match latest.filter(|place| has(*place)) {
            Some(place) => Verdict::Answer(place),
            None => Verdict::Undecided("backends have different images by that name, with different users"),
        },
    }
}

/// Tells whether encoded `ImageStatusResponse`s all show one image, and returns the place of the one whose form
/// of the ID every runtime understands: containerd takes plain digits, CRI-O takes `sha256:` for a name.
pub fn same_image(replies: &[&[u8]]) -> Option<usize> {
    let id = |reply| wire::peek_str(reply, &field_path!(ImageStatusResponse.image.id)).unwrap_or_default();
    let first = bare_id(id(replies.first()?));
    if !replies.iter().all(|reply| bare_id(id(reply)) == first) {
        return None;
    }
    Some(replies.iter().position(|reply| id(reply) == first).unwrap_or(0))
}

/// An image that a reference names, in one store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// Its ID, as that store lists it.
    pub id: String,
    /// Its tags and digests.
    pub names: Vec<String>,
    /// How the reference names it.
    pub named: Named,
}

/// Returns the images of an encoded `ListImagesResponse` that `reference` names, the surest way only.
pub fn held(list: &[u8], reference: &str) -> Vec<StoredImage> {
    let images = fields(list, LIST_ITEMS).filter_map(|image| {
        Some(StoredImage {
            named: image_name::named(image, reference)?,
            id: wire::peek_str(image, &[ITEM_ID]).ok()?.to_owned(),
            names: image_name::names(image).map(str::to_owned).collect(),
        })
    });
    let mut images: Vec<_> = images.collect();
    if let Some(surest) = images.iter().map(|image| image.named).min() {
        images.retain(|image| image.named == surest);
    }
    images
}

/// Keeps of what several stores hold the surest way only.
///
/// # Errors
/// [`Error::Ambiguous`] if the beginning of an ID fits several.
pub fn settle(stores: &mut [Vec<StoredImage>], reference: &str) -> Result<(), Error> {
    let Some(surest) = stores.iter().flatten().map(|image| image.named).min() else { return Ok(()) };
    for images in &mut *stores {
        images.retain(|image| image.named == surest);
    }
    let ids: BTreeSet<_> = stores.iter().flatten().map(|image| bare_id(&image.id)).collect();
    if surest == Named::IdPrefix && ids.len() > 1 {
        return Err(Error::Ambiguous { kind: "image", prefix: reference.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
