//! Forwards a call to the backend that owns an object, and records what its reply changed.
//!
//! A reply that changes no recorded state is streamed to the client. A reply that does is small; it is
//! buffered and recorded before it is sent. While a write is in flight, no status of its object is cached: a
//! concurrent read may have seen the object before or after the write.

use std::sync::Arc;

use tonic::Code;

use crate::backend::{Backend, BufferedReply, CallRequest};
use crate::codec::Message;
use crate::error::Error;
use crate::method::{Effect, Kind, Method};
use crate::proxy::Call;
use crate::proxy::creation::OwnedPodName;
use crate::proxy::failed_commands::Failure;
use crate::proxy::learn::Learner;
use crate::proxy::reply::Outcome;
use crate::state::InvalidatedStatus;

/// A call about one object, for the backend that owns it.
#[derive(Debug, Clone, Copy)]
pub(super) struct ObjectCall<'a> {
    pub(super) backend: &'a Arc<Backend>,
    pub(super) method: &'static Method,
    /// The full ID of the sandbox or container.
    pub(super) id: &'a str,
    pub(super) message: &'a Message,
}

impl Call {
    /// Sends a call about one sandbox or container to its owner.
    pub(super) async fn forward(&mut self, call: ObjectCall<'_>) -> Result<Outcome, Error> {
        self.recorder.set_backend(call.backend);
        if !call.method.effect.invalidates_status() {
            let outcome = self.forward_by_effect(call).await;
            self.log_failure(call, &outcome);
            return outcome;
        }
        let invalidation = StatusInvalidation::begin(call.backend, call.id);
        let outcome = self.forward_by_effect(call).await;
        self.log_failure(call, &outcome);
        if outcome.as_ref().is_err_and(Error::was_not_sent) {
            invalidation.undo();
        }
        outcome
    }

    fn log_failure(&self, call: ObjectCall<'_>, outcome: &Result<Outcome, Error>) {
        if call.method.is_retried_by_kubelet() {
            let failure = Failure::in_outcome(outcome);
            self.node.log_failed_command(call.backend, call.method, call.message.encoded(), failure);
        }
    }

    async fn forward_by_effect(&mut self, call: ObjectCall<'_>) -> Result<Outcome, Error> {
        let ObjectCall { backend, method, id, message } = call;
        if method.effect == Effect::ContainerCreated {
            self.end_image_starts(message.encoded())?;
        }
        match method.effect {
            Effect::Stats(list) => self.read_stats(list, call).await,
            Effect::None => {
                let headers = self.take_headers();
                let mut request = CallRequest::of(method, headers, message.framed());
                Ok(Outcome::Streaming(backend.call(&mut request).await?))
            }
            Effect::Status(kind) => self.read_status(kind, call).await,
            Effect::StreamUrl => {
                let reply = self.fetch(backend, method, message).await?;
                self.node.rewrite_stream_url(backend, reply).map(Outcome::from)
            }
            _ => {
                let mut reply = self.fetch(backend, method, message).await?;
                if reply.code == Code::NotFound
                    && Box::pin(self.succeeds_because_gone(backend, method, id)).await
                {
                    reply = BufferedReply::empty();
                }
                if reply.code == Code::Ok {
                    log_change(backend, method, id);
                    let (request, reply) = (message.encoded(), reply.message.encoded());
                    Learner::new(&self.node, backend).record_write(method, id, request, reply)?;
                    backend.state.wait_for_journal().await;
                }
                Ok(reply.into())
            }
        }
    }

    /// Sends a call to one backend with the client's headers, and collects the whole reply.
    pub(super) async fn fetch(
        &mut self,
        backend: &Arc<Backend>,
        method: &'static Method,
        message: &Message,
    ) -> Result<BufferedReply, Error> {
        backend.fetch(method, self.take_headers(), message.framed()).await
    }
}

/// A write in flight. The cached status of its object is dropped when it begins and when it ends, however it
/// ends.
struct StatusInvalidation<'a> {
    backend: &'a Backend,
    id: &'a str,
    /// The dropped status, which is restored if the write was not sent; `None` after that.
    before: Option<InvalidatedStatus>,
}

impl<'a> StatusInvalidation<'a> {
    fn begin(backend: &'a Backend, id: &'a str) -> Self {
        Self { backend, id, before: Some(backend.state.invalidate_status(id)) }
    }

    /// Restores the status, because the write was not sent. One missing status stops kubelet's image
    /// collection for the whole node (`images/image_gc_manager.go handleImageVolumes`).
    fn undo(mut self) {
        if let Some(before) = self.before.take() {
            self.backend.state.restore_status(self.id, before);
        }
    }
}

impl Drop for StatusInvalidation<'_> {
    fn drop(&mut self) {
        if self.before.is_some() {
            self.backend.state.invalidate_status(self.id);
        }
    }
}

/// Logs a successful Stop or Remove with the pod it belongs to, as far as last-known state has it.
fn log_change(backend: &Backend, method: &Method, id: &str) {
    let is_sandbox = matches!(method.effect, Effect::SandboxStopped | Effect::SandboxRemoved);
    if !is_sandbox && !matches!(method.effect, Effect::ContainerStopped | Effect::ContainerRemoved) {
        return;
    }
    let kind = if is_sandbox { Kind::Sandbox } else { Kind::Container };
    let OwnedPodName { namespace, name, uid } = pod_name_of(backend, kind, id);
    tracing::info!(method = method.name, namespace, name, uid, id, backend = %backend.name, "stopped or removed");
}

/// Returns the name of the pod that an object belongs to.
pub(super) fn pod_name_of(backend: &Backend, kind: Kind, id: &str) -> OwnedPodName {
    let mut sandbox = (kind == Kind::Sandbox).then(|| id.to_owned());
    if kind == Kind::Container {
        backend.state.for_each_container(|container| {
            if container.id == id {
                sandbox = Some(container.sandbox_id.to_owned());
            }
        });
    }
    let mut pod = OwnedPodName::default();
    backend.state.for_each_sandbox(|known| {
        if Some(known.id) == sandbox.as_deref() {
            let [namespace, name, uid] = [known.namespace, known.name, known.uid].map(str::to_owned);
            pod = OwnedPodName { namespace, name, uid };
        }
    });
    pod
}
