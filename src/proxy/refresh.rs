//! Refreshes: the calls that crimux makes itself, one in flight for each class and backend, until it answers.
//!
//! A refresh runs on each new connection and while a class is late. It is cancelled with the connection. Its
//! answers are recorded like those of a client's calls.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::Code;

use crate::backend::{Backend, MethodClass, Refresh, own_headers};
use crate::codec::Message;
use crate::error::Error;
use crate::method::{Deadline, List, Method};
use crate::proxy::learn::{Learner, ReceivedList};
use crate::proxy::retry::{ATTEMPT_TIMEOUT, retry_hedged};
use crate::proxy::{Node, descriptors, runtime_replies};

/// The longest pause between attempts to refresh lists and `Status`.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between attempts of the other classes.
const LONGEST_PAUSE_OTHERS: Duration = Duration::from_secs(2);

/// Marks a class late, because a call exceeded the backend's deadline, and starts its refresh.
pub(super) fn mark_late_and_refresh(
    node: &Arc<Node>,
    backend: &Arc<Backend>,
    class: MethodClass,
    method: &Method,
) {
    if backend.health.mark_late(class) && method.deadline != Deadline::Fast {
        say_late(backend, class, method);
    }
    start_refresh(node, backend, class);
}

/// Logs that a class is late, so that its end is logged too.
pub(super) fn say_late(backend: &Backend, class: MethodClass, method: &Method) {
    tracing::warn!(backend = %backend.name, method = method.name, "backend is late");
    backend.health.mark_said_late(class);
}

/// Records that a backend's list failed. If the list is of sandboxes or containers, both are marked late and
/// refreshed, because both must be of one moment. Returns true if the lists were current until now.
pub(super) fn record_failed_list_and_refresh(
    node: &Arc<Node>,
    backend: &Arc<Backend>,
    class: MethodClass,
    cause: String,
) -> bool {
    backend.health.record_error(cause);
    if class != MethodClass::Lists {
        return false;
    }
    let begins = backend.health.mark_late(class);
    start_refresh(node, backend, class);
    begins
}

/// Does the same for a list that the backend answered with an error or with bytes that cannot be read, and
/// logs the first failure.
pub(super) fn record_bad_list_and_refresh(
    node: &Arc<Node>,
    backend: &Arc<Backend>,
    class: MethodClass,
    error: &Error,
) {
    let begins = record_failed_list_and_refresh(node, backend, class, error.to_string());
    // The end of a connection has a line of its own.
    if begins && !matches!(error, Error::Lost { .. } | Error::Down { .. }) {
        backend.health.mark_said_late(class);
        tracing::warn!(backend = %backend.name, %error, "backend's lists cannot be used, last-known ones stand in");
    }
}

/// Starts the one refresh of a class of calls in the background, unless it is in flight already. The refresh
/// ends with the connection.
pub(super) fn start_refresh(node: &Arc<Node>, backend: &Arc<Backend>, class: MethodClass) {
    if !backend.is_up() {
        return;
    }
    let Some(guard) = backend.begin_refresh(class) else { return };
    let (node, backend) = (Arc::clone(node), Arc::clone(backend));
    tokio::spawn(async move {
        tokio::select! {
            () = backend.disconnected() => {}
            () = refresh_until_ok(&node, &backend, class, &guard) => {}
        }
    });
}

/// The consequences of a failed refresh for its class.
struct RefreshFailure {
    /// Whether the class is late from now on; otherwise the backend answered in time.
    is_late: bool,
    /// Whether the refresh is tried again.
    is_retried: bool,
}

/// Decides the consequences of a failed refresh: whether the class is late, and whether the refresh is tried
/// again. The backend was silent until the deadline, or answered with an error.
///
/// Lists and `Status` decide what kubelet thinks of the node, so they need an OK reply. What is called once
/// for each connection is called until it is OK. For the other classes any answer is an answer in time.
fn judge(class: MethodClass, was_silent: bool) -> RefreshFailure {
    use MethodClass::{
        ContainerStats, Filesystems, Images, Lists, Metrics, Reads, RuntimeConfig, SandboxStats, Status,
    };
    let (is_late, is_retried) = match (class, was_silent) {
        (Lists | Status, _) => (true, true),
        (RuntimeConfig, _) => (false, true),
        (Images | Filesystems | Metrics, was_silent) => (was_silent, true),
        (Reads | ContainerStats | SandboxStats, was_silent) => (was_silent, was_silent),
    };
    RefreshFailure { is_late, is_retried }
}

