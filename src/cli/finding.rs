//! Findings of `crimux check`: one graded line each, in the form `FILE:LINE:COLUMN: GRADE: …` of compilers.

use serde::Serialize;

use crate::cli::output::{bad, good, warn};
use crate::config::{self, Diagnostic};

/// One result of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) grade: Grade,
    /// The subject: a backend, a handler or a key.
    pub(super) about: String,
    pub(super) text: String,
    /// Line and column in the file, both counted from 1.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(super) position: Option<FilePosition>,
}

/// A place in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct FilePosition {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Grade {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Note,
    /// Perhaps not intended.
    Warning,
    /// Will not work; `check` exits with 1.
    Error,
}

impl Finding {
    pub(super) fn new(grade: Grade, about: impl Into<String>, text: impl Into<String>) -> Self {
        Self { grade, about: about.into(), text: text.into(), position: None }
    }

    /// Returns the finding with the place in `file` of the key that it is about, if the key is there.
    pub(super) fn located_in(self, file: &str) -> Self {
        let position = config::position_of(file, &self.about);
        Self { position: position.map(|(line, column)| FilePosition { line, column }), ..self }
    }

    /// Formats the finding as one line; one without a place in `file` does not name it.
    pub(super) fn line(&self, file: &str) -> String {
        let place = self
            .position
            .map_or_else(String::new, |FilePosition { line, column }| format!("{file}:{line}:{column}: "));
        let about = if self.about.is_empty() { String::new() } else { format!("{}: ", self.about) };
        format!("{place}{}: {about}{}\n", self.grade.word(), self.text)
    }
}

impl Grade {
    fn word(self) -> String {
        match self {
            Self::Ok => good("ok"),
            Self::Note => "note".to_owned(),
            Self::Warning => warn("warning"),
            Self::Error => bad("error"),
        }
    }
}

impl From<&Diagnostic> for Finding {
    fn from(problem: &Diagnostic) -> Self {
        let position = Some(FilePosition { line: problem.line, column: problem.column });
        Self { position, ..Self::new(Grade::Error, problem.key.as_str(), problem.message.as_str()) }
    }
}
