//! Streams the six `Stream*` lists message by message from all backends at once.
//!
//! A backend's messages are forwarded with unchanged bytes as soon as each is complete. A backend without the
//! streaming RPC is called with the unary one, and its list is sent as messages: a unary list *is* such a
//! message (KEP-5825). A backend that cannot be called contributes its last-known items. If a backend fails
//! after some of its messages were sent, its last-known items that were not among them follow: after an error
//! the client would discard the items of all backends. Images are merged first, because one image may be in
//! two stores.
//!
//! A client that does not read stops its own streams only. Time spent waiting for a slow client does not
//! count against a backend's deadline.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use http::HeaderMap;
use tokio::sync::mpsc;
use tonic::Code;

use crate::backend::{CallRequest, MethodClass, ReplyBody};
use crate::codec::{self, Deframer, Frames, Message, PREFIX};
use crate::cri::{LIST_ITEMS, field};
use crate::error::Error;
use crate::merge::{self, stats};
use crate::method::{List, Method};
use crate::proxy::fan_out::{Completeness, Contribution, ListQuery, NoContribution, owned_items};
use crate::proxy::learn::{Learner, ReceivedList};
use crate::proxy::reply::Outcome;
use crate::proxy::{Call, descriptors, refresh};
use crate::state::{ListKind, Revision, item_id};
use crate::wire;

/// The largest message made here, in bytes, unless one item is larger: grpc-go's default limit is 4 MiB.
const FRAME: usize = (4 << 20) - PREFIX - 1;
/// The largest message of a backend, in bytes.
const MAX_FRAME: usize = 256 << 20;
/// How many messages are buffered for the client.
const AHEAD: usize = 4;

/// One backend's share of a streamed list.
struct Share {
    query: ListQuery,
    /// The method that streams the list.
    method: &'static Method,
    /// The descriptors that pod metrics must fit.
    wanted: Option<Bytes>,
    out: Sink,
}

/// Where frames go.
enum Sink {
    /// To the client at once; the flag tells whether any item was sent.
    Client(mpsc::Sender<Bytes>, bool),
    /// To a buffer, for lists that are merged.
    Buffer(Vec<Bytes>),
}

/// Why a backend's stream is incomplete.
enum StreamFailure {
    /// The backend does not have the RPC.
    Unimplemented,
    /// The backend exceeded its deadline.
    Late,
    /// The stream failed.
    Broken(String),
    /// The backend answered with an error.
    Failed(Error),
    /// The client disconnected.
    ClientGone,
}

impl Call {
    /// Streams a list from all backends that may have matching items.
    pub(super) async fn stream_list(
        &mut self,
        method: &'static Method,
        list: List,
        message: Message,
    ) -> Result<Outcome, Error> {
        self.recorder.set_all_backends(&self.node);
        let wanted = match list {
            List::SandboxMetrics => self.target_descriptors().await,
            _ => None,
        };
        let queries = self.list_queries(method, list, &message)?.into_iter();
        let share = |query, out| Share { query, method, wanted: wanted.clone(), out };
        if list == List::Images {
            let shares = queries.map(|query| share(query, Sink::Buffer(Vec::new())));
            return self.send_merged(list, shares.collect()).await;
        }
        let (sender, end, frames) = Frames::channel(AHEAD);
        let shares: Vec<_> = queries.map(|query| share(query, Sink::Client(sender.clone(), false))).collect();
        let (node, scoped) = (Arc::clone(&self.node), self.scope.is_some());
        tokio::spawn(async move {
            let sent = async { join_all(shares.into_iter().map(Share::send)).await };
            let sent = tokio::select! {
                sent = sent => sent,
                () = sender.closed() => return,
            };
            let mut completeness = Completeness::default();
            for share in sent {
                completeness.add(share);
            }
            if let Err(error) = completeness.conclude(&node, list, scoped) {
                end.set(error).ok();
            }
        });
        Ok(Outcome::Messages(frames))
    }

    /// Buffers the shares of all backends, and sends the merged list as messages.
    async fn send_merged(&self, list: List, shares: Vec<Share>) -> Result<Outcome, Error> {
        let mut completeness = Completeness::default();
        let sent = join_all(shares.into_iter().map(Share::send)).await;
        let parts: Vec<_> = sent.into_iter().filter_map(|share| completeness.add(share)).collect();
        completeness.conclude(&self.node, list, self.scope.is_some())?;
        let default = self.node.default_in(self.scope);
        let parts: Vec<_> = parts.iter().map(|part| part.to_merge(default)).collect();
        let merged = concat(&merge::merge(list, &parts));
        let mut chunks = Vec::new();
        for frame in wire::split(&merged, FRAME)? {
            chunks.extend([Bytes::copy_from_slice(&codec::prefix(frame.len())), frame]);
        }
        Ok(Outcome::from_pieces(chunks))
    }
}

