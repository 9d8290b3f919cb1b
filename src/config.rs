//! The checked configuration.
//!
//! The file as written is read by `config/file.rs`, which reports every problem at once with line and column;
//! only a file without problems becomes a [`Config`]. Keys, defaults and limits are data in
//! `config/keys/table.rs`. Nothing here does I/O beyond reading that one file and looking up the names in
//! `listen_owner`.

mod address;
mod backends;
mod canonical;
mod changes;
mod diagnostics;
mod file;
mod foreign;
mod handlers;
mod hint;
pub mod keys;
mod likely;
pub mod loopback;
mod problem;
mod program;
mod raw;
pub mod reference;
mod remainder;
mod restart;
mod sample;
mod section;
mod syntax;
mod tree;
mod values;
mod view;
mod warnings;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use problem::{ConfigError, Diagnostic, Problems};
pub use raw::{admin_socket_of, is_log_json, position_of, state_dir_of};
pub use remainder::Remainder;
pub use restart::{RESTART_KEYS, restart_keys, state_dir_advice};
pub use warnings::ConfigWarning;

/// The path of the configuration unless the command line names another one.
pub const DEFAULT_PATH: &str = "/etc/crimux/config.yaml";
/// The default of `state_dir`.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/crimux";

/// A checked configuration. Names of backends in it always exist in [`Config::backends`].
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// kubelet's `containerRuntimeEndpoint`. Default `unix:///run/crimux/crimux.sock`.
    pub listen: PathBuf,
    /// Permission bits of every socket that serves CRI. Default 0660.
    pub listen_mode: u32,
    /// Owner of those sockets as `(uid, gid)`; `None` (`listen_owner: self`) leaves crimux's own. Default
    /// root:root.
    pub listen_owner: Option<(u32, u32)>,
    /// Where the last-known state is kept. Default `/var/lib/crimux`.
    pub state_dir: PathBuf,
    /// The operator's side.
    pub admin: Admin,
    /// Whose name `Version` reports. Default [`Identity::DefaultBackend`].
    pub identity: Identity,
    /// The backend of pods without a `RuntimeClass`, and of calls that name nothing.
    pub default_backend: String,
    /// Where sandboxes of pods without a `RuntimeClass` go; empty: all to the default backend.
    pub default_split: Vec<Target>,
    /// All backends by name.
    pub backends: BTreeMap<String, BackendConfig>,
    /// `RuntimeClass` handler → where its sandboxes go. Never holds the handler `""`.
    pub handlers: BTreeMap<String, Vec<Target>>,
    /// How long calls may still run after SIGTERM. Default 5 s, at most 20 s.
    pub drain_timeout: Duration,
    /// How long calls may still run in a process that another one has taken over from. Default 1 h, at most
    /// 24 h.
    pub handover_timeout: Duration,
    /// `ListPodSandboxStats` when only some backends implement it. Default [`StatsPolicy::Unimplemented`].
    pub pod_sandbox_stats: StatsPolicy,
    /// What `RuntimeConfig` answers for a default backend that has none; `None` leaves it `Unimplemented`.
    pub cgroup_driver: Option<CgroupDriver>,
    /// Container events.
    pub events: Events,
    /// What clients and backends may make crimux hold.
    pub limits: Limits,
    /// Logging.
    pub log: Log,
    /// Tracing export; none by default.
    pub tracing: Option<Tracing>,
}

/// Where operators and Prometheus reach crimux.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// The socket of `crimux status` and the other verbs. Default `/run/crimux/admin.sock`.
    pub socket: PathBuf,
    /// `/metrics`, `/healthz`, `/readyz` and the status page. Default `127.0.0.1:19440`; `None` (`http: off`)
    /// opens none.
    pub http: Option<SocketAddr>,
}

/// What clients and backends may make crimux hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections of clients. Default 256.
    pub connections: usize,
    /// Open streams of one connection. Default 1000.
    pub streams: u32,
    /// Metadata of one request, in bytes. Default 64 KiB.
    pub metadata_bytes: u32,
    /// Requests in flight of all clients, in bytes. Default 32 MiB.
    pub request_bytes: usize,
    /// Replies that clients have not read, in bytes. Default 48 MiB.
    pub unread_bytes: usize,
    /// A backend's answer to one list, in bytes. Default 32 MiB.
    pub list_bytes: usize,
}

/// Whose runtime name prefixes every container ID of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// The default backend's, so that putting crimux in front of a running node changes no ID.
    DefaultBackend,
    /// `crimux` and its own version.
    Crimux,
}

impl Identity {
    /// The runtime name of [`Identity::Crimux`].
    pub const CRIMUX: &str = "crimux";
}

