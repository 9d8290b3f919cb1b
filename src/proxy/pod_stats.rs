//! Whether the node has pod stats: each kubelet asks once, and the lists stay consistent with that answer.
//!
//! kubelet calls `PodSandboxStats` with an empty ID when it starts (`cmd/kubelet/app/server.go`, gate
//! `PodAndContainerStatsFromCRI`, 1.37). `Unimplemented` makes it take the stats of all pods from cAdvisor;
//! any other code makes it use the lists, where one error fails the node's summary and with it eviction. So
//! the lists follow the last answer until kubelet asks again: after "yes", a backend without the RPC (added,
//! or downgraded) is left out instead of failing the lists; after `Unimplemented`, the lists stay
//! `Unimplemented`. The answer is saved, because crimux may restart under a running kubelet.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use tonic::Code;

use crate::backend::{Backend, BufferedReply, own_headers};
use crate::codec::Message;
use crate::config::StatsPolicy;
use crate::cri::Rpc;
use crate::error::Error;
use crate::method::{List, Method};
use crate::proxy::reply::Outcome;
use crate::proxy::{Call, Node};

/// How long the reply waits for the snapshot to be written.
const DISK: Duration = Duration::from_secs(1);

impl Call {
    /// Answers `PodSandboxStats` with an empty ID: whether pod stats exist. Saves the answer.
    pub(super) async fn pod_stats_exist(
        &mut self,
        method: &'static Method,
        message: Message,
    ) -> Result<Outcome, Error> {
        let absent = Error::EmptyId("sandbox");
        if let Some(scope) = self.scope {
            let backend = self.node.backend(scope)?;
            let reply = self.fetch(&backend, method, &message).await?;
            return if reply.code == Code::Ok { Err(absent) } else { Ok(reply.into()) };
        }
        self.recorder.set_all_backends(&self.node);
        let mut backends = self.backends();
        backends.retain(|backend| !self.node.is_outside_lists(backend));
        let wait = |backend: &Backend| self.wait_within(backend.deadline(method)).time;
        let asked = backends.iter().map(|backend| async {
            let (wait, message) = (wait(backend), message.framed());
            let asked = backend.fetch(method, own_headers(wait), message);
            tokio::time::timeout(wait, asked).await.ok().and_then(Result::ok)
        });
        let replies = join_all(asked).await;
        for (backend, reply) in backends.iter().zip(&replies) {
            if let Some(reply) = reply {
                backend.record_implemented(List::SandboxStats.unary(), reply.code != Code::Unimplemented);
            }
        }
        let lacking: Vec<_> =
            backends.iter().filter(|b| b.state.is_unimplemented(Rpc::ListPodSandboxStats)).collect();
        let denied = match self.node.config().pod_sandbox_stats {
            StatsPolicy::Unimplemented => !lacking.is_empty(),
            StatsPolicy::Union => lacking.len() == backends.len(),
        };
        self.node.promise_pod_stats(!denied).await;
        if denied {
            return Err(unimplemented_at(&lacking));
        }
        let default = self.node.default_in(None);
        let own = backends.iter().zip(replies).find(|(backend, _)| backend.id == default);
        let refusal = own.and_then(|(_, reply)| reply).filter(is_refusal);
        refusal.map(Outcome::from).ok_or(absent)
    }

    /// Returns `Unimplemented` for a list of pod stats after kubelet was told that there are none.
    pub(super) fn refuse_pod_stats(&self, list: List) -> Result<(), Error> {
        if list == List::SandboxStats && self.scope.is_none() && self.node.promised_pod_stats() == Some(false)
        {
            return Err(Error::Unimplemented(
                "pod stats were not offered when PodSandboxStats was last asked for; a restarted kubelet asks again"
                    .to_owned(),
            ));
        }
        Ok(())
    }
}

/// Tells whether a runtime rejected the empty ID, which shows that it has the RPC.
fn is_refusal(reply: &BufferedReply) -> bool {
    !matches!(reply.code, Code::Ok | Code::Unimplemented)
}

fn unimplemented_at(lacking: &[&Arc<Backend>]) -> Error {
    let names: Vec<_> = lacking.iter().map(|backend| &*backend.name).collect();
    Error::Unimplemented(format!("without PodSandboxStats: {} (pod_sandbox_stats)", names.join(", ")))
}

impl Node {
    /// Returns the last answer to the question whether pod stats exist, also from before a restart of crimux;
    /// `None` before the first.
    pub fn promised_pod_stats(&self) -> Option<bool> {
        let answers = self.backends();
        let answers = answers.iter().filter_map(|backend| backend.state.pod_stats_answer());
        answers.max_by_key(|(at, _)| *at).map(|(_, exist)| exist)
    }

    /// Saves the answer with every backend's state, because any of them may be removed.
    async fn promise_pod_stats(&self, exist: bool) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        for backend in self.backends().iter() {
            backend.state.set_pod_stats_answer(at, exist);
        }
        let store = Arc::clone(&self.state_store);
        let written = tokio::task::spawn_blocking(move || store.flush());
        // A disk that hangs must not keep kubelet from starting. A failed write is logged by the state store.
        tokio::time::timeout(DISK, written).await.ok();
        tracing::info!(exist, "a client asked whether there are pod stats");
    }
}
