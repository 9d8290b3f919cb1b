//! Calls to a backend: sends a request, and streams or collects the reply.
//!
//! A call to a backend that is down fails at once. A call in flight when the connection is lost ends with an
//! error of crimux. Every other reply is the backend's own and passes unchanged. HTTP/2 is the client of
//! `grpc-http2`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use grpc_http2::Error as Http2Error;
use grpc_http2::client::{ClientStream, SendRequest};
use grpc_http2::grpc::GrpcCode;
use http::{HeaderMap, HeaderName, StatusCode};
use tonic::Code;

use super::Backend;
use super::link::{Channel, Link};
use crate::codec::{self, Message};
use crate::error::Error;
use crate::method::{self, Deadline, ImageCall, InFlightLimit, Method, Route, Rpc};
use crate::telemetry::spans::{self, CallSpan};

/// The largest reply in bytes: what gRPC clients of the CRI read.
const MAX_REPLY: usize = codec::PREFIX + (16 << 20);
/// The largest reply to `ExecSync`: both streams of 16 MiB, which is what containerd and CRI-O keep of one.
const MAX_EXEC_SYNC: usize = codec::PREFIX + (33 << 20);

/// A call without an answer ends this long before its caller's deadline, or after nine tenths of it if that
/// is later.
const DEADLINE_MARGIN: Duration = Duration::from_millis(250);

/// A call as it is sent to a backend.
#[derive(Debug)]
pub struct CallRequest<'a> {
    /// The row; `None` for a method that is not in the table.
    pub method: Option<&'static Method>,
    /// The client's path, for a method that is not in the table; of the others it is the row's.
    pub path: &'a str,
    /// The client's headers, or [`own_headers`].
    pub headers: RequestHeaders,
    /// The framed message.
    pub message: Bytes,
    /// The message that the reply probably is, for a reply that is collected: its bytes are then shared, and
    /// not copied.
    pub expected: Option<Bytes>,
}

/// The headers of a request, with the timeout that they announce.
#[derive(Debug, Clone)]
pub struct RequestHeaders {
    /// The headers.
    pub map: HeaderMap,
    /// `grpc-timeout`; `None` if the caller waits forever.
    pub timeout: Option<Duration>,
}

impl CallRequest<'static> {
    /// Returns the request for a method of the table.
    pub fn of(method: &'static Method, headers: RequestHeaders, message: Bytes) -> Self {
        Self { method: Some(method), path: "", headers, message, expected: None }
    }
}

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
    expected: Option<Bytes>,
}

/// A complete reply.
#[derive(Debug)]
pub struct BufferedReply {
    /// The backend's response headers.
    pub headers: HeaderMap,
    /// The message; empty if the status is not OK.
    pub message: Message,
    /// The backend's trailers; for a trailers-only reply they are its headers.
    pub trailers: HeaderMap,
    /// The status.
    pub code: Code,
}

impl BufferedReply {
    /// Returns an empty reply with code OK.
    pub fn empty() -> Self {
        let (headers, trailers) = (codec::reply_headers(), codec::ok_trailers());
        Self { headers, message: Message::new(&[]), trailers, code: Code::Ok }
    }
}

/// One call in flight; it holds a slot of `max_in_flight`, and records the backend's time when dropped.
#[derive(Debug)]
struct InFlightGuard {
    backend: Arc<Backend>,
    method: usize,
    limit: InFlightLimit,
    started: Instant,
    span: Option<CallSpan>,
}

impl Backend {
    /// Sends a request and returns the head of the reply.
    ///
    /// The client's headers are forwarded, except those for which `is_not_forwarded` is true.
    ///
    /// # Errors
    /// [`Error::Down`] at once if it cannot be reached, [`Error::Busy`] if `max_in_flight` is reached,
    /// [`Error::Lost`] if the connection ends first, [`Error::CallerDeadline`] before the caller's deadline,
    /// [`Error::InvalidReply`] for a reply that is not gRPC. Before the backend's API is known,
    /// `Unimplemented` is [`Error::NotReady`]: clients take it for a missing feature, and it may only mean
    /// the other API.
    pub async fn call(self: &Arc<Self>, request: &mut CallRequest<'_>) -> Result<Reply, Error> {
        let channel = self.channel().await?;
        let reply = self.call_over(&channel, request).await?;
        if !self.is_api_known() && codec::status_code(&reply.headers) == Some(Code::Unimplemented) {
            return Err(self.not_ready_error("has not answered Version, so its API is not known yet"));
        }
        Ok(reply)
    }

