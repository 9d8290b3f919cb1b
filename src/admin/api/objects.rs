//! What the admin API says of pods, routes and images.

use serde::{Deserialize, Serialize};

use super::RemovedHandlerView;

/// One item of `GET /v1/pods`: a sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PodView {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Uid of the pod.
    pub uid: String,
    /// Attempt, counted by kubelet from zero.
    pub attempt: u64,
    /// The `RuntimeClass` handler if one leads there, else the backend's own name; empty for the default.
    pub handler: String,
    /// Whether that handler is no longer in the configuration.
    #[serde(default)]
    pub handler_removed: bool,
    /// The handler as the backend knows it.
    pub backend_handler: String,
    /// Its owner.
    pub backend: String,
    /// `ready` or `notready`.
    pub state: String,
    /// Whether the backend does not answer, so that this is its last-known state.
    pub stale: bool,
    /// When it was created.
    pub created_at: String,
    /// Full ID of the sandbox.
    pub sandbox_id: String,
    /// Its containers, exited ones included.
    pub containers: usize,
}

/// `GET /v1/pods`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PodsView {
    /// Every sandbox, by namespace and name.
    pub pods: Vec<PodView>,
}

/// `GET /v1/routes`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RoutesView {
    /// The handler `""` first, then every configured one.
    pub routes: Vec<RouteView>,
    /// Pods whose next sandbox an operator has aimed at a backend.
    #[serde(default)]
    pub aimed: Vec<AimView>,
    /// Handlers that are no longer in the configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<RemovedHandlerView>,
}

/// A pod whose next sandbox is aimed at a backend.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AimView {
    /// `NAMESPACE/NAME`.
    pub pod: String,
    /// The backend.
    pub backend: String,
    /// How long the aim still waits for the pod.
    pub seconds_left: u64,
}

/// `GET /v1/routes/HANDLER`, and one item of `GET /v1/routes`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RouteView {
    /// The `RuntimeClass` handler; empty for pods without one.
    pub handler: String,
    /// Where new sandboxes go.
    pub targets: Vec<TargetView>,
    /// Why new sandboxes, or which share of them, would be refused now; absent if none would be.
    pub refused: Option<String>,
}

/// One backend that sandboxes of a handler go to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TargetView {
    /// The backend.
    pub backend: String,
    /// The handler as that backend knows it; empty for its default.
    pub backend_handler: String,
    /// The configured weight.
    pub weight: u32,
    /// Its share of new sandboxes now, 0 to 1.
    pub share: f64,
    /// The backend's state.
    pub state: String,
    /// Whether it takes new sandboxes now.
    #[serde(default)]
    pub takes_new: bool,
    /// Whether new sandboxes wait for it: it is connected, and answers nothing.
    #[serde(default)]
    pub waits: bool,
}

/// `GET /v1/images`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImagesView {
    /// Every image, by its first name.
    pub images: Vec<ImageView>,
    /// Backends whose images have never been listed.
    pub unknown: Vec<String>,
    /// Backends that do not answer now, so that their images are as last known.
    pub stale: Vec<String>,
}

/// One image, wherever it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageView {
    /// Its ID.
    pub id: String,
    /// Tags at all backends.
    pub tags: Vec<String>,
    /// Digests at all backends.
    pub digests: Vec<String>,
    /// The size of the largest copy in bytes.
    pub size: u64,
    /// The backends that have it.
    pub backends: Vec<String>,
}
