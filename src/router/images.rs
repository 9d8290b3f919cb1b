//! Which image store a call goes to: rules in order, each with what the call carries and the reason.
//!
//! Every backend has its own image store, and most image calls do not name one. [`RULES`] documents the
//! policy, for operators too (`crimux images --explain`); the functions below carry it out. For each call the
//! first rule that applies decides. kubelet's `ImageStatus` and `PullImage` carry the pod's annotations,
//! among them `kubernetes.io/config.seen`, which is practically unique (`config/config.go
//! recordFirstSeenTime`) and ties the call to a sandbox and so to a backend. A kubelet that restarted gives
//! every pod a new one, which is unknown until a call carries it together with the pod's uid. Nothing here
//! asks a backend.

use std::collections::HashSet;
use std::time::Instant;

use crate::cri::{field, field_path};
use crate::error::Error;
use crate::router::{Annotations, Choice, OwnedSandbox, Router, SandboxRecord};
use crate::state::InstanceId;
use crate::wire::{self, WireError};

pub use answers::{StoreAnswer, Verdict, compare_answers, index_of_same_image, user_if_present};
pub use rules::{Combine, RULES, Rule, RuleRow};
pub use starts::{ContainerStarts, HandedStart};
pub use stored::{StoredImage, keep_best_match, matching_images};

mod answers;
mod rules;
mod starts;
mod stored;

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

/// The fields of an image call that decide its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImageRequest<'a> {
    /// The image: a tag, a digest, an ID or a prefix of one.
    pub reference: &'a str,
    /// `image.runtime_handler`: kubelet's gate `RuntimeClassInImageCriApi`.
    pub handler: &'a str,
    /// `sandbox_config.metadata.uid`, which only pulls carry.
    pub uid: &'a str,
    /// The pod's annotations.
    pub annotations: Annotations<'a>,
}

impl<'a> ImageRequest<'a> {
    /// Reads an encoded `PullImageRequest` or `ImageStatusRequest`.
    ///
    /// # Errors
    /// Returns an error if the deciding fields cannot be read; annotations that cannot be read are left out.
    pub fn read(request: &'a [u8]) -> Result<Self, WireError> {
        let (image, entries_of_image) = (field!(ImageStatusRequest.image), field!(ImageSpec.annotations));
        let of_image = Annotations::read(entries(request, image, entries_of_image));
        let annotations =
            if of_image.config_seen.is_empty() { annotations_of_sandbox(request) } else { of_image };
        Ok(Self {
            reference: wire::peek_str(request, &REFERENCE)?,
            handler: wire::peek_str(request, &HANDLER)?,
            uid: wire::peek_str(request, &SANDBOX_UID)?,
            annotations,
        })
    }
}

/// Returns the pod's annotations in the `sandbox_config` of a `PullImageRequest` or `CreateContainerRequest`.
pub fn annotations_of_sandbox(request: &[u8]) -> Annotations<'_> {
    let (sandbox, annotations) =
        (field!(PullImageRequest.sandbox_config), field!(PodSandboxConfig.annotations));
    Annotations::read(entries(request, sandbox, annotations))
}

/// Iterates over the map `number` of the message `holder`; what cannot be read is left out.
fn entries(request: &[u8], holder: u32, number: u32) -> impl Iterator<Item = (&str, &str)> {
    let messages = wire::items(request, holder).map_while(Result::ok);
    let entries = messages.flat_map(move |message| wire::items(message, number).map_while(Result::ok));
    entries.filter_map(|entry| wire::map_entry(entry).ok())
}

/// An image store, and its backend's name for the call's handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreTarget {
    /// The backend.
    pub backend: InstanceId,
    /// Replaces `image.runtime_handler` in the call; `None` leaves that field as it is.
    pub backend_handler: Option<String>,
}

impl StoreTarget {
    /// The store of a backend, with the call unchanged.
    pub fn same_handler(backend: InstanceId) -> Self {
        Self { backend, backend_handler: None }
    }
}

/// Where an image call goes, and by which rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRoute {
    /// The rule that decided.
    pub rule: Rule,
    /// The stores to ask; at least one.
    pub stores: Vec<StoreTarget>,
}

impl ImageRoute {
    /// A route to one store, with the call unchanged.
    pub fn to(rule: Rule, backend: InstanceId) -> Self {
        Self { rule, stores: vec![StoreTarget::same_handler(backend)] }
    }

