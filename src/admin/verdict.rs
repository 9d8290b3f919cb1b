//! The judgement of the node: what is wrong, what each fault means, and what to do next.

use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::admin::api::{
    BackendView, ClientProcessView, ClientsView, FaultView, HttpView, Level, ReachedLimitView, RefusalView,
    RouteView, StatusView, VerdictView,
};
use crate::admin::duration;
use crate::config::state_dir_advice;
use crate::error::handler_label;

mod backends;
mod handlers;

pub(super) use handlers::is_wanted;

/// How long a refused sandbox is part of the verdict.
pub(crate) const RECENT: Duration = Duration::from_secs(600);
/// How long it is if its handler takes sandboxes now.
const REFUSAL_OVER: Duration = Duration::from_secs(60);

/// Where the package installs the runbook; its sections are named like the alerts.
pub(crate) const RUNBOOK: &str = "/usr/share/doc/crimux/runbook.md";

/// The sections of the alerts that are critical whether the node is Ready or not.
const CRITICAL: [&str; 3] = ["crimuxbackenddown", "crimuxstatenotwritable", "crimuxidconflict"];

/// Judges a status and the routes of the same moment.
pub(super) fn judge(status: &StatusView, routes: &[RouteView]) -> VerdictView {
    let configured = || status.backends.iter().filter(|backend| backend.configured);
    let ready = configured().filter(|backend| backend.state == "ready").count();
    let summary = format!("{ready} of {} backends ready", configured().count());
    let (decisive, others): (Vec<_>, Vec<_>) =
        status.backends.iter().partition(|backend| backends::makes_not_ready(backend));
    let mut faults: Vec<_> = decisive.iter().map(|backend| backends::fault(backend, routes)).collect();
    let others = others.into_iter().filter(|backend| backends::is_faulty(backend));
    let others = others.map(|backend| backends::fault(backend, routes));
    let (late, soon): (Vec<_>, Vec<_>) = backends::certificates(status).partition(|(is_fault, _)| *is_fault);
    let late = late.into_iter().map(|(_, fault)| fault);
    let mut others: Vec<_> = others.chain(late).chain(own_faults(status)).collect();
    others.sort_by_key(|fault| !CRITICAL.iter().any(|section| is_about(fault, section)));
    faults.extend(others);
    let level = match (decisive.is_empty(), faults.is_empty()) {
        (false, _) => Level::NotReady,
        (true, false) => Level::Degraded,
        (true, true) => Level::Ok,
    };
    faults.extend(backends::removal_faults(status));
    faults.extend(status.removed_handlers.iter().filter_map(handlers::removal_fault));
    faults.extend(handlers::drain_fault(routes));
    let refusal = status
        .last_refusal
        .as_ref()
        .filter(|_| faults.is_empty())
        .and_then(|refusal| refused_sandbox(refusal, routes));
    faults.extend(backends::losses(status));
    faults.extend(soon.into_iter().map(|(_, fault)| fault));
    faults.extend(
        status.backends.iter().filter(|backend| backend.comes_later).map(|b| backends::optional(b, routes)),
    );
    faults.extend(refusal);
    compose(level, summary, faults)
}

/// Puts the faults into one line, and the first of them into the headline.
fn compose(level: Level, summary: String, faults: Vec<FaultView>) -> VerdictView {
    let more = match faults.len() {
        0 | 1 => String::new(),
        number => format!(", and {} more", number - 1),
    };
    let first = faults.first().map(|fault| format!("{}{more}", fault.problem));
    let (before, after) = match level {
        Level::Ok => (Some(summary.clone()), None),
        Level::Degraded => (None, Some("the node stays Ready".to_owned())),
        Level::NotReady => (None, Some("the node becomes NotReady".to_owned())),
    };
    let headline: Vec<_> = before.iter().chain(&first).chain(&after).map(String::as_str).collect();
    let headline = headline.join("; ");
    // Which backend makes the node NotReady is said with its fault.
    let after = after.filter(|_| level == Level::Degraded);
    let texts = faults.iter().map(|fault| &fault.text);
    let text: Vec<_> = before.iter().chain(texts).chain(&after).map(String::as_str).collect();
    VerdictView {
        level,
        headline,
        text: join_clauses(&text),
        next: faults.iter().find_map(|fault| fault.next.clone()),
        summary,
        faults,
    }
}

/// Joins clauses with semicolons, but behind a question.
fn join_clauses(clauses: &[&str]) -> String {
    let mut text = String::new();
    for clause in clauses {
        if !text.is_empty() {
            text += if text.ends_with('?') { " " } else { "; " };
        }
        text += clause;
    }
    text
}

/// A fault whose text is the problem and these clauses.
fn fault_of(problem: String, clauses: impl IntoIterator<Item = String>, section: &str) -> FaultView {
    let text = std::iter::once(problem.clone()).chain(clauses).collect::<Vec<_>>().join("; ");
    FaultView { problem, text, next: Some(format!("{RUNBOOK}#{section}")) }
}

