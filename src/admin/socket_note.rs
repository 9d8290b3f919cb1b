//! The note in `state_dir` of where the admin socket is.
//!
//! The file may name another `admin.socket` by now, which takes effect at the next start. The command line
//! then finds the running crimux by this note.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The name of the note in `state_dir`.
const NAME: &str = "admin-socket";

/// Writes the note if it says something else. A disk that takes no writes costs the note and nothing else.
pub(super) fn write(state_dir: &Path, socket: &Path) {
    if read(state_dir).as_deref() == Some(socket) {
        return;
    }
    if let Err(error) = fs::write(state_dir.join(NAME), socket.as_os_str().as_bytes()) {
        tracing::debug!(%error, "state_dir takes no note of the admin socket");
    }
}

/// Returns the admin socket of the crimux that started last with this `state_dir`; `None` without a note, or
/// where only another user may read it.
pub fn read(state_dir: &Path) -> Option<PathBuf> {
    let bytes = fs::read(state_dir.join(NAME)).ok()?;
    Some(PathBuf::from(OsStr::from_bytes(&bytes)))
}
