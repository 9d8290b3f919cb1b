//! Composes the replies to `Version`, `Status` and `RuntimeConfig` from those of the backends.
//!
//! kubelet decides by these whether the node is ready, so they are answered within 100 ms, whatever the
//! backends do: each backend is called with a short deadline, and its last reply counts if it does not
//! answer. The conditions of a default or `required` backend that is not connected count for 30 s more,
//! because kubelet accepts an outdated condition for that long, and a false one not for a second (`kubelet.go
//! updateRuntimeUp`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use prost::Message as _;

use crate::backend::{Backend, Link, MethodClass};
use crate::codec::Message;
use crate::config::Identity;
use crate::cri::{LinuxRuntimeConfiguration, RuntimeConfigResponse, StatusRequest, VersionResponse, field};
use crate::error::Error;
use crate::merge::status::{self, BackendStatus, HandlerEntry};
use crate::method::{self, LocalReply, Rpc};
use crate::proxy::reply::Outcome;
use crate::proxy::{Call, Node, cgroup_drivers, refresh, runtime_replies};
use crate::wire;

/// How long the last conditions of a backend that does not answer count.
const CONDITION_GRACE: Duration = Duration::from_secs(30);
/// The version of the kubelet API that kubelet requires (`kuberuntime_manager.go kubeRuntimeAPIVersion`).
const KUBELET_API: &str = "0.1.0";

impl Call {
    /// Composes the reply.
    pub(super) async fn answer_locally(
        &self,
        answer: LocalReply,
        message: &Message,
    ) -> Result<Outcome, Error> {
        match answer {
            LocalReply::Version => self.version().await,
            LocalReply::Status => self.status(message).await,
            LocalReply::RuntimeConfig => self.runtime_config().await,
        }
    }

    async fn version(&self) -> Result<Outcome, Error> {
        let backend = self.node.backend(self.node.default_in(self.scope))?;
        if backend.state.reply(Rpc::Version).is_none() {
            call_briefly(&self.node, &backend, Rpc::Version, &[]).await;
        }
        let mut version = match (self.node.config().identity, backend.last_version()) {
            (Identity::DefaultBackend, Some(version)) => version,
            (Identity::DefaultBackend, None) => {
                return Err(backend.not_known_error("the runtime's name and version"));
            }
            (Identity::Crimux, _) => VersionResponse {
                runtime_name: Identity::CRIMUX.to_owned(),
                runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
                ..VersionResponse::default()
            },
        };
        KUBELET_API.clone_into(&mut version.version);
        self.api.version().clone_into(&mut version.runtime_api_version);
        Ok(Outcome::message(&version.encode_to_vec()))
    }

    async fn status(&self, message: &Message) -> Result<Outcome, Error> {
        let verbose = wire::peek_varint(message.encoded(), &[field!(StatusRequest.verbose)])? != 0;
        let default = self.node.default_in(self.scope);
        let mut backends = self.backends();
        backends.sort_by_key(|backend| backend.id != default);
        let request = StatusRequest { verbose }.encode_to_vec();
        let request = &request[..];
        let replies = backends.iter().map(|backend| async move {
            let fresh = call_briefly(&self.node, backend, Rpc::Status, request).await;
            fresh.or_else(|| backend.state.reply(Rpc::Status))
        });
        let replies = join_all(replies).await;
        let handlers = self.node.router.handlers();
        let statuses: Vec<_> = std::iter::zip(&backends, &replies)
            .map(|(backend, reply)| self.backend_status(backend, reply.as_ref()))
            .collect();
        let name = |id| self.node.backend(id).map(|backend| Arc::clone(&backend.name));
        let default_name = name(default)?;
        let mut entries = vec![HandlerEntry { handler: "", backend: &default_name, known_as: "" }];
        for (handler, targets) in handlers.iter() {
            let target = targets.iter().find(|(id, _)| self.scope.is_none_or(|scope| scope == *id));
            entries.extend(target.map(|(_, target)| HandlerEntry {
                handler,
                backend: &target.backend,
                known_as: &target.backend_handler,
            }));
        }
        Ok(Outcome::message(&status::compose(&statuses, &entries).encode_to_vec()))
    }

