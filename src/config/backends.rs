//! The `backends` section: endpoints, and what secures and bounds them.
//!
//! Checks keys that depend on each other: which endpoints need TLS, which must not have it, and which
//! unencrypted connections need `insecure`. Certificates are read when crimux connects, not here.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use super::diagnostics::SocketUse;
use super::hint::did_you_mean;
use super::loopback::is_certainly_loopback;
use super::section::{Named, Section};
use super::values::{self, Parsed, quote};
use super::{BackendConfig, Endpoint, ImageHandler, RelayMode, Streaming, Timeouts, Tls};

/// What else in the file the backends are compared with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surroundings<'a> {
    /// Where relative paths start.
    pub(super) base_dir: &'a Path,
    /// The text of `default_backend`.
    pub(super) default_backend: Option<&'a str>,
    /// `admin.http`.
    pub(super) http: Option<SocketAddr>,
}

/// The names under `backends`, including those with problems.
#[derive(Debug)]
pub(super) struct BackendNames(Vec<String>);

impl BackendNames {
    /// Returns `name` if a backend has it.
    pub(super) fn check(&self, name: &str) -> Parsed<String> {
        // Without any backend the missing section is the problem, not everything that refers to it.
        if self.0.is_empty() || self.0.binary_search_by(|known| known.as_str().cmp(name)).is_ok() {
            return Ok(name.to_owned());
        }
        let names = || self.0.iter().map(String::as_str);
        let right = if self.0.len() <= 10 {
            names().collect::<Vec<_>>().join(", ")
        } else {
            "a name under backends".into()
        };
        let hint = did_you_mean(name, names()).unwrap_or_default();
        Err(format!("there is no backend {} (expected {right}){hint}", quote(name)))
    }
}

/// Reads all backends; the names are complete even where a backend has problems.
pub(super) fn read(
    top: &Section<'_>,
    around: Surroundings<'_>,
) -> (BackendNames, Option<BTreeMap<String, BackendConfig>>) {
    let Some(named) = top.named_sections("backends") else { return (BackendNames(Vec::new()), None) };
    if named.is_empty() {
        top.problem("backends", "there is no backend (name at least one, with its endpoint)");
    }
    let mut known: Vec<_> = named.iter().map(|backend| backend.name.to_owned()).collect();
    known.sort_unstable();
    // All are read before any is judged, so that each reports its own problems.
    let read: Vec<_> =
        named.iter().map(|backend| (backend.name.to_owned(), one(top, backend, around))).collect();
    let backends = read.into_iter().map(|(name, backend)| Some((name, backend?))).collect();
    (BackendNames(known), backends)
}

fn one(top: &Section<'_>, named: &Named<'_>, around: Surroundings<'_>) -> Option<BackendConfig> {
    if matches!(named.name, "all" | "none") {
        let message = "all and none are values of the backend label of metrics (choose another name)";
        top.problem_of_name("backends", named, message);
    }
    if !values::is_label(named.name) {
        let message = "not a name for a backend (use a-z, 0-9 and -, at most 63, not - at either end)";
        top.problem_of_name("backends", named, message);
    }
    let section = named.section.as_ref()?;
    let backend = backend(section, around.base_dir);
    if backend.as_ref().is_some_and(|backend| backend.optional) && around.default_backend == Some(named.name)
    {
        let message =
            "the default backend cannot be optional: the node is not Ready without it (remove optional)";
        section.problem("optional", message);
    }
    if let (Some(backend), Some(http)) = (&backend, around.http)
        && is_address_of(&backend.endpoint, http)
    {
        section.problem("endpoint", "this is crimux's own admin.http (name the runtime's address)");
    }
    backend
}

/// Tells whether an endpoint is the address that crimux listens on itself.
fn is_address_of(endpoint: &Endpoint, http: SocketAddr) -> bool {
    let Endpoint::Tcp { host, port, .. } = endpoint else { return false };
    let is_host = match host.parse::<IpAddr>() {
        Ok(address) => address == http.ip() || (http.ip().is_unspecified() && address.is_loopback()),
        Err(_) => is_certainly_loopback(host) && (http.ip().is_loopback() || http.ip().is_unspecified()),
    };
    is_host && *port == http.port()
}

