//! The gauges of what clients have open, set when Prometheus scrapes.

use prometheus::{IntGauge, Result};

use super::registration::{Registrar, set_count};

/// Connections and streams of clients.
#[derive(Debug)]
pub struct ClientGauges {
    connections: IntGauge,
    streams: IntGauge,
}

impl ClientGauges {
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self> {
        Ok(Self { connections: make.gauge("client_connections")?, streams: make.gauge("client_streams")? })
    }

    /// Sets both.
    pub fn set(&self, connections: usize, streams: usize) {
        set_count(&self.connections, connections);
        set_count(&self.streams, streams);
    }
}
