//! The fan-out lane: all backends at once, one reply.
//!
//! Every backend is asked within its own deadline. One that is down, late or wrong contributes what it was
//! last known to have, so a list is never shorter for an outage; one that was never listed at all makes the
//! list fail, because a short list is worse than an error (kubelet's PLEG takes what is missing for dead).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::HeaderMap;
use tonic::{Code, Status};

use crate::backend::{Backend, Class, Collected, Refresh, own_headers};
use crate::codec::Message;
use crate::cri::Rpc;
use crate::error::Error;
use crate::merge;
use crate::method::{Deadline, Kind, List, Method};
use crate::proxy::asking::until_answered;
use crate::proxy::reply::Outcome;
use crate::proxy::{Call, ProxyState, answer, learn, pod_metrics};
use crate::router::Lookup;
use crate::snapshot::{Filter, InstanceId, ListKind};

/// How long one attempt of a refresh may take. Others start beside it long before that (`asking.rs`).
pub(super) const REFRESH: Duration = Duration::from_secs(60);
/// The longest pause before what the node is judged by is asked again after an error.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The longest such pause of what is asked once for each connection.
const LONGEST_PAUSE_ONCE: Duration = Duration::from_secs(2);
/// The label by which kubelet lists one pod after each sync (`types/labels.go`, `KubernetesPodUIDLabel`).
const POD_UID: &str = "io.kubernetes.pod.uid";
/// How long a backend is waited for whose metric descriptors were never heard.
const DESCRIPTORS: Duration = Duration::from_secs(3);
/// How long anything may take that kubelet judges the whole node by.
pub(super) const PROMPT: Duration = Duration::from_millis(80);

/// What one backend contributes to a list.
#[derive(Debug)]
pub(super) struct Contribution {
    pub(super) backend: Arc<Backend>,
    /// Encoded items of field 1.
    pub(super) items: Bytes,
    /// Whether there are any; those of a stream have gone out already.
    pub(super) has_items: bool,
    /// Whether the backend answered just now.
    pub(super) live: bool,
    /// The error of its own that it answered with, in the place of a list.
    pub(super) refusal: Option<Error>,
}

impl Contribution {
    pub(super) fn to_merge(&self, default: InstanceId) -> merge::Part<'_> {
        merge::Part {
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
    why: Lack,
}

/// Why a backend contributes nothing.
#[derive(Debug)]
enum Lack {
    /// It was never listed, and no saved state knows it.
    Unknown,
    /// It said that it does not implement the method.
    Unimplemented(Error),
    /// It answered with an error of its own, and nothing is remembered.
    Refused(Error),
}

/// Whether what backends contributed makes a list.
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
    /// Takes note of one backend's contribution.
    pub(super) fn add(&mut self, contribution: Result<&Contribution, NoContribution>) {
        let refusal = match &contribution {
            Ok(contribution) => {
                self.any = true;
                self.live_items |= contribution.live && contribution.has_items;
                contribution.refusal.as_ref()
            }
            Err(NoContribution { why: Lack::Refused(error), .. }) => Some(error),
            Err(_) => None,
        };
        self.refusal = self.refusal.take().or_else(|| refusal.cloned());
        self.lacking.extend(contribution.err());
    }

