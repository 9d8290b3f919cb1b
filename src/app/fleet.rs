//! The backends that run, and how a changed configuration changes them.
//!
//! A backend that was removed from the file but still owns sandboxes is kept, reachable by their IDs and in
//! lists, until it owns none: a reload must not make a running pod vanish.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::backend::Backend;
use crate::config::Config;
use crate::drain::Drain;
use crate::proxy::{Proxy, ProxyState};
use crate::router::{Handlers, Names};
use crate::server::Listener;

/// The backends that run.
#[derive(Debug)]
pub(super) struct Backends {
    node: Arc<ProxyState>,
    drain: Drain,
    members: BTreeMap<String, RunningBackend>,
}

#[derive(Debug)]
struct RunningBackend {
    backend: Arc<Backend>,
    drain: Drain,
    socket: Option<Socket>,
    /// Whether it was removed from the file and only lives on for what it owns.
    retired: bool,
    /// Whether it is hidden from new calls already, so that it can end when nothing turns up until the next look.
    leaving: bool,
}

/// A socket that shows one backend.
#[derive(Debug)]
struct Socket {
    path: std::path::PathBuf,
    drain: Drain,
    serving: JoinHandle<()>,
}

impl Backends {
    pub(super) fn new(node: Arc<ProxyState>, drain: Drain) -> Self {
        Self { node, drain, members: BTreeMap::new() }
    }

    /// Makes the running backends those of `config`.
    ///
    /// # Errors
    /// If a backend's own socket cannot be bound; everything else is in force then.
    pub(super) async fn apply(&mut self, config: &Config) -> anyhow::Result<()> {
        warn_of_restart(&self.node.config(), config);
        if !self.members.is_empty() {
            self.node.snapshot.settle();
        }
        for (name, backend_config) in &config.backends {
            match self.members.get_mut(name) {
                Some(member) => {
                    (member.retired, member.leaving) = (false, false);
                    member.backend.reconfigure(backend_config);
                }
                None => self.add(name, backend_config.clone()),
            }
        }
        for (name, member) in &mut self.members {
            if !config.backends.contains_key(name) && !std::mem::replace(&mut member.retired, true) {
                let (sandboxes, containers) = self.node.router.owners.count(name);
                tracing::warn!(backend = name, sandboxes, containers, "removed; kept until it owns nothing");
            }
        }
        // A handler must not lead to a backend that is not there yet.
        self.publish();
        self.node.router.replace_handlers(Handlers::new(config, &self.names()));
        self.node.replace_config(config.clone());
        self.housekeep();
        self.sockets(config).await
    }

    /// Forgets what is no longer listed, and ends removed backends that own nothing.
    pub(super) fn housekeep(&mut self) {
        self.node.sweep();
        let node = Arc::clone(&self.node);
        let remembered = node.snapshot.names();
        self.members.retain(|name, member| {
            // Its absence from the names means that the operator declared it lost.
            let told = member.backend.last.listed() || !remembered.contains(name);
            let idle = member.retired
                && told
                && member.backend.in_flight() == 0
                && node.router.owners.count(name) == (0, 0);
            // A call that chose it before the reload may not have been sent yet: it is hidden first.
            let ended = idle && member.leaving;
            member.leaving = idle;
            if ended {
                tracing::info!(backend = name, "owns nothing any more and is gone");
                member.drain.begin();
                node.snapshot.forget(name);
                node.metrics.forget_backend(name);
            }
            !ended
        });
        self.publish();
    }

    /// Waits for the calls that came in by the backends' own sockets, which stopped listening with the drain.
    pub(super) async fn drained(&mut self) {
        for socket in self.members.values_mut().filter_map(|member| member.socket.as_mut()) {
            if let Err(error) = (&mut socket.serving).await {
                tracing::error!(%error, "a backend's own socket failed");
            }
        }
    }

    /// Waits for the backends' own sockets to be removed.
    pub(super) async fn remove_sockets(&mut self) {
        for member in self.members.values_mut() {
            if let Some(socket) = member.socket.take() {
                socket.end().await;
            }
        }
    }

    fn add(&mut self, name: &str, config: crate::config::BackendConfig) {
        let last = self.node.snapshot.backend(name, config.local);
        let backend = Backend::new(name.into(), config, last, &self.node.metrics);
        self.node.restore(&backend);
        // Not a child of the process's drain: calls in flight need the connection until they have ended.
        let drain = Drain::default();
        let node = Arc::clone(&self.node);
        let running = Arc::clone(&backend)
            .run(drain.clone(), async move |backend: &Arc<Backend>| node.greet(backend).await);
        tokio::spawn(running);
        let member = RunningBackend { backend, drain, socket: None, retired: false, leaving: false };
        self.members.insert(name.to_owned(), member);
    }

    fn publish(&self) {
        let shown = self.members.values().filter(|member| !member.leaving);
        self.node.replace_backends(shown.map(|member| Arc::clone(&member.backend)).collect());
    }

    fn names(&self) -> Names {
        self.members.iter().map(|(name, member)| (name.clone(), Arc::clone(&member.backend.name))).collect()
    }

    async fn sockets(&mut self, config: &Config) -> anyhow::Result<()> {
        for (name, member) in &mut self.members {
            let wanted = config.backends.get(name).and_then(|backend| backend.socket.clone());
            if member.socket.as_ref().map(|socket| &socket.path) == wanted.as_ref() {
                continue;
            }
            if let Some(socket) = member.socket.take() {
                socket.end().await;
            }
            if let Some(path) = wanted {
                let bound = Listener::bind(&path, config.listen_mode, config.listen_owner).await?;
                let drain = self.drain.child();
                let proxy = Proxy::new(Arc::clone(&self.node), Some(Arc::clone(&member.backend.name)));
                let serving = tokio::spawn(bound.serve(proxy, drain.clone()));
                member.socket = Some(Socket { path, drain, serving });
            }
        }
        Ok(())
    }
}

impl Socket {
    /// Stops listening; calls in flight go on until the process ends.
    async fn end(self) {
        self.drain.begin();
        // The socket file is removed as soon as the drain is noticed, which is within the next poll.
        tokio::task::yield_now().await;
        drop(self.serving);
    }
}

/// Says which changes a reload cannot make.
fn warn_of_restart(old: &Config, new: &Config) {
    let fixed = [
        ("listen", old.listen != new.listen),
        ("state_dir", old.state_dir != new.state_dir),
        ("admin", old.admin != new.admin),
        ("log", old.log != new.log),
        ("tracing", old.tracing != new.tracing),
    ];
    for (key, _) in fixed.iter().filter(|(_, changed)| *changed) {
        tracing::warn!(key, "this change takes effect at the next start");
    }
}
