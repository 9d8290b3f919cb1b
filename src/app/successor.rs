//! The process that takes over from this one, as seen from here. `handover.rs` has the order of the steps.
//!
//! Until it is told to serve, the new process may fail at any step: it is killed then, and this process goes
//! on with the state and the sockets that it never let go of. Once it serves, this process finishes its
//! calls. If the new one is killed meanwhile, another one is started in its place, because connections wait
//! in the sockets and this process still has them.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::systemd;
use crate::handover::{self, HandoverChannel, HandoverMessage, Offer, OfferedSocket, OlderProcess};
use crate::proxy::Node;
use crate::shutdown::Shutdown;
use crate::state::StateLock;

/// What the kernel puts at the end of the path of a program whose file was replaced.
const DELETED: &[u8] = b" (deleted)";
/// Variables of systemd that are meant for this process alone.
const OF_THIS_PROCESS: [&str; 4] = ["WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];
/// How long a process may take until it serves in the place of one that was killed.
const REPLACEMENT: Duration = Duration::from_secs(30);
/// Between two attempts to start one.
const RETRY: Duration = Duration::from_secs(1);

/// A process that takes over. It is killed when this is dropped before it serves.
#[derive(Debug)]
pub(super) struct Successor {
    child: Child,
    pub(super) channel: HandoverChannel,
    pub(super) pid: u32,
    pub(super) version: String,
    /// The keys of the sockets that it listens on.
    pub(super) sockets: Vec<String>,
    serves: bool,
}

/// What a process is started with, and what it is handed.
#[derive(Debug)]
pub(super) struct Succession {
    pub(super) config: PathBuf,
    pub(super) state_dir: PathBuf,
    pub(super) older: Vec<OlderProcess>,
    pub(super) sockets: Vec<(OfferedSocket, OwnedFd)>,
    pub(super) lock: Arc<StateLock>,
    pub(super) node: Arc<Node>,
}

/// When an attempt is given up.
#[derive(Debug, Clone)]
pub(super) struct Limit {
    pub(super) deadline: Instant,
    pub(super) interrupt: Shutdown,
}

impl Limit {
    async fn hold<T>(&self, step: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        tokio::select! {
            biased;
            done = step => done,
            () = self.interrupt.begun() => bail!("crimux was told to end"),
            () = tokio::time::sleep_until(self.deadline) => bail!("it did not serve in time"),
        }
    }
}

impl Succession {
    /// Starts this program and hands everything over to it; what is in memory alone only if this process
    /// `is_current`, since a replaced process has not seen all calls. `release_state` writes down what is
    /// known, and makes the given stream the place of further changes.
    ///
    /// # Errors
    /// If the process does not serve before the limit; it has ended then.
    pub(super) async fn pass(
        &self,
        binary: &Path,
        limit: &Limit,
        is_current: bool,
        release_state: impl AsyncFnOnce(UnixStream) -> anyhow::Result<()>,
    ) -> anyhow::Result<Successor> {
        let mut successor = self.start(binary)?;
        let served = self.steps(&mut successor, limit, is_current, release_state).await;
        match served {
            Ok(()) => {
                successor.serves = true;
                Ok(successor)
            }
            Err(error) => {
                let how = successor.end().await;
                Err(error.context(how))
            }
        }
    }

    async fn steps(
        &self,
        successor: &mut Successor,
        limit: &Limit,
        is_current: bool,
        release_state: impl AsyncFnOnce(UnixStream) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let offer = Offer {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state_dir: self.state_dir.clone(),
            older: self.older.clone(),
            sockets: self.sockets.iter().map(|(socket, _)| socket.clone()).collect(),
        };
        let fds: Vec<_> = self.sockets.iter().map(|(_, fd)| fd.as_fd()).collect();
        successor.channel.send(&HandoverMessage::Offer(offer), &fds).await.context("it took no sockets")?;
        limit.hold(successor.expect(|message| (message == HandoverMessage::AskState).then_some(()))).await?;
        let (ours, theirs) = UnixStream::pair()?;
        release_state(ours).await?;
        let lock = self.lock.fd();
        let fds: Vec<_> = lock.into_iter().chain([theirs.as_fd()]).collect();
        let state = HandoverMessage::State { locked: lock.is_some() };
        successor.channel.send(&state, &fds).await.context("it took no state")?;
        drop(theirs);
        let ready = |message| match message {
            HandoverMessage::Ready { version, sockets } => Some((version, sockets)),
            _ => None,
        };
        (successor.version, successor.sockets) = limit.hold(successor.expect(ready)).await?;
        if is_current {
            self.node.state_store.hand_over_lists().await;
            let memory = handover::file_of(&serde_json::to_vec(&self.node.memory())?)?;
            let fds = [memory.as_fd()];
            successor.channel.send(&HandoverMessage::Memory, &fds).await.context("it took no memory")?;
        }
        systemd::main_pid(successor.pid);
        if let Err(error) = successor.channel.send(&HandoverMessage::Serve, &[]).await {
            systemd::main_pid(std::process::id());
            return Err(error).context("it did not begin to serve");
        }
        Ok(())
    }

    /// Starts processes in the place of a successor that was killed after it had served, until one serves.
    pub(super) async fn replace(self: Arc<Self>, binary: PathBuf, interrupt: Shutdown) -> Successor {
        // If the successor's program cannot serve, the program of this process is tried: it has served
        // before.
        let own = PathBuf::from("/proc/self/exe");
        for binary in [&binary, &own].into_iter().cycle() {
            let limit = Limit { deadline: Instant::now() + REPLACEMENT, interrupt: interrupt.clone() };
            let passed = self.pass(binary, &limit, false, async |changes| {
                let store = Arc::clone(&self.node.state_store);
                Ok(tokio::task::spawn_blocking(move || store.hand_on(changes)).await?)
            });
            match passed.await {
                Ok(successor) => return successor,
                Err(error) => tracing::error!(error = format!("{error:#}"), "no process took over; again"),
            }
            tokio::time::sleep(RETRY).await;
        }
        unreachable!("the cycle has no end")
    }

    fn start(&self, binary: &Path) -> anyhow::Result<Successor> {
        let (channel, theirs) = HandoverChannel::pair()?;
        let mut command = Command::new(binary);
        command.args(["serve", "--take-over", "--config"]).arg(&self.config).stdin(Stdio::from(theirs));
        for variable in OF_THIS_PROCESS {
            command.env_remove(variable);
        }
        let child = command.spawn().with_context(|| format!("cannot start {}", binary.display()))?;
        // Only a process that was waited for has no number.
        let pid = child.id().unwrap_or_default();
        tracing::info!(pid, binary = %binary.display(), "started a process to hand over to");
        Ok(Successor { child, channel, pid, version: String::new(), sockets: Vec::new(), serves: false })
    }
}

impl Successor {
    /// Waits for a message, or for the end of the process.
    async fn expect<T>(&mut self, wanted: impl Fn(HandoverMessage) -> Option<T>) -> anyhow::Result<T> {
        let received = tokio::select! {
            // A message that the process sent before its end counts.
            biased;
            received = self.channel.receive() => received?,
            // A child of its own may still have the channel.
            _ = self.child.wait() => None,
        };
        match received {
            Some((HandoverMessage::Refuse { error }, _)) => Err(anyhow!(error)),
            Some((message, _)) => {
                let text = format!("it sent {message:?}");
                wanted(message).ok_or_else(|| anyhow!(text))
            }
            None => Err(anyhow!("it ended before it served")),
        }
    }

    /// Kills the process, unless it has ended, and says how it ended.
    async fn end(&mut self) -> String {
        // A process that has closed the channel, or refused, is about to end by itself.
        let grace = tokio::time::timeout(Duration::from_secs(1), self.child.wait()).await;
        if let Ok(Ok(status)) = grace {
            return format!("the new process, pid {}, ended with {status}", self.pid);
        }
        if let Err(error) = self.child.kill().await {
            tracing::error!(pid = self.pid, %error, "the new process cannot be killed");
        }
        format!("the new process, pid {}, was killed", self.pid)
    }

    /// Completes once the process has ended, after the channel has.
    pub(super) async fn wait(&mut self) -> String {
        self.child.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string())
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if !self.serves {
            // It has ended, if that fails.
            self.child.start_kill().ok();
        }
    }
}

/// Returns the program that this process was started from, as it is installed now.
///
/// # Errors
/// If /proc is not mounted.
pub(super) fn installed_binary() -> anyhow::Result<PathBuf> {
    let path = std::fs::read_link("/proc/self/exe").context("which program runs is not known")?;
    Ok(without_deleted(&path))
}

fn without_deleted(path: &Path) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    OsString::from_vec(bytes.strip_suffix(DELETED).unwrap_or(bytes).to_vec()).into()
}
