//! `crimux check`: checks the configuration and, with `--probe`, the backends that it names.
//!
//! A wrong file is reported with every problem, line and column, and exits with 64. Findings about backends
//! and RuntimeClasses are one graded line each; an error among them exits with 1. Nothing is changed.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use serde_json::json;

use crate::admin::api::StatusView;
use crate::cli::client::AdminClient;
use crate::cli::config_text::ConfigText;
use crate::cli::finding::{Finding, Grade};
use crate::cli::output::{self, Format};
use crate::cli::{BAD_CONFIG, probe, running, runtime_classes};
use crate::config::{self, Config, ConfigError, ConfigWarning, Problems};

#[derive(Debug, clap::Args)]
pub(super) struct Check {
    /// The configuration file; "-" is standard input, whose relative paths start at the current directory.
    #[arg(value_name = "FILE", conflicts_with = "config")]
    file: Option<PathBuf>,
    /// The configuration file [default: /etc/crimux/config.yaml].
    #[arg(long, short)]
    config: Option<PathBuf>,
    /// The admin socket of the crimux to compare the file with, in place of that of the file; if no file is
    /// named, that crimux's is checked.
    #[arg(long)]
    socket: Option<String>,
    /// Lines for people, or one document for scripts.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
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
        let named = self.file.as_ref().or(self.config.as_ref());
        let file = match named {
            Some(file) => file.clone(),
            None => self.own_file().await?,
        };
        let file = file.as_path();
        let (config, text) = match load(file) {
            Ok(loaded) => loaded,
            Err(ConfigError::Invalid { problems, .. }) if self.output.is_document() => {
                return show_problems(self.output, file, &problems);
            }
            Err(error) => return Err(error.into()),
        };
        let graded = |grade, found: Vec<ConfigWarning>| {
            found.into_iter().map(move |found| Finding::new(grade, found.key, found.message))
        };
        let warnings = graded(Grade::Warning, config.warnings());
        let mut findings: Vec<_> = warnings.chain(graded(Grade::Note, config.notes())).collect();
        let client = match self.socket.as_deref() {
            Some(socket) => AdminClient::new(Some(socket), None, running::TIMEOUT),
            None => AdminClient::of(&config, running::TIMEOUT),
        };
        if self.socket.is_some() {
            client.get::<StatusView>("/v1/status").await?;
        }
        findings.extend(running::compare(&client, &config, &text).await);
        findings = findings.into_iter().map(|finding| finding.located_in(&text.text)).collect();
        findings.extend(running::other_file(&client, file, named.is_some()).await);
        if self.probe {
            findings.extend(probe::all(&config).await);
        } else {
            let missing = missing_files(&config).into_iter();
            findings.extend(missing.map(|finding| finding.located_in(&text.text)));
        }
        if let Some(file) = &self.runtime_classes {
            findings.extend(runtime_classes::compare(&config, &read(file)?)?);
        }
        let count = |grade| findings.iter().filter(|finding| finding.grade == grade).count();
        let (errors, warnings) = (count(Grade::Error), count(Grade::Warning));
        let verdict = match (errors, warnings) {
            (0, 0) => "ok".to_owned(),
            (0, _) => format!("ok, {}", count_of(warnings, "warning")),
            _ => format!("{}, {}", count_of(errors, "error"), count_of(warnings, "warning")),
        };
        let document = json!({ "file": file.display().to_string(), "verdict": verdict, "problems": [],
                               "findings": findings });
        output::show(self.output, &document, |_| {
            findings.iter().map(Finding::line).collect::<String>()
                + &format!("{}: {verdict}\n", file.display())
        })?;
        Ok(if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Returns the file to check if none is named.
    async fn own_file(&self) -> anyhow::Result<PathBuf> {
        let default = PathBuf::from(config::DEFAULT_PATH);
        let client = AdminClient::new(self.socket.as_deref(), None, running::TIMEOUT);
        if self.socket.is_some() {
            let status: StatusView = client.get("/v1/status").await?;
            return Ok(if status.config_file.is_empty() { default } else { status.config_file.into() });
        }
        if !default.exists()
            && let Ok(status) = client.get::<StatusView>("/v1/status").await
            && !status.config_file.is_empty()
        {
            return Ok(status.config_file.into());
        }
        Ok(default)
    }
}

/// Loads a file, or standard input if it is "-".
fn load(file: &Path) -> Result<(Config, ConfigText), ConfigError> {
    let is_stdin = file == Path::new("-");
    let path = if is_stdin { PathBuf::from("(standard input)") } else { file.to_owned() };
    let text = if is_stdin { ConfigText::from_stdin(&path)? } else { ConfigText::read(file)? };
    let config = Config::parse(&text.text, &text.base);
    config.map(|config| (config, text)).map_err(|problems| ConfigError::Invalid { path, problems })
}

/// Prints the problems of a file as one document.
fn show_problems(format: Format, file: &Path, problems: &Problems) -> anyhow::Result<ExitCode> {
    let problems: Vec<_> = problems.0.iter().map(|problem| {
        json!({ "line": problem.line, "column": problem.column, "key": problem.key, "message": problem.message })
    }).collect();
    let verdict = count_of(problems.len(), "problem");
    let document = json!({ "file": file.display().to_string(), "verdict": verdict, "problems": problems, "findings": [] });
    output::show(format, &document, |_| String::new())?;
    Ok(ExitCode::from(BAD_CONFIG))
}

/// Names the TLS files that do not exist here; `--probe` reads them.
fn missing_files(config: &Config) -> Vec<Finding> {
    let backends = config.backends.iter().filter_map(|(name, backend)| Some((name, backend.tls.as_ref()?)));
    let files = backends.flat_map(|(name, tls)| {
        let files = [("ca", Some(&tls.ca)), ("cert", tls.cert.as_ref()), ("key", tls.key.as_ref())];
        files.into_iter().filter_map(move |(key, file)| Some((format!("backends.{name}.tls.{key}"), file?)))
    });
    let missing = files.filter(|(_, file)| !file.exists());
    missing
        .map(|(key, file)| {
            let text = format!(
                "{} does not exist on this machine; the backend cannot be connected without it",
                file.display()
            );
            Finding::new(Grade::Warning, key, text)
        })
        .collect()
}

fn count_of(number: usize, what: &str) -> String {
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
