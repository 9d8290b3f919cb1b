//! A configuration as text, which a running crimux can be asked about.

use std::io;
use std::path::{Path, PathBuf};

use crate::admin::api::ReloadReport;
use crate::cli::client::{AdminClient, segment};
use crate::config::{self, Config, ConfigError};

/// The text of a configuration, and where relative paths in it start.
#[derive(Debug, Default)]
pub(super) struct ConfigText {
    pub(super) text: String,
    pub(super) base: PathBuf,
}

impl ConfigText {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, or is not UTF-8.
    pub(super) fn read(file: &Path) -> Result<Self, ConfigError> {
        let (text, base) = config::read_text(file)?;
        Ok(Self { text, base })
    }

    /// Reads a file that a running crimux is to be asked about.
    ///
    /// # Errors
    /// As [`ConfigText::read`], or if it has problems.
    pub(super) fn load(file: &Path) -> Result<Self, ConfigError> {
        let read = Self::read(file)?;
        let problems = |problems| ConfigError::Invalid { path: file.to_owned(), problems };
        Config::parse(&read.text, &read.base).map_err(problems)?;
        Ok(read)
    }

    /// Reads standard input, which error texts call `name`; relative paths start at the current directory.
    ///
    /// # Errors
    /// If it cannot be read, or is not UTF-8.
    pub(super) fn from_stdin(name: &Path) -> Result<Self, ConfigError> {
        let text = config::read_text_from(io::stdin(), name)?;
        let base = std::env::current_dir();
        let base = base.map_err(|source| ConfigError::Read { path: name.to_owned(), source })?;
        Ok(Self { text, base })
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
