//! `crimux upgrade`: hands over to a newly started process, then finishes what is under way.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{anyhow, ensure};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::successor::{Limit, Succession, Successor, installed_binary};
use super::{App, ShutdownSignal};
use crate::admin::UpgradeRequest;
use crate::admin::api::UpgradeView;
use crate::handover::{HandoverMessage, OlderProcess};
use crate::proxy::Node;
use crate::relay::Relay;
use crate::shutdown::Shutdown;

/// How often the new process hears what this one has left.
const REPORT: Duration = Duration::from_secs(1);
/// How long the state that is taken back may take to be written.
const TAKE_BACK: Duration = Duration::from_secs(10);
/// How often it is looked whether relayed streams may still be opened.
const RELAY_POLL: Duration = Duration::from_millis(200);
/// The most processes that were replaced and still finish calls: each holds some memory.
const MOST_OLDER: usize = 24;

/// A process that serves, and what another one in its place would be handed.
#[derive(Debug)]
pub(super) struct HandedOver {
    successor: Successor,
    succession: Arc<Succession>,
    binary: PathBuf,
    /// Whether this process was told to end meanwhile.
    told_to_end: bool,
}

/// What the main loop does after an upgrade was asked for.
#[derive(Debug)]
pub(super) enum Upgraded {
    /// This process goes on: the new one does not serve.
    Failed,
    /// This process shuts down, as it was told to.
    ToldToEnd,
    /// This process finishes its calls.
    HandedOver(Box<HandedOver>),
}

impl App {
    /// Does what an operator asks for. Meanwhile others are refused, and the watchdog is fed.
    pub(super) async fn upgrade(
        &mut self,
        request: UpgradeRequest,
        others: &mut mpsc::Receiver<UpgradeRequest>,
        signal: &mut ShutdownSignal,
        mut watchdog: Pin<&mut impl Future<Output = ()>>,
    ) -> Upgraded {
        let UpgradeRequest { binary, within, reply } = request;
        let (interrupt, mut told_to_end) = (Shutdown::default(), false);
        let mut handing = Box::pin(self.hand_over(binary, within, interrupt.clone()));
        let handed = loop {
            tokio::select! {
                handed = &mut handing => break handed,
                () = &mut watchdog => {}
                () = signal.recv() => {
                    told_to_end = true;
                    interrupt.begin();
                }
                Some(other) = others.recv() => {
                    // The operator may have left.
                    other.reply.send(Err("an upgrade is under way already".to_owned())).ok();
                }
            }
        };
        drop(handing);
        match handed {
            Ok(mut handed) => {
                handed.told_to_end = told_to_end;
                let Successor { pid, version, .. } = &handed.successor;
                let view = UpgradeView { pid: *pid, version: version.clone(), old_pid: std::process::id() };
                self.sockets.release(&handed.successor.sockets);
                self.shutdown.begin();
                reply.send(Ok(view)).ok();
                Upgraded::HandedOver(Box::new(handed))
            }
            Err(error) => {
                reply.send(Err(format!("not upgraded, pid {} goes on: {error:#}", std::process::id()))).ok();
                if told_to_end { Upgraded::ToldToEnd } else { Upgraded::Failed }
            }
        }
    }

    /// Starts a process and hands over to it. On an error this process goes on as before.
    async fn hand_over(
        &mut self,
        binary: Option<PathBuf>,
        within: Duration,
        interrupt: Shutdown,
    ) -> anyhow::Result<HandedOver> {
        let older = self.node.history.older_processes();
        let count = older.len();
        ensure!(count < MOST_OLDER, "{count} older processes still finish their calls: see crimux status");
        let binary = binary.map_or_else(installed_binary, Ok)?;
        let succession = Arc::new(Succession {
            config: self.path.clone(),
            state_dir: self.state_dir.clone(),
            older,
            sockets: self.sockets.offer()?,
            lock: Arc::clone(&self.lock),
            node: Arc::clone(&self.node),
        });
        let limit = Limit { deadline: Instant::now() + within, interrupt };
        let (writer, store) = (&mut self.writer, Arc::clone(&self.node.state_store));
        let passed = succession.pass(&binary, &limit, true, async |changes| {
            writer.stop().await;
            store.wait_for_journal().await;
            let handed = tokio::task::spawn_blocking(move || store.hand_over(changes));
            handed.await?.map_err(|error| anyhow!("the state cannot be handed over: {error}"))
        });
        match passed.await {
            Ok(successor) => {
                if let Some(predecessor) = &self.predecessor {
                    predecessor.tell(HandoverMessage::HandedOn).await;
                }
                Ok(HandedOver { successor, succession, binary, told_to_end: false })
            }
            Err(error) => {
                self.take_back().await;
                tracing::error!(error = format!("{error:#}"), "not upgraded; this process goes on");
                Err(error)
            }
        }
    }

