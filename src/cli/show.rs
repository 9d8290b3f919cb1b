//! The verbs that read a running crimux: `status`, `ps`, `route` and `images`.
//!
//! Each requests one document of the admin socket and prints it. `--output json` has the columns that a table
//! omits.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use crate::admin::api::{BackendView, HttpView, ImagesView, PodView, RouteView, StatusView};
use crate::admin::duration;
use crate::cli::client::{ReadArgs, segment};
use crate::cli::output::{self, Format, bad, table};

/// How often `status --watch` asks.
const WATCH: Duration = Duration::from_secs(2);
/// Clears a terminal and moves the cursor to its top.
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

/// How many characters of an ID a table shows, as crictl and docker do.
const SHORT_ID: usize = 13;

pub(super) async fn status(reading: &ReadArgs, watch: bool) -> anyhow::Result<ExitCode> {
    if !watch {
        let status: StatusView = reading.client.get("/v1/status").await?;
        output::show(reading.output, &status, status_table)?;
        return Ok(ExitCode::SUCCESS);
    }
    let on_screen = reading.output == Format::Table && std::io::IsTerminal::is_terminal(&std::io::stdout());
    loop {
        let status: anyhow::Result<StatusView> = reading.client.get("/v1/status").await;
        if on_screen {
            // Not through anstream, which removes every other escape sequence if it is not sure of the
            // terminal.
            std::io::Write::write_all(&mut std::io::stdout(), CLEAR.as_bytes())?;
        }
        match status {
            Ok(status) => output::show(reading.output, &status, status_table)?,
            // crimux may be restarting: keep watching.
            Err(error) => eprintln!("crimux: {error:#}"),
        }
        tokio::time::sleep(WATCH).await;
        if !on_screen && reading.output == Format::Table {
            output::print("\n")?;
        }
    }
}

