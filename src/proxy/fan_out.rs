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
use http::HeaderMap;
use tonic::{Code, Status};

use crate::backend::{Backend, Class, Collected};
use crate::codec::Message;
use crate::cri::Rpc;
use crate::error::Error;
use crate::merge;
use crate::method::{Deadline, Kind, List, Method};
use crate::proxy::refresh::{record_failure, record_timeout, refresh};
use crate::proxy::reply::Outcome;
use crate::proxy::{Call, ProxyState, learn, pod_metrics};
use crate::router::Lookup;
use crate::snapshot::{Filter, InstanceId, ListKind};

/// The label by which kubelet lists one pod after each sync (`types/labels.go`, `KubernetesPodUIDLabel`).
const POD_UID: &str = "io.kubernetes.pod.uid";
/// How long to wait for a backend whose metric descriptors are unknown.
const DESCRIPTORS: Duration = Duration::from_secs(3);
/// The deadline of calls by which kubelet decides whether the node is ready.
pub(super) const FAST_DEADLINE: Duration = Duration::from_millis(80);

/// What one backend contributes to a list.
#[derive(Debug)]
pub(super) struct Contribution {
    pub(super) backend: Arc<Backend>,
    /// Encoded items of field 1.
    pub(super) items: Bytes,
    /// Whether it has items; those of a stream were sent already.
    pub(super) has_items: bool,
    /// Whether the backend answered this call.
    pub(super) live: bool,
    /// The error that the backend answered with; the items are then last-known.
    pub(super) refusal: Option<Error>,
}

impl Contribution {
    pub(super) fn to_merge(&self, default: InstanceId) -> merge::BackendItems<'_> {
        merge::BackendItems {
            items: &self.items,
            default: self.backend.id == default,
            local: self.backend.config().local,
            live: self.live,
        }
    }
}

/// A backend that contributes nothing.
#[derive(Debug)]
pub(super) struct NoContribution {
    backend: Arc<str>,
    why: Absence,
}

/// Why a backend contributes nothing.
#[derive(Debug)]
enum Absence {
    /// The backend was never listed and has no saved state.
    Unknown,
    /// The backend answered `Unimplemented`.
    Unimplemented(Error),
    /// The backend answered with an error, and nothing is last-known.
    Refused(Error),
}

/// Decides whether the contributions form a complete list.
#[derive(Debug, Default)]
pub(super) struct Completeness {
    any: bool,
    /// Whether any backend has sent an item just now.
    live_items: bool,
    /// The first error of its own that a backend answered with.
    refusal: Option<Error>,
    lacking: Vec<NoContribution>,
}

impl Completeness {
    /// Adds one backend's contribution.
    pub(super) fn add(&mut self, contribution: Result<&Contribution, NoContribution>) {
        let refusal = match &contribution {
            Ok(contribution) => {
                self.any = true;
                self.live_items |= contribution.live && contribution.has_items;
                contribution.refusal.as_ref()
            }
            Err(NoContribution { why: Absence::Refused(error), .. }) => Some(error),
            Err(_) => None,
        };
        self.refusal = self.refusal.take().or_else(|| refusal.cloned());
        self.lacking.extend(contribution.err());
    }

