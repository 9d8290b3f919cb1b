//! Warnings about a configuration that is valid but perhaps not intended.
//!
//! They are computed from the checked configuration, not from the file. A warning refuses nothing, and a note
//! is about what many files have on purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::loopback::is_certainly_loopback;
use super::{Config, Endpoint, RelayMode, Streaming, Timeouts, likely, values};

/// Where files do not survive a reboot.
const VOLATILE: [&str; 3] = ["/run", "/var/run", "/dev/shm"];
/// kubelet's `runtimeRequestTimeout` unless its configuration says otherwise
/// (pkg/kubelet/apis/config/v1beta1/defaults.go).
const KUBELET_TIMEOUT: Duration = Duration::from_secs(120);
/// A deadline below this is a typing error.
const SHORTEST: Duration = Duration::from_millis(10);

/// One warning: `key: message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigWarning {
    /// The key it is about.
    pub key: String,
    /// What follows from its value.
    pub message: String,
    /// Whether nobody can mean it: `crimux check` fails. A start goes on, because a node without a runtime is
    /// worse.
    pub is_mistake: bool,
}

impl fmt::Display for ConfigWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

impl Config {
    /// Returns the warnings about this configuration.
    pub fn warnings(&self) -> Vec<ConfigWarning> {
        let mut warnings = Vec::new();
        paths(self, &mut warnings);
        listener(self, &mut warnings);
        backends(self, &mut warnings);
        timeouts(self, &mut warnings);
        streams(self, &mut warnings);
        handlers(self, &mut warnings);
        warnings
    }

    /// Returns what is worth knowing of this configuration.
    pub fn notes(&self) -> Vec<ConfigWarning> {
        let targets = self.handlers.values().flatten().chain(&self.default_split);
        let mut taken: BTreeSet<_> = targets.map(|target| target.backend.as_str()).collect();
        if self.default_split.is_empty() {
            taken.insert(&self.default_backend);
        }
        let mut notes = Vec::new();
        for name in self.backends.keys().filter(|name| !taken.contains(name.as_str())) {
            let message = "no handler leads to this backend: it takes no new sandboxes but those that `crimux route --next` \
                           aims there";
            warn(&mut notes, format!("backends.{name}"), message);
        }
        notes
    }
}

fn warn(warnings: &mut Vec<ConfigWarning>, key: impl Into<String>, message: impl Into<String>) {
    warnings.push(ConfigWarning { key: key.into(), message: message.into(), is_mistake: false });
}

/// Warns of paths that a template, a shell or a stray blank has left a piece in.
fn paths(config: &Config, warnings: &mut Vec<ConfigWarning>) {
    let mut paths = vec![
        ("listen".to_owned(), config.listen.as_path()),
        ("state_dir".to_owned(), &config.state_dir),
        ("admin.socket".to_owned(), &config.admin.socket),
    ];
    for (name, backend) in &config.backends {
        let endpoint = match &backend.endpoint {
            Endpoint::Unix(path) => Some(path.as_path()),
            Endpoint::Tcp { .. } | Endpoint::Vsock { .. } => None,
        };
        let tls = backend.tls.as_ref();
        let named = [
            ("endpoint", endpoint),
            ("socket", backend.socket.as_deref()),
            ("tls.ca", tls.map(|tls| tls.ca.as_path())),
            ("tls.cert", tls.and_then(|tls| tls.cert.as_deref())),
            ("tls.key", tls.and_then(|tls| tls.key.as_deref())),
        ];
        let given =
            named.into_iter().filter_map(|(key, path)| Some((format!("backends.{name}.{key}"), path?)));
        paths.extend(given);
    }
    for (key, path) in paths {
        let text = path.to_string_lossy();
        if let Some(piece) = likely::template_piece(&text) {
            let message = format!(
                "{} is taken as it stands, because nothing fills it in (write the path itself)",
                values::quote(piece)
            );
            warn(warnings, key.as_str(), message);
        }
        let is_odd = |part: &str| part.trim() != part || part.contains(char::is_control);
        if text.split('/').any(is_odd) {
            let message = format!("{} has a blank at an end of a name (remove it)", values::quote(&text));
            warn(warnings, key, message);
        }
    }
}

