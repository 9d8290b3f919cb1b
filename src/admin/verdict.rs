//! The judgement of the node in one line: what is wrong, what it means, and what to do next.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::admin::api::{
    BackendView, HttpView, Level, RefusalView, RemovedHandlerView, RouteView, StatusView, TargetView,
    VerdictView,
};
use crate::admin::duration;
use crate::config::state_dir_advice;
use crate::error::handler_label;

/// How long a refused sandbox is part of the verdict.
pub(crate) const RECENT: Duration = Duration::from_secs(600);

/// Where the package installs the runbook; its sections are named like the alerts.
pub(crate) const RUNBOOK: &str = "/usr/share/doc/crimux/runbook.md";

/// Judges a status and the routes of the same moment.
pub(super) fn judge(status: &StatusView, routes: &[RouteView]) -> VerdictView {
    let configured = || status.backends.iter().filter(|backend| backend.configured);
    let ready = configured().filter(|backend| backend.state == "ready").count();
    let summary = format!("{ready} of {} backends ready", configured().count());
    let mut parts: Vec<_> = status.backends.iter().filter_map(backend_problem).collect();
    parts.extend(status.backends.iter().filter_map(unready));
    let mut section = status.backends.iter().find_map(runbook_section);
    parts.extend(refused_handlers(routes));
    parts.extend(waiting_handlers(routes));
    let decisive = status.backends.iter().filter(|backend| backend.default || backend.required);
    let decisive: Vec<_> =
        decisive.filter(|backend| is_out(backend) || !backend.unready.is_empty()).collect();
    let outage = !parts.is_empty();
    for (problem, anchor) in other_problems(status) {
        parts.push(problem);
        section = section.or(anchor);
    }
    let awaited = status.backends.iter().find(|backend| backend.awaited);
    let level = match (decisive.is_empty() && awaited.is_none(), parts.is_empty()) {
        (false, _) => Level::NotReady,
        (true, false) => Level::Degraded,
        (true, true) => Level::Ok,
    };
    if let Some(backend) = awaited {
        section = Some("crimuxlistsrefused");
        parts.push(format!(
            "lists are refused until {} is listed: the node becomes NotReady after 3 minutes",
            backend.name
        ));
    } else if let Some(backend) = decisive.first() {
        let role = if backend.default { "the default backend" } else { "required" };
        parts.push(format!("the node becomes NotReady: {} is {role}", backend.name));
    } else if outage {
        parts.push("the node stays Ready".to_owned());
    }
    let removed: Vec<_> =
        removed_backends(status).chain(status.removed_handlers.iter().filter_map(removed_handler)).collect();
    let drained = drained_handlers(routes);
    if !removed.is_empty() {
        let is_backend = removed_backends(status).next().is_some();
        let anchor = if is_backend { "crimuxbackendnotconfigured" } else { "crimuxsandboxesrefused" };
        section = section.or(Some(anchor));
    } else if drained.is_some() {
        section = section.or(Some("crimuxhandlerrefused"));
    }
    let is_explained = !(parts.is_empty() && removed.is_empty() && drained.is_none());
    let refusal = status.last_refusal.as_ref().filter(|_| !is_explained).and_then(refused_sandbox);
    if refusal.is_some() {
        section = Some("crimuxsandboxesrefused");
    }
    let ok = parts.is_empty().then(|| summary.clone());
    let text = ok
        .into_iter()
        .chain(parts)
        .chain(removed)
        .chain(drained)
        .chain(refusal)
        .collect::<Vec<_>>()
        .join("; ");
    VerdictView { level, summary, text, next: section.map(|section| format!("{RUNBOOK}#{section}")) }
}

fn is_out(backend: &BackendView) -> bool {
    matches!(backend.state.as_str(), "down" | "joining")
}

