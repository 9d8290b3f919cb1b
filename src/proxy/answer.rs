//! The answer lane: `Version`, `Status` and `RuntimeConfig`, composed from what the node knows.
//!
//! kubelet judges the whole node by these, so they answer within 100 ms whatever the backends do: each backend
//! is asked briefly, and whoever does not answer is represented by what it said last. Conditions of a default
//! or `required` backend that cannot be reached stand for 30 s, because kubelet forgives an outdated answer
//! for that long and a false one not for a second (`kubelet.go updateRuntimeUp`).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::join_all;
use prost::Message as _;
use tonic::Code;

use crate::backend::{Backend, Link, own_headers};
use crate::codec::Message;
use crate::config::Identity;
use crate::cri::{RuntimeConfigResponse, VersionResponse};
use crate::error::Error;
use crate::merge::status::{self, Said, Served};
use crate::method::{self, Answer};
use crate::proxy::fan_out::PROMPT;
use crate::proxy::reply::Outcome;
use crate::proxy::{Call, Node};
use crate::wire;

/// How long the conditions of an unreachable backend stand.
const CONDITIONS_STAND: Duration = Duration::from_secs(30);
/// The version of the kubelet API, which kubelet insists on (`kuberuntime_manager.go kubeRuntimeAPIVersion`).
const KUBELET_API: &str = "0.1.0";
/// Under this name the fact is kept that a backend has no `RuntimeConfig`.
const NO_RUNTIME_CONFIG: &str = "RuntimeConfig/Unimplemented";

impl Call {
    /// Composes the answer.
    pub(super) async fn compose(&self, answer: Answer, message: &Message) -> Result<Outcome, Error> {
        match answer {
            Answer::Version => self.version().await,
            Answer::Status => self.status(message).await,
            Answer::RuntimeConfig => self.runtime_config().await,
        }
    }

    async fn version(&self) -> Result<Outcome, Error> {
        let backend = self.node.backend(&self.node.default_in(self.scope.as_ref()))?;
        if backend.last.reply("Version").is_none() {
            prompt(&backend, "Version", &[]).await;
        }
        let known = backend.last.reply("Version").and_then(|reply| VersionResponse::decode(reply).ok());
        let mut version = match (self.node.config().identity, known) {
            (Identity::DefaultBackend, Some(version)) => version,
            (Identity::DefaultBackend, None) => {
                return Err(Error::NotKnown {
                    what: "the runtime's name and version",
                    backend: Arc::clone(&backend.name),
                });
            }
            (Identity::Crimux, _) => VersionResponse {
                runtime_name: "crimux".to_owned(),
                runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
                ..VersionResponse::default()
            },
        };
        KUBELET_API.clone_into(&mut version.version);
        self.api.version().clone_into(&mut version.runtime_api_version);
        Ok(Outcome::message(&version.encode_to_vec()))
    }

    async fn status(&self, message: &Message) -> Result<Outcome, Error> {
        let verbose = wire::peek_varint(message.encoded(), &[1])? != 0;
        let default = self.node.default_in(self.scope.as_ref());
        let mut backends = self.backends();
        backends.sort_by_key(|backend| backend.name != default);
        let asked = backends.iter().map(|backend| async move {
            let fresh = prompt(backend, "Status", if verbose { &[8, 1] } else { &[] }).await;
            fresh.or_else(|| backend.last.reply("Status"))
        });
        let replies = join_all(asked).await;
        let handlers = self.node.router.handlers();
        let said: Vec<_> = std::iter::zip(&backends, &replies)
            .map(|(backend, reply)| said(&self.node, backend, reply.as_ref(), &default, self.scope.is_some()))
            .collect();
        let mut served = vec![Served { handler: "", backend: &default, known_as: "" }];
        for (handler, targets) in handlers.iter() {
            let target =
                targets.iter().find(|(name, _)| self.scope.as_ref().is_none_or(|scope| scope == name));
            served.extend(target.map(|(backend, target)| Served {
                handler,
                backend,
                known_as: &target.handler,
            }));
        }
        Ok(Outcome::message(&status::compose(&said, &served).encode_to_vec()))
    }

