//! The counters of what answers with code OK lacked.

use prometheus::{IntCounterVec, Result};

use super::registration::Registrar;

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
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self> {
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
