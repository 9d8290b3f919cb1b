//! The JSON api of the admin socket, version 1.
//!
//! `--output json` prints them and scripts read them, so within `/v1` keys may be added but not renamed or
//! given another type. Times are RFC 3339 in UTC. The server writes them and the command line reads them. No
//! field may hold a part of a container's configuration (no env, no annotations, no credentials).

use serde::{Deserialize, Serialize};

pub use objects::{AimView, ImageView, ImagesView, PodView, PodsView, RouteView, RoutesView, TargetView};

mod objects;

/// `GET /v1/status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StatusView {
    /// The version of crimux.
    pub version: String,
    /// The process ID.
    #[serde(default)]
    pub pid: u32,
    /// The configuration file that it reads, as an absolute path.
    #[serde(default)]
    pub config_file: String,
    /// Start of the process.
    pub started_at: String,
    /// The backend of pods without a `RuntimeClass`.
    pub default_backend: String,
    /// Every backend, by name.
    pub backends: Vec<BackendView>,
    /// Whether the last-known state can be saved.
    pub state: StateView,
    /// The port of the metrics and the status page.
    #[serde(default)]
    pub admin_http: HttpView,
    /// What kubelet was told when it asked whether there are pod stats; absent if none has asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_sandbox_stats: Option<bool>,
    /// Metrics that kubelet shows once it is restarted: it asked for the descriptors before they were known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unannounced_metrics: Vec<String>,
    /// Reloads of the configuration since the start.
    pub reloads: ReloadsView,
    /// The last new sandbox that was refused; absent if none was since the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_refusal: Option<RefusalView>,
    /// Handlers that are no longer in the configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed_handlers: Vec<RemovedHandlerView>,
    /// What clients have open; absent from a crimux that does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<ClientsView>,
    /// Processes that were replaced and still finish calls, the latest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub older_processes: Vec<OlderProcessView>,
    /// The log filter, if it is not `log.level` of the configuration; absent if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_level: Option<String>,
    /// The judgement of the node.
    #[serde(default)]
    pub verdict: VerdictView,
}

/// What clients have open on the CRI sockets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClientsView {
    /// Open connections. kubelet has two as long as it runs, one for each service.
    pub connections: usize,
    /// Calls under way, event streams included.
    pub calls: usize,
    /// The most connections that may be open (`limits.connections`).
    #[serde(default)]
    pub max_connections: usize,
    /// The process that has the most connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub largest: Option<ClientProcessView>,
    /// The limits that all clients share and that one has reached since the start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reached_limits: Vec<ReachedLimitView>,
}

/// A process that is connected to the CRI sockets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClientProcessView {
    /// Its process ID.
    pub pid: i32,
    /// The name of its program; empty if it has ended.
    pub program: String,
    /// How many connections it has.
    pub connections: usize,
}

/// A limit of all clients together that was reached.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReachedLimitView {
    /// Its key in the section `limits`.
    pub limit: String,
    /// The last time.
    pub at: String,
}

/// A handler that is no longer in the configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RemovedHandlerView {
    /// The handler.
    pub handler: String,
    /// The sandboxes that asked for it and are not removed.
    pub sandboxes: usize,
    /// When a new sandbox that asked for it was refused last; absent if none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_refused: Option<String>,
}

/// A new sandbox that was not created.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RefusalView {
    /// When.
    pub at: String,
    /// `NAMESPACE/NAME` of its pod.
    pub pod: String,
    /// The handler that was asked for; empty for none.
    pub handler: String,
    /// Why, with what to do where crimux knows.
    pub reason: String,
}

/// A process that was replaced and still finishes calls.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OlderProcessView {
    /// Its process ID.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// When it was replaced.
    pub since: String,
    /// Its calls in flight, streams of events among them.
    pub calls: usize,
    /// Its relayed streams.
    pub streams: usize,
}

/// `POST /v1/upgrade`: another process serves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UpgradeView {
    /// The process ID of the one that serves now.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// The process ID of the one that it was started by, which finishes its calls.
    pub old_pid: u32,
}

