//! `crimux reload`, and what a configuration would do: said before it is done.

use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;

use crate::admin::api::ReloadReport;
use crate::cli::client::{AdminClient, BadConfig};
use crate::cli::config_text::ConfigText;
use crate::cli::output::{self, print};

#[derive(Debug, clap::Args)]
pub(super) struct ReloadArgs {
    /// Only say what a reload would change, of the running crimux's file or else of that of --config.
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
            return self.rehearse().await;
        }
        let reloaded: ReloadReport = self.client.reload(self.force).await?;
        print(&lines(&reloaded))?;
        if let Some(other) = self
            .client
            .named_config()
            .filter(|named| !reloaded.file.is_empty() && !is_same(named, &reloaded.file))
        {
            let (other, file) = (other.display(), &reloaded.file);
            eprintln!(
                "crimux: the running crimux reads {file}, not {other}, which only named its admin socket"
            );
        }
        if let Some(error) = &reloaded.error {
            if reloaded.partly_applied {
                bail!("{error}");
            }
            return Err(BadConfig(error.clone()).into());
        }
        if !reloaded.applied {
            bail!("not applied; the old configuration stays current (--force applies it)");
        }
        print(match (changes_nothing(&reloaded), reloaded.restart.is_empty()) {
            (false, _) => "applied\n",
            (true, false) => "unchanged until the restart\n",
            (true, true) => "unchanged\n",
        })?;
        Ok(ExitCode::SUCCESS)
    }

    /// Says what a reload would do.
    async fn rehearse(&self) -> anyhow::Result<ExitCode> {
        let planned: ReloadReport = match self.client.named_config() {
            Some(file) => {
                let text = ConfigText::load(file)?;
                ReloadReport { file: file.display().to_string(), ..text.plan(&self.client).await? }
            }
            None => self.client.post("/v1/plan").await?,
        };
        print(&lines(&planned))?;
        let is_refused = planned.refused.is_some() && !self.force;
        let outcome = match (is_refused, changes_nothing(&planned), planned.restart.is_empty()) {
            (true, ..) => "would not be applied (--force applies it)",
            (false, false, _) => "would be applied",
            (false, true, false) => "would change nothing before a restart",
            (false, true, true) => "would change nothing",
        };
        print(&format!("{}: {outcome}\n", planned.file))?;
        Ok(if is_refused { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// Tells whether two paths name one file; without the files it compares the paths.
pub(super) fn is_same(path: &Path, other: &str) -> bool {
    let real = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path)).ok();
    real(path) == real(Path::new(other))
}

/// Tells whether everything stays as it is until a restart.
fn changes_nothing(planned: &ReloadReport) -> bool {
    planned.plan.is_empty() && planned.changes.is_empty()
}

/// Writes down what a configuration does, or would do.
fn lines(planned: &ReloadReport) -> String {
    let plan = planned.plan.iter().chain(&planned.changes).map(|line| format!("{line}\n"));
    let warnings = planned.warnings.iter().map(|warning| format!("{} {warning}\n", output::warn("warning:")));
    let restart = planned.restart.iter().map(|key| format!("{key}: needs a restart\n"));
    let refused = planned.refused.iter().map(|why| format!("{} {why}\n", output::bad("refused:")));
    plan.chain(restart).chain(warnings).chain(refused).collect()
}