pub(super) async fn pods(reading: &ReadArgs) -> anyhow::Result<ExitCode> {
    let pods: Vec<PodView> = reading.client.get("/v1/pods").await?;
    output::show(reading.output, &pods, |pods| pods_table(pods))?;
    if reading.output == Format::Table {
        let status: StatusView = reading.client.get("/v1/status").await?;
        let unlisted = status.backends.iter().filter(|backend| backend.list_age_seconds.is_none());
        output::print(&never_listed(unlisted.map(|backend| backend.name.as_str())))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn routes(reading: &ReadArgs, handler: Option<&str>) -> anyhow::Result<ExitCode> {
    match handler {
        None => {
            let routes: Vec<RouteView> = reading.client.get("/v1/routes").await?;
            output::show(reading.output, &routes, |routes| routes_table(routes))?;
        }
        Some(handler) => {
            let path = format!("/v1/routes/{}", segment(handler));
            let route: RouteView = reading.client.get(&path).await?;
            output::show(reading.output, &route, |route| routes_table(std::slice::from_ref(route)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn images(reading: &ReadArgs) -> anyhow::Result<ExitCode> {
    let images: ImagesView = reading.client.get("/v1/images").await?;
    output::show(reading.output, &images, images_table)?;
    Ok(ExitCode::SUCCESS)
}

fn status_table(status: &StatusView) -> String {
    let header = [
        "BACKEND",
        "STATE",
        "SINCE",
        "LISTED",
        "SANDBOXES",
        "CONTAINERS",
        "IN FLIGHT",
        "RUNTIME",
        "LAST ERROR",
    ];
    let mut text = table(header, status.backends.iter().map(status_row));
    let StatusView { version, started_at, default_backend, state, reloads, admin_http, .. } = status;
    _ = writeln!(text, "\ncrimux {version}, up {}, default backend {default_backend}", since(started_at));
    match &state.problem {
        Some(problem) => text += &(bad(&format!("state is not saved in {}: {problem}", state.dir)) + "\n"),
        None if state.write_errors > 0 => {
            _ = writeln!(text, "state is saved again; {} writes failed since the start", state.write_errors);
        }
        None => {}
    }
    if let HttpView { address: Some(address), problem: Some(problem) } = admin_http {
        text += &(bad(&format!("admin.http does not listen on {address}: {problem}")) + "\n");
    }
    if let Some(last) = &reloads.last {
        let result = if last.result == "failed" { bad("failed") } else { last.result.clone() };
        _ = writeln!(
            text,
            "reloads: {} taken, {} failed; the last one, {} ago: {result}",
            reloads.ok,
            reloads.failed,
            since(&last.at)
        );
    }
    text
}

fn status_row(backend: &BackendView) -> [String; 9] {
    let mut state = output::state(&backend.state);
    if backend.draining && backend.state != "draining" {
        state += &("+".to_owned() + &output::state("draining"));
    }
    if !backend.configured {
        state += "+removed";
    }
    let runtime = [&backend.runtime_name, &backend.runtime_version].map(|word| word.as_deref());
    let runtime: Vec<_> = runtime.into_iter().flatten().collect();
    [
        backend.name.clone(),
        state,
        backend.since.as_deref().map_or_else(|| "-".to_owned(), since),
        backend.list_age_seconds.map_or_else(
            || "never".to_owned(),
            |seconds| duration::human(Duration::from_secs_f64(seconds.max(0.0))) + " ago",
        ),
        backend.sandboxes.to_string(),
        backend.containers.to_string(),
        backend.in_flight.to_string(),
        or_dash(&runtime.join(" ")),
        backend.last_error.as_ref().map_or_else(
            || or_dash(&backend.left_out.join("; ")),
            |error| format!("{} ago: {}", since(&error.at), one_line(&error.text)),
        ),
    ]
}

fn pods_table(pods: &[PodView]) -> String {
    let header = ["NAMESPACE", "NAME", "HANDLER", "BACKEND", "STATE", "AGE", "SANDBOX ID"];
    let rows = pods.iter().map(|pod| {
        let stale = if pod.stale { " (last known)" } else { "" };
        [
            pod.namespace.clone(),
            pod.name.clone(),
            or_dash(&pod.handler),
            pod.backend.clone(),
            output::state(&pod.state) + stale,
            if pod.created_at == NEVER { "-".to_owned() } else { since(&pod.created_at) },
            pod.sandbox_id.chars().take(SHORT_ID).collect(),
        ]
    });
    if pods.is_empty() { "no pods\n".to_owned() } else { table(header, rows) }
}

fn routes_table(routes: &[RouteView]) -> String {
    let header = ["HANDLER", "BACKEND", "BACKEND'S HANDLER", "WEIGHT", "SHARE", "STATE", "NEW SANDBOXES"];
    let rows = routes.iter().flat_map(|route| {
        route.targets.iter().map(|target| {
            [
                or_dash(&route.handler),
                target.backend.clone(),
                or_dash(&target.backend_handler),
                target.weight.to_string(),
                format!("{:.0}%", target.share * 100.0),
                output::state(&target.state),
                route
                    .refused
                    .as_ref()
                    .map_or_else(|| "taken".to_owned(), |why| bad(&format!("refused: {why}"))),
            ]
        })
    });
    table(header, rows)
}

fn images_table(images: &ImagesView) -> String {
    let rows = images.images.iter().map(|image| {
        let name = image.tags.first().or(image.digests.first());
        let id = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
        [
            name.map_or("-", String::as_str).to_owned(),
            id.chars().take(SHORT_ID).collect(),
            size(image.size),
            image.backends.join(","),
        ]
    });
    let mut text = if images.images.is_empty() {
        "no images\n".to_owned()
    } else {
        table(["IMAGE", "ID", "SIZE", "BACKENDS"], rows)
    };
    text += &never_listed(images.unknown.iter().map(String::as_str));
    if !images.stale.is_empty() {
        text += &(output::warn(&format!("as last known: {}", images.stale.join(", "))) + "\n");
    }
    text
}

/// Returns the line that names backends whose objects are missing from a table; empty if none is missing.
fn never_listed<'a>(backends: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = backends.collect();
    if names.is_empty() {
        return String::new();
    }
    output::warn(&format!("never listed: {}", names.join(", "))) + "\n"
}

/// Formats how long ago an RFC 3339 time was.
/// How a creation time of 0 is written: the runtime tells none.
const NEVER: &str = "1970-01-01T00:00:00Z";

fn since(moment: &str) -> String {
    let moment = humantime::parse_rfc3339(moment).ok();
    let passed = moment.and_then(|moment| SystemTime::now().duration_since(moment).ok());
    duration::human(passed.unwrap_or_default())
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Formats a size in bytes as `docker images` does: three digits, powers of a thousand.
#[allow(clippy::cast_precision_loss)]
fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 999.5 && unit + 1 < units.len() {
        (value, unit) = (value / 1000.0, unit + 1);
    }
    let digits = if unit == 0 || value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.digits$}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        let shown = [0, 999, 1000, 12_345, 999_600, 4_560_000_000].map(size);
        assert_eq!(shown, ["0B", "999B", "1.00kB", "12.3kB", "1.00MB", "4.56GB"]);
    }
}