    fn to_all(rule: Rule, backends: Vec<InstanceId>) -> Self {
        Self { rule, stores: backends.into_iter().map(StoreTarget::same_handler).collect() }
    }
}

/// The facts about backends that rules need; each is asked only where a rule needs it.
#[allow(missing_debug_implementations, reason = "closures")]
pub struct BackendFacts<'a> {
    /// Whether nothing can be started on this backend, because it is down.
    pub is_down: &'a dyn Fn(InstanceId) -> bool,
    /// The IDs of the sandboxes of this backend that have, or had, a container of this reference.
    pub sandboxes_using: &'a dyn Fn(InstanceId, &str) -> HashSet<String>,
    /// Whether the process is so young that it may not have seen the annotated call of a container start that
    /// is under way.
    pub is_young_process: bool,
}

impl Router {
    /// Returns the stores that an `ImageStatus` goes to: by the first of [`RULES`] that applies. A call for a
    /// handler that is no longer configured goes by the pods alike, which still run with it.
    ///
    /// # Errors
    /// [`Error::UnknownHandler`] if the call names a handler that is not configured, and no known pod.
    pub fn route_of_status(
        &self,
        request: &ImageRequest<'_>,
        backends: &BackendFacts<'_>,
    ) -> Result<ImageRoute, Error> {
        if let Some(route) = self.route_by_config_seen(request) {
            return Ok(route);
        }
        let alike = self.pods_alike(request, backends);
        if !request.handler.is_empty() {
            return self.route_by_handler(request, alike);
        }
        if let Some((rule, pods)) = alike {
            return Ok(ImageRoute { rule, stores: self.stores_of("", &pods) });
        }
        if !request.annotations.config_seen.is_empty() {
            return Ok(ImageRoute::to(Rule::NoPod, self.handlers().default_backend()));
        }
        Ok(self.route_without_annotations(request.reference, backends))
    }

    /// A call with the `config.seen` of a known pod.
    fn route_by_config_seen(&self, request: &ImageRequest<'_>) -> Option<ImageRoute> {
        let seen = request.annotations.config_seen;
        if seen.is_empty() {
            return None;
        }
        let pods = self.ready_or_all_pods(|record| &*record.config_seen == seen);
        let route = || ImageRoute { rule: Rule::ConfigSeen, stores: self.stores_of(request.handler, &pods) };
        (!pods.is_empty()).then(route)
    }

    /// A call that names a handler: to all its targets, or those of them that have one of the pods alike. A
    /// handler that the configuration no longer has still leads to the pods alike, which run with it.
    fn route_by_handler(
        &self,
        request: &ImageRequest<'_>,
        alike: Option<(Rule, Vec<OwnedSandbox>)>,
    ) -> Result<ImageRoute, Error> {
        let handlers = self.handlers();
        let targets = match (handlers.targets_of(request.handler), &alike) {
            (Ok(targets), _) => targets,
            (Err(_), Some((rule, pods))) => {
                return Ok(ImageRoute { rule: *rule, stores: self.stores_of(request.handler, pods) });
            }
            (Err(error), None) => return Err(error),
        };
        let renamed = |name: &String| Some(name.clone()).filter(|name| name != request.handler);
        let mut stores: Vec<_> = targets
            .iter()
            .map(|(backend, target)| StoreTarget {
                backend: *backend,
                backend_handler: renamed(&target.backend_handler),
            })
            .collect();
        let pods = alike.map(|(_, pods)| pods).unwrap_or_default();
        let is_alike = |store: &StoreTarget| pods.iter().any(|pod| pod.backend == store.backend);
        if stores.iter().any(is_alike) {
            stores.retain(is_alike);
        }
        Ok(ImageRoute { rule: Rule::Handler, stores })
    }

    /// Returns the store that a `PullImage` goes to: one, because it carries credentials. `pod` is the
    /// sandbox that it is for, if credentials may follow that; `choose` chooses the backend of a new sandbox
    /// of this handler and uid.
    ///
    /// # Errors
    /// What `choose` returns.
    pub fn route_of_pull(
        &self,
        request: &ImageRequest<'_>,
        pod: Option<&OwnedSandbox>,
        choose: impl FnOnce(&str, &str) -> Result<Choice, Error>,
    ) -> Result<ImageRoute, Error> {
        if let Some(pod) = pod {
            let stores = self.stores_of(request.handler, std::slice::from_ref(pod));
            return Ok(ImageRoute { rule: Rule::PodUid, stores });
        }
        if request.handler.is_empty() {
            return Ok(ImageRoute::to(Rule::PullWithoutPod, self.handlers().default_backend()));
        }
        let Choice { backend, backend_handler } = choose(request.handler, request.uid)?;
        let backend_handler = Some(backend_handler).filter(|name| name != request.handler);
        Ok(ImageRoute { rule: Rule::PullHandler, stores: vec![StoreTarget { backend, backend_handler }] })
    }

