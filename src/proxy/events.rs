//! Container events: what happens at every backend as one stream, which crimux never ends while it runs.
//!
//! Every end of the stream costs kubelet one of five attempts, for as long as it lives (`pleg/evented.go`,
//! 1.37). So the stream is always offered, and each backend is an event source of its own: its stream
//! (`events/stream.rs`), or, while the stream is missing because it was lost, never offered or is of CRI
//! 0.25, its lists, compared once a second (`events/client_view.rs`). The same comparison makes the events of
//! what changed while the stream or the backend was away. No backend is called while no client subscribes.
//!
//! Owners are learnt from each event. States are not taken from it, because an event may be older than a
//! later call; instead an event makes crimux list that backend, at most once a second.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::backend::Backend;
use crate::backoff::Backoff;
use crate::error::Error;
use crate::events::{Client, Subscription};
use crate::method::List;
use crate::mutex::lock;
use crate::proxy::reply::Outcome;
use crate::proxy::{Call, Node, refresh};
use crate::state::{Filter, InstanceId, ListKind};
use client_view::ClientView;
use stream::Ended;

mod body;
mod client_view;
mod stream;

/// The longest pause before a lost stream is asked for again.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long a list waits for the events of a stream that has just been opened.
const STREAM_FIRST: Duration = Duration::from_millis(300);
/// How often a client's sources are compared with the backends, lists with what clients know, and a backend
/// with events is listed.
const ROUND: Duration = Duration::from_secs(1);

impl Call {
    /// Opens the stream of the events of all backends.
    pub(super) fn subscribe_events(&mut self) -> Outcome {
        self.recorder.set_all_backends(&self.node);
        let (client, frames) = Client::new(self.node.config().events.buffer);
        let mut reader = Reader { node: Arc::clone(&self.node), client, attached: Vec::new() };
        let (node, scope) = (Arc::clone(&self.node), self.scope);
        reader.follow(&readable(&node, scope));
        tokio::spawn(async move {
            let client = Arc::clone(&reader.client);
            let rounds = async {
                loop {
                    tokio::time::sleep(ROUND).await;
                    reader.follow(&readable(&node, scope));
                }
            };
            tokio::select! {
                () = client.closed() => {}
                () = rounds => {}
            }
        });
        Outcome::Messages(frames)
    }
}

impl Node {
    /// Ends all event streams, so that shutting down does not wait for them.
    pub fn end_events(&self) {
        self.feeds.end_all(&Error::ShuttingDown);
    }

    /// Returns where the events of a backend come from, `stream` or `lists`; `None` while nobody listens.
    pub fn event_source(&self, backend: InstanceId) -> Option<&'static str> {
        let streaming = self.feeds.is_streaming(backend)?;
        Some(if streaming { "stream" } else { "lists" })
    }
}

/// Returns the backends whose events a client of this socket gets.
fn readable(node: &Node, scope: Option<InstanceId>) -> Vec<Arc<Backend>> {
    node.backends_in(scope).into_iter().filter(|backend| !node.is_outside_lists(backend)).collect()
}

/// A client and the sources it reads; it leaves them when dropped.
struct Reader {
    node: Arc<Node>,
    client: Arc<Client>,
    attached: Vec<InstanceId>,
}

impl Reader {
    fn attach(&mut self, backend: &Arc<Backend>) {
        let (feed, new) = self.node.feeds.attach(backend.id, &self.client);
        self.attached.push(backend.id);
        if new {
            let source = Source::new(Arc::clone(&self.node), Arc::clone(backend), Arc::clone(&feed));
            tokio::spawn(async move {
                tokio::select! {
                    () = feed.idle() => {}
                    () = source.run() => {}
                }
            });
        }
    }

