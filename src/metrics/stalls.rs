//! How long the thread of the calls did not get to its timers.

use std::time::Duration;

use prometheus::{Gauge, Histogram, Result};

use super::BUCKETS;
use super::registration::Registrar;

/// The stalls of the thread of the calls, measured twice a second.
#[derive(Debug)]
pub struct StallMetrics {
    stall: Histogram,
    longest: Gauge,
}

impl StallMetrics {
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self> {
        Ok(Self {
            stall: make.histogram("thread_stall_seconds", &BUCKETS)?,
            longest: make.float_gauge("thread_longest_stall_seconds")?,
        })
    }

    /// Records one measurement. Only the thread of the calls does.
    pub fn record(&self, stall: Duration) {
        let seconds = stall.as_secs_f64();
        self.stall.observe(seconds);
        if seconds > self.longest.get() {
            self.longest.set(seconds);
        }
    }
}
