//! The relay's metrics.
//!
//! Registered in the registry that the caller passes. Labels are backend names and directions, both closed
//! sets. No token becomes a label.

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Registry};

use crate::metrics::Registrar;

/// The relay's metrics.
#[derive(Debug, Clone)]
pub struct RelayMetrics {
    /// `crimux_relay_streams{backend}`: open streams.
    pub(super) streams: IntGaugeVec,
    /// `crimux_relay_bytes_total{backend,direction}`: bytes read from one side for the other, request head
    /// included.
    pub(super) bytes: IntCounterVec,
    /// `crimux_relay_refused_tokens_total`: requests whose token was used, expired, guessed or not ours.
    pub(super) refused_tokens: IntCounter,
}

impl RelayMetrics {
    /// Creates the metrics and registers them.
    ///
    /// # Errors
    ///
    /// Fails if `registry` already has metrics of these names.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let make = Registrar { registry };
        Ok(Self {
            streams: make.gauges("relay_streams", &["backend"])?,
            bytes: make.counters("relay_bytes_total", &["backend", "direction"])?,
            refused_tokens: make.counter("relay_refused_tokens_total")?,
        })
    }
}
