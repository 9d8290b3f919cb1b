//! The command line: what operators type.
//!
//! Verbs that read take `--output`. Exit codes: 0 fine, 1 failed, 2 usage, 64 bad configuration.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::app::App;
use crate::config::{Config, ConfigError};

/// The exit code for a configuration with problems (`EX_USAGE` of sysexits, as DESIGN of the CLI has it).
const BAD_CONFIG: u8 = 64;

/// One CRI socket for kubelet, many container runtimes behind it.
#[derive(Debug, Parser)]
#[command(name = "crimux", version, about)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve the configured sockets until told to end.
    Serve(ConfigFile),
    /// Read the configuration and report every problem in it.
    Check(ConfigFile),
}

#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// The configuration file.
    #[arg(long, short, default_value = "/etc/crimux/config.yaml")]
    config: PathBuf,
}

/// Does what the command line says.
pub fn run(cli: Cli) -> ExitCode {
    let result = match cli.verb {
        Verb::Serve(ConfigFile { config }) => serve(&config),
        Verb::Check(ConfigFile { config }) => {
            Config::load(&config).map(|_| println!("{}: ok", config.display())).map_err(Into::into)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.downcast_ref::<ConfigError>().is_some() => {
            eprintln!("{error}");
            ExitCode::from(BAD_CONFIG)
        }
        Err(error) => {
            eprintln!("crimux: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One thread serves all calls: a call then never waits for another thread to wake up (see ARCHITECTURE.md).
fn serve(config: &std::path::Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { App::start(config).await?.run().await })
}
