//! A configuration as text, which a running crimux can be asked about.

use std::io;
use std::path::{Path, PathBuf};

use crate::admin::api::ReloadReport;
use crate::cli::client::{AdminClient, segment};

/// The text of a configuration, and where relative paths in it start.
pub(super) struct ConfigText {
    pub(super) text: String,
    pub(super) base: PathBuf,
}

impl ConfigText {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn read(file: &Path) -> io::Result<Self> {
        let base = std::path::absolute(file)?.parent().map(PathBuf::from).unwrap_or_default();
        Ok(Self { text: std::fs::read_to_string(file)?, base })
    }

    /// Reads standard input; relative paths start at the current directory.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn from_stdin() -> io::Result<Self> {
        Ok(Self { text: io::read_to_string(io::stdin())?, base: std::env::current_dir()? })
    }

    /// Asks a running crimux what it would do.
    ///
    /// # Errors
    /// If crimux cannot be reached.
    pub(super) async fn plan(&self, client: &AdminClient) -> anyhow::Result<ReloadReport> {
        let base = self.base.to_string_lossy().into_owned();
        client.post_text(&format!("/v1/plan?base={}", segment(&base)), self.text.clone()).await
    }
}
