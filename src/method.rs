//! The method table: one row for each RPC of the CRI API, with everything that crimux knows about it.
//!
//! A row has the route of a call, the field that decides it, the effect of an OK reply, and the deadline of a
//! backend. There is exactly one row for each method of `proto/cri.proto` (a test). This is
//! data: `router` and `proxy` act on it. Both API packages share the rows, because `runtime.v1alpha2` is
//! `runtime.v1` under another path (cri-api 0.25).

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

pub use crate::cri::Rpc;

mod list;
mod table;

pub use list::List;

use table::{ROWS, Row};

/// A version of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Api {
    /// `runtime.v1`.
    V1,
    /// `runtime.v1alpha2`: kubelet up to 1.25, containerd up to 1.7, CRI-O up to 1.25.
    V1Alpha2,
}

/// The two services of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// `RuntimeService`.
    Runtime,
    /// `ImageService`.
    Image,
}

/// The kind of object that an ID names. Sandboxes and containers share one ID space in kubelet's PLEG.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A pod sandbox.
    Sandbox,
    /// A container.
    Container,
}

/// Where calls of a method go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// To a backend of the runtime handler in this field of the request.
    Handler(u32),
    /// To the owner of the ID in field 1.
    Owner(Kind, OnUnknownId),
    /// To an image store, by the rules of `router::images`.
    Image(ImageCall),
    /// To all backends; their lists are merged.
    FanOut(List),
    /// To all backends, streamed message by message; otherwise as the unary list.
    StreamList(List),
    /// To all backends; the first error is the reply.
    Broadcast,
    /// To no backend: crimux composes the reply from last-known replies.
    Local(LocalReply),
    /// The merged stream of container events.
    Events,
}

/// The reply for an ID that no backend has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnknownId {
    /// `NotFound`.
    NotFound,
    /// OK: stopping or removing an object that does not exist succeeds (critest `idempotence.go`).
    Ok,
}

/// The image calls that go to one or several stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageCall {
    /// `PullImage`.
    Pull,
    /// `ImageStatus`.
    Status,
    /// `RemoveImage`.
    Remove,
}

/// The replies that crimux composes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalReply {
    /// `Version`.
    Version,
    /// `Status`.
    Status,
    /// `RuntimeConfig`.
    RuntimeConfig,
}

/// How a call to one backend is sent, and what crimux does with its reply (`proxy/forward.rs`).
///
/// | effect | before it is sent | deadline | no reply | after OK |
/// |---|---|---|---|---|
/// | `None` | | of the row | an error | the reply is streamed, unread |
/// | `SandboxCreated`, `PodRestored` | a backend is chosen | caller's | an error | the objects are recorded |
/// | `ContainerCreated` | the pod's image starts end | caller's | an error | the container is recorded |
/// | the others that change | the cached status is dropped | caller's | an error | the change is recorded |
/// | `Status` | a late backend is not called | `read` | last-known status | the status is cached |
/// | `Stats` | a late backend is not called | `read` | last-known stats | paths are removed |
/// | `StreamUrl` | | caller's | an error | the URL is rewritten |
///
/// A call of `Status` or `Stats` is doubled by one of `Version` after half the deadline (`proxy/read.rs`). An
/// error of the backend passes to the client, except `NotFound` for an object that is to be stopped or
/// removed (`Call::succeeds_because_gone`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// None: the reply is streamed.
    None,
    /// A sandbox exists.
    SandboxCreated,
    /// A container exists.
    ContainerCreated,
    /// A sandbox and its containers exist.
    PodRestored,
    /// A container runs.
    ContainerStarted,
    /// A container has exited.
    ContainerStopped,
    /// A container is gone.
    ContainerRemoved,
    /// A sandbox and its containers have stopped.
    SandboxStopped,
    /// A sandbox and its containers are gone.
    SandboxRemoved,
    /// The object that the call names has changed, so its cached status is dropped.
    Changed,
    /// None; the reply is the status of such an object.
    Status(Kind),
    /// None; the reply is one item of this list. Filesystem paths of a backend on another host are removed.
    Stats(List),
    /// None; kubelet dials the URL in the reply, which may become one of the relay.
    StreamUrl,
}

/// How long a backend may take: the one source of a call's time, read by [`Backend::deadline`].
///
/// | deadline | of | enforced by |
/// |---|---|---|
/// | `Caller` | writes, `ExecSync`, streaming URLs | `backend/call.rs`, at most 250 ms before the caller's |
/// | | events | nobody: the stream stays open |
/// | `List`, `Stats` | lists | `proxy/fan_out/query.rs`, `proxy/stream_lists.rs` |
/// | | the list by which an ID is looked up | `proxy/owner.rs` |
/// | | the list before an image is removed | `proxy/images/remove.rs` |
/// | `Read` | reads of one object | `proxy/read.rs`; of events `proxy/events/body.rs` |
/// | | `ImageStatus` | `proxy/images/status.rs` |
/// | `Fast` | `Version`, `Status`, `RuntimeConfig` | `proxy/answer.rs` |
/// | | `ImageFsInfo`, a list | `proxy/fan_out/query.rs` |
///
/// A client's call waits at most 80 % of its own timeout, if that is less (`proxy/wait.rs`). `RemoveImage`
/// and `UpdateRuntimeConfig` are limited by `timeouts.remove_image` and `timeouts.runtime_config` too. What
/// crimux calls by itself has its own times: refreshes 60 s (`proxy/retry.rs`), the probe by `Version` that
/// of connecting or of reads (`backend/connection.rs`).
///
/// [`Backend::deadline`]: crate::backend::Backend::deadline
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    /// The caller's own; the backend has none.
    Caller,
    /// `timeouts.list`.
    List,
    /// `timeouts.read`.
    Read,
    /// `timeouts.stats`.
    Stats,
    /// 80 ms: kubelet decides by this reply whether the node is ready.
    Fast,
}

