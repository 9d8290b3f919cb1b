//! The gauges of what clients have open, set when Prometheus scrapes.

use prometheus::{IntGauge, Result};

use super::registration::Registrar;

/// Connections and streams of clients.
#[derive(Debug)]
pub struct ClientGauges {
    connections: IntGauge,
    streams: IntGauge,
}

impl ClientGauges {
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self> {
        Ok(Self {
            connections: make
                .gauge("client_connections", "Open connections of clients to the CRI sockets.")?,
            streams: make
                .gauge("client_streams", "Open calls on these connections, event streams included.")?,
        })
    }

    /// Sets both.
    pub fn set(&self, connections: usize, streams: usize) {
        let set = |gauge: &IntGauge, count: usize| gauge.set(count.try_into().unwrap_or(i64::MAX));
        set(&self.connections, connections);
        set(&self.streams, streams);
    }
}