    /// Answers with the default backend's cgroup driver, or with its having none to tell.
    async fn runtime_config(&self) -> Result<Outcome, Error> {
        let backend = self.node.backend(&self.node.default_in(self.scope.as_ref()))?;
        if backend.last.reply("RuntimeConfig").is_none() {
            prompt(&backend, "RuntimeConfig", &[]).await;
        }
        if let Some(known) = backend.last.reply("RuntimeConfig") {
            return Ok(Outcome::message(&known));
        }
        if backend.last.reply(NO_RUNTIME_CONFIG).is_some() {
            let text = format!("backend {} does not tell its cgroup driver", backend.name);
            return Err(Error::Unimplemented(text));
        }
        Err(Error::NotKnown { what: "the cgroup driver", backend: Arc::clone(&backend.name) })
    }
}

/// Asks a backend briefly; what it says without being asked for details is remembered.
async fn prompt(backend: &Arc<Backend>, name: &str, request: &[u8]) -> Option<Bytes> {
    let method = method::named(name);
    if !backend.is_up() {
        return None;
    }
    let asked = backend.fetch(method, own_headers(PROMPT), Message::new(request).framed());
    match tokio::time::timeout(PROMPT, asked).await {
        Ok(Ok(reply)) if reply.code == Code::Ok => {
            let reply = reply.message.encoded_bytes();
            if request.is_empty() {
                backend.last.remember_reply(method.name, &reply);
            }
            Some(reply)
        }
        Ok(Ok(reply)) if reply.code == Code::Unimplemented && name == "RuntimeConfig" => {
            backend.last.remember_reply(NO_RUNTIME_CONFIG, &[]);
            None
        }
        _ => None,
    }
}

/// Keeps what the answer lane needs of a backend known before anyone asks.
pub(super) async fn keep_known(backend: &Arc<Backend>) {
    for name in ["Status", "RuntimeConfig"] {
        prompt(backend, name, &[]).await;
    }
}

/// Compares the cgroup drivers of local backends; kubelet is told one, so they must agree.
pub(super) fn cgroup_drivers(node: &Node) -> Vec<(Arc<str>, i32)> {
    let backends = node.backends();
    let local = backends.iter().filter(|backend| backend.config().local);
    let told = local.filter_map(|backend| {
        let config = RuntimeConfigResponse::decode(backend.last.reply("RuntimeConfig")?).ok()?;
        Some((Arc::clone(&backend.name), config.linux?.cgroup_driver))
    });
    told.collect()
}

fn said<'a>(
    node: &Node,
    backend: &'a Backend,
    reply: Option<&Bytes>,
    default: &str,
    alone: bool,
) -> Said<'a> {
    let lost = match backend.link() {
        Link::Down { since, cause } => Some((since, format!("down: {cause}"))),
        Link::Up { since, .. } if backend.health.late_since().is_some() => {
            Some((backend.health.late_since().unwrap_or(since), "does not answer in time".to_owned()))
        }
        Link::Connecting | Link::Up { .. } => None,
    };
    let is_default = &*backend.name == default;
    let expired = lost.as_ref().filter(|(since, _)| {
        SystemTime::now().duration_since(*since).is_ok_and(|lost| lost > CONDITIONS_STAND)
    });
    Said {
        name: &backend.name,
        reply: reply.and_then(|reply| status::decode(reply)),
        decides: alone || is_default || backend.config().required,
        default: is_default,
        expired: expired.map(|(_, why)| format!("backend {} is {why}", backend.name)),
        state: match lost {
            Some((_, why)) => Err(why),
            None if node.is_joining(backend) => Err("joining: not listed yet".to_owned()),
            None => Ok(()),
        },
    }
}
