//! Starts the parts, keeps them while the configuration changes, and stops them.
//!
//! Only this module knows every part. [`App::start`] binds and connects. [`App::run`] then waits for signals:
//! SIGHUP or a changed file reloads, SIGTERM drains, a second SIGTERM exits at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::admin::ReloadRequest;
use crate::admin::api::ReloadReport;
use crate::config::Config;
use crate::drain::{Drain, DrainResult, Servers};
use crate::metrics::Metrics;
use crate::proxy::{NodeState, Proxy};
use crate::relay::{Relay, RelayMetrics};
use crate::server::Listener;
use crate::side::Side;
use crate::snapshot::{Snapshot, StateLock};
use crate::{admin, telemetry};
use backends::Backends;
use reload::Reloads;

mod backends;
mod reload;
mod systemd;
mod watch;

/// How often owners of vanished objects are forgotten and removed backends are checked.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// Period of [`timer_keepalive`]; shorter than any deadline of a call.
const TIMER_PERIOD: Duration = Duration::from_millis(500);
/// Free bytes that the heap keeps between two runs of [`trim_heap`]: several parts of a large list.
const KEEP_FREE: usize = 8 << 20;

/// Period of [`trim_heap`].
const TRIM_PERIOD: Duration = Duration::from_secs(3);

/// A running crimux.
#[derive(Debug)]
pub struct App {
    /// Yields after each change of the file since before it was read.
    changed: mpsc::Receiver<()>,
    node: Arc<NodeState>,
    backends: Backends,
    reloads: Reloads,
    /// Yields the reloads that operators ask for.
    requests: mpsc::Receiver<ReloadRequest>,
    drain: Drain,
    servers: Servers,
    writer: tokio::task::JoinHandle<()>,
    _lock: StateLock,
}

impl App {
    /// Starts serving the configuration at `path`.
    ///
    /// # Errors
    /// If the configuration has problems, or a socket cannot be bound.
    pub async fn start(path: &Path) -> anyhow::Result<Self> {
        let (changed, not_watched) = watch::changes(path);
        let config = Config::load(path)?;
        telemetry::start(&config.log)?;
        if let Some(error) = not_watched {
            tracing::warn!(%error, "the configuration file is not watched; SIGHUP reloads it");
        }
        if let Some(tracing) = &config.tracing {
            telemetry::spans::start(tracing).context("spans cannot be exported")?;
        }
        // Before anything else, so that a second crimux is refused before it touches the state of the first.
        let inherited = systemd::listener(&config.listen)?;
        let is_inherited = inherited.is_some();
        let listener = match inherited {
            Some(inherited) => inherited,
            None => Listener::bind(&config.listen, config.listen_mode, config.listen_owner).await?,
        };
        let drain = Drain::default();
        let metrics = Metrics::new()?;
        let lock = StateLock::take(&config.state_dir).context("a second crimux is refused")?;
        let mark = mark_of(&config);
        let (snapshot, warnings) = Snapshot::open_marked(&config.state_dir, &boot_id(), Some(mark));
        for warning in warnings {
            tracing::warn!(%warning, "saved state");
        }
        if let Err(error) = snapshot.start_journal_thread() {
            tracing::warn!(%error, "the journal has no thread of its own: calls wait for the disk");
        }
        let side = Side::start().context("no thread beside that of the calls")?;
        let relay_metrics = RelayMetrics::new(metrics.registry())?;
        let relay = side
            .run(Relay::bind(relay_metrics))
            .await?
            .context("the relay cannot listen on a port of 127.0.0.1")?;
        let node = NodeState::new(config.clone(), Arc::clone(&snapshot), metrics, Arc::clone(&relay));
        let mut backends = Backends::new(Arc::clone(&node), drain.clone(), side.clone());
        backends.apply(&config).await?;
        tokio::spawn(timer_keepalive(Arc::clone(&node.metrics)));
        side.handle().spawn(trim_heap());
        let writer = tokio::spawn(snapshot.run(drain.clone().into_begun()));
        let limit = Arc::clone(&node);
        let mut servers = Servers::new(drain.clone(), move || limit.config().drain_timeout);
        tracing::info!(listen = %listener.path().display(), backends = config.backends.len(), "serving");
        let proxy = Proxy::new(Arc::clone(&node), None);
        servers.spawn("listen", &Handle::current(), listener.serve(proxy, drain.clone()));
        servers.spawn("relay", side.handle(), relay.run(drain.clone()));
        let (reload, requests) = mpsc::channel(1);
        admin::spawn(&mut servers, &node, &side, reload).await?;
        let reloads = Reloads::new(Arc::clone(&node), path.to_owned(), config, is_inherited);
        Ok(Self { changed, node, backends, reloads, requests, drain, servers, writer, _lock: lock })
    }