/// Which of a backend's limits on calls in flight a call counts against. Each has `max_in_flight` slots, so
/// calls that may take long, such as a stop or a pull, cannot use up the slots of lists and reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum InFlightLimit {
    /// Lists, statuses and stats, which have deadlines of their own.
    Read,
    /// Calls without a deadline of the backend: writes, `ExecSync`, and requests for streaming URLs.
    Unbounded,
    /// Streams, which may stay open as long as the connection.
    Stream,
}

/// The number of limits.
pub const IN_FLIGHT_LIMITS: usize = InFlightLimit::Stream as usize + 1;

/// One RPC.
#[derive(Debug)]
pub struct Method {
    /// The RPC.
    pub rpc: Rpc,
    /// Its row number, which indexes metrics.
    pub index: usize,
    /// Its service.
    pub service: Service,
    /// Its name, as in the API.
    pub name: &'static str,
    /// Where its calls go.
    pub route: Route,
    /// How its calls are sent, and what becomes of the reply.
    pub effect: Effect,
    /// How long a backend may take.
    pub deadline: Deadline,
    paths: [String; 2],
}

/// How many rows the table has. Index [`COUNT`] stands for all methods that are not in it.
pub const COUNT: usize = ROWS.len();

/// The metric label of methods that are not in the table.
pub const UNKNOWN_NAME: &str = "unknown";

/// Returns the rows in the order of the API.
pub fn all() -> &'static [Method] {
    &TABLE
}

/// Returns the row of an RPC.
pub fn row(rpc: Rpc) -> &'static Method {
    &TABLE[rpc as usize]
}

/// A parsed request path.
#[derive(Debug, Clone, Copy)]
pub struct Path {
    /// The API that the client speaks.
    pub api: Api,
    /// The row; `None` for a method that is not in the table.
    pub method: Option<&'static Method>,
}

/// Parses a request path; `None` if it is not of the CRI API.
pub fn parse_path(path: &str) -> Option<Path> {
    let path = path.strip_prefix('/')?;
    let within = |api: Api| path.strip_prefix(api.package())?.strip_prefix('.');
    let (api, method) = [Api::V1, Api::V1Alpha2].into_iter().find_map(|api| Some((api, within(api)?)))?;
    Some(Path { api, method: BY_PATH.get(method).copied() })
}

/// Returns the service in a path of the CRI API; `None` for other paths.
pub fn service(path: &str) -> Option<Service> {
    let (_, rest) = path.split_once('.')?;
    let (service, _) = rest.split_once('.')?.1.split_once('/')?;
    [Service::Runtime, Service::Image].into_iter().find(|known| known.name() == service)
}

/// Returns the path of a method at a backend that speaks `api`. `path` is the client's, for methods that are
/// not in the table.
pub fn path(method: Option<&'static Method>, path: &str, api: Api) -> Cow<'static, str> {
    if let Some(method) = method {
        return Cow::Borrowed(&method.paths[api as usize]);
    }
    let rest = path.split_once('.').and_then(|(_, rest)| rest.split_once('.')).map_or(path, |(_, rest)| rest);
    Cow::Owned(format!("/{}.{rest}", api.package()))
}

impl Method {
    /// Returns the limit that its calls count against.
    pub fn in_flight_limit(&self) -> InFlightLimit {
        match (self.route, self.deadline) {
            (Route::Events | Route::StreamList(_), _) => InFlightLimit::Stream,
            (_, Deadline::Caller) => InFlightLimit::Unbounded,
            _ => InFlightLimit::Read,
        }
    }
}

impl Method {
    /// Tells whether calls of this method change something and are repeated by kubelet until they succeed.
    /// Not so `ExecSync`, whose failure is a probe's, and streaming URLs, which people request again.
    pub fn is_retried_by_kubelet(&self) -> bool {
        self.in_flight_limit() == InFlightLimit::Unbounded
            && self.effect != Effect::StreamUrl
            && self.rpc != Rpc::ExecSync
    }
}

impl Effect {
    /// Tells whether the call changes the object that it names, so that its cached status is dropped.
    /// `CreateContainer` does not: the call names a sandbox, and changes only the new container.
    pub fn invalidates_status(self) -> bool {
        !matches!(
            self,
            Self::None | Self::Status(_) | Self::Stats(_) | Self::StreamUrl | Self::ContainerCreated
        )
    }
}

impl Api {
    /// Returns the other version.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::V1 => Self::V1Alpha2,
            Self::V1Alpha2 => Self::V1,
        }
    }

    /// Returns the package name.
    pub fn package(self) -> &'static str {
        match self {
            Self::V1 => "runtime.v1",
            Self::V1Alpha2 => "runtime.v1alpha2",
        }
    }

    /// Returns the version in the form of `VersionResponse.runtime_api_version`.
    pub fn version(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V1Alpha2 => "v1alpha2",
        }
    }
}

