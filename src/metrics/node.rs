//! Whether the node works, as `crimux status` judges it, set when Prometheus scrapes.

use prometheus::{IntGauge, IntGaugeVec, Result};

use super::registration::Registrar;

/// The gauges of the whole node.
#[derive(Debug)]
pub struct NodeGauges {
    ready: IntGauge,
    handlers_refused: IntGaugeVec,
}

impl NodeGauges {
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self> {
        let ready = "0 while a backend's fault makes kubelet report the node NotReady.";
        let refused = "1 while every new sandbox of the handler is refused.";
        Ok(Self {
            ready: make.gauge("node_ready", ready)?,
            handlers_refused: make.gauges("handler_refused", refused, &["handler"])?,
        })
    }

    /// Sets all; a handler that is no longer among them has no series any more.
    pub fn set<'a>(&self, ready: bool, handlers: impl Iterator<Item = (&'a str, bool)>) {
        self.ready.set(i64::from(ready));
        self.handlers_refused.reset();
        for (handler, is_refused) in handlers {
            self.handlers_refused.with_label_values(&[handler]).set(i64::from(is_refused));
        }
    }
}
