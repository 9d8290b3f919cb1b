//! Pod metrics of all backends under one set of descriptors, which stays once it was announced.
//!
//! kubelet calls for the descriptors once in its life, and for the metrics at each scrape. So the announced
//! descriptors are saved, and a backend whose own descriptors are not known is called for them before its
//! metrics are sent.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::future::join_all;

use crate::backend::{Backend, Class};
use crate::error::Error;
use crate::merge::metrics::{self, Labels};
use crate::method::{List, Rpc};
use crate::proxy::fan_out::Contribution;
use crate::proxy::{Call, ProxyState, refresh};

/// The names of metrics of backends that are in no announced descriptor.
#[derive(Debug, Default)]
pub struct Unannounced(Mutex<BTreeSet<String>>);

impl Unannounced {
    /// Returns them in order.
    pub fn names(&self) -> Vec<String> {
        self.names_mut().iter().cloned().collect()
    }

    fn names_mut(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes note, once, of metrics that a backend has and that were not in the descriptors that clients were
/// told.
pub(super) fn record_unannounced(node: &ProxyState, backend: &Backend) {
    let (Some(announced), Some(own)) = (announced(node), own(backend)) else { return };
    let told: BTreeSet<_> = metrics::names(&announced).map(str::to_owned).collect();
    let mut known = node.unannounced.names_mut();
    let new: Vec<_> = metrics::names(&own)
        .filter(|name| !told.contains(*name) && known.insert((*name).to_owned()))
        .collect();
    if !new.is_empty() {
        tracing::warn!(backend = %backend.name, metrics = ?new, "kubelet shows these metrics once it is restarted");
    }
}

impl Call {
    /// Merges the backends' descriptors, and saves the result as announced.
    pub(super) fn announce(&self, parts: &[Contribution]) -> Result<Bytes, Error> {
        if let ([part], Some(_)) = (parts, &self.scope) {
            return Ok(part.items.clone());
        }
        let default = self.node.default_in(None);
        let (first, others): (Vec<_>, _) = parts.iter().partition(|part| part.backend.id == default);
        let before = announced(&self.node).unwrap_or_default();
        let lists = first.into_iter().chain(others).map(|part| &part.items[..]);
        let united = metrics::announce(&before, lists)?;
        if let Ok(backend) = self.node.backend(default) {
            let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            backend
                .last
                .set_announced_descriptors(u64::try_from(at.as_millis()).unwrap_or(u64::MAX), &united);
        }
        self.node.unannounced.names_mut().clear();
        Ok(united)
    }

    /// Returns the descriptors that metrics must fit; `None` if they pass as they are, because this socket
    /// shows one backend alone.
    pub(super) async fn target_descriptors(&self) -> Option<Bytes> {
        if self.scope.is_some() {
            return None;
        }
        join_all(self.backends().iter().map(|backend| fetch_descriptors(&self.node, backend))).await;
        let default = self.node.default_in(None);
        let mut backends = self.backends();
        backends.sort_by_key(|backend| backend.id != default);
        let lists: Vec<_> = backends.iter().filter_map(|backend| own(backend)).collect();
        let before = announced(&self.node).unwrap_or_default();
        // What cannot be united was never announced.
        Some(metrics::unite(&before, lists.iter().map(|list| &list[..])).unwrap_or(before))
    }
}

/// Brings the labels of a backend's metrics into the wanted order. The order must have been told over the
/// present connection. Metrics of a backend whose own order is not known, or that cannot be read, are left
/// out.
pub(super) fn reorder(backend: &Backend, wanted: Option<&Bytes>, metrics: &Bytes) -> Bytes {
    let Some(wanted) = wanted else { return metrics.clone() };
    // A runtime that was restarted may order its labels in another way than the one that is remembered.
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

fn own(backend: &Backend) -> Option<Bytes> {
    backend.last.reply(Rpc::ListMetricDescriptors)
}

/// Returns what was announced last.
fn announced(node: &ProxyState) -> Option<Bytes> {
    let backends = node.backends();
    let announced = backends.iter().filter_map(|backend| backend.last.announced_descriptors());
    announced.max_by_key(|(at, _)| *at).map(|(_, descriptors)| descriptors)
}

/// Waits until a backend has told its descriptors over the present connection, or that it has none.
async fn fetch_descriptors(node: &Arc<ProxyState>, backend: &Arc<Backend>) {
    let method = List::MetricDescriptors.unary();
    let known = backend.health.has_answered(method) || backend.health.is_unimplemented(method);
    if known || !backend.is_up() || backend.health.is_late(Class::Metrics) {
        return;
    }
    refresh::refresh(node, backend, Class::Metrics);
    let limit = backend.config().timeouts.stats;
    if tokio::time::timeout(limit, backend.health.wait_for_answer(method)).await.is_err() {
        backend.health.mark_late(Class::Metrics);
    }
}