/// Says what is wrong with a backend, and what the answers of the last minutes lacked of it; `None` if
/// nothing is.
fn backend_problem(backend: &BackendView) -> Option<String> {
    let lacking = lacking(backend);
    if !matches!(backend.state.as_str(), "down" | "late" | "joining") {
        return lacking.map(|lacking| format!("{} is {lacking}", backend.name));
    }
    let since = backend.since.as_deref().and_then(|since| humantime::parse_rfc3339(since).ok());
    let since = since.and_then(|since| SystemTime::now().duration_since(since).ok());
    let since = since.map_or_else(String::new, |since| format!(" {}", duration::human(since)));
    let items = match (backend.state.as_str(), backend.sandboxes) {
        ("joining", _) | (_, 0) => String::new(),
        (_, sandboxes) => format!(", {sandboxes} sandboxes as last known"),
    };
    let lacking = lacking.map_or_else(String::new, |lacking| format!(", {lacking}"));
    Some(format!("{} {}{since}{items}{lacking}", backend.name, backend.state))
}

/// Says what a connected backend reports of itself, or that it does not.
fn unready(backend: &BackendView) -> Option<String> {
    let problems = backend.unready.join(", ");
    (!problems.is_empty()).then(|| format!("{}: {problems}", backend.name))
}

/// Says what the answers of the last minutes lacked of a backend that could have given it.
fn lacking(backend: &BackendView) -> Option<String> {
    let first = backend.lacking.first()?;
    let more = match backend.lacking.len() {
        1 => String::new(),
        number => format!(" and {} more", number - 1),
    };
    Some(format!("left out of {first}{more}"))
}

fn runbook_section(backend: &BackendView) -> Option<&'static str> {
    match backend.state.as_str() {
        "down" => Some("crimuxbackenddown"),
        "late" => Some("crimuxbackendlate"),
        "joining" => Some("crimuxbackendjoining"),
        _ if !backend.lacking.is_empty() => Some("crimuxitemsleftout"),
        _ => None,
    }
}

/// Names the handlers whose new sandboxes are refused because of an outage; a drain is the operator's own
/// will.
fn refused_handlers(routes: &[RouteView]) -> Option<String> {
    let refused = routes.iter().filter(|route| {
        route.refused.is_some() && route.targets.iter().any(|target| target.state != "draining")
    });
    in_shares(refused, |target| !target.takes_new, "refused")
}

/// Names the handlers whose new sandboxes wait for a backend that is late.
fn waiting_handlers(routes: &[RouteView]) -> Option<String> {
    in_shares(routes.iter(), |target| target.takes_new && target.state == "late", "wait until it answers")
}

