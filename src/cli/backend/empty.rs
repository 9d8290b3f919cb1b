//! `crimux backend drain --wait`: waits until nothing is left on a backend, and says what is and why.
//!
//! What is left is printed when it changes, so that the output of a drain that takes hours is short.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use tokio::time::Instant;

use crate::admin::api::{BackendView, PodView, PodsView, StatusView};
use crate::cli::client::AdminClient;
use crate::cli::output;

/// How often crimux is asked.
const EVERY: Duration = Duration::from_secs(2);
/// How many pods are listed by name.
const LISTED: usize = 20;

/// Waits until the backend has no sandbox and no container, at most `limit`.
///
/// # Errors
/// If crimux refuses to answer, or standard output cannot be written.
pub(super) async fn wait(client: &AdminClient, name: &str, limit: Duration) -> anyhow::Result<ExitCode> {
    let until = Instant::now() + limit;
    let mut shown = String::new();
    loop {
        let left = match describe_rest(client, name).await {
            Ok(None) => {
                output::print(&format!("nothing is left on backend {name}\n"))?;
                return Ok(ExitCode::SUCCESS);
            }
            Ok(Some(left)) => left,
            // crimux may be restarting; a drain survives that.
            Err(error) => format!("crimux: {error:#}\n"),
        };
        if left != shown {
            output::print(&left)?;
            shown = left;
        }
        let next = Instant::now() + EVERY;
        if until < next {
            anstream::eprintln!("crimux: backend {name} is not empty yet; it goes on draining");
            return Ok(ExitCode::FAILURE);
        }
        tokio::time::sleep_until(next).await;
    }
}

/// Describes what is left on a backend; `None` if nothing is.
async fn describe_rest(client: &AdminClient, name: &str) -> anyhow::Result<Option<String>> {
    let pods: PodsView = client.get("/v1/pods").await?;
    let status: StatusView = client.get("/v1/status").await?;
    let Some(backend) = status.backends.iter().find(|backend| backend.name == name) else { return Ok(None) };
    let pods: Vec<_> = pods.pods.into_iter().filter(|pod| pod.backend == name).collect();
    if pods.is_empty() && (backend.sandboxes, backend.containers) == (0, 0) {
        return Ok(None);
    }
    Ok(Some(describe(backend, &pods)))
}

fn describe(backend: &BackendView, pods: &[PodView]) -> String {
    let BackendView { name, sandboxes, containers, .. } = backend;
    let mut text = format!("left on backend {name}: {sandboxes} sandboxes, {containers} containers\n");
    for pod in pods.iter().take(LISTED) {
        _ = writeln!(text, "  {}/{}: {}", pod.namespace, pod.name, reason(pod));
    }
    if let Some(more) = pods.len().checked_sub(LISTED).filter(|more| *more > 0) {
        _ = writeln!(text, "  and {more} more");
    }
    text
}

/// Says why a pod is still there, and what ends that.
fn reason(pod: &PodView) -> &'static str {
    match (pod.stale, pod.state.as_str()) {
        (true, _) => "as last known: the backend does not answer",
        (false, "ready") => "it runs; recreate it (delete the pod, or kubectl rollout restart)",
        // kubelet keeps the sandbox of a Completed or Failed pod (kuberuntime_gc.go evictSandboxes).
        _ => "it has ended; kubelet removes it about a minute after the pod is deleted",
    }
}
