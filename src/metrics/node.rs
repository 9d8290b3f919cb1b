//! Whether the node works, as `crimux status` judges it, set when Prometheus scrapes.

use prometheus::{IntGauge, IntGaugeVec, Result};

use super::registration::Registrar;

/// The gauges of the whole node.
#[derive(Debug)]
pub struct NodeGauges {
    ready: IntGauge,
    handlers_refused: IntGaugeVec,
    handlers_come_later: IntGaugeVec,
}

/// What the gauges of one handler show.
#[derive(Debug, Clone, Copy)]
pub struct HandlerSample<'a> {
    /// The value of the `handler` label.
    pub name: &'a str,
    /// Whether every new sandbox is refused.
    pub is_refused: bool,
    /// Whether that is because its backends are `optional` and not there yet.
    pub comes_later: bool,
}

impl NodeGauges {
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self> {
        Ok(Self {
            ready: make.gauge("node_ready")?,
            handlers_refused: make.gauges("handler_refused", &["handler"])?,
            handlers_come_later: make.gauges("handler_comes_later", &["handler"])?,
        })
    }

    /// Sets all; a handler that is no longer among them has no series any more.
    pub fn set(&self, ready: bool, handlers: &[HandlerSample<'_>]) {
        self.ready.set(i64::from(ready));
        self.handlers_refused.reset();
        self.handlers_come_later.reset();
        for handler in handlers {
            let labels = [handler.name];
            self.handlers_refused.with_label_values(&labels).set(i64::from(handler.is_refused));
            self.handlers_come_later.with_label_values(&labels).set(i64::from(handler.comes_later));
        }
    }
}
