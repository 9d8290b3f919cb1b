//! What is wrong with a backend, or what one is that is no fault: removed, or not there yet by declaration.

use std::time::{Duration, SystemTime};

use super::{fault_of, handlers, recent};
use crate::admin::api::{BackendView, CertificateView, FaultView, LossView, RouteView, StatusView};
use crate::admin::duration;
use crate::history::LOSS;

/// Tells whether kubelet judges the node NotReady, or will, because of this backend.
pub(super) fn makes_not_ready(backend: &BackendView) -> bool {
    let is_out = matches!(backend.state.as_str(), "down" | "joining");
    backend.awaited || (backend.default || backend.required) && (is_out || !backend.unready.is_empty())
}

/// Tells whether something is wrong with a backend.
pub(super) fn is_faulty(backend: &BackendView) -> bool {
    let is_out = matches!(backend.state.as_str(), "down" | "late" | "joining") && !backend.comes_later;
    is_out || backend.awaited || !backend.unready.is_empty() || !backend.lacking.is_empty()
}

/// Says what is wrong with a backend: its state, what the answers of the last minutes lacked of it, what it
/// reports of itself, and what that means for new sandboxes and for the node.
pub(super) fn fault(backend: &BackendView, routes: &[RouteView]) -> FaultView {
    let name = &backend.name;
    let unready = backend.unready.join(", ");
    let lacking = lacking(backend);
    let mut clauses = Vec::new();
    let (problem, text) = match backend.state.as_str() {
        "down" | "late" | "joining" => {
            let problem = format!("{name} {}{}", backend.state, for_how_long(backend));
            let lacking =
                lacking.map_or_else(String::new, |(list, cause)| format!(", left out of {list}{cause}"));
            let text = format!("{problem}{}{}{lacking}", not_in_time(backend), last_known(backend));
            let stopped = backend.stopped_pid;
            clauses.extend((!unready.is_empty()).then_some(unready));
            clauses.extend(stopped.map(|pid| format!("its process {pid} is stopped (kill -CONT {pid})")));
            (problem, text)
        }
        _ if !unready.is_empty() => {
            let short = unready.split(" (").next().unwrap_or_default();
            (format!("{name}: {short}"), format!("{name}: {unready}"))
        }
        _ => match lacking {
            Some((list, cause)) => {
                let problem = format!("{name} is left out of {list}");
                let text = format!("{problem}{cause}");
                (problem, text)
            }
            None => (format!("{name} is not listed yet"), format!("{name} is not listed yet")),
        },
    };
    clauses.extend(handlers::refusal_clause(routes, name));
    clauses.extend(handlers::wait_clause(routes, name));
    let is_slow = backend.state == "late" && !backend.late.is_empty() && backend.silent_since.is_none();
    clauses.extend(is_slow.then(|| "its other calls and new sandboxes are passed on".to_owned()));
    clauses.extend(outcome(backend));
    let text = std::iter::once(text).chain(clauses).collect::<Vec<_>>().join("; ");
    FaultView { text, ..fault_of(problem, None, runbook_section(backend)) }
}

/// Says that an `optional` backend is not there yet, which is no fault.
pub(super) fn optional(backend: &BackendView, routes: &[RouteView]) -> FaultView {
    let problem = format!("{} is optional and not there yet", backend.name);
    fault_of(problem, handlers::refusal_clause(routes, &backend.name), "crimuxbackendjoining")
}

/// Names the backends that the file does not name and that still have pods. That is no outage, but the file
/// is not all that the node runs.
pub(super) fn removal_faults(status: &StatusView) -> impl Iterator<Item = FaultView> {
    let removed = status.backends.iter().filter(|backend| !backend.configured && backend.sandboxes > 0);
    removed.map(|BackendView { name, sandboxes, .. }| {
        let problem = format!("{name} is not in the configuration");
        let text = format!(
            "{problem}: served until its {sandboxes} sandboxes are gone (crimux ps --backend {name})"
        );
        FaultView { text, ..fault_of(problem, None, "crimuxbackendnotconfigured") }
    })
}

/// A certificate that ends within this time is told.
const CERTIFICATE_SOON: Duration = Duration::from_secs(14 * 24 * 3600);
/// With less than this left, a certificate is a fault: the next connection may fail.
const CERTIFICATE_LATE: Duration = Duration::from_secs(2 * 24 * 3600);

