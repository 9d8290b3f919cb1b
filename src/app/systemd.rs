//! Notifications to systemd, its watchdog, and socket activation. Without systemd every function does
//! nothing.
//!
//! Protocols: `sd_notify(3)`, `sd_listen_fds(3)`, `sd_watchdog_enabled(3)`.

use std::path::Path;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::server::Listener;

/// Returns the listening socket that systemd passed (`LISTEN_FDS`), if it passed one.
///
/// # Errors
/// If the passed descriptor is not a listening Unix socket.
pub(super) fn listener(path: &Path) -> anyhow::Result<Option<Listener>> {
    let mut passed = listenfd::ListenFd::from_env();
    if passed.len() == 0 {
        return Ok(None);
    }
    let listener = passed.take_unix_listener(0)?;
    Ok(listener.map(|listener| Listener::from_inherited(listener, path)).transpose()?)
}

/// Sends `READY=1`: calls are served.
pub(super) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Sends `RELOADING=1`.
pub(super) fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        notify(&[NotifyState::Reloading, now]);
    }
}

/// Sends `MAINPID=`: from now on systemd watches that process, which has taken over.
pub(super) fn main_pid(pid: u32) {
    notify(&[NotifyState::MainPid(pid)]);
}

/// Sends `STOPPING=1`.
pub(super) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Sends `WATCHDOG=1` twice in each watchdog period. Never completes; the caller must poll it in its main
/// loop.
pub(super) async fn watchdog() {
    let Some(period) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut tick = tokio::time::interval((period / 2).max(Duration::from_millis(100)));
    loop {
        tick.tick().await;
        notify(&[NotifyState::Watchdog]);
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not notified");
    }
}
