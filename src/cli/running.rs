//! Compares a file with the running crimux: what a reload of it could not apply, what it would do to the
//! backends and the pods on them, and what it would change for every pod.
//!
//! Without a running crimux there is nothing to compare, and no finding; one that does not answer is a
//! warning. It is looked for at the file's `admin.socket`, and where the one that runs with the file's
//! `state_dir` listens.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::admin::api::{ReloadReport, StatusView};
use crate::admin::effects;
use crate::cli::client::{AdminClient, NoAnswer};
use crate::cli::config_text::ConfigText;
use crate::cli::finding::{Finding, Grade};
use crate::cli::reload::is_same;
use crate::config::{Config, ConfigWarning, Identity, restart_keys, state_dir_advice};

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
    let (running, status) = match read(client).await {
        Ok(read) => read,
        Err(error) if error.is::<NoAnswer>() => {
            let text = format!("not compared with: {error}");
            return vec![Finding::new(Grade::Warning, "running crimux", text)];
        }
        Err(_) => return Vec::new(),
    };
    let keys = restart_keys(&running, &config.view()).into_iter();
    let restart = keys.map(|key| {
        let text = match (key, running["state_dir"].as_str()) {
            ("state_dir", Some(old)) => {
                let advice = state_dir_advice(Path::new(old), &config.state_dir);
                format!("the running crimux has {old}; {advice}")
            }
            _ => "differs from the running crimux; a reload cannot change it, a restart does".to_owned(),
        };
        Finding::new(Grade::Warning, key, text)
    });
    let mut findings: Vec<_> = restart.chain(prefix(config, &running, &status)).collect();
    let is_drained = |name: &str| status.backends.iter().any(|known| known.name == name && known.draining);
    findings.extend(effects::drained_handlers(config, is_drained).into_iter().map(warning));
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

/// Reads the configuration and the status of the running crimux.
async fn read(client: &AdminClient) -> anyhow::Result<(Value, StatusView)> {
    Ok((client.get("/v1/config").await?, client.get("/v1/status").await?))
}

/// What a reload of the file would do to the backends that run.
fn changes(planned: &ReloadReport) -> impl Iterator<Item = Finding> + '_ {
    let steps = planned
        .plan
        .iter()
        .chain(&planned.changes)
        .map(|line| Finding::new(Grade::Note, "reload", line.as_str()));
    let refused = planned
        .refused
        .iter()
        .map(|why| Finding::new(Grade::Warning, "reload", format!("refused without --force: {why}")));
    steps.chain(refused)
}

/// Warns if a reload would change the prefix of every container ID of the node.
fn prefix(config: &Config, running: &Value, status: &StatusView) -> Option<Finding> {
    let is_crimux = running["identity"] == Identity::CRIMUX;
    let identity = if is_crimux { Identity::Crimux } else { Identity::DefaultBackend };
    let runtime_name =
        |backend: &str| status.backends.iter().find(|known| known.name == backend)?.runtime_name.clone();
    let default = running["default_backend"].as_str()?;
    effects::prefix_change((identity, default), config, runtime_name).map(warning)
}

fn warning(ConfigWarning { key, message, .. }: ConfigWarning) -> Finding {
    Finding::new(Grade::Warning, key, message)
}
