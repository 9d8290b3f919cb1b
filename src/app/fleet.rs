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
use crate::proxy::{Node, Proxy};
use crate::router::{Handlers, Names};
use crate::server::Bound;

/// The backends that run.
#[derive(Debug)]
pub(super) struct Fleet {
    node: Arc<Node>,
    drain: Drain,
    members: BTreeMap<String, Member>,
}

#[derive(Debug)]
struct Member {
    backend: Arc<Backend>,
    drain: Drain,
    socket: Option<Socket>,
    /// Whether it was removed from the file and only lives on for what it owns.
    retired: bool,
}

/// A socket that shows one backend.
#[derive(Debug)]
struct Socket {
    path: std::path::PathBuf,
    drain: Drain,
    serving: JoinHandle<()>,
}

impl Fleet {
    pub(super) fn new(node: Arc<Node>, drain: Drain) -> Self {
        Self { node, drain, members: BTreeMap::new() }
    }

    /// Makes the running backends those of `config`.
    ///
    /// # Errors
    /// If a backend's own socket cannot be bound; everything else is in force then.
    pub(super) async fn apply(&mut self, config: &Config) -> anyhow::Result<()> {
        warn_of_restart(&self.node.config(), config);
        for (name, backend_config) in &config.backends {
            match self.members.get_mut(name) {
                Some(member) => {
                    member.retired = false;
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
        self.node.router.replace_handlers(Handlers::new(config, &self.names()));
        self.node.replace_config(config.clone());
        self.publish();
        self.housekeep();
        self.sockets(config).await
    }

    /// Forgets what is no longer listed, and ends removed backends that own nothing.
    pub(super) fn housekeep(&mut self) {
        self.node.sweep();
        let node = Arc::clone(&self.node);
        let before = self.members.len();
        self.members.retain(|name, member| {
            let ended =
                member.retired && member.backend.last.listed() && node.router.owners.count(name) == (0, 0);
            if ended {
                tracing::info!(backend = name, "owns nothing any more and is gone");
                member.drain.begin();
                node.snapshot.forget(name);
                node.metrics.forget_backend(name);
            }
            !ended
        });
        if self.members.len() != before {
            self.publish();
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
        let drain = self.drain.child();
        let node = Arc::clone(&self.node);
        let running = Arc::clone(&backend)
            .run(drain.clone(), async move |backend: &Arc<Backend>| node.greet(backend).await);
        tokio::spawn(running);
        self.members.insert(name.to_owned(), Member { backend, drain, socket: None, retired: false });
    }

    fn publish(&self) {
        let backends = self.members.values().map(|member| Arc::clone(&member.backend)).collect();
        self.node.replace_backends(backends);
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
                let bound = Bound::bind(&path, config.listen_mode, config.listen_owner).await?;
                let drain = self.drain.child();
                let proxy = Proxy::new(Arc::clone(&self.node), Some(Arc::clone(&member.backend.name)));
                let serving = tokio::spawn(super::log_failure(bound.serve(proxy, drain.clone())));
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
