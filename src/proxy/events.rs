//! Container events: the backends' streams as one, stable while backends come and go.
//!
//! kubelet falls back to listing when the RPC is `Unimplemented`, and gives a stream up for good after five
//! ends (`pleg/evented.go`). So events are offered only while every backend streams, and a backend whose stream
//! ends is asked again for `events.grace` before any client's stream ends. A quiet stream is a stream: grpc-go
//! sends not even headers before the first event, so one that has not ended within [`TRIAL`] counts; CRI-O with
//! events switched off ends at once with OK and does not. Nothing is made up for what a gap may have hidden.
//!
//! Owners are learnt from each event. States are not taken from it, because an event may be older than a call
//! that passed since; an event makes crimux list that backend instead, at most once a second.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::HeaderMap;
use tokio::time::Instant;
use tonic::Code;

use crate::backend::{Backend, own_headers};
use crate::codec::{self, Deframer, Message, PREFIX};
use crate::error::Error;
use crate::events::{Client, Phase, Subscription};
use crate::method::{self, List, Method, Rpc};
use crate::proxy::reply::Outcome;
use crate::proxy::{Call, ProxyState, fan_out, learn};

/// How long a stream must last to be one.
const TRIAL: Duration = Duration::from_millis(300);
/// The first pause before a lost stream is asked for again; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause before a lost stream is asked for again.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How often a client's streams are compared with the backends, and a backend with events is listed.
const ROUND: Duration = Duration::from_secs(1);
/// The most that one event may have: what grpc-go clients take of it.
const MAX_EVENT: usize = 16 << 20;

/// Why a backend's stream has ended.
enum Ended {
    /// It says that it does not stream.
    Refused(String),
    /// It was lost.
    Lost(String),
}

/// One backend's stream, being read.
struct Probing<'a> {
    node: &'a Arc<ProxyState>,
    backend: &'a Arc<Backend>,
    feed: &'a Subscription,
    /// When a stream that has not ended has passed its trial.
    trial: Option<Instant>,
    /// Wakes whoever lists the backend.
    events: &'a tokio::sync::Notify,
}

impl Call {
    /// Offers the events of all backends, if all of them stream.
    pub(super) async fn events(&mut self) -> Result<Outcome, Error> {
        self.watch.at_all(&self.node);
        let (client, frames) = Client::new(self.node.config().events.buffer);
        let mut reader = Reader { node: Arc::clone(&self.node), client, attached: Vec::new() };
        let feeds: Vec<_> = self.readable().iter().map(|backend| reader.attach(backend)).collect();
        let streams = join_all(feeds.iter().map(|feed| feed.streams())).await;
        let lacking: Vec<_> = reader
            .attached
            .iter()
            .zip(streams)
            .filter(|(_, streams)| !streams)
            .map(|(name, _)| &**name)
            .collect();
        if !lacking.is_empty() {
            let text = format!(
                "events are offered while every backend streams them; not so: {}",
                lacking.join(", ")
            );
            return Err(Error::Unimplemented(text));
        }
        let (node, scope) = (Arc::clone(&self.node), self.scope.clone());
        tokio::spawn(async move {
            let client = Arc::clone(&reader.client);
            let rounds = async {
                loop {
                    tokio::time::sleep(ROUND).await;
                    reader.follow(&readable(&node, scope.as_deref()));
                }
            };
            tokio::select! {
                () = client.closed() => {}
                () = rounds => {}
            }
        });
        Ok(Outcome::Frames(frames))
    }

    fn readable(&self) -> Vec<Arc<Backend>> {
        readable(&self.node, self.scope.as_deref())
    }
}

impl ProxyState {
    /// Ends all event streams, so that shutting down does not wait for them.
    pub fn end_events(&self) {
        self.feeds.end_all(&Error::ShuttingDown);
    }
}

/// Returns the backends whose events a client of this socket gets.
fn readable(node: &ProxyState, scope: Option<&str>) -> Vec<Arc<Backend>> {
    node.backends_in(scope).into_iter().filter(|backend| !node.is_joining(backend)).collect()
}

/// A client and the streams it reads; it leaves them when dropped.
struct Reader {
    node: Arc<ProxyState>,
    client: Arc<Client>,
    attached: Vec<Arc<str>>,
}

impl Reader {
    fn attach(&mut self, backend: &Arc<Backend>) -> Arc<Subscription> {
        let (feed, new) = self.node.feeds.attach(&backend.name, &self.client);
        self.attached.push(Arc::clone(&backend.name));
        if new {
            let (node, backend, feed) = (Arc::clone(&self.node), Arc::clone(backend), Arc::clone(&feed));
            tokio::spawn(async move {
                tokio::select! {
                    () = feed.idle() => {}
                    () = keep_feeding(&node, &backend, &feed) => {}
                }
            });
        }
        feed
    }