    /// Begins to read the sources of new backends, and drops the sources of backends that are gone.
    fn follow(&mut self, backends: &[Arc<Backend>]) {
        let (node, client) = (Arc::clone(&self.node), Arc::clone(&self.client));
        self.attached.retain(|id| {
            let stays = backends.iter().any(|backend| backend.id == *id);
            if !stays {
                node.feeds.detach(*id, &client);
            }
            stays
        });
        for backend in backends {
            if !self.attached.contains(&backend.id) {
                self.attach(backend);
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        for id in &self.attached {
            self.node.feeds.detach(*id, &self.client);
        }
    }
}

/// The events of one backend, shared by all clients.
struct Source {
    node: Arc<Node>,
    backend: Arc<Backend>,
    feed: Arc<Subscription>,
    /// What clients know; `None` until there is a list to begin with.
    view: Mutex<Option<ClientView>>,
    /// Whether something may have happened without an event.
    needs_compare: AtomicBool,
    /// How many events of the runtime had come at the last comparison.
    compared: AtomicU64,
    /// Wakes the comparison when a stream was opened.
    opened: Notify,
    /// Wakes the listing after events.
    events: Notify,
}

impl Source {
    fn new(node: Arc<Node>, backend: Arc<Backend>, feed: Arc<Subscription>) -> Self {
        let source = Self {
            node,
            backend,
            feed,
            view: Mutex::default(),
            needs_compare: AtomicBool::new(true),
            compared: AtomicU64::new(0),
            opened: Notify::new(),
            events: Notify::new(),
        };
        // What changed since that list becomes an event: nothing is lost between it and the first comparison.
        source.begin();
        source
    }

    /// Runs while a client subscribes. A rename does not end it: another [`Backend`] is then the same source.
    async fn run(mut self) {
        loop {
            let running =
                async { tokio::join!(self.read_streams(), self.compare_lists(), self.list_after_events()) };
            let renamed = tokio::select! {
                _ = running => return,
                renamed = self.renamed() => renamed,
            };
            self.feed.set_streaming(false);
            self.needs_compare.store(true, Ordering::Relaxed);
            self.backend = renamed;
        }
    }

    /// Completes once another [`Backend`] has taken the place of this one.
    async fn renamed(&self) -> Arc<Backend> {
        loop {
            match self.node.backend(self.backend.id) {
                Ok(current) if !Arc::ptr_eq(&current, &self.backend) => return current,
                _ => tokio::time::sleep(ROUND).await,
            }
        }
    }

    /// Reads the backend's stream while there is one, and asks for it again.
    async fn read_streams(&self) {
        let (mut lost, mut backoff) = (None, Backoff::new(LONGEST_PAUSE));
        loop {
            let known = self.backend.state.streams_events();
            let ended = self.read_stream().await;
            let streamed = self.feed.set_streaming(false);
            if streamed {
                lost = None;
                backoff.reset();
            }
            self.needs_compare.store(true, Ordering::Relaxed);
            let since = *lost.get_or_insert_with(Instant::now);
            let in_time = since.elapsed() < self.node.config().events.grace;
            let (cause, again) = match ended {
                Ended::Refused(cause) => (cause, (streamed || known) && in_time),
                Ended::Lost(cause) => (cause, in_time),
            };
            let backend = &self.backend;
            tracing::debug!(backend = %backend.name, %cause, again, "no event stream, its lists are compared");
            if again && backend.is_up() {
                tokio::time::sleep(backoff.next_pause()).await;
            } else {
                // What comes up may be another version.
                backend.disconnected().await;
                backend.connected().await;
                lost = None;
                backoff.reset();
            }
        }
    }

    /// Compares the backend's lists with what clients know while it does not stream, and once when it
    /// does again.
    async fn compare_lists(&self) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(ROUND) => {}
                () = self.opened.notified() => {}
            }
            let streaming = self.feed.is_streaming();
            if !self.backend.is_up() || (streaming && !self.needs_compare.load(Ordering::Relaxed)) {
                continue;
            }
            match self.compare().await {
                // If the stream was lost meanwhile, the next comparison is needed.
                Ok(()) if streaming && self.feed.is_streaming() => {
                    self.needs_compare.store(false, Ordering::Relaxed);
                }
                Ok(()) => {}
                Err(error) => self.backend.health.record_error(error.to_string()),
            }
        }
    }

    async fn compare(&self) -> Result<(), Error> {
        let since = self.view().as_ref().map_or(0, ClientView::event_count);
        self.list(since).await?;
        if self.feed.is_streaming() {
            // What the stream tells of the same objects comes first.
            tokio::time::sleep(STREAM_FIRST).await;
        }
        self.compared.store(since, Ordering::Relaxed);
        if self.view().is_none() {
            self.begin();
            return Ok(());
        }
        let Some((sandboxes, containers)) = self.lists() else { return Ok(()) };
        let changes = {
            let mut view = self.view();
            let Some(view) = &mut *view else { return Ok(()) };
            view.compare(&sandboxes, &containers, since)
        };
        let changes = changes.map_err(|error| self.backend.invalid_reply_error(error))?;
        for event in self.events_of(&changes, &containers).await {
            self.publish(&event);
        }
        Ok(())
    }

    /// Lists the backend, unless a client has just done so and no event came since the last comparison.
    async fn list(&self, events: u64) -> Result<(), Error> {
        // A stream that was just opened hides what happened before it, which only a list asked for now shows.
        let quiet = !self.feed.is_streaming() && self.compared.load(Ordering::Relaxed) == events;
        if quiet && self.backend.state.age().is_some_and(|age| age < ROUND) {
            return Ok(());
        }
        for list in [List::Sandboxes, List::Containers] {
            let limit = self.backend.deadline(list.unary());
            let listed = refresh::list_all(&self.node, &self.backend, list);
            tokio::time::timeout(limit, listed).await.map_err(|_| self.backend.late_error(limit))??;
        }
        Ok(())
    }

    /// Takes what the backend has, or was last known to have, for known to clients.
    fn begin(&self) {
        if let Some((sandboxes, containers)) = self.lists() {
            *self.view() = ClientView::begin(&sandboxes, &containers).ok();
        }
    }

    fn lists(&self) -> Option<(bytes::Bytes, bytes::Bytes)> {
        let list = |kind| self.backend.state.list(kind, &Filter::default());
        Some((list(ListKind::Sandboxes)?, list(ListKind::Containers)?))
    }

    /// Lists the backend after each burst of events, so that its last-known state is never older than its
    /// events.
    async fn list_after_events(&self) {
        loop {
            self.events.notified().await;
            for list in [List::Sandboxes, List::Containers] {
                if let Err(error) = refresh::list_all(&self.node, &self.backend, list).await {
                    self.backend.health.record_error(error.to_string());
                }
            }
            tokio::time::sleep(ROUND).await;
        }
    }

    /// Sends a framed event to every client.
    fn publish(&self, event: &bytes::Bytes) {
        self.node.metrics.count_dropped_event_clients(self.feed.publish(event));
    }

    fn view(&self) -> MutexGuard<'_, Option<ClientView>> {
        lock(&self.view)
    }
}