    /// Returns the error of an incomplete list; records the backends that a complete one lacks. An empty list
    /// of measured values would mean that no pod uses anything: if a backend answered with an error, that
    /// error is the reply. `scoped` is true on a backend's own socket.
    pub(super) fn check(self, node: &ProxyState, list: List, scoped: bool) -> Result<(), Error> {
        let unimplemented = self.lacking.iter().find_map(|lacking| match &lacking.why {
            Absence::Unimplemented(error) => Some(error.clone()),
            _ => None,
        });
        if let Some(error) = unimplemented.clone().filter(|_| node.all_must_implement(list)) {
            return Err(error);
        }
        // kubelet asks for descriptors once, so those that are remembered are better than an error.
        let has_values = if list == List::MetricDescriptors { self.any } else { self.live_items };
        if let Some(refusal) = self.refusal.filter(|_| is_measured(list) && !has_values) {
            return Err(refusal);
        }
        let promised = list == List::SandboxStats && !scoped && node.promised_pod_stats() == Some(true);
        if let Some(error) = unimplemented.filter(|_| !self.any && !promised) {
            return Err(error);
        }
        let unheard = self.lacking.iter().filter(|lacking| !matches!(lacking.why, Absence::Unimplemented(_)));
        let unheard: Vec<_> = unheard.map(|lacking| Arc::clone(&lacking.backend)).collect();
        if !unheard.is_empty() && (must_be_complete(list) || !self.any) {
            return Err(Error::NeverListed(unheard));
        }
        if !self.any && must_be_complete(list) {
            // Every backend is joining: a list that nobody contributed to is not an empty list.
            return Err(Error::NeverListed(node.joining()));
        }
        // kubelet takes the first filesystem for the node's, once for its whole life.
        if list == List::Filesystems
            && let Ok(default) = node.backend(node.default_in(None))
            && unheard.contains(&default.name)
        {
            return Err(Error::NeverListed(vec![Arc::clone(&default.name)]));
        }
        for NoContribution { backend, why } in &self.lacking {
            node.left_out.backend(&node.metrics, backend, list.unary().name, why.cause().as_deref());
        }
        Ok(())
    }
}

