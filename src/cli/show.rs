//! The verbs that read a running crimux: `status`, `ps`, `route` and `images`.
//!
//! Each requests one document of the admin socket and prints it. `--output wide` has more columns than the
//! table, `--output json` everything.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use crate::admin::api::{
    AimView, ImagesView, Level, PodView, PodsView, RemovedHandlerView, RouteView, RoutesView, StatusView,
};
use crate::admin::duration;
use crate::admin::explain::ExplanationView;
use crate::cli::client::{ReadArgs, segment};
use crate::cli::output::{self, Format, bad, or_dash, since, table, warn};
use crate::cli::status_table::status_table;

/// How often `status --watch` asks.
const WATCH: Duration = Duration::from_secs(2);
/// Moves the cursor to the top of a terminal and clears what is below; the scrollback stays.
const CLEAR: &str = "\x1b[H\x1b[J";
/// How many characters of an ID a table shows, as crictl and docker do.
const SHORT_ID: usize = 13;

/// Which pods `ps` shows.
#[derive(Debug, clap::Args)]
pub(super) struct PodFilter {
    /// Only pods on this backend.
    #[arg(long, short, value_name = "NAME")]
    backend: Option<String>,
    /// Only pods of this RuntimeClass handler; "" is for pods without a RuntimeClass.
    #[arg(long)]
    handler: Option<String>,
    /// Only pods of this namespace.
    #[arg(long, short)]
    namespace: Option<String>,
    /// Only pods in this state: ready or notready.
    #[arg(long, value_parser = ["ready", "notready"])]
    state: Option<String>,
    /// Print only the IDs of the sandboxes, one on each line.
    #[arg(long, short)]
    quiet: bool,
}

impl PodFilter {
    fn matches(&self, pod: &PodView) -> bool {
        let is =
            |wanted: &Option<String>, value: &str| wanted.as_deref().is_none_or(|wanted| wanted == value);
        is(&self.backend, &pod.backend)
            && is(&self.handler, &pod.handler)
            && is(&self.namespace, &pod.namespace)
            && is(&self.state, &pod.state)
    }
}

