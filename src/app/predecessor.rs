//! The process that this one takes over from, as seen from here. `handover.rs` has the order of the steps.
//!
//! The other process may be killed at any step. What it has handed over by then counts; the rest is as at any
//! start, because the kernel has given back its lock, and its sockets have no listener.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures_util::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use crate::config;
use crate::handover::{self, HandoverChannel, HandoverMessage, Offer, OlderProcess};
use crate::proxy::Node;
use crate::server::Sockets;
use crate::state::{self, StateLock};

/// The process that this one takes over from.
#[derive(Debug)]
pub(super) struct Predecessor {
    channel: Arc<HandoverChannel>,
    offer: Offer,
    sockets: Sockets,
}

/// The state, as another process hands it over.
#[derive(Debug)]
pub(super) struct HandedState {
    pub(super) lock: StateLock,
    /// The changes that follow.
    pub(super) changes: UnixStream,
}

impl Predecessor {
    /// Reads what the process at the other end of the standard input offers; `None` if it has ended.
    ///
    /// # Errors
    /// If the standard input is no such channel.
    pub(super) async fn attach() -> anyhow::Result<Option<Self>> {
        let channel = HandoverChannel::of_stdin().context("--take-over is for `crimux upgrade` alone")?;
        let Some((message, fds)) = channel.receive().await? else { return Ok(None) };
        let HandoverMessage::Offer(offer) = message else {
            bail!("the process before offers nothing: {message:?}")
        };
        let sockets = Sockets::from_offer(offer.sockets.iter().cloned().zip(fds));
        Ok(Some(Self { channel: Arc::new(channel), offer, sockets }))
    }

    /// Returns the listening sockets that are handed over.
    pub(super) fn sockets(&self) -> Sockets {
        self.sockets.clone()
    }

    /// Takes the state over; `None` if the process before has ended.
    ///
    /// # Errors
    /// If its state is elsewhere than in `state_dir`.
    pub(super) async fn take_state(&self, state_dir: &Path) -> anyhow::Result<Option<HandedState>> {
        let old = &self.offer.state_dir;
        ensure!(
            old == state_dir,
            "state_dir changed in the file from {} to {}: {}",
            old.display(),
            state_dir.display(),
            config::state_dir_advice(old, state_dir)
        );
        if self.channel.send(&HandoverMessage::AskState, &[]).await.is_err() {
            return Ok(None);
        }
        let Some((message, fds)) = self.channel.receive().await? else { return Ok(None) };
        let HandoverMessage::State { locked } = message else {
            bail!("the process before sends {message:?}")
        };
        let mut fds = fds.into_iter();
        let lock = StateLock::from_handed(if locked { fds.next() } else { None });
        let changes = fds.next().context("the process before sends no changes")?;
        let changes = std::os::unix::net::UnixStream::from(changes);
        changes.set_nonblocking(true)?;
        Ok(Some(HandedState { lock, changes: UnixStream::from_std(changes)? }))
    }

    /// Tells the process before why this one cannot take over.
    pub(super) async fn refuse(&self, error: &anyhow::Error) {
        let error = format!("{error:#}");
        // It may have ended.
        self.channel.send(&HandoverMessage::Refuse { error }, &[]).await.ok();
    }

    /// Completes once connections may be accepted: the process before accepts no more, or has ended.
    pub(super) async fn replace(&self, node: &Arc<Node>) {
        list_backends(node).await;
        let (version, sockets) = (env!("CARGO_PKG_VERSION").to_owned(), self.sockets.keys());
        let ready = self.channel.send(&HandoverMessage::Ready { version, sockets }, &[]).await;
        tracing::debug!(
            pid = self.offer.pid,
            "every backend was listed or is late; waiting to be told to serve"
        );
        if ready.is_ok() && self.is_told_to_serve(node).await {
            tracing::info!(pid = self.offer.pid, version = self.offer.version, "took over");
            let mut older = vec![OlderProcess::replaced_now(self.offer.pid, &self.offer.version)];
            older.extend(self.offer.older.iter().cloned());
            node.history.set_older_processes(older);
        } else {
            tracing::warn!(pid = self.offer.pid, "the process before ended while it handed over");
        }
    }

    /// Waits until the process before tells this one to serve, and takes over what that process keeps in
    /// memory; `false` if that process has ended.
    async fn is_told_to_serve(&self, node: &Node) -> bool {
        loop {
            match self.channel.receive().await {
                Ok(Some((HandoverMessage::Serve, _))) => return true,
                Ok(Some((HandoverMessage::Memory, fds))) => {
                    if let Err(error) = take_over(node, fds) {
                        tracing::warn!(%error, "what the process before kept in memory is lost");
                    }
                }
                _ => return false,
            }
        }
    }

    /// Follows what the process before has left, until it has ended.
    pub(super) async fn follow(self: Arc<Self>, node: Arc<Node>) {
        while let Ok(Some((message, _))) = self.channel.receive().await {
            if let HandoverMessage::Left(older) = message {
                node.history.set_older_processes(older);
            }
        }
        node.history.set_older_processes(Vec::new());
        tracing::info!(pid = self.offer.pid, "the process before has ended");
    }

    /// Tells the process before that this one ends, or that it has handed over in its turn.
    pub(super) async fn tell(&self, message: HandoverMessage) {
        // It may have ended.
        self.channel.send(&message, &[]).await.ok();
    }
}

/// Takes over what the process before keeps in memory.
fn take_over(node: &Node, fds: Vec<OwnedFd>) -> anyhow::Result<()> {
    let file = fds.into_iter().next().context("it sent no file")?;
    node.take_over_memory(serde_json::from_slice(&handover::content_of(file)?)?);
    Ok(())
}

/// Applies the changes that the process before still makes, and answers each once it is in the journal.
pub(super) async fn follow_changes(node: Arc<Node>, mut changes: UnixStream) {
    while let Ok(record) = state::read_record(&mut changes).await {
        node.learn_handed(&record).await;
        if changes.write_all(&[0]).await.is_err() {
            return;
        }
    }
}

/// Completes once every backend was listed, or took longer than a call would wait for it.
async fn list_backends(node: &Arc<Node>) {
    let backends = node.backends();
    let listed = backends.iter().map(|backend| {
        let timeouts = backend.config().timeouts;
        let limit: Duration = timeouts.connect + timeouts.list;
        tokio::time::timeout(limit, async {
            backend.connected().await;
            backend.health.listed_or_late().await;
        })
    });
    // For a backend that does not answer, the last-known state was handed over.
    join_all(listed).await;
}
