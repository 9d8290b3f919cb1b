//! The relay lane: the six `Stream*` lists, frame by frame, from all backends at once.
//!
//! A backend's frames pass as the bytes they came in, as soon as each is whole. One that has no streams is
//! asked with the unary method, once for each connection, and its bytes become frames: a unary list *is* a
//! frame (KEP-5825). One that cannot be asked contributes its last-known items. If a backend fails after some
//! of its frames went out, the last-known items that were not among them follow: the client would discard
//! everything for an error, and would be told nothing of the other backends. Images are merged first, because
//! one image may be in two stores.
//!
//! A client that does not read stops its backends' streams, never other clients. What it is waited for does
//! not make a backend late.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use http::HeaderMap;
use tokio::sync::mpsc;
use tonic::Code;

use crate::backend::{Backend, Class, ReplyBody};
use crate::codec::{self, Deframer, Frames, Message, PREFIX};
use crate::cri::{LIST_ITEMS, field};
use crate::error::Error;
use crate::merge::{self, stats};
use crate::method::{List, Method};
use crate::proxy::fan_out::{self, Ask, Completeness, Contribution, NoContribution};
use crate::proxy::reply::Outcome;
use crate::proxy::{Call, ProxyState, learn, pod_metrics};
use crate::snapshot::{Filter, Revision, item_id};
use crate::wire;

/// The size that frames made here stay below, unless one item is larger: grpc-go's default limit is 4 MiB.
const FRAME: usize = (4 << 20) - PREFIX - 1;
/// The most that a frame of a backend may have.
const MAX_FRAME: usize = 256 << 20;
/// How many frames wait for the client.
const AHEAD: usize = 4;

/// One backend's share of a streamed list.
struct Share {
    node: Arc<ProxyState>,
    backend: Arc<Backend>,
    method: &'static Method,
    list: List,
    filter: Arc<Filter>,
    headers: HeaderMap,
    message: Message,
    limit: Duration,
    wait: Duration,
    /// The descriptors that pod metrics must fit.
    wanted: Option<Bytes>,
    out: Out,
}

/// Where frames go.
enum Out {
    /// To the client, as they come, and whether any with items has gone.
    Client(mpsc::Sender<Bytes>, bool),
    /// To a merge that needs all of them.
    Kept(Vec<Bytes>),
}

/// Why a backend's stream is not the whole answer.
enum Broken {
    /// It has no such stream.
    Lacking,
    /// It was not done in time.
    Late,
    /// It failed.
    Failed(String),
    /// It answered with an error of its own.
    Refused(Error),
    /// The client is gone.
    Unwanted,
}

impl Call {
    /// Relays a list from all backends that may have something.
    pub(super) async fn stream_list(
        &mut self,
        method: &'static Method,
        list: List,
        message: Message,
    ) -> Result<Outcome, Error> {
        self.watch.at_all(&self.node);
        self.refuse_pod_stats(list)?;
        let filter = Arc::new(learn::filter(list, &message)?);
        let wanted = match list {
            List::SandboxMetrics => self.wanted_descriptors().await,
            _ => None,
        };
        let backends = self.backends_with(list, &filter);
        let caller = self.caller_waits();
        let headers = std::mem::take(&mut self.headers);
        let share = |backend: Arc<Backend>, out| {
            let limit = fan_out::deadline(&backend, method);
            Share {
                node: Arc::clone(&self.node),
                method,
                list,
                filter: Arc::clone(&filter),
                headers: headers.clone(),
                message: message.clone(),
                limit,
                wait: caller.map_or(limit, |caller| limit.min(caller)),
                wanted: wanted.clone(),
                backend,
                out,
            }
        };
        let shares = backends.into_iter();
        if list == List::Images {
            let shares = shares.map(|backend| share(backend, Out::Kept(Vec::new())));
            return self.merged(list, shares.collect()).await;
        }
        let (sender, end, frames) = Frames::channel(AHEAD);
        let shares: Vec<_> =
            shares.map(|backend| share(backend, Out::Client(sender.clone(), false))).collect();
        let (node, scoped) = (Arc::clone(&self.node), self.scope.is_some());
        tokio::spawn(async move {
            let sent = async { join_all(shares.into_iter().map(Share::send)).await };
            let sent = tokio::select! {
                sent = sent => sent,
                () = sender.closed() => return,
            };
            let mut verdict = Completeness::default();
            for share in sent {
                match share {
                    Ok(share) => verdict.add(Ok(&share)),
                    Err(lacking) => verdict.add(Err(lacking)),
                }
            }
            if let Err(error) = verdict.of(&node, list, scoped) {
                end.set(error).ok();
            }
        });
        Ok(Outcome::Frames(frames))
    }

