//! What is written to `state_dir`, set when Prometheus scrapes.

use prometheus::{IntCounter, IntGauge, Result};

use super::registration::Registrar;

/// What the metrics of `state_dir` show.
#[derive(Debug, Clone, Copy)]
pub struct StateSample {
    /// Whether the last write succeeded, so that the disk has what memory has.
    pub saved: bool,
    /// Writes that failed since the start.
    pub write_failures: u64,
    /// Bytes of records and snapshots written since the start.
    pub written_bytes: u64,
}

/// The metrics of `state_dir`.
#[derive(Debug)]
pub struct StateMetrics {
    saved: IntGauge,
    write_errors: IntCounter,
    written_bytes: IntCounter,
}

impl StateMetrics {
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self> {
        Ok(Self {
            saved: make.gauge("state_saved")?,
            write_errors: make.counter("state_write_errors_total")?,
            written_bytes: make.counter("state_written_bytes_total")?,
        })
    }

    /// Sets all; the counters never decrease.
    pub fn set(&self, sample: &StateSample) {
        self.saved.set(i64::from(sample.saved));
        self.write_errors.inc_by(sample.write_failures.saturating_sub(self.write_errors.get()));
        self.written_bytes.inc_by(sample.written_bytes.saturating_sub(self.written_bytes.get()));
    }
}
