//! Starts the parts, keeps them while the configuration changes, and stops them.
//!
//! Only this module knows every part. [`App::start`] binds and connects. [`App::run`] then waits for signals:
//! SIGHUP or a changed file reloads, SIGTERM drains, a second SIGTERM exits at once. `upgrade.rs` hands over
//! to another process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::admin::api::ReloadReport;
use crate::admin::{ReloadRequest, Requests, UpgradeRequest};
use crate::config::Config;
use crate::handover::HandoverMessage;
use crate::metrics::Metrics;
use crate::plan::{Plan, Wanted};
use crate::proxy::{Node, Proxy};
use crate::relay::{Relay, RelayMetrics};
use crate::server::{Listener, Sockets};
use crate::shutdown::{Servers, Shutdown, ShutdownResult};
use crate::side::Side;
use crate::state::{StateLock, StateStore};
use crate::{admin, telemetry};
use backends::{Backends, Occasion};
use predecessor::{HandedState, Predecessor};
use reload::{Reloads, Trigger};
use upgrade::Upgraded;
use writer::Writer;

mod backends;
mod predecessor;
mod reload;
mod successor;
mod systemd;
mod upgrade;
mod watch;
mod writer;

/// How often owners of vanished objects are forgotten and removed backends are checked.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// Period of [`timer_keepalive`]; shorter than any deadline of a call.
const TIMER_PERIOD: Duration = Duration::from_millis(500);
/// The shortest stall of the thread of the calls that is logged.
const LOGGED_STALL: Duration = Duration::from_secs(5);
/// Free bytes that the heap keeps between two runs of [`trim_heap`]: several parts of a large list.
const KEEP_FREE: usize = 8 << 20;

/// Period of [`trim_heap`].
const TRIM_PERIOD: Duration = Duration::from_secs(3);

/// A running crimux.
#[derive(Debug)]
pub struct App {
    /// The configuration file.
    path: PathBuf,
    state_dir: PathBuf,
    /// Yields after each change of the file. It watches from before the first reading on, so that no change
    /// is missed.
    changed: mpsc::Receiver<()>,
    node: Arc<Node>,
    backends: Backends,
    reloads: Reloads,
    /// Yields the reloads that operators ask for.
    requests: mpsc::Receiver<ReloadRequest>,
    /// Yields the upgrades that operators ask for.
    upgrades: mpsc::Receiver<UpgradeRequest>,
    shutdown: Shutdown,
    servers: Servers,
    sockets: Sockets,
    relay: Arc<Relay>,
    relay_shutdown: Shutdown,
    writer: Writer,
    lock: Arc<StateLock>,
    /// The process that this one has taken over from.
    predecessor: Option<Arc<Predecessor>>,
    /// Completes once that process has ended.
    followed: Option<JoinHandle<()>>,
    /// The signals that end this process, if they are awaited since before it serves.
    signal: Option<ShutdownSignal>,
}

impl App {
    /// Starts serving the configuration at `path`; with `take_over`, in the place of the process at the other
    /// end of the standard input.
    ///
    /// # Errors
    /// If the configuration has problems, or a socket cannot be bound.
    pub async fn start(path: &Path, take_over: bool) -> anyhow::Result<Self> {
        let predecessor = if take_over { Predecessor::attach().await? } else { None };
        let started = Box::pin(Self::start_after(predecessor.as_ref(), path)).await;
        match (started, predecessor) {
            (Ok(mut app), Some(predecessor)) => {
                // An operator who is told that this process serves may end it.
                app.signal = Some(ShutdownSignal::new()?);
                predecessor.replace(&app.node).await;
                app.sockets.open();
                let predecessor = Arc::new(predecessor);
                let following = Arc::clone(&predecessor).follow(Arc::clone(&app.node));
                app.followed = Some(tokio::spawn(following));
                app.predecessor = Some(predecessor);
                Ok(app)
            }
            (Err(error), Some(predecessor)) => {
                predecessor.refuse(&error).await;
                Err(error)
            }
            (started, None) => started,
        }
    }