    /// Collects every share, merges, and answers with the frames of the result.
    async fn merged(&self, list: List, shares: Vec<Share>) -> Result<Outcome, Error> {
        let mut verdict = Completeness::default();
        let mut parts = Vec::new();
        for share in join_all(shares.into_iter().map(Share::send)).await {
            match share {
                Ok(part) => {
                    verdict.add(Ok(&part));
                    parts.push(part);
                }
                Err(lacking) => verdict.add(Err(lacking)),
            }
        }
        verdict.of(&self.node, list, self.scope.is_some())?;
        let default = self.node.default_in(self.scope);
        let parts: Vec<_> = parts.iter().map(|part| part.to_merge(default)).collect();
        let merged = joined(&merge::merge(list, &parts));
        let mut chunks = Vec::new();
        for frame in wire::split(&merged, FRAME)? {
            chunks.extend([Bytes::copy_from_slice(&codec::prefix(frame.len())), frame]);
        }
        Ok(Outcome::framed(chunks))
    }
}

impl Share {
    /// Sends what the backend has, live, or as last known.
    async fn send(mut self) -> Result<Contribution, NoContribution> {
        let class = Class::of(self.method);
        let mut passed = Vec::new();
        if !self.backend.health.lacks(self.method) && !self.backend.health.is_late(class) {
            match self.stream(&mut passed).await {
                Ok(()) => return Ok(self.part(true, None)),
                Err(Broken::Unwanted) => return Ok(self.part(false, None)),
                Err(Broken::Lacking) => self.backend.health.note_lack(self.method),
                Err(Broken::Late) => {
                    if self.wait == self.limit {
                        fan_out::fell_behind(&self.node, &self.backend, class, self.method);
                    }
                    return self.rest(&passed, None).await;
                }
                Err(Broken::Failed(cause)) => {
                    fan_out::failed(&self.node, &self.backend, class, cause);
                    return self.rest(&passed, None).await;
                }
                Err(Broken::Refused(error)) => {
                    fan_out::failed(&self.node, &self.backend, class, error.to_string());
                    return self.rest(&passed, Some(error)).await;
                }
            }
        }
        let unary = self.list.unary();
        let ask = self.ask();
        let part = ask.part(&self.node, &self.backend, unary, self.headers.clone(), &self.message).await?;
        self.send_items(&unsent(self.list, &part.items, &passed)).await;
        Ok(self.part(part.live, part.refusal))
    }

    /// Passes the backend's own stream on; `passed` gets every message of it.
    async fn stream(&mut self, passed: &mut Vec<Bytes>) -> Result<(), Broken> {
        let epoch = self.backend.last.epoch();
        let mut left = self.wait;
        let calling = self.backend.call(Some(self.method), "", self.headers.clone(), self.message.framed());
        let reply = in_time(&mut left, calling).await?.map_err(|error| Broken::Failed(error.to_string()))?;
        let mut body = reply.body;
        if let Some(code) = codec::status_code(&reply.headers) {
            return self.ended(code, &reply.headers);
        }
        let mut deframer = Deframer::default();
        while let Some(chunk) = in_time(&mut left, body.chunk()).await? {
            deframer.push(&chunk.map_err(|error| Broken::Failed(error.to_string()))?);
            let failed = |error: Error| Broken::Failed(error.to_string());
            while let Some(frame) = deframer.next(MAX_FRAME).map_err(failed)? {
                self.pass(frame, passed).await?;
            }
        }
        let (code, trailers) = in_time(&mut left, trailing_code(&mut body)).await?.map_err(Broken::Failed)?;
        self.ended(code, &trailers)?;
        if !deframer.is_empty() {
            return Err(Broken::Failed(format!("{} ended inside a message", self.method.name)));
        }
        self.learn(epoch, passed);
        Ok(())
    }

    fn ended(&self, code: Code, trailers: &HeaderMap) -> Result<(), Broken> {
        match code {
            Code::Ok => Ok(()),
            Code::Unimplemented => Err(Broken::Lacking),
            _ => Err(Broken::Refused(fan_out::refused(&self.backend, self.method, trailers))),
        }
    }

    /// Checks one frame, learns its owners and passes it on.
    async fn pass(&mut self, frame: Bytes, passed: &mut Vec<Bytes>) -> Result<(), Broken> {
        let came = frame.slice(PREFIX..);
        let encoded = learn::owners(&self.node, &self.backend, self.list, &came)
            .map_err(|error| Broken::Failed(error.to_string()))?;
        if encoded.is_empty() {
            return Ok(());
        }
        let ours = self.fitted(&encoded);
        passed.push(encoded);
        let frame = if ours.as_ptr() == came.as_ptr() { frame } else { Message::new(&ours).framed() };
        if !ours.is_empty() && !self.put(frame).await {
            return Err(Broken::Unwanted);
        }
        Ok(())
    }

