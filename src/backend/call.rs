//! A call to a backend: sent over the connection, watched to its end, collected or passed on.
//!
//! A call to a backend that is down fails at once; a call in flight when the connection is lost ends with an
//! error of ours; everything else is the backend's own answer, passed on as it came. The forward lane speaks
//! HTTP/2 through the client of `grpc-http2`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use grpc_http2::Error as Http2Error;
use grpc_http2::client::{ClientStream, SendRequest};
use grpc_http2::grpc::GrpcCode;
use http::{HeaderMap, HeaderName, StatusCode};
use tonic::Code;

use super::{Backend, Link};
use crate::codec::{self, Message};
use crate::error::Error;
use crate::method::{self, Api, Deadline, ImageCall, Method, Place, Route};
use crate::telemetry::spans::{self, CallSpan};

/// The largest reply in bytes: what gRPC clients of the CRI read.
const MAX_REPLY: usize = codec::PREFIX + (16 << 20);
/// The largest reply to `ExecSync`: both streams of 16 MiB, which is what containerd and CRI-O keep of one.
const MAX_EXEC_SYNC: usize = codec::PREFIX + (33 << 20);

/// How long before the caller's deadline a call without an answer ends at most.
const MARGIN: Duration = Duration::from_millis(250);

/// The head of a reply, and a body that is still arriving.
#[derive(Debug)]
pub struct Reply {
    /// The backend's response headers.
    pub headers: HeaderMap,
    /// The rest of the reply.
    pub body: ReplyBody,
}

/// The body of a reply, as it arrives.
#[derive(Debug)]
pub struct ReplyBody {
    stream: ClientStream,
    flight: InFlightGuard,
}

/// A reply that has arrived whole.
#[derive(Debug)]
pub struct Collected {
    /// The backend's response headers.
    pub headers: HeaderMap,
    /// The message; empty where the status is not OK.
    pub message: Message,
    /// The backend's trailers; for a trailers-only reply they are its headers.
    pub trailers: HeaderMap,
    /// The status.
    pub code: Code,
}

/// One call in flight: counts itself, and what the backend took, when dropped.
#[derive(Debug)]
struct InFlightGuard {
    backend: Arc<Backend>,
    method: usize,
    place: Place,
    started: Instant,
    span: Option<CallSpan>,
}

impl Backend {
    /// Sends a request and returns the head of the reply.
    ///
    /// The request's headers go as they are, less what belongs to the connection.
    ///
    /// # Errors
    /// [`Error::Down`] at once if it cannot be reached, [`Error::Busy`] at the bound of `max_in_flight`,
    /// [`Error::Lost`] if the connection ends first, [`Error::Overdue`] shortly before the caller gives up,
    /// [`Error::Garbage`] for an answer that is not gRPC.
    pub async fn call(
        self: &Arc<Self>,
        method: Option<&'static Method>,
        path: &str,
        headers: HeaderMap,
        message: Bytes,
    ) -> Result<Reply, Error> {
        let (sender, api) = self.sender().await?;
        self.call_over(sender, api, method, path, headers, message).await
    }

    /// Sends a request over this connection, in this API.
    pub(super) async fn call_over(
        self: &Arc<Self>,
        sender: SendRequest,
        api: Api,
        method: Option<&'static Method>,
        path: &str,
        mut headers: HeaderMap,
        message: Bytes,
    ) -> Result<Reply, Error> {
        let mut flight = self.take_off(method)?;
        let patience = HeadTimeout::of(&self.name, method, &headers);
        let path = crate::method::path(method, path, api);
        flight.span = spans::client(&path, &self.name, &mut headers);
        match self.send(&sender, &path, &headers, message, patience).await {
            Ok((headers, stream)) => {
                flight.note_end(codec::status_code(&headers));
                Ok(Reply { headers, body: ReplyBody { stream, flight } })
            }
            Err(error) => {
                flight.note_end(Some(error.code()));
                Err(error)
            }
        }
    }

    async fn send(
        &self,
        sender: &SendRequest,
        path: &str,
        headers: &HeaderMap,
        message: Bytes,
        patience: Option<HeadTimeout>,
    ) -> Result<(HeaderMap, ClientStream), Error> {
        let answered = async {
            match ask(sender, path, headers, message.clone()).await {
                // What a goodbye refuses was not looked at: it is as good as never sent.
                Err(Http2Error::GoAway(_)) => {
                    Box::pin(async {
                        let (sender, _) = self.next_sender().await?;
                        ask(&sender, path, headers, message)
                            .await
                            .map_err(|error| self.transport_error(&error))
                    })
                    .await
                }
                answer => answer.map_err(|error| self.transport_error(&error)),
            }
        };
        let answer = match patience {
            None => answered.await,
            Some(HeadTimeout { waited, ends }) => {
                tokio::time::timeout(waited, answered).await.map_err(|_| ends)?
            }
        };
        let ((status, headers), stream) = answer?;
        // What has a status of gRPC is gRPC's answer, whatever HTTP says.
        if status != StatusCode::OK && codec::status_code(&headers).is_none() {
            let code = Code::from_i32(GrpcCode::from_http_status(status) as i32);
            return Err(Error::Transport {
                backend: Arc::clone(&self.name),
                code,
                cause: format!("HTTP status {status}"),
            });
        }
        Ok((headers, stream))
    }

