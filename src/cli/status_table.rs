//! The table of `crimux status`: a verdict, the backends, their errors, and crimux itself. What the verdict
//! says is not said again below it.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use crate::admin::api::{BackendView, Level, OlderProcessView, RefusalView, StatusView};
use crate::admin::duration;
use crate::admin::verdict::RECENT;
use crate::cli::output::{self, Format, bad, good, or_dash, since, table, warn};
use crate::config;

/// Formats a status. Within 80 columns for names of usual length, unless `format` is wide.
pub(super) fn status_table(status: &StatusView, format: Format) -> String {
    let mut text = verdict_lines(status, format) + "\n";
    text += &if format == Format::Wide { wide(status) } else { narrow(status) };
    // An error that is over stands below those that are not.
    let (over, live): (Vec<_>, Vec<_>) = status.backends.iter().partition(|backend| backend.is_error_over());
    let notes: Vec<_> = live.into_iter().chain(over).flat_map(notes).collect();
    if !notes.is_empty() {
        _ = writeln!(text, "\n{}", notes.join("\n"));
    }
    text + &own_lines(status)
}

/// Formats the headline, and a line for each fault with its next step, wrapped unless `format` is wide.
fn verdict_lines(status: &StatusView, format: Format) -> String {
    let verdict = &status.verdict;
    if verdict.headline.is_empty() {
        // A crimux that knows no headline.
        return verdict_line(status);
    }
    let width = if format == Format::Wide { usize::MAX } else { output::WIDTH };
    let headline = format!("{}: {}", verdict.level.word(), one_line(&verdict.headline));
    let faults = verdict.faults.iter().map(|fault| {
        let line = format!("- {}", with_next(&fault.text, fault.next.as_deref()));
        output::wrap(&line, width)
    });
    let lines: String = std::iter::once(output::wrap(&headline, width)).chain(faults).collect();
    paint(lines, verdict.level)
}

/// Formats the judgement and the first next step as one line, for scripts.
pub(super) fn verdict_line(status: &StatusView) -> String {
    let verdict = &status.verdict;
    let line = with_next(&verdict.text, verdict.next.as_deref());
    paint(format!("{}: {line}\n", verdict.level.word()), verdict.level)
}

/// Colours the level, which the text begins with.
fn paint(text: String, level: Level) -> String {
    let paint = match level {
        Level::Ok => good,
        Level::Degraded => warn,
        Level::NotReady => bad,
    };
    text.strip_prefix(level.word()).map(|rest| paint(level.word()) + rest).unwrap_or(text)
}

/// Formats a text and the section of the runbook as sentences.
fn with_next(text: &str, next: Option<&str>) -> String {
    let text = one_line(text);
    let stop = if text.ends_with(['?', '.', '!']) { "" } else { "." };
    next.map_or_else(|| text.clone(), |next| format!("{text}{stop} See {next}"))
}

fn narrow(status: &StatusView) -> String {
    let header = ["BACKEND", "STATE", "SINCE", "SANDBOXES", "CONTAINERS", "RUNTIME"];
    let rows = status.backends.iter().map(|backend| {
        [
            name(backend),
            state(backend),
            backend.since.as_deref().map_or_else(|| "-".to_owned(), since),
            backend.sandboxes.to_string(),
            backend.containers.to_string(),
            runtime(backend),
        ]
    });
    table(header, rows)
}

fn wide(status: &StatusView) -> String {
    let header = [
        "BACKEND",
        "STATE",
        "SINCE",
        "LISTED",
        "SANDBOXES",
        "CONTAINERS",
        "IN FLIGHT",
        "RUNTIME",
        "API",
        "ENDPOINT",
    ];
    let rows = status.backends.iter().map(|backend| {
        let listed = |seconds: f64| duration::human(Duration::from_secs_f64(seconds.max(0.0))) + " ago";
        [
            name(backend),
            state(backend),
            backend.since.as_deref().map_or_else(|| "-".to_owned(), since),
            backend.list_age_seconds.map_or_else(|| "never".to_owned(), listed),
            backend.sandboxes.to_string(),
            backend.containers.to_string(),
            backend.in_flight.to_string(),
            runtime(backend),
            or_dash(backend.api.as_deref().unwrap_or_default()),
            backend.endpoint.clone(),
        ]
    });
    table(header, rows)
}

