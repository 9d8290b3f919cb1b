//! Reads of one object: live within their deadline, else as last known.
//!
//! kubelet inspects changed pods one after another and takes what it is told for final, so a read of a backend
//! that does not answer must neither take long nor say anything that the last-known lists contradict. A late
//! backend is asked once more beside the calls, which do not wait for it. Nothing verbose is ever remembered.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tonic::Code;

use crate::backend::{Backend, Class, Collected};
use crate::codec::Message;
use crate::cri::{FILTER_ID, LIST_FILTER, LIST_ITEMS, field, field_path};
use crate::error::Error;
use crate::merge::{required, stats};
use crate::method::{List, Method};
use crate::proxy::reply::Outcome;
use crate::proxy::{Call, fan_out, learn};
use crate::snapshot::{Filter, StatusKind};
use crate::wire;

/// Whether details are asked for, in both status requests.
const VERBOSE: [u32; 1] = field_path!(PodSandboxStatusRequest.verbose);
const _: () = assert!(VERBOSE[0] == field!(ContainerStatusRequest.verbose), "one number for both");

impl Call {
    /// Reads a status; remembers it unless it is verbose.
    pub(super) async fn read_status(
        &mut self,
        backend: &Arc<Backend>,
        method: &'static Method,
        kind: StatusKind,
        id: &str,
        message: Message,
    ) -> Result<Outcome, Error> {
        let verbose = wire::peek_varint(message.encoded(), &VERBOSE)? != 0;
        let epoch = backend.last.epoch();
        let remembered = || (!verbose).then(|| backend.last.status(kind, id)).flatten();
        let reply = match self.read(backend, method, &message).await {
            Ok(reply) => reply,
            Err(error) => return remembered().map(|status| Outcome::message(&status)).ok_or(error),
        };
        let reply = if kind == StatusKind::Sandbox { self.safe(backend, method, reply)? } else { reply };
        if reply.code == Code::Ok && !verbose {
            backend.last.remember_status(kind, id, epoch, reply.message.encoded());
        }
        Ok(reply.into())
    }

    /// Returns a sandbox's status without what would crash kubelet.
    fn safe(&self, backend: &Backend, method: &'static Method, reply: Collected) -> Result<Collected, Error> {
        if reply.code != Code::Ok {
            return Ok(reply);
        }
        let checked = required::checked(required::Reply::SandboxStatus, &reply.message.encoded_bytes());
        let (encoded, count) = checked.map_err(|error| backend.garbage(error.to_string()))?;
        if count == 0 {
            return Ok(reply);
        }
        self.node.left_out.items(&self.node.metrics, &backend.name, method.name, count);
        Ok(Collected { message: Message::new(&encoded), ..reply })
    }

    /// Reads the stats of one object; those of a backend that does not answer are the last ones listed.
    pub(super) async fn read_stats(
        &mut self,
        backend: &Arc<Backend>,
        method: &'static Method,
        list: List,
        id: &str,
        message: Message,
    ) -> Result<Outcome, Error> {
        let local = backend.config().local;
        match self.read(backend, method, &message).await {
            Ok(reply) if local || reply.code != Code::Ok => Ok(reply.into()),
            Ok(reply) => {
                let message = Message::new(&on_this_node(backend, list, &reply.message.encoded_bytes())?);
                Ok(Collected { message, ..reply }.into())
            }
            Err(error) => {
                let stats = listed_stats(backend, list, id).ok_or(error)?;
                let stats = if local { stats } else { on_this_node(backend, list, &stats)? };
                Ok(Outcome::message(&stats))
            }
        }
    }

    /// Asks the backend, if it is not late, and waits as long as a read may take.
    async fn read(
        &mut self,
        backend: &Arc<Backend>,
        method: &'static Method,
        message: &Message,
    ) -> Result<Collected, Error> {
        let limit = backend.config().timeouts.read;
        let wait = self.at_most(limit);
        let late = Error::Late { backend: Arc::clone(&backend.name), waited: wait };
        if backend.health.is_late(Class::Reads) {
            fan_out::refresh(&self.node, backend, Class::Reads);
            return Err(late);
        }
        if let Ok(reply) = tokio::time::timeout(wait, self.fetch(backend, method, message)).await {
            return reply;
        }
        if wait == limit {
            fan_out::fell_behind(&self.node, backend, Class::Reads, method);
        }
        Err(late)
    }
}

/// Returns stats of another node without the paths that are not on this one.
fn on_this_node(backend: &Backend, list: List, stats: &Bytes) -> Result<Bytes, Error> {
    stats::without_filesystems(list, stats).map_err(|error| backend.garbage(error.to_string()))
}

/// Returns the one entry of the last-known stats list that is about `id`: a list of one is, byte for byte, the
/// reply to the read of that one.
fn listed_stats(backend: &Backend, list: List, id: &str) -> Option<Bytes> {
    let kind = learn::kept(list)?;
    let mut filter = BytesMut::new();
    wire::put_bytes(&mut filter, FILTER_ID, id.as_bytes());
    let mut request = BytesMut::new();
    wire::put_bytes(&mut request, LIST_FILTER, &filter);
    let stats = backend.last.list(kind, &Filter::parse(kind, &request).ok()?)?;
    (wire::items(&stats, LIST_ITEMS).count() == 1).then_some(stats)
}