    fn learn(&self, epoch: Revision, passed: &[Bytes]) {
        if learn::kept(self.list).is_none() {
            return;
        }
        let whole = joined(passed);
        let unfiltered = self.filter.is_empty();
        if let Err(error) = learn::listed(&self.node, &self.backend, self.list, epoch, unfiltered, &whole) {
            self.backend.health.note_error(error.to_string());
        }
    }

    /// Sends the last-known items that are not among those that went out already.
    async fn rest(
        mut self,
        passed: &[Bytes],
        refusal: Option<Error>,
    ) -> Result<Contribution, NoContribution> {
        let part = self.ask().last_known(&self.node, &self.backend, self.list.unary(), refusal)?;
        self.send_items(&unsent(self.list, &part.items, passed)).await;
        Ok(self.part(false, part.refusal))
    }

    /// Sends a list as frames.
    async fn send_items(&mut self, items: &Bytes) {
        // What a unary list or the last-known state holds was read before, item by item.
        for frame in wire::split(&self.fitted(items), FRAME).unwrap_or_default() {
            if !self.put(Message::new(&frame).framed()).await {
                return;
            }
        }
    }

    /// Returns items as this node's clients may see them.
    fn fitted(&self, items: &Bytes) -> Bytes {
        let items = &fan_out::owned_items(&self.backend, self.list, items.clone());
        match self.list {
            List::SandboxMetrics => pod_metrics::ordered(&self.backend, self.wanted.as_ref(), items),
            List::ContainerStats | List::SandboxStats if !self.backend.config().local => {
                stats::without_filesystems(self.list, items).unwrap_or_default()
            }
            _ => items.clone(),
        }
    }

    /// Hands a frame on; false if nobody wants it any more.
    async fn put(&mut self, frame: Bytes) -> bool {
        match &mut self.out {
            Out::Client(client, sent) => {
                *sent |= frame.len() > PREFIX;
                client.send(frame).await.is_ok()
            }
            Out::Kept(frames) => {
                frames.push(frame.slice(PREFIX..));
                true
            }
        }
    }

    fn ask(&self) -> Ask {
        Ask { list: self.list, filter: Arc::clone(&self.filter), limit: self.limit, wait: self.wait }
    }

    fn part(self, live: bool, refusal: Option<Error>) -> Contribution {
        let (items, has_items) = match &self.out {
            Out::Client(_, sent) => (Bytes::new(), *sent),
            Out::Kept(frames) => (joined(frames), !frames.is_empty()),
        };
        Contribution { backend: self.backend, items, has_items, live, refusal }
    }
}

/// Waits for a backend as long as is left; waiting for the client does not count.
async fn in_time<T>(left: &mut Duration, future: impl Future<Output = T>) -> Result<T, Broken> {
    let started = Instant::now();
    let answer = tokio::time::timeout(*left, future).await.map_err(|_| Broken::Late);
    *left = left.saturating_sub(started.elapsed());
    answer
}

async fn trailing_code(body: &mut ReplyBody) -> Result<(Code, HeaderMap), String> {
    let trailers = std::future::poll_fn(|cx| body.poll_trailers(cx)).await;
    let trailers = trailers.map_err(|error| error.to_string())?.unwrap_or_default();
    let code = codec::status_code(&trailers).ok_or_else(|| body.without_status().to_string())?;
    Ok((code, trailers))
}

/// Returns the items of a list that are not in any of the frames.
fn unsent(list: List, items: &Bytes, frames: &[Bytes]) -> Bytes {
    if frames.is_empty() {
        return items.clone();
    }
    let key = |item| match learn::kept(list) {
        Some(kind) => item_id(kind, item).ok(),
        None => wire::peek_str(item, &[field!(PodSandboxMetrics.pod_sandbox_id)]).ok(),
    };
    let sent = frames.iter().flat_map(|frame| wire::items(frame, LIST_ITEMS).flatten());
    let sent: HashSet<&str> = sent.filter_map(key).collect();
    let mut rest = BytesMut::new();
    for item in wire::items(items, LIST_ITEMS).flatten() {
        if key(item).is_some_and(|id| !sent.contains(id)) {
            wire::put_bytes(&mut rest, LIST_ITEMS, item);
        }
    }
    rest.freeze()
}

fn joined(pieces: &[Bytes]) -> Bytes {
    match pieces {
        [one] => one.clone(),
        _ => pieces.concat().into(),
    }
}
