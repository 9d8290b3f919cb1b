//! What systemd is told, and what it hands over. Without systemd all of it does nothing.
//!
//! Protocols: `sd_notify(3)`, `sd_listen_fds(3)`, `sd_watchdog_enabled(3)`.

use std::path::Path;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::server::Listener;

/// Returns the socket that systemd listens on for us.
///
/// # Errors
/// If a descriptor was handed over that is no listening Unix socket.
pub(super) fn listener(path: &Path) -> anyhow::Result<Option<Listener>> {
    let mut handed = listenfd::ListenFd::from_env();
    if handed.len() == 0 {
        return Ok(None);
    }
    let listener = handed.take_unix_listener(0)?;
    Ok(listener.map(|listener| Listener::inherited(listener, path)).transpose()?)
}

/// Says that calls are served.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Says that the configuration is being read again.
pub(super) fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
}

/// Says that the end has begun.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Tells the watchdog, twice in each of its periods, that this loop still turns. Never completes.
pub(super) async fn watchdog() {
    let Some(period) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut tick = tokio::time::interval((period / 2).max(Duration::from_millis(100)));
    loop {
        tick.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not told");
    }
}
