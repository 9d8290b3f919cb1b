//! What Prometheus sees: every metric of crimux, made in one place, handed to whoever counts.
//!
//! Labels come from closed sets only: rows of the method table, names of backends and handlers, gRPC codes,
//! states. There is no global registry. The handles of a method at a backend are resolved once and then only
//! incremented, so that counting costs a call a few atomic additions.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
};
use tonic::Code;

use crate::method;

/// From a tenth of a millisecond, where forwarded calls live, to the minutes of a pull.
const BUCKETS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0];
/// gRPC codes, 0 to 16.
const CODES: usize = 17;
/// The `backend` label of calls that go to all backends.
pub const ALL_BACKENDS: &str = "all";
/// The `backend` label of calls that crimux answers or refuses by itself.
pub const NO_BACKEND: &str = "none";

/// All metrics.
#[derive(Debug)]
pub struct Metrics {
    /// Where they are registered.
    pub registry: Registry,
    requests: IntCounterVec,
    request_duration: HistogramVec,
    backend_duration: HistogramVec,
    /// `crimux_requests_in_flight{backend}`.
    pub in_flight: IntGaugeVec,
    /// `crimux_backend_up{backend}`.
    pub backend_up: IntGaugeVec,
    /// `crimux_backend_state{backend,state}`: 1 for the state it is in.
    pub backend_state: IntGaugeVec,
    /// `crimux_backend_draining{backend}`.
    pub backend_draining: IntGaugeVec,
    /// `crimux_backend_info{backend,runtime_name,runtime_version}`.
    pub backend_info: IntGaugeVec,
    /// `crimux_lists_stale_total{backend,method}`.
    pub lists_stale: IntCounterVec,
    /// What answers with code OK lacked.
    pub left_out: LeftOutMetrics,
    /// `crimux_list_age_seconds{backend}`; refreshed when scraped.
    pub list_age: prometheus::GaugeVec,
    /// `crimux_merged_list_bytes{method}`.
    pub merged_list_bytes: IntGaugeVec,
    /// `crimux_merged_lists_large_total{method}`: beyond 14 MiB, where kubelet's limit of 16 MiB is near.
    pub merged_lists_large: IntCounterVec,
    /// `crimux_owned_ids{backend,kind}`; refreshed when scraped.
    pub owned_ids: IntGaugeVec,
    /// `crimux_sandboxes_routed_total{handler,backend}`.
    pub sandboxes_routed: IntCounterVec,
    /// `crimux_unknown_ids_total`.
    pub unknown_ids: IntCounter,
    /// `crimux_id_conflicts_total`.
    pub id_conflicts: IntCounter,
    /// `crimux_config_reloads_total{result}`.
    pub config_reloads: IntCounterVec,
    /// `crimux_state_write_errors_total`; counted by the snapshot.
    pub state_write_errors: IntCounter,
    /// `crimux_events_dropped_clients_total`.
    pub events_dropped_clients: IntCounter,
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
    request_duration: Histogram,
    backend_duration: Histogram,
}

/// Counters of what answers with code OK lacked.
#[derive(Debug)]
pub struct LeftOutMetrics {
    /// `crimux_items_left_out_total{backend,method}`: items that would crash a client.
    pub items: IntCounterVec,
    /// `crimux_texts_repaired_total{backend,method}`: strings that were not UTF-8.
    pub texts: IntCounterVec,
    /// `crimux_backends_left_out_total{backend,method}`: answers without a part of this backend.
    pub backends: IntCounterVec,
}

impl LeftOutMetrics {
    fn new(make: &Maker<'_>) -> prometheus::Result<Self> {
        let labels = ["backend", "method"];
        Ok(Self {
            items: make.counters(
                "items_left_out_total",
                "Items left out of answers because a field that clients read is not set.",
                &labels,
            )?,
            texts: make.counters(
                "texts_repaired_total",
                "Strings of answers that were not UTF-8 and were repaired.",
                &labels,
            )?,
            backends: make.counters(
                "backends_left_out_total",
                "Answers with code OK and without a part of this backend.",
                &labels,
            )?,
        })
    }
}

