//! Marks on the disk whether the saved state is complete, so that no start takes a part for the whole.
//!
//! | what happened | what says so | until |
//! |---|---|---|
//! | a record could not be written | the snapshot is called `snapshot.partial` | a snapshot is written |
//! | nor could that be renamed (read-only) | a file outside of `state_dir` | a snapshot is written |
//! | records wait for a disk that takes no writes | another file outside | they are written |
//!
//! A rename works where there is no room for a byte. The file outside is beside the socket, on `/run` as a
//! rule.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use super::file;

use crate::mutex::lock;

/// The marks of one `state_dir`. The thread of the calls may use [`Marks::set_waiting`] only.
#[derive(Debug)]
pub(super) struct Marks {
    dir: PathBuf,
    outside: Option<PathBuf>,
    /// Whether the state is marked as partial, inside or outside.
    partial: Mutex<bool>,
    /// Whether it is marked that records wait.
    waiting: Mutex<bool>,
}

impl Marks {
    /// Finds the marks that an earlier process left. Without `outside` there are no marks outside of `dir`.
    pub(super) fn new(dir: &Path, outside: Option<PathBuf>) -> Self {
        let marks =
            Self { dir: dir.to_owned(), outside, partial: Mutex::default(), waiting: Mutex::new(false) };
        marks.look_again();
        marks
    }

    /// Finds the marks that another process left, which has ended.
    pub(super) fn look_again(&self) {
        let left = [self.outside.clone(), self.waiting_path(), Some(file::partial_path(&self.dir))];
        *self.partial() |= left.into_iter().flatten().any(|mark| mark.exists());
    }

    /// Tells whether an earlier process left a mark outside of `state_dir`.
    pub(super) fn has_outside_mark(outside: Option<&Path>) -> bool {
        outside.is_some_and(|outside| outside.exists() || waiting_path(outside).exists())
    }

    /// Marks the state as partial.
    pub(super) fn set_partial(&self) {
        let mut partial = self.partial();
        match fs::rename(file::path(&self.dir), file::partial_path(&self.dir)) {
            Ok(()) => {}
            // There is no snapshot that could count as whole.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let marked = self.outside.as_ref().map(|mark| fs::write(mark, []));
                if !matches!(marked, Some(Ok(()))) {
                    tracing::error!(%error, "a start now would take the saved state for whole, which it is not");
                }
            }
        }
        *partial = true;
    }

    /// Marks the snapshot that has just been written as whole, if `is_whole` says so, else as partial.
    pub(super) fn set_whole(&self, is_whole: impl FnOnce() -> bool) {
        let mut partial = self.partial();
        if !is_whole() {
            drop(partial);
            return self.set_partial();
        }
        if !std::mem::replace(&mut *partial, false) {
            return;
        }
        let waiting = *self.waiting();
        let of_an_earlier_process = self.waiting_path().filter(|_| !waiting);
        let stale = [Some(file::partial_path(&self.dir)), self.outside.clone(), of_an_earlier_process];
        for mark in stale.into_iter().flatten() {
            // It need not be there.
            let _ = fs::remove_file(mark);
        }
    }

    /// Marks that records wait, unless `is_over` says that they are written.
    pub(super) fn set_waiting(&self, is_over: impl FnOnce() -> bool) {
        let mut waiting = self.waiting();
        if *waiting || is_over() {
            return;
        }
        if let Some(mark) = self.waiting_path()
            && let Err(error) = fs::write(mark, [])
        {
            tracing::error!(%error, "a start now would take the saved state for whole, which it is not");
        }
        *waiting = true;
    }

    /// Takes the mark of [`Marks::set_waiting`] away, if `is_over` says that all records are written.
    pub(super) fn clear_waiting(&self, is_over: impl FnOnce() -> bool) {
        let mut waiting = self.waiting();
        if *waiting && is_over() {
            *waiting = false;
            self.waiting_path().map(fs::remove_file);
        }
    }

    fn waiting_path(&self) -> Option<PathBuf> {
        self.outside.as_deref().map(waiting_path)
    }

    fn partial(&self) -> MutexGuard<'_, bool> {
        lock(&self.partial)
    }

    fn waiting(&self) -> MutexGuard<'_, bool> {
        lock(&self.waiting)
    }
}

fn waiting_path(outside: &Path) -> PathBuf {
    let mut name = outside.as_os_str().to_owned();
    name.push(".waiting");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_partial_from_a_lost_record_on_until_a_snapshot_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, partial) = (file::path(dir.path()), file::partial_path(dir.path()));
        fs::write(&whole, "x").unwrap();
        let marks = Marks::new(dir.path(), None);
        marks.set_partial();
        assert_eq!((whole.exists(), partial.exists()), (false, true));
        fs::write(&whole, "y").unwrap();
        marks.set_whole(|| false);
        assert_eq!((whole.exists(), partial.exists()), (false, true));
        fs::write(&whole, "z").unwrap();
        Marks::new(dir.path(), None).set_whole(|| true);
        assert_eq!((whole.exists(), partial.exists()), (true, false));
    }

    #[test]
    fn what_waits_is_marked_outside_until_it_is_written_by_this_process_or_a_later_one() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("mark");
        let marks = || Marks::new(dir.path(), Some(outside.clone()));
        let first = marks();
        first.set_waiting(|| true);
        assert!(!Marks::has_outside_mark(Some(&outside)), "it was over before");
        first.set_waiting(|| false);
        first.clear_waiting(|| false);
        first.set_whole(|| true);
        assert!(Marks::has_outside_mark(Some(&outside)));
        first.clear_waiting(|| true);
        assert!(!Marks::has_outside_mark(Some(&outside)));
        first.set_waiting(|| false);
        let second = marks();
        second.clear_waiting(|| true);
        assert!(Marks::has_outside_mark(Some(&outside)), "not this process's");
        second.set_whole(|| true);
        assert!(!Marks::has_outside_mark(Some(&outside)));
    }
}
