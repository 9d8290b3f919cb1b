//! Forwards a call to one backend, and records what its reply changed.
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
use crate::proxy::creation::{CreationRequest, OwnedPodName, PodName};
use crate::proxy::failed_commands::{Failure, excerpt};
use crate::proxy::learn::Learner;
use crate::proxy::reply::Outcome;
use crate::router::Choice;
use crate::state::DroppedStatus;
use crate::wire;

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
    /// Sends a call that creates a sandbox to the backend of its handler: chooses the backend, sends,
    /// records.
    ///
    /// A client that leaves cancels this at an `await`, also between the reply and its record. What the
    /// backend made all the same is learnt from its next list; until then `record_create_sent` says where it
    /// may be.
    pub(super) async fn create_on_handler(&mut self, field: u32, message: Message) -> Result<Outcome, Error> {
        let method = self.method.expect("a handler route is a row of the table");
        let request = CreationRequest { method, encoded: message.encoded() };
        let handler = wire::peek_str(request.encoded, &[field])?;
        let uid = request.uid()?;
        self.node.router.record_config_seen(uid, request.config_seen());
        let choice = self.choose_backend(request, handler)?;
        let backend = self.node.backend(choice.backend)?;
        let sent = if choice.backend_handler == handler {
            message.clone()
        } else {
            Message::new(&wire::append_str(request.encoded, &[field], &choice.backend_handler))
        };
        self.recorder.set_backend(&backend);
        self.node.router.owners.record_create_sent(uid, backend.id);
        let reply = match self.fetch(&backend, method, &sent).await {
            Ok(reply) => reply,
            Err(error) => {
                self.record_refusal(request, handler, Some(&backend), error.code(), &error);
                return Err(error);
            }
        };
        if reply.code == Code::Ok {
            let sent = CreationRequest { method, encoded: sent.encoded() };
            self.record_created(request, sent, handler, &backend, &reply).await?;
        } else {
            let error = backend.refused_error(method, &reply.trailers);
            self.record_refusal(request, handler, Some(&backend), reply.code, &error);
        }
        Ok(reply.into())
    }

    /// Chooses the backend of a new sandbox; a refusal is recorded.
    fn choose_backend(&self, request: CreationRequest<'_>, handler: &str) -> Result<Choice, Error> {
        if let Some(backend) = self.scope {
            return Ok(Choice { backend, backend_handler: handler.to_owned() });
        }
        let PodName { namespace, name, uid } = request.pod_name();
        // An aim is for the next sandbox of a pod and, from now on, for this pod's uid.
        let aim = self.node.router.aims.bind_to_uid(namespace, name, uid);
        let choice = self.node.choose_for_pod(handler, request.pod_name(), aim);
        choice.inspect_err(|error| self.record_refusal(request, handler, None, error.code(), error))
    }

    /// Records a new sandbox, and waits for the journal, at most 100 ms; `sent` is the request as it was
    /// sent.
    async fn record_created(
        &self,
        request: CreationRequest<'_>,
        sent: CreationRequest<'_>,
        handler: &str,
        backend: &Arc<Backend>,
        reply: &BufferedReply,
    ) -> Result<(), Error> {
        self.node.record_placement(handler, Some(&backend.name), Code::Ok);
        let learner = Learner::new(&self.node, backend);
        let id = learner.record_sandbox_created(&sent, reply.message.encoded())?;
        backend.state.wait_for_journal().await;
        self.node.metrics.count_routed_sandbox(handler, &backend.name);
        self.node.history.record_requested_handler(&id, handler);
        let (PodName { namespace, name, uid }, method) = (request.pod_name(), request.method.name);
        tracing::info!(method, namespace, name, uid, handler, backend = %backend.name, sandbox = id, "sandbox placed");
        Ok(())
    }

    /// Records and logs why a new sandbox was not created, by this backend if one was chosen. kubelet retries
    /// with backoff, so each attempt is one line.
    fn record_refusal(
        &self,
        request: CreationRequest<'_>,
        handler: &str,
        backend: Option<&Backend>,
        code: Code,
        reason: &Error,
    ) {
        self.node.record_placement(handler, backend.map(|backend| &backend.name), code);
        let PodName { namespace, name, uid } = request.pod_name();
        let (method, reason) = (request.method.name, &excerpt(&reason.to_string()));
        tracing::warn!(method, namespace, name, uid, handler, reason, "sandbox refused");
        self.node.history.record_refusal(&format!("{namespace}/{name}"), handler, reason);
    }

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
    before: Option<DroppedStatus>,
}

impl<'a> StatusInvalidation<'a> {
    fn begin(backend: &'a Backend, id: &'a str) -> Self {
        Self { backend, id, before: Some(backend.state.drop_status(id)) }
    }

    /// Restores the status, because the write was not sent. One missing status stops kubelet's image
    /// collection for the whole node (`images/image_gc_manager.go handleImageVolumes`).
    fn undo(mut self) {
        if let Some(before) = self.before.take() {
            self.backend.state.put_status_back(self.id, before);
        }
    }
}

impl Drop for StatusInvalidation<'_> {
    fn drop(&mut self) {
        if self.before.is_some() {
            self.backend.state.drop_status(self.id);
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