    async fn start_after(predecessor: Option<&Predecessor>, path: &Path) -> anyhow::Result<Self> {
        let (changed, not_watched) = watch::changes(path);
        let config = Config::load(path)?;
        start_telemetry(&config, not_watched)?;
        // Before anything else, so that a second crimux is refused before it touches the state of the first.
        let sockets = predecessor.map_or_else(Sockets::fresh, Predecessor::sockets);
        telemetry::log_warnings(&config);
        let (listener, is_inherited) = listen(&config, &sockets).await?;
        let shutdown = Shutdown::default();
        let metrics = Metrics::new()?;
        let (lock, handed_changes) = take_lock(predecessor, &config).await?;
        let store = open_state_store(&config);
        let side = Side::start().context("no thread beside that of the calls")?;
        let relay_metrics = RelayMetrics::new(metrics.registry())?;
        let relay = side
            .run(Relay::bind(relay_metrics))
            .await?
            .context("the relay cannot listen on a port of 127.0.0.1")?;
        let node = Node::new(config.clone(), Arc::clone(&store), metrics, Arc::clone(&relay));
        let mut backends = Backends::new(Arc::clone(&node), shutdown.clone(), side.clone(), sockets.clone());
        let plan = Plan::new(&node.known_instances(), &Wanted::of(&config));
        backends.carry_out(&plan, &config, Occasion::Start).await?;
        if let Some(changes) = handed_changes {
            tokio::spawn(predecessor::follow_changes(Arc::clone(&node), changes));
        }
        tokio::spawn(timer_keepalive(Arc::clone(&node.metrics)));
        side.handle().spawn(trim_heap());
        let mut writer = Writer::default();
        writer.start(&store, &shutdown);
        let (mut servers, relay_shutdown) = (servers(&node, &shutdown), Shutdown::default());
        let (sandboxes, containers) = node.router.owners.count_all();
        let backends_named = config.backends.len();
        tracing::info!(listen = %listener.path().display(), backends = backends_named, sandboxes, containers, "serving");
        let proxy = Proxy::new(Arc::clone(&node), None);
        servers.spawn("listen", &Handle::current(), listener.serve(proxy, shutdown.clone()));
        servers.spawn("relay", side.handle(), Arc::clone(&relay).run(relay_shutdown.clone()));
        let ((reload, requests), (upgrade, upgrades)) = (mpsc::channel(1), mpsc::channel(1));
        admin::spawn(&mut servers, &node, &side, &sockets, path, Requests { reload, upgrade }).await?;
        let (path, state_dir) = (path.to_owned(), config.state_dir.clone());
        let reloads = Reloads::new(Arc::clone(&node), path.clone(), config, is_inherited);
        let (lock, predecessor, followed) = (Arc::new(lock), None, None);
        Ok(Self {
            path,
            state_dir,
            changed,
            node,
            backends,
            reloads,
            requests,
            upgrades,
            shutdown,
            servers,
            sockets,
            relay,
            relay_shutdown,
            writer,
            lock,
            predecessor,
            followed,
            signal: None,
        })
    }

    /// Runs until SIGTERM or SIGINT, then drains; or until another process has taken over and the calls of
    /// this one have ended.
    ///
    /// # Errors
    /// If a signal handler cannot be installed.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut signal = self.signal.take().map_or_else(ShutdownSignal::new, Ok)?;
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        let watchdog = systemd::watchdog();
        tokio::pin!(watchdog);
        let node = Arc::clone(&self.node);
        // Others are refused while one is under way, which borrows everything else.
        let mut upgrades = std::mem::replace(&mut self.upgrades, mpsc::channel(1).1);
        systemd::ready();
        loop {
            tokio::select! {
                _ = hangup.recv() => drop(self.reload(Trigger::Demand, false).await),
                Some(()) = self.changed.recv() => drop(self.reload(Trigger::Watch, false).await),
                Some(request) = self.requests.recv() => {
                    let report = self.reload(Trigger::Demand, request.force).await;
                    // The operator may have left.
                    request.reply.send(report).ok();
                }
                Some(request) = upgrades.recv() => {
                    let outcome = self.upgrade(request, &mut upgrades, &mut signal, watchdog.as_mut());
                    match outcome.await {
                        Upgraded::Failed => {}
                        Upgraded::ToldToEnd => break,
                        Upgraded::HandedOver(handed) => {
                            self.finish(*handed, signal).await;
                            return Ok(());
                        }
                    }
                }
                () = node.moved_backend_listed() => self.backends.resolve_moved(),
                _ = housekeeping.tick() => if self.backends.housekeep() {
                    housekeeping.reset_after(backends::IDLE);
                },
                () = &mut watchdog => {}
                () = signal.recv() => break,
            }
        }
        self.shut_down(signal).await;
        Ok(())
    }

    async fn reload(&mut self, trigger: Trigger, force: bool) -> ReloadReport {
        systemd::reloading();
        let report = self.reloads.run(&mut self.backends, trigger, force).await;
        systemd::ready();
        report
    }

    async fn shut_down(mut self, mut signal: ShutdownSignal) {
        let limit = self.node.config().drain_timeout;
        tracing::info!(?limit, "draining");
        systemd::stopping();
        if let Some(predecessor) = &self.predecessor {
            predecessor.tell(HandoverMessage::End).await;
        }
        self.shutdown.begin();
        self.relay_shutdown.begin();
        self.node.end_events();
        let drained = async {
            let of_backends = self.backends.finish_calls(limit).await;
            let of_servers = self.servers.join().await;
            [of_backends, of_servers].iter().all(|result| *result == ShutdownResult::Finished)
        };
        tokio::select! {
            finished = drained => if finished { tracing::info!("all calls have ended") },
            () = signal.recv() => tracing::warn!("second signal: exiting immediately"),
        }
        self.backends.remove_sockets().await;
        self.writer.stop().await;
        close(&self.node).await;
    }
}

