//! From the text of a configuration file to a checked [`Config`].
//!
//! One small reader for each section, each of which reads all its keys before it gives up, so that one pass
//! finds every problem. The larger sections have files of their own: `backends.rs` and `handlers.rs`.

use std::collections::BTreeMap;
use std::path::Path;

use super::backends::Surroundings;
use super::diagnostics::{Diagnostics, SocketUse};
use super::problem::Problems;
use super::section::Section;
use super::tree::{YamlNode, YamlValue};
use super::{
    Admin, BackendConfig, CgroupDriver, Config, Events, Identity, Limits, Log, LogFormat, StatsPolicy,
    Tracing, backends, foreign, handlers, program, tree, values,
};

/// Reads `text`; relative paths start at `base_dir`.
pub(super) fn read(text: &str, base_dir: &Path) -> Result<Config, Problems> {
    let diagnostics = Diagnostics::default();
    let root = tree::read(text, &diagnostics).filter(|root| is_ours(text, root, &diagnostics));
    let config = root.and_then(|root| config(&Section::top(&root, &diagnostics)?, base_dir));
    diagnostics.check_sockets();
    diagnostics.conclude(config)
}

/// Tells whether the file can be a configuration of crimux, and reports it if not.
fn is_ours(text: &str, root: &YamlNode, diagnostics: &Diagnostics) -> bool {
    let other = match root.value {
        YamlValue::Map(_) => program::other_program(root),
        _ => foreign::other_format(text),
    };
    if let Some((position, message)) = &other {
        diagnostics.add(*position, "", message);
    }
    other.is_none()
}

/// Reads the configuration; `None` after a problem, or with a value that was refused before.
pub(super) fn config(top: &Section<'_>, base_dir: &Path) -> Option<Config> {
    let listen = top.socket("listen");
    let listen_mode = top.read("listen_mode", values::mode);
    let listen_owner = top.read("listen_owner", values::owner);
    let state_dir = top.read("state_dir", values::directory);
    if let Some(directory) = &state_dir {
        top.note_socket("state_dir", directory, SocketUse::Directory);
    }
    let admin = top.section("admin").and_then(|section| admin(&section));
    let identity = top
        .one_of("identity", &[("default-backend", Identity::DefaultBackend), ("crimux", Identity::Crimux)]);
    let around = Surroundings {
        base_dir,
        default_backend: top.text("default_backend"),
        http: admin.as_ref().and_then(|admin| admin.http),
    };
    let (names, backends) = backends::read(top, around);
    let default_backend = top.read("default_backend", |name| names.check(name));
    let default_split = handlers::read_default_split(top, &names);
    let handlers = handlers::read(top, &names);
    let drain_timeout = top.duration("drain_timeout");
    let handover_timeout = top.duration("handover_timeout");
    let pod_sandbox_stats = top.one_of(
        "pod_sandbox_stats",
        &[("unimplemented", StatsPolicy::Unimplemented), ("union", StatsPolicy::Union)],
    );
    let cgroup_driver = top.optional("cgroup_driver", cgroup_driver);
    let events = top.section("events").and_then(|section| events(&section));
    let limits = top.section("limits").and_then(|section| limits(&section));
    let log = top.section("log").and_then(|section| log(&section));
    let tracing = top.section("tracing").and_then(|section| tracing(&section));
    Some(Config {
        listen: listen?,
        listen_mode: listen_mode?,
        listen_owner: listen_owner?,
        state_dir: state_dir?,
        admin: admin?,
        identity: identity?,
        default_backend: default_backend?,
        default_split: default_split?,
        backends: with_limits(backends?, &limits?),
        handlers: handlers?,
        drain_timeout: drain_timeout?,
        handover_timeout: handover_timeout?,
        pod_sandbox_stats: pod_sandbox_stats?,
        cgroup_driver: cgroup_driver?,
        events: events?,
        limits: limits?,
        log: log?,
        tracing: tracing?,
    })
}

fn cgroup_driver(text: &str) -> Result<CgroupDriver, String> {
    let drivers = [CgroupDriver::Systemd, CgroupDriver::Cgroupfs].map(|driver| (driver.word(), driver));
    values::word(text, &drivers)
}

fn admin(section: &Section<'_>) -> Option<Admin> {
    let socket = section.socket("socket");
    let http = section.read("http", values::address);
    Some(Admin { socket: socket?, http: http? })
}

fn events(section: &Section<'_>) -> Option<Events> {
    let buffer = section.integer("buffer");
    let grace = section.duration("grace");
    Some(Events { buffer: buffer? as usize, grace: grace? })
}

fn limits(section: &Section<'_>) -> Option<Limits> {
    let connections = section.integer("connections");
    let streams = section.integer("streams");
    let metadata = section.integer("metadata_kib");
    let requests = section.integer("requests_mib");
    let unread = section.integer("unread_mib");
    let list = section.integer("list_mib");
    let mebibytes = |number: u32| (number as usize) << 20;
    Some(Limits {
        connections: connections? as usize,
        streams: streams?,
        metadata_bytes: metadata? << 10,
        request_bytes: mebibytes(requests?),
        unread_bytes: mebibytes(unread?),
        list_bytes: mebibytes(list?),
    })
}

/// Gives every backend the limits that hold for all of them.
fn with_limits(
    mut backends: BTreeMap<String, BackendConfig>,
    limits: &Limits,
) -> BTreeMap<String, BackendConfig> {
    for backend in backends.values_mut() {
        backend.max_list = limits.list_bytes;
    }
    backends
}

fn log(section: &Section<'_>) -> Option<Log> {
    let format = section.one_of("format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]);
    let level = section.read("level", values::filter);
    Some(Log { format: format?, level: level? })
}

/// `Some(None)` where no traces are sent.
#[allow(clippy::option_option)] // As in every reader, the outer one tells whether a problem was noted.
fn tracing(section: &Section<'_>) -> Option<Option<Tracing>> {
    let otlp = section.read("otlp", values::url);
    let sample_ratio = section.read("sample_ratio", values::ratio)?;
    Some(otlp?.map(|otlp| Tracing { otlp, sample_ratio }))
}