impl Service {
    /// Returns the name of the service.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runtime => "RuntimeService",
            Self::Image => "ImageService",
        }
    }
}

impl Kind {
    /// Returns the word for it in messages.
    pub fn word(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Container => "container",
        }
    }
}

static TABLE: LazyLock<Vec<Method>> = LazyLock::new(|| {
    let method = |(index, Row { rpc, route, effect, deadline }): (usize, Row)| {
        let service = if rpc.service() == Service::Image.name() { Service::Image } else { Service::Runtime };
        let paths = [Api::V1, Api::V1Alpha2];
        let paths = paths.map(|api| format!("/{}.{}/{}", api.package(), service.name(), rpc.name()));
        Method { rpc, index, service, name: rpc.name(), route, effect, deadline, paths }
    };
    ROWS.into_iter().enumerate().map(method).collect()
});

static BY_PATH: LazyLock<HashMap<String, &'static Method, foldhash::fast::RandomState>> =
    LazyLock::new(|| {
        TABLE.iter().map(|method| (format!("{}/{}", method.service.name(), method.name), method)).collect()
    });

#[cfg(test)]
mod tests {
    use super::*;

    fn described() -> Vec<(String, String)> {
        let set: prost_types::FileDescriptorSet =
            prost::Message::decode(crate::cri::DESCRIPTOR).expect("proto/generated holds a descriptor");
        let services = set.file.iter().flat_map(|file| &file.service);
        services
            .flat_map(|service| {
                let name = service.name().to_owned();
                service.method.iter().map(move |method| (name.clone(), method.name().to_owned()))
            })
            .collect()
    }

    #[test]
    fn rows_equal_the_methods_of_the_api() {
        let rows: Vec<_> = all().iter().map(|m| (m.service.name().to_owned(), m.name.to_owned())).collect();
        assert_eq!(rows, described());
        assert!(all().iter().all(|method| row(method.rpc).index == method.index));
    }

    #[test]
    fn what_may_last_takes_no_slot_of_lists_and_reads() {
        let limit = |rpc| row(rpc).in_flight_limit();
        for rpc in [Rpc::PullImage, Rpc::StopContainer, Rpc::ExecSync, Rpc::RunPodSandbox] {
            assert_eq!(limit(rpc), InFlightLimit::Unbounded, "{rpc:?}");
        }
        for rpc in [Rpc::ListContainers, Rpc::Status, Rpc::Version, Rpc::ContainerStatus, Rpc::ImageFsInfo] {
            assert_eq!(limit(rpc), InFlightLimit::Read, "{rpc:?}");
        }
        for rpc in [Rpc::GetContainerEvents, Rpc::StreamContainers] {
            assert_eq!(limit(rpc), InFlightLimit::Stream, "{rpc:?}");
        }
    }

    #[test]
    fn commands_are_what_kubelet_repeats_until_it_succeeds() {
        let others: Vec<_> =
            all().iter().filter(|method| !method.is_retried_by_kubelet()).map(|method| method.name).collect();
        for command in [Rpc::StopContainer, Rpc::RemovePodSandbox, Rpc::PullImage, Rpc::RemoveImage] {
            assert!(row(command).is_retried_by_kubelet(), "{command:?}");
        }
        for rpc in [Rpc::ExecSync, Rpc::Exec, Rpc::PortForward, Rpc::ListContainers, Rpc::GetContainerEvents]
        {
            assert!(others.contains(&rpc.name()), "{rpc:?}");
        }
    }

    #[test]
    fn both_packages_share_the_rows_and_other_paths_have_none() {
        let v1 = parse_path("/runtime.v1.RuntimeService/Version").expect("a CRI path");
        let alpha = parse_path("/runtime.v1alpha2.RuntimeService/Version").expect("a CRI path");
        assert_eq!((v1.api, alpha.api), (Api::V1, Api::V1Alpha2));
        assert_eq!(v1.method.map(|m| m.index), alpha.method.map(|m| m.index));
        assert!(parse_path("/grpc.health.v1.Health/Check").is_none());
        assert!(parse_path("/runtime.v1.RuntimeService/Tomorrow").expect("a CRI path").method.is_none());
    }

    #[test]
    fn a_backend_is_addressed_in_the_api_it_speaks() {
        let status = row(Rpc::Status);
        let uri = |method, at| path(method, at, Api::V1Alpha2);
        assert_eq!(uri(Some(status), ""), "/runtime.v1alpha2.RuntimeService/Status");
        assert_eq!(
            uri(None, "/runtime.v1.RuntimeService/Tomorrow"),
            "/runtime.v1alpha2.RuntimeService/Tomorrow"
        );
    }
}