    /// Sends a request over `channel`.
    pub(super) async fn call_over(
        self: &Arc<Self>,
        channel: &Channel,
        request: &mut CallRequest<'_>,
    ) -> Result<Reply, Error> {
        let method = request.method;
        let mut flight = self.acquire_slot(method)?;
        let head_timeout = HeadTimeout::of(&self.name, method, request.headers.timeout);
        let path = crate::method::path(method, request.path, channel.api);
        flight.span = spans::client(&path, &self.name, &mut request.headers.map);
        match self.send(&channel.sender, &path, request, head_timeout).await {
            Ok((headers, stream)) => {
                flight.record_end(|| codec::status_code(&headers));
                let expected = request.expected.take();
                Ok(Reply { headers, body: ReplyBody { stream, flight, expected } })
            }
            Err(error) => {
                flight.record_end(|| Some(error.code()));
                Err(error)
            }
        }
    }

    async fn send(
        &self,
        sender: &SendRequest,
        path: &str,
        request: &CallRequest<'_>,
        head_timeout: Option<HeadTimeout>,
    ) -> Result<(HeaderMap, ClientStream), Error> {
        let answered = async {
            match send_request(sender, path, request).await {
                // GOAWAY says that the request was not processed (RFC 9113, 6.8), so it is safe to send it
                // again.
                Err(Http2Error::GoAway(_)) => {
                    Box::pin(async {
                        let channel = self.next_channel().await?;
                        send_request(&channel.sender, path, request)
                            .await
                            .map_err(|error| self.http2_error(&error))
                    })
                    .await
                }
                answer => answer.map_err(|error| self.http2_error(&error)),
            }
        };
        let answer = match head_timeout {
            None => answered.await,
            Some(HeadTimeout { after, error }) => {
                tokio::time::timeout(after, answered).await.map_err(|_| error)?
            }
        };
        let ((status, headers), stream) = answer?;
        // A gRPC status counts, whatever the HTTP status is.
        if status != StatusCode::OK && codec::status_code(&headers).is_none() {
            let code = Code::from_i32(GrpcCode::from_http_status(status) as i32);
            return Err(self.no_status_error(code, format!("HTTP status {status}")));
        }
        Ok((headers, stream))
    }

    /// Sends a request and collects the whole reply.
    ///
    /// # Errors
    /// As [`Backend::call`]; also [`Error::InvalidReply`] for a reply without exactly one message.
    pub async fn fetch(
        self: &Arc<Self>,
        method: &'static Method,
        headers: RequestHeaders,
        message: Bytes,
    ) -> Result<BufferedReply, Error> {
        self.call(&mut CallRequest::of(method, headers, message)).await?.collect().await
    }

    /// Sends a request and collects the whole reply within `limit`.
    ///
    /// # Errors
    /// As [`Backend::fetch`]; [`Error::Timeout`] after `limit`.
    pub async fn fetch_within(
        self: &Arc<Self>,
        limit: Duration,
        method: &'static Method,
        headers: RequestHeaders,
        message: Bytes,
    ) -> Result<BufferedReply, Error> {
        let reply = tokio::time::timeout(limit, self.fetch(method, headers, message)).await;
        reply.unwrap_or_else(|_| Err(self.timeout_error(method, limit)))
    }