/// Names the backends that lost sandboxes in the last minutes.
pub(super) fn losses(status: &StatusView) -> impl Iterator<Item = FaultView> {
    status.backends.iter().filter_map(|BackendView { name, lost, .. }| {
        let LossView { at, sandboxes, owned } = lost.as_ref()?;
        let ago = recent(at, LOSS)?;
        let problem = format!("{name} lost {sandboxes} of its {owned} ready sandboxes {ago} ago");
        let text = format!("{problem}: it lists them no more; kubelet starts their pods again");
        Some(FaultView { text, ..fault_of(problem, None, "crimuxsandboxeslost") })
    })
}

/// Names the backends whose connection has a certificate that ends soon, with whether that is a fault.
pub(super) fn certificates(status: &StatusView) -> impl Iterator<Item = (bool, FaultView)> {
    status.backends.iter().filter_map(|BackendView { name, certificate, .. }| {
        let CertificateView { role, ends } = certificate.as_ref()?;
        let moment = humantime::parse_rfc3339(ends).ok()?;
        let (now, problem) = (SystemTime::now(), format!("{name}: the {role} certificate of its connection"));
        let (left, problem) = match moment.duration_since(now) {
            Ok(left) => (left, format!("{problem} ends in {}", duration::human(left))),
            Err(ended) => {
                (Duration::ZERO, format!("{problem} ended {} ago", duration::human(ended.duration())))
            }
        };
        let text = format!("{problem}, at {ends}; no connection is made after that");
        let fault = FaultView { text, ..fault_of(problem, None, "crimuxcertificateexpires") };
        (left < CERTIFICATE_SOON).then_some((left < CERTIFICATE_LATE, fault))
    })
}

/// Says why the node is NotReady, or will be, because of this backend.
fn outcome(backend: &BackendView) -> Option<String> {
    let name = &backend.name;
    if backend.awaited {
        return Some(format!(
            "lists are refused until {name} is listed: the node becomes NotReady after 3 minutes"
        ));
    }
    let role = if backend.default { "the default backend" } else { "required" };
    makes_not_ready(backend).then(|| format!("the node becomes NotReady: {name} is {role}"))
}

fn passed_since(moment: &str) -> Option<Duration> {
    SystemTime::now().duration_since(humantime::parse_rfc3339(moment).ok()?).ok()
}

fn for_how_long(backend: &BackendView) -> String {
    let since = backend.since.as_deref().and_then(passed_since);
    since.map_or_else(String::new, |since| format!(" {}", duration::human(since)))
}

/// Tells whether a backend has answered nothing for a minute, or its process is stopped.
fn is_hung(backend: &BackendView) -> bool {
    const HUNG: Duration = Duration::from_secs(60);
    let silent = backend.silent_since.as_deref().and_then(passed_since);
    backend.stopped_pid.is_some() || silent.is_some_and(|silent| silent >= HUNG)
}

/// Names the methods that a late backend does not answer in time.
fn not_in_time(backend: &BackendView) -> String {
    match (backend.state.as_str(), backend.late.as_slice()) {
        ("late", [_, ..]) => format!(" ({} not in time)", backend.late.join(", ")),
        _ => String::new(),
    }
}

fn last_known(backend: &BackendView) -> String {
    match (backend.state.as_str(), backend.sandboxes) {
        ("joining", _) | (_, 0) => String::new(),
        (_, sandboxes) => format!(", {sandboxes} sandboxes as last known"),
    }
}

/// Returns what the answers of the last minutes lacked of a backend that could have given it: the first
/// method, then the cause and how many more there are.
fn lacking(backend: &BackendView) -> Option<(&str, String)> {
    let first = backend.lacking.first()?;
    let (list, cause) = first
        .split_once(": ")
        .map_or((first.as_str(), String::new()), |(list, cause)| (list, format!(": {cause}")));
    let more = match backend.lacking.len() {
        1 => String::new(),
        number => format!(" and {} more", number - 1),
    };
    Some((list, cause + &more))
}

fn runbook_section(backend: &BackendView) -> &'static str {
    match backend.state.as_str() {
        _ if backend.awaited => "crimuxlistsrefused",
        "down" => "crimuxbackenddown",
        "late" if is_hung(backend) => "crimuxbackendhung",
        "late" => "crimuxbackendlate",
        "joining" => "crimuxbackendjoining",
        _ if !backend.unready.is_empty() => "crimuxnodenotready",
        _ if backend.lacking.iter().any(|case| case.contains(": items")) => "crimuxitemsleftout",
        _ => "crimuxbackendsleftout",
    }
}
