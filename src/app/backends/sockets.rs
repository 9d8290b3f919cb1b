//! The sockets that serve one backend alone.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::Backends;
use crate::config::Config;
use crate::proxy::Proxy;
use crate::shutdown::{self, Shutdown, ShutdownResult};

/// A socket that serves one backend alone.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    stop: Shutdown,
    /// Completes with the connections still open once the socket is closed and its file removed.
    accepting: JoinHandle<TaskTracker>,
}

impl Backends {
    /// Waits until the calls through the backends' own sockets have ended, at most `deadline` from the
    /// shutdown's start.
    pub(in crate::app) async fn finish_calls(&mut self, deadline: Duration) -> ShutdownResult {
        let sockets: Vec<_> = self.running.values_mut().filter_map(|entry| entry.socket.take()).collect();
        let ended = async {
            for socket in sockets {
                if let Some(connections) = socket.close().await {
                    connections.wait().await;
                }
            }
        };
        shutdown::run_with_deadline("backend sockets", &self.shutdown, || deadline, ended).await
    }

    /// Closes the backends' own sockets and removes their files.
    pub(in crate::app) async fn remove_sockets(&mut self) {
        for entry in self.running.values_mut() {
            if let Some(socket) = entry.socket.take() {
                socket.close().await;
            }
        }
    }

    /// Binds the backends' own sockets; a socket that cannot be bound keeps no other from being bound.
    pub(super) async fn bind_sockets(&mut self, config: &Config) -> anyhow::Result<()> {
        let mut failed = Ok(());
        for running in self.running.values_mut() {
            let named = self.names.iter().find(|(_, id)| **id == running.backend.id);
            let wanted = named.and_then(|(name, _)| config.backends.get(name)?.socket.clone());
            if running.socket.as_ref().map(|socket| &socket.path) == wanted.as_ref() {
                continue;
            }
            if let Some(socket) = running.socket.take() {
                socket.close().await;
            }
            if let Some(path) = wanted {
                match self.sockets.listen(&path, config.listen_mode, config.listen_owner).await {
                    Ok(listener) => {
                        let stop = self.shutdown.child();
                        let proxy = Proxy::new(Arc::clone(&self.node), Some(running.backend.id));
                        let accepting = tokio::spawn(listener.accept(proxy, stop.clone()));
                        running.socket = Some(Socket { path, stop, accepting });
                    }
                    Err(error) => failed = failed.and(Err(error)),
                }
            }
        }
        failed
    }
}

impl Socket {
    /// Stops accepting and waits until the file is removed. Returns the connections that are still open;
    /// their calls go on.
    pub(super) async fn close(self) -> Option<TaskTracker> {
        self.stop.begin();
        let closed = self.accepting.await;
        if let Err(error) = &closed {
            tracing::error!(path = %self.path.display(), %error, "the task of a backend's socket failed");
        }
        closed.ok()
    }
}
