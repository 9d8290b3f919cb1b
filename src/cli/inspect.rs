//! The verbs for a closer look: `config view`, `log-level` and `debug dump`.

use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use serde_json::Value;

use crate::admin::api::{LogLevelView, StatusView};
use crate::cli::client::{AdminClient, segment};
use crate::cli::output::{self, Format};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigVerb {
    /// Print the current configuration of a running crimux, defaults included, as YAML.
    View {
        /// The format.
        #[arg(long, short, value_enum, default_value = "yaml")]
        output: DocumentFormat,
        #[command(flatten)]
        client: AdminClient,
    },
}

/// The format of an answer that is no table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum DocumentFormat {
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

#[derive(Debug, Subcommand)]
pub(super) enum DebugVerb {
    /// Print the state of a running crimux as JSON: status, routes, configuration, owners, late classes,
    /// placements.
    ///
    /// No secrets, no names of pods, no contents of messages: fit for a bug report.
    Dump {
        #[command(flatten)]
        client: AdminClient,
    },
}

/// `crimux log-level`.
#[derive(Debug, clap::Args)]
pub(super) struct LogLevel {
    /// The new filter, as the key `log.level`; without it the current one is printed.
    level: Option<String>,
    #[command(flatten)]
    client: AdminClient,
}

impl ConfigVerb {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let Self::View { output, client } = self;
        let config: Value = client.get("/v1/config").await?;
        if output == DocumentFormat::Yaml {
            let status: StatusView = client.get("/v1/status").await?;
            output::print(&format!("# read from {}\n", status.config_file))?;
        }
        let format = match output {
            DocumentFormat::Json => Format::Json,
            DocumentFormat::Yaml => Format::Yaml,
        };
        output::show(format, &config, |_| String::new())?;
        Ok(ExitCode::SUCCESS)
    }
}

impl DebugVerb {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let Self::Dump { client } = self;
        let dump: Value = client.get("/v1/debug").await?;
        output::show(Format::Json, &dump, |_| String::new())?;
        Ok(ExitCode::SUCCESS)
    }
}

impl LogLevel {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let current: LogLevelView = match &self.level {
            Some(level) => self.client.post(&format!("/v1/log-level?level={}", segment(level))).await?,
            None => self.client.get("/v1/log-level").await?,
        };
        output::print(&(current.level + "\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}