/// One backend: a CRI runtime we forward to.
#[derive(Debug, Clone, PartialEq)]
pub struct BackendConfig {
    /// Its address.
    pub endpoint: Endpoint,
    /// A socket of crimux that serves this backend alone.
    pub socket: Option<PathBuf>,
    /// Whether its outage makes the node `NotReady`. Default false; the default backend always counts.
    pub required: bool,
    /// Whether the node's lists do without it until it was listed for the first time. Default false.
    pub optional: bool,
    /// Whether its files, logs and image store are on this node. Default true for `unix://`, else false.
    pub local: bool,
    /// Its deadlines.
    pub timeouts: Timeouts,
    /// Present for `https://` endpoints.
    pub tls: Option<Tls>,
    /// Where its exec, attach and port-forward streams are served.
    pub streaming: Streaming,
    /// How many calls may be in flight to it at once. Default 1000.
    pub max_in_flight: usize,
    /// The largest answer to a list, in bytes: [`Limits::list_bytes`].
    pub max_list: usize,
    /// Whether `PullImage` gets `image.runtime_handler` filled in. Default [`ImageHandler::Auto`].
    pub image_handler: ImageHandler,
}

/// A backend's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `unix:///path`.
    Unix(PathBuf),
    /// `http://host:port` or `https://host:port`.
    Tcp {
        /// Host name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
        /// Whether it is `https://`.
        tls: bool,
    },
    /// `vsock://cid:port`.
    Vsock {
        /// Context ID of the VM.
        cid: u32,
        /// Port.
        port: u32,
    },
}

/// Deadlines of one backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// To be connected. Default 1 s.
    pub connect: Duration,
    /// `ListPodSandbox`, `ListContainers`, `ListImages`. Default 1 s.
    pub list: Duration,
    /// The status reads. Default 2 s.
    pub read: Duration,
    /// The stats lists and `ImageFsInfo`. Default 5 s.
    pub stats: Duration,
    /// `UpdateRuntimeConfig`. Default 5 s.
    pub runtime_config: Duration,
    /// `RemoveImage`. Default 1 min.
    pub remove_image: Duration,
}

/// Mutual TLS towards a backend. The files are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// PEM file with the authorities that may have signed the backend's certificate.
    pub ca: PathBuf,
    /// PEM file with our certificate chain.
    pub cert: Option<PathBuf>,
    /// PEM file with our key; present exactly when `cert` is.
    pub key: Option<PathBuf>,
    /// The name the backend's certificate must hold. Default: the endpoint's host.
    pub server_name: Option<String>,
}

/// How exec, attach and port-forward reach a backend's streaming server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Streaming {
    /// When crimux relays. Default [`RelayMode::Auto`].
    pub relay: RelayMode,
    /// `host:port` of the backend's streaming server; default: the endpoint's host and the port of the URL.
    pub address: Option<(String, u16)>,
    /// Whether that server speaks TLS (with [`BackendConfig::tls`]). Default false.
    pub tls: bool,
}

/// When streams go through crimux's relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayMode {
    /// Where kubelet on this node could not dial the backend's URL.
    Auto,
    /// Always.
    Always,
    /// Never: the URL passes as it is.
    Never,
}

/// When `PullImage` gets the runtime handler of the pod's sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageHandler {
    /// If the backend announces the handler in its `Status`.
    Auto,
    /// Never, for backends that would refuse it.
    Never,
}

/// One place where sandboxes of a handler may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The backend.
    pub backend: String,
    /// The backend's name for the handler; empty: the backend's own default.
    pub backend_handler: String,
    /// Its share of a split, 0 to 10000, not 0 for all; 1 where there is no split.
    pub weight: u32,
}

/// What `ListPodSandboxStats` answers when only some backends implement it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatsPolicy {
    /// `Unimplemented`, so that kubelet falls back to cAdvisor for all pods.
    Unimplemented,
    /// The stats of those that do.
    Union,
}

/// Who makes cgroups on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    /// systemd, by its D-Bus API.
    Systemd,
    /// kubelet and the runtime, in the file system.
    Cgroupfs,
}

impl CgroupDriver {
    /// Returns the word for it in configurations, kubelet's included.
    pub fn word(self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::Cgroupfs => "cgroupfs",
        }
    }
}

/// Limits of the event streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Events {
    /// Events buffered for a slow client before its stream ends. Default 1000.
    pub buffer: usize,
    /// How long a backend's lost stream is asked for again at least once a second; after that with each new
    /// connection. Its lists are compared meanwhile. Default 30 s.
    pub grace: Duration,
}

