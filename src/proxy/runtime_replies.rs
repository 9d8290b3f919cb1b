//! Fetches the replies of one backend that the node's are composed of: `Version`, `Status`, `RuntimeConfig`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tonic::Code;

use crate::backend::{Backend, MethodClass, own_headers};
use crate::codec::Message;
use crate::cri::RuntimeConfigResponse;
use crate::error::Error;
use crate::merge::status;
use crate::method::{self, Rpc};
use crate::proxy::Node;
use crate::proxy::retry::ATTEMPT_TIMEOUT;
use crate::utf8;

/// Calls `Version`, `Status` or `RuntimeConfig`. A valid reply that is not verbose is cached.
pub(super) async fn call(
    backend: &Arc<Backend>,
    rpc: Rpc,
    request: &[u8],
    wait: Duration,
) -> Result<Option<Bytes>, Error> {
    if rpc == Rpc::Version {
        backend.ask_version(wait).await?;
        return Ok(backend.state.reply(rpc));
    }
    let reply = backend.fetch(method::row(rpc), own_headers(wait), Message::new(request).framed()).await?;
    let repaired = utf8::repair(&format!("{}Response", rpc.name()), &reply.message.encoded_bytes());
    let (encoded, _) = repaired.map_err(|error| backend.invalid_reply_error(error))?;
    match reply.code {
        Code::Ok if is_valid(rpc, &encoded) => {
            let reply = encoded;
            backend.health.record_answer(method::row(rpc));
            if rpc == Rpc::Status {
                backend.health.mark_status_answered();
            }
            if request.is_empty() {
                backend.record_implemented(method::row(rpc), true);
                backend.state.remember_reply(rpc, &reply);
            }
            Ok(Some(reply))
        }
        Code::Ok => Err(backend.invalid_reply_error(format!("{} cannot be read", rpc.name()))),
        Code::Unimplemented if rpc == Rpc::RuntimeConfig && is_credibly_unimplemented(backend, rpc) => {
            backend.record_implemented(method::row(rpc), false);
            backend.health.record_unimplemented(method::row(rpc));
            Ok(None)
        }
        _ => Err(backend.unusable_reply_error(method::row(rpc), &reply)),
    }
}

/// Tells whether `Unimplemented` is to be believed. It is not if `Version` was not answered: containerd
/// answers every method so while its CRI plugin is not loaded. Nor is it if the backend answered the method
/// over the same connection before: a process does not lose a method, so it must be faulty.
fn is_credibly_unimplemented(backend: &Backend, rpc: Rpc) -> bool {
    let answered = |rpc| backend.health.has_answered(method::row(rpc));
    answered(Rpc::Version) && !answered(rpc)
}

/// Tells whether a reply has the fields that kubelet needs.
fn is_valid(rpc: Rpc, reply: &[u8]) -> bool {
    match rpc {
        Rpc::Status => status::decode(reply).is_some_and(|reply| status::is_whole(&reply)),
        _ => RuntimeConfigResponse::decode(reply).is_ok(),
    }
}

/// Calls `Status` or `RuntimeConfig` once, in the background.
pub(super) async fn refresh_reply(
    node: &Node,
    backend: &Arc<Backend>,
    class: MethodClass,
) -> Result<(), Error> {
    let rpc = if class == MethodClass::RuntimeConfig { Rpc::RuntimeConfig } else { Rpc::Status };
    let called = call(backend, rpc, &[], ATTEMPT_TIMEOUT);
    tokio::time::timeout(ATTEMPT_TIMEOUT, called)
        .await
        .map_err(|_| backend.late_error(ATTEMPT_TIMEOUT))??;
    if rpc == Rpc::RuntimeConfig {
        node.compare_cgroup_drivers(backend);
    }
    Ok(())
}
