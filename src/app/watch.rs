//! Watches the configuration file, whether it is written in place, renamed into place or a `ConfigMap`.
//!
//! The directory is watched, not the file, because a file that is renamed into place has another inode. If
//! the directory cannot be watched, SIGHUP still reloads.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// How long nothing must change before the file is read: editors write a file in several steps.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// How long a file that changes all the time is not read.
const LONGEST_DEBOUNCE: Duration = Duration::from_secs(2);

/// Returns a channel that yields after each change of the file at `path`, once no more changes follow, and
/// the error if it is not watched. Call it before the file is read, or a change in between is never seen.
pub(super) fn changes(path: &Path) -> (mpsc::Receiver<()>, Option<notify::Error>) {
    let (sender, receiver) = mpsc::channel(1);
    let (raw, mut events) = mpsc::channel::<()>(1);
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = path.file_name().map(ToOwned::to_owned);
    let watching = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // kubelet replaces a `ConfigMap` by renaming a link called `..data` over the old one.
        let ours = |path: &PathBuf| {
            path.file_name().is_some_and(|name| Some(name) == file.as_deref() || name == "..data")
        };
        if event.is_ok_and(|event| !event.kind.is_access() && event.paths.iter().any(ours)) {
            // A full channel already announces a change.
            raw.try_send(()).ok();
        }
    })
    .and_then(|mut watcher| watcher.watch(directory, RecursiveMode::NonRecursive).map(|()| watcher));
    let error = match watching {
        Ok(watcher) => {
            tokio::spawn(async move {
                let _watcher = watcher;
                while events.recv().await.is_some() {
                    let quiet = async {
                        while let Ok(Some(())) = tokio::time::timeout(DEBOUNCE, events.recv()).await {}
                    };
                    tokio::time::timeout(LONGEST_DEBOUNCE, quiet).await.ok();
                    if sender.send(()).await.is_err() {
                        return;
                    }
                }
            });
            None
        }
        Err(error) => Some(error),
    };
    (receiver, error)
}
