//! Explains where image calls for a reference are routed now, and by which rule: `crimux images --explain`.

use std::sync::Arc;

use crate::backend::Backend;
use crate::proxy::Node;
use crate::proxy::images::sandboxes_using;
use crate::router::images::{self, ImageRequest, ImageRoute, Rule, StoredImage};
use crate::state::{Filter, ListKind};

/// Where calls for one reference go.
#[derive(Debug)]
pub struct ImageExplanation {
    /// The reference in each store.
    pub stores: Vec<StoreExplanation>,
    /// Where each call goes.
    pub calls: Vec<CallExplanation>,
}

/// One store.
#[derive(Debug)]
pub struct StoreExplanation {
    /// The backend.
    pub backend: String,
    /// Whether its images were ever listed.
    pub known: bool,
    /// IDs of the images that match the reference, as this store lists them.
    pub images: Vec<String>,
    /// How many of its sandboxes have, or had, a container of that image.
    pub sandboxes: usize,
    /// Whether a container of it is being started there.
    pub starting: bool,
}

/// One call.
#[derive(Debug)]
pub struct CallExplanation {
    /// The rule that applies.
    pub rule: Rule,
    /// The backends the call goes to; empty if no backend is known.
    pub backends: Vec<String>,
}

impl Node {
    /// Explains where calls for `reference` go.
    pub fn explain_image(&self, reference: &str) -> ImageExplanation {
        let starting = self.router.image_starts.backends_of(reference, std::time::Instant::now());
        let backends = self.backends();
        let mut found: Vec<Vec<StoredImage>> = Vec::new();
        let mut stores = Vec::new();
        for backend in backends.iter() {
            let list = backend.state.list(ListKind::Images, &Filter::default());
            let images =
                list.as_ref().map(|list| images::matching_images(list, reference)).unwrap_or_default();
            stores.push(StoreExplanation {
                backend: backend.name.to_string(),
                known: list.is_some(),
                images: images.iter().map(|image| image.id.clone()).collect(),
                sandboxes: sandboxes_using(backend, reference).len(),
                starting: starting.contains(&backend.id),
            });
            found.push(images);
        }
        let mut calls: Vec<_> = pods_using(&stores).into_iter().collect();
        calls.extend(self.status_and_pull(reference));
        if let Ok(Some(rule)) = images::keep_best_match(&mut found, reference) {
            let listing = std::iter::zip(backends.iter(), &found).filter(|(_, images)| !images.is_empty());
            let backends = listing.map(|(backend, _)| backend.name.to_string()).collect();
            calls.push(CallExplanation { rule, backends });
        }
        ImageExplanation { stores, calls }
    }

    /// Returns the routes of `ImageStatus` and `PullImage` calls without a pod.
    fn status_and_pull(&self, reference: &str) -> Vec<CallExplanation> {
        let asked = ImageRequest { reference, ..ImageRequest::default() };
        let pull = self.router.route_of_pull(&asked, None, |handler, uid| self.choose(handler, uid));
        let routes = [self.route_of_status(&asked), pull];
        let name = |backend: Arc<Backend>| backend.name.to_string();
        let call = |ImageRoute { rule, stores }| CallExplanation {
            rule,
            backends: stores.iter().filter_map(|store| self.backend(store.backend).ok()).map(name).collect(),
        };
        routes.into_iter().flatten().map(call).collect()
    }
}

/// Returns the route of kubelet's `ImageStatus` for a container that it restarts after its own restart.
fn pods_using(stores: &[StoreExplanation]) -> Option<CallExplanation> {
    let using = stores.iter().filter(|store| store.sandboxes > 0);
    let backends: Vec<_> = using.map(|store| store.backend.clone()).collect();
    (!backends.is_empty()).then_some(CallExplanation { rule: Rule::UsedBy, backends })
}
