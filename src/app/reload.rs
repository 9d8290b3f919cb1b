//! Reloads: reads the file again, applies what can be applied, and reports the rest.
//!
//! A file with a problem changes nothing. A key that takes effect only at the next start ([`RESTART_KEYS`])
//! is logged when it changes, and stays visible in `crimux status` and a metric until the restart.
//!
//! | configuration | is | tells |
//! |---|---|---|
//! | `started_with` | the one that the process started with | which keys need a restart |
//! | `applied_file` | the file that was applied last | whether the file has changed |
//! | `Node::config`, `effective` | that file, but `started_with` for those keys | what else changes |
//! | `config` | the file as it is now | |

use std::path::PathBuf;
use std::sync::Arc;

use crate::admin::api::ReloadReport;
use crate::app::backends::{Backends, Occasion};
use crate::config::{self, Config, RESTART_KEYS};
use crate::history::ReloadResult;
use crate::plan::{Plan, Wanted};
use crate::proxy::Node;
use crate::{admin, server, telemetry};

/// What a reload compares the file with.
#[derive(Debug)]
pub(super) struct Reloads {
    node: Arc<Node>,
    /// The configuration file.
    path: PathBuf,
    /// The configuration that the process started with.
    started_with: Config,
    /// The file that was applied last.
    applied_file: Config,
    /// Whether systemd owns the file of `listen`.
    is_inherited: bool,
    /// Whether the current configuration could not be applied whole, so that the next reload applies it
    /// again.
    is_partly_applied: bool,
    /// The file as it was when it was read last, if it could not be loaded.
    unloadable: Option<Vec<u8>>,
}

/// Why the file is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trigger {
    /// Something changed in its directory.
    Watch,
    /// SIGHUP, or a request over the admin socket.
    Demand,
}

impl Reloads {
    pub(super) fn new(node: Arc<Node>, path: PathBuf, started_with: Config, is_inherited: bool) -> Self {
        let applied_file = started_with.clone();
        Self {
            node,
            path,
            started_with,
            applied_file,
            is_inherited,
            is_partly_applied: false,
            unloadable: None,
        }
    }

    /// Reads the file again and applies it; `force` also if that takes pods out of kubelet's sight. Every
    /// outcome is counted; all but an unchanged file are recorded. A file that could not be loaded and is
    /// still the same is counted and logged again only on demand: a watch fires for more than a save.
    pub(super) async fn run(
        &mut self,
        backends: &mut Backends,
        trigger: Trigger,
        force: bool,
    ) -> ReloadReport {
        let failed_before = self.node.history.is_reload_failed();
        let (path, file) = (self.path.clone(), std::path::absolute(&self.path));
        // Calls must not wait for files, nor for the look-up of paths and names.
        let load = move || {
            let (bytes, loaded) = Config::load_with_bytes(&path);
            (bytes, loaded.map(|config| (Wanted::of(&config), config)))
        };
        let loaded = tokio::task::spawn_blocking(load).await;
        let (bytes, loaded) = loaded.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let unloadable_before = self.unloadable.take();
        let (result, report) = match loaded {
            Ok((wanted, config)) => self.apply(config, &wanted, backends, force).await,
            Err(error) => {
                let report = ReloadReport { error: Some(error.to_string()), ..ReloadReport::default() };
                let is_same = unloadable_before.as_ref() == Some(&bytes);
                self.unloadable = Some(bytes);
                if trigger == Trigger::Watch && is_same {
                    return report;
                }
                telemetry::log_problems(&error, "configuration not reloaded, the old one stays current");
                (ReloadResult::Failed, report)
            }
        };
        self.node.metrics.count_reload(result);
        // The watcher fires for any change in the file's directory. Only a change is an event, or the end of
        // a failure.
        if result != ReloadResult::Unchanged || failed_before {
            let problem = report.error.as_ref().or(report.refused.as_ref());
            self.node.history.record_reload(result, problem.map(|problem| first_line(problem)));
        }
        let file = file.unwrap_or_else(|_| self.path.clone()).display().to_string();
        ReloadReport { file, ..report }
    }