/// Logging.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Default text.
    pub format: LogFormat,
    /// A `tracing` filter; the environment's `CRIMUX_LOG` goes before it. Default `info`.
    pub level: String,
}

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Spans over OTLP/gRPC.
#[derive(Debug, Clone, PartialEq)]
pub struct Tracing {
    /// `http://host:port` or `https://host:port` of the collector.
    pub otlp: String,
    /// Share of the calls without a `traceparent` that get a trace, 0 to 1. Default 1.
    pub sample_ratio: f64,
}

impl Config {
    /// Reads and checks the file at `path`. Relative paths in it start at its directory.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Read`] if the file cannot be read, [`ConfigError::Invalid`] with every problem found if
    /// it is wrong, not UTF-8 or larger than 1 MiB.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::load_with_bytes(path).1
    }

    /// As [`Config::load`], and the bytes that were read: none of a file that cannot be read, and of a larger
    /// one than 1 MiB one more than that.
    pub(crate) fn load_with_bytes(path: &Path) -> (Vec<u8>, Result<Self, ConfigError>) {
        let (bytes, base_dir) = match read_bounded(path) {
            Ok(read) => read,
            Err(source) => return (Vec::new(), Err(ConfigError::Read { path: path.to_owned(), source })),
        };
        let invalid = |problems| ConfigError::Invalid { path: path.to_owned(), problems };
        let text = decode(bytes.clone(), path);
        let loaded = text.and_then(|text| Self::parse(&text, &base_dir).map_err(invalid));
        (bytes, loaded)
    }

    /// Checks the text of a configuration. Relative paths in it start at `base_dir`.
    ///
    /// # Errors
    ///
    /// Every problem found; behind a YAML syntax error nothing is read, so it may hide others.
    pub fn parse(text: &str, base_dir: &Path) -> Result<Self, Problems> {
        file::read(text, base_dir)
    }

    /// Returns the handlers that `new` does not have, in their order.
    pub fn removed_handlers<'a>(&'a self, new: &'a Self) -> impl Iterator<Item = &'a String> {
        self.handlers.keys().filter(|handler| !new.handlers.contains_key(*handler))
    }
}

/// Returns the text of a file, and the directory where relative paths in it start.
///
/// # Errors
///
/// [`ConfigError::Read`] if the file cannot be read, [`ConfigError::Invalid`] if it is not UTF-8.
pub fn read_text(path: &Path) -> Result<(String, PathBuf), ConfigError> {
    let read = read_bounded(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source });
    read.and_then(|(text, base_dir)| Ok((decode(text, path)?, base_dir)))
}

/// Returns the text that `source` holds, of which `path` is the name.
///
/// # Errors
///
/// As [`read_text`].
pub fn read_text_from(source: impl Read, path: &Path) -> Result<String, ConfigError> {
    let mut text = Vec::new();
    match source.take(tree::MAX_BYTES as u64 + 1).read_to_end(&mut text) {
        Ok(_) => decode(text, path),
        Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
    }
}

fn decode(text: Vec<u8>, path: &Path) -> Result<String, ConfigError> {
    String::from_utf8(text)
        .map_err(|error| ConfigError::Invalid { path: path.to_owned(), problems: not_utf8(&error) })
}

/// Says that a text is no duration, and what it probably should be.
pub fn not_a_duration(text: &str) -> String {
    values::not_a_duration(text)
}

/// Checks a log filter as the key `log.level` is checked.
///
/// # Errors
/// What is wrong with it.
pub fn check_filter(level: &str) -> Result<(), String> {
    values::filter(level).map(drop)
}

/// Returns the bytes of the file, at most one more than the limit, and its directory as an absolute path.
fn read_bounded(path: &Path) -> io::Result<(Vec<u8>, PathBuf)> {
    let directory = std::path::absolute(path)?.parent().map(Path::to_owned).unwrap_or_default();
    let mut text = Vec::new();
    File::open(path)?.take(tree::MAX_BYTES as u64 + 1).read_to_end(&mut text)?;
    Ok((text, directory))
}

fn not_utf8(error: &std::string::FromUtf8Error) -> Problems {
    let valid = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]);
    let line = valid.matches('\n').count() + 1;
    let column = valid.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
    let message = "this byte is not UTF-8 (save the file as UTF-8)".to_owned();
    Problems(vec![Diagnostic { line, column, key: String::new(), message }])
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            list: Duration::from_secs(1),
            read: Duration::from_secs(2),
            stats: Duration::from_secs(5),
            runtime_config: Duration::from_secs(5),
            remove_image: Duration::from_secs(60),
        }
    }
}
