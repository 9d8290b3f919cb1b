//! The status page: the node at a glance, in any browser.
//!
//! One document without scripts, links or images that reloads itself, so that it works through `kubectl
//! port-forward`, in a text browser and on a wall screen. It is read-only and shows only what a metric label,
//! a version or an error text would say, because the port has no authentication; of pods it names the one
//! whose sandbox was refused last. maud escapes every text. What is red stands in the first columns, which a
//! narrow screen shows without scrolling.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::admin::api::{BackendView, Level, RemovedHandlerView, RouteView, StatusView};
use crate::admin::status_view::compose_status;
use crate::admin::{AdminState, duration, read, timeline};
use crate::history::{Placement, Refusal, Reload, ReloadResult};
use crate::metrics::code_name;

/// How often the page reloads itself, in seconds.
const REFRESH: u32 = 5;

const STYLE: &str = include_str!("page.css");

/// Forbids loading, scripts, framing and forms, as a second line of defence behind the escaping.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// The page that reloads itself.
pub(super) async fn page(State(state): State<Arc<AdminState>>) -> impl IntoResponse {
    answer(&state, true)
}

/// The page as it is now, for a reader who must not lose the place.
pub(super) async fn paused_page(State(state): State<Arc<AdminState>>) -> impl IntoResponse {
    answer(&state, false)
}

fn answer(state: &AdminState, refreshes: bool) -> impl IntoResponse + use<> {
    let headers = [
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, axum::response::Html(render(state, refreshes).into_string()))
}

fn render(state: &AdminState, refreshes: bool) -> Markup {
    let all_routes = read::all_routes(&state.node);
    let status = compose_status(state, &all_routes);
    let calls = |backend: &str| state.node.metrics.calls_answered_by(backend);
    let node = node_name();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                @if refreshes { meta http-equiv="refresh" content=(REFRESH); }
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (node) ": " (status.verdict.level.word()) ", " (status.verdict.summary) " - crimux" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (node) " " small { "crimux " (status.version) ", up " (age(Some(state.started))) } }
                    (verdict(&status))
                }
                main {
                    (backends(&status, calls))
                    (timeline::section(&state.node, &caption("State of each backend, oldest left; what was before the start of crimux is blank.")))
                    (routes(&all_routes, &status.removed_handlers))
                    div.columns {
                        (placements(&state.node.history.placements(), state.node.history.last_refusal().as_ref()))
                        (reloads(&state.node.history.reloads(), &status))
                    }
                }
                footer {
                    p { "As of " (duration::rfc3339(SystemTime::now())) ". "
                        @if refreshes { "Reloads every " (REFRESH) " s. " a href="/paused" { "Stop" } }
                        @else { "Does not reload itself. " a href="/" { "Start" } }
                        " · " a href="/metrics" { "Metrics" } }
                    p { "Calls: answered by each backend since crimux started." }
                    @for older in &status.older_processes {
                        p { "Process " (older.pid) " (version " (older.version) ") was replaced at " (older.since)
                            " and finishes calls: " (older.calls) ", relayed streams: " (older.streams) "." }
                    }
                }
            }
        }
    }
}

/// The judgement in colour and words, then each fault with its next step.
fn verdict(status: &StatusView) -> Markup {
    let class = match status.verdict.level {
        Level::Ok => "good",
        Level::Degraded => "warn",
        Level::NotReady => "bad",
    };
    html! {
        div.verdict.(class) {
            p { strong { (status.verdict.level.word()) } ": " (status.verdict.headline) }
            @if !status.verdict.faults.is_empty() { ul { @for fault in &status.verdict.faults { li {
                (fault.text) @if let Some(next) = &fault.next { " " small { "See " (next) } }
            } } } }
        }
    }
}

/// The name by which the kernel knows the node; kubelet's default node name is the same.
fn node_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "node".to_owned() } else { name.trim().to_owned() }
}

