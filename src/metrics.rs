//! What Prometheus sees: every metric of crimux but the relay's, and the methods that count.
//!
//! Labels come from closed sets only: rows of the method table, names of backends and handlers, gRPC codes,
//! states. There is no global registry. The handles of a method at a backend are resolved once and then only
//! incremented, so that counting costs a call a few atomic additions.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use prometheus::core::Collector;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};
use tonic::Code;

use crate::config::RESTART_KEYS;
use crate::history::ReloadResult;
use crate::method::{self, List, Rpc};
use backends::BackendGauges;
use registration::set_count;

mod backends;
mod clients;
mod exemplars;
mod left_out;
mod node;
mod older_processes;
mod registration;
mod stalls;
mod state;

pub use backends::{BackendSample, STATES};
pub use clients::ClientGauges;
pub use exemplars::{Exemplar, Exemplars};
pub use left_out::LeftOutMetrics;
pub use node::{HandlerSample, NodeGauges};
pub use older_processes::OlderProcessGauges;
pub(crate) use registration::Registrar;
pub use stalls::StallMetrics;
pub use state::{StateMetrics, StateSample};

/// From a tenth of a millisecond, where forwarded calls live, to the minutes of a pull.
const BUCKETS: [f64; 20] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0,
    30.0, 60.0, 120.0, 240.0,
];
/// gRPC codes, 0 to 16.
const CODES: usize = 17;
/// A merged list beyond this many bytes is counted as large: kubelet refuses replies of more than 16 MiB.
const LARGE_LIST: usize = 14 << 20;
/// The `backend` label of calls that go to all backends.
pub const ALL_BACKENDS: &str = "all";
/// The `backend` label of calls that crimux answers or refuses by itself.
pub const NO_BACKEND: &str = "none";

/// All metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_duration: HistogramVec,
    backend_duration: HistogramVec,
    backends: BackendGauges,
    /// Whether the node works.
    pub node: NodeGauges,
    lists_stale: IntCounterVec,
    /// Counters of what answers with code OK lacked.
    pub left_out: LeftOutMetrics,
    merged_list_bytes: IntGaugeVec,
    merged_lists_large: IntCounterVec,
    sandboxes_routed: IntCounterVec,
    lost_sandboxes: IntCounterVec,
    unknown_ids: IntCounter,
    id_conflicts: IntCounter,
    foreign_pods: IntCounter,
    config_reloads: IntCounterVec,
    config_last_reload_successful: IntGauge,
    config_restart_needed: IntGaugeVec,
    /// What is written to `state_dir`.
    pub state: StateMetrics,
    events_dropped_clients: IntCounter,
    /// How long the thread of the calls did not get to its timers.
    pub stalls: StallMetrics,
    limits_reached: IntCounterVec,
    /// What clients have open.
    pub clients: ClientGauges,
    /// What processes that were replaced have left.
    pub older_processes: OlderProcessGauges,
    /// The last traced call of each series of `request_duration`.
    pub exemplars: Exemplars,
}

/// The handles of every method under one value of the `backend` label.
#[derive(Debug)]
pub struct CallMetrics {
    metrics: Arc<Metrics>,
    backend: Arc<str>,
    rows: Vec<OnceLock<RowMetrics>>,
}

#[derive(Debug)]
struct RowMetrics {
    requests: [OnceLock<IntCounter>; CODES],
    request_duration: OnceLock<Histogram>,
    backend_duration: OnceLock<Histogram>,
}