    /// Returns why it makes none, and notes who has no part in one that it makes. An empty list of measured
    /// values would say that no pod uses anything; if that is because a backend answered with an error, the
    /// error goes out. `scoped` says that the list is that of one backend's own socket.
    pub(super) fn of(self, node: &ProxyState, list: List, scoped: bool) -> Result<(), Error> {
        let unimplemented = self.lacking.iter().find_map(|lacking| match &lacking.why {
            Lack::Unimplemented(error) => Some(error.clone()),
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
        let unheard = self.lacking.iter().filter(|lacking| !matches!(lacking.why, Lack::Unimplemented(_)));
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

impl Lack {
    /// Returns what the backend said; `None` if it could not be asked.
    fn cause(&self) -> Option<String> {
        match self {
            Self::Unknown => None,
            Self::Unimplemented(error) | Self::Refused(error) => Some(error.to_string()),
        }
    }
}

impl Call {
    /// Asks all backends that may have something, and merges.
    pub(super) async fn fan_out(
        &mut self,
        method: &'static Method,
        list: List,
        message: Message,
    ) -> Result<Outcome, Error> {
        self.watch.at_all(&self.node);
        // The semaphore is never closed.
        self.list = Arc::clone(&self.lists).acquire_owned().await.ok();
        let mut parts = self.parts(method, list, message).await?;
        if list == List::SandboxMetrics {
            let wanted = self.wanted_descriptors().await;
            for part in &mut parts {
                part.items = pod_metrics::ordered(&part.backend, wanted.as_ref(), &part.items);
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

    /// Asks all backends at once for their part of a list.
    pub(super) async fn parts(
        &mut self,
        method: &'static Method,
        list: List,
        message: Message,
    ) -> Result<Vec<Contribution>, Error> {
        self.refuse_pod_stats(list)?;
        let filter = Arc::new(learn::filter(list, &message)?);
        let backends = self.backends_with(list, &filter);
        let caller = self.caller_waits();
        if list == List::MetricDescriptors {
            await_descriptors(&backends, caller).await;
        }
        let headers = std::mem::take(&mut self.headers);
        let asked = backends.iter().map(|backend| {
            let limit = deadline(backend, method);
            let wait = caller.map_or(limit, |caller| limit.min(caller));
            let ask = Ask { list, filter: Arc::clone(&filter), limit, wait };
            ask.part(&self.node, backend, method, headers.clone(), &message)
        });
        let mut parts = Vec::with_capacity(backends.len());
        let mut verdict = Completeness::default();
        for part in join_all(asked).await {
            match part {
                Ok(part) => {
                    verdict.add(Ok(&part));
                    parts.push(part);
                }
                Err(lacking) => verdict.add(Err(lacking)),
            }
        }
        verdict.of(&self.node, list, self.scope.is_some())?;
        // Only now is it known who owns what: an ID may have changed hands while the others were asked.
        for part in &mut parts {
            part.items = owned_items(&part.backend, list, part.items.clone());
        }
        Ok(parts)
    }

    /// Sends a call to every backend; an error of any is an error, so that kubelet tries again.
    pub(super) async fn broadcast(
        &mut self,
        method: &'static Method,
        message: Message,
    ) -> Result<Outcome, Error> {
        self.watch.at_all(&self.node);
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

    /// Returns the one backend that a filter can mean, else all. Of one pod, sandbox or container nobody but
    /// the known and only owner is asked: kubelet lists a pod after each of its syncs.
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
        if backends.iter().all(|backend| backend.last.known())
            && let Some(owner) = filter.label(POD_UID).and_then(|uid| self.node.router.owners.of_pod(uid))
            && let Some(backend) = backends.iter().find(|backend| backend.id == owner)
        {
            return vec![Arc::clone(backend)];
        }
        backends
    }
}

/// How one list is asked for.
pub(super) struct Ask {
    pub(super) list: List,
    pub(super) filter: Arc<Filter>,
    /// The backend's own deadline: outlasting it is being late.
    pub(super) limit: Duration,
    /// That, or less if the caller waits less.
    pub(super) wait: Duration,
}

impl Ask {
    /// Returns what the backend has, live, or as last known.
    pub(super) async fn part(
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
                backend.settled().await;
            }
            if backend.health.is_late(class) {
                return None;
            }
            let epoch = backend.last.epoch();
            let reply = backend.fetch(method, headers.clone(), message.framed()).await;
            match reply {
                // One sandbox that goes away meanwhile makes containerd refuse the stats of all
                // (sandbox_stats_list.go).
                Ok(Collected { code: Code::NotFound | Code::Unknown, .. }) if is_measured(self.list) => {
                    Some((epoch, backend.fetch(method, headers, message.framed()).await))
                }
                reply => Some((epoch, reply)),
            }
        };
        let mut refusal = None;
        match tokio::time::timeout(self.wait, asked).await {
            Ok(None) => refresh(node, backend, class),
            Ok(Some((epoch, Ok(reply)))) if reply.code == Code::Ok => {
                let items = reply.message.encoded_bytes();
                match learn::listed(node, backend, self.list, epoch, self.filter.is_empty(), &items) {
                    Ok(items) => {
                        backend.note_lack(method, false);
                        let (backend, has_items) = (Arc::clone(backend), !items.is_empty());
                        return Ok(Contribution { backend, items, has_items, live: true, refusal });
                    }
                    Err(error) => failed(node, backend, class, error.to_string()),
                }
            }
            Ok(Some((_, Ok(reply)))) if reply.code == Code::Unimplemented && is_optional(self.list) => {
                backend.note_lack(method, true);
                let why = Lack::Unimplemented(lacking(backend, method));
                return Err(NoContribution { backend: Arc::clone(&backend.name), why });
            }
            Ok(Some((_, Ok(reply)))) => {
                failed(node, backend, class, format!("{} was answered with {:?}", method.name, reply.code));
                refusal = Some(refused(backend, method, &reply.trailers));
            }
            Ok(Some((_, Err(Error::Down { .. })))) => {}
            Ok(Some((_, Err(error)))) => failed(node, backend, class, error.to_string()),
            Err(_) if self.wait == self.limit => fell_behind(node, backend, class, method),
            Err(_) => {}
        }
        self.last_known(node, backend, method, refusal)
    }

    /// Returns what the backend was last known to have; `refusal` is the error that it answered with, if it
    /// did.
    pub(super) fn last_known(
        &self,
        node: &ProxyState,
        backend: &Arc<Backend>,
        method: &Method,
        refusal: Option<Error>,
    ) -> Result<Contribution, NoContribution> {
        let nothing = |why| Err(NoContribution { backend: Arc::clone(&backend.name), why });
        if is_optional(self.list) && backend.last.lacks(method.rpc) {
            return nothing(Lack::Unimplemented(lacking(backend, method)));
        }
        let items = match learn::kept(self.list) {
            Some(kind) => backend.last.list(kind, &self.filter),
            None => backend.last.reply(method.rpc),
        };
        let Some(items) = items else {
            return nothing(refusal.map_or(Lack::Unknown, Lack::Refused));
        };
        node.metrics.count_stale_list(&backend.name, method.name);
        let has_items = !items.is_empty();
        Ok(Contribution { backend: Arc::clone(backend), items, has_items, live: false, refusal })
    }
}

/// Leaves out of a backend's items what another backend owns.
pub(super) fn owned_items(backend: &Backend, list: List, items: Bytes) -> Bytes {
    match learn::kept(list) {
        Some(kind) => backend.last.without_foreign(kind, items),
        // They begin with the ID of their sandbox, as sandboxes do.
        None if list == List::SandboxMetrics => backend.last.without_foreign(ListKind::Sandboxes, items),
        None => items,
    }
}

/// Records that a call outlasted the backend's deadline for it.
pub(super) fn fell_behind(node: &Arc<ProxyState>, backend: &Arc<Backend>, class: Class, method: &Method) {
    if backend.health.mark_late(class) && method.deadline != Deadline::Fast {
        tracing::warn!(backend = %backend.name, method = method.name, "backend is late");
    }
    refresh(node, backend, class);
}

/// Records that a backend's part could not be had. If it is one half of the pair, the other half must not be
/// of a later moment: it comes from last-known state too, until both were listed again.
pub(super) fn failed(node: &Arc<ProxyState>, backend: &Arc<Backend>, class: Class, cause: String) {
    backend.health.note_error(cause);
    if class == Class::Lists {
        backend.health.mark_late(class);
        refresh(node, backend, class);
    }
}

/// Starts the one refresh of a class of calls, unless it is in flight already. It ends with the connection.
pub(super) fn refresh(node: &Arc<ProxyState>, backend: &Arc<Backend>, class: Class) {
    if !backend.is_up() {
        return;
    }
    let Some(place) = backend.begin_refresh(class) else { return };
    let (node, backend) = (Arc::clone(node), Arc::clone(backend));
    tokio::spawn(async move {
        tokio::select! {
            () = backend.disconnected() => {}
            () = renew(&node, &backend, class, &place) => {}
        }
    });
}

/// Asks until there is an answer. What the node is judged by, and what is asked once for each connection,
/// must be a good one; of the rest any will do.
async fn renew(node: &ProxyState, backend: &Arc<Backend>, class: Class, place: &Refresh) {
    let judged = matches!(class, Class::Lists | Class::Status);
    let once = matches!(class, Class::Images | Class::Filesystems | Class::Metrics | Class::RuntimeConfig);
    let failed = |error: &Error| {
        if place.is_outdated() {
            return false;
        }
        let silent = matches!(error, Error::Late { .. } | Error::Overdue { .. } | Error::Busy { .. });
        backend.health.note_error(error.to_string());
        if judged || (silent && class != Class::RuntimeConfig) {
            backend.health.mark_late(class);
        } else {
            backend.health.mark_answered(class);
        }
        judged || once || silent
    };
    let longest_pause = if judged { LONGEST_PAUSE } else { LONGEST_PAUSE_ONCE };
    until_answered(longest_pause, || renew_once(node, backend, class), failed).await;
    if !place.is_outdated() && backend.health.mark_answered(class) {
        tracing::info!(backend = %backend.name, ?class, "backend answers in time again");
    }
}

async fn renew_once(node: &ProxyState, backend: &Arc<Backend>, class: Class) -> Result<(), Error> {
    let lists: &[List] = match class {
        Class::Lists => &[List::Sandboxes, List::Containers],
        Class::Images => &[List::Images],
        Class::ContainerStats => &[List::ContainerStats],
        Class::SandboxStats => &[List::SandboxStats],
        Class::Metrics => &[List::MetricDescriptors],
        Class::Filesystems => &[List::Filesystems],
        Class::Reads => return backend.ask_version(REFRESH).await,
        Class::Status | Class::RuntimeConfig => return answer::renew(node, backend, class).await,
    };
    for list in lists {
        match list_all(node, backend, *list).await {
            Err(Error::Unimplemented(_)) => backend.health.note_lack(list.unary()),
            listed => listed?,
        }
    }
    Ok(())
}

/// Lists everything of one kind at one backend, and learns from it.
pub(super) async fn list_all(node: &ProxyState, backend: &Arc<Backend>, list: List) -> Result<(), Error> {
    let method = list.unary();
    let epoch = backend.last.epoch();
    let listed = backend.fetch(method, own_headers(REFRESH), Message::new(&[]).framed());
    let late = || Error::Late { backend: Arc::clone(&backend.name), waited: REFRESH };
    let reply = tokio::time::timeout(REFRESH, listed).await.map_err(|_| late())??;
    match reply.code {
        Code::Ok => {
            backend.note_lack(method, false);
            learn::listed(node, backend, list, epoch, true, &reply.message.encoded_bytes())?;
            if list == List::MetricDescriptors {
                pod_metrics::note_unannounced(node, backend);
            }
            Ok(())
        }
        Code::Unimplemented if is_optional(list) => {
            backend.note_lack(method, true);
            Err(lacking(backend, method))
        }
        code => {
            let cause = format!("{} was answered with {code:?}", method.name);
            Err(Error::Lost { backend: Arc::clone(&backend.name), cause })
        }
    }
}

/// Waits a little for backends whose descriptors were never heard: kubelet asks once, at its start, which may
/// be that of the machine.
async fn await_descriptors(backends: &[Arc<Backend>], caller: Option<Duration>) {
    let wait = caller.map_or(DESCRIPTORS, |caller| caller.min(DESCRIPTORS));
    let unheard = backends.iter().filter(|backend| {
        let last = &backend.last;
        last.reply(Rpc::ListMetricDescriptors).is_none() && !last.lacks(Rpc::ListMetricDescriptors)
    });
    join_all(unheard.map(|backend| tokio::time::timeout(wait, backend.connected()))).await;
}

fn lacking(backend: &Backend, method: &Method) -> Error {
    Error::Unimplemented(format!("backend {} has no {}", backend.name, method.name))
}

/// Returns the error by which a backend's own answer goes out where the answers of several would.
pub(super) fn refused(backend: &Backend, method: &Method, trailers: &HeaderMap) -> Error {
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
        Deadline::Fast => PROMPT,
        Deadline::List | Deadline::Caller => timeouts.list,
    }
}

/// Whether leaving a backend out of this list does harm that an error does not.
fn must_be_complete(list: List) -> bool {
    matches!(list, List::Sandboxes | List::Containers | List::Images)
}

/// Whether the list is of measured values: stats, metrics and their descriptors.
pub(super) fn is_measured(list: List) -> bool {
    matches!(list, List::ContainerStats | List::SandboxStats | List::SandboxMetrics | List::MetricDescriptors)
}

/// Whether a runtime may do without this list. Every other one is as old as the API, and a backend that
/// denies having it is out of order.
fn is_optional(list: List) -> bool {
    matches!(list, List::SandboxStats | List::MetricDescriptors | List::SandboxMetrics)
}
