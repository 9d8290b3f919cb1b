//! Notices that the configuration file changed, however an editor or a `ConfigMap` replaces it.
//!
//! The directory is watched, not the file, because a file that is renamed into place is another file. Where
//! watching is not possible SIGHUP still reloads.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// Editors write in several steps; the last one counts.
const SETTLE: Duration = Duration::from_millis(200);

/// Yields whenever the file at `path` has changed and settled.
pub(super) fn changes(path: &Path) -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel(1);
    let (raw, mut events) = mpsc::channel::<()>(1);
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_owned();
    let watching = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !event.kind.is_access() && is_about(&event, &name)) {
            // A full channel already holds the news.
            raw.try_send(()).ok();
        }
    })
    .and_then(|mut watcher| watcher.watch(directory, RecursiveMode::NonRecursive).map(|()| watcher));
    match watching {
        Ok(watcher) => {
            tokio::spawn(async move {
                let _watcher = watcher;
                while events.recv().await.is_some() {
                    tokio::time::sleep(SETTLE).await;
                    while events.try_recv().is_ok() {}
                    if sender.send(()).await.is_err() {
                        return;
                    }
                }
            });
        }
        Err(error) => tracing::warn!(%error, "the configuration file is not watched; SIGHUP reloads it"),
    }
    receiver
}

/// Tells whether an event is about the file, or about the links by which a `ConfigMap` replaces it (`..data`).
fn is_about(event: &notify::Event, name: &OsStr) -> bool {
    let mut names = event.paths.iter().filter_map(|path| path.file_name());
    event.need_rescan()
        || names.any(|changed| changed == name || changed.as_encoded_bytes().starts_with(b".."))
}
