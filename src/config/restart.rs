//! The keys whose change takes effect only at the next start.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::{Config, Log};

/// Sockets, files and exporters are opened once, at the start. Every other key takes effect at a reload.
pub const RESTART_KEYS: [&str; 7] = [
    "listen",
    "state_dir",
    "admin.socket",
    "admin.http",
    "log.format",
    "tracing.otlp",
    "tracing.sample_ratio",
];

/// Returns the [`RESTART_KEYS`] that differ between two views of a configuration ([`Config::view`]).
pub fn restart_keys(running: &Value, new: &Value) -> BTreeSet<&'static str> {
    let value = |view: &Value, key: &str| view.pointer(&format!("/{}", key.replace('.', "/"))).cloned();
    RESTART_KEYS.into_iter().filter(|key| value(running, key) != value(new, key)).collect()
}

/// Says what to do where a file names another `state_dir` than the running process has. The other one is
/// empty: what a backend that is down owns would be unknown.
pub fn state_dir_advice(old: &Path, new: &Path) -> String {
    let (old, new) = (old.display(), new.display());
    format!(
        "take that back, or stop crimux, copy {old} to {new} and start it; \
         without the copy the pods of backends that are down are unknown"
    )
}

impl Config {
    /// Returns the keys of `new` that a process which started with this configuration cannot apply.
    pub fn restart_keys(&self, new: &Self) -> BTreeSet<&'static str> {
        restart_keys(&self.view(), &new.view())
    }

    /// Returns the effective configuration of a process that started with `started` and reloaded this one:
    /// this one, with the values of [`RESTART_KEYS`] of `started`.
    #[must_use]
    pub fn with_restart_keys_of(self, started: &Self) -> Self {
        Self {
            listen: started.listen.clone(),
            state_dir: started.state_dir.clone(),
            admin: started.admin.clone(),
            log: Log { format: started.log.format, ..self.log },
            tracing: started.tracing.clone(),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_opened_at_the_start_needs_a_restart() {
        let base = "default_backend: a\nbackends: { a: { endpoint: unix:///a.sock } }\n";
        let parse = |text: &str| Config::parse(text, Path::new("/")).expect("a valid configuration");
        for (change, keys) in [
            ("listen: /run/other.sock\n", vec!["listen"]),
            ("admin: { socket: /run/other.sock, http: off }\n", vec!["admin.http", "admin.socket"]),
            ("log: { format: json, level: debug }\n", vec!["log.format"]),
            ("tracing: { otlp: 'http://127.0.0.1:1' }\n", vec!["tracing.otlp", "tracing.sample_ratio"]),
            ("listen_mode: '0600'\nlisten_owner: self\ndrain_timeout: 1s\nidentity: crimux\n", vec![]),
        ] {
            let found = parse(base).restart_keys(&parse(&format!("{base}{change}")));
            assert_eq!(found.into_iter().collect::<Vec<_>>(), keys, "{change}");
            let effective = parse(&format!("{base}{change}")).with_restart_keys_of(&parse(base));
            assert!(parse(base).restart_keys(&effective).is_empty(), "{change}");
        }
    }
}
