//! The verbs that change a backend of a running crimux: `drain`, `undrain` and `forget`.
//!
//! `forget` makes kubelet treat pods as gone, so it lists them first and asks for the backend's name; `--yes`
//! is for scripts. The server refuses other probable mistakes unless they are forced.

use std::fmt::Write as _;
use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;

use crate::admin::api::{ChangeResult, PodView, PodsView, StatusView};
use crate::cli::client::{AdminClient, duration_argument, segment};
use crate::cli::output;

mod empty;

/// How long `--wait` waits where it has no duration: longer than a node lives.
const LONGEST_WAIT: &str = "10years";
/// How many pods the question lists by name.
const LISTED: usize = 20;

#[derive(Debug, Subcommand)]
pub(super) enum BackendChange {
    /// Take no new sandboxes to a backend; everything else on it works on.
    ///
    /// It survives restarts of crimux. Where a handler is split, the backend's share goes to the others.
    /// Draining a backend that a handler, or the default, reaches without an alternative has new sandboxes
    /// refused, so it wants --force: re-point the handler in the configuration first. A socket of the
    /// backend's own takes new sandboxes all the same, to try the backend before it is undrained.
    Drain {
        /// The backend.
        name: String,
        /// Drain it although new sandboxes of some handler will be refused.
        #[arg(long)]
        force: bool,
        /// Wait until nothing is left on it, naming what is and why; at most DURATION if one is given.
        ///
        /// The exit code is 1 if something is left then. Interrupting the wait does not end the drain.
        #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true,
              default_missing_value = LONGEST_WAIT, value_parser = duration_argument)]
        wait: Option<Duration>,
        #[command(flatten)]
        client: AdminClient,
    },
    /// Take new sandboxes to a backend again.
    Undrain {
        /// The backend.
        name: String,
        #[command(flatten)]
        client: AdminClient,
    },
    /// Declare everything on a backend lost: its pods leave all lists, and kubelet replaces them.
    ///
    /// Be sure that they cannot run any more. This is the only way by which something that cannot be reached
    /// becomes absent. It also ends the wait for a backend that was never listed. What will be forgotten is
    /// shown and has to be confirmed.
    Forget {
        /// The backend.
        name: String,
        /// Forget one pod alone: its sandbox, or the beginning of that ID (crimux ps).
        #[arg(long, value_name = "ID")]
        pod: Option<String>,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
        /// Forget it although it is up; what it still has is learnt again from its next list.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        client: AdminClient,
    },
}