    /// Runs until SIGTERM or SIGINT, then drains.
    ///
    /// # Errors
    /// If a signal handler cannot be installed.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut shutdown = ShutdownSignal::new()?;
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        let watchdog = systemd::watchdog();
        tokio::pin!(watchdog);
        let node = Arc::clone(&self.node);
        systemd::ready();
        loop {
            tokio::select! {
                _ = hangup.recv() => drop(self.reload(false).await),
                Some(()) = self.changed.recv() => drop(self.reload(false).await),
                Some(request) = self.requests.recv() => {
                    let report = self.reload(request.force).await;
                    // The operator may have left.
                    request.reply.send(report).ok();
                }
                () = node.moved_backend_listed() => self.backends.resolve_moved(),
                _ = housekeeping.tick() => self.backends.housekeep(),
                () = &mut watchdog => {}
                () = shutdown.recv() => break,
            }
        }
        self.shut_down(shutdown).await;
        Ok(())
    }

    async fn reload(&mut self, force: bool) -> ReloadReport {
        systemd::reloading();
        let report = self.reloads.run(&mut self.backends, force).await;
        systemd::ready();
        report
    }

    async fn shut_down(mut self, mut shutdown: ShutdownSignal) {
        let limit = self.node.config().drain_timeout;
        tracing::info!(?limit, "draining");
        systemd::stopping();
        self.drain.begin();
        self.node.end_events();
        let drained = async {
            let of_backends = self.backends.drain(limit).await;
            let of_servers = self.servers.join().await;
            [of_backends, of_servers].iter().all(|result| *result == DrainResult::Finished)
        };
        tokio::select! {
            finished = drained => if finished { tracing::info!("all calls have ended") },
            () = shutdown.recv() => tracing::warn!("second signal: exiting immediately"),
        }
        self.backends.remove_sockets().await;
        if tokio::task::spawn_blocking(telemetry::spans::stop).await.is_err() {
            tracing::error!("the last spans were lost");
        }
        if self.writer.await.is_err() {
            tracing::error!("the last-known state was not written at the end");
        }
        self.node.snapshot.close().await;
    }
}

/// SIGTERM or SIGINT.
struct ShutdownSignal {
    term: Signal,
    int: Signal,
}

impl ShutdownSignal {
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

/// Returns the file that says of the saved state that it is not whole, where nothing can be changed in
/// `state_dir`.
fn mark_of(config: &Config) -> PathBuf {
    let mut name = config.listen.clone().into_os_string();
    name.push(".state-not-whole");
    name.into()
}

/// Returns the kernel's boot ID; empty if it cannot be read. Sandboxes saved under another ID are not running
/// now.
fn boot_id() -> String {
    let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    read.map_or_else(|_| String::new(), |id| id.trim().to_owned())
}

/// Keeps one earlier timer armed at all times, and measures by it how long the thread of the calls was held
/// up. Arming a timer that becomes the earliest one costs tokio an extra wake-up, and per-call deadlines
/// would otherwise pay it.
async fn timer_keepalive(metrics: Arc<Metrics>) {
    loop {
        let due = Instant::now() + TIMER_PERIOD;
        tokio::time::sleep_until(due).await;
        metrics.record_stall(due.elapsed());
    }
}

/// Returns to the system what calls have freed, every [`TRIM_PERIOD`]; until then it is used again.
async fn trim_heap() {
    malloc_trim::keep_free(KEEP_FREE);
    loop {
        tokio::time::sleep(TRIM_PERIOD).await;
        malloc_trim::malloc_trim();
    }
}
