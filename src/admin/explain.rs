//! `GET /v1/images/explain`: where image calls for a reference would go now, and why.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};

use crate::admin::AdminState;
use crate::method::List;

/// The query.
#[derive(Debug, Deserialize)]
pub(super) struct Reference {
    reference: String,
}

/// The answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExplanationView {
    /// The tag, digest, ID or prefix of an ID that was asked about.
    pub reference: String,
    /// What each backend's store has of it.
    pub stores: Vec<StoreView>,
    /// Where each call would go.
    pub calls: Vec<CallView>,
}

/// One backend's store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoreView {
    /// The backend.
    pub backend: String,
    /// `present`, `absent`, or `unknown` if its images were never listed.
    pub image: String,
    /// IDs of the images that the reference names there, as the store lists them.
    pub ids: Vec<String>,
    /// Sandboxes there that have, or had, a container of the reference.
    pub sandboxes: usize,
    /// Whether a container of it is being started there.
    pub starting: bool,
}

/// One call.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CallView {
    /// The RPC.
    pub call: String,
    /// What it carries.
    pub carries: String,
    /// The backends that it would go to.
    pub backends: Vec<String>,
    /// Whose store the rule means.
    pub store: String,
    /// The reason of the rule.
    pub reason: String,
}

pub(super) async fn explain(
    State(state): State<Arc<AdminState>>,
    Query(Reference { reference }): Query<Reference>,
) -> Json<ExplanationView> {
    state.relist(List::Images).await;
    let explanation = state.node.explain_image(&reference);
    let stores = explanation.stores.into_iter().map(|store| StoreView {
        image: match (store.known, store.images.is_empty()) {
            (false, _) => "unknown",
            (true, true) => "absent",
            (true, false) => "present",
        }
        .to_owned(),
        backend: store.backend,
        ids: store.images,
        sandboxes: store.sandboxes,
        starting: store.starting,
    });
    let calls = explanation.calls.into_iter().map(|call| {
        let row = call.rule.row();
        CallView {
            call: row.call.to_owned(),
            carries: row.carries.to_owned(),
            backends: call.backends,
            store: row.store.to_owned(),
            reason: row.reason.to_owned(),
        }
    });
    Json(ExplanationView { stores: stores.collect(), calls: calls.collect(), reference })
}
