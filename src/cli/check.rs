//! `crimux check`: checks the configuration and, with `--probe`, the backends that it names.
//!
//! A wrong file is reported with every problem, line and column, and exits with 64. Findings about backends
//! and RuntimeClasses are one graded line each; an error among them exits with 1. Nothing is changed.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;

use crate::cli::finding::{Finding, Grade};
use crate::cli::output::print;
use crate::cli::{probe, runtime_classes};
use crate::config::{self, Config};

#[derive(Debug, clap::Args)]
pub(super) struct Check {
    /// The configuration file.
    #[arg(long, short, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// Connect to every backend and examine it: reachable, certificate dates, API version, cgroup driver,
    /// handlers, and the paths that kubelet and cAdvisor fall over.
    #[arg(long)]
    probe: bool,
    /// Compare the handlers with the RuntimeClasses in this file, or in standard input if it is "-":
    /// kubectl get runtimeclass -o yaml | crimux check --runtime-classes -
    #[arg(long, value_name = "FILE")]
    runtime_classes: Option<PathBuf>,
}

impl Check {
    /// Checks, and prints the findings.
    ///
    /// # Errors
    /// If the configuration is wrong, or the file of RuntimeClasses cannot be read.
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let config = Config::load(&self.config)?;
        let mut findings: Vec<_> = config
            .warnings()
            .into_iter()
            .map(|warning| Finding::new(Grade::Warning, warning.key, warning.message))
            .collect();
        if self.probe {
            findings.extend(probe::all(&config).await);
        }
        if let Some(file) = &self.runtime_classes {
            findings.extend(runtime_classes::compare(&config, &read(file)?)?);
        }
        print(&findings.iter().map(Finding::line).collect::<String>())?;
        let count = |grade| findings.iter().filter(|finding| finding.grade == grade).count();
        let (errors, warnings) = (count(Grade::Error), count(Grade::Warning));
        let verdict = match (errors, warnings) {
            (0, 0) => "ok".to_owned(),
            (0, _) => format!("ok, {}", counted(warnings, "warning")),
            _ => format!("{}, {}", counted(errors, "error"), counted(warnings, "warning")),
        };
        print(&format!("{}: {verdict}\n", self.config.display()))?;
        Ok(if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn read(file: &Path) -> anyhow::Result<String> {
    let text = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    text.with_context(|| format!("cannot read {}", file.display()))
}