    /// Returns the channel to the backend; waits for the first attempt to connect.
    pub(super) async fn channel(&self) -> Result<Channel, Error> {
        if let Link::Up { sender, api, .. } = &*self.link.borrow() {
            return Ok(Channel { sender: sender.clone(), api: *api });
        }
        let mut link = self.link.subscribe();
        let first = link.wait_for(|link| !matches!(link, Link::Connecting));
        // After a timeout the link is still `Connecting`, which is handled below.
        tokio::time::timeout(self.config.load().timeouts.connect, first).await.ok();
        match &*self.link.borrow() {
            Link::Up { sender, api, .. } => Ok(Channel { sender: sender.clone(), api: *api }),
            Link::Down { since, cause } => Err(self.down_error(*since, cause)),
            Link::Connecting => Err(self.not_ready_error("is not connected yet")),
        }
    }

    /// Returns the channel of the next connection, after GOAWAY on the current one.
    async fn next_channel(&self) -> Result<Channel, Error> {
        let mut link = self.link.subscribe();
        let next = link.wait_for(|link| match link {
            Link::Up { sender, .. } => !sender.is_closed_to_new(),
            Link::Connecting => false,
            Link::Down { .. } => true,
        });
        tokio::time::timeout(self.config.load().timeouts.connect, next).await.ok();
        self.channel().await
    }

    /// Takes a slot for a call in flight.
    fn acquire_slot(self: &Arc<Self>, method: Option<&'static Method>) -> Result<InFlightGuard, Error> {
        let max = self.config.load().max_in_flight;
        let limit = method.map_or(InFlightLimit::Unbounded, Method::in_flight_limit);
        let in_flight = self.in_flight[limit as usize].fetch_add(1, Ordering::Relaxed);
        let method = method.map_or(crate::method::COUNT, |method| method.index);
        let flight =
            InFlightGuard { backend: Arc::clone(self), method, limit, started: Instant::now(), span: None };
        if in_flight >= max { Err(self.busy_error(max)) } else { Ok(flight) }
    }

    /// Returns the largest reply to a method, in bytes.
    fn max_reply(&self, method: usize) -> usize {
        match method::all().get(method) {
            Some(Method { rpc: Rpc::ExecSync, .. }) => MAX_EXEC_SYNC,
            Some(Method { route: Route::FanOut(_), .. }) => codec::PREFIX + self.config.load().max_list,
            _ => MAX_REPLY,
        }
    }

    fn http2_error(&self, error: &Http2Error) -> Error {
        let with_code = |code| self.no_status_error(code, error.clone());
        match error {
            Http2Error::TooLarge(_) => self.invalid_reply_error(error.clone()),
            // gRPC's table of codes, except INTERNAL: the stream broke, and kubelet must take that for a
            // backend that is unavailable.
            Http2Error::Reset(reason) if GrpcCode::from_reason(*reason) != GrpcCode::Internal => {
                with_code(Code::from_i32(GrpcCode::from_reason(*reason) as i32))
            }
            // As grpc-go's client does.
            Http2Error::HeadersTooLarge { .. } => with_code(Code::Internal),
            _ => self.lost_error(error.clone()),
        }
    }
}

impl Reply {
    /// Collects the rest of a unary reply.
    ///
    /// # Errors
    /// [`Error::Lost`] or [`Error::InvalidReply`].
    pub async fn collect(self) -> Result<BufferedReply, Error> {
        let Self { headers, mut body } = self;
        let backend = Arc::clone(&body.flight.backend);
        let limit = backend.max_reply(body.flight.method);
        let whole = body.stream.collect_unless_expected(limit).await;
        let message = match whole.map_err(|error| backend.http2_error(&error))? {
            Some(whole) => Message::from_body(whole).map_err(|error| backend.invalid_reply_error(error))?,
            None => body.expected.take().map(Message::from_encoded),
        };
        let trailers = match codec::status_code(&headers) {
            Some(_) => headers.clone(),
            None => body.trailers().await?,
        };
        let code =
            codec::status_code(&trailers).ok_or_else(|| backend.invalid_reply_error("no gRPC status"))?;
        let message = match message {
            None if code == Code::Ok => {
                return Err(backend.invalid_reply_error("status OK without a message"));
            }
            message => message.unwrap_or_default(),
        };
        Ok(BufferedReply { headers, message, trailers, code })
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
        self.stream.poll_data(cx).map(|chunk| Some(chunk?.map_err(|error| backend.http2_error(&error))))
    }

