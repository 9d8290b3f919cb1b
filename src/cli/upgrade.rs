//! `crimux upgrade`: hands over to a newly started process.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::admin::api::{StatusView, UpgradeView};
use crate::cli::client::{AdminClient, duration_argument, segment};
use crate::cli::output::print;

/// Between two looks at whether the old process has ended.
const POLL: Duration = Duration::from_millis(200);
/// How long an answer may take beyond what the new process may.
const ANSWER: Duration = Duration::from_secs(15);

#[derive(Debug, clap::Args)]
pub(super) struct UpgradeArgs {
    /// Wait until the old process has finished its calls and ended.
    #[arg(long)]
    wait: bool,
    /// Start this program instead of the one that crimux was started from.
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// How long the new process may take until it serves.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration_argument)]
    within: Duration,
    #[command(flatten)]
    client: AdminClient,
}

impl UpgradeArgs {
    /// Does it.
    ///
    /// # Errors
    /// Returns an error if crimux cannot be reached or the new process does not serve.
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let mut path = format!("/v1/upgrade?within={}", self.within.as_millis());
        if let Some(binary) = &self.binary {
            let binary = std::path::absolute(binary)?;
            path = format!("{path}&binary={}", segment(&binary.display().to_string()));
        }
        let patient = self.client.patient(self.within + ANSWER);
        let UpgradeView { pid, version, old_pid } = patient.post(&path).await?;
        print(&format!("pid {pid} (version {version}) serves; pid {old_pid} finishes its calls\n"))?;
        if self.wait {
            while self.is_there(old_pid).await? {
                tokio::time::sleep(POLL).await;
            }
            print(&format!("pid {old_pid} has ended\n"))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn is_there(&self, pid: u32) -> anyhow::Result<bool> {
        let status: StatusView = self.client.get("/v1/status").await?;
        Ok(status.pid == pid || status.older_processes.iter().any(|older| older.pid == pid))
    }
}