    /// Plans once, reports that plan, and applies it if it is not refused.
    async fn apply(
        &mut self,
        config: Config,
        wanted: &[Wanted],
        backends: &mut Backends,
        force: bool,
    ) -> (ReloadResult, ReloadReport) {
        let old = self.node.config();
        let plan = Plan::new(&self.node.known_instances(), wanted);
        let planned = admin::report_plan(&self.node, &plan, &config);
        // Also of a file that is refused below: the next start reads it.
        self.note_restart_keys(&config);
        if config == self.applied_file && plan.changes_nothing() && !self.is_partly_applied {
            if self.node.history.is_reload_failed() {
                tracing::info!("the configuration file is valid again and equals the current configuration");
            }
            return (ReloadResult::Unchanged, ReloadReport { applied: true, ..planned });
        }
        if let Some(refused) = planned.refused.as_ref().filter(|_| !force) {
            tracing::error!(refused, "configuration not reloaded, the old one stays current");
            return (ReloadResult::Failed, planned);
        }
        if let Some(warning) = admin::prefix_change(&self.node, &old, &config) {
            tracing::warn!(key = warning.key, "{}", warning.message);
        }
        self.note_removed_handlers(&old, &config);
        telemetry::log_warnings(&config);
        self.applied_file = config.clone();
        let effective = config.with_restart_keys_of(&self.started_with);
        let applied = match backends.carry_out(&plan, &effective, Occasion::Reload).await {
            Ok(()) => self.apply_rest(&old, &effective),
            Err(error) => Err(error),
        };
        self.is_partly_applied = applied.is_err();
        let planned = ReloadReport { refused: None, ..planned };
        match applied {
            Ok(()) => {
                let changes: Vec<_> =
                    planned.plan.iter().chain(&planned.changes).map(String::as_str).collect();
                tracing::info!(changes = changes.join("; "), "configuration reloaded");
                (ReloadResult::Ok, ReloadReport { applied: true, ..planned })
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "configuration partly applied; the next reload goes on with it");
                let error = Some(format!("partly applied: {error}"));
                (ReloadResult::Failed, ReloadReport { partly_applied: true, error, ..planned })
            }
        }
    }

    /// Applies the keys that no backend has: the log filter, and mode and owner of sockets that are bound
    /// already.
    fn apply_rest(&self, old: &Config, new: &Config) -> anyhow::Result<()> {
        if old.log.level != new.log.level {
            telemetry::reload(&new.log)?;
        }
        if (old.listen_mode, old.listen_owner) == (new.listen_mode, new.listen_owner)
            && !self.is_partly_applied
        {
            return Ok(());
        }
        let own = new.backends.values().filter_map(|backend| backend.socket.as_ref());
        let node_socket = (!self.is_inherited).then_some(&self.started_with.listen);
        for socket in own.chain(node_socket) {
            server::set_permissions(socket, new.listen_mode, new.listen_owner)?;
        }
        Ok(())
    }

    /// Logs the handlers that are no longer configured, and remembers them for the verdict.
    fn note_removed_handlers(&self, old: &Config, new: &Config) {
        let (handlers, history) = (self.node.router.handlers(), &self.node.history);
        for handler in old.removed_handlers(new) {
            tracing::warn!(handler, "handler removed: its new sandboxes are refused");
            let targets = handlers.targets_of(handler).unwrap_or_default().iter();
            let targets = targets.map(|(id, target)| (id.0, target.backend_handler.clone())).collect();
            history.record_removed_handler(handler, targets);
        }
        history.retain_removed_handlers(|handler| !new.handlers.contains_key(handler));
    }

    /// Logs, once for each change, the keys of the file that need a restart.
    fn note_restart_keys(&self, new: &Config) {
        let (node, started) = (&self.node, &self.started_with);
        let keys: Vec<_> = started.restart_keys(new).into_iter().collect();
        let state_dir = (started.state_dir != new.state_dir).then(|| new.state_dir.clone());
        if keys == node.history.restart_keys() && state_dir == node.history.new_state_dir() {
            return;
        }
        for key in RESTART_KEYS.iter().filter(|key| keys.contains(key)) {
            if *key == "state_dir" {
                let advice = config::state_dir_advice(&started.state_dir, &new.state_dir);
                tracing::error!(key, "do not restart crimux with this change: {advice}");
            } else {
                tracing::warn!(key, "this change takes effect at the next start");
            }
        }
        node.metrics.set_restart_keys(&keys);
        node.history.set_restart_keys(keys, state_dir);
    }
}

/// Returns the first line of a text, and how many more there are.
fn first_line(text: &str) -> String {
    let first = text.lines().next().unwrap_or_default();
    match text.lines().count().saturating_sub(1) {
        0 => first.to_owned(),
        more => format!("{first} (and {more} more)"),
    }
}
