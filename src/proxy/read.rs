//! Reads of one object: live within their deadline, otherwise last-known.
//!
//! kubelet inspects changed pods one after another and believes what it reads, so a read of a backend that
//! does not answer must be short and must not contradict the last-known lists. A late backend is probed in
//! the background and calls do not wait for it; the same holds for one late object of a backend that answers
//! other calls.
//!
//! Which remembered status is served when there is no live one:
//!
//! | case | served | decided in |
//! |---|---|---|
//! | the backend gave no reply: down, late, busy, lost | that of the last OK reply | `read_status` |
//! | the object alone is late | that of the last OK reply | `fetch_unless_late` |
//! | the reply is not gRPC, or an HTTP status | that of the last OK reply | `read_status` |
//! | a sandbox status that is not protobuf | none: an error, as in a list | `check_required` |
//! | the backend answered with an error | none: the error passes to the client | `read_status` |
//! | the last OK reply is of a read sent before a write | none: a write drops it | `state/statuses.rs` |
//! | the write was not sent | the dropped one again | `StatusInvalidation` in `forward.rs` |
//! | the backend's last list shows the object in another state, or not at all | none | `KnownState::status` |
//! | the call is verbose | none: such a reply is never cached | `read_status` |
//! | the node was rebooted since | none | `KnownState` |

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::error::Elapsed;
use tonic::Code;

use crate::backend::{Backend, BufferedReply, MethodClass, own_headers};
use crate::codec::Message;
use crate::cri::{FILTER_ID, LIST_FILTER, LIST_ITEMS, field, field_path};
use crate::error::Error;
use crate::merge::{required, stats};
use crate::method::{List, Method};
use crate::proxy::forward::ObjectCall;
use crate::proxy::reply::Outcome;
use crate::proxy::retry::{ATTEMPT_TIMEOUT, retry_hedged};
use crate::proxy::{Call, refresh};
use crate::state::{Filter, Kind, ListKind};
use crate::wire;

/// The field `verbose` of both status requests.
const VERBOSE: [u32; 1] = field_path!(PodSandboxStatusRequest.verbose);
const _: () = assert!(VERBOSE[0] == field!(ContainerStatusRequest.verbose), "one number for both");

/// The longest pause between attempts to read a late object.
const OBJECT_PAUSE: Duration = Duration::from_secs(1);

impl Call {
    /// Reads a status, and caches it unless it is verbose.
    pub(super) async fn read_status(&mut self, kind: Kind, call: ObjectCall<'_>) -> Result<Outcome, Error> {
        let ObjectCall { backend, method, id, message } = call;
        let verbose = wire::peek_varint(message.encoded(), &VERBOSE)? != 0;
        let revision = backend.state.begin_read();
        let last_known = || (!verbose).then(|| backend.state.status(kind, id)).flatten();
        let reply = match self.fetch_unless_late(call).await {
            Ok(reply) => reply,
            Err(error) => return last_known().map(|status| Outcome::message(&status)).ok_or(error),
        };
        let reply = if kind == Kind::Sandbox { self.check_required(backend, method, reply)? } else { reply };
        if reply.code == Code::Ok && !verbose {
            backend.state.remember_status(kind, id, revision, reply.message.encoded());
        }
        Ok(reply.into())
    }

    /// Makes a sandbox's status safe for kubelet, which would crash on some missing fields.
    fn check_required(
        &self,
        backend: &Backend,
        method: &'static Method,
        reply: BufferedReply,
    ) -> Result<BufferedReply, Error> {
        if reply.code != Code::Ok {
            return Ok(reply);
        }
        let checked = required::remove_incomplete(
            required::CheckedReply::SandboxStatus,
            &reply.message.encoded_bytes(),
        );
        let (encoded, count) = checked.map_err(|error| backend.invalid_reply_error(error))?;
        if count == 0 {
            return Ok(reply);
        }
        self.node.left_out.record_items(&backend.name, method.name, count);
        Ok(BufferedReply { message: Message::new(&encoded), ..reply })
    }

    /// Reads the stats of one object; if the backend does not answer, its last-known list of stats has them.
    pub(super) async fn read_stats(&mut self, list: List, call: ObjectCall<'_>) -> Result<Outcome, Error> {
        let ObjectCall { backend, id, .. } = call;
        let local = backend.config().local;
        match self.fetch_unless_late(call).await {
            Ok(reply) if local || reply.code != Code::Ok => Ok(reply.into()),
            Ok(reply) => {
                let message =
                    Message::new(&without_local_paths(backend, list, &reply.message.encoded_bytes())?);
                Ok(BufferedReply { message, ..reply }.into())
            }
            Err(error) => {
                let stats = last_known_stats(backend, list, id).ok_or(error)?;
                let stats = if local { stats } else { without_local_paths(backend, list, &stats)? };
                Ok(Outcome::message(&stats))
            }
        }
    }