impl Metrics {
    /// Makes and registers all metrics.
    ///
    /// # Errors
    /// If two metrics share a name, which a test rules out.
    pub fn new() -> prometheus::Result<Arc<Self>> {
        let registry = Registry::new();
        let make = Registrar { registry: &registry };
        let labels = ["method", "backend", "code"];
        let times = |name| make.histograms(name, &BUCKETS);
        let metrics = Self {
            requests: make.counters("requests_total", &labels)?,
            request_duration: times("request_duration_seconds")?,
            backend_duration: times("backend_duration_seconds")?,
            backends: BackendGauges::new(&make)?,
            node: NodeGauges::new(&make)?,
            lists_stale: make.counters("lists_stale_total", &["backend", "method"])?,
            left_out: LeftOutMetrics::new(&make)?,
            merged_list_bytes: make.gauges("merged_list_bytes", &["method"])?,
            merged_lists_large: make.counters("merged_lists_large_total", &["method"])?,
            sandboxes_routed: make.counters("sandboxes_routed_total", &["handler", "backend"])?,
            lost_sandboxes: make.counters("lost_sandboxes_total", &["backend"])?,
            unknown_ids: make.counter("unknown_ids_total")?,
            id_conflicts: make.counter("id_conflicts_total")?,
            foreign_pods: make.counter("foreign_pods_total")?,
            config_reloads: make.counters("config_reloads_total", &["result"])?,
            config_last_reload_successful: make.gauge("config_last_reload_successful")?,
            config_restart_needed: make.gauges("config_restart_needed", &["key"])?,
            state: StateMetrics::new(&make)?,
            events_dropped_clients: make.counter("events_dropped_clients_total")?,
            stalls: StallMetrics::new(&make)?,
            limits_reached: make.counters("limits_reached_total", &["limit"])?,
            clients: ClientGauges::new(&make)?,
            older_processes: OlderProcessGauges::new(&make)?,
            exemplars: Exemplars::default(),
            registry: registry.clone(),
        };
        metrics.config_last_reload_successful.set(1);
        metrics.set_restart_keys(&[]);
        metrics.start_counters();
        register_process_info(&make)?;
        Ok(Arc::new(metrics))
    }

    /// Returns the registry, to register further metrics and to encode all of them.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Returns the handles for calls under this `backend` label.
    pub fn calls(self: &Arc<Self>, backend: &str) -> Arc<CallMetrics> {
        let rows = (0..=method::COUNT).map(|_| OnceLock::new()).collect();
        Arc::new(CallMetrics { metrics: Arc::clone(self), backend: backend.into(), rows })
    }

    /// Returns how many calls `backend` has answered since the start, crimux's own probes included.
    pub fn calls_answered_by(&self, backend: &str) -> u64 {
        let families = self.backend_duration.collect();
        let metrics = families.iter().flat_map(prometheus::proto::MetricFamily::get_metric);
        let of_backend =
            metrics.filter(|m| m.get_label().iter().any(|l| l.name() == "backend" && l.value() == backend));
        of_backend.map(|metric| metric.get_histogram().get_sample_count()).sum()
    }

    /// Counts a list that was answered from last-known state for `backend`.
    pub fn count_stale_list(&self, backend: &str, method: &str) {
        self.lists_stale.with_label_values(&[backend, method]).inc();
    }

    /// Records the size in bytes of a merged list. Returns whether it nears kubelet's limit of 16 MiB.
    pub fn record_merged_list(&self, method: &str, size: usize) -> bool {
        let gauge = self.merged_list_bytes.with_label_values(&[method]);
        set_count(&gauge, size);
        let large = size > LARGE_LIST;
        if large {
            self.merged_lists_large.with_label_values(&[method]).inc();
        }
        large
    }

    /// Counts a sandbox that was created by `handler` on `backend`.
    pub fn count_routed_sandbox(&self, handler: &str, backend: &str) {
        self.sandboxes_routed.with_label_values(&[handler, backend]).inc();
    }

    /// Counts a call with an ID that had to be looked up at the backends.
    pub fn count_unknown_id(&self) {
        self.unknown_ids.inc();
    }

    /// Counts an ID that two backends list.
    pub fn count_id_conflict(&self) {
        self.id_conflicts.inc();
    }

    /// Counts backends that list the pod of a pull which did not go to them.
    pub fn count_foreign_pods(&self, backends: usize) {
        self.foreign_pods.inc_by(backends as u64);
    }

    /// Counts event streams that ended because their client was slow.
    pub fn count_dropped_event_clients(&self, clients: usize) {
        self.events_dropped_clients.inc_by(clients as u64);
    }

    /// Counts a reload, and sets the gauge of the last one.
    pub fn count_reload(&self, result: ReloadResult) {
        self.config_last_reload_successful.set(i64::from(result != ReloadResult::Failed));
        self.config_reloads.with_label_values(&[result.word()]).inc();
    }

