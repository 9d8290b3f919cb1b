//! Failed commands: what of them a line of the log says, and when one is due. `command_log.rs` writes it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use http::HeaderMap;
use tonic::{Code, Status};

use crate::backend::BufferedReply;
use crate::error::Error;
use crate::log_limit::LogLimit;
use crate::mutex::lock;

/// Characters of a backend's error text that a line has; a backend may send megabytes.
const MAX_TEXT: usize = 1000;

/// What was logged of failed commands, by backend and method.
#[derive(Debug, Default)]
pub(super) struct FailedCommands(Mutex<HashMap<(Arc<str>, &'static str), LogLimit>>);

/// The end of a command that did not succeed.
#[derive(Debug)]
pub(super) struct Failure {
    /// Its gRPC code.
    pub(super) code: Code,
    /// The backend's words, cut to [`MAX_TEXT`].
    pub(super) text: String,
}

impl Failure {
    /// Returns the failure in what a backend answered; `None` for OK, and for a backend that is down.
    pub(super) fn in_reply(reply: &Result<BufferedReply, Error>) -> Option<Self> {
        match reply {
            Ok(reply) if reply.code == Code::Ok => None,
            Ok(BufferedReply { headers, trailers, .. }) => Self::in_status(headers, trailers),
            Err(error) => Self::in_error(error),
        }
    }

    pub(super) fn in_error(error: &Error) -> Option<Self> {
        let text = || excerpt(&error.to_string());
        (!matches!(error, Error::Down { .. })).then(|| Self { code: error.code(), text: text() })
    }

    /// Reads the status in trailers, or in the headers of a reply without a message.
    pub(super) fn in_status(headers: &HeaderMap, trailers: &HeaderMap) -> Option<Self> {
        let status = Status::from_header_map(headers).or_else(|| Status::from_header_map(trailers))?;
        let failure = || Self { code: status.code(), text: excerpt(status.message()) };
        (status.code() != Code::Ok).then(failure)
    }
}

impl FailedCommands {
    /// Counts a failure. Returns how many there were since the last line, where a line is due.
    pub(super) fn count(&self, backend: &Arc<str>, method: &'static str) -> Option<u64> {
        lock(&self.0).entry((Arc::clone(backend), method)).or_default().count(1)
    }
}

/// Returns the beginning of a text, as much as a line of the log has.
pub(super) fn excerpt(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
