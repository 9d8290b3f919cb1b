//! What becomes of the new sandboxes of handlers, in words.

use std::collections::BTreeSet;

use super::{RECENT, fault_of, recent};
use crate::admin::api::{FaultView, RemovedHandlerView, RouteView, TargetView};
use crate::error::handler_label;

/// Names the handlers whose new sandboxes are refused because of an outage of this backend; a drain is the
/// operator's own will.
pub(super) fn refusal_clause(routes: &[RouteView], backend: &str) -> Option<String> {
    let refused = routes.iter().filter(|route| {
        route.refused.is_some() && route.targets.iter().any(|target| target.state != "draining")
    });
    in_shares(refused, |target| target.backend == backend && !target.takes_new, "refused")
}

/// Names the handlers whose new sandboxes wait for this backend, which answers nothing.
pub(super) fn wait_clause(routes: &[RouteView], backend: &str) -> Option<String> {
    let waits = |target: &TargetView| target.backend == backend && target.waits;
    in_shares(routes.iter(), waits, "wait until it answers")
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
            let of = in_words(&[&route.handler]);
            parts.push(format!("{:.0}% of the new sandboxes of {of} {what}", share * 100.0));
        }
    }
    if !whole.is_empty() {
        parts.insert(0, format!("new sandboxes of {} {what}", in_words(&whole)));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// Names handlers, `""` first: `pods without a RuntimeClass and of handlers a, b and c`.
fn in_words(handlers: &[&str]) -> String {
    let named: Vec<_> = handlers.iter().copied().filter(|handler| !handler.is_empty()).collect();
    let named = match named.split_last() {
        None => None,
        Some((only, [])) => Some(handler_label(only)),
        Some((last, others)) => Some(format!("handlers {} and {last}", others.join(", "))),
    };
    let default = handlers.contains(&"").then(|| handler_label(""));
    default.into_iter().chain(named).collect::<Vec<_>>().join(" and of ")
}

/// Tells whether pods have a removed handler, or asked for it in the last minutes.
pub(in crate::admin) fn is_wanted(removed: &RemovedHandlerView) -> bool {
    removed.sandboxes > 0 || removed.last_refused.as_deref().and_then(|at| recent(at, RECENT)).is_some()
}

/// Says what became of a handler that was taken out of the configuration, while pods ask or asked for it.
pub(super) fn removal_fault(removed: &RemovedHandlerView) -> Option<FaultView> {
    let RemovedHandlerView { handler, sandboxes, last_refused } = removed;
    if !is_wanted(removed) {
        return None;
    }
    let refused = last_refused.as_deref().and_then(|at| recent(at, RECENT));
    let left = match sandboxes {
        0 => String::new(),
        1 => ", 1 is still there".to_owned(),
        more => format!(", {more} are still there"),
    };
    let refused = refused.map_or_else(String::new, |ago| format!(", the last one {ago} ago"));
    let problem = format!("handler {handler} was removed from the configuration");
    let text = format!("{problem}: its new sandboxes are refused{refused}{left}");
    Some(FaultView { text, ..fault_of(problem, None, "crimuxsandboxesrefused") })
}

/// Names the handlers whose new sandboxes are refused because the operator drained their backends, and how
/// that is taken back. That is no outage, but the reason why pods do not start.
pub(super) fn drain_fault(routes: &[RouteView]) -> Option<FaultView> {
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
        let problem = format!("new sandboxes of {} refused", in_words(&names));
        let text = format!("{problem}: drained by the operator ({undrain})");
        FaultView { text, ..fault_of(problem, None, "crimuxhandlerrefused") }
    })
}
