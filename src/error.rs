//! The errors of crimux, and their gRPC codes.
//!
//! A backend's own status passes unchanged and is no `Error`. The codes are chosen by what kubelet does with
//! them: a backend that cannot be called is `Unavailable`, never `NotFound` (kubelet would take the pod for
//! gone), never `DeadlineExceeded` (a failed exec probe) and never `Unimplemented` (kubelet disables the
//! feature). Texts name backends, handlers, IDs and causes; they never carry a message's contents.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use tonic::{Code, Status};

use crate::wire::WireError;

/// What caused an error: another error, or a sentence. Cloned with it.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// Why crimux cannot send a backend's reply, grouped by what is at fault.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    // The request is at fault.
    /// `RunPodSandbox`, `RestorePod` or an image call named a handler that is not configured (KEP-585:
    /// refuse).
    #[error("no runtime handler {handler:?} is configured; configured handlers: {known}")]
    UnknownHandler {
        /// As in the request.
        handler: String,
        /// The handlers that exist, comma-separated.
        known: String,
    },
    /// A required ID is empty.
    #[error("{0} ID is empty")]
    EmptyId(&'static str),
    /// No backend has the ID.
    #[error("{kind} {id:?} not found at any backend")]
    NotFound {
        /// `sandbox` or `container`.
        kind: &'static str,
        /// As in the request.
        id: String,
    },
    /// An ID prefix that several IDs share.
    #[error("{kind} ID prefix {prefix:?} is ambiguous")]
    Ambiguous {
        /// `sandbox` or `container`.
        kind: &'static str,
        /// As in the request.
        prefix: String,
    },
    /// The request is not a valid protobuf message.
    #[error("malformed request: {0}")]
    Malformed(#[from] WireError),
    /// A request or reply is not a valid gRPC message.
    #[error("malformed gRPC message: {0}")]
    Framing(&'static str),
    /// The request is larger than 16 MiB, the limit of CRI runtimes.
    #[error("request of {0} bytes is larger than 16 MiB")]
    TooLarge(usize),
    /// The request is compressed; CRI clients do not compress.
    #[error("the request is compressed; crimux understands grpc-encoding identity alone")]
    Compressed,
    // One backend cannot be called, or its reply cannot be sent.
    /// No target of the handler takes new sandboxes.
    #[error(
        "backend {backend} is draining and takes no new sandboxes of {}; `crimux backend undrain {backend}` ends that",
        handler_label(handler)
    )]
    Draining {
        /// The drained backend.
        backend: Arc<str>,
        /// As in the request.
        handler: String,
    },
    /// A new sandbox for a backend that was added and has not been listed yet.
    #[error("backend {backend} is joining: it takes sandboxes after its first full list")]
    Joining {
        /// The new backend.
        backend: Arc<str>,
    },
    /// The backend is not connected.
    #[error("backend {backend} is down since {}: {cause}", when(*.since))]
    Down {
        /// The owner.
        backend: Arc<str>,
        /// When it was lost.
        since: SystemTime,
        /// How it was lost.
        cause: Arc<str>,
    },
    /// The connection or the stream ended before the reply did.
    #[error("backend {backend} was lost during the call: {cause}")]
    Lost {
        /// The backend.
        backend: Arc<str>,
        /// The transport's error.
        #[source]
        cause: Cause,
    },
    /// The backend was removed while its ID was being looked up.
    #[error("backend #{id} was lost during the call: it was removed and owns nothing any more")]
    Gone {
        /// The number of its instance.
        id: u64,
    },
    /// Calls cannot be sent to the backend yet.
    #[error("backend {backend} {cause}")]
    NotReady {
        /// The backend.
        backend: Arc<str>,
        /// What it has not done yet, as the rest of a sentence.
        cause: &'static str,
    },
    /// The backend gave no answer that can be used.
    #[error("backend {backend} {cause}")]
    Unusable {
        /// The backend.
        backend: Arc<str>,
        /// What it did instead, as the rest of a sentence.
        #[source]
        cause: Cause,
    },
    /// The backend ended the call without a gRPC status: by a reset, by an HTTP status, or because its limits
    /// do not admit the request. The code is from gRPC's tables for these.
    #[error("backend {backend} answered without a gRPC status: {cause}")]
    NoStatus {
        /// The backend.
        backend: Arc<str>,
        /// The code that gRPC assigns.
        code: Code,
        /// The HTTP status or the HTTP/2 error.
        #[source]
        cause: Cause,
    },
    /// The caller's deadline is about to pass without an answer. It is answered before, because kubelet
    /// counts `DeadlineExceeded` as a failed exec probe.
    #[error("backend {backend} did not answer while the caller waited ({waited:?})")]
    CallerDeadline {
        /// The backend.
        backend: Arc<str>,
        /// How long the caller has waited.
        waited: std::time::Duration,
    },
    /// The deadline of a pull is about to pass; its callers expect `DeadlineExceeded`.
    #[error("backend {backend} did not answer before the caller's deadline ({waited:?})")]
    PullDeadline {
        /// The backend.
        backend: Arc<str>,
        /// How long the caller has waited.
        waited: std::time::Duration,
    },
    /// The backend did not answer within its deadline for this method.
    #[error("backend {backend} did not answer {method} within {limit:?}")]
    Timeout {
        /// The backend.
        backend: Arc<str>,
        /// The RPC.
        method: &'static str,
        /// The deadline, as configured under `timeouts`.
        limit: std::time::Duration,
    },
    /// The backend, or this object of it, is late: a call exceeded the deadline, or was not sent because an
    /// earlier one did.
    #[error("backend {backend} is late: it did not answer within {waited:?}")]
    Late {
        /// The backend.
        backend: Arc<str>,
        /// Its deadline for this method.
        waited: std::time::Duration,
    },
    /// `max_in_flight` is reached.
    #[error("backend {backend} has {limit} calls in flight (max_in_flight)")]
    Busy {
        /// The backend.
        backend: Arc<str>,
        /// The bound.
        limit: usize,
    },
    /// The backend's reply is not a valid gRPC reply.
    #[error("backend {backend} sent an unreadable reply: {cause}")]
    InvalidReply {
        /// The backend.
        backend: Arc<str>,
        /// What is wrong with it.
        #[source]
        cause: Cause,
    },
    /// The backend answered with an error: to a list that no other backend sent either, or to a new sandbox.
    #[error("backend {backend} answered {method} with {code:?}: {message}")]
    Refused {
        /// The backend.
        backend: Arc<str>,
        /// The RPC.
        method: &'static str,
        /// The backend's code.
        code: Code,
        /// The backend's text.
        message: String,
    },
    /// The streaming URL of an exec, attach or port-forward reply must not be dialled.
    #[error("backend {backend}: {cause}")]
    Stream {
        /// The backend.
        backend: Arc<str>,
        /// Why.
        #[source]
        cause: Cause,
    },
    // The backends together do not have an answer.
    /// A list would be incomplete: these backends were never listed and have no saved state.
    #[error("not listed yet: {}; start it (`crimux backend forget NAME` only if it is gone for good)", names(.0))]
    NeverListed(Vec<Arc<str>>),
    /// An unknown ID, and these backends could not be called to look it up.
    #[error("{kind} {id:?} is unknown and could not be looked up at: {}", names(.backends))]
    LookupIncomplete {
        /// `sandbox` or `container`.
        kind: &'static str,
        /// As in the request.
        id: String,
        /// The backends that could not be called.
        backends: Vec<Arc<str>>,
    },
    /// The backends' answers about an image disagree or are too few.
    #[error("image {image:?}: {cause}")]
    ImageUndecided {
        /// The reference.
        image: String,
        /// Why no answer can be chosen.
        cause: String,
    },
    /// A reply that crimux composes from one that the backend has not sent yet.
    #[error("{what} is not known yet: backend {backend} has not answered since crimux was started")]
    NotKnown {
        /// What is not known yet.
        what: &'static str,
        /// The backend.
        backend: Arc<str>,
    },
    /// No backend has the RPC, or not all that must have it.
    #[error("{0}")]
    Unimplemented(String),
    // crimux ends a stream.
    /// crimux exits and closes event streams.
    #[error("crimux is shutting down")]
    ShuttingDown,
    /// The client reads its event stream too slowly.
    #[error("events were not read in time: {0} are waiting")]
    SlowClient(usize),
}

