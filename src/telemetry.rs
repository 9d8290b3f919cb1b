//! Logging: one line for each event, as text or JSON, on standard error. Spans are in [`spans`].
//!
//! The filter is `log.level`; the environment variable `CRIMUX_LOG` overrides it. No event carries the
//! contents of a message, credentials, env or exec data.

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

#[cfg(feature = "otlp")]
pub mod spans;
#[cfg(not(feature = "otlp"))]
#[path = "telemetry/no_spans.rs"]
pub mod spans;

/// The environment variable that overrides `log.level`.
pub const FILTER_VARIABLE: &str = "CRIMUX_LOG";

/// Starts logging for the whole process.
///
/// # Errors
/// If the filter is invalid, or logging was started before.
pub fn start(log: &Log) -> anyhow::Result<()> {
    let filter = std::env::var(FILTER_VARIABLE).unwrap_or_else(|_| log.level.clone());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(filter)?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    let started = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|error| anyhow::anyhow!(error))
}