impl Absence {
    /// Returns the backend's error; `None` if it could not be called.
    fn cause(&self) -> Option<String> {
        match self {
            Self::Unknown => None,
            Self::Unimplemented(error) | Self::Refused(error) => Some(error.to_string()),
        }
    }
}

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
        self.list = Arc::clone(&self.lists).acquire_owned().await.ok();
        let mut parts = self.collect_contributions(method, list, message).await?;
        if list == List::SandboxMetrics {
            let wanted = self.target_descriptors().await;
            for part in &mut parts {
                part.items = pod_metrics::reorder(&part.backend, wanted.as_ref(), &part.items);
            }
        }
        let default = self.node.default_in(self.scope);
        let encoded = match list {
            List::MetricDescriptors => vec![self.announce(&parts)?],
            _ => merge::merge(list, &parts.iter().map(|part| part.to_merge(default)).collect::<Vec<_>>()),
        };
        let size = encoded.iter().map(Bytes::len).sum::<usize>();
        if self.node.metrics.record_merged_list(method.name, size) && self.node.is_time_to_log_large_list() {
            tracing::warn!(method = method.name, size, "a merged list nears kubelet's limit of 16 MiB");
        }
        let prefix = Bytes::copy_from_slice(&crate::codec::prefix(size));
        Ok(Outcome::framed(std::iter::once(prefix).chain(encoded).collect()))
    }

    /// Calls all backends at once, and returns a contribution of each.
    pub(super) async fn collect_contributions(
        &mut self,
        method: &'static Method,
        list: List,
        message: Message,
    ) -> Result<Vec<Contribution>, Error> {
        self.refuse_pod_stats(list)?;
        let filter = Arc::new(learn::parse_filter(list, &message)?);
        let backends = self.backends_with(list, &filter);
        let caller = self.caller_budget();
        if list == List::MetricDescriptors {
            await_descriptors(&backends, caller).await;
        }
        let headers = std::mem::take(&mut self.headers);
        let asked = backends.iter().map(|backend| {
            let limit = deadline(backend, method);
            let wait = caller.map_or(limit, |caller| limit.min(caller));
            let query = ListQuery { list, filter: Arc::clone(&filter), limit, wait };
            query.contribution(&self.node, backend, method, headers.clone(), &message)
        });
        let mut parts = Vec::with_capacity(backends.len());
        let mut completeness = Completeness::default();
        for part in join_all(asked).await {
            match part {
                Ok(part) => {
                    completeness.add(Ok(&part));
                    parts.push(part);
                }
                Err(lacking) => completeness.add(Err(lacking)),
            }
        }
        completeness.check(&self.node, list, self.scope.is_some())?;
        // Only now is it known who owns what: an ID may have changed hands while the others were asked.
        for part in &mut parts {
            part.items = owned_items(&part.backend, list, part.items.clone());
        }
        Ok(parts)
    }

    /// Sends a call to every backend. The error of any backend is the reply, so that kubelet retries.
    pub(super) async fn broadcast(
        &mut self,
        method: &'static Method,
        message: Message,
    ) -> Result<Outcome, Error> {
        self.recorder.set_all_backends(&self.node);
        let backends = self.backends();
        let headers = std::mem::take(&mut self.headers);
        let sent = backends.iter().map(|backend| {
            let limit = backend.config().timeouts.runtime_config;
            backend.fetch_within(limit, method, headers.clone(), message.framed())
        });
        let mut outcome = Outcome::message(&[]);
        for reply in join_all(sent).await {
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
    pub(super) fn backends_with(&self, list: List, filter: &Filter) -> Vec<Arc<Backend>> {
        let kind = if matches!(list, List::Sandboxes | List::SandboxStats) {
            Kind::Sandbox
        } else {
            Kind::Container
        };
        let id = filter.id().map(|id| (kind, id));
        let sandbox = filter.sandbox().map(|id| (Kind::Sandbox, id));
        for (kind, id) in id.into_iter().chain(sandbox) {
            if let Lookup::Exact(owner) = self.node.router.owners.find(Some(kind), id, self.scope)
                && let Ok(backend) = self.node.backend(owner)
            {
                return vec![backend];
            }
        }
        let mut backends = self.backends();
        if self.scope.is_none() {
            backends.retain(|backend| !self.node.is_joining(backend));
        }
        // A backend that was never listed may hold any pod.
        if backends.iter().all(|backend| backend.last.is_known())
            && let Some(owner) = filter.label(POD_UID).and_then(|uid| self.node.router.owners.of_pod(uid))
            && let Some(backend) = backends.iter().find(|backend| backend.id == owner)
        {
            return vec![Arc::clone(backend)];
        }
        backends
    }
}

/// How one backend is called for a list.
pub(super) struct ListQuery {
    pub(super) list: List,
    pub(super) filter: Arc<Filter>,
    /// The backend's own deadline; a backend that exceeds it is late.
    pub(super) limit: Duration,
    /// `limit`, or the caller's budget if that is less.
    pub(super) wait: Duration,
}

impl ListQuery {
    /// Returns the backend's items, live or last-known.
    pub(super) async fn contribution(
        self,
        node: &Arc<ProxyState>,
        backend: &Arc<Backend>,
        method: &'static Method,
        headers: HeaderMap,
        message: &Message,
    ) -> Result<Contribution, NoContribution> {
        let class = Class::of(method);
        let asked = async {
            if class == Class::Lists {
                backend.listed_or_late().await;
            }
            if backend.health.is_late(class) {
                return None;
            }
            let revision = backend.last.revision();
            let reply = backend.fetch(method, headers.clone(), message.framed()).await;
            match reply {
                // One sandbox that goes away meanwhile makes containerd refuse the stats of all
                // (sandbox_stats_list.go).
                Ok(Collected { code: Code::NotFound | Code::Unknown, .. }) if is_measured(self.list) => {
                    Some((revision, backend.fetch(method, headers, message.framed()).await))
                }
                reply => Some((revision, reply)),
            }
        };
        let mut own_error = None;
        match tokio::time::timeout(self.wait, asked).await {
            Ok(None) => refresh(node, backend, class),
            Ok(Some((revision, Ok(reply)))) if reply.code == Code::Ok => {
                let items = reply.message.encoded_bytes();
                match learn::record_list(node, backend, self.list, revision, self.filter.is_empty(), &items) {
                    Ok(items) => {
                        backend.record_support(method, false);
                        let (backend, has_items) = (Arc::clone(backend), !items.is_empty());
                        return Ok(Contribution {
                            backend,
                            items,
                            has_items,
                            live: true,
                            refusal: own_error,
                        });
                    }
                    Err(error) => record_failure(node, backend, class, error.to_string()),
                }
            }
            Ok(Some((_, Ok(reply)))) if reply.code == Code::Unimplemented && is_optional(self.list) => {
                backend.record_support(method, true);
                let why = Absence::Unimplemented(lacking(backend, method));
                return Err(NoContribution { backend: Arc::clone(&backend.name), why });
            }
            Ok(Some((_, Ok(reply)))) => {
                record_failure(
                    node,
                    backend,
                    class,
                    format!("{} was answered with {:?}", method.name, reply.code),
                );
                own_error = Some(refusal(backend, method, &reply.trailers));
            }
            Ok(Some((_, Err(Error::Down { .. })))) => {}
            Ok(Some((_, Err(error)))) => record_failure(node, backend, class, error.to_string()),
            Err(_) if self.wait == self.limit => record_timeout(node, backend, class, method),
            Err(_) => {}
        }
        self.last_known(node, backend, method, own_error)
    }

    /// Returns the backend's last-known items. `refusal` is the error that it answered with.
    pub(super) fn last_known(
        &self,
        node: &ProxyState,
        backend: &Arc<Backend>,
        method: &Method,
        refusal: Option<Error>,
    ) -> Result<Contribution, NoContribution> {
        let nothing = |why| Err(NoContribution { backend: Arc::clone(&backend.name), why });
        if is_optional(self.list) && backend.last.is_unimplemented(method.rpc) {
            return nothing(Absence::Unimplemented(lacking(backend, method)));
        }
        let items = match learn::list_kind(self.list) {
            Some(kind) => backend.last.list(kind, &self.filter),
            None => backend.last.reply(method.rpc),
        };
        let Some(items) = items else {
            return nothing(refusal.map_or(Absence::Unknown, Absence::Refused));
        };
        node.metrics.count_stale_list(&backend.name, method.name);
        let has_items = !items.is_empty();
        Ok(Contribution { backend: Arc::clone(backend), items, has_items, live: false, refusal })
    }
}

/// Leaves out of a backend's items what another backend owns.
pub(super) fn owned_items(backend: &Backend, list: List, items: Bytes) -> Bytes {
    match learn::list_kind(list) {
        Some(kind) => backend.last.without_foreign(kind, items),
        // They begin with the ID of their sandbox, as sandboxes do.
        None if list == List::SandboxMetrics => backend.last.without_foreign(ListKind::Sandboxes, items),
        None => items,
    }
}

/// Waits up to 3 s for backends whose descriptors are unknown: kubelet calls once, at its start, which may be
/// that of the machine.
async fn await_descriptors(backends: &[Arc<Backend>], caller: Option<Duration>) {
    let wait = caller.map_or(DESCRIPTORS, |caller| caller.min(DESCRIPTORS));
    let unheard = backends.iter().filter(|backend| {
        let last = &backend.last;
        last.reply(Rpc::ListMetricDescriptors).is_none() && !last.is_unimplemented(Rpc::ListMetricDescriptors)
    });
    join_all(unheard.map(|backend| tokio::time::timeout(wait, backend.connected()))).await;
}

pub(super) fn lacking(backend: &Backend, method: &Method) -> Error {
    Error::Unimplemented(format!("backend {} has no {}", backend.name, method.name))
}

/// Returns a backend's own status as an error, for a reply that was to be merged.
pub(super) fn refusal(backend: &Backend, method: &Method, trailers: &HeaderMap) -> Error {
    let status = Status::from_header_map(trailers);
    let (code, message) =
        status.map_or((Code::Unknown, String::new()), |status| (status.code(), status.message().to_owned()));
    Error::Refused { backend: Arc::clone(&backend.name), method: method.name, code, message }
}

/// Returns how long a backend may take for a list.
pub(super) fn deadline(backend: &Backend, method: &Method) -> Duration {
    let timeouts = backend.config().timeouts;
    match method.deadline {
        Deadline::Stats => timeouts.stats,
        Deadline::Read => timeouts.read,
        Deadline::Fast => FAST_DEADLINE,
        Deadline::List | Deadline::Caller => timeouts.list,
    }
}

/// Tells whether a list without one backend does harm that an error does not.
fn must_be_complete(list: List) -> bool {
    matches!(list, List::Sandboxes | List::Containers | List::Images)
}

/// Tells whether the list is of measured values: stats, metrics and their descriptors.
pub(super) fn is_measured(list: List) -> bool {
    matches!(list, List::ContainerStats | List::SandboxStats | List::SandboxMetrics | List::MetricDescriptors)
}

/// Tells whether a runtime may lack this list. Every runtime has the others; a backend that answers them with
/// `Unimplemented` is faulty.
pub(super) fn is_optional(list: List) -> bool {
    matches!(list, List::SandboxStats | List::MetricDescriptors | List::SandboxMetrics)
}