    /// Calls the backend unless it or the object is late, within the deadline of reads. After half the
    /// deadline `Version` is called too: if that is answered, only this object is late.
    async fn fetch_unless_late(&mut self, call: ObjectCall<'_>) -> Result<BufferedReply, Error> {
        let ObjectCall { backend, method, id, message } = call;
        let wait = self.wait_within(backend.deadline(method));
        let late = backend.late_error(wait.time);
        if backend.health.is_late(MethodClass::Reads) {
            refresh::start_refresh(&self.node, backend, MethodClass::Reads);
            return Err(late);
        }
        if backend.health.is_object_late(id) {
            return Err(late);
        }
        let half = wait.time / 2;
        let silent = {
            let mut asked = pin!(self.fetch(backend, method, message));
            if let Ok(reply) = tokio::time::timeout(half, &mut asked).await {
                return reply;
            }
            let probe = backend.ask_version(half);
            match await_read_and_probe(tokio::time::timeout(half, asked), probe).await {
                Ok(reply) => return reply,
                Err(silent) => silent,
            }
        };
        match silent {
            _ if !wait.is_backends_own => {}
            Silent::Object => mark_object_late(call),
            Silent::Backend => {
                refresh::mark_late_and_refresh(&self.node, backend, MethodClass::Reads, method);
            }
        }
        Err(late)
    }
}

/// Who is silent if a read was not answered before its deadline.
enum Silent {
    /// The object alone: the probe of its backend was answered.
    Object,
    /// The backend.
    Backend,
}

/// Waits for the reply to a read until its deadline while a probe is in flight, which tells what is silent if
/// the read times out.
async fn await_read_and_probe<R, E>(
    asked: impl Future<Output = Result<R, Elapsed>>,
    probe: impl Future<Output = Result<(), E>>,
) -> Result<R, Silent> {
    let (mut asked, mut probe) = (pin!(asked), pin!(probe));
    let mut is_alive = None;
    loop {
        tokio::select! {
            biased;
            reply = &mut asked => {
                return reply.map_err(|_| if is_alive == Some(true) { Silent::Object } else { Silent::Backend });
            }
            answer = &mut probe, if is_alive.is_none() => is_alive = Some(answer.is_ok()),
        }
    }
}

/// Marks one object late, and reads it in the background until that is answered. Other objects are read as
/// before.
fn mark_object_late(call: ObjectCall<'_>) {
    let ObjectCall { backend, method, id, message } = call;
    if !backend.health.mark_object_late(id) {
        return;
    }
    tracing::warn!(backend = %backend.name, method = method.name, id, "is late for this object alone");
    let (backend, id, message) = (Arc::clone(backend), id.to_owned(), message.framed());
    let connection = backend.health.connection();
    tokio::spawn(async move {
        let ask =
            || backend.fetch_within(ATTEMPT_TIMEOUT, method, own_headers(ATTEMPT_TIMEOUT), message.clone());
        tokio::select! {
            () = backend.disconnected() => return,
            _ = retry_hedged(OBJECT_PAUSE, ask, Error::is_silence) => {}
        }
        if backend.health.connection() == connection {
            backend.health.end_object_lateness(&id);
        }
    });
}

/// Removes the filesystem paths from the stats of a backend on another host.
fn without_local_paths(backend: &Backend, list: List, stats: &Bytes) -> Result<Bytes, Error> {
    stats::without_filesystems(list, stats).map_err(|error| backend.invalid_reply_error(error))
}

/// Returns the stats of `id` from the last-known list: a list of one item has the encoding of the reply about
/// that item.
fn last_known_stats(backend: &Backend, list: List, id: &str) -> Option<Bytes> {
    let kind = ListKind::of(list)?;
    let mut filter = BytesMut::new();
    wire::put_bytes(&mut filter, FILTER_ID, id.as_bytes());
    let mut request = BytesMut::new();
    wire::put_bytes(&mut request, LIST_FILTER, &filter);
    let stats = backend.state.list(kind, &Filter::parse(kind, &request).ok()?)?;
    (wire::items(&stats, LIST_ITEMS).count() == 1).then_some(stats)
}
