//! Calls all backends at once and merges their replies.
//!
//! Every backend is called within its own deadline. A backend that is down, late or sends an invalid list
//! contributes its last-known list, so an outage never makes a list shorter. A backend that was never listed
//! makes the list fail, because a short list is worse than an error: kubelet's PLEG takes missing pods for
//! dead.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tonic::Code;

use crate::backend::Backend;
use crate::codec::Message;
use crate::cri::Rpc;
use crate::error::Error;
use crate::merge;
use crate::method::{Kind, List, Method};
use crate::mutex::lock;
use crate::proxy::failed_commands::Failure;
use crate::proxy::reply::Outcome;
use crate::proxy::{Call, descriptors};
use crate::router::IdMatch;
use crate::state::{Filter, ListKind};

pub(super) use completeness::{Completeness, Contribution, NoContribution};
pub(super) use contested::owned_items;
pub(super) use query::ListQuery;

mod completeness;
mod contested;
mod query;

/// The label by which kubelet lists one pod after each sync (`types/labels.go`, `KubernetesPodUIDLabel`).
const POD_UID: &str = "io.kubernetes.pod.uid";
/// How long to wait for a backend whose metric descriptors are unknown.
const DESCRIPTORS: Duration = Duration::from_secs(3);

impl Call {
    /// Calls all backends that may have matching items, and merges their lists.
    pub(super) async fn fan_out(
        &mut self,
        method: &'static Method,
        list: List,
        message: Message,
    ) -> Result<Outcome, Error> {
        self.recorder.set_all_backends(&self.node);
        // The semaphore is never closed.
        self.list_permit = Arc::clone(&self.list_permits).acquire_owned().await.ok();
        let mut parts = self.collect_contributions(method, list, &message).await?;
        if list == List::SandboxMetrics {
            let wanted = self.target_descriptors().await;
            for part in &mut parts {
                part.items = descriptors::reorder(&part.backend, wanted.as_ref(), &part.items);
            }
        }
        let default = self.node.default_in(self.scope);
        let encoded = match list {
            List::MetricDescriptors => {
                let lists: Vec<_> = parts.into_iter().map(|part| (part.backend.id, part.items)).collect();
                vec![self.announce(&lists)?]
            }
            _ => merge::merge(list, &parts.iter().map(|part| part.to_merge(default)).collect::<Vec<_>>()),
        };
        let size = encoded.iter().map(Bytes::len).sum::<usize>();
        if self.node.metrics.record_merged_list(method.name, size)
            && lock(&self.node.large_list_log).count(1).is_some()
        {
            tracing::warn!(method = method.name, size, "a merged list nears kubelet's limit of 16 MiB");
        }
        let prefix = Bytes::copy_from_slice(&crate::codec::prefix(size));
        Ok(Outcome::from_pieces(std::iter::once(prefix).chain(encoded).collect()))
    }

    /// Calls all backends at once, and returns a contribution of each.
    async fn collect_contributions(
        &self,
        method: &'static Method,
        list: List,
        message: &Message,
    ) -> Result<Vec<Contribution>, Error> {
        let queries = self.list_queries(method, list, message)?;
        if list == List::MetricDescriptors {
            await_descriptors(&queries, self.caller_budget()).await;
        }
        let mut completeness = Completeness::default();
        let asked = join_all(queries.iter().map(ListQuery::ask_or_last_known)).await;
        let mut parts: Vec<_> = asked.into_iter().filter_map(|part| completeness.add(part)).collect();
        completeness.conclude(&self.node, list, self.scope.is_some())?;
        // Only now is it known who owns what: an ID may have changed hands while the others were asked.
        contested::leave_to_one(&self.node.router.owners, list, &mut parts);
        Ok(parts)
    }

    /// Returns a query for each backend that may have matching items. `method` is the client's, whose
    /// deadline applies.
    pub(super) fn list_queries(
        &self,
        method: &'static Method,
        list: List,
        message: &Message,
    ) -> Result<Vec<ListQuery>, Error> {
        self.refuse_pod_stats(list)?;
        let filter = Arc::new(match ListKind::of(list) {
            Some(kind) => Filter::parse(kind, message.encoded())?,
            None => Filter::default(),
        });
        let query = |backend: Arc<Backend>| ListQuery {
            node: Arc::clone(&self.node),
            list,
            filter: Arc::clone(&filter),
            headers: self.headers(),
            message: message.clone(),
            wait: self.wait_within(backend.deadline(method)),
            backend,
        };
        Ok(self.backends_that_may_match(list, &filter).into_iter().map(query).collect())
    }

    /// Sends a call to every backend. The error of any backend is the reply, so that kubelet retries.
    pub(super) async fn broadcast(
        &mut self,
        method: &'static Method,
        message: Message,
    ) -> Result<Outcome, Error> {
        self.recorder.set_all_backends(&self.node);
        let backends = self.backends();
        let headers = self.take_headers();
        let sent = backends.iter().map(|backend| {
            let limit = backend.config().timeouts.runtime_config;
            backend.fetch_within(limit, method, headers.clone(), message.framed())
        });
        let mut outcome = Outcome::message(&[]);
        let replies = join_all(sent).await;
        for (backend, reply) in std::iter::zip(&backends, &replies) {
            self.node.log_failed_command(backend, method, message.encoded(), Failure::in_reply(reply));
        }
        for reply in replies {
            let reply = reply?;
            if reply.code != Code::Ok {
                return Ok(reply.into());
            }
            outcome = reply.into();
        }
        Ok(outcome)
    }

    /// Returns the one backend that can have matching items, otherwise all. For a filter by one pod, sandbox
    /// or container only its known owner is called: kubelet lists a pod after each of its syncs.
    fn backends_that_may_match(&self, list: List, filter: &Filter) -> Vec<Arc<Backend>> {
        let kind = if matches!(list, List::Sandboxes | List::SandboxStats) {
            Kind::Sandbox
        } else {
            Kind::Container
        };
        let id = filter.id().map(|id| (kind, id));
        let sandbox = filter.sandbox().map(|id| (Kind::Sandbox, id));
        for (kind, id) in id.into_iter().chain(sandbox) {
            if let IdMatch::Exact(owner) = self.node.router.owners.find(Some(kind), id, self.scope)
                && let Ok(backend) = self.node.backend(owner)
            {
                return vec![backend];
            }
        }
        let mut backends = self.backends();
        if self.scope.is_none() {
            backends.retain(|backend| !self.node.is_outside_lists(backend));
        }
        // A backend that was never listed may hold any pod.
        if backends.iter().all(|backend| backend.state.has_lists())
            && let Some(owner) =
                filter.label(POD_UID).and_then(|uid| self.node.router.owners.sole_backend_of_pod(uid))
            && let Some(backend) = backends.iter().find(|backend| backend.id == owner)
        {
            return vec![Arc::clone(backend)];
        }
        backends
    }
}

/// Waits up to 3 s for backends whose descriptors are unknown: kubelet calls once, at its start, which may be
/// that of the machine.
async fn await_descriptors(queries: &[ListQuery], caller: Option<Duration>) {
    let wait = caller.map_or(DESCRIPTORS, |caller| caller.min(DESCRIPTORS));
    let unknown = queries.iter().filter(|query| {
        let state = &query.backend.state;
        state.reply(Rpc::ListMetricDescriptors).is_none()
            && !state.is_unimplemented(Rpc::ListMetricDescriptors)
    });
    join_all(unknown.map(|query| tokio::time::timeout(wait, query.backend.connected()))).await;
}