fn backend(section: &Section<'_>, base_dir: &Path) -> Option<BackendConfig> {
    let endpoint = section.read("endpoint", values::endpoint);
    let insecure = section.boolean("insecure");
    let socket = section.optional("socket", values::socket);
    let required = section.boolean("required");
    let optional = section.boolean("optional");
    let local = section.optional("local", values::boolean);
    let timeouts = section.section("timeouts").and_then(|section| timeouts(&section));
    let tls = tls(section, base_dir);
    let streaming = section.section("streaming").and_then(|section| streaming(&section, endpoint.as_ref()));
    let max_in_flight = section.integer("max_in_flight");
    let image_handler =
        section.one_of("image_handler", &[("auto", ImageHandler::Auto), ("never", ImageHandler::Never)]);
    if (required, optional) == (Some(true), Some(true)) {
        let message = "required and optional exclude each other (remove required, or remove optional)";
        section.problem_of_key("optional", message);
    }
    if let Some(Some(path)) = &socket {
        section.note_socket("socket", path, SocketUse::Listen);
    }
    let endpoint = endpoint?;
    check_security(section, &endpoint, insecure);
    Some(BackendConfig {
        local: local?.unwrap_or(matches!(endpoint, Endpoint::Unix(_))),
        endpoint,
        socket: socket?,
        required: required?,
        optional: optional?,
        timeouts: timeouts?,
        tls: tls?,
        streaming: streaming?,
        max_in_flight: max_in_flight? as usize,
        max_list: 0,
        image_handler: image_handler?,
    })
}

fn timeouts(section: &Section<'_>) -> Option<Timeouts> {
    let connect = section.duration("connect");
    let list = section.duration("list");
    let read = section.duration("read");
    let stats = section.duration("stats");
    let runtime_config = section.duration("runtime_config");
    let remove_image = section.duration("remove_image");
    Some(Timeouts {
        connect: connect?,
        list: list?,
        read: read?,
        stats: stats?,
        runtime_config: runtime_config?,
        remove_image: remove_image?,
    })
}

/// `Some(None)` where there is no `tls`.
#[allow(clippy::option_option)] // As in every reader, the outer one tells whether a problem was noted.
fn tls(backend: &Section<'_>, base_dir: &Path) -> Option<Option<Tls>> {
    if !backend.has("tls") {
        return Some(None);
    }
    let section = backend.section("tls")?;
    let file = |text: &str| values::file(text, base_dir);
    let ca = section.read("ca", file);
    let cert = section.optional("cert", file);
    let key = section.optional("key", file);
    let server_name = section.optional("server_name", values::server_name);
    for (given, other, value) in [("cert", "key", &cert), ("key", "cert", &key)] {
        if matches!(value, Some(Some(_))) && !section.has(other) {
            section.problem(given, format!("tls.{other} is missing beside it (give both or neither)"));
        }
    }
    Some(Some(Tls { ca: ca?, cert: cert?, key: key?, server_name: server_name? }))
}

fn streaming(section: &Section<'_>, endpoint: Option<&Endpoint>) -> Option<Streaming> {
    let relay = section.one_of(
        "relay",
        &[("auto", RelayMode::Auto), ("always", RelayMode::Always), ("never", RelayMode::Never)],
    );
    let address = section.optional("address", values::host_port);
    let tls = section.boolean("tls");
    if tls == Some(true)
        && endpoint.is_some_and(|endpoint| !matches!(endpoint, Endpoint::Tcp { tls: true, .. }))
    {
        section.problem("tls", "there is no tls to verify it with (only an https:// endpoint has tls)");
    }
    Some(Streaming { relay: relay?, address: address?, tls: tls? })
}

/// Checks that the connection is as protected as its endpoint asks for.
fn check_security(section: &Section<'_>, endpoint: &Endpoint, insecure: Option<bool>) {
    if let Endpoint::Unix(path) = endpoint {
        section.note_socket("endpoint", path, SocketUse::Dial);
    }
    let (https, distant) = match endpoint {
        Endpoint::Tcp { tls: true, .. } => (true, false),
        Endpoint::Tcp { host, .. } => (false, !is_certainly_loopback(host)),
        Endpoint::Unix(_) | Endpoint::Vsock { .. } => (false, false),
    };
    if https && !section.has("tls") {
        section.problem("endpoint", "https:// needs tls.ca (name the PEM file of the authorities to trust)");
    }
    if !https && section.has("tls") {
        section.problem("tls", "only an https:// endpoint has tls (write https://, or remove tls)");
    }
    if distant && insecure == Some(false) {
        let message =
            "http:// to another host is not encrypted (use https:// with tls, or set insecure: true)";
        section.problem("endpoint", message);
    }
    if matches!(endpoint, Endpoint::Unix(_) | Endpoint::Vsock { .. }) && insecure == Some(true) {
        section.problem("insecure", "only an http:// endpoint can be insecure (remove insecure)");
    }
    if https && insecure == Some(true) {
        section.problem("insecure", "an https:// endpoint is always verified (remove insecure)");
    }
}
