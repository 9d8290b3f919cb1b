//! The life of a call: looked up in the method table, routed, and answered by one backend, by all, or by
//! crimux.
//!
//! ```text
//! request → method::parse_path → collect_request → Call::answer, by the row's route → CallRecorder::respond
//!
//! Owner       forward_to_owner    owner.rs, forward.rs    one backend: the owner of the ID
//! Handler     create_sandbox      create.rs               one backend: a target of the runtime handler
//! Image       forward_to_store    images.rs               the image store that the call means
//! FanOut      fan_out             fan_out.rs              all backends, one merged list
//! StreamList  stream_list         stream_lists.rs         all backends, message by message
//! Broadcast   broadcast           fan_out.rs              all backends, the first error counts
//! Local       answer_locally      answer.rs               composed from last replies
//! Events      subscribe_events    events.rs               one subscription to each backend
//! ```
//!
//! `serve` reads top to bottom; each route has a verb and a file below `proxy/`. The stages (router, backend,
//! merge) do not call each other, and all use the state: only this module knows the order of a call.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;

use crate::backend::RequestHeaders;
use crate::codec::{self, Message};
use crate::error::Error;
use crate::limits::ClientLimits;
use crate::method::{self, Method, Route};
use crate::state::InstanceId;
use crate::telemetry::spans;
pub use images::{CallExplanation, ImageExplanation, StoreExplanation};
pub use memory::NodeMemory;
pub use node::Node;
use reply::{CallRecorder, Outcome};

mod answer;
mod cgroup_drivers;
mod command_log;
mod create;
mod creation;
mod descriptors;
mod events;
mod failed_commands;
mod fan_out;
mod forward;
mod image_lists;
mod images;
mod learn;
mod left_out;
mod memory;
mod node;
mod owner;
mod placement;
mod pod_metrics;
mod pod_stats;
mod read;
mod recover;
mod refresh;
mod reply;
mod retry;
mod runtime_replies;
mod stream_lists;
mod stream_url;
mod unknown_ids;
mod wait;

/// One of crimux's sockets, as a service: the node's, or one that shows a single backend.
#[derive(Debug, Clone)]
pub struct Proxy {
    node: Arc<Node>,
    scope: Option<InstanceId>,
    /// Lists that the client of this connection may have in memory.
    list_permits: Arc<Semaphore>,
}

/// How many lists are collected, or wait to be read, for one connection at once. kubelet asks for a few; more
/// wait for their turn, so that a client that asks for many, or reads none, does not make crimux hold them
/// all.
const LISTS_AT_ONCE: usize = 16;

/// One RPC in flight.
#[derive(Debug)]
struct Call {
    node: Arc<Node>,
    /// The only backend this call may see; `None` for the node's socket.
    scope: Option<InstanceId>,
    /// The API that the client speaks.
    api: method::Api,
    /// The row; `None` for a method that is not in the table.
    method: Option<&'static Method>,
    /// The path, if it is no row's.
    path: String,
    /// Empty once [`Call::take_headers`] has given them to a request.
    headers: HeaderMap,
    /// The caller's timeout, from `grpc-timeout`.
    caller_timeout: Option<Duration>,
    recorder: CallRecorder,
    list_permits: Arc<Semaphore>,
    /// The permit of a list, held until its reply was read.
    list_permit: Option<OwnedSemaphorePermit>,
}

impl Proxy {
    /// Serves the whole node, or one backend alone.
    pub fn new(node: Arc<Node>, scope: Option<InstanceId>) -> Self {
        Self { node, scope, list_permits: Arc::new(Semaphore::new(LISTS_AT_ONCE)) }
    }

    /// Returns the same service for one more connection.
    #[must_use]
    pub fn for_connection(&self) -> Self {
        Self::new(Arc::clone(&self.node), self.scope)
    }

    /// Returns what clients may make crimux hold.
    pub fn limits(&self) -> &Arc<ClientLimits> {
        self.node.limits()
    }
}

/// Answers one request. Every way out of here is a gRPC response.
async fn serve(proxy: Proxy, request: Request<impl http_body::Body<Data = Bytes>>) -> Response<Body> {
    let (mut head, body) = request.into_parts();
    let Some(path) = method::parse_path(head.uri.path()) else {
        return reply::unimplemented_response(head.uri.path());
    };
    let span = spans::server(head.uri.path(), &mut head.headers);
    let mut call = Call {
        recorder: CallRecorder::new(&proxy.node, path.method, span),
        node: proxy.node,
        scope: proxy.scope,
        api: path.api,
        method: path.method,
        path: path.method.map_or_else(|| head.uri.path().to_owned(), |_| String::new()),
        caller_timeout: codec::caller_timeout(&head.headers),
        headers: head.headers,
        list_permits: proxy.list_permits,
        list_permit: None,
    };
    let outcome = match codec::collect_request(body).await {
        Ok(message) => call.answer(message).await,
        Err(error) => Err(error),
    };
    call.recorder.respond(outcome, call.list_permit)
}

impl Call {
    /// Takes the route of the method's row.
    async fn answer(&mut self, message: Message) -> Result<Outcome, Error> {
        let Some(method) = self.method else {
            return Box::pin(self.forward_unknown(message)).await;
        };
        match method.route {
            // The route of most calls is part of the future; the others are boxed, to keep the future small.
            Route::Owner(kind, on_unknown) => self.forward_to_owner(method, kind, on_unknown, message).await,
            Route::Handler(field) => Box::pin(self.create_sandbox(method, field, message)).await,
            Route::Image(image_call) => Box::pin(self.forward_to_store(method, image_call, message)).await,
            Route::FanOut(list) => Box::pin(self.fan_out(method, list, message))
                .await
                .inspect_err(|error| self.node.log_refused_list(method, error)),
            Route::Broadcast => Box::pin(self.broadcast(method, message)).await,
            Route::Local(answer) => Box::pin(self.answer_locally(answer, &message)).await,
            Route::StreamList(list) => Box::pin(self.stream_list(method, list, message)).await,
            Route::Events => Ok(self.subscribe_events()),
        }
    }

    /// Takes the client's headers, for the one request that they are sent with.
    fn take_headers(&mut self) -> RequestHeaders {
        RequestHeaders { map: std::mem::take(&mut self.headers), timeout: self.caller_timeout }
    }

    /// Returns a copy of the client's headers, for a call that is sent more than once.
    fn headers(&self) -> RequestHeaders {
        RequestHeaders { map: self.headers.clone(), timeout: self.caller_timeout }
    }

    /// Returns the backends that this call may see.
    fn backends(&self) -> Vec<Arc<crate::backend::Backend>> {
        self.node.backends_in(self.scope)
    }
}

impl<B: http_body::Body<Data = Bytes> + Send + 'static> tower::Service<Request<B>> for Proxy {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let proxy = self.clone();
        Box::pin(async move { Ok(serve(proxy, request).await) })
    }
}