impl Share {
    /// Sends the backend's items, live or last-known.
    async fn send(mut self) -> Result<Contribution, NoContribution> {
        let class = MethodClass::of(self.method);
        let mut sent_frames = Vec::new();
        if !self.query.backend.health.is_unimplemented(self.method)
            && !self.query.backend.health.is_late(class)
        {
            match self.stream(&mut sent_frames).await {
                Ok(()) => return Ok(self.contribution(true, None)),
                Err(StreamFailure::ClientGone) => return Ok(self.contribution(false, None)),
                Err(StreamFailure::Unimplemented) => {
                    self.query.backend.health.record_unimplemented(self.method);
                }
                Err(StreamFailure::Late) => {
                    if self.query.wait.is_backends_own {
                        refresh::mark_late_and_refresh(
                            &self.query.node,
                            &self.query.backend,
                            class,
                            self.method,
                        );
                    }
                    return self.send_last_known(&sent_frames, None).await;
                }
                Err(StreamFailure::Broken(cause)) => {
                    refresh::record_failed_list_and_refresh(
                        &self.query.node,
                        &self.query.backend,
                        class,
                        cause,
                    );
                    return self.send_last_known(&sent_frames, None).await;
                }
                Err(StreamFailure::Failed(error)) => {
                    refresh::record_bad_list_and_refresh(
                        &self.query.node,
                        &self.query.backend,
                        class,
                        &error,
                    );
                    return self.send_last_known(&sent_frames, Some(error)).await;
                }
            }
        }
        let part = self.query.ask_or_last_known().await?;
        self.send_items(&items_not_in(self.query.list, &part.items, &sent_frames)).await;
        Ok(self.contribution(part.live, part.error))
    }

    /// Forwards the backend's own stream; every message is added to `sent_frames`.
    async fn stream(&mut self, sent_frames: &mut Vec<Bytes>) -> Result<(), StreamFailure> {
        let revision = self.query.backend.state.begin_read();
        let mut left = self.query.wait.time;
        let ListQuery { backend, headers, message, .. } = &self.query;
        let mut request = CallRequest::of(self.method, headers.clone(), message.framed());
        let calling = backend.call(&mut request);
        let reply = within_budget(&mut left, calling)
            .await?
            .map_err(|error| StreamFailure::Broken(error.to_string()))?;
        let mut body = reply.body;
        if let Some(code) = codec::status_code(&reply.headers) {
            return self.check_end(code, &reply.headers);
        }
        let mut deframer = Deframer::default();
        while let Some(chunk) = within_budget(&mut left, body.chunk()).await? {
            deframer.push(&chunk.map_err(|error| StreamFailure::Broken(error.to_string()))?);
            let failed = |error: Error| StreamFailure::Broken(error.to_string());
            while let Some(frame) = deframer.next(MAX_FRAME).map_err(failed)? {
                self.forward_frame(frame, sent_frames).await?;
            }
        }
        let (code, trailers) =
            within_budget(&mut left, trailing_code(&mut body)).await?.map_err(StreamFailure::Broken)?;
        self.check_end(code, &trailers)?;
        if !deframer.is_empty() {
            return Err(StreamFailure::Broken(format!("{} ended inside a message", self.method.name)));
        }
        self.record_list(revision, sent_frames);
        Ok(())
    }

    fn check_end(&self, code: Code, trailers: &HeaderMap) -> Result<(), StreamFailure> {
        match code {
            Code::Ok => Ok(()),
            Code::Unimplemented => Err(StreamFailure::Unimplemented),
            _ => Err(StreamFailure::Failed(self.query.backend.refused_error(self.method, trailers))),
        }
    }