    /// Polls for the trailers, after all data was read; `None` for a trailers-only reply.
    pub fn poll_trailers(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<Option<HeaderMap>, Error>> {
        let trailers = self.stream.poll_trailers(cx).map_err(|error| self.flight.backend.http2_error(&error));
        if let std::task::Poll::Ready(Ok(Some(trailers))) = &trailers {
            self.flight.record_end(|| codec::status_code(trailers));
        }
        trailers
    }

    async fn trailers(&mut self) -> Result<HeaderMap, Error> {
        Ok(std::future::poll_fn(|cx| self.poll_trailers(cx)).await?.unwrap_or_default())
    }

    /// Returns the error for a reply that ended without a status.
    pub fn without_status(&self) -> Error {
        self.flight.backend.invalid_reply_error("the reply ended without a gRPC status")
    }
}

impl InFlightGuard {
    /// Records the final status in the span, if there is a span.
    fn record_end(&mut self, code: impl FnOnce() -> Option<Code>) {
        if let Some(span) = &mut self.span
            && let Some(code) = code()
        {
            span.end(code);
        }
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.backend.in_flight[self.limit as usize].fetch_sub(1, Ordering::Relaxed);
        self.backend.calls.backend_took(self.method, self.started.elapsed());
    }
}

/// The timeout for the head of a reply, and the error of a call that exceeds it.
struct HeadTimeout {
    after: Duration,
    error: Error,
}

impl HeadTimeout {
    /// Ends shortly before the caller's deadline, because kubelet counts an `ExecSync` that ends with
    /// `DeadlineExceeded` as a failed probe, and one that ends with `Unavailable` not. Only a pull ends with
    /// `DeadlineExceeded`: kubelet sets no deadline for it, and critest `image.go` expects this code.
    fn of(backend: &Arc<str>, method: Option<&'static Method>, caller: Option<Duration>) -> Option<Self> {
        // The proxy enforces the deadlines of lists and reads, which are shorter than the caller's.
        if method.is_some_and(|method| method.deadline != Deadline::Caller) {
            return None;
        }
        let caller = caller?;
        let waited = caller.saturating_sub(caller.mul_f64(0.1).min(DEADLINE_MARGIN));
        let backend = Arc::clone(backend);
        let error = match method.map(|method| method.route) {
            Some(Route::Image(ImageCall::Pull)) => Error::PullDeadline { backend, waited },
            _ => Error::CallerDeadline { backend, waited },
        };
        Some(Self { after: waited, error })
    }
}

/// Sends a request and waits for the head of its reply.
async fn send_request(
    sender: &SendRequest,
    path: &str,
    request: &CallRequest<'_>,
) -> Result<((StatusCode, HeaderMap), ClientStream), Http2Error> {
    let CallRequest { headers, message, expected, .. } = request;
    let mut stream = sender.send_request(path, &headers.map, is_not_forwarded, message.clone()).await?;
    if let Some(expected) = expected {
        stream.expect_message(expected.clone());
    }
    stream.response().await.map(|head| (head, stream))
}

/// Returns the headers of calls that crimux makes itself and waits for at most this long.
pub fn own_headers(timeout: Duration) -> RequestHeaders {
    let mut headers = codec::reply_headers();
    headers.insert("te", http::HeaderValue::from_static("trailers"));
    headers
        .insert("user-agent", http::HeaderValue::from_static(concat!("crimux/", env!("CARGO_PKG_VERSION"))));
    if let Ok(announced) = format!("{}m", timeout.as_millis()).parse() {
        headers.insert("grpc-timeout", announced);
    }
    RequestHeaders { map: headers, timeout: Some(timeout) }
}

/// Tells whether a header of the client is not forwarded: replies that crimux reads must be uncompressed, the
/// message may differ from the one that `content-length` was sent for, and `host` is the backend's own.
fn is_not_forwarded(name: &HeaderName) -> bool {
    matches!(name.as_str(), "grpc-accept-encoding" | "content-length" | "host")
}
