//! Creates a sandbox: chooses the backend, sends the request in its words, and records the outcome.
//!
//! `creation.rs` reads the request, `placement.rs` chooses, `learn/created.rs` records the new objects.

use std::sync::Arc;

use tonic::Code;

use crate::backend::{Backend, BufferedReply};
use crate::codec::Message;
use crate::error::Error;
use crate::method::Method;
use crate::proxy::Call;
use crate::proxy::creation::{CreationRequest, PodName};
use crate::proxy::failed_commands::excerpt;
use crate::proxy::learn::Learner;
use crate::proxy::reply::Outcome;
use crate::router::Choice;

/// A request that creates a sandbox, as it is handled.
#[derive(Debug, Clone, Copy)]
struct Creation<'a> {
    /// As the client sent it.
    request: CreationRequest<'a>,
    /// As it is sent to the backend: with the backend's name for the handler.
    sent: CreationRequest<'a>,
    /// The handler as the client named it.
    handler: &'a str,
}

impl Call {
    /// Sends a call that creates a sandbox to a backend of its handler, which is in `handler_field`.
    ///
    /// A client that leaves cancels this at an `await`, also between the reply and its record. A sandbox that
    /// the backend made all the same is learnt from its next list; until then `record_create_sent` says where
    /// it may be.
    pub(super) async fn create_sandbox(
        &mut self,
        method: &'static Method,
        handler_field: u32,
        message: Message,
    ) -> Result<Outcome, Error> {
        let request = CreationRequest { method, handler_field, encoded: message.encoded() };
        let (handler, uid) = (request.handler()?, request.uid()?);
        // A pod with a new `config.seen` comes from a kubelet that has restarted: the container starts that
        // the kubelet before it began are over.
        self.node.router.record_config_seen(uid, request.config_seen());
        let choice = self.choose_backend(request, handler)?;
        let backend = self.node.backend(choice.backend)?;
        let sent = if choice.backend_handler == handler {
            message.clone()
        } else {
            request.with_handler(&choice.backend_handler)
        };
        self.recorder.set_backend(&backend);
        self.node.router.owners.record_create_sent(uid, backend.id);
        let reply = match self.fetch(&backend, method, &sent).await {
            Ok(reply) => reply,
            Err(error) => {
                self.record_failed_creation(request, handler, Some(&backend), error.code(), &error);
                return Err(error);
            }
        };
        if reply.code == Code::Ok {
            let sent = CreationRequest { encoded: sent.encoded(), ..request };
            self.finish_creation(Creation { request, sent, handler }, &backend, &reply).await?;
        } else {
            let error = backend.refused_error(method, &reply.trailers);
            self.record_failed_creation(request, handler, Some(&backend), reply.code, &error);
        }
        Ok(reply.into())
    }

    /// Chooses the backend of a new sandbox; an error is recorded.
    fn choose_backend(&self, request: CreationRequest<'_>, handler: &str) -> Result<Choice, Error> {
        if let Some(backend) = self.scope {
            return Ok(Choice { backend, backend_handler: handler.to_owned() });
        }
        let PodName { namespace, name, uid } = request.pod_name();
        // An aim is for the next sandbox of a pod and, from now on, for this pod's uid.
        let aim = self.node.router.aims.bind_to_uid(namespace, name, uid);
        let choice = self.node.choose_for_pod(handler, request.pod_name(), aim);
        choice.inspect_err(|error| self.record_failed_creation(request, handler, None, error.code(), error))
    }

    /// Records a new sandbox, and waits for the journal, at most 100 ms.
    async fn finish_creation(
        &self,
        Creation { request, sent, handler }: Creation<'_>,
        backend: &Arc<Backend>,
        reply: &BufferedReply,
    ) -> Result<(), Error> {
        self.node.record_placement(handler, Some(&backend.name), Code::Ok);
        let learner = Learner::new(&self.node, backend);
        let id = learner.learn_created_sandbox(&sent, reply.message.encoded())?;
        backend.state.wait_for_journal().await;
        self.node.metrics.count_routed_sandbox(handler, &backend.name);
        self.node.history.record_requested_handler(&id, handler);
        let (PodName { namespace, name, uid }, method) = (request.pod_name(), request.method.name);
        self.node.history.forget_refusal_of(namespace, name);
        tracing::info!(method, namespace, name, uid, handler, backend = %backend.name, sandbox = id, "sandbox placed");
        Ok(())
    }

    /// Records and logs why a new sandbox was not created: no backend takes it, or the chosen one did not
    /// answer or answered with an error. kubelet retries with backoff, so each attempt is one line.
    fn record_failed_creation(
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
}