/// Prints the status. With `check`, prints the verdict alone, and exits with 1 unless the node is served
/// well.
pub(super) async fn status(reading: &ReadArgs, watch: bool, check: bool) -> anyhow::Result<ExitCode> {
    if watch {
        return watch_status(reading).await;
    }
    let status: StatusView = reading.client.get("/v1/status").await?;
    if !check {
        output::show(reading.output, &status, |status| status_table(status, reading.output))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::show(reading.output, &status.verdict, |_| crate::cli::status_table::verdict_line(&status))?;
    Ok(if status.verdict.level == Level::Ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn watch_status(reading: &ReadArgs) -> anyhow::Result<ExitCode> {
    let is_table = matches!(reading.output, Format::Table | Format::Wide);
    let on_screen = is_table && std::io::IsTerminal::is_terminal(&std::io::stdout());
    loop {
        let status: anyhow::Result<StatusView> = reading.client.get("/v1/status").await;
        if on_screen {
            // Not through anstream, which removes every other escape sequence if it is not sure of the
            // terminal.
            std::io::Write::write_all(&mut std::io::stdout(), CLEAR.as_bytes())?;
        }
        match status {
            Ok(status) => {
                output::show(reading.output, &status, |status| status_table(status, reading.output))?;
            }
            // crimux may be restarting: keep watching.
            Err(error) => eprintln!("crimux: {error:#}"),
        }
        tokio::time::sleep(WATCH).await;
        if !on_screen && is_table {
            output::print("\n")?;
        }
    }
}

pub(super) async fn pods(reading: &ReadArgs, filter: &PodFilter) -> anyhow::Result<ExitCode> {
    let mut pods: PodsView = reading.client.get("/v1/pods").await?;
    pods.pods.retain(|pod| filter.matches(pod));
    if pods.pods.is_empty() {
        refuse_unknown_names(reading, filter).await?;
    }
    if filter.quiet {
        output::print(&pods.pods.iter().map(|pod| pod.sandbox_id.clone() + "\n").collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    }
    output::show(reading.output, &pods, |pods| pods_table(&pods.pods, reading.output))?;
    if matches!(reading.output, Format::Table | Format::Wide) {
        let status: StatusView = reading.client.get("/v1/status").await?;
        let unlisted = status.backends.iter().filter(|backend| backend.list_age_seconds.is_none());
        let shown = unlisted.filter(|b| filter.backend.as_ref().is_none_or(|name| *name == b.name));
        output::print(&never_listed(shown.map(|backend| backend.name.as_str())))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses a filter by a backend or a handler that does not exist: "no pods" would hide a typing error.
async fn refuse_unknown_names(reading: &ReadArgs, filter: &PodFilter) -> anyhow::Result<()> {
    if let Some(name) = &filter.backend {
        let status: StatusView = reading.client.get("/v1/status").await?;
        let known: Vec<_> = status.backends.into_iter().map(|backend| backend.name).collect();
        anyhow::ensure!(
            known.contains(name),
            "there is no backend {name:?} (backends: {})",
            known.join(", ")
        );
    }
    if let Some(name) = filter.handler.as_ref().filter(|name| !name.is_empty()) {
        let routes: RoutesView = reading.client.get("/v1/routes").await?;
        let known: Vec<_> = routes.routes.into_iter().map(|route| route.handler).collect();
        let named = known.iter().filter(|name| !name.is_empty()).map(String::as_str);
        anyhow::ensure!(
            known.contains(name),
            "there is no handler {name:?} (handlers: {})",
            named.collect::<Vec<_>>().join(", ")
        );
    }
    Ok(())
}

pub(super) async fn routes(reading: &ReadArgs, handler: Option<&str>) -> anyhow::Result<ExitCode> {
    match handler {
        None => {
            let routes: RoutesView = reading.client.get("/v1/routes").await?;
            output::show(reading.output, &routes, |routes| {
                routes_table(&routes.routes) + &removed_handlers(&routes.removed) + &aims(&routes.aimed)
            })?;
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

pub(super) async fn explain_image(reading: &ReadArgs, reference: &str) -> anyhow::Result<ExitCode> {
    let path = format!("/v1/images/explain?reference={}", segment(reference));
    let explanation: ExplanationView = reading.client.get(&path).await?;
    output::show(reading.output, &explanation, explanation_table)?;
    Ok(ExitCode::SUCCESS)
}

fn explanation_table(explanation: &ExplanationView) -> String {
    let stores = explanation.stores.iter().map(|store| {
        let ids = if store.ids.is_empty() { "-".to_owned() } else { store.ids.join(",") };
        let starting = if store.starting { "yes" } else { "no" };
        [store.backend.clone(), store.image.clone(), ids, store.sandboxes.to_string(), starting.to_owned()]
    });
    let mut text = table(["BACKEND", "IMAGE", "ID", "SANDBOXES", "STARTING"], stores);
    for call in &explanation.calls {
        let backends = call.backends.join(", ");
        _ = writeln!(text, "\n{} with {}", call.call, call.carries);
        _ = writeln!(text, "  goes to {backends} ({}): {}", call.store, call.reason);
    }
    text
}

fn pods_table(pods: &[PodView], format: Format) -> String {
    if pods.is_empty() {
        return "no pods\n".to_owned();
    }
    let columns = |pod: &PodView| {
        let stale = if pod.stale { " (last known)" } else { "" };
        [
            pod.namespace.clone(),
            pod.name.clone(),
            or_dash(&pod.handler) + if pod.handler_removed { " (removed)" } else { "" },
            pod.backend.clone(),
            output::state(&pod.state) + stale,
            since(&pod.created_at),
            pod.sandbox_id.chars().take(SHORT_ID).collect(),
        ]
    };
    let header = ["NAMESPACE", "NAME", "HANDLER", "BACKEND", "STATE", "AGE", "SANDBOX ID"];
    if format != Format::Wide {
        return table(header, pods.iter().map(columns));
    }
    let [namespace, name, handler, backend, state, age, _] = header;
    let header = [
        namespace,
        name,
        handler,
        backend,
        "BACKEND'S HANDLER",
        state,
        age,
        "ATTEMPT",
        "CONTAINERS",
        "UID",
        "SANDBOX ID",
    ];
    let rows = pods.iter().map(|pod| {
        let [namespace, name, handler, backend, state, age, _] = columns(pod);
        let (attempt, containers) = (pod.attempt.to_string(), pod.containers.to_string());
        let known_as = or_dash(&pod.backend_handler);
        let (uid, id) = (pod.uid.clone(), pod.sandbox_id.clone());
        [namespace, name, handler, backend, known_as, state, age, attempt, containers, uid, id]
    });
    table(header, rows)
}

fn routes_table(routes: &[RouteView]) -> String {
    let header = ["HANDLER", "BACKEND", "BACKEND'S HANDLER", "WEIGHT", "SHARE", "STATE", "NEW SANDBOXES"];
    let rows = routes.iter().flat_map(|route| {
        route.targets.iter().map(|target| {
            let new = match (target.takes_new, &route.refused) {
                (true, _) if target.waits => warn("taken, and wait until it answers"),
                (true, _) => "taken".to_owned(),
                (false, Some(why)) => bad(&format!("refused: {why}")),
                (false, None) => "none".to_owned(),
            };
            [
                or_dash(&route.handler),
                target.backend.clone(),
                or_dash(&target.backend_handler),
                target.weight.to_string(),
                format!("{:.0}%", target.share * 100.0),
                output::state(&target.state),
                new,
            ]
        })
    });
    table(header, rows)
}

/// Returns a line for each handler that is no longer configured.
fn removed_handlers(removed: &[RemovedHandlerView]) -> String {
    let line = |removed: &RemovedHandlerView| {
        let RemovedHandlerView { handler, sandboxes, .. } = removed;
        let pods = if *sandboxes == 1 { "1 sandbox" } else { &format!("{sandboxes} sandboxes") };
        warn(&format!("handler {handler} was removed: its new sandboxes are refused; {pods} of it left"))
            + "\n"
    };
    removed.iter().map(line).collect()
}

/// Returns a line for each pod that is aimed.
fn aims(aimed: &[AimView]) -> String {
    let line = |aim: &AimView| {
        let left = duration::human(Duration::from_secs(aim.seconds_left));
        output::warn(&format!("next sandbox of pod {}: {} (for {left})", aim.pod, aim.backend)) + "\n"
    };
    aimed.iter().map(line).collect()
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

    #[test]
    fn an_unknown_time_has_no_age() {
        assert_eq!(since("1970-01-01T00:00:00Z"), "-");
        assert_eq!(since("nonsense"), "-");
    }
}