    /// Reads the streams of new backends too, and leaves those of backends that are gone.
    fn follow(&mut self, backends: &[Arc<Backend>]) {
        let (node, client) = (Arc::clone(&self.node), Arc::clone(&self.client));
        self.attached.retain(|name| {
            let stays = backends.iter().any(|backend| backend.name == *name);
            if !stays {
                node.feeds.detach(name, &client);
            }
            stays
        });
        for backend in backends {
            if !self.attached.contains(&backend.name) {
                self.attach(backend);
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        for name in &self.attached {
            self.node.feeds.detach(name, &self.client);
        }
    }
}

/// Feeds the events of a backend until they cannot be had any more.
async fn keep_feeding(node: &Arc<ProxyState>, backend: &Arc<Backend>, feed: &Arc<Subscription>) {
    let mut lost = None;
    let mut pause = FIRST_PAUSE;
    let error = loop {
        let ended = read(node, backend, feed).await;
        if feed.phase() == Phase::Streaming {
            (lost, pause) = (None, FIRST_PAUSE);
        }
        let known = backend.last.streams_events();
        let asked_first = feed.phase() == Phase::Probing;
        let cause = match ended {
            Ended::Refused(cause) if asked_first => {
                backend.last.set_streams_events(false);
                break cause;
            }
            Ended::Lost(cause) if asked_first && !known => break cause,
            Ended::Refused(cause) | Ended::Lost(cause) => cause,
        };
        feed.set(Phase::Reconnecting);
        let since = *lost.get_or_insert_with(Instant::now);
        let grace = node.config().events.grace;
        if since.elapsed() + pause > grace {
            tracing::warn!(backend = %backend.name, %cause, ?grace, "its events are lost, clients must list");
            break cause;
        }
        tracing::debug!(backend = %backend.name, %cause, "its event stream ended and is asked for again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    };
    node.feeds.end(&backend.name, feed, &Error::Lost { backend: Arc::clone(&backend.name), cause: error });
}

/// Reads a backend's stream to its end, and lists the backend after events meanwhile.
async fn read(node: &Arc<ProxyState>, backend: &Arc<Backend>, feed: &Subscription) -> Ended {
    let events = tokio::sync::Notify::new();
    let mut reading = Probing { node, backend, feed, trial: Some(Instant::now() + TRIAL), events: &events };
    tokio::select! {
        ended = reading.until_it_ends() => ended,
        () = list_after(node, backend, &events) => Ended::Lost("listing ended".to_owned()),
    }
}

impl Probing<'_> {
    async fn until_it_ends(&mut self) -> Ended {
        let method = method::of(Rpc::GetContainerEvents);
        match self.follow(method).await {
            Ok(Code::Ok) if self.trial.is_some() => Ended::Refused("its stream ends at once".to_owned()),
            Ok(Code::Unimplemented) => Ended::Refused(format!("it has no {}", method.name)),
            Ok(code) => Ended::Lost(format!("{} ended with {code:?}", method.name)),
            Err(error) => Ended::Lost(error.to_string()),
        }
    }

    async fn follow(&mut self, method: &'static Method) -> Result<Code, Error> {
        let backend = self.backend;
        let calling = backend.call(Some(method), "", without_deadline(), Message::new(&[]).framed());
        let reply = self.on_trial(calling).await?;
        if let Some(code) = codec::status_code(&reply.headers) {
            return Ok(code);
        }
        let mut body = reply.body;
        let mut deframer = Deframer::default();
        while let Some(chunk) = self.on_trial(body.chunk()).await {
            deframer.push(&chunk?);
            while let Some(event) = deframer.next(MAX_EVENT)? {
                self.passed_trial();
                learn::event(self.node, backend, &event[PREFIX..])?;
                self.events.notify_one();
                self.node.metrics.count_dropped_event_clients(self.feed.publish(&event));
            }
        }
        let trailers = std::future::poll_fn(|cx| body.poll_trailers(cx)).await?;
        trailers.as_ref().and_then(codec::status_code).ok_or_else(|| body.without_status())
    }

    /// Waits for the backend; what takes longer than the trial shows that it streams.
    async fn on_trial<T>(&mut self, future: impl Future<Output = T>) -> T {
        tokio::pin!(future);
        if let Some(until) = self.trial {
            if let Ok(answer) = tokio::time::timeout_at(until, &mut future).await {
                return answer;
            }
            if self.backend.is_up() {
                self.passed_trial();
            }
        }
        future.await
    }

    fn passed_trial(&mut self) {
        if self.trial.take().is_some() {
            self.backend.last.set_streams_events(true);
            self.feed.set(Phase::Streaming);
        }
    }
}

/// Lists a backend after each burst of events, so that what is remembered of it is never older than its events.
async fn list_after(node: &Arc<ProxyState>, backend: &Arc<Backend>, events: &tokio::sync::Notify) {
    loop {
        events.notified().await;
        for list in [List::Sandboxes, List::Containers] {
            if let Err(error) = fan_out::list_all(node, backend, list).await {
                backend.health.note_error(error.to_string());
            }
        }
        tokio::time::sleep(ROUND).await;
    }
}

fn without_deadline() -> HeaderMap {
    let mut headers = own_headers(Duration::ZERO);
    headers.remove("grpc-timeout");
    headers
}
