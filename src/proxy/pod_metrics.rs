//! Pod metrics of all backends under one set of descriptors, which stands once it was announced.
//!
//! kubelet asks for the descriptors once in its life and Prometheus for the metrics ever after. So what was
//! announced is remembered, on disk too, and a backend whose own descriptors are not known is asked for them
//! before a metric of it is passed on.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;

use crate::backend::{Backend, Class};
use crate::error::Error;
use crate::merge::metrics::{self, Labels};
use crate::method::{List, Rpc};
use crate::proxy::fan_out::{self, Contribution};
use crate::proxy::{Call, ProxyState};

impl Call {
    /// Unites the descriptors that backends sent, and remembers what is announced by that.
    pub(super) fn announce(&self, parts: &[Contribution]) -> Result<Bytes, Error> {
        if let ([part], Some(_)) = (parts, &self.scope) {
            return Ok(part.items.clone());
        }
        let default = self.node.default_in(None);
        let (first, others): (Vec<_>, _) = parts.iter().partition(|part| part.backend.name == default);
        let before = announced(&self.node).unwrap_or_default();
        let united = metrics::unite(&before, first.into_iter().chain(others).map(|part| &part.items[..]))?;
        if let Ok(backend) = self.node.backend(&default) {
            backend.last.set_announced_descriptors(&united);
        }
        Ok(united)
    }

    /// Returns the descriptors that metrics must fit; `None` if they pass as they are, because this socket shows
    /// one backend alone.
    pub(super) async fn wanted_descriptors(&self) -> Option<Bytes> {
        if self.scope.is_some() {
            return None;
        }
        join_all(self.backends().iter().map(|backend| know_descriptors(&self.node, backend))).await;
        let default = self.node.default_in(None);
        let mut backends = self.backends();
        backends.sort_by_key(|backend| backend.name != default);
        let lists: Vec<_> = backends.iter().filter_map(|backend| own(backend)).collect();
        let before = announced(&self.node).unwrap_or_default();
        // What cannot be united was never announced.
        Some(metrics::unite(&before, lists.iter().map(|list| &list[..])).unwrap_or(before))
    }
}

/// Brings the labels of a backend's metrics into the wanted order. Metrics of a backend whose own order is not
/// known, or that cannot be read, are left out.
pub(super) fn ordered(backend: &Backend, wanted: Option<&Bytes>, metrics: &Bytes) -> Bytes {
    let Some(wanted) = wanted else { return metrics.clone() };
    let Some(own) = own(backend) else { return Bytes::new() };
    let ordered = Labels::new(&own, wanted).and_then(|labels| labels.reorder(metrics));
    ordered.unwrap_or_else(|error| {
        backend.health.note_error(format!("its pod metrics cannot be read: {error}"));
        Bytes::new()
    })
}

fn own(backend: &Backend) -> Option<Bytes> {
    backend.last.reply(Rpc::ListMetricDescriptors)
}

/// Returns what was announced. What was announced later has all of it in it, so the longest is the latest.
fn announced(node: &ProxyState) -> Option<Bytes> {
    node.backends().iter().filter_map(|backend| backend.last.announced_descriptors()).max_by_key(Bytes::len)
}

/// Asks a backend for its descriptors, unless they are known or it has none.
async fn know_descriptors(node: &Arc<ProxyState>, backend: &Arc<Backend>) {
    let method = List::MetricDescriptors.unary();
    let settled = own(backend).is_some() || backend.health.lacks(method);
    if settled || !backend.is_up() || backend.health.is_late(Class::Metrics) {
        return;
    }
    let limit = backend.config().timeouts.stats;
    match tokio::time::timeout(limit, fan_out::list_all(node, backend, List::MetricDescriptors)).await {
        Ok(Ok(())) => {}
        Ok(Err(Error::Unimplemented(_))) => backend.health.note_lack(method),
        Ok(Err(error)) => backend.health.note_error(error.to_string()),
        Err(_) => {
            backend.health.mark_late(Class::Metrics);
            fan_out::refresh(node, backend, Class::Metrics);
        }
    }
}