/// Tells whether a fault has this section of the runbook.
fn is_about(fault: &FaultView, section: &str) -> bool {
    fault.next.as_ref().and_then(|next| next.rsplit_once('#')).is_some_and(|(_, of)| of == section)
}

/// Says that a sandbox was refused, if that is not long ago; of a handler whose sandboxes are taken now, if
/// it was within the last minute. Not of which pod: the dump has the verdict, too.
fn refused_sandbox(refusal: &RefusalView, routes: &[RouteView]) -> Option<FaultView> {
    let is_taken = |route: &RouteView| route.handler == refusal.handler && route.refused.is_none();
    let is_over = routes.iter().any(is_taken);
    let ago = recent(&refusal.at, if is_over { REFUSAL_OVER } else { RECENT })?;
    let problem = format!("a new sandbox of {} was refused {ago} ago", handler_label(&refusal.handler));
    Some(fault_of(problem, None, "crimuxsandboxesrefused"))
}

/// Formats how long ago a moment was; `None` if that was longer ago than `limit`.
fn recent(moment: &str, limit: Duration) -> Option<String> {
    let passed = SystemTime::now().duration_since(humantime::parse_rfc3339(moment).ok()?).unwrap_or_default();
    (passed <= limit).then(|| duration::human(passed))
}

/// Says what a restart would change.
fn restart_needed(status: &StatusView) -> FaultView {
    let problem = format!("{} changed in the file", status.reloads.restart_keys.join(", "));
    let (advice, section) = match &status.reloads.new_state_dir {
        Some(new) => {
            let advice = state_dir_advice(Path::new(&status.state.dir), Path::new(new));
            (format!("do not restart crimux: {advice}"), "crimuxstatedirchanged")
        }
        None => ("restart crimux to apply".to_owned(), "crimuxrestartneeded"),
    };
    let text = format!("{problem}: {advice}");
    FaultView { text, ..fault_of(problem, None, section) }
}

/// How long a limit that a client has reached is part of the verdict.
const LIMIT_RECENT: Duration = Duration::from_secs(60);

/// Says which limit of all clients together was reached lately, and who has the most connections.
fn reached_limits(clients: &ClientsView) -> impl Iterator<Item = FaultView> {
    let most = clients.largest.as_ref().map_or_else(String::new, |client| {
        let ClientProcessView { pid, program, connections } = client;
        format!("; pid {pid} ({program}) has {connections} of the {} connections", clients.connections)
    });
    clients.reached_limits.iter().filter_map(move |ReachedLimitView { limit, at }| {
        let ago = recent(at, LIMIT_RECENT)?;
        let problem = format!("clients reached limits.{limit} {ago} ago");
        let what = match limit.as_str() {
            "connections" => format!(
                "a connection beyond {} is closed, unless its process has fewer than four{most}",
                clients.max_connections
            ),
            _ => "calls beyond it fail, kubelet's too".to_owned(),
        };
        let text = format!("{problem}: {what}");
        Some(FaultView { text, ..fault_of(problem, None, "crimuxlimitreached") })
    })
}

/// Problems of crimux itself.
fn own_faults(status: &StatusView) -> Vec<FaultView> {
    let mut faults = Vec::new();
    for BackendView { name, foreign_ids, .. } in status.backends.iter().filter(|b| b.foreign_ids > 0) {
        let problem = format!("{name} lists {foreign_ids} IDs that another backend owns");
        let text = format!("{problem}: are the two one runtime?");
        faults.push(FaultView { text, ..fault_of(problem, None, "crimuxidconflict") });
    }
    if let Some(cause) = &status.state.problem {
        let problem = "state is not saved".to_owned();
        let text = format!(
            "{problem} in {}: {cause}; make it writable (df, mount), and restart neither crimux nor a backend before",
            status.state.dir
        );
        faults.push(FaultView { text, ..fault_of(problem, None, "crimuxstatenotwritable") });
    }
    if let Some(cause) = status.reloads.last.as_ref().and_then(|last| last.problem.as_ref()) {
        let problem = "the last reload failed".to_owned();
        let text = format!(
            "{problem}, the configuration before it stays current; mend the file before crimux restarts: {cause}"
        );
        faults.push(FaultView { text, ..fault_of(problem, None, "crimuxconfigreloadfailed") });
    }
    faults.extend(status.clients.iter().flat_map(reached_limits));
    if !status.reloads.restart_keys.is_empty() {
        faults.push(restart_needed(status));
    }
    if let HttpView { address: Some(address), problem: Some(cause) } = &status.admin_http {
        let problem = format!("admin.http does not listen on {address}");
        let text = format!(
            "{problem}: {cause}; no metrics and no page there until it does (ss -ltnp names who holds it)"
        );
        faults.push(FaultView { text, ..fault_of(problem, None, "crimuxabsent") });
    }
    faults
}

#[cfg(test)]
mod tests;
