//! The gauges of each backend, set when Prometheus scrapes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{GaugeVec, IntGaugeVec, Result};

use super::registration::Registrar;

/// The values of the `state` label.
pub const STATES: [&str; 5] = ["joining", "ready", "late", "down", "draining"];

/// What one backend's gauges show.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools, reason = "each is a metric of its own")]
pub struct BackendSample<'a> {
    /// The value of the `backend` label.
    pub name: &'a str,
    /// One of [`STATES`].
    pub state: &'static str,
    /// Whether it is connected.
    pub up: bool,
    /// Whether it takes no new sandboxes.
    pub draining: bool,
    /// Whether the configuration names it; false while it is kept for what it owns.
    pub configured: bool,
    /// Whether the node's lists are refused until it is listed.
    pub awaited: bool,
    /// Whether its outage makes the node `NotReady`.
    pub required: bool,
    /// Whether it is `optional` and not there yet.
    pub comes_later: bool,
    /// Calls that wait for it now.
    pub in_flight: usize,
    /// Name and version from its last `Version` reply; `None` before the first.
    pub runtime: Option<(String, String)>,
    /// Age of its last complete pair of lists; `None` before the first.
    pub list_age: Option<Duration>,
    /// Sandboxes it owns.
    pub sandboxes: usize,
    /// Containers it owns.
    pub containers: usize,
    /// IDs that it lists and another backend owns.
    pub foreign: usize,
    /// The role and the end of each certificate of its connection.
    pub certificates: Vec<(&'static str, SystemTime)>,
}

#[derive(Debug)]
pub(super) struct BackendGauges {
    in_flight: IntGaugeVec,
    up: IntGaugeVec,
    state: IntGaugeVec,
    draining: IntGaugeVec,
    configured: IntGaugeVec,
    awaited: IntGaugeVec,
    required: IntGaugeVec,
    comes_later: IntGaugeVec,
    info: IntGaugeVec,
    list_age: GaugeVec,
    owned_ids: IntGaugeVec,
    foreign_ids: IntGaugeVec,
    certificates: GaugeVec,
}

impl BackendGauges {
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self> {
        let info = ["backend", "runtime_name", "runtime_version"];
        Ok(Self {
            in_flight: make.gauges("requests_in_flight", &["backend"])?,
            up: make.gauges("backend_up", &["backend"])?,
            state: make.gauges("backend_state", &["backend", "state"])?,
            draining: make.gauges("backend_draining", &["backend"])?,
            configured: make.gauges("backend_configured", &["backend"])?,
            awaited: make.gauges("backend_awaited", &["backend"])?,
            required: make.gauges("backend_required", &["backend"])?,
            comes_later: make.gauges("backend_comes_later", &["backend"])?,
            info: make.gauges("backend_info", &info)?,
            list_age: make.float_gauges("list_age_seconds", &["backend"])?,
            owned_ids: make.gauges("owned_ids", &["backend", "kind"])?,
            foreign_ids: make.gauges("foreign_ids", &["backend"])?,
            certificates: make
                .float_gauges("certificate_expiration_timestamp_seconds", &["backend", "role"])?,
        })
    }

    /// Replaces the series of every backend. A runtime that was upgraded does not keep the series of its old
    /// version.
    pub(super) fn set_all(&self, samples: &[BackendSample<'_>]) {
        self.info.reset();
        // A backend may lose its TLS by a reload.
        self.certificates.reset();
        for sample in samples {
            self.set(sample);
        }
    }

    fn set(&self, sample: &BackendSample<'_>) {
        let name = sample.name;
        let set = |gauges: &IntGaugeVec, value: i64| gauges.with_label_values(&[name]).set(value);
        set(&self.in_flight, count(sample.in_flight));
        set(&self.foreign_ids, count(sample.foreign));
        set(&self.up, i64::from(sample.up));
        set(&self.draining, i64::from(sample.draining));
        set(&self.configured, i64::from(sample.configured));
        set(&self.awaited, i64::from(sample.awaited));
        set(&self.required, i64::from(sample.required));
        set(&self.comes_later, i64::from(sample.comes_later));
        for state in STATES {
            self.state.with_label_values(&[name, state]).set(i64::from(state == sample.state));
        }
        if let Some((runtime, version)) = &sample.runtime {
            self.info.with_label_values(&[name, runtime, version]).set(1);
        }
        if let Some(age) = sample.list_age {
            self.list_age.with_label_values(&[name]).set(age.as_secs_f64());
        }
        for (role, end) in &sample.certificates {
            let end = end.duration_since(UNIX_EPOCH).unwrap_or_default();
            self.certificates.with_label_values(&[name, role]).set(end.as_secs_f64());
        }
        for (kind, owned) in [("sandbox", sample.sandboxes), ("container", sample.containers)] {
            self.owned_ids.with_label_values(&[name, kind]).set(count(owned));
        }
    }

    /// Removes every series of a backend. A series that was never made is not an error.
    pub(super) fn remove(&self, backend: &str) {
        for state in STATES {
            self.state.remove_label_values(&[backend, state]).ok();
        }
        for kind in ["sandbox", "container"] {
            self.owned_ids.remove_label_values(&[backend, kind]).ok();
        }
        let Self { in_flight, up, draining, configured, awaited, required, comes_later, foreign_ids, .. } =
            self;
        for gauges in [in_flight, up, draining, configured, awaited, required, comes_later, foreign_ids] {
            gauges.remove_label_values(&[backend]).ok();
        }
        self.list_age.remove_label_values(&[backend]).ok();
    }
}

/// Gauges are signed; a count that does not fit is shown as the largest value.
fn count(count: usize) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}
