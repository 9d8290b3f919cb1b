//! Finds the owner of an ID: known, or looked up, never guessed.
//!
//! An unknown ID is looked up with filtered lists at every backend; the call then goes to its owner. An
//! idempotent call for an unknown ID is OK only if every backend has answered that it does not have it. A
//! prefix is replaced by the full ID before the call is forwarded.

use std::sync::Arc;

use bytes::BytesMut;
use futures_util::future::join_all;
use tonic::Code;

use crate::backend::{Backend, CallRequest, MethodClass, own_headers};
use crate::codec::Message;
use crate::cri::{FILTER_ID, ITEM_ID, LIST_FILTER, LIST_ITEMS, OBJECT_ID, Rpc};
use crate::error::Error;
use crate::method::{self, Kind, List, Method, OnUnknownId, Route, Service};
use crate::proxy::forward::ObjectCall;
use crate::proxy::learn::{Learner, ReceivedList};
use crate::proxy::reply::Outcome;
use crate::proxy::{Call, Node};
use crate::router::IdMatch;
use crate::state::InstanceId;
use crate::wire;

/// The length of a full ID. For unknown methods only full IDs are looked up.
const FULL_ID: usize = 64;

/// The owner of an ID in a request.
struct Found {
    backend: InstanceId,
    /// The full ID, if the request has a prefix of it.
    full: Option<String>,
}

impl Call {
    /// Sends a call to the owner of the ID in its field 1.
    pub(super) async fn forward_to_owner(
        &mut self,
        method: &'static Method,
        kind: Kind,
        on_unknown: OnUnknownId,
        message: Message,
    ) -> Result<Outcome, Error> {
        let id = wire::peek_str(message.encoded(), &[OBJECT_ID])?;
        if id.is_empty() {
            return match method.rpc {
                Rpc::PodSandboxStats => Box::pin(self.pod_stats_exist(method, message)).await,
                _ => Err(Error::EmptyId(kind.word())),
            };
        }
        let found = match self.find_or_look_up(kind, id).await {
            Err(Error::NotFound { .. }) if on_unknown == OnUnknownId::Ok => return Ok(Outcome::message(&[])),
            found => found?,
        };
        let backend = self.node.backend(found.backend)?;
        let Some(full) = found.full else {
            return self.forward(ObjectCall { backend: &backend, method, id, message: &message }).await;
        };
        let message = Message::new(&wire::append_str(message.encoded(), &[OBJECT_ID], &full));
        let call = ObjectCall { backend: &backend, method, id: &full, message: &message };
        Box::pin(self.forward(call)).await
    }

