//! What a reload of a configuration would change that the file does not show: `crimux check`, `crimux reload`
//! and the log say it alike.

use std::iter;

use crate::config::keys::child_path;
use crate::config::{Config, ConfigWarning, Identity, Target};

/// Warns if the prefix of every container ID of the node changes: with the default backend, or with whose
/// name `Version` reports. `old` is the identity and the default backend until then, `runtime_name` the
/// runtime's name of a backend, if it is known.
pub(crate) fn prefix_change(
    old: (Identity, &str),
    new: &Config,
    runtime_name: impl Fn(&str) -> Option<String>,
) -> Option<ConfigWarning> {
    let name = |identity, backend: &str| match identity {
        Identity::Crimux => Some(Identity::CRIMUX.to_owned()),
        Identity::DefaultBackend => runtime_name(backend),
    };
    let from = name(old.0, old.1)?;
    let to = name(new.identity, &new.default_backend);
    if to.as_ref() == Some(&from) {
        return None;
    }
    let to = to.map_or_else(|| "another name".to_owned(), |to| format!("{to}://"));
    let key = if old.0 == new.identity { "default_backend" } else { "identity" };
    let message =
        format!("a reload changes the prefix of every container ID of the node from {from}:// to {to}");
    Some(ConfigWarning { key: key.to_owned(), message, is_mistake: false })
}

/// Warns of handlers all of whose backends the operator has drained.
pub(crate) fn drained_handlers(config: &Config, is_drained: impl Fn(&str) -> bool) -> Vec<ConfigWarning> {
    let own = [Target { backend: config.default_backend.clone(), backend_handler: String::new(), weight: 1 }];
    let (key, default) = if config.default_split.is_empty() {
        ("default_backend", &own[..])
    } else {
        ("default_split", &config.default_split[..])
    };
    let handlers = config.handlers.iter().map(|(name, targets)| (child_path("handlers", name), &targets[..]));
    let warning = |(key, targets): (String, &[Target])| {
        let takers = targets.iter().filter(|target| target.weight > 0).map(|target| target.backend.as_str());
        let takers: Vec<_> = takers.collect();
        takers.iter().all(|backend| is_drained(backend)).then(|| {
            let names = takers.join(", ");
            let message = format!(
                "its new sandboxes are refused: drained by the operator: {names} (crimux backend undrain)"
            );
            ConfigWarning { key, message, is_mistake: false }
        })
    };
    iter::once((key.to_owned(), default)).chain(handlers).filter_map(warning).collect()
}