impl BackendChange {
    /// Makes the change and prints the answer.
    ///
    /// # Errors
    /// If crimux cannot be reached or refuses, or if the operator does not confirm.
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let changed = match self {
            Self::Drain { name, force, wait, client } => {
                let query = ChangeQuery { force, pod: None };
                report(post(&client, &name, "drain", &query).await?)?;
                return match wait {
                    Some(limit) => empty::wait(&client, &name, limit).await,
                    None => Ok(ExitCode::SUCCESS),
                };
            }
            Self::Undrain { name, client } => {
                post(&client, &name, "undrain", &ChangeQuery::default()).await?
            }
            Self::Forget { name, pod, yes, force, client } => {
                refuse_in_vain(&client, &name, pod.as_deref(), force).await?;
                if !yes && !confirm(&client, &name, pod.as_deref()).await? {
                    anyhow::bail!("not confirmed; nothing was forgotten");
                }
                post(&client, &name, "forget", &ChangeQuery { force, pod }).await?
            }
        };
        report(changed)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Aims the next sandbox of a pod at a backend: `next` is the two.
///
/// # Errors
/// If crimux cannot be reached or refuses.
pub(super) async fn aim(client: &AdminClient, next: &[String]) -> anyhow::Result<ExitCode> {
    let [pod, backend] = next else { anyhow::bail!("--next takes a pod and a backend") };
    report(client.post(&format!("/v1/next?pod={}&backend={}", segment(pod), segment(backend))).await?)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the answer to a change, its warnings to standard error.
fn report(changed: ChangeResult) -> anyhow::Result<()> {
    for warning in &changed.warnings {
        anstream::eprintln!("{} {warning}", output::warn("warning:"));
    }
    output::print(&(changed.message + "\n"))?;
    Ok(())
}

/// What a change is asked with, beside the backend.
#[derive(Debug, Default)]
struct ChangeQuery {
    force: bool,
    /// The ID of a sandbox, or the beginning of one.
    pod: Option<String>,
}

async fn post(
    client: &AdminClient,
    name: &str,
    verb: &str,
    query: &ChangeQuery,
) -> anyhow::Result<ChangeResult> {
    let pod = query.pod.as_ref().map(|pod| format!("&pod={}", segment(pod))).unwrap_or_default();
    client.post(&format!("/v1/backends/{}/{verb}?force={}{pod}", segment(name), query.force)).await
}

/// Refuses, before the operator confirms anything, what the server would refuse.
async fn refuse_in_vain(
    client: &AdminClient,
    name: &str,
    pod: Option<&str>,
    force: bool,
) -> anyhow::Result<()> {
    let status: StatusView = client.get("/v1/status").await?;
    let Some(backend) = status.backends.iter().find(|backend| backend.name == name) else {
        let known: Vec<_> = status.backends.iter().map(|backend| backend.name.as_str()).collect();
        anyhow::bail!("there is no backend {name:?} (backends: {})", known.join(", "));
    };
    let connected = backend.api.is_some();
    let Some(pod) = pod else {
        let advice = "use --force to forget it anyway";
        anyhow::ensure!(
            !connected || force,
            "backend {name} is up: its next list would bring back everything that is forgotten; {advice}"
        );
        return Ok(());
    };
    let pods: PodsView = client.get("/v1/pods").await?;
    let meant = pods.pods.iter().filter(|it| it.backend == name && it.sandbox_id.starts_with(pod)).count();
    anyhow::ensure!(meant > 0, "backend {name} has no sandbox {pod:?}; `crimux ps` names them");
    anyhow::ensure!(meant == 1, "several sandboxes begin with {pod:?}");
    anyhow::ensure!(
        !connected,
        "backend {name} is up: what it has is learnt again from its next list; remove the pod itself (crictl rmp)"
    );
    Ok(())
}

/// Lists the pods that will be forgotten and asks for the backend's name. Returns whether the answer is that
/// name.
async fn confirm(client: &AdminClient, name: &str, pod: Option<&str>) -> anyhow::Result<bool> {
    let status: StatusView = client.get("/v1/status").await?;
    let pods: PodsView = client.get("/v1/pods").await?;
    let meant = |it: &PodView| it.backend == name && pod.is_none_or(|pod| it.sandbox_id.starts_with(pod));
    let pods: Vec<_> = pods.pods.into_iter().filter(meant).collect();
    let mut question = match status.backends.iter().find(|backend| backend.name == name) {
        Some(backend) if (backend.sandboxes, backend.containers) == (0, 0) => {
            format!(
                "Backend {name} is {}, and nothing on it is known. This ends the wait for its lists.\n",
                backend.state
            )
        }
        Some(backend) if pod.is_some() => {
            format!("Backend {name} is {}. This forgets one pod of it:\n", backend.state)
        }
        Some(backend) => format!(
            "Backend {name} is {}. This forgets {} sandboxes and {} containers:\n",
            backend.state, backend.sandboxes, backend.containers
        ),
        None => format!("Backend {name} is no longer there.\n"),
    };
    for pod in pods.iter().take(LISTED) {
        _ = writeln!(question, "  {}/{} ({})", pod.namespace, pod.name, pod.state);
    }
    if pods.len() > LISTED {
        _ = writeln!(question, "  and {} more (crimux ps)", pods.len() - LISTED);
    }
    question +=
        "kubelet takes what is forgotten for gone and starts others. Be sure that it cannot run any more.\n";
    question += "Type the name of the backend to confirm: ";
    let mut err = std::io::stderr();
    err.write_all(question.as_bytes())?;
    err.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if !answer.ends_with('\n') {
        err.write_all(b"\n")?;
    }
    Ok(answer.trim() == name)
}
