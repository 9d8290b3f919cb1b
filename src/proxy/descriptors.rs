//! The metric descriptors of the backends: their own, and those that were announced to clients.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use crate::backend::Backend;
use crate::merge::metrics::{self, Labels};
use crate::method::{List, Rpc};
use crate::mutex::lock;

/// The names of metrics of backends that are in no announced descriptor.
#[derive(Debug, Default)]
pub struct Unannounced(Mutex<BTreeSet<String>>);

impl Unannounced {
    /// Returns them in order.
    pub fn names(&self) -> Vec<String> {
        self.lock().iter().cloned().collect()
    }

    /// Records, once, and logs the metrics that a backend has and that are not in the announced descriptors.
    pub(super) fn record(&self, backend: &Backend, announced: &Bytes) {
        let Some(own) = own(backend) else { return };
        let announced: BTreeSet<_> = metrics::names(announced).map(str::to_owned).collect();
        let mut known = self.lock();
        let new: Vec<_> = metrics::names(&own)
            .filter(|name| !announced.contains(*name) && known.insert((*name).to_owned()))
            .collect();
        if !new.is_empty() {
            tracing::warn!(backend = %backend.name, metrics = ?new, "kubelet shows these metrics once it is restarted");
        }
    }

    /// Forgets them, because the descriptors are announced again.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        lock(&self.0)
    }
}

/// Returns the descriptors that a backend has sent.
pub(super) fn own(backend: &Backend) -> Option<Bytes> {
    backend.state.reply(Rpc::ListMetricDescriptors)
}

/// Returns the descriptors that were announced last; every backend's state may hold them.
pub(super) fn last_announced(backends: &[Arc<Backend>]) -> Option<Bytes> {
    let announced = backends.iter().filter_map(|backend| backend.state.announced_descriptors());
    announced.max_by_key(|(at, _)| *at).map(|(_, descriptors)| descriptors)
}

/// Brings the labels of a backend's metrics into the wanted order. The order must have been told over the
/// present connection. Metrics of a backend whose own order is not known, or that cannot be read, are left
/// out.
pub(super) fn reorder(backend: &Backend, wanted: Option<&Bytes>, metrics: &Bytes) -> Bytes {
    let Some(wanted) = wanted else { return metrics.clone() };
    // A restarted runtime may order its labels otherwise than the remembered descriptors do.
    if !backend.health.has_answered(List::MetricDescriptors.unary()) {
        return Bytes::new();
    }
    let Some(own) = own(backend) else { return Bytes::new() };
    let ordered = Labels::new(&own, wanted).and_then(|labels| labels.reorder(metrics));
    ordered.unwrap_or_else(|error| {
        backend.health.record_error(format!("its pod metrics cannot be read: {error}"));
        Bytes::new()
    })
}
