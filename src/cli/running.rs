//! Compares a file with the running crimux: what a reload of it could not apply, what it would do to the
//! backends and the pods on them, and what it would change for every pod.
//!
//! Without a running crimux there is nothing to compare, and no finding. It is looked for at the file's
//! `admin.socket`, and where the one that runs with the file's `state_dir` listens.

use std::iter;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::admin::api::{ReloadReport, StatusView};
use crate::cli::client::AdminClient;
use crate::cli::config_text::ConfigText;
use crate::cli::finding::{Finding, Grade};
use crate::cli::reload::is_same;
use crate::config::keys::child_path;
use crate::config::{Config, Identity, Target, restart_keys};

/// A check must not hang with a hung crimux.
pub(super) const TIMEOUT: Duration = Duration::from_secs(1);

/// Says if the running crimux reads another file than this one, which was `named` or is the default.
pub(super) async fn other_file(client: &AdminClient, file: &Path, named: bool) -> Option<Finding> {
    let status: StatusView = client.get("/v1/status").await.ok()?;
    let other = status.config_file;
    if other.is_empty() || file == Path::new("-") || is_same(file, &other) {
        return None;
    }
    let grade = if named { Grade::Note } else { Grade::Warning };
    Some(Finding::new(grade, "running crimux", format!("it reads {other}, not {}", file.display())))
}

pub(super) async fn compare(client: &AdminClient, config: &Config, text: &ConfigText) -> Vec<Finding> {
    let (Ok(running), Ok(status)) =
        (client.get::<Value>("/v1/config").await, client.get::<StatusView>("/v1/status").await)
    else {
        return Vec::new();
    };
    let keys = restart_keys(&running, &config.view()).into_iter();
    let restart = keys.map(|key| {
        let text = "differs from the running crimux; a reload cannot change it, a restart does";
        Finding::new(Grade::Warning, key, text)
    });
    let mut findings: Vec<_> = restart.chain(prefix(config, &running, &status)).collect();
    findings.extend(cut_off(config, &status));
    let removed = status.backends.iter().filter(|backend| !backend.configured && backend.sandboxes > 0);
    findings.extend(removed.map(|backend| {
        let pods =
            if backend.sandboxes == 1 { "1 pod".to_owned() } else { format!("{} pods", backend.sandboxes) };
        let text = format!("not configured, {pods} on it; it is served until it owns nothing");
        Finding::new(Grade::Note, backend.name.as_str(), text)
    }));
    if let Ok(planned) = text.plan(client).await {
        findings.extend(changes(&planned));
    }
    findings
}

/// Warns of handlers all of whose backends the operator has drained.
fn cut_off(config: &Config, status: &StatusView) -> impl Iterator<Item = Finding> {
    let is_drained = |name: &str| status.backends.iter().any(|known| known.name == name && known.draining);
    let own = [Target { backend: config.default_backend.clone(), backend_handler: String::new(), weight: 1 }];
    let default = if config.default_split.is_empty() { own.to_vec() } else { config.default_split.clone() };
    let key = if config.default_split.is_empty() { "default_backend" } else { "default_split" };
    let handlers =
        config.handlers.iter().map(|(name, targets)| (child_path("handlers", name), targets.clone()));
    let cut_off = iter::once((key.to_owned(), default)).chain(handlers).filter_map(|(key, targets)| {
        let takers: Vec<_> = targets.into_iter().filter(|target| target.weight > 0).collect();
        takers.iter().all(|target| is_drained(&target.backend)).then_some((key, takers))
    });
    let finding = |(key, takers): (String, Vec<Target>)| {
        let names: Vec<_> = takers.into_iter().map(|target| target.backend).collect();
        let text = format!(
            "its new sandboxes are refused: drained by the operator: {} (crimux backend undrain)",
            names.join(", ")
        );
        Finding::new(Grade::Warning, key, text)
    };
    cut_off.map(finding).collect::<Vec<_>>().into_iter()
}

/// What a reload of the file would do to the backends that run.
fn changes(planned: &ReloadReport) -> impl Iterator<Item = Finding> + '_ {
    let steps = planned.plan.iter().map(|line| Finding::new(Grade::Note, "reload", line.as_str()));
    let refused = planned
        .refused
        .iter()
        .map(|why| Finding::new(Grade::Warning, "reload", format!("refused without --force: {why}")));
    steps.chain(refused)
}

/// Warns if a reload would change the prefix of every container ID of the node.
fn prefix(config: &Config, running: &Value, status: &StatusView) -> Option<Finding> {
    let from = running["default_backend"].as_str()?;
    let name = |is_crimux: bool, backend: &str| {
        if is_crimux {
            return Some(Identity::CRIMUX.to_owned());
        }
        let backend = status.backends.iter().find(|known| known.name == backend)?;
        backend.runtime_name.clone()
    };
    let (was_crimux, is_crimux) =
        (running["identity"] == Identity::CRIMUX, config.identity == Identity::Crimux);
    let (old, new) = (name(was_crimux, from)?, name(is_crimux, &config.default_backend));
    if new.as_ref() == Some(&old) {
        return None;
    }
    let new = new.unwrap_or_else(|| "another name".to_owned());
    let text =
        format!("a reload changes the prefix of every container ID of the node from {old}:// to {new}://");
    let key = if was_crimux == is_crimux { "default_backend" } else { "identity" };
    Some(Finding::new(Grade::Warning, key, text))
}
