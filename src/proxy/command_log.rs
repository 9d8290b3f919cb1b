//! The log of failed commands and refused lists: kubelet tries them again until they succeed, so one that
//! keeps failing is a pod that never starts or never ends.
//!
//! A line names the pod and the backend's words. There is at most one a minute for each backend and method,
//! with how often it failed since the line before. Sandboxes that are refused have lines of their own
//! (`forward.rs`), and so has a backend that is down.

use http::HeaderMap;
use tonic::Code;

use crate::backend::Backend;
use crate::cri::OBJECT_ID;
use crate::error::Error;
use crate::method::{Method, Route};
use crate::mutex::lock;
use crate::proxy::Node;
use crate::proxy::creation::OwnedPodName;
use crate::proxy::failed_commands::Failure;
use crate::proxy::forward::pod_name_of;
use crate::proxy::reply::Outcome;
use crate::router::images::REFERENCE;
use crate::wire;

impl Failure {
    /// Returns the failure in the outcome of a call.
    pub(super) fn in_outcome(outcome: &Result<Outcome, Error>) -> Option<Self> {
        match outcome {
            Ok(Outcome::Buffered { code: Code::Ok, .. } | Outcome::Messages(_)) => None,
            Ok(Outcome::Buffered { headers, trailers, .. }) => Self::in_status(headers, trailers),
            Ok(Outcome::Streaming(reply)) => Self::in_status(&reply.headers, &HeaderMap::new()),
            Err(error) => Self::in_error(error),
        }
    }
}

impl Node {
    /// Logs, once a minute, that lists are refused because a backend was never listed.
    pub(super) fn log_refused_list(&self, method: &'static Method, error: &Error) {
        if matches!(error, Error::NeverListed(_))
            && let Some(lists) = lock(&self.refused_lists_log).count(1)
        {
            tracing::warn!(method = method.name, %error, lists, "lists are refused");
        }
    }

    /// Logs that a command to this backend failed, if it did.
    pub(super) fn log_failed_command(
        &self,
        backend: &Backend,
        method: &'static Method,
        request: &[u8],
        failure: Option<Failure>,
    ) {
        let Some(Failure { code, text }) = failure.filter(|_| method.is_retried_by_kubelet()) else { return };
        let Some(failures) = self.failed_commands.count(&backend.name, method.name) else { return };
        let (object, OwnedPodName { namespace, name, uid }) = match method.route {
            Route::Owner(kind, _) => {
                let id = wire::peek_str(request, &[OBJECT_ID]).unwrap_or_default();
                (id, pod_name_of(backend, kind, id))
            }
            Route::Image(_) => {
                (wire::peek_str(request, &REFERENCE).unwrap_or_default(), OwnedPodName::default())
            }
            _ => Default::default(),
        };
        tracing::warn!(
            method = method.name,
            backend = %backend.name,
            namespace,
            name,
            uid,
            object,
            ?code,
            error = text,
            failures,
            "a command failed",
        );
    }
}
