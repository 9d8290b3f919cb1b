//! The relay's metrics.
//!
//! Registered in the registry that the caller passes. Labels are backend names and directions, both closed
//! sets. No token becomes a label.

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};

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
        let metrics = Self {
            streams: IntGaugeVec::new(
                Opts::new("crimux_relay_streams", "Exec, attach and port-forward streams open in the relay."),
                &["backend"],
            )?,
            bytes: IntCounterVec::new(
                Opts::new("crimux_relay_bytes_total", "Bytes relayed; direction is to_backend or to_client."),
                &["backend", "direction"],
            )?,
            refused_tokens: IntCounter::new(
                "crimux_relay_refused_tokens_total",
                "Requests to the relay whose token was used, expired, guessed or not its own.",
            )?,
        };
        registry.register(Box::new(metrics.streams.clone()))?;
        registry.register(Box::new(metrics.bytes.clone()))?;
        registry.register(Box::new(metrics.refused_tokens.clone()))?;
        Ok(metrics)
    }
}
