//! The counters of what answers with code OK lacked.

use prometheus::{IntCounterVec, Result};

use super::registration::Registrar;
use crate::method::{List, Rpc};

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
            items: make.counters("items_left_out_total", &labels)?,
            texts: make.counters("texts_repaired_total", &labels)?,
            backends: make.counters("backends_left_out_total", &labels)?,
        })
    }

    /// Starts every counter of a backend at 0: Prometheus sees no increase in a counter's first sample. Lists
    /// that must be complete never lack a backend.
    pub(super) fn start(&self, backend: &str) {
        for list in List::ALL {
            let labels = [backend, list.unary().name];
            self.items.with_label_values(&labels);
            self.texts.with_label_values(&labels);
            if !list.must_be_complete() {
                self.backends.with_label_values(&labels);
            }
        }
        self.items.with_label_values(&[backend, Rpc::PodSandboxStatus.name()]);
        let events = [backend, Rpc::GetContainerEvents.name()];
        self.items.with_label_values(&events);
        self.texts.with_label_values(&events);
    }
}
