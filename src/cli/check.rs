//! `crimux check`: is the configuration right, and, with `--probe`, is what it names there and fit.
//!
//! A wrong file is reported whole, with lines and columns, and ends with 64. Findings about backends and
//! RuntimeClasses are one line each, graded; an error among them ends with 1. Nothing is changed.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;

use crate::cli::output::{bad, good, print, warn};
use crate::cli::{DEFAULT_CONFIG, probe, runtime_classes};
use crate::config::Config;

#[derive(Debug, clap::Args)]
pub(super) struct Check {
    /// The configuration file.
    #[arg(long, short, default_value = DEFAULT_CONFIG)]
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

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) grade: Grade,
    /// What it is about: a backend, a handler, a key.
    pub(super) about: String,
    pub(super) text: String,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grade {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Note,
    /// Perhaps not meant.
    Warning,
    /// Will not work.
    Error,
}

impl Finding {
    pub(super) fn new(grade: Grade, about: impl Into<String>, text: impl Into<String>) -> Self {
        Self { grade, about: about.into(), text: text.into() }
    }
}

impl Check {
    /// Does it.
    ///
    /// # Errors
    /// A bad configuration, or a file of RuntimeClasses that cannot be read.
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
        print(&findings.iter().map(line).collect::<String>())?;
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

fn line(finding: &Finding) -> String {
    let grade = match finding.grade {
        Grade::Ok => good("ok     "),
        Grade::Note => "note   ".to_owned(),
        Grade::Warning => warn("warning"),
        Grade::Error => bad("ERROR  "),
    };
    format!("{grade}  {}: {}\n", finding.about, finding.text)
}