/// How well the node is served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Every backend is ready, or drained by the operator.
    #[default]
    Ok,
    /// Something is wrong, and the node stays Ready.
    Degraded,
    /// A backend is out by which kubelet judges the node.
    NotReady,
}

/// The judgement of the node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct VerdictView {
    /// How well the node is served.
    pub level: Level,
    /// How many backends are ready.
    pub summary: String,
    /// The first of `faults`, how many more there are, and what that means for the node; with level `ok`, the
    /// summary and what else is to be known.
    #[serde(default)]
    pub headline: String,
    /// What is wrong and what it means, in one line; the summary if nothing is.
    pub text: String,
    /// The section of the runbook with the next step: that of the first of `faults` that has one.
    pub next: Option<String>,
    /// What is wrong, the worst first; then what is no fault and the reason why pods may not start.
    #[serde(default)]
    pub faults: Vec<FaultView>,
}

/// Something that is wrong, or that explains why pods do not start.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct FaultView {
    /// What is wrong, in a few words.
    pub problem: String,
    /// The problem with its cause, what it means for pods and the node, and what to do or to leave.
    pub text: String,
    /// The section of the runbook with the next step.
    pub next: Option<String>,
}

impl Level {
    /// Returns the word that `crimux status` begins with.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Degraded => "DEGRADED",
            Self::NotReady => "NOT READY",
        }
    }
}

/// `GET /v1/log-level`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogLevelView {
    /// The current filter.
    pub level: String,
}

/// The port of the metrics and the status page.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct HttpView {
    /// The address it listens on, or tries to; absent with `admin.http: off`.
    pub address: Option<String>,
    /// Why it does not listen; absent while it does.
    pub problem: Option<String>,
}

/// One backend.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "each is a key of the document")]
pub struct BackendView {
    /// Name in the configuration, or the label of one that was removed.
    pub name: String,
    /// The identifier of the instance, which stays the same when it is renamed.
    #[serde(default)]
    pub id: u64,
    /// Its address.
    pub endpoint: String,
    /// Whether it is the default backend.
    pub default: bool,
    /// Whether its outage makes the node `NotReady`.
    pub required: bool,
    /// Whether the node's lists are complete without it as long as it was never listed.
    #[serde(default)]
    pub optional: bool,
    /// Whether it is `optional` and not there yet: never listed and not connected.
    #[serde(default)]
    pub comes_later: bool,
    /// Whether its files are on this node.
    pub local: bool,
    /// False if it was removed from the configuration and runs only for the objects it owns.
    pub configured: bool,
    /// `joining`, `ready`, `late`, `down` or `draining`.
    pub state: String,
    /// Since when it is up, late or down; absent until the first attempt to connect has ended.
    pub since: Option<String>,
    /// Whether it takes no new sandboxes; independent of `state`.
    pub draining: bool,
    /// Age of its last complete pair of sandbox and container lists; absent if it was never listed.
    pub list_age_seconds: Option<f64>,
    /// Its last error.
    pub last_error: Option<ErrorView>,
    /// Calls that wait for it now.
    pub in_flight: usize,
    /// Sandboxes it owns.
    pub sandboxes: usize,
    /// Containers it owns.
    pub containers: usize,
    /// `runtime_name` of its last `Version` reply; absent before the first.
    pub runtime_name: Option<String>,
    /// `runtime_version` of its last `Version` reply; absent before the first.
    pub runtime_version: Option<String>,
    /// `v1` or `v1alpha2`; absent while it is not connected.
    pub api: Option<String>,
    /// The methods that it does not answer in time, so that last-known state stands in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub late: Vec<String>,
    /// Why kubelet would not take it for ready although it is connected: conditions of its last `Status` that
    /// are false, or that `Status` is not answered. Of the default and of `required` backends they are the
    /// node's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unready: Vec<String>,
    /// IDs that it lists and another backend owns.
    #[serde(default)]
    pub foreign_ids: usize,
    /// Where its events come from, `stream` or `lists`; absent while no client listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_source: Option<String>,
    /// What was left out of answers for it in the last five minutes, as `METHOD: WHAT (CAUSE)`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// The cases of `left_out` that are a fault: not those of a runtime that does not implement the method,
    /// and not texts that were repaired.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacking: Vec<String>,
    /// Whether the node's lists are refused until it is listed: nothing is known of what it holds.
    #[serde(default)]
    pub awaited: bool,
    /// The ready sandboxes that it lost in the last ten minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<LossView>,
    /// The certificate of its connection that ends first; absent without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateView>,
    /// Since when it answers nothing, although it is connected; absent while it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_since: Option<String>,
    /// The process that listens at its socket, if that is stopped by a signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_pid: Option<i32>,
}

