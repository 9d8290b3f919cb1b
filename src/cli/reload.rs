//! `crimux reload`, and what a configuration would do: said before it is done.

use std::process::ExitCode;

use anyhow::bail;

use crate::admin::api::ReloadReport;
use crate::cli::client::AdminClient;
use crate::cli::config_text::ConfigText;
use crate::cli::output::{self, print};

#[derive(Debug, clap::Args)]
pub(super) struct ReloadArgs {
    /// Only say what the file of --config would do; nothing is changed.
    #[arg(long)]
    dry_run: bool,
    /// Do it although pods would leave kubelet's sight.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    client: AdminClient,
}

impl ReloadArgs {
    /// Does it.
    ///
    /// # Errors
    /// Returns an error if crimux cannot be reached, the file has problems, or it is not applied.
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        if self.dry_run {
            let file = self.client.config();
            let text = ConfigText::read(file)?;
            let planned = text.plan(&self.client).await?;
            print(&lines(&planned))?;
            if planned.refused.is_some() && !self.force {
                return Ok(ExitCode::FAILURE);
            }
            return Ok(ExitCode::SUCCESS);
        }
        let reloaded: ReloadReport = self.client.post(&format!("/v1/reload?force={}", self.force)).await?;
        print(&lines(&reloaded))?;
        if let Some(error) = &reloaded.error {
            bail!("{error}");
        }
        if !reloaded.applied {
            bail!("not applied; the old configuration stays current (--force applies it)");
        }
        print(if reloaded.plan.is_empty() {
            "applied: every backend stays as it is\n"
        } else {
            "applied\n"
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes down what a configuration does, or would do.
fn lines(planned: &ReloadReport) -> String {
    let plan = planned.plan.iter().map(|line| format!("{line}\n"));
    let restart = planned.restart.iter().map(|key| format!("{key}: needs a restart\n"));
    let refused = planned.refused.iter().map(|why| format!("{} {why}\n", output::bad("refused:")));
    plan.chain(restart).chain(refused).collect()
}
