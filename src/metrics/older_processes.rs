//! The gauges of the processes that this one has replaced, set when Prometheus scrapes.

use prometheus::{IntGauge, Result};

use super::registration::{Registrar, set_count};
use crate::handover::OlderProcess;

/// Processes that were replaced, and what they have left.
#[derive(Debug)]
pub struct OlderProcessGauges {
    processes: IntGauge,
    calls: IntGauge,
    streams: IntGauge,
}

impl OlderProcessGauges {
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self> {
        Ok(Self {
            processes: make.gauge("older_processes")?,
            calls: make.gauge("older_process_calls")?,
            streams: make.gauge("older_process_streams")?,
        })
    }

    /// Sets them.
    pub fn set(&self, older: &[OlderProcess]) {
        set_count(&self.processes, older.len());
        set_count(&self.calls, older.iter().map(|process| process.calls).sum());
        set_count(&self.streams, older.iter().map(|process| process.streams).sum());
    }
}
