//! Starts and stops backends as the configuration changes.
//!
//! A backend that was removed from the file but still owns sandboxes keeps running, reachable by their IDs
//! and in lists, until it owns none: a reload must not make a running pod vanish.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::backend::Backend;
use crate::config::Config;
use crate::drain::{self, Drain, DrainResult};
use crate::proxy::{Proxy, ProxyState};
use crate::router::{Handlers, Names};
use crate::server::Listener;
use crate::side::Side;

/// The running backends, by name.
#[derive(Debug)]
pub(super) struct Backends {
    node: Arc<ProxyState>,
    drain: Drain,
    side: Side,
    running: BTreeMap<String, RunningBackend>,
}

#[derive(Debug)]
struct RunningBackend {
    backend: Arc<Backend>,
    drain: Drain,
    socket: Option<Socket>,
    /// Whether it was removed from the file and runs only for the objects it owns.
    removed: bool,
    /// Whether new calls no longer see it. It ends at the next housekeeping if it is still idle then.
    hidden: bool,
}

/// A socket that serves one backend alone.
#[derive(Debug)]
struct Socket {
    path: std::path::PathBuf,
    drain: Drain,
    /// Completes with the connections still open once the socket is closed and its file removed.
    accepting: JoinHandle<TaskTracker>,
}

impl Backends {
    pub(super) fn new(node: Arc<ProxyState>, drain: Drain, side: Side) -> Self {
        Self { node, drain, side, running: BTreeMap::new() }
    }

    /// Starts, changes and removes backends until they are those of `config`.
    ///
    /// # Errors
    /// If a backend's own socket cannot be bound; everything else has been applied then.
    pub(super) async fn apply(&mut self, config: &Config) -> anyhow::Result<()> {
        if !self.running.is_empty() {
            self.node.snapshot.settle();
        }
        for (name, backend_config) in &config.backends {
            match self.running.get_mut(name) {
                Some(entry) => {
                    (entry.removed, entry.hidden) = (false, false);
                    let old = entry.backend.config().endpoint.canonical();
                    if old != backend_config.endpoint.canonical() {
                        // What it owned may be elsewhere now: it is located, or learnt from the new
                        // endpoint's lists.
                        let owners = &self.node.router.owners;
                        owners.of(name).iter().for_each(|id| owners.forget(id));
                    }
                    entry.backend.reconfigure(backend_config);
                }
                None => self.add(name, backend_config.clone()),
            }
        }
        for (name, entry) in &mut self.running {
            if !config.backends.contains_key(name) && !std::mem::replace(&mut entry.removed, true) {
                let (sandboxes, containers) = self.node.router.owners.count(name);
                tracing::warn!(
                    backend = name,
                    sandboxes,
                    containers,
                    "backend removed; kept until it owns nothing"
                );
            }
        }
        // Before the handlers: a handler must not name a backend that is not running yet.
        self.publish();
        self.node.router.replace_handlers(Handlers::new(config, &self.names()));
        self.node.replace_config(config.clone());
        self.housekeep();
        self.sockets(config).await
    }

    /// Forgets owners of vanished objects, and ends removed backends that own nothing.
    pub(super) fn housekeep(&mut self) {
        self.node.sweep();
        let node = Arc::clone(&self.node);
        let reentryed = node.snapshot.names();
        self.running.retain(|name, entry| {
            // A name that the snapshot no longer has was declared lost by the operator.
            let objects_known = entry.backend.last.listed() || !reentryed.contains(name);
            let idle = entry.removed
                && objects_known
                && entry.backend.in_flight() == 0
                && node.router.owners.count(name) == (0, 0);
            // A call that chose it before the reload may not be sent yet, so it is hidden for one period
            // first.
            let ended = idle && entry.hidden;
            entry.hidden = idle;
            if ended {
                tracing::info!(backend = name, "owns nothing any more and is gone");
                entry.drain.begin();
                node.snapshot.forget(name);
                node.metrics.forget_backend(name);
            }
            !ended
        });
        self.publish();
    }

    /// Waits until the calls through the backends' own sockets have ended, at most `deadline` from the
    /// drain's start.
    pub(super) async fn drained(&mut self, deadline: Duration) -> DrainResult {
        let sockets: Vec<_> = self.running.values_mut().filter_map(|entry| entry.socket.take()).collect();
        let ended = async {
            for socket in sockets {
                if let Some(connections) = socket.close().await {
                    connections.wait().await;
                }
            }
        };
        drain::run_with_deadline("backend sockets", &self.drain, || deadline, ended).await
    }

    /// Closes the backends' own sockets and removes their files.
    pub(super) async fn remove_sockets(&mut self) {
        for entry in self.running.values_mut() {
            if let Some(socket) = entry.socket.take() {
                socket.close().await;
            }
        }
    }

    fn add(&mut self, name: &str, config: crate::config::BackendConfig) {
        let last = self.node.snapshot.backend(name, config.local);
        let backend = Backend::new(name.into(), config, last, &self.node.metrics, self.side.clone());
        self.node.restore(&backend);
        // Not a child of the process's drain: calls in flight need the connection until they have ended.
        let drain = Drain::default();
        let node = Arc::clone(&self.node);
        let running = Arc::clone(&backend)
            .run(drain.clone(), async move |backend: &Arc<Backend>| node.greet(backend).await);
        tokio::spawn(running);
        let entry = RunningBackend { backend, drain, socket: None, removed: false, hidden: false };
        self.running.insert(name.to_owned(), entry);
    }

    fn publish(&self) {
        let visible = self.running.values().filter(|entry| !entry.hidden);
        self.node.replace_backends(visible.map(|entry| Arc::clone(&entry.backend)).collect());
    }

    fn names(&self) -> Names {
        self.running.iter().map(|(name, entry)| (name.clone(), Arc::clone(&entry.backend.name))).collect()
    }

    async fn sockets(&mut self, config: &Config) -> anyhow::Result<()> {
        for (name, entry) in &mut self.running {
            let wanted = config.backends.get(name).and_then(|backend| backend.socket.clone());
            if entry.socket.as_ref().map(|socket| &socket.path) == wanted.as_ref() {
                continue;
            }
            if let Some(socket) = entry.socket.take() {
                socket.close().await;
            }
            if let Some(path) = wanted {
                let listener = Listener::bind(&path, config.listen_mode, config.listen_owner).await?;
                let drain = self.drain.child();
                let proxy = Proxy::new(Arc::clone(&self.node), Some(Arc::clone(&entry.backend.name)));
                let accepting = tokio::spawn(listener.accept(proxy, drain.clone()));
                entry.socket = Some(Socket { path, drain, accepting });
            }
        }
        Ok(())
    }
}

impl Socket {
    /// Stops accepting and waits until the file is removed. Returns the connections that are still open;
    /// their calls go on.
    async fn close(self) -> Option<TaskTracker> {
        self.drain.begin();
        let closed = self.accepting.await;
        if let Err(error) = &closed {
            tracing::error!(path = %self.path.display(), %error, "the task of a backend's socket failed");
        }
        closed.ok()
    }
}