    /// Sends a request and collects the whole reply.
    ///
    /// # Errors
    /// As [`Backend::call`]; also [`Error::Garbage`] for a reply that is no single message.
    pub async fn fetch(
        self: &Arc<Self>,
        method: &'static Method,
        headers: HeaderMap,
        message: Bytes,
    ) -> Result<Collected, Error> {
        self.call(Some(method), "", headers, message).await?.collect().await
    }

    /// Sends a request and collects the whole reply within `limit`.
    ///
    /// # Errors
    /// As [`Backend::fetch`]; [`Error::NotInTime`] after `limit`.
    pub async fn fetch_within(
        self: &Arc<Self>,
        limit: Duration,
        method: &'static Method,
        headers: HeaderMap,
        message: Bytes,
    ) -> Result<Collected, Error> {
        let reply = tokio::time::timeout(limit, self.fetch(method, headers, message)).await;
        reply.unwrap_or_else(|_| {
            Err(Error::NotInTime { backend: Arc::clone(&self.name), method: method.name, limit })
        })
    }

    pub(super) async fn sender(&self) -> Result<(SendRequest, Api), Error> {
        if let Link::Up { sender, api, .. } = &*self.link.borrow() {
            return Ok((sender.clone(), *api));
        }
        let mut link = self.link.subscribe();
        let first = link.wait_for(|link| !matches!(link, Link::Connecting));
        // When the wait ends without an outcome the link is still `Connecting`, and says so below.
        tokio::time::timeout(self.config.load().timeouts.connect, first).await.ok();
        match &*self.link.borrow() {
            Link::Up { sender, api, .. } => Ok((sender.clone(), *api)),
            Link::Down { since, cause } => {
                Err(Error::Down { backend: Arc::clone(&self.name), since: *since, cause: Arc::clone(cause) })
            }
            Link::Connecting => {
                Err(Error::Lost { backend: Arc::clone(&self.name), cause: "not connected yet".to_owned() })
            }
        }
    }

    /// Returns the sender of the connection that takes the place of one that takes no more calls.
    async fn next_sender(&self) -> Result<(SendRequest, Api), Error> {
        let mut link = self.link.subscribe();
        let next = link.wait_for(|link| match link {
            Link::Up { sender, .. } => !sender.is_closed_to_new(),
            Link::Connecting => false,
            Link::Down { .. } => true,
        });
        tokio::time::timeout(self.config.load().timeouts.connect, next).await.ok();
        self.sender().await
    }

    fn take_off(self: &Arc<Self>, method: Option<&'static Method>) -> Result<InFlightGuard, Error> {
        let limit = self.config.load().max_in_flight;
        let place = method.map_or(Place::Write, Method::place);
        let flying = self.in_flight[place as usize].fetch_add(1, Ordering::Relaxed);
        let method = method.map_or(crate::method::COUNT, |method| method.index);
        let flight =
            InFlightGuard { backend: Arc::clone(self), method, place, started: Instant::now(), span: None };
        if flying >= limit { Err(Error::Busy { backend: Arc::clone(&self.name), limit }) } else { Ok(flight) }
    }

    /// Returns the largest reply to a method, in bytes.
    fn max_reply(&self, method: usize) -> usize {
        match method::all().get(method) {
            Some(Method { name: "ExecSync", .. }) => MAX_EXEC_SYNC,
            Some(Method { route: Route::FanOut(_), .. }) => codec::PREFIX + self.config.load().max_list,
            _ => MAX_REPLY,
        }
    }

    fn transport_error(&self, error: &Http2Error) -> Error {
        let with_code =
            |code| Error::Transport { backend: Arc::clone(&self.name), code, cause: error.to_string() };
        match error {
            Http2Error::TooLarge(_) => self.garbage(error.to_string()),
            // gRPC's table, but for what it calls INTERNAL: the stream broke, and to kubelet a broken call is
            // one to a backend that cannot be asked at the moment.
            Http2Error::Reset(reason) if GrpcCode::from_reason(*reason) != GrpcCode::Internal => {
                with_code(Code::from_i32(GrpcCode::from_reason(*reason) as i32))
            }
            // As grpc-go's client answers it.
            Http2Error::HeadersTooLarge { .. } => with_code(Code::Internal),
            _ => Error::Lost { backend: Arc::clone(&self.name), cause: error.to_string() },
        }
    }
}