fn backends(status: &StatusView, calls: impl Fn(&str) -> u64) -> Markup {
    html! {
        section {
            h2 { "Backends" }
            div.scroll { table {
                (caption("State of each backend; its last error stands below its name."))
                thead { tr {
                    th scope="col" { "Backend" } th scope="col" { "State" } th scope="col" { "Since" }
                    th scope="col" { "Runtime" }
                    th.n scope="col" { "Sandboxes" } th.n scope="col" { "Containers" } th.n scope="col" { "In flight" }
                    th.n scope="col" { "Calls" } th.n scope="col" { "List age" }
                } }
                @for backend in &status.backends { (backend_row(backend, calls(&backend.name))) }
            } }
        }
    }
}

fn backend_row(backend: &BackendView, calls: u64) -> Markup {
    let runtime = [&backend.runtime_name, &backend.runtime_version].map(|word| word.as_deref().unwrap_or(""));
    html! {
        tbody { tr.(backend.state) {
            th scope="row" {
                (backend.name)
                @if backend.default { " " small { "default" } }
                @if backend.required { " " small { "required" } }
                @if !backend.configured { " " small { "removed" } }
            }
            td { span.state { (backend.state) }
                @if backend.draining && backend.state != "draining" { " " small { "draining" } } }
            td { (backend.since.as_deref().map_or_else(|| "–".to_owned(), since)) }
            td { (runtime.join(" ")) }
            td.n { (backend.sandboxes) }
            td.n { (backend.containers) }
            td.n { (backend.in_flight) }
            td.n { (calls) }
            td.n.warn[is_stale(backend)] { (backend.list_age_seconds.map_or_else(|| "never".to_owned(), seconds))
                @if is_stale(backend) { " stale" } }
        }
        @if let Some(error) = &backend.last_error {
            tr { td.error colspan="9" { span { "Last error " (since(&error.at)) @if backend.is_error_over() { ", over" } ": " (error.text) } } }
        }
        @for problem in &backend.unready { tr { td.error colspan="9" { span { (problem) } } } }
        @for case in &backend.left_out { tr { td.error colspan="9" { span { "Left out: " (case) } } } }
        }
    }
}

fn routes(routes: &[RouteView], removed: &[RemovedHandlerView]) -> Markup {
    html! {
        section {
            h2 { "Handlers" }
            div.scroll { table {
                (caption("Where new sandboxes of each handler go."))
                thead { tr { th scope="col" { "Handler" } th scope="col" { "New sandboxes" } th scope="col" { "Leads to" } } }
                tbody { @for route in routes { tr {
                    th scope="row" { @if route.handler.is_empty() { em { "no RuntimeClass" } } @else { (route.handler) } }
                    td { @match &route.refused {
                        Some(why) => span.bad { (why) },
                        None if waits(route) => span.warn { "taken, and wait until it answers" },
                        None => "taken",
                    } }
                    td { @for (index, target) in route.targets.iter().enumerate() {
                        @if index > 0 { ", " }
                        (target.backend)
                        @if !target.backend_handler.is_empty() { " as " (target.backend_handler) }
                        @if route.targets.len() > 1 { " " (format!("{:.0} %", target.share * 100.0)) }
                    } }
                } }
                @for removed in removed { tr {
                    th scope="row" { (removed.handler) " " small { "removed" } }
                    td { span.bad { "refused: not in the configuration" } }
                    td { "sandboxes left: " (removed.sandboxes) }
                } } }
            } }
        }
    }
}

/// Tells whether new sandboxes of a handler may wait for a backend that answers nothing.
fn waits(route: &RouteView) -> bool {
    route.targets.iter().any(|target| target.waits)
}

/// Says which pod's sandbox was refused last, as `crimux status` does.
fn refusal(refusal: &Refusal) -> Markup {
    html! {
        p.warn { "New sandbox of pod " (refusal.pod) ", handler "
            @if refusal.handler.is_empty() { "of no RuntimeClass" } @else { (refusal.handler) }
            ", refused " (age(Some(refusal.at))) " ago: " (refusal.reason) }
    }
}

