//! The problems of a configuration, in the form `FILE:LINE:COLUMN` that editors parse.
//!
//! An operator fixes a file once, not once per mistake, so problems are collected and shown together, each
//! with line, column and key. Values are quoted shortened, and never when they may hold credentials.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// One mistake in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
    /// The offending key from the top, such as `backends.kata.timeouts.read`; empty if the file as a whole is
    /// meant.
    pub key: String,
    /// What is wrong and, in parentheses, what would be right.
    pub message: String,
}

/// All mistakes of one file, in the order of their lines. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Diagnostic>);

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read at all.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file was read and is wrong. Shown as one line `FILE:LINE:COLUMN: key: message` for each problem.
    #[error("{}", with_locations(path, problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problems: Problems,
    },
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.line, self.column)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(Diagnostic::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Problems {}

fn with_locations(path: &std::path::Path, problems: &Problems) -> String {
    let lines: Vec<_> = problems.0.iter().map(|problem| format!("{}:{problem}", path.display())).collect();
    lines.join("\n")
}
