//! The JSON documents of the admin socket, version 1.
//!
//! They are what `--output json` prints and what scripts read, so within `/v1` keys may be added but not renamed
//! or given another type. Times are RFC 3339 in UTC. The server writes them and the command line reads them; no
//! field may hold what a container's configuration holds (no env, no annotations, no credentials).

use serde::{Deserialize, Serialize};

/// `GET /v1/status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The version of crimux.
    pub version: String,
    /// When it was started.
    pub started_at: String,
    /// The backend of pods without a `RuntimeClass`.
    pub default_backend: String,
    /// Every backend, by name.
    pub backends: Vec<Backend>,
    /// Whether the last-known state can be saved.
    pub state: SavedState,
    /// How often the configuration was read again.
    pub reloads: Reloads,
}

/// One backend.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "each is a key of the document")]
pub struct Backend {
    /// Its name in the configuration.
    pub name: String,
    /// Its address.
    pub endpoint: String,
    /// Whether it is the default backend.
    pub default: bool,
    /// Whether its outage makes the node `NotReady`.
    pub required: bool,
    /// Whether its files are on this node.
    pub local: bool,
    /// False for one that was removed from the configuration and is kept for what it owns.
    pub configured: bool,
    /// `joining`, `ready`, `late`, `down` or `draining`.
    pub state: String,
    /// Since when it is up, late or down; absent before the first attempt to connect is over.
    pub since: Option<String>,
    /// Whether it takes no new sandboxes; also told while it is down.
    pub draining: bool,
    /// Age of the last complete list of its sandboxes and containers; absent if it was never listed.
    pub list_age_seconds: Option<f64>,
    /// The last thing that went wrong with it.
    pub last_error: Option<LastError>,
    /// Calls that wait for it now.
    pub in_flight: usize,
    /// Sandboxes that it holds, or was last known to hold.
    pub sandboxes: usize,
    /// Containers that it holds, or was last known to hold.
    pub containers: usize,
    /// What its `Version` said last.
    pub runtime_name: Option<String>,
    /// What its `Version` said last.
    pub runtime_version: Option<String>,
    /// `v1` or `v1alpha2`; absent while it is not connected.
    pub api: Option<String>,
    /// What was left out of answers for it in the last five minutes, as `METHOD: WHAT (CAUSE)`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

/// Something that went wrong.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LastError {
    /// When.
    pub at: String,
    /// What.
    pub text: String,
}

/// Whether the last-known state can be saved.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedState {
    /// `state_dir`.
    pub dir: String,
    /// How many writes failed since the start.
    pub write_errors: u64,
    /// Why the last write failed; absent if all since succeeded.
    pub problem: Option<String>,
}

/// How often the configuration was read again since the start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reloads {
    /// Taken.
    pub ok: u64,
    /// Refused; the old configuration stayed in force.
    pub failed: u64,
    /// The last one.
    pub last: Option<Reload>,
}

/// One reload.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reload {
    /// When.
    pub at: String,
    /// `ok` or `failed`.
    pub result: String,
}

/// One item of `GET /v1/pods`: a sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pod {
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
    /// The handler as the backend knows it.
    pub backend_handler: String,
    /// The backend that holds it.
    pub backend: String,
    /// `ready` or `notready`.
    pub state: String,
    /// Whether the backend cannot be asked, so that this is what was last known.
    pub stale: bool,
    /// When it was created.
    pub created_at: String,
    /// Full ID of the sandbox.
    pub sandbox_id: String,
    /// How many containers it has, exited ones included.
    pub containers: usize,
}

/// `GET /v1/routes/HANDLER`, and one item of `GET /v1/routes`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Route {
    /// The `RuntimeClass` handler; empty for pods without one.
    pub handler: String,
    /// Where new sandboxes go.
    pub targets: Vec<Target>,
    /// Why new sandboxes, or which share of them, would be refused now; absent if all would be taken.
    pub refused: Option<String>,
}

/// One place where sandboxes of a handler go.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Target {
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
}

/// `GET /v1/images`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Images {
    /// Every image, by its first name.
    pub images: Vec<Image>,
    /// Backends whose images have never been listed.
    pub unknown: Vec<String>,
    /// Backends that cannot be asked now; what was last known stands for them.
    pub stale: Vec<String>,
}

/// One image, wherever it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// Its ID.
    pub id: String,
    /// Tags; all that the backends know.
    pub tags: Vec<String>,
    /// Digests; all that the backends know.
    pub digests: Vec<String>,
    /// The size of the largest copy in bytes.
    pub size: u64,
    /// The backends that have it.
    pub backends: Vec<String>,
}

/// What a change was answered with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Changed {
    /// What was done.
    pub message: String,
    /// What follows from it that may not be meant.
    pub warnings: Vec<String>,
}

/// The answer to what could not be done; its HTTP status is not 200.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Refused {
    /// Why.
    pub error: String,
}
