//! Findings of `crimux check`: one graded line each.

use serde::Serialize;

use crate::cli::output::{bad, good, warn};

/// One result of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) grade: Grade,
    /// The subject: a backend, a handler or a key.
    pub(super) about: String,
    pub(super) text: String,
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
        Self { grade, about: about.into(), text: text.into() }
    }

    /// Formats the finding as one line.
    pub(super) fn line(&self) -> String {
        let grade = match self.grade {
            Grade::Ok => good("ok     "),
            Grade::Note => "note   ".to_owned(),
            Grade::Warning => warn("warning"),
            Grade::Error => bad("ERROR  "),
        };
        format!("{grade}  {}: {}\n", self.about, self.text)
    }
}
