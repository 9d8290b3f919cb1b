//! The log of failed commands: kubelet tries them again until they succeed, so one that keeps failing is a
//! pod that never starts or never ends.
//!
//! A line names the pod and the backend's words. There is at most one a minute for each backend and method,
//! with how often it failed since the line before. Sandboxes that are refused have lines of their own
//! (`forward.rs`), and so has a backend that is down.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use http::HeaderMap;
use tonic::{Code, Status};

use crate::backend::{Backend, BufferedReply};
use crate::error::Error;
use crate::log_limit::LogLimit;
use crate::method::{Method, Route};
use crate::mutex::lock;
use crate::proxy::NodeState;
use crate::proxy::forward::pod_of;
use crate::proxy::reply::Outcome;
use crate::router::images::REFERENCE;
use crate::wire;

/// Characters of a backend's error text that a line has; a backend may send megabytes.
const MAX_TEXT: usize = 1000;

/// What was logged of failed commands, by backend and method.
#[derive(Debug, Default)]
pub(super) struct FailedCommands(Mutex<HashMap<(Arc<str>, &'static str), LogLimit>>);

/// The end of a command that did not succeed.
#[derive(Debug)]
pub(super) struct Failure {
    code: Code,
    text: String,
}

impl Failure {
    /// Returns the failure in what a backend answered; `None` for OK, and for a backend that is down.
    pub(super) fn in_reply(reply: &Result<BufferedReply, Error>) -> Option<Self> {
        match reply {
            Ok(reply) if reply.code == Code::Ok => None,
            Ok(BufferedReply { headers, trailers, .. }) => Self::in_status(headers, trailers),
            Err(error) => Self::in_error(error),
        }
    }

    /// Returns the failure in the outcome of a call.
    pub(super) fn in_outcome(outcome: &Result<Outcome, Error>) -> Option<Self> {
        match outcome {
            Ok(Outcome::Buffered { code: Code::Ok, .. } | Outcome::Messages(_)) => None,
            Ok(Outcome::Buffered { headers, trailers, .. }) => Self::in_status(headers, trailers),
            Ok(Outcome::Streaming(reply)) => Self::in_status(&reply.headers, &HeaderMap::new()),
            Err(error) => Self::in_error(error),
        }
    }

    fn in_error(error: &Error) -> Option<Self> {
        let text = || excerpt(&error.to_string());
        (!matches!(error, Error::Down { .. })).then(|| Self { code: error.code(), text: text() })
    }

    /// Reads the status in trailers, or in the headers of a reply without a message.
    fn in_status(headers: &HeaderMap, trailers: &HeaderMap) -> Option<Self> {
        let status = Status::from_header_map(headers).or_else(|| Status::from_header_map(trailers))?;
        let failure = || Self { code: status.code(), text: excerpt(status.message()) };
        (status.code() != Code::Ok).then(failure)
    }
}

impl NodeState {
    /// Logs that a command to this backend failed, if it did.
    pub(super) fn log_failed_command(
        &self,
        backend: &Backend,
        method: &'static Method,
        request: &[u8],
        failure: Option<Failure>,
    ) {
        let Some(Failure { code, text }) = failure.filter(|_| method.is_command()) else { return };
        let due = {
            let mut lines = lock(&self.failed_commands.0);
            lines.entry((Arc::clone(&backend.name), method.name)).or_default().count(1)
        };
        let Some(failures) = due else { return };
        let (object, [namespace, name, uid]) = match method.route {
            Route::Owner(kind, _) => {
                let id = wire::peek_str(request, &[1]).unwrap_or_default();
                (id, pod_of(backend, kind, id))
            }
            Route::Image(_) => (wire::peek_str(request, &REFERENCE).unwrap_or_default(), Default::default()),
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

/// Returns the beginning of a text, as much as a line of the log has.
pub(super) fn excerpt(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