/// Retries until the backend answers as its class needs (see [`judge`]).
async fn refresh_until_ok(node: &Node, backend: &Arc<Backend>, class: MethodClass, guard: &Refresh) {
    let failed = |error: &Error| {
        if guard.is_outdated() {
            return false;
        }
        let failed = judge(class, error.is_silence());
        backend.health.record_error(error.to_string());
        if failed.is_late {
            backend.health.mark_late(class);
        } else {
            backend.health.end_lateness(class);
        }
        failed.is_retried
    };
    let decides_readiness = matches!(class, MethodClass::Lists | MethodClass::Status);
    let longest_pause = if decides_readiness { LONGEST_PAUSE } else { LONGEST_PAUSE_OTHERS };
    retry_hedged(longest_pause, || refresh_once(node, backend, class), failed).await;
    if !guard.is_outdated() && backend.health.end_lateness(class) {
        tracing::info!(backend = %backend.name, ?class, "backend answers in time again");
    }
}

async fn refresh_once(node: &Node, backend: &Arc<Backend>, class: MethodClass) -> Result<(), Error> {
    let lists: &[List] = match class {
        MethodClass::Lists => &[List::Sandboxes, List::Containers],
        MethodClass::Images => &[List::Images],
        MethodClass::ContainerStats => &[List::ContainerStats],
        MethodClass::SandboxStats => &[List::SandboxStats],
        MethodClass::Metrics => &[List::MetricDescriptors],
        MethodClass::Filesystems => &[List::Filesystems],
        MethodClass::Reads => {
            let asked = tokio::time::timeout(ATTEMPT_TIMEOUT, backend.ask_version(ATTEMPT_TIMEOUT)).await;
            return asked.map_err(|_| backend.late_error(ATTEMPT_TIMEOUT))?;
        }
        MethodClass::Status | MethodClass::RuntimeConfig => {
            return runtime_replies::refresh_reply(node, backend, class).await;
        }
    };
    let mut slow = None;
    for list in lists {
        let (asked, limit) = (Instant::now(), backend.deadline(list.unary()));
        match list_all(node, backend, *list).await {
            Err(Error::Unimplemented(_)) => backend.health.record_unimplemented(list.unary()),
            listed => listed?,
        }
        if asked.elapsed() > limit && backend.health.has_relapsed(class) {
            slow = Some(backend.timeout_error(list.unary(), limit));
        }
    }
    slow.map_or(Ok(()), Err)
}

/// Lists everything of one kind at one backend, and records it.
pub(super) async fn list_all(node: &Node, backend: &Arc<Backend>, list: List) -> Result<(), Error> {
    let method = list.unary();
    let revision = backend.state.begin_read();
    let listed = backend.fetch(method, own_headers(ATTEMPT_TIMEOUT), Message::new(&[]).framed());
    let late = |_| backend.late_error(ATTEMPT_TIMEOUT);
    let reply = tokio::time::timeout(ATTEMPT_TIMEOUT, listed).await.map_err(late)??;
    match reply.code {
        Code::Ok => {
            backend.record_implemented(method, true);
            let encoded = &reply.message.encoded_bytes();
            let received = ReceivedList { list, revision, unfiltered: true, encoded };
            Learner::new(node, backend).accept_list(received)?;
            if list == List::MetricDescriptors
                && let Some(announced) = descriptors::last_announced(&node.backends())
            {
                node.unannounced.record(backend, &announced);
            }
            Ok(())
        }
        Code::Unimplemented if list.is_optional() => {
            backend.record_implemented(method, false);
            Err(backend.unimplemented_error(method))
        }
        _ => Err(backend.unusable_reply_error(method, &reply)),
    }
}
