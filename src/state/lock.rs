//! One crimux at a time on one `state_dir`.
//!
//! Two would delete each other's journals, and each would forget what the other has acknowledged. The
//! directory itself is locked, not a file in it: that works on a full disk and on one that takes no writes.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::file;

/// The lock on a `state_dir`; the kernel gives it back when the process ends, however it ends.
#[derive(Debug)]
pub struct StateLock {
    dir: Option<File>,
}

impl StateLock {
    /// Takes the lock that another process holds and passed with this descriptor of the directory: a lock
    /// belongs to the open file (flock(2)), so it lasts until both have closed it. `None` if that process had
    /// none.
    pub fn from_handed(dir: Option<OwnedFd>) -> Self {
        Self { dir: dir.map(File::from) }
    }

    /// Returns what another process needs to hold the lock too; `None` if this one has none.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.dir.as_ref().map(File::as_fd)
    }

    /// Locks `state_dir`, which is made if need be. A directory that cannot be opened at all is not locked:
    /// nothing is read from it or written to it then.
    ///
    /// # Errors
    /// If another process holds the lock; the text names it.
    pub fn take(state_dir: &Path) -> io::Result<Self> {
        if let Err(error) = file::make_dir(state_dir) {
            tracing::debug!(%error, "state_dir cannot be made or closed to others");
        }
        let Ok(dir) = File::open(state_dir) else { return Ok(Self { dir: None }) };
        match dir.try_lock() {
            Ok(()) => Ok(Self { dir: Some(dir) }),
            Err(TryLockError::WouldBlock) => {
                let holder =
                    holder(&dir).map_or_else(|| "another crimux".to_owned(), |pid| format!("pid {pid}"));
                let text = format!("{} is in use by {holder}", state_dir.display());
                Err(io::Error::new(io::ErrorKind::ResourceBusy, text))
            }
            Err(TryLockError::Error(error)) => {
                // Some network filesystems lock no directories.
                tracing::warn!(%error, dir = %state_dir.display(), "state_dir cannot be locked");
                Ok(Self { dir: None })
            }
        }
    }
}

/// Returns the process that holds a lock on this directory, as the kernel tells (`proc_locks(5)`).
fn holder(dir: &File) -> Option<u32> {
    let metadata = dir.metadata().ok()?;
    let (device, inode) = (metadata.dev(), metadata.ino());
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let wanted = format!("{major:02x}:{minor:02x}:{inode}");
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let held =
        locks.lines().find(|line| line.contains("FLOCK") && line.split(' ').any(|word| word == wanted))?;
    held.split_ascii_whitespace().nth(4)?.parse().ok().filter(|pid| is_running(*pid))
}

/// Tells whether a process runs; the kernel names the one that took a lock even if that has passed it on.
fn is_running(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_by_naming_the_holder_until_the_first_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateLock::take(dir.path()).unwrap();
        let error = StateLock::take(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        drop(first);
        StateLock::take(dir.path()).unwrap();
    }
}
