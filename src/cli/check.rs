//! `crimux check`: checks the configuration and, with `--probe`, the backends that it names.
//!
//! A wrong file is reported with every problem, line and column, and with what can be said of the rest of it,
//! and exits with 64. Findings about backends and RuntimeClasses are one graded line each; an error among
//! them exits with 1. Nothing is changed.

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
use crate::config::{self, Config, ConfigError, ConfigWarning, Problems, Remainder};

/// The name of standard input, on the command line and in what is printed.
const STDIN: &str = "-";

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
        let (file, named) = (file.as_path(), named.is_some());
        let read =
            if file == Path::new(STDIN) { ConfigText::from_stdin(file) } else { ConfigText::read(file) };
        let text = match read {
            Ok(text) => text,
            Err(ConfigError::Invalid { problems, .. }) => {
                return self.report(file, named, &problems, &ConfigText::default()).await;
            }
            Err(error) if self.output.is_document() => return self.report_unreadable(file, &error),
            Err(error) => return Err(error.into()),
        };
        match Config::parse(&text.text, &text.base) {
            Ok(config) => self.judge(file, named, &config, &text).await,
            Err(problems) => self.report(file, named, &problems, &text).await,
        }
    }

    /// Prints what is found about a configuration without problems.
    async fn judge(
        &self,
        file: &Path,
        named: bool,
        config: &Config,
        text: &ConfigText,
    ) -> anyhow::Result<ExitCode> {
        let mut findings: Vec<_> = remarks(config.warnings(), config.notes()).collect();
        let client = self.client(config);
        if self.socket.is_some() {
            client.get::<StatusView>("/v1/status").await?;
        }
        findings.extend(running::compare(&client, config, text).await);
        if !self.probe {
            findings.extend(missing_files(config));
        }
        findings = findings.into_iter().map(|finding| finding.located_in(&text.text)).collect();
        findings.extend(running::other_file(&client, file, named).await);
        if self.probe {
            findings.extend(probe::all(config).await);
        }
        if let Some(file) = &self.runtime_classes {
            findings.extend(runtime_classes::compare(config, &read(file)?)?);
        }
        let (errors, warnings) = (count(&findings, Grade::Error), count(&findings, Grade::Warning));
        let verdict = match (errors, warnings) {
            (0, 0) => "ok".to_owned(),
            (0, _) => format!("ok, {}", count_of(warnings, "warning")),
            _ => format!("{}, {}", count_of(errors, "error"), count_of(warnings, "warning")),
        };
        let name = file.display().to_string();
        let document = json!({ "file": name, "verdict": verdict, "problems": [], "findings": findings });
        output::show(self.output, &document, |_| lines(&findings, &name, &verdict))?;
        Ok(if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Prints the problems of a file, and what can be said of the rest of it.
    async fn report(
        &self,
        file: &Path,
        named: bool,
        problems: &Problems,
        text: &ConfigText,
    ) -> anyhow::Result<ExitCode> {
        let mut findings = Vec::new();
        if let Some(rest) = Remainder::of(&text.text, &text.base, problems) {
            let missing = missing_files(rest.config()).into_iter();
            findings.extend(remarks(rest.warnings(), rest.notes()));
            findings.extend(missing.filter(|finding| rest.is_certain(&finding.about)));
            findings = findings.into_iter().map(|finding| finding.located_in(&text.text)).collect();
            findings.extend(running::other_file(&self.client(rest.config()), file, named).await);
        }
        let verdict = match count(&findings, Grade::Warning) {
            0 => count_of(problems.0.len(), "problem"),
            warnings => {
                format!("{}, {}", count_of(problems.0.len(), "problem"), count_of(warnings, "warning"))
            }
        };
        let name = file.display().to_string();
        if self.output.is_document() {
            let problems: Vec<_> = problems.0.iter().map(|problem| {
                json!({ "line": problem.line, "column": problem.column, "key": problem.key, "message": problem.message })
            }).collect();
            let document =
                json!({ "file": name, "verdict": verdict, "problems": problems, "findings": findings });
            output::show(self.output, &document, |_| String::new())?;
        } else {
            let all: Vec<_> = problems.0.iter().map(Finding::from).chain(findings).collect();
            anstream::eprint!("{}", lines(&all, &name, &verdict));
        }
        Ok(ExitCode::from(BAD_CONFIG))
    }

    /// Prints, for scripts, why a file cannot be read.
    fn report_unreadable(&self, file: &Path, error: &ConfigError) -> anyhow::Result<ExitCode> {
        let name = file.display().to_string();
        let message = error.to_string();
        let message = message.strip_prefix(&format!("{name}: ")).unwrap_or(&message);
        let problem = json!({ "line": 1, "column": 1, "key": "", "message": message });
        let document = json!({ "file": name, "verdict": "1 problem", "problems": [problem], "findings": [] });
        output::show(self.output, &document, |_| String::new())?;
        Ok(ExitCode::from(BAD_CONFIG))
    }

    /// Returns a client of the crimux to compare with: the one named, or else the one that has this file.
    fn client(&self, config: &Config) -> AdminClient {
        match self.socket.as_deref() {
            Some(socket) => AdminClient::new(Some(socket), None, running::TIMEOUT),
            None => AdminClient::of(config, running::TIMEOUT),
        }
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

/// Grades the warnings and notes about a configuration.
fn remarks(warnings: Vec<ConfigWarning>, notes: Vec<ConfigWarning>) -> impl Iterator<Item = Finding> {
    let graded = |grade, found: Vec<ConfigWarning>| {
        found.into_iter().map(move |found| {
            let grade = if found.is_mistake { Grade::Error } else { grade };
            Finding::new(grade, found.key, found.message)
        })
    };
    graded(Grade::Warning, warnings).chain(graded(Grade::Note, notes))
}

/// Writes down the findings about a file in the order of its lines, those without a place last, and the
/// verdict.
fn lines(findings: &[Finding], file: &str, verdict: &str) -> String {
    let mut findings: Vec<_> = findings.iter().collect();
    findings.sort_by_key(|finding| (finding.position.is_none(), finding.position));
    findings.iter().map(|finding| finding.line(file)).collect::<String>() + &format!("{file}: {verdict}\n")
}

fn count(findings: &[Finding], grade: Grade) -> usize {
    findings.iter().filter(|finding| finding.grade == grade).count()
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
    let text = if file == Path::new(STDIN) {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    text.with_context(|| format!("cannot read {}", file.display()))
}