fn name(backend: &BackendView) -> String {
    match (backend.default, backend.required) {
        (true, _) => format!("{} (default)", backend.name),
        (false, true) => format!("{} (required)", backend.name),
        (false, false) => backend.name.clone(),
    }
}

fn state(backend: &BackendView) -> String {
    let mut state = output::state(&backend.state);
    if backend.draining && backend.state != "draining" {
        state += &("+".to_owned() + &output::state("draining"));
    }
    if !backend.configured {
        state += "+removed";
    }
    state
}

fn runtime(backend: &BackendView) -> String {
    let words = [&backend.runtime_name, &backend.runtime_version].map(|word| word.as_deref());
    or_dash(&words.into_iter().flatten().collect::<Vec<_>>().join(" "))
}

/// The last error of a backend, and what its answers lacked.
fn notes(backend: &BackendView) -> Vec<String> {
    let error = backend.last_error.as_ref();
    let over = if backend.is_error_over() { " (over)" } else { "" };
    let error =
        error.map(|error| format!("last error {} ago{over}: {}", since(&error.at), one_line(&error.text)));
    let left_out = backend.left_out.iter().map(|case| format!("left out: {}", one_line(case)));
    error.into_iter().chain(left_out).map(|note| format!("{}: {note}", backend.name)).collect()
}

fn own_lines(status: &StatusView) -> String {
    let StatusView { version, started_at, default_backend, state, reloads, clients, .. } = status;
    let clients = match clients.as_ref().map(|clients| clients.connections) {
        None => String::new(),
        Some(0) => format!(", {}", warn("no client is connected")),
        Some(1) => ", 1 client connection".to_owned(),
        Some(connections) => format!(", {connections} client connections"),
    };
    let mut text =
        format!("\ncrimux {version}, up {}, default backend {default_backend}{clients}\n", since(started_at));
    if !matches!(status.config_file.as_str(), "" | config::DEFAULT_PATH) {
        _ = writeln!(text, "configuration {}", status.config_file);
    }
    if let Some(level) = &status.log_level {
        _ = writeln!(text, "log level {level}, not that of the configuration (crimux log-level changes it)");
    }
    if state.problem.is_none() && state.write_errors > 0 {
        _ = writeln!(text, "state is saved again; {} writes failed since the start", state.write_errors);
    }
    if let Some(last) = &reloads.last {
        let result = if last.problem.is_some() { bad("failed, see above") } else { last.result.clone() };
        let ago = since(&last.at);
        _ = writeln!(
            text,
            "reloads: {} ok, {} failed; the last one, {ago} ago: {result}",
            reloads.ok, reloads.failed
        );
    }
    text += &status.last_refusal.as_ref().and_then(refusal).unwrap_or_default();
    for older in &status.older_processes {
        let OlderProcessView { pid, version, since: at, calls, streams } = older;
        let left = format!("calls: {calls}, relayed streams: {streams}");
        _ = writeln!(
            text,
            "pid {pid} (version {version}) was replaced {} ago and finishes {left}",
            since(at)
        );
    }
    text
}

/// Says why the last new sandbox was refused, if that was within ten minutes.
fn refusal(refusal: &RefusalView) -> Option<String> {
    let at = humantime::parse_rfc3339(&refusal.at).ok()?;
    let is_old = SystemTime::now().duration_since(at).is_ok_and(|age| age > RECENT);
    let RefusalView { pod, reason, .. } = refusal;
    let line = format!(
        "new sandbox of pod {} refused {} ago: {}",
        one_line(pod),
        since(&refusal.at),
        one_line(reason)
    );
    (!is_old).then(|| warn(&line) + "\n")
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