    /// A call without annotations: kubelet's question which user the image runs as, or another client's.
    fn route_without_annotations(&self, reference: &str, backends: &BackendFacts<'_>) -> ImageRoute {
        let starting = self.image_starts.backends_of(reference, Instant::now());
        if !starting.is_empty() {
            return ImageRoute::to_all(Rule::StartUnderWay, starting);
        }
        let default = self.handlers().default_backend();
        if backends.is_young_process {
            let pods = self.ready_or_all_pods(|pod| !pod.config_seen.is_empty());
            let mut stores = vec![default];
            for pod in pods {
                if !stores.contains(&pod.backend) {
                    stores.push(pod.backend);
                }
            }
            if stores.len() > 1 {
                return ImageRoute::to_all(Rule::YoungProcess, stores);
            }
        }
        ImageRoute::to(Rule::OtherClient, default)
    }

    /// Returns the pods that a call with an unknown `config.seen` may be for, and the rule that finds them:
    /// those with equal annotations, and of these, if there are any, those with a container of the reference.
    /// Pods of backends that are down count only if there are no others. `None` if there is no such pod.
    fn pods_alike(
        &self,
        request: &ImageRequest<'_>,
        backends: &BackendFacts<'_>,
    ) -> Option<(Rule, Vec<OwnedSandbox>)> {
        let Annotations { config_seen, digest } = request.annotations;
        if config_seen.is_empty() {
            return None;
        }
        // kubelet's sandboxes have a config.seen, so a sandbox without one is never meant.
        let mut alike =
            self.ready_or_all_pods(|record| !record.config_seen.is_empty() && record.annotations == digest);
        if alike.iter().any(|pod| !(backends.is_down)(pod.backend)) {
            alike.retain(|pod| !(backends.is_down)(pod.backend));
        }
        let first = alike.first()?.backend;
        if alike.iter().all(|pod| pod.backend == first) {
            return Some((Rule::Alike, alike));
        }
        let mut holders: Vec<_> = alike.iter().map(|pod| pod.backend).collect();
        holders.sort();
        holders.dedup();
        let using: HashSet<String> = holders
            .iter()
            .flat_map(|backend| (backends.sandboxes_using)(*backend, request.reference))
            .collect();
        if alike.iter().any(|pod| using.contains(&*pod.id)) {
            alike.retain(|pod| using.contains(&*pod.id));
            return Some((Rule::UsedBy, alike));
        }
        Some((Rule::Alike, alike))
    }

    /// Returns the ready pods that `matches` picks, or, if none of them is ready, all of them: image calls
    /// come while the pod's sandbox is ready.
    fn ready_or_all_pods(&self, matches: impl Fn(&SandboxRecord) -> bool) -> Vec<OwnedSandbox> {
        let mut pods = self.owners.sandboxes(matches);
        if pods.iter().any(|owned| owned.record.ready) {
            pods.retain(|owned| owned.record.ready);
        }
        pods
    }

    /// Returns the stores of these pods, each once, with the handler by the name that its backend knows: that
    /// of the configuration, or, for a handler that no longer leads there, the sandbox's own.
    fn stores_of(&self, handler: &str, pods: &[OwnedSandbox]) -> Vec<StoreTarget> {
        let handlers = self.handlers();
        let configured = handlers.targets_of(handler).unwrap_or_default();
        let mut stores: Vec<StoreTarget> = Vec::new();
        for OwnedSandbox { backend, record, .. } in pods {
            if stores.iter().any(|store| store.backend == *backend) {
                continue;
            }
            let target = configured.iter().find(|(target, _)| target == backend);
            let own = || record.backend_handler.to_string();
            let known_as = target.map_or_else(own, |(_, target)| target.backend_handler.clone());
            let backend_handler = Some(known_as).filter(|name| !handler.is_empty() && name != handler);
            stores.push(StoreTarget { backend: *backend, backend_handler });
        }
        stores.sort_by_key(|store| store.backend);
        stores
    }
}

#[cfg(test)]
mod tests;
