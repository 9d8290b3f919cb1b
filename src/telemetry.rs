//! Logging: one line for each event, as text or JSON, on standard error. Spans are in [`spans`].
//!
//! The filter is `log.level`; the environment variable `CRIMUX_LOG` overrides it, and `crimux log-level`
//! overrides both until the next start. No event carries the contents of a message, credentials, env or exec
//! data.

use std::sync::{Mutex, MutexGuard, OnceLock};

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::config::{Config, ConfigError, Log, LogFormat};
use crate::mutex::lock;

#[cfg(feature = "otlp")]
pub mod spans;
#[cfg(not(feature = "otlp"))]
#[path = "telemetry/no_spans.rs"]
pub mod spans;

/// The environment variable that overrides `log.level`.
pub const FILTER_VARIABLE: &str = "CRIMUX_LOG";

/// Replaces the filter of the running subscriber.
type Replace = Box<dyn Fn(EnvFilter) -> anyhow::Result<()> + Send + Sync>;

static REPLACE: OnceLock<Replace> = OnceLock::new();
static LEVEL: Mutex<String> = Mutex::new(String::new());

/// Starts logging for the whole process.
///
/// # Errors
/// If the filter is invalid, or logging was started before.
pub fn start(log: &Log) -> anyhow::Result<()> {
    let level = std::env::var(FILTER_VARIABLE).unwrap_or_else(|_| log.level.clone());
    let filter = EnvFilter::try_new(&level)
        .with_context(|| format!("{level:?} is not a log filter (log.level, {FILTER_VARIABLE})"))?;
    start_with(log.format, filter, level)
}

/// Starts logging as JSON at the level `error`, for a process that ends before its configuration is known.
///
/// # Errors
/// If logging was started before.
pub fn start_for_errors() -> anyhow::Result<()> {
    start_with(LogFormat::Json, EnvFilter::new("error"), "error".to_owned())
}

/// Logs each problem of a configuration file as an event of its own, then what becomes of the file.
pub fn log_problems(error: &ConfigError, consequence: &str) {
    match error {
        ConfigError::Invalid { path, problems } => {
            let file = path.display();
            for problem in &problems.0 {
                let (line, column, key) = (problem.line, problem.column, &problem.key);
                tracing::error!(%file, line, column, key, problem = problem.message, "the configuration has a problem");
            }
            tracing::error!(%file, problems = problems.0.len(), "{consequence}");
        }
        ConfigError::Read { .. } => tracing::error!(%error, "{consequence}"),
    }
}

/// Logs each warning about a configuration as an event of its own.
pub fn log_warnings(config: &Config) {
    for warning in config.warnings() {
        tracing::warn!(
            key = warning.key,
            warning = warning.message,
            "the configuration has a doubtful value"
        );
    }
}

fn start_with(format: LogFormat, filter: EnvFilter, level: String) -> anyhow::Result<()> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    let (replace, started): (Replace, _) = match format {
        LogFormat::Text => {
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            (Box::new(move |filter| Ok(handle.reload(filter)?)), builder.try_init())
        }
        LogFormat::Json => {
            let builder = builder.fmt_fields(tracing_subscriber::fmt::format::JsonFields::new());
            let builder =
                builder.event_format(tracing_subscriber::fmt::format().json()).with_filter_reloading();
            let handle = builder.reload_handle();
            (Box::new(move |filter| Ok(handle.reload(filter)?)), builder.try_init())
        }
    };
    started.map_err(|error| anyhow::anyhow!(error))?;
    REPLACE.set(replace).map_err(|_| anyhow::anyhow!("logging was started before"))?;
    *current() = level;
    Ok(())
}

/// Tells whether [`start`] has run, so that events reach standard error.
pub fn is_started() -> bool {
    REPLACE.get().is_some()
}

/// Returns the current filter.
pub fn level() -> String {
    current().clone()
}

/// Replaces the filter until the next call, reload or start.
///
/// # Errors
/// If the filter is invalid, or logging was not started.
pub fn set_level(level: &str) -> anyhow::Result<()> {
    let replace = REPLACE.get().ok_or_else(|| anyhow::anyhow!("logging was not started"))?;
    replace(EnvFilter::try_new(level)?)?;
    level.clone_into(&mut current());
    Ok(())
}

/// Applies a changed `log.level`, unless `CRIMUX_LOG` overrides it.
///
/// # Errors
/// If the filter is invalid.
pub fn reload(log: &Log) -> anyhow::Result<()> {
    if std::env::var_os(FILTER_VARIABLE).is_some() { Ok(()) } else { set_level(&log.level) }
}

fn current() -> MutexGuard<'static, String> {
    lock(&LEVEL)
}
