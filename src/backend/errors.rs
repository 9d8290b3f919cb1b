//! Errors about one backend, each built in one place, so that all name it alike.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tonic::Code;

use super::Backend;
use crate::error::Error;
use crate::method::Method;

impl Backend {
    /// Returns the error for a call while the backend is not connected.
    pub(super) fn down(&self, since: SystemTime, cause: &Arc<str>) -> Error {
        Error::Down { backend: Arc::clone(&self.name), since, cause: Arc::clone(cause) }
    }

    /// Returns the error for a call whose connection or stream ended before the reply did.
    pub fn lost(&self, cause: impl Into<String>) -> Error {
        Error::Lost { backend: Arc::clone(&self.name), cause: cause.into() }
    }

    /// Returns the error for a call that the backend ended without a gRPC status.
    pub(super) fn without_grpc_status(&self, code: Code, cause: String) -> Error {
        Error::Transport { backend: Arc::clone(&self.name), code, cause }
    }

    /// Returns the error for a reply of this backend that cannot be read.
    pub fn garbage(&self, cause: impl Into<String>) -> Error {
        Error::Garbage { backend: Arc::clone(&self.name), cause: cause.into() }
    }

    /// Returns the error for a late backend without a last-known reply. `waited` is its deadline.
    pub fn late(&self, waited: Duration) -> Error {
        Error::Late { backend: Arc::clone(&self.name), waited }
    }

    /// Returns the error for a call that exceeded the backend's deadline for this method.
    pub fn timed_out(&self, method: &Method, limit: Duration) -> Error {
        Error::NotInTime { backend: Arc::clone(&self.name), method: method.name, limit }
    }

    /// Returns the error for a call beyond `max_in_flight`.
    pub(super) fn busy(&self, limit: usize) -> Error {
        Error::Busy { backend: Arc::clone(&self.name), limit }
    }
}
