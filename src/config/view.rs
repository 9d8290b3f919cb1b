//! The current configuration in the form of the file, defaults included: `crimux config view`.
//!
//! The view can be loaded again and means the same. It has no secrets, because a configuration holds none:
//! keys and certificates are paths.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::loopback::is_certainly_loopback;
use super::{
    BackendConfig, Config, Endpoint, Identity, ImageHandler, LogFormat, RelayMode, StatsPolicy, Target,
};

impl Config {
    /// Returns all keys with their current values, as the file would have them.
    pub fn view(&self) -> Value {
        let owner = self.listen_owner.map_or_else(|| "self".to_owned(), |(uid, gid)| format!("{uid}:{gid}"));
        let http = self.admin.http.map_or_else(|| "off".to_owned(), |address| address.to_string());
        let backends: BTreeMap<_, _> =
            self.backends.iter().map(|(name, backend)| (name, backend_view(backend))).collect();
        let handlers: BTreeMap<_, _> =
            self.handlers.iter().map(|(name, targets)| (name, handler_view(targets))).collect();
        let mut view = json!({
            "listen": format!("unix://{}", self.listen.display()),
            "listen_mode": format!("{:04o}", self.listen_mode),
            "listen_owner": owner,
            "state_dir": self.state_dir.display().to_string(),
            "admin": { "socket": self.admin.socket.display().to_string(), "http": http },
            "identity": match self.identity {
                Identity::DefaultBackend => "default-backend",
                Identity::Crimux => Identity::CRIMUX,
            },
            "default_backend": self.default_backend,
            "backends": backends,
            "handlers": handlers,
            "limits": {
                "connections": self.limits.connections,
                "streams": self.limits.streams,
                "metadata_kib": self.limits.metadata_bytes >> 10,
                "requests_mib": self.limits.request_bytes >> 20,
                "unread_mib": self.limits.unread_bytes >> 20,
                "list_mib": self.limits.list_bytes >> 20,
            },
            "drain_timeout": duration(self.drain_timeout),
            "handover_timeout": duration(self.handover_timeout),
            "pod_sandbox_stats": match self.pod_sandbox_stats {
                StatsPolicy::Unimplemented => "unimplemented",
                StatsPolicy::Union => "union",
            },
            "events": { "buffer": self.events.buffer, "grace": duration(self.events.grace) },
            "log": {
                "format": match self.log.format { LogFormat::Text => "text", LogFormat::Json => "json" },
                "level": self.log.level,
            },
        });
        if !self.default_split.is_empty() {
            view["default_split"] = shares_view(&self.default_split);
        }
        if let Some(driver) = self.cgroup_driver {
            view["cgroup_driver"] = json!(driver.word());
        }
        view["tracing"] = match &self.tracing {
            Some(tracing) => json!({ "otlp": tracing.otlp, "sample_ratio": tracing.sample_ratio }),
            None => json!({ "otlp": "off" }),
        };
        view
    }
}

fn backend_view(backend: &BackendConfig) -> Value {
    let mut view = json!({
        "endpoint": backend.endpoint.to_string(),
        "required": backend.required,
        "optional": backend.optional,
        "local": backend.local,
        "max_in_flight": backend.max_in_flight,
        "image_handler": match backend.image_handler {
            ImageHandler::Auto => "auto",
            ImageHandler::Never => "never",
        },
        "timeouts": {
            "connect": duration(backend.timeouts.connect),
            "list": duration(backend.timeouts.list),
            "read": duration(backend.timeouts.read),
            "stats": duration(backend.timeouts.stats),
            "runtime_config": duration(backend.timeouts.runtime_config),
            "remove_image": duration(backend.timeouts.remove_image),
        },
        "streaming": {
            "relay": match backend.streaming.relay {
                RelayMode::Auto => "auto",
                RelayMode::Always => "always",
                RelayMode::Never => "never",
            },
            "tls": backend.streaming.tls,
        },
    });
    if let Some(socket) = &backend.socket {
        view["socket"] = json!(socket.display().to_string());
    }
    if let Some((host, port)) = &backend.streaming.address {
        view["streaming"]["address"] = json!(host_and_port(host, *port));
    }
    if let Some(tls) = &backend.tls {
        let mut keys = Map::from_iter([("ca".to_owned(), json!(tls.ca.display().to_string()))]);
        for (key, path) in [("cert", &tls.cert), ("key", &tls.key)] {
            keys.extend(path.as_ref().map(|path| (key.to_owned(), json!(path.display().to_string()))));
        }
        keys.extend(tls.server_name.as_ref().map(|name| ("server_name".to_owned(), json!(name))));
        view["tls"] = Value::Object(keys);
    }
    if matches!(&backend.endpoint, Endpoint::Tcp { host, tls: false, .. } if !is_certainly_loopback(host)) {
        view["insecure"] = json!(true);
    }
    view
}