/// A certificate of a backend's connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CertificateView {
    /// `authority`, `client` or `backend`, as in the metric.
    pub role: String,
    /// When it ends.
    pub ends: String,
}

/// Sandboxes that a backend no longer lists although nobody removed them through crimux.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LossView {
    /// When they were missed.
    pub at: String,
    /// How many.
    pub sandboxes: usize,
    /// How many it had.
    pub owned: usize,
}

impl BackendView {
    /// Tells whether the backend is ready, or draining, since its last error. Both times are whole seconds.
    pub fn is_error_over(&self) -> bool {
        let is_since = |since: &String| self.last_error.as_ref().is_some_and(|error| error.at <= *since);
        matches!(self.state.as_str(), "ready" | "draining") && self.since.as_ref().is_some_and(is_since)
    }
}

/// An error of a backend.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorView {
    /// When it occurred.
    pub at: String,
    /// The error text.
    pub text: String,
}

/// Whether the last-known state can be saved.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StateView {
    /// `state_dir`.
    pub dir: String,
    /// Failed writes since the start.
    pub write_errors: u64,
    /// Bytes written since the start.
    #[serde(default)]
    pub written_bytes: u64,
    /// Why the last write failed; absent if it succeeded.
    pub problem: Option<String>,
}

/// Reloads of the configuration since the start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReloadsView {
    /// Reloads that applied a changed configuration.
    pub ok: u64,
    /// Reloads that failed, so that the old configuration stays current.
    pub failed: u64,
    /// The last one.
    pub last: Option<ReloadView>,
    /// Keys of the file that take effect only at the next start.
    #[serde(default)]
    pub restart_keys: Vec<String>,
    /// The `state_dir` of the file; absent unless it is one of `restart_keys`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_state_dir: Option<String>,
}

/// One reload.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReloadView {
    /// When it ended.
    pub at: String,
    /// `ok`, `failed`, or `unchanged` for the first valid file after a failure.
    pub result: String,
    /// Why it failed.
    #[serde(default)]
    pub problem: Option<String>,
}

/// The answer to a change.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChangeResult {
    /// The change, as one sentence.
    pub message: String,
    /// Consequences that may not be intended.
    pub warnings: Vec<String>,
}

/// The answer to `POST /v1/reload` and `POST /v1/plan`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ReloadReport {
    /// The file that was read; empty for a text that was sent.
    #[serde(default)]
    pub file: String,
    /// Whether the configuration is applied: now, or before if nothing has changed.
    pub applied: bool,
    /// What it means for the backends and the pods on them, a line each; what stays as it is has none.
    pub plan: Vec<String>,
    /// What else it changes at once, a line `KEY: OLD → NEW` for each key.
    #[serde(default)]
    pub changes: Vec<String>,
    /// What `crimux check` warns of, `KEY: WARNING`.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Keys whose change takes effect at the next start.
    pub restart: Vec<String>,
    /// Why it is not applied without `force`.
    pub refused: Option<String>,
    /// Whether only a part could be applied; `error` says why.
    #[serde(default)]
    pub partly_applied: bool,
    /// Why it is not, or only partly, applied.
    pub error: Option<String>,
}

/// The answer to a refused request; its HTTP status is not 200.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The reason.
    pub error: String,
}
