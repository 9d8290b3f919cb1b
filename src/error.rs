//! What can go wrong inside crimux, and the one translation of it into a gRPC status.
//!
//! A backend's own status is not an error of ours and never passes through here. The codes follow what
//! kubelet does with them: a backend that cannot be asked is `Unavailable`, never `NotFound` (kubelet would
//! take the pod for gone), never `DeadlineExceeded` (a failed exec probe) and never `Unimplemented` (a
//! feature switched off for good). Texts name backends, handlers, IDs and causes; they never carry a
//! message's contents.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use tonic::{Code, Status};

use crate::wire::WireError;

/// What crimux answers a call with when it cannot pass a backend's answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// `RunPodSandbox`, `RestorePod` or an image call named a handler that no route serves (KEP-585: refuse).
    #[error("no runtime handler {handler:?} is configured; configured handlers: {known}")]
    UnknownHandler {
        /// What the client asked for.
        handler: String,
        /// The handlers that exist, comma-separated.
        known: String,
    },
    /// No target of the handler takes new sandboxes.
    #[error(
        "backend {backend} is draining and takes no new sandboxes of {}; `crimux backend undrain {backend}` ends that",
        whose(handler)
    )]
    Draining {
        /// The drained backend.
        backend: Arc<str>,
        /// What the client asked for.
        handler: String,
    },
    /// A new sandbox for a backend that has not been listed since it was added.
    #[error("backend {backend} is joining: it takes sandboxes after its first full list")]
    Joining {
        /// The new backend.
        backend: Arc<str>,
    },
    /// The owner cannot be reached.
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
        /// What the transport said.
        cause: String,
    },
    /// The backend ended the call without a gRPC status: by a reset, by an HTTP status, or because it accepts
    /// no request like this one. The code is that of gRPC's tables for these.
    #[error("backend {backend} answered without a gRPC status: {cause}")]
    Transport {
        /// The backend.
        backend: Arc<str>,
        /// The code that gRPC assigns.
        code: Code,
        /// What HTTP/2 said.
        cause: String,
    },
    /// The caller's deadline is about to pass without an answer. Left to itself the caller would take it for
    /// `DeadlineExceeded`, which kubelet counts as a failed exec probe.
    #[error("backend {backend} did not answer while the caller waited ({waited:?})")]
    Overdue {
        /// The backend.
        backend: Arc<str>,
        /// How long the caller has waited.
        waited: std::time::Duration,
    },
    /// The caller's deadline is about to pass, and it is one that the caller must hear of as such.
    #[error("backend {backend} did not answer before the caller's deadline ({waited:?})")]
    Expired {
        /// The backend.
        backend: Arc<str>,
        /// How long the caller has waited.
        waited: std::time::Duration,
    },
    /// A call whose backend has a deadline of its own for it, and did not keep it.
    #[error("backend {backend} did not answer {method} within {limit:?}")]
    NotInTime {
        /// The backend.
        backend: Arc<str>,
        /// The RPC.
        method: &'static str,
        /// The deadline, as configured under `timeouts`.
        limit: std::time::Duration,
    },
    /// A read of a late backend that has no last-known answer to give.
    #[error(
        "backend {backend} did not answer within {waited:?} and no last-known answer agrees with its last list"
    )]
    Late {
        /// The backend.
        backend: Arc<str>,
        /// Its deadline for this method.
        waited: std::time::Duration,
    },
    /// The bound on calls in flight is reached.
    #[error("backend {backend} has {limit} calls in flight (max_in_flight)")]
    Busy {
        /// The backend.
        backend: Arc<str>,
        /// The bound.
        limit: usize,
    },
    /// The backend answered something that is no gRPC reply.
    #[error("backend {backend} sent an unreadable reply: {cause}")]
    Garbage {
        /// The backend.
        backend: Arc<str>,
        /// What is wrong with it.
        cause: String,
    },
    /// No backend answered a stats or metrics list live, and this one answered it with an error of its own.
    #[error("backend {backend} answered {method} with {code:?}: {message}")]
    Refused {
        /// The backend.
        backend: Arc<str>,
        /// The list.
        method: &'static str,
        /// Its code, which goes out.
        code: Code,
        /// Its text.
        message: String,
    },
    /// A list cannot be complete: these backends were never listed and no saved state knows them.
    #[error("not listed yet: {}; `crimux backend forget NAME` gives one up", names(.0))]
    NeverListed(Vec<Arc<str>>),
    /// An unknown ID, and not every backend could be asked for it.
    #[error("{kind} {id:?} is unknown and could not be looked up at: {}", names(.backends))]
    Unasked {
        /// `sandbox` or `container`.
        kind: &'static str,
        /// What the client asked for.
        id: String,
        /// Who could not be asked.
        backends: Vec<Arc<str>>,
    },
    /// Every backend denied knowing the ID.
    #[error("{kind} {id:?} not found at any backend")]
    NotFound {
        /// `sandbox` or `container`.
        kind: &'static str,
        /// What the client asked for.
        id: String,
    },
    /// An ID prefix that several IDs share.
    #[error("{kind} ID prefix {prefix:?} is ambiguous")]
    Ambiguous {
        /// `sandbox` or `container`.
        kind: &'static str,
        /// What the client asked for.
        prefix: String,
    },
    /// An ID that must be there is empty.
    #[error("{0} ID is empty")]
    EmptyId(&'static str),
    /// No answer for an image that would not be a guess.
    #[error("image {image:?}: {cause}")]
    ImageUndecided {
        /// The reference.
        image: String,
        /// Why no backend's answer can stand for all.
        cause: String,
    },
    /// The request is no readable protobuf message.
    #[error("malformed request: {0}")]
    Malformed(#[from] WireError),
    /// A request, or a backend's reply, is no readable gRPC message.
    #[error("malformed gRPC message: {0}")]
    Framing(&'static str),
    /// The request is beyond the 16 MiB that CRI runtimes take.
    #[error("request of {0} bytes is larger than 16 MiB")]
    TooLarge(usize),
    /// The request is compressed; CRI clients do not compress.
    #[error("the request is compressed; crimux understands grpc-encoding identity alone")]
    Compressed,
    /// An answer that nobody has been able to give yet.
    #[error("{what} is not known yet: backend {backend} has not answered since crimux was started")]
    NotKnown {
        /// What was asked for.
        what: &'static str,
        /// Who must answer first.
        backend: Arc<str>,
    },
    /// No backend offers it, or not all of those that must.
    #[error("{0}")]
    Unimplemented(String),
    /// Streams that would never end are ended.
    #[error("crimux is shutting down")]
    ShuttingDown,
    /// The client reads its event stream too slowly.
    #[error("events were not read in time: {0} are waiting")]
    SlowClient(usize),
    /// The stream that a backend answered exec, attach or port-forward with must not be dialled.
    #[error("backend {backend}: {cause}")]
    Stream {
        /// The backend.
        backend: Arc<str>,
        /// Why.
        cause: String,
    },
}

impl Error {
    /// The gRPC code that this error is answered with.
    pub fn code(&self) -> Code {
        match self {
            Self::UnknownHandler { .. }
            | Self::Ambiguous { .. }
            | Self::EmptyId(_)
            | Self::Malformed(_)
            | Self::Framing(_) => Code::InvalidArgument,
            Self::NotFound { .. } => Code::NotFound,
            Self::Expired { .. } => Code::DeadlineExceeded,
            Self::TooLarge(_) | Self::SlowClient(_) => Code::ResourceExhausted,
            Self::Compressed | Self::Unimplemented(_) => Code::Unimplemented,
            Self::Garbage { .. } | Self::Stream { .. } => Code::Internal,
            Self::Transport { code, .. } | Self::Refused { code, .. } => *code,
            Self::Draining { .. }
            | Self::Joining { .. }
            | Self::Down { .. }
            | Self::Lost { .. }
            | Self::Overdue { .. }
            | Self::Late { .. }
            | Self::NotInTime { .. }
            | Self::Busy { .. }
            | Self::NeverListed(_)
            | Self::Unasked { .. }
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

/// Names those whose sandboxes go by this handler.
pub fn whose(handler: &str) -> String {
    if handler.is_empty() { "pods without a RuntimeClass".to_owned() } else { format!("handler {handler}") }
}

fn names(backends: &[Arc<str>]) -> String {
    backends.join(", ")
}

/// Shows a moment as operators find it in logs.
fn when(moment: SystemTime) -> impl fmt::Display {
    humantime::format_rfc3339_seconds(moment)
}