impl Metrics {
    /// Makes and registers all metrics.
    ///
    /// # Errors
    /// If two metrics share a name, which a test rules out.
    pub fn new() -> prometheus::Result<Arc<Self>> {
        let registry = Registry::new();
        let make = Maker { registry: &registry };
        let metrics = Self {
            requests: make.counters(
                "requests_total",
                "Calls by what they were answered with.",
                &["method", "backend", "code"],
            )?,
            request_duration: make
                .histograms("request_duration_seconds", "What the client waited for an answer.")?,
            backend_duration: make.histograms("backend_duration_seconds", "What of it the backend took.")?,
            in_flight: make.gauges("requests_in_flight", "Calls in flight.", &["backend"])?,
            backend_up: make.gauges("backend_up", "Whether the backend can be reached.", &["backend"])?,
            backend_state: make.gauges(
                "backend_state",
                "1 for the state that the backend is in.",
                &["backend", "state"],
            )?,
            backend_draining: make.gauges(
                "backend_draining",
                "Whether the backend takes no new sandboxes.",
                &["backend"],
            )?,
            backend_info: make.gauges(
                "backend_info",
                "What the backend says of itself.",
                &["backend", "runtime_name", "runtime_version"],
            )?,
            lists_stale: make.counters(
                "lists_stale_total",
                "Lists answered from last-known state.",
                &["backend", "method"],
            )?,
            left_out: LeftOutMetrics::new(&make)?,
            list_age: make.float_gauges("list_age_seconds", "Age of the last live list.", &["backend"])?,
            merged_list_bytes: make.gauges(
                "merged_list_bytes",
                "Size of the last merged list.",
                &["method"],
            )?,
            merged_lists_large: make.counters(
                "merged_lists_large_total",
                "Merged lists beyond 14 MiB.",
                &["method"],
            )?,
            owned_ids: make.gauges("owned_ids", "IDs by owner.", &["backend", "kind"])?,
            sandboxes_routed: make.counters(
                "sandboxes_routed_total",
                "New sandboxes by handler and backend.",
                &["handler", "backend"],
            )?,
            unknown_ids: make.counter("unknown_ids_total", "Calls with an ID that had to be looked up.")?,
            id_conflicts: make.counter("id_conflicts_total", "IDs listed by two backends.")?,
            config_reloads: make.counters("config_reloads_total", "Reloads by result.", &["result"])?,
            state_write_errors: make
                .counter("state_write_errors_total", "Failed writes of the last-known state.")?,
            events_dropped_clients: make.counter(
                "events_dropped_clients_total",
                "Event streams ended because the client was slow.",
            )?,
            registry: registry.clone(),
        };
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(Arc::new(metrics))
    }

    /// Returns the handles for calls under this `backend` label.
    pub fn calls(self: &Arc<Self>, backend: &str) -> Arc<CallMetrics> {
        let rows = (0..=method::COUNT).map(|_| OnceLock::new()).collect();
        Arc::new(CallMetrics { metrics: Arc::clone(self), backend: backend.into(), rows })
    }

    /// Drops every series of a backend that is gone.
    pub fn forget_backend(&self, backend: &str) {
        for state in crate::metrics::STATES {
            self.backend_state.remove_label_values(&[backend, state]).ok();
        }
        for kind in ["sandbox", "container"] {
            self.owned_ids.remove_label_values(&[backend, kind]).ok();
        }
        for gauges in [&self.in_flight, &self.backend_up, &self.backend_draining] {
            gauges.remove_label_values(&[backend]).ok();
        }
        self.list_age.remove_label_values(&[backend]).ok();
    }
}

/// The values of the `state` label.
pub const STATES: [&str; 5] = ["joining", "ready", "late", "down", "draining"];

impl CallMetrics {
    /// Returns the value of the `backend` label.
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// Counts a call that was answered, and what its client waited.
    pub fn answered(&self, method: usize, code: Code, waited: Duration) {
        let row = self.row(method);
        let code_index = (code as usize).min(CODES - 1);
        let counter = row.requests[code_index].get_or_init(|| {
            let labels = [name(method), &self.backend, code_name(code)];
            self.metrics.requests.with_label_values(&labels)
        });
        counter.inc();
        row.request_duration.observe(waited.as_secs_f64());
    }

    /// Counts what a backend took for a call.
    pub fn backend_took(&self, method: usize, took: Duration) {
        self.row(method).backend_duration.observe(took.as_secs_f64());
    }

    fn row(&self, method: usize) -> &RowMetrics {
        self.rows[method].get_or_init(|| {
            let labels = [name(method), &*self.backend];
            RowMetrics {
                requests: [const { OnceLock::new() }; CODES],
                request_duration: self.metrics.request_duration.with_label_values(&labels),
                backend_duration: self.metrics.backend_duration.with_label_values(&labels),
            }
        })
    }
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

struct Maker<'a> {
    registry: &'a Registry,
}

impl Maker<'_> {
    fn opts(name: &str, help: &str) -> Opts {
        Opts::new(name, help).namespace("crimux")
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        let counter = IntCounter::with_opts(Self::opts(name, help))?;
        self.registry.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
        let counters = IntCounterVec::new(Self::opts(name, help), labels)?;
        self.registry.register(Box::new(counters.clone()))?;
        Ok(counters)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
        let gauges = IntGaugeVec::new(Self::opts(name, help), labels)?;
        self.registry.register(Box::new(gauges.clone()))?;
        Ok(gauges)
    }

    fn float_gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<prometheus::GaugeVec> {
        let gauges = prometheus::GaugeVec::new(Self::opts(name, help), labels)?;
        self.registry.register(Box::new(gauges.clone()))?;
        Ok(gauges)
    }

    fn histograms(&self, name: &str, help: &str) -> prometheus::Result<HistogramVec> {
        let opts = HistogramOpts::from(Self::opts(name, help)).buckets(BUCKETS.to_vec());
        let histograms = HistogramVec::new(opts, &["method", "backend"])?;
        self.registry.register(Box::new(histograms.clone()))?;
        Ok(histograms)
    }
}