impl Reply {
    /// Collects the rest of a unary reply.
    ///
    /// # Errors
    /// [`Error::Lost`] or [`Error::Garbage`].
    pub async fn collect(self) -> Result<Collected, Error> {
        let Self { headers, mut body } = self;
        let backend = Arc::clone(&body.flight.backend);
        let limit = backend.max_reply(body.flight.method);
        let whole = body.stream.collect(limit).await.map_err(|error| backend.transport_error(&error))?;
        let message = Message::whole(whole).map_err(|error| backend.garbage(error.to_string()))?;
        let trailers = match codec::status_code(&headers) {
            Some(_) => headers.clone(),
            None => body.trailers().await?,
        };
        let code = codec::status_code(&trailers).ok_or_else(|| backend.garbage("no gRPC status"))?;
        let message = match message {
            None if code == Code::Ok => return Err(backend.garbage("status OK without a message")),
            message => message.unwrap_or_default(),
        };
        Ok(Collected { headers, message, trailers, code })
    }
}

impl ReplyBody {
    /// Returns the next chunk; `None` at the end of the data.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, Error>> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// Polls for the next chunk.
    pub fn poll_chunk(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Bytes, Error>>> {
        let backend = &self.flight.backend;
        self.stream.poll_data(cx).map(|chunk| Some(chunk?.map_err(|error| backend.transport_error(&error))))
    }

    /// Polls for the trailers, once all data was read; none for a trailers-only reply.
    pub fn poll_trailers(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<Option<HeaderMap>, Error>> {
        let trailers =
            self.stream.poll_trailers(cx).map_err(|error| self.flight.backend.transport_error(&error));
        if let std::task::Poll::Ready(Ok(Some(trailers))) = &trailers {
            self.flight.note_end(codec::status_code(trailers));
        }
        trailers
    }

    async fn trailers(&mut self) -> Result<HeaderMap, Error> {
        Ok(std::future::poll_fn(|cx| self.poll_trailers(cx)).await?.unwrap_or_default())
    }

    /// Returns the error for a reply that ended without a status.
    pub fn without_status(&self) -> Error {
        self.flight.backend.garbage("the reply ended without a gRPC status")
    }
}

impl InFlightGuard {
    /// Notes the status that the call ended with, for its span.
    fn note_end(&mut self, code: Option<Code>) {
        if let (Some(span), Some(code)) = (&mut self.span, code) {
            span.ended(code);
        }
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.backend.in_flight[self.place as usize].fetch_sub(1, Ordering::Relaxed);
        self.backend.calls.backend_took(self.method, self.started.elapsed());
    }
}

/// How long the head of a reply is waited for, and how a call that outlasts it ends.
struct HeadTimeout {
    waited: Duration,
    ends: Error,
}

impl HeadTimeout {
    /// Waits until shortly before the caller gives up, because an `ExecSync` that ends by deadline is a
    /// failed probe to kubelet and one that ends `Unavailable` is not. A pull does end by its caller's
    /// deadline: kubelet sets none, and critest `image.go` looks for `DeadlineExceeded`.
    fn of(backend: &Arc<str>, method: Option<&'static Method>, headers: &HeaderMap) -> Option<Self> {
        // Lists and reads have a deadline of their own, which the proxy keeps, before the caller's.
        if method.is_some_and(|method| method.deadline != Deadline::Caller) {
            return None;
        }
        let caller = codec::caller_timeout(headers)?;
        let waited = caller.saturating_sub(caller.mul_f64(0.1).min(MARGIN));
        let backend = Arc::clone(backend);
        let ends = match method.map(|method| method.route) {
            Some(Route::Image(ImageCall::Pull)) => Error::Expired { backend, waited },
            _ => Error::Overdue { backend, waited },
        };
        Some(Self { waited, ends })
    }
}

/// Sends a request and waits for the head of its reply.
async fn ask(
    sender: &SendRequest,
    path: &str,
    headers: &HeaderMap,
    message: Bytes,
) -> Result<((StatusCode, HeaderMap), ClientStream), Http2Error> {
    let mut stream = sender.send_request(path, headers, stays_here, message).await?;
    stream.response().await.map(|head| (head, stream))
}

/// Headers for calls that crimux makes by itself.
pub fn own_headers(timeout: Duration) -> HeaderMap {
    let mut headers = codec::reply_headers();
    headers.insert("te", http::HeaderValue::from_static("trailers"));
    headers
        .insert("user-agent", http::HeaderValue::from_static(concat!("crimux/", env!("CARGO_PKG_VERSION"))));
    if let Ok(timeout) = format!("{}m", timeout.as_millis()).parse() {
        headers.insert("grpc-timeout", timeout);
    }
    headers
}

/// Tells whether a header of the client is not sent on: a reply that crimux must read has to come
/// uncompressed, the message may be another than the one whose length was told, and a host is what a backend
/// knows itself by.
fn stays_here(name: &HeaderName) -> bool {
    matches!(name.as_str(), "grpc-accept-encoding" | "content-length" | "host")
}
