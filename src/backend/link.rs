//! The state of the connection to a backend, which every call looks at.

use std::sync::Arc;
use std::time::SystemTime;

use grpc_http2::client::SendRequest;

use crate::method::Api;

/// The state of the connection.
#[derive(Debug, Clone)]
pub enum Link {
    /// Being connected, for the first time or again at once. Calls wait for it, at most `timeouts.connect`.
    Connecting,
    /// Connected.
    Up {
        /// Sends requests; cloned for each.
        sender: SendRequest,
        /// The API that the backend speaks.
        api: Api,
        /// When it was connected.
        since: SystemTime,
    },
    /// Not connected.
    Down {
        /// When the connection was lost, or the first attempt failed.
        since: SystemTime,
        /// Why.
        cause: Arc<str>,
    },
}

/// A connection to a backend, and the API that the backend speaks.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) sender: SendRequest,
    pub(super) api: Api,
}