    /// Checks one message, learns its owners and forwards it.
    async fn forward_frame(
        &mut self,
        frame: Bytes,
        sent_frames: &mut Vec<Bytes>,
    ) -> Result<(), StreamFailure> {
        let came = frame.slice(PREFIX..);
        let encoded = self
            .learner()
            .record_frame(self.query.list, &came)
            .map_err(|error| StreamFailure::Broken(error.to_string()))?;
        if encoded.is_empty() {
            return Ok(());
        }
        let ours = self.adapt_to_node(&encoded);
        sent_frames.push(encoded);
        let frame = if ours.as_ptr() == came.as_ptr() { frame } else { Message::new(&ours).framed() };
        if !ours.is_empty() && !self.send_frame(frame).await {
            return Err(StreamFailure::ClientGone);
        }
        Ok(())
    }

    fn record_list(&self, revision: Revision, sent_frames: &[Bytes]) {
        let ListQuery { list, filter, backend, .. } = &self.query;
        if ListKind::of(*list).is_none() {
            return;
        }
        let encoded = &concat(sent_frames);
        let received = ReceivedList { list: *list, revision, unfiltered: filter.is_empty(), encoded };
        if let Err(error) = self.learner().accept_list(received) {
            backend.health.record_error(error.to_string());
        }
    }

    fn learner(&self) -> Learner<'_> {
        Learner::new(&self.query.node, &self.query.backend)
    }

    /// Sends the last-known items that were not sent yet.
    async fn send_last_known(
        mut self,
        sent_frames: &[Bytes],
        error: Option<Error>,
    ) -> Result<Contribution, NoContribution> {
        let part = self.query.last_known(error)?;
        self.send_items(&items_not_in(self.query.list, &part.items, sent_frames)).await;
        Ok(self.contribution(false, part.error))
    }

    /// Sends a list as messages.
    async fn send_items(&mut self, items: &Bytes) {
        // What a unary list or the last-known state holds was read before, item by item.
        for frame in wire::split(&self.adapt_to_node(items), FRAME).unwrap_or_default() {
            if !self.send_frame(Message::new(&frame).framed()).await {
                return;
            }
        }
    }

    /// Returns the items with reordered labels, or without the paths of another host.
    fn adapt_to_node(&self, items: &Bytes) -> Bytes {
        let items = &owned_items(&self.query.backend, self.query.list, items.clone());
        match self.query.list {
            List::SandboxMetrics => descriptors::reorder(&self.query.backend, self.wanted.as_ref(), items),
            List::ContainerStats | List::SandboxStats if !self.query.backend.config().local => {
                stats::without_filesystems(self.query.list, items).unwrap_or_default()
            }
            _ => items.clone(),
        }
    }

    /// Sends a message. Returns false if the client disconnected.
    async fn send_frame(&mut self, frame: Bytes) -> bool {
        match &mut self.out {
            Sink::Client(client, sent) => {
                *sent |= frame.len() > PREFIX;
                client.send(frame).await.is_ok()
            }
            Sink::Buffer(frames) => {
                frames.push(frame.slice(PREFIX..));
                true
            }
        }
    }

    fn contribution(self, live: bool, error: Option<Error>) -> Contribution {
        let (items, has_items) = match &self.out {
            Sink::Client(_, sent) => (Bytes::new(), *sent),
            Sink::Buffer(frames) => (concat(frames), !frames.is_empty()),
        };
        Contribution { backend: self.query.backend, items, foreign: Vec::new(), has_items, live, error }
    }
}

/// Waits for a backend within its remaining budget; waiting for the client does not count.
async fn within_budget<T>(left: &mut Duration, future: impl Future<Output = T>) -> Result<T, StreamFailure> {
    let started = Instant::now();
    let answer = tokio::time::timeout(*left, future).await.map_err(|_| StreamFailure::Late);
    *left = left.saturating_sub(started.elapsed());
    answer
}

async fn trailing_code(body: &mut ReplyBody) -> Result<(Code, HeaderMap), String> {
    let trailers = std::future::poll_fn(|cx| body.poll_trailers(cx)).await;
    let trailers = trailers.map_err(|error| error.to_string())?.unwrap_or_default();
    let code = codec::status_code(&trailers).ok_or_else(|| body.without_status().to_string())?;
    Ok((code, trailers))
}

/// Returns the items of a list that are not in these messages.
fn items_not_in(list: List, items: &Bytes, frames: &[Bytes]) -> Bytes {
    if frames.is_empty() {
        return items.clone();
    }
    let key = |item| match ListKind::of(list) {
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

fn concat(pieces: &[Bytes]) -> Bytes {
    match pieces {
        [one] => one.clone(),
        _ => pieces.concat().into(),
    }
}
