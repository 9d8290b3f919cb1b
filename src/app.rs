//! Puts the parts together, keeps them together while the configuration changes, and takes them apart.
//!
//! This is the only place that knows every part. [`App::start`] binds and connects, [`App::run`] waits for what
//! an operator or systemd wants: SIGHUP or a changed file reloads, SIGTERM drains, a second one ends at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

use crate::config::Config;
use crate::drain::Drain;
use crate::metrics::Metrics;
use crate::proxy::{Proxy, ProxyState};
use crate::relay::{Relay, RelayMetrics};
use crate::router::{Handlers, Names, Router};
use crate::server::Listener;
use crate::snapshot::Snapshot;
use crate::{admin, telemetry};
use fleet::Backends;

mod fleet;
mod systemd;
mod watch;

/// How often what is no longer listed is forgotten, and removed backends are looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// How often the runtime wakes at the least.
const PULSE: Duration = Duration::from_millis(500);

/// A running crimux.
#[derive(Debug)]
pub struct App {
    path: PathBuf,
    node: Arc<ProxyState>,
    fleet: Backends,
    drain: Drain,
    servers: JoinSet<()>,
    writer: tokio::task::JoinHandle<()>,
}

impl App {
    /// Starts serving the configuration at `path`.
    ///
    /// # Errors
    /// If the configuration has problems, or a socket cannot be bound.
    pub async fn start(path: &Path) -> anyhow::Result<Self> {
        let config = Config::load(path)?;
        telemetry::start(&config.log)?;
        if let Some(tracing) = &config.tracing {
            telemetry::spans::start(tracing).context("no spans can be sent")?;
        }
        // First of all, so that a second crimux is refused before it touches the state of the first.
        let bound = match systemd::listener(&config.listen)? {
            Some(inherited) => inherited,
            None => Listener::bind(&config.listen, config.listen_mode, config.listen_owner).await?,
        };
        let drain = Drain::default();
        let metrics = Metrics::new()?;
        let (snapshot, warnings) = Snapshot::open(&config.state_dir, &boot_id());
        for warning in warnings {
            tracing::warn!(%warning, "saved state");
        }
        let router = Router::new(Handlers::new(&config, &Names::new()));
        let relay =
            Relay::bind(RelayMetrics::new(&metrics.registry)?).await.context("no port for the relay")?;
        let node =
            ProxyState::new(config.clone(), router, Arc::clone(&snapshot), metrics, Arc::clone(&relay));
        let mut fleet = Backends::new(Arc::clone(&node), drain.clone());
        fleet.apply(&config).await?;
        tokio::spawn(pulse());
        let writer = tokio::spawn(snapshot.run(drain.clone().into_begun()));
        let mut servers = JoinSet::new();
        tracing::info!(listen = %bound.path().display(), backends = config.backends.len(), "serving");
        let proxy = Proxy::new(Arc::clone(&node), None);
        servers.spawn(bound.serve(proxy, drain.clone()));
        servers.spawn(relay.run(drain.clone().into_begun(), config.drain_timeout));
        admin::spawn(&mut servers, &config.admin, &node, &drain).await?;
        Ok(Self { path: path.to_owned(), node, fleet, drain, servers, writer })
    }

    /// Runs until it is told to end.
    ///
    /// # Errors
    /// If signals cannot be waited for.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut terminate = Terminate::new()?;
        let mut changed = watch::changes(&self.path);
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        let watchdog = systemd::watchdog();
        tokio::pin!(watchdog);
        systemd::ready();
        loop {
            tokio::select! {
                _ = hangup.recv() => self.reload().await,
                Some(()) = changed.recv() => self.reload().await,
                _ = housekeeping.tick() => self.fleet.housekeep(),
                () = &mut watchdog => {}
                () = terminate.recv() => break,
            }
        }
        self.end(terminate).await;
        Ok(())
    }

    async fn reload(&mut self) {
        systemd::reloading();
        let result = match Config::load(&self.path) {
            Ok(config) if config == *self.node.config() => "unchanged",
            Ok(config) => match self.fleet.apply(&config).await {
                Ok(()) => {
                    tracing::info!("configuration reloaded");
                    "ok"
                }
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "configuration partly applied");
                    "failed"
                }
            },
            Err(error) => {
                tracing::error!("configuration not reloaded, the old one stays in force:\n{error}");
                "failed"
            }
        };
        self.node.metrics.config_reloads.with_label_values(&[result]).inc();
        // Anything that changes in the file's directory is looked at; only a changed configuration is news.
        if result != "unchanged" {
            self.node.recent.reloaded(result);
        }
        systemd::ready();
    }

    async fn end(mut self, mut terminate: Terminate) {
        let limit = self.node.config().drain_timeout;
        tracing::info!(?limit, "draining");
        systemd::stopping();
        self.drain.begin();
        self.node.end_events();
        let drained = async {
            while self.servers.join_next().await.is_some() {}
            self.fleet.drained().await;
        };
        tokio::select! {
            () = drained => tracing::info!("all calls have ended"),
            () = tokio::time::sleep(limit) => tracing::warn!("calls still in flight are cut"),
            () = terminate.recv() => tracing::warn!("told twice: ending at once"),
        }
        self.fleet.remove_sockets().await;
        if tokio::task::spawn_blocking(telemetry::spans::stop).await.is_err() {
            tracing::error!("the last spans were lost");
        }
        if self.writer.await.is_err() {
            tracing::error!("the last-known state was not written at the end");
        }
    }
}

/// SIGTERM or SIGINT.
struct Terminate {
    term: Signal,
    int: Signal,
}

impl Terminate {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// Identifies this boot: what was running before it is not running now.
fn boot_id() -> String {
    let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("no boot ID");
    read.map_or_else(|_| String::new(), |id| id.trim().to_owned())
}

/// Wakes now and then, for ever. A timer that is to end before all others costs the runtime a system call and a turn
/// when it is set; beside this one, the deadline of a call is never the first.
async fn pulse() {
    let mut pulse = tokio::time::interval(PULSE);
    pulse.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        pulse.tick().await;
    }
}