    /// Sends a call of a method that is not in the table to the owner of its first string if that is an ID,
    /// otherwise to the default backend.
    pub(super) async fn forward_unknown(&mut self, message: Message) -> Result<Outcome, Error> {
        let id = wire::peek_str(message.encoded(), &[OBJECT_ID]).unwrap_or_default().to_owned();
        // All requests of known methods that name an object have its ID in this field.
        let known = self.node.router.owners.find(None, &id, self.scope);
        // An image ID has 64 digits too, and no sandbox or container is the object of an image call.
        let of_images = method::service(&self.path) == Some(Service::Image);
        let owner = match known {
            _ if of_images => self.node.default_in(self.scope),
            IdMatch::Exact(backend) => backend,
            _ if id.len() == FULL_ID && id.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                self.look_up(None, &id).await?.backend
            }
            _ => self.node.default_in(self.scope),
        };
        let backend = self.node.backend(owner)?;
        self.recorder.set_backend(&backend);
        let headers = self.take_headers();
        let mut request = CallRequest {
            method: None,
            path: &self.path,
            headers,
            message: message.framed(),
            expected: None,
        };
        Ok(Outcome::Streaming(backend.call(&mut request).await?))
    }

    /// Returns the owner of an ID or of a prefix; an ID that is not known is looked up at the backends.
    async fn find_or_look_up(&self, kind: Kind, id: &str) -> Result<Found, Error> {
        match self.node.router.owners.find(Some(kind), id, self.scope) {
            IdMatch::Exact(backend) => Ok(Found { backend, full: None }),
            IdMatch::Prefix(backend, full) => Ok(Found { backend, full: Some(full) }),
            IdMatch::Ambiguous => Err(Error::Ambiguous { kind: kind.word(), prefix: id.to_owned() }),
            IdMatch::Unknown => Box::pin(self.look_up(Some(kind), id)).await,
        }
    }

    /// Tells whether a call that the owner answered with `NotFound` succeeds all the same: the call stops or
    /// removes an object, and a list of the owner does not show that object either.
    ///
    /// containerd 1.6 answers `NotFound` to `StopPodSandbox` of a sandbox that is gone. critest
    /// (`idempotence.go`) wants OK, and kubelet's sandbox collection (`removeSandbox`) fails without it.
    pub(super) async fn succeeds_because_gone(
        &self,
        backend: &Arc<Backend>,
        method: &Method,
        id: &str,
    ) -> bool {
        let Route::Owner(kind, OnUnknownId::Ok) = method.route else { return false };
        let listed = look_up_at(&self.node, backend, &[kind], id).await;
        listed.is_ok_and(|ids| !ids.iter().any(|listed| listed == id))
    }

    /// Looks an unknown ID up at every backend.
    async fn look_up(&self, kind: Option<Kind>, id: &str) -> Result<Found, Error> {
        self.node.metrics.count_unknown_id();
        let found = self.look_up_everywhere(kind, id).await;
        let method = self.method.map_or(method::UNKNOWN_NAME, |method| method.name);
        self.node.unknown_ids.log(method, id, found.is_ok());
        found
    }

    async fn look_up_everywhere(&self, kind: Option<Kind>, id: &str) -> Result<Found, Error> {
        let kinds = kind.map_or(vec![Kind::Sandbox, Kind::Container], |kind| vec![kind]);
        let (backends, undecided): (Vec<_>, Vec<_>) =
            self.backends().into_iter().partition(|backend| backend.state.maybe_moved_from().is_none());
        let asked =
            join_all(backends.iter().map(|backend| look_up_at(&self.node, backend, &kinds, id))).await;
        let mut found = Vec::new();
        // A backend that may have moved is not called: until its lists are compared, its IDs may belong to
        // the old instance.
        let mut without_answer: Vec<_> = undecided.iter().map(|backend| Arc::clone(&backend.name)).collect();
        for (backend, answer) in backends.iter().zip(asked) {
            match answer {
                Ok(ids) => {
                    let full = ids.into_iter().map(|listed| Some(listed).filter(|listed| listed != id));
                    found.extend(full.map(|full| Found { backend: backend.id, full }));
                }
                Err(_) => without_answer.push(Arc::clone(&backend.name)),
            }
        }
        let word = kind.map_or("object", Kind::word);
        let exact = found.iter().position(|found| found.full.is_none());
        match (exact, found.len()) {
            (Some(exact), _) => Ok(found.swap_remove(exact)),
            (None, 2..) => Err(Error::Ambiguous { kind: word, prefix: id.to_owned() }),
            _ if !without_answer.is_empty() => {
                Err(Error::LookupIncomplete { kind: word, id: id.to_owned(), backends: without_answer })
            }
            (None, 1) => Ok(found.swap_remove(0)),
            _ => Err(Error::NotFound { kind: word, id: id.to_owned() }),
        }
    }
}

/// Lists the IDs at one backend that `id` equals, or is a prefix of, and learns their owner.
async fn look_up_at(
    node: &Node,
    backend: &Arc<Backend>,
    kinds: &[Kind],
    id: &str,
) -> Result<Vec<String>, Error> {
    let mut filter = BytesMut::new();
    wire::put_bytes(&mut filter, FILTER_ID, id.as_bytes());
    let mut request = BytesMut::new();
    wire::put_bytes(&mut request, LIST_FILTER, &filter);
    let request = Message::new(&request);
    let mut ids = Vec::new();
    for kind in kinds {
        let list = match kind {
            Kind::Sandbox => List::Sandboxes,
            Kind::Container => List::Containers,
        };
        let method = list.unary();
        let wait = backend.deadline(method);
        let late = backend.late_error(wait);
        if backend.health.is_late(MethodClass::Lists) {
            return Err(late);
        }
        let revision = backend.state.begin_read();
        let listed = backend.fetch(method, own_headers(wait), request.framed());
        let reply = tokio::time::timeout(wait, listed).await.map_err(|_| late)??;
        if reply.code != Code::Ok {
            return Err(backend.unusable_reply_error(method, &reply));
        }
        let encoded = &reply.message.encoded_bytes();
        let received = ReceivedList { list, revision, unfiltered: false, encoded };
        let items = Learner::new(node, backend).accept_list(received)?;
        for item in wire::items(&items, LIST_ITEMS) {
            let known = wire::peek_str(item?, &[ITEM_ID])?;
            // A backend that ignores the filter lists other objects too.
            if known.starts_with(id) {
                ids.push(known.to_owned());
            }
        }
    }
    Ok(ids)
}