    /// Returns what the node's status is composed of for one backend. `reply` is its fresh or last one.
    fn backend_status<'a>(&self, backend: &'a Backend, reply: Option<&Bytes>) -> BackendStatus<'a> {
        let silent = backend.health.status_unanswered_since();
        let lost = match backend.link() {
            Link::Down { cause, .. } => Some(format!("down: {cause}")),
            _ => silent.map(|_| "not answering Status".to_owned()),
        };
        let is_default = backend.id == self.node.default_in(self.scope);
        let expired = silent.is_some_and(|since| !is_within_grace(since.elapsed()));
        BackendStatus {
            name: &backend.name,
            reply: reply.and_then(|reply| status::decode(reply)),
            decides: self.scope.is_some() || is_default || backend.config().required,
            default: is_default,
            expired: lost
                .as_ref()
                .filter(|_| expired)
                .map(|why| format!("backend {} is {why}", backend.name)),
            state: match lost {
                Some(why) => Err(why),
                None if backend.health.first_late_since().is_some() => {
                    Err("late: see `crimux status`".to_owned())
                }
                None if self.node.is_outside_lists(backend) => Err("joining: not listed yet".to_owned()),
                None => Ok(()),
            },
        }
    }

    /// Answers with the default backend's cgroup driver, or that it does not report one. The backend is
    /// called each time: kubelet calls once in its life, and a restarted runtime may have another driver.
    async fn runtime_config(&self) -> Result<Outcome, Error> {
        let backend = self.node.backend(self.node.default_in(self.scope))?;
        let fresh = call_briefly(&self.node, &backend, Rpc::RuntimeConfig, &[]).await;
        let lacking = backend.health.is_unimplemented(method::row(Rpc::RuntimeConfig));
        if let Some(known) = fresh.or_else(|| backend.state.reply(Rpc::RuntimeConfig).filter(|_| !lacking)) {
            return Ok(Outcome::message(&known));
        }
        if let Some(driver) = self.node.config().cgroup_driver.filter(|_| self.scope.is_none()) {
            let linux = LinuxRuntimeConfiguration { cgroup_driver: cgroup_drivers::number(driver) };
            return Ok(Outcome::message(&RuntimeConfigResponse { linux: Some(linux) }.encode_to_vec()));
        }
        if lacking || backend.state.is_unimplemented(Rpc::RuntimeConfig) {
            let text = format!(
                "backend {} does not tell its cgroup driver (cgroup_driver is not set)",
                backend.name
            );
            return Err(Error::Unimplemented(text));
        }
        Err(backend.not_known_error("the cgroup driver"))
    }
}

/// Calls a backend with a deadline of 80 ms, or, without a last reply, of `timeouts.connect`. A backend that
/// did not answer the last time is not called here: it is refreshed in the background.
async fn call_briefly(node: &Arc<Node>, backend: &Arc<Backend>, rpc: Rpc, request: &[u8]) -> Option<Bytes> {
    if !backend.is_up() {
        return None;
    }
    let class = if rpc == Rpc::RuntimeConfig { MethodClass::RuntimeConfig } else { MethodClass::Status };
    if !backend.health.is_late(class) {
        // Without a last reply kubelet would get a node that is not ready, or would not start.
        let known = match rpc {
            // A reply of an earlier connection may be of another version of the runtime.
            Rpc::RuntimeConfig => backend.health.has_answered(method::row(rpc)),
            _ => backend.state.reply(rpc).is_some(),
        };
        let wait = if known { backend.deadline(method::row(rpc)) } else { backend.config().timeouts.connect };
        match tokio::time::timeout(wait, runtime_replies::call(backend, rpc, request, wait)).await {
            Ok(Ok(reply)) => return reply,
            Ok(Err(error)) => backend.health.record_error(error.to_string()),
            Err(_) => {}
        }
        if class == MethodClass::Status && backend.health.mark_late(class) {
            refresh::say_late(backend, class, method::row(rpc));
        }
    }
    refresh::start_refresh(node, backend, class);
    None
}

/// Tells whether the last conditions of a backend count that has not answered for this long.
fn is_within_grace(lost: Duration) -> bool {
    lost <= CONDITION_GRACE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_of_a_lost_backend_stand_for_thirty_seconds() {
        for (lost, stand) in [(0, true), (29_999, true), (30_000, true), (30_001, false), (86_400_000, false)]
        {
            assert_eq!(is_within_grace(Duration::from_millis(lost)), stand, "after {lost} ms");
        }
    }
}