fn listener(config: &Config, warnings: &mut Vec<ConfigWarning>) {
    // Kubernetes pkg/kubelet/cadvisor/util.go, UsingLegacyCadvisorStats, compares the end of the endpoint.
    if config.listen.to_string_lossy().ends_with("run/crio/crio.sock") {
        let message = "kubelet takes a socket with this name for CRI-O and reads stats from cAdvisor instead of the CRI";
        warn(warnings, "listen", message);
        if ["/run/crio/crio.sock", "/var/run/crio/crio.sock"]
            .iter()
            .any(|path| config.listen == Path::new(path))
        {
            // cAdvisor's container/crio/client.go: GET /info and /containers/ID at this very path.
            let message = "cAdvisor speaks HTTP/1.1 to CRI-O at this path: leave it to CRI-O and choose another with the same \
                           ending, such as /run/crimux/run/crio/crio.sock";
            warn(warnings, "listen", message);
        }
    }
    if config.listen_mode & 0o002 != 0 {
        warn(warnings, "listen_mode", "every user of the node may connect, and thereby become root");
    }
    if config.listen_mode & 0o060 == 0o040 {
        warn(
            warnings,
            "listen_mode",
            "the group may read the socket but not connect, which takes the write bit (0660)",
        );
    }
    if VOLATILE.iter().any(|volatile| config.state_dir.starts_with(volatile)) {
        let message = "this directory does not survive a reboot, and systemd may remove it when crimux stops: pods of backends \
                       that are down then would be unknown (use /var/lib/crimux)";
        warn(warnings, "state_dir", message);
    }
    if config.admin.http.is_some_and(|address| !address.ip().is_loopback()) {
        warn(warnings, "admin.http", "it is reachable from other hosts and has no authentication");
    }
}

fn backends(config: &Config, warnings: &mut Vec<ConfigWarning>) {
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    for (name, backend) in &config.backends {
        let key = format!("backends.{name}.endpoint");
        if let Endpoint::Tcp { host, tls: false, .. } = &backend.endpoint
            && !is_certainly_loopback(host)
        {
            warn(warnings, &key, "calls to it are not encrypted, image pull credentials included");
        }
        let canonical = backend.endpoint.canonical();
        if let Some(other) = seen.get(&canonical) {
            let message = format!(
                "backends.{other} has the same endpoint ({canonical}); what both list is served by one of them \
                 (remove one, and let its handlers lead to {other})"
            );
            warnings.push(ConfigWarning { key, message, is_mistake: true });
        } else {
            seen.insert(canonical, name);
        }
    }
}

/// Warns of deadlines that decide nothing, or everything.
fn timeouts(config: &Config, warnings: &mut Vec<ConfigWarning>) {
    for (name, backend) in &config.backends {
        let Timeouts { connect, list, read, stats, runtime_config, remove_image } = backend.timeouts;
        let all = [
            ("connect", connect),
            ("list", list),
            ("read", read),
            ("stats", stats),
            ("runtime_config", runtime_config),
            ("remove_image", remove_image),
        ];
        for (key, timeout) in all {
            let key = format!("backends.{name}.timeouts.{key}");
            if timeout >= KUBELET_TIMEOUT && !key.ends_with("connect") {
                let message = "kubelet gives up after its runtimeRequestTimeout, 2m by default, before this backend is late";
                warn(warnings, key, message);
            } else if timeout < SHORTEST {
                warn(
                    warnings,
                    key,
                    "no runtime answers that soon every time: it would be late most of the time",
                );
            }
        }
    }
}

/// Warns of streaming keys without effect, and of streams that cannot reach their backend.
fn streams(config: &Config, warnings: &mut Vec<ConfigWarning>) {
    for (name, backend) in &config.backends {
        let Streaming { relay, address, tls } = &backend.streaming;
        let key = format!("backends.{name}.streaming");
        if *relay == RelayMode::Never && (address.is_some() || *tls) {
            let given = if address.is_some() { "address" } else { "tls" };
            let message = "without effect, because relay is never: kubelet dials the backend's own URL";
            warn(warnings, format!("{key}.{given}"), message);
        }
        let is_hostless = matches!(backend.endpoint, Endpoint::Unix(_) | Endpoint::Vsock { .. });
        if *relay != RelayMode::Never && address.is_none() && !backend.local && is_hostless {
            let message = "the backend is not on this node and its endpoint has no host: exec, attach and port-forward to its \
                           pods fail (set streaming.address)";
            warn(warnings, format!("{key}.address"), message);
        }
    }
}

fn handlers(config: &Config, warnings: &mut Vec<ConfigWarning>) {
    for name in config.handlers.keys().filter(|name| !values::is_label(name)) {
        let message = "no RuntimeClass can name this handler (Kubernetes wants a DNS label: a-z, 0-9 and -)";
        warn(warnings, super::keys::child_path("handlers", name), message);
    }
}
