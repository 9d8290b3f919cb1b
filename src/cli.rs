//! The command line.
//!
//! Verbs that read a running crimux ask its admin socket and take `--output`; `check` needs no running
//! crimux. Exit codes: 0 fine, 1 failed, 2 usage (clap's), 64 bad configuration. All decisions are the
//! server's.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::app::App;
use crate::config::{self, ConfigError};
use crate::telemetry;
use client::ReadArgs;

mod backend;
mod check;
mod client;
mod config_text;
mod finding;
mod generate;
mod inspect;
mod names;
mod output;
mod probe;
mod reload;
mod running;
mod runtime_classes;
mod show;
mod status_table;
mod upgrade;

/// The exit code for a wrong configuration (`EX_USAGE` of sysexits).
const BAD_CONFIG: u8 = 64;

/// One CRI socket for kubelet, many container runtimes behind it.
#[derive(Debug, Parser)]
#[command(name = "crimux", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 fine, 1 failed, 2 wrong usage, 64 bad configuration.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the configured sockets until told to end.
    Serve {
        #[command(flatten)]
        file: ConfigFile,
        /// Take over from the process at the other end of the standard input, which `crimux upgrade` told to
        /// start this one.
        #[arg(long, hide = true)]
        take_over: bool,
    },
    /// Read the configuration and report every problem in it; with --probe, examine the backends too.
    ///
    /// Nothing is changed, and no crimux needs to run. The exit code is 64 if the configuration has problems,
    /// and 1 if --probe or --runtime-classes found an error.
    Check(check::Check),
    /// Show every backend: its state, since when, what is on it, and what went wrong last.
    Status {
        /// Show it again every two seconds, until interrupted.
        #[arg(long, short)]
        watch: bool,
        /// Print only the verdict, in one line, and exit with 1 unless every backend is ready or drained.
        #[arg(long, conflicts_with = "watch")]
        check: bool,
        #[command(flatten)]
        reading: ReadArgs,
    },
    /// List the pods of all backends.
    ///
    /// HANDLER is the RuntimeClass handler that leads to where the pod is. The pods of a backend that cannot
    /// be asked are those last known, and marked so.
    Ps {
        #[command(flatten)]
        filter: show::PodFilter,
        #[command(flatten)]
        reading: ReadArgs,
    },
    /// Show where new sandboxes of a handler go; without one, of every handler. With --next, aim one pod.
    Route {
        /// The RuntimeClass handler; "" is for pods without a RuntimeClass.
        handler: Option<String>,
        /// Send the next sandbox of the pod NAMESPACE/NAME to BACKEND, whatever the weights; "none" drops
        /// that.
        ///
        /// The pod's handler must lead to that backend, with a weight of 0 if need be; a pod without a
        /// RuntimeClass can go to any. It holds for one pod: for its first sandbox within an hour, and for
        /// that pod's later sandboxes. A start of crimux ends it.
        #[arg(long, num_args = 2, value_names = ["POD", "BACKEND"], conflicts_with = "handler")]
        next: Option<Vec<String>>,
        #[command(flatten)]
        reading: ReadArgs,
    },
    /// List the images of all backends, and which of them has each.
    Images {
        /// Show instead which stores have the image REFERENCE names, and where each call for it would go now.
        #[arg(long, value_name = "REFERENCE")]
        explain: Option<String>,
        #[command(flatten)]
        reading: ReadArgs,
    },
    /// Read the configuration again, or say what it would do to running pods.
    ///
    /// The running crimux reads the file that it was started with. It exits with 0 only once that is applied.
    /// With --dry-run nothing is changed; with --config it is about that file in place of the running
    /// crimux's.
    Reload(reload::ReloadArgs),
    /// Hand over to a newly started crimux, of the version that is installed now; no call ends.
    ///
    /// The running crimux starts its program again, hands over its listening sockets and its state, and
    /// finishes its calls and relayed streams, at most for `handover_timeout`. If the new process does not
    /// serve, it is ended and the running one goes on. The new process reads the whole configuration, so this
    /// applies what a reload cannot; only another `state_dir`, and changes of the systemd
    /// unit, need a restart.
    Upgrade(upgrade::UpgradeArgs),
    /// Drain a backend, undo that, or declare one lost.
    #[command(subcommand)]
    Backend(backend::BackendChange),
    /// Show the configuration of a running crimux.
    #[command(subcommand)]
    Config(inspect::ConfigVerb),
    /// Show or set the log filter of a running crimux, until its next start.
    LogLevel(inspect::LogLevel),
    /// Inspect a running crimux.
    #[command(subcommand)]
    Debug(inspect::DebugVerb),
    /// Write the completions of a shell to standard output.
    ///
    /// For bash, in ~/.bashrc: source <(crimux completions bash)
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the names that a completion offers, one on each line; nothing if they cannot be had.
    #[command(hide = true)]
    Names {
        /// Of what.
        kind: names::NameKind,
        #[command(flatten)]
        client: client::AdminClient,
    },
    /// Write man pages, completions or the reference of the command line into a directory, for packages.
    #[command(hide = true)]
    Generate {
        /// What to write.
        what: generate::What,
        /// Where to; it is made if it does not exist.
        directory: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// The configuration file.
    #[arg(long, short, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
}

