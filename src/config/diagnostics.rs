//! The problems of a file and the sockets it names, collected while it is read.
//!
//! Readers of sections do not stop at a problem, so they share one collection. It checks only what no single
//! section can see: that two keys name the same socket.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::problem::{Diagnostic, Problems};

/// A position in the file, both counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl Position {
    /// The first character.
    pub(super) const START: Self = Self { line: 1, column: 1 };
}

/// Whether crimux listens on a path, dials it, or makes a directory of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SocketUse {
    Listen,
    Dial,
    Directory,
}

#[derive(Debug)]
struct NamedSocket {
    path: PathBuf,
    usage: SocketUse,
    position: Position,
    key: String,
}

/// Problems and sockets, in the order they were found.
#[derive(Debug, Default)]
pub(super) struct Diagnostics {
    problems: RefCell<Vec<Diagnostic>>,
    sockets: RefCell<Vec<NamedSocket>>,
    /// The line of the problem that lists the keys of a section, by the row of the section in the table.
    listed: RefCell<BTreeMap<String, usize>>,
}

/// Beyond this many, problems are only counted: the file is then something else than a configuration.
const MAX_PROBLEMS: usize = 1000;

impl Diagnostics {
    /// Adds a problem.
    pub(super) fn add(&self, position: Position, key: &str, message: impl Into<String>) {
        let Position { line, column } = position;
        self.problems.borrow_mut().push(Diagnostic {
            line,
            column,
            key: key.to_owned(),
            message: message.into(),
        });
    }

    /// Tells whether a further problem would only be counted.
    pub(super) fn is_full(&self) -> bool {
        self.problems.borrow().len() >= MAX_PROBLEMS
    }

    /// Returns the line whose problem lists the known keys of this section; `None` if it is this one.
    pub(super) fn list_keys(&self, row: &str, line: usize) -> Option<usize> {
        let mut listed = self.listed.borrow_mut();
        let first = listed.get(row).copied();
        if first.is_none() {
            listed.insert(row.to_owned(), line);
        }
        first
    }

    /// Returns all problems in the order they were found; `None` without one.
    pub(super) fn problems(self) -> Option<Problems> {
        let problems = self.problems.into_inner();
        (!problems.is_empty()).then_some(Problems(problems))
    }

    /// Adds a socket, to be compared with all others by [`Diagnostics::check_sockets`].
    pub(super) fn add_socket(&self, path: &Path, usage: SocketUse, position: Position, key: String) {
        self.sockets.borrow_mut().push(NamedSocket { path: plain(path), usage, position, key });
    }

    /// Reports sockets that two keys would bind, a directory in the place of one, and backends whose
    /// endpoint is crimux itself.
    pub(super) fn check_sockets(&self) {
        let sockets = self.sockets.take();
        let mut bound: BTreeMap<&Path, &str> = BTreeMap::new();
        for socket in sockets.iter().filter(|socket| socket.usage == SocketUse::Listen) {
            if let Some(other) = bound.get(socket.path.as_path()) {
                let message = format!("{other} has the same path (give each socket its own)");
                self.add(socket.position, &socket.key, message);
            } else {
                bound.insert(&socket.path, &socket.key);
            }
        }
        for directory in sockets.iter().filter(|socket| socket.usage == SocketUse::Directory) {
            if let Some((_, own)) = bound.iter().find(|(path, _)| directory.path.starts_with(path)) {
                let message = format!("this is where {own} listens (name a directory of its own)");
                self.add(directory.position, &directory.key, message);
            }
        }
        for socket in sockets.iter().filter(|socket| socket.usage == SocketUse::Dial) {
            if let Some(own) = bound.get(socket.path.as_path()) {
                let message = format!("this is crimux's own socket, {own} (name the runtime's socket)");
                self.add(socket.position, &socket.key, message);
            }
        }
    }

    /// Returns `value` if there is no problem, else all problems in the order of the file.
    pub(super) fn conclude<T>(self, value: Option<T>) -> Result<T, Problems> {
        let mut problems = self.problems.into_inner();
        if problems.is_empty() {
            return Ok(value.expect("a reader gives no value only after it has noted a problem"));
        }
        problems.sort_by_key(|problem| (problem.line, problem.column));
        let more = problems.len().saturating_sub(MAX_PROBLEMS);
        problems.truncate(MAX_PROBLEMS);
        if let (1.., Some(last)) = (more, problems.last()) {
            let message = format!("{more} more problems are not shown (is this the right file?)");
            problems.push(Diagnostic { key: String::new(), message, ..*last });
        }
        Err(Problems(problems))
    }
}

/// The path without `.`, doubled slashes and the old name of `/run`, for comparison only.
fn plain(path: &Path) -> PathBuf {
    let path: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
    path.strip_prefix("/var/run").map(|rest| Path::new("/run").join(rest)).unwrap_or(path)
}