    /// Sets the keys whose changed values take effect at the next start.
    pub fn set_restart_keys(&self, keys: &[&'static str]) {
        for key in RESTART_KEYS {
            self.config_restart_needed.with_label_values(&[key]).set(i64::from(keys.contains(&key)));
        }
    }

    /// Returns how many reloads had this result since the start.
    pub fn reloads(&self, result: ReloadResult) -> u64 {
        self.config_reloads.with_label_values(&[result.word()]).get()
    }

    /// Returns the counter of a limit that clients can reach; its series exists from now on.
    pub fn limit_reached(&self, limit: &str) -> IntCounter {
        self.limits_reached.with_label_values(&[limit])
    }

    /// Sets the gauges of all backends, and starts the counters of new ones.
    pub fn refresh(&self, backends: &[BackendSample<'_>]) {
        self.backends.set_all(backends);
        for backend in backends {
            self.left_out.start(backend.name);
            self.lost_sandboxes.with_label_values(&[backend.name]);
            for list in List::ALL {
                self.lists_stale.with_label_values(&[backend.name, list.unary().name]);
            }
        }
    }

    /// Counts ready sandboxes that a backend no longer lists although nobody removed them through crimux.
    pub fn count_lost_sandboxes(&self, backend: &str, count: usize) {
        self.lost_sandboxes.with_label_values(&[backend]).inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// Starts the counter of the sandboxes that `handler` sends to `backend`.
    pub fn start_routed_sandboxes(&self, handler: &str, backend: &str) {
        self.sandboxes_routed.with_label_values(&[handler, backend]);
    }

    /// Starts the counters whose labels are known from the start, and those that alerts read the first
    /// increase of.
    fn start_counters(&self) {
        for list in List::ALL {
            self.merged_lists_large.with_label_values(&[list.unary().name]);
        }
        for result in [ReloadResult::Ok, ReloadResult::Failed, ReloadResult::Unchanged] {
            self.config_reloads.with_label_values(&[result.word()]);
        }
        for code in [Code::InvalidArgument, Code::Unavailable] {
            let refused = [Rpc::RunPodSandbox.name(), NO_BACKEND, code_name(code)];
            self.requests.with_label_values(&refused);
        }
    }

    /// Removes the gauges of a backend that no longer runs.
    pub fn forget_backend(&self, backend: &str) {
        self.backends.remove(backend);
    }
}

impl CallMetrics {
    /// Returns the value of the `backend` label.
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// Counts a call that was answered, and how long its client waited.
    pub fn record_answer(&self, method: usize, code: Code, waited: Duration) {
        let row = self.row(method);
        let code_index = (code as usize).min(CODES - 1);
        let counter = row.requests[code_index].get_or_init(|| {
            let labels = [name(method), &self.backend, code_name(code)];
            self.metrics.requests.with_label_values(&labels)
        });
        counter.inc();
        let labels = [name(method), &*self.backend];
        let histogram = || self.metrics.request_duration.with_label_values(&labels);
        row.request_duration.get_or_init(histogram).observe(waited.as_secs_f64());
    }

    /// Records the trace of a call that was answered.
    pub fn record_trace(&self, method: usize, waited: Duration, trace_id: String) {
        let exemplar = Exemplar { trace_id, waited, at: SystemTime::now() };
        self.metrics.exemplars.set(name(method), &self.backend, exemplar);
    }

    /// Records how long the backend took for a call.
    pub fn backend_took(&self, method: usize, took: Duration) {
        let labels = [name(method), &*self.backend];
        let histogram = || self.metrics.backend_duration.with_label_values(&labels);
        self.row(method).backend_duration.get_or_init(histogram).observe(took.as_secs_f64());
    }

    fn row(&self, method: usize) -> &RowMetrics {
        self.rows[method].get_or_init(|| RowMetrics {
            requests: [const { OnceLock::new() }; CODES],
            request_duration: OnceLock::new(),
            backend_duration: OnceLock::new(),
        })
    }
}

/// Registers what is known of the process itself.
fn register_process_info(make: &Registrar<'_>) -> prometheus::Result<()> {
    let labels = ["version", "revision"];
    let build_info = make.gauges("build_info", &labels)?;
    let revision = option_env!("CRIMUX_REVISION").unwrap_or("unknown");
    build_info.with_label_values(&[env!("CARGO_PKG_VERSION"), revision]).set(1);
    make.registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
}

fn name(method: usize) -> &'static str {
    method::all().get(method).map_or(method::UNKNOWN_NAME, |row| row.name)
}

/// Returns a code as the `code` label spells it, which is how gRPC spells it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