fn placements(placements: &[Placement], last_refusal: Option<&Refusal>) -> Markup {
    html! {
        section {
            h2 { "Last placements" }
            @if let Some(last) = last_refusal { (refusal(last)) }
            @if placements.is_empty() { p { "No sandbox was asked for since the start." } } @else {
                div.scroll { table {
                    (caption("Newest first."))
                    thead { tr { th scope="col" { "When" } th scope="col" { "Answer" } th scope="col" { "Handler" } th scope="col" { "Backend" } } }
                    tbody { @for placement in placements { tr {
                        td { (age(Some(placement.at))) " ago" }
                        td.bad[placement.code != tonic::Code::Ok] { (code_name(placement.code)) }
                        td { @match placement.handler.as_deref() {
                            None => em { "not configured" },
                            Some("") => em { "no RuntimeClass" },
                            Some(handler) => (handler),
                        } }
                        td { (placement.backend.as_deref().unwrap_or("–")) }
                    } } }
                } }
            }
        }
    }
}

fn reloads(reloads: &[Reload], status: &StatusView) -> Markup {
    html! {
        section {
            h2 { "Last reloads" }
            @if !status.reloads.restart_keys.is_empty() {
                p.warn { "At the next start: " (status.reloads.restart_keys.join(", "))
                    @if status.reloads.new_state_dir.is_some() { " (do not restart, see above)" } }
            }
            @if reloads.is_empty() { p { "The configuration was not reloaded since the start." } } @else {
                div.scroll { table {
                    (caption("Newest first."))
                    thead { tr { th scope="col" { "When" } th scope="col" { "Result" } } }
                    tbody { @for reload in reloads { tr {
                        td { (age(Some(reload.at))) " ago" }
                        td.error.bad[reload.result == ReloadResult::Failed] { (reload.result.word())
                            @if let Some(problem) = &reload.problem { " " small { (problem) } } }
                    } } }
                } }
            }
        }
    }
}

/// The caption of a table, which stays in sight where the table is wider than the page.
pub(super) fn caption(text: &str) -> Markup {
    html! { caption { span { (text) } } }
}

/// kubelet lists every second; a list older than a minute means that it sees the past.
fn is_stale(backend: &BackendView) -> bool {
    backend.list_age_seconds.is_some_and(|age| age > 60.0)
}

/// Formats how long ago an RFC 3339 time was.
fn since(moment: &str) -> String {
    format!("{} ago", age(humantime::parse_rfc3339(moment).ok()))
}

fn age(moment: Option<SystemTime>) -> String {
    let passed = moment.and_then(|moment| SystemTime::now().duration_since(moment).ok()).unwrap_or_default();
    duration::human(passed)
}

fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 0.001 => format!("{:.0} µs", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.1} s"),
        s => duration::human(std::time::Duration::from_secs_f64(s)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_from_a_backend_is_escaped() {
        let backend = BackendView {
            id: 1,
            name: "a".to_owned(),
            endpoint: String::new(),
            default: true,
            required: false,
            optional: false,
            comes_later: false,
            local: true,
            configured: true,
            state: "ready".to_owned(),
            since: None,
            draining: false,
            list_age_seconds: None,
            last_error: None,
            in_flight: 0,
            sandboxes: 0,
            containers: 0,
            runtime_name: Some("<script>alert(1)</script>".to_owned()),
            runtime_version: None,
            api: None,
            unready: Vec::new(),
            late: Vec::new(),
            lost: None,
            certificate: None,
            silent_since: None,
            stopped_pid: None,
            foreign_ids: 0,
            event_source: None,
            left_out: Vec::new(),
            lacking: Vec::new(),
            awaited: false,
        };
        let row = backend_row(&backend, 0).into_string();
        assert!(row.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "{row}");
        assert!(!row.contains("<script"), "{row}");
    }

    #[test]
    fn times_are_shown_in_the_unit_that_fits() {
        let shown = [0.000_25, 0.0125, 2.5, 600.0].map(seconds);
        assert_eq!(shown, ["250 µs", "12.5 ms", "2.5 s", "10m"]);
    }
}