impl Error {
    /// Returns the error for a call to this backend that ended before its reply did.
    pub fn lost_backend(
        backend: Arc<str>,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Lost { backend, cause: cause.into().into() }
    }

    /// Tells whether the call was not sent, so that the object it names is as it was.
    pub fn was_not_sent(&self) -> bool {
        matches!(self, Self::Down { .. } | Self::Busy { .. } | Self::NotReady { .. })
    }

    /// Tells whether the backend gave no answer in time, or was not asked because of `max_in_flight`.
    pub fn is_silence(&self) -> bool {
        matches!(
            self,
            Self::Late { .. } | Self::Timeout { .. } | Self::CallerDeadline { .. } | Self::Busy { .. }
        )
    }

    /// The gRPC code that this error is answered with.
    pub fn code(&self) -> Code {
        match self {
            Self::UnknownHandler { .. }
            | Self::Ambiguous { .. }
            | Self::EmptyId(_)
            | Self::Malformed(_)
            | Self::Framing(_) => Code::InvalidArgument,
            Self::NotFound { .. } => Code::NotFound,
            Self::PullDeadline { .. } => Code::DeadlineExceeded,
            Self::TooLarge(_) | Self::SlowClient(_) => Code::ResourceExhausted,
            Self::Compressed | Self::Unimplemented(_) => Code::Unimplemented,
            Self::InvalidReply { .. } | Self::Stream { .. } => Code::Internal,
            Self::NoStatus { code, .. } | Self::Refused { code, .. } => *code,
            Self::Draining { .. }
            | Self::Joining { .. }
            | Self::Down { .. }
            | Self::Lost { .. }
            | Self::Gone { .. }
            | Self::NotReady { .. }
            | Self::Unusable { .. }
            | Self::CallerDeadline { .. }
            | Self::Late { .. }
            | Self::Timeout { .. }
            | Self::Busy { .. }
            | Self::NeverListed(_)
            | Self::LookupIncomplete { .. }
            | Self::ImageUndecided { .. }
            | Self::ShuttingDown
            | Self::NotKnown { .. } => Code::Unavailable,
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let mut status = Status::new(error.code(), format!("crimux: {error}"));
        if matches!(error, Error::Compressed) {
            status.metadata_mut().insert("grpc-accept-encoding", "identity".parse().expect("ASCII"));
        }
        status
    }
}

/// Returns a handler as error texts name it.
pub fn handler_label(handler: &str) -> String {
    if handler.is_empty() { "pods without a RuntimeClass".to_owned() } else { format!("handler {handler}") }
}

fn names(backends: &[Arc<str>]) -> String {
    backends.join(", ")
}

/// Formats a time as in the log.
fn when(moment: SystemTime) -> impl fmt::Display {
    humantime::format_rfc3339_seconds(moment)
}
