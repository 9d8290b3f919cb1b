//! Pod metrics of all backends under one set of descriptors, which stays once it was announced.
//!
//! kubelet calls for the descriptors once in its life, and for the metrics at each scrape. So the announced
//! descriptors are saved, and a backend whose own descriptors are not known is called for them before its
//! metrics are sent.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::future::join_all;

use crate::backend::{Backend, MethodClass};
use crate::error::Error;
use crate::merge::metrics;
use crate::method::List;
use crate::proxy::descriptors::{last_announced, own};
use crate::proxy::{Call, Node, refresh};
use crate::state::InstanceId;

impl Call {
    /// Merges the descriptors of these backends, and saves the result as announced.
    pub(super) fn announce(&self, lists: &[(InstanceId, Bytes)]) -> Result<Bytes, Error> {
        if let ([(_, only)], Some(_)) = (lists, &self.scope) {
            return Ok(only.clone());
        }
        let default = self.node.default_in(None);
        let (first, others): (Vec<_>, _) = lists.iter().partition(|(backend, _)| *backend == default);
        let before = last_announced(&self.node.backends()).unwrap_or_default();
        let lists = first.into_iter().chain(others).map(|(_, descriptors)| &descriptors[..]);
        let united = metrics::announce(&before, lists)?;
        if let Ok(backend) = self.node.backend(default) {
            let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let at = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
            backend.state.set_announced_descriptors(at, &united);
        }
        self.node.unannounced.clear();
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
        let before = last_announced(&backends).unwrap_or_default();
        // What cannot be united was never announced.
        Some(metrics::unite(&before, lists.iter().map(|list| &list[..])).unwrap_or(before))
    }
}

/// Waits until a backend has told its descriptors over the present connection, or that it has none.
async fn fetch_descriptors(node: &Arc<Node>, backend: &Arc<Backend>) {
    let method = List::MetricDescriptors.unary();
    let known = backend.health.has_answered(method) || backend.health.is_unimplemented(method);
    if known || !backend.is_up() || backend.health.is_late(MethodClass::Metrics) {
        return;
    }
    refresh::start_refresh(node, backend, MethodClass::Metrics);
    let limit = backend.deadline(method);
    if tokio::time::timeout(limit, backend.health.wait_for_answer(method)).await.is_err() {
        backend.health.mark_late(MethodClass::Metrics);
    }
}