fn handler_view(targets: &[Target]) -> Value {
    match targets {
        [target] if target.weight == 1 => target_view(target),
        shares => json!({ "split": shares_view(shares) }),
    }
}

fn shares_view(shares: &[Target]) -> Value {
    let share = |target: &Target| {
        let mut share = target_view(target);
        share["weight"] = json!(target.weight);
        share
    };
    shares.iter().map(share).collect()
}

fn target_view(target: &Target) -> Value {
    let mut view = json!({ "backend": target.backend });
    if !target.backend_handler.is_empty() {
        view["handler"] = json!(target.backend_handler);
    }
    view
}

/// Formats a duration as the file has it: `1m30s`.
fn duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string().replace(' ', "")
}

fn host_and_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { host, port, tls } => {
                write!(f, "{}://{}", if *tls { "https" } else { "http" }, host_and_port(host, *port))
            }
            Self::Vsock { cid, port } => write!(f, "vsock://{cid}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::keys::{DefaultValue, KEYS};

    #[test]
    fn the_view_is_the_configuration_again() {
        let example = include_str!("../../config.example.yaml");
        let minimal = "default_backend: a\nbackends: { a: { endpoint: unix:///a.sock } }\n";
        let remote = "listen_owner: self\ndrain_timeout: 1500ms\nadmin: { http: off }\ndefault_backend: a\nbackends:\n  \
                      a: { endpoint: 'http://10.0.0.1:1', insecure: true, streaming: { address: '[::1]:2' } }\n  \
                      b: { endpoint: 'https://[fd00::1]:1', tls: { ca: /ca, cert: /c, key: /k, server_name: n } }\n\
                      handlers: { s: { split: [ { backend: a, weight: 9 }, { backend: b, handler: x, weight: 1 } ] } }\n\
                      default_split: [ { backend: a, weight: 3 }, { backend: b, handler: y } ]\n";
        for text in [example, minimal, remote] {
            let config = Config::parse(text, Path::new("/etc/crimux")).expect("a valid configuration");
            let view = config.view().to_string();
            assert_eq!(Config::parse(&view, Path::new("/")).expect("the view is valid"), config, "{view}");
        }
    }

    /// The keys that have a value of their own in every file.
    #[test]
    fn the_view_has_every_key_that_has_a_default() {
        let minimal = "default_backend: a\nbackends: { a: { endpoint: unix:///a.sock } }\n";
        let view = Config::parse(minimal, Path::new("/")).expect("a valid configuration").view();
        for key in KEYS.iter().filter(|key| matches!(key.default, DefaultValue::Is(_))) {
            // What depends on another key: the shares of a split, and what a backend or a collector adds.
            if key.path.contains("[]") || ["insecure", "sample_ratio"].contains(&key.name()) {
                continue;
            }
            let pointer = format!("/{}", key.path.replace("backends.*", "backends.a").replace('.', "/"));
            assert!(view.pointer(&pointer).is_some(), "{}: {view}", key.path);
        }
    }
}
