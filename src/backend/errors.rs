//! Errors about one backend, each built in one place, so that all name it alike.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use tonic::{Code, Status};

use super::{Backend, BufferedReply};
use crate::error::Error;
use crate::method::Method;

/// An error, or a sentence, that a constructor below takes.
type BoxedCause = Box<dyn std::error::Error + Send + Sync>;

impl Backend {
    /// Returns the error for a call while the backend is not connected.
    pub(super) fn down_error(&self, since: SystemTime, cause: &Arc<str>) -> Error {
        Error::Down { backend: Arc::clone(&self.name), since, cause: Arc::clone(cause) }
    }

    /// Returns the error for a backend that cannot be called yet; `cause` is the rest of a sentence that
    /// begins with its name.
    pub(super) fn not_ready_error(&self, cause: &'static str) -> Error {
        Error::NotReady { backend: Arc::clone(&self.name), cause }
    }

    /// Returns the error for a call whose connection or stream ended before the reply did.
    pub fn lost_error(&self, cause: impl Into<BoxedCause>) -> Error {
        Error::lost_backend(Arc::clone(&self.name), cause)
    }

    /// Returns the error for a call that the backend ended without a gRPC status.
    pub(super) fn no_status_error(&self, code: Code, cause: impl Into<BoxedCause>) -> Error {
        Error::NoStatus { backend: Arc::clone(&self.name), code, cause: cause.into().into() }
    }

    /// Returns the error for a reply of this backend that cannot be read.
    pub fn invalid_reply_error(&self, cause: impl Into<BoxedCause>) -> Error {
        Error::InvalidReply { backend: Arc::clone(&self.name), cause: cause.into().into() }
    }

    /// Returns the error for a call that exceeded `waited`, the backend's deadline, or was not sent because
    /// an earlier one did.
    pub fn late_error(&self, waited: Duration) -> Error {
        Error::Late { backend: Arc::clone(&self.name), waited }
    }

    /// Returns the error for a call that exceeded the backend's deadline for this method.
    pub fn timeout_error(&self, method: &Method, limit: Duration) -> Error {
        Error::Timeout { backend: Arc::clone(&self.name), method: method.name, limit }
    }

    /// Returns the error for a call beyond `max_in_flight`.
    pub(super) fn busy_error(&self, limit: usize) -> Error {
        Error::Busy { backend: Arc::clone(&self.name), limit }
    }

    /// Returns the error for a method that the backend does not have.
    pub fn unimplemented_error(&self, method: &Method) -> Error {
        Error::Unimplemented(format!("backend {} has no {}", self.name, method.name))
    }

    /// Returns the error for a backend's own status, read from its trailers, where its reply was to be
    /// merged or to be recorded.
    pub fn refused_error(&self, method: &Method, trailers: &HeaderMap) -> Error {
        let (code, message) = match Status::from_header_map(trailers) {
            Some(status) => (status.code(), status.message().to_owned()),
            None => (Code::Unknown, String::new()),
        };
        Error::Refused { backend: Arc::clone(&self.name), method: method.name, code, message }
    }

    /// Returns the error for a backend whose answer does not help; `cause` is the rest of a sentence that
    /// begins with its name.
    pub fn unusable_error(&self, cause: impl Into<BoxedCause>) -> Error {
        Error::Unusable { backend: Arc::clone(&self.name), cause: cause.into().into() }
    }

    /// Returns the error for a reply that is not OK where only an OK one helps.
    pub fn unusable_reply_error(&self, method: &Method, reply: &BufferedReply) -> Error {
        let status = Status::from_header_map(&reply.trailers);
        let message = status.map(|status| status.message().to_owned()).filter(|text| !text.is_empty());
        let message = message.map_or_else(String::new, |text| format!(": {text}"));
        self.unusable_error(format!("answered {} with {:?}{message}", method.name, reply.code))
    }

    /// Returns the error for a streaming URL that kubelet must not dial.
    pub fn stream_url_error(&self, cause: impl Into<BoxedCause>) -> Error {
        Error::Stream { backend: Arc::clone(&self.name), cause: cause.into().into() }
    }

    /// Returns the error for a reply that is composed of one that the backend has not sent yet.
    pub fn not_known_error(&self, what: &'static str) -> Error {
        Error::NotKnown { what, backend: Arc::clone(&self.name) }
    }

    /// Returns the error for a new sandbox before the backend's first full list.
    pub fn joining_error(&self) -> Error {
        Error::Joining { backend: Arc::clone(&self.name) }
    }
}
