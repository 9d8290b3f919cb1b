//! Warnings about a configuration that is valid but perhaps not intended.
//!
//! They are computed from the checked configuration, not from the file. A warning refuses nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use super::loopback::is_certainly_loopback;
use super::{Config, Endpoint, values};

/// One warning: `key: message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigWarning {
    /// The key it is about.
    pub key: String,
    /// What follows from its value.
    pub message: String,
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
        listener(self, &mut warnings);
        backends(self, &mut warnings);
        handlers(self, &mut warnings);
        warnings
    }
}

fn warn(warnings: &mut Vec<ConfigWarning>, key: impl Into<String>, message: impl Into<String>) {
    warnings.push(ConfigWarning { key: key.into(), message: message.into() });
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
                "backends.{other} has the same endpoint ({canonical}); what both list is served by one of them"
            );
            warn(warnings, &key, message);
        } else {
            seen.insert(canonical, name);
        }
    }
}

fn handlers(config: &Config, warnings: &mut Vec<ConfigWarning>) {
    for name in config.handlers.keys().filter(|name| !values::is_label(name)) {
        let message = "no RuntimeClass can name this handler (Kubernetes wants a DNS label: a-z, 0-9 and -)";
        warn(warnings, super::keys::child_path("handlers", name), message);
    }
}