/// Ends what a process has beside its calls.
async fn close(node: &Node) {
    if tokio::task::spawn_blocking(telemetry::spans::stop).await.is_err() {
        tracing::error!("the last spans were lost");
    }
    node.state_store.close().await;
}

/// Starts the log and the export of spans.
fn start_telemetry(config: &Config, not_watched: Option<notify::Error>) -> anyhow::Result<()> {
    telemetry::start(&config.log)?;
    if let Some(error) = not_watched {
        tracing::warn!(%error, "the configuration file is not watched; SIGHUP reloads it");
    }
    if let Some(tracing) = &config.tracing {
        telemetry::spans::start(tracing).context("spans cannot be exported")?;
    }
    Ok(())
}

/// Returns the node's socket, and whether systemd owns its file.
async fn listen(config: &Config, sockets: &Sockets) -> anyhow::Result<(Listener, bool)> {
    if let Some(inherited) = systemd::listener(&config.listen)? {
        return Ok((sockets.adopt(inherited, &config.listen)?, true));
    }
    if let Some(inherited) = sockets.take_inherited(&config.listen)? {
        return Ok((inherited, true));
    }
    let listener = sockets.listen(&config.listen, config.listen_mode, config.listen_owner).await?;
    Ok((listener, false))
}

/// Takes the lock of the saved state, or gets it, with the changes that follow, from the process before.
async fn take_lock(
    predecessor: Option<&Predecessor>,
    config: &Config,
) -> anyhow::Result<(StateLock, Option<UnixStream>)> {
    if let Some(predecessor) = predecessor
        && let Some(HandedState { lock, changes }) = predecessor.take_state(&config.state_dir).await?
    {
        return Ok((lock, Some(changes)));
    }
    Ok((StateLock::take(&config.state_dir).context("a second crimux is refused")?, None))
}

/// Loads the saved state.
fn open_state_store(config: &Config) -> Arc<StateStore> {
    let mark = mark_of(config);
    let (store, warnings) = StateStore::open_marked(&config.state_dir, &boot_id(), Some(mark));
    for warning in warnings {
        tracing::warn!(%warning, "saved state");
    }
    if let Err(error) = store.start_journal_thread() {
        tracing::warn!(%error, "the journal has no thread of its own: calls wait for the disk");
    }
    store
}

/// Returns an empty set of servers. They have `drain_timeout` to end, or `handover_timeout` while another
/// process serves.
fn servers(node: &Arc<Node>, shutdown: &Shutdown) -> Servers {
    let node = Arc::clone(node);
    Servers::new(shutdown.clone(), move || {
        let config = node.config();
        if node.state_store.is_handed_over() { config.handover_timeout } else { config.drain_timeout }
    })
}

/// SIGTERM or SIGINT.
#[derive(Debug)]
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
        let stall = due.elapsed();
        metrics.stalls.record(stall);
        if stall >= LOGGED_STALL {
            let seconds = stall.as_secs();
            tracing::warn!(
                seconds,
                "no call was answered meanwhile: crimux was stopped, or the node is overloaded"
            );
        }
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