    /// Writes the state down again, after the process has ended that should have.
    async fn take_back(&mut self) {
        let store = Arc::clone(&self.node.state_store);
        if store.is_handed_over() {
            let taken = tokio::task::spawn_blocking(move || {
                store.take_back();
                // This process may know more than the other one has written.
                store.flush()
            });
            if !matches!(tokio::time::timeout(TAKE_BACK, taken).await, Ok(Ok(Ok(())))) {
                tracing::error!("the state that was taken back is not on the disk");
            }
        }
        self.writer.start(&self.node.state_store, &self.shutdown);
    }

    /// Finishes the calls and relayed streams of this process while another one serves.
    pub(super) async fn finish(self, handed: HandedOver, mut signal: ShutdownSignal) {
        let Self { node, mut backends, mut servers, relay, relay_shutdown, predecessor, followed, .. } = self;
        let limit = node.config().handover_timeout;
        tracing::info!(pid = handed.successor.pid, ?limit, "handed over; finishing calls");
        let (ending, (serves, mut someone_serves)) = (Shutdown::default(), watch::channel(true));
        if handed.told_to_end {
            ending.begin();
        }
        let left = Left::new(&node, &relay);
        let watching = tokio::spawn(watch_successor(handed, left, ending.clone(), serves));
        let relay_ending = tokio::spawn(end_relay(Arc::clone(&node), relay, relay_shutdown.clone()));
        let finished = async {
            backends.finish_calls(limit).await;
            servers.join().await;
            if let Some(followed) = followed {
                // The process before sends its changes through this one.
                followed.await.ok();
            }
            someone_serves.wait_for(|serves| *serves).await.ok();
        };
        tokio::pin!(finished);
        let told_to_end = tokio::select! {
            biased;
            () = &mut finished => false,
            () = signal.recv() => true,
            () = ending.begun() => true,
        };
        if told_to_end {
            let limit = node.config().drain_timeout;
            tracing::info!(?limit, "draining");
            if let Some(predecessor) = predecessor {
                predecessor.tell(HandoverMessage::End).await;
            }
            node.end_events();
            relay_shutdown.begin();
            tokio::select! {
                () = finished => {}
                () = tokio::time::sleep(limit) => tracing::warn!("calls still in flight are cut"),
                () = signal.recv() => tracing::warn!("second signal: exiting immediately"),
            }
        }
        watching.abort();
        relay_ending.abort();
        super::close(&node).await;
        tracing::info!("finished; another process serves");
    }
}

/// The relay refuses new streams once no call can name one, and none that was named may still be opened.
async fn end_relay(node: Arc<Node>, relay: Arc<Relay>, shutdown: Shutdown) {
    while node.limits().open().1 > 0 || relay.outstanding() > 0 {
        tokio::time::sleep(RELAY_POLL).await;
    }
    shutdown.begin();
}

/// What this process has left.
#[derive(Debug)]
struct Left {
    own: OlderProcess,
    node: Arc<Node>,
    relay: Arc<Relay>,
}

impl Left {
    fn new(node: &Arc<Node>, relay: &Arc<Relay>) -> Self {
        let own = OlderProcess::replaced_now(std::process::id(), env!("CARGO_PKG_VERSION"));
        Self { own, node: Arc::clone(node), relay: Arc::clone(relay) }
    }

    /// Returns this process and those before it.
    fn processes(&self) -> Vec<OlderProcess> {
        let streams = self.relay.open_streams() + self.relay.outstanding();
        let mut processes =
            vec![OlderProcess { calls: self.node.limits().open().1, streams, ..self.own.clone() }];
        processes.extend(self.node.history.older_processes());
        processes
    }
}

/// Tells the successor what is left here. If the successor is killed, starts another one in its place; if it
/// ends as it was told to, `ending` begins. `serves` says whether there is a successor.
async fn watch_successor(mut handed: HandedOver, left: Left, ending: Shutdown, serves: watch::Sender<bool>) {
    let mut report = tokio::time::interval(REPORT);
    let mut is_last = true;
    loop {
        let channel = &handed.successor.channel;
        let message = tokio::select! {
            message = channel.receive() => message,
            _ = report.tick() => {
                // If it has ended, the next message says so.
                channel.send(&HandoverMessage::Left(left.processes()), &[]).await.ok();
                continue;
            }
        };
        match message {
            Ok(Some((HandoverMessage::End, _))) => return ending.begin(),
            Ok(Some((HandoverMessage::HandedOn, _))) => is_last = false,
            Ok(Some((message, _))) => {
                tracing::warn!(?message, "the process that serves sends what is not due");
            }
            Ok(None) | Err(_) if is_last => {
                serves.send_replace(false);
                let pid = handed.successor.pid;
                let status = handed.successor.wait().await;
                tracing::error!(pid, status, "the process that served is gone; starting another one");
                let (succession, binary) = (Arc::clone(&handed.succession), handed.binary.clone());
                handed.successor = succession.replace(binary, ending.clone()).await;
                serves.send_replace(true);
            }
            Ok(None) | Err(_) => return,
        }
    }
}
