//! The status page: the node at a glance, in any browser.
//!
//! One document without scripts, links or images that reloads itself, so that it works through `kubectl
//! port-forward`, in a text browser and on a wall screen. It is read-only and shows only what a metric label,
//! a version or an error text would say, because the port has no authentication. maud escapes every text.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::admin::api::{BackendView, RouteView, StatusView};
use crate::admin::{AdminState, duration, read};
use crate::history::{Placement, Reload, ReloadResult};
use crate::metrics::code_name;

/// How often the page reloads itself, in seconds.
const REFRESH: u32 = 5;

const STYLE: &str = include_str!("page.css");

/// Forbids loading, scripts, framing and forms, as a second line of defence behind the escaping.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

pub(super) async fn page(State(state): State<Arc<AdminState>>) -> impl IntoResponse {
    let headers = [
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, axum::response::Html(render(&state).into_string()))
}

fn render(state: &AdminState) -> Markup {
    let status = read::compose_status(state);
    let calls = |backend: &str| state.node.metrics.calls_answered_by(backend);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="refresh" content=(REFRESH);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "crimux: " (summary(&status)) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "crimux" }
                    p {
                        (status.version) ", up " (age(Some(state.started))) ", "
                        strong { (summary(&status)) }
                        @if let Some(problem) = &status.state.problem { " · " strong.bad { "state is not saved: " (problem) } }
                    }
                }
                (backends(&status, calls))
                (routes(&read::all_routes(&state.node)))
                div.columns {
                    (placements(&state.node.history.placements()))
                    (reloads(&state.node.history.reloads()))
                }
                footer {
                    p { "As of " (read::rfc3339(SystemTime::now())) ". Calls: answered by each backend since crimux started. "
                        a href="/metrics" { "Metrics" } }
                }
            }
        }
    }
}

fn summary(status: &StatusView) -> String {
    let well = status.backends.iter().filter(|backend| backend.state == "ready").count();
    format!("{well} of {} backends ready", status.backends.len())
}

fn backends(status: &StatusView, calls: impl Fn(&str) -> u64) -> Markup {
    html! {
        section {
            h2 { "Backends" }
            div.scroll { table {
                thead { tr {
                    th { "Backend" } th { "State" } th { "Since" } th { "Runtime" }
                    th.n { "Sandboxes" } th.n { "Containers" } th.n { "In flight" }
                    th.n { "Calls" } th.n { "List age" } th { "Last error" }
                } }
                tbody { @for backend in &status.backends { (backend_row(backend, calls(&backend.name))) } }
            } }
        }
    }
}

fn backend_row(backend: &BackendView, calls: u64) -> Markup {
    let runtime = [&backend.runtime_name, &backend.runtime_version].map(|word| word.as_deref().unwrap_or(""));
    html! {
        tr.(backend.state) {
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
            td.n { (backend.list_age_seconds.map_or_else(|| "never".to_owned(), seconds)) }
            td.error { @if let Some(error) = &backend.last_error { (error.text) " " small { (since(&error.at)) } } }
        }
    }
}

fn routes(routes: &[RouteView]) -> Markup {
    html! {
        section {
            h2 { "Handlers" }
            div.scroll { table {
                thead { tr { th { "Handler" } th { "Leads to" } th { "New sandboxes" } } }
                tbody { @for route in routes { tr {
                    th scope="row" { @if route.handler.is_empty() { em { "none" } } @else { (route.handler) } }
                    td { @for (index, target) in route.targets.iter().enumerate() {
                        @if index > 0 { ", " }
                        (target.backend)
                        @if !target.backend_handler.is_empty() { " as " (target.backend_handler) }
                        @if route.targets.len() > 1 { " " (format!("{:.0} %", target.share * 100.0)) }
                    } }
                    td { @match &route.refused {
                        Some(why) => span.bad { (why) },
                        None => "taken",
                    } }
                } } }
            } }
        }
    }
}

fn placements(placements: &[Placement]) -> Markup {
    html! {
        section {
            h2 { "Last placements" }
            @if placements.is_empty() { p { "No sandbox was asked for since the start." } } @else {
                table {
                    thead { tr { th { "When" } th { "Handler" } th { "Backend" } th { "Answer" } } }
                    tbody { @for placement in placements { tr {
                        td { (age(Some(placement.at))) " ago" }
                        td { @match placement.handler.as_deref() {
                            None => em { "not configured" },
                            Some("") => em { "none" },
                            Some(handler) => (handler),
                        } }
                        td { (placement.backend.as_deref().unwrap_or("–")) }
                        td.bad[placement.code != tonic::Code::Ok] { (code_name(placement.code)) }
                    } } }
                }
            }
        }
    }
}

fn reloads(reloads: &[Reload]) -> Markup {
    html! {
        section {
            h2 { "Last reloads" }
            @if reloads.is_empty() { p { "The configuration was not reloaded since the start." } } @else {
                table {
                    thead { tr { th { "When" } th { "Result" } } }
                    tbody { @for reload in reloads { tr {
                        td { (age(Some(reload.at))) " ago" }
                        td.bad[reload.result == ReloadResult::Failed] { (reload.result.word()) }
                    } } }
                }
            }
        }
    }
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
            name: "a".to_owned(),
            endpoint: String::new(),
            default: true,
            required: false,
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
            left_out: Vec::new(),
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