/// Says what becomes of the new sandboxes of these handlers, or of which share of them: those that go to the
/// `affected` targets. `None` if none of them does.
fn in_shares<'a>(
    routes: impl Iterator<Item = &'a RouteView>,
    affected: impl Fn(&TargetView) -> bool,
    what: &str,
) -> Option<String> {
    let (mut whole, mut parts) = (Vec::new(), Vec::new());
    for route in routes {
        let is_drained = route.targets.iter().all(|target| target.share == 0.0);
        let share: f64 =
            route.targets.iter().filter(|target| affected(target)).map(|target| target.share).sum();
        if share > 0.999 || is_drained && route.targets.iter().any(&affected) {
            whole.push(route.handler.as_str());
        } else if share > 0.0 {
            let of = handlers_in_words(&[&route.handler]);
            parts.push(format!("{:.0}% of the new sandboxes of {of} {what}", share * 100.0));
        }
    }
    if !whole.is_empty() {
        parts.insert(0, format!("new sandboxes of {} {what}", handlers_in_words(&whole)));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// Names handlers, `""` first: `pods without a RuntimeClass and of handlers a, b and c`.
fn handlers_in_words(handlers: &[&str]) -> String {
    let named: Vec<_> = handlers.iter().copied().filter(|handler| !handler.is_empty()).collect();
    let named = match named.split_last() {
        None => None,
        Some((only, [])) => Some(handler_label(only)),
        Some((last, others)) => Some(format!("handlers {} and {last}", others.join(", "))),
    };
    let default = handlers.contains(&"").then(|| handler_label(""));
    default.into_iter().chain(named).collect::<Vec<_>>().join(" and of ")
}

/// Says what became of a handler that was taken out of the configuration, while pods ask or asked for it.
fn removed_handler(removed: &RemovedHandlerView) -> Option<String> {
    let RemovedHandlerView { handler, sandboxes, last_refused } = removed;
    let refused = last_refused.as_deref().and_then(recent);
    if *sandboxes == 0 && refused.is_none() {
        return None;
    }
    let left = match sandboxes {
        0 => String::new(),
        1 => ", 1 is still there".to_owned(),
        more => format!(", {more} are still there"),
    };
    let refused = refused.map_or_else(String::new, |ago| format!(", the last one {ago} ago"));
    Some(format!(
        "handler {handler} was removed from the configuration: its new sandboxes are refused{refused}{left}"
    ))
}

/// Says that a sandbox was refused, if that is not long ago. Not of which pod: the dump has the verdict, too.
fn refused_sandbox(refusal: &RefusalView) -> Option<String> {
    recent(&refusal.at)
        .map(|ago| format!("a new sandbox was refused {ago} ago (crimux status names its pod)"))
}

/// Formats how long ago a moment was; `None` if it was more than ten minutes ago.
fn recent(moment: &str) -> Option<String> {
    let passed = SystemTime::now().duration_since(humantime::parse_rfc3339(moment).ok()?).unwrap_or_default();
    (passed <= RECENT).then(|| duration::human(passed))
}

/// Names the backends that the file does not name and that still have pods. That is no outage, but the file
/// is not all that the node runs.
fn removed_backends(status: &StatusView) -> impl Iterator<Item = String> {
    let removed = status.backends.iter().filter(|backend| !backend.configured && backend.sandboxes > 0);
    removed.map(|BackendView { name, sandboxes, .. }| {
        format!("{name} is not in the configuration: served until its {sandboxes} sandboxes are gone")
    })
}

/// Names the handlers whose new sandboxes are refused because the operator drained their backends, and how
/// that is taken back. That is no outage, but the reason why pods do not start.
fn drained_handlers(routes: &[RouteView]) -> Option<String> {
    let drained: Vec<_> = routes
        .iter()
        .filter(|route| {
            route.refused.is_some() && route.targets.iter().all(|target| target.state == "draining")
        })
        .collect();
    let names: Vec<_> = drained.iter().map(|route| route.handler.as_str()).collect();
    let backends: BTreeSet<_> = drained
        .iter()
        .flat_map(|route| &route.targets)
        .filter(|target| target.weight > 0)
        .map(|target| format!("crimux backend undrain {}", target.backend))
        .collect();
    (!names.is_empty()).then(|| {
        let undrain = backends.into_iter().collect::<Vec<_>>().join(", ");
        format!("new sandboxes of {} refused: drained by the operator ({undrain})", handlers_in_words(&names))
    })
}

/// Says what a restart would change.
fn restart_needed(status: &StatusView) -> String {
    let keys = status.reloads.restart_keys.join(", ");
    if let Some(new) = &status.reloads.new_state_dir {
        let advice = state_dir_advice(Path::new(&status.state.dir), Path::new(new));
        return format!("{keys} changed in the file: do not restart crimux: {advice}");
    }
    format!("{keys} changed in the file: restart crimux to apply")
}

/// Problems of crimux itself, each with its section of the runbook.
fn other_problems(status: &StatusView) -> Vec<(String, Option<&'static str>)> {
    let mut problems = Vec::new();
    for BackendView { name, foreign_ids, .. } in status.backends.iter().filter(|b| b.foreign_ids > 0) {
        let problem =
            format!("{name} lists {foreign_ids} IDs that another backend owns: are the two one runtime?");
        problems.push((problem, Some("crimuxidconflict")));
    }
    if let Some(problem) = &status.state.problem {
        let dir = &status.state.dir;
        let problem =
            format!("state is not saved in {dir}: {problem}; restart neither crimux nor a backend meanwhile");
        problems.push((problem, Some("crimuxstatenotwritable")));
    }
    if let Some(problem) = status.reloads.last.as_ref().and_then(|last| last.problem.as_ref()) {
        let problem = format!("the last reload failed, the configuration before it stays current: {problem}");
        problems.push((problem, Some("crimuxconfigreloadfailed")));
    }
    if !status.reloads.restart_keys.is_empty() {
        problems.push((restart_needed(status), Some("crimuxrestartneeded")));
    }
    if let HttpView { address: Some(address), problem: Some(problem) } = &status.admin_http {
        problems.push((format!("admin.http does not listen on {address}: {problem}"), Some("crimuxabsent")));
    }
    problems
}

#[cfg(test)]
mod tests;