/// Puts `--config FILE` behind the verb, where it belongs, if it stands before it.
pub fn verb_first(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<_> = arguments.into_iter().collect();
    let options = match arguments.get(1).and_then(|first| first.to_str()) {
        Some("--config" | "-c") => 2,
        Some(first) if first.starts_with("--config=") => 1,
        _ => return arguments,
    };
    if arguments.len() > options + 1 {
        arguments[1..].rotate_left(options);
    }
    arguments
}

/// Runs the command and returns the exit code.
pub fn run(cli: Cli) -> ExitCode {
    match dispatch(cli.command) {
        Ok(code) => code,
        Err(error) if is_bad_config(&error) => {
            report(&error);
            ExitCode::from(BAD_CONFIG)
        }
        // The reader of our output has closed the pipe, as `head` does.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

/// Reports a fatal error: as an event once logging has started, in the format of the log, else as text.
fn report(error: &anyhow::Error) {
    if telemetry::is_started() {
        let text = format!("{error:#}");
        if let Some(problems @ ConfigError::Invalid { .. }) = error.downcast_ref::<ConfigError>() {
            telemetry::log_problems(problems, "crimux ends: its configuration has problems");
        } else {
            let error = text + if is_forbidden(error) { "; run as root (try sudo)" } else { "" };
            tracing::error!(error, "crimux ends");
        }
    } else if is_bad_config(error) {
        eprintln!("{error}");
    } else {
        eprintln!("crimux: {error:#}");
    }
}

/// Tells whether the system forbids what only root may.
fn is_forbidden(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    causes.any(|cause| cause.kind() == std::io::ErrorKind::PermissionDenied)
        && !nix::unistd::Uid::effective().is_root()
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    let code = match command {
        // One thread serves all calls: a call then never waits for another thread to wake up (see
        // ARCHITECTURE.md).
        Command::Serve { file: ConfigFile { config }, take_over } => {
            let served = block_on(async { App::start(&config, take_over).await?.run().await });
            if served.is_err() && !telemetry::is_started() && config::is_log_json(&config) {
                telemetry::start_for_errors()?;
            }
            served?;
            ExitCode::SUCCESS
        }
        Command::Check(check) => block_on(check.run())?,
        Command::Status { watch, check, reading } => block_on(show::status(&reading, watch, check))?,
        Command::Ps { filter, reading } => block_on(show::pods(&reading, &filter))?,
        Command::Route { handler, next: None, reading } => {
            block_on(show::routes(&reading, handler.as_deref()))?
        }
        Command::Route { next: Some(next), reading, .. } => block_on(backend::aim(&reading.client, &next))?,
        Command::Images { explain: None, reading } => block_on(show::images(&reading))?,
        Command::Images { explain: Some(reference), reading } => {
            block_on(show::explain_image(&reading, &reference))?
        }
        Command::Reload(reload) => block_on(reload.run())?,
        Command::Upgrade(upgrade) => block_on(upgrade.run())?,
        Command::Backend(change) => block_on(change.run())?,
        Command::Config(verb) => block_on(verb.run())?,
        Command::LogLevel(verb) => block_on(verb.run())?,
        Command::Debug(verb) => block_on(verb.run())?,
        Command::Names { kind, client } => block_on(names::print(kind, client))?,
        Command::Completions { shell } => generate::completions(shell, &Cli::command())?,
        Command::Generate { what, directory } => generate::all(what, &directory, Cli::command())?,
    };
    Ok(code)
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    // A look-up of a name or a write that hangs must not keep the process from its end.
    runtime.shutdown_background();
    result
}

fn is_bad_config(error: &anyhow::Error) -> bool {
    error.is::<ConfigError>() || error.is::<client::BadConfig>()
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
