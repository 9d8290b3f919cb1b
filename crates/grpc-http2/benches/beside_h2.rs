//! Unary calls over a pair of Unix sockets with this crate on both sides, and with h2 on both sides.
//!
//! Everything runs on one thread, so that the time of a call is the CPU that both sides need for it, the
//! kernel's part included. Rounds of both alternate, and the fastest of each counts: other load only
//! makes a round slower. `cargo bench -p grpc-http2`.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use grpc_http2::client::{self, ClientConfig};
use grpc_http2::grpc::message_prefix;
use grpc_http2::server::{self, ServerConfig};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::net::UnixStream;

const ROUNDS: usize = 7;
const PATH: &str = "/runtime.v1.RuntimeService/ContainerStatus";
/// Windows as this crate has them, for h2 too.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 1 << 30;

/// How many calls are open at once, of how many, and how long a reply is in bytes.
struct Case {
    name: &'static str,
    callers: usize,
    calls: usize,
    reply: usize,
}

const CASES: [Case; 4] = [
    Case { name: "1 caller, 1 KiB", callers: 1, calls: 4000, reply: 1 << 10 },
    Case { name: "16 callers, 1 KiB", callers: 16, calls: 8000, reply: 1 << 10 },
    Case { name: "1 caller, 256 KiB", callers: 1, calls: 400, reply: 256 << 10 },
    Case { name: "1 caller, 2 MiB", callers: 1, calls: 60, reply: 2 << 20 },
];

fn main() {
    // `cargo test --benches` only wants to know that it runs.
    let is_test = !std::env::args().any(|argument| argument == "--bench");
    println!("{:<20}{:>14}{:>14}{:>8}", "", "grpc-http2", "h2", "ratio");
    for case in CASES {
        let (rounds, calls) = if is_test { (1, case.callers) } else { (ROUNDS, case.calls) };
        let (mut ours, mut h2) = (Duration::MAX, Duration::MAX);
        for _ in 0..rounds {
            ours = ours.min(timed(calls, with_this_crate(&case, calls)));
            h2 = h2.min(timed(calls, with_h2(&case, calls)));
        }
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let ratio = micros(ours) / micros(h2);
        println!("{:<20}{:>11.1} µs{:>11.1} µs{ratio:>8.2}", case.name, micros(ours), micros(h2));
    }
}

/// Returns the time of one call.
fn timed(calls: usize, run: impl Future<Output = Duration>) -> Duration {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run) / u32::try_from(calls).expect("few calls")
}

/// Makes `calls` calls, so many at once as the case says.
async fn make<F: Future<Output = usize>>(case: &Case, calls: usize, call: impl Fn() -> F) -> Duration {
    let started = Instant::now();
    let one_after_another = async |_| {
        for _ in 0..calls / case.callers {
            assert_eq!(call().await, message(case.reply).len());
        }
    };
    join_all((0..case.callers).map(one_after_another)).await;
    started.elapsed()
}

async fn with_this_crate(case: &Case, calls: usize) -> Duration {
    let (near, far) = UnixStream::pair().expect("two sockets");
    let reply = message(case.reply);
    let serving = tokio::spawn(async move {
        let mut connection = server::handshake(far, ServerConfig::default());
        while let Some(Ok(call)) = connection.accept().await {
            let mut response = Response::new(Reply(Some(reply.clone()), true));
            *response.headers_mut() = headers();
            tokio::spawn(call.respond.send_response(response));
        }
    });
    let (sender, connection) = client::handshake(near, ClientConfig::default());
    tokio::spawn(connection);
    let (headers, request) = (headers(), message(64));
    let took = make(case, calls, async || {
        let mut call =
            sender.send_request(PATH, &headers, |_| false, request.clone()).await.expect("it is sent");
        call.response().await.expect("a head");
        let body = call.collect(usize::MAX).await.expect("a body");
        std::future::poll_fn(|cx| call.poll_trailers(cx)).await.expect("trailers");
        body.len()
    });
    let took = took.await;
    serving.abort();
    took
}

async fn with_h2(case: &Case, calls: usize) -> Duration {
    let (near, far) = UnixStream::pair().expect("two sockets");
    let reply = message(case.reply);
    let serving = tokio::spawn(async move {
        let mut builder = h2::server::Builder::new();
        builder.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
        let mut connection = builder.handshake::<_, Bytes>(far).await.expect("a handshake");
        while let Some(Ok((request, respond))) = connection.accept().await {
            tokio::spawn(answer_by_h2(request.into_body(), respond, reply.clone()));
        }
    });
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
    builder.max_frame_size(1 << 18);
    let (sender, connection) = builder.handshake::<_, Bytes>(near).await.expect("a handshake");
    tokio::spawn(connection);
    let request = message(64);
    let took = make(case, calls, async || {
        let mut head = Request::post(format!("http://localhost{PATH}")).body(()).expect("a request");
        *head.headers_mut() = headers();
        let mut sender = sender.clone().ready().await.expect("it is open");
        let (response, mut body) = sender.send_request(head, false).expect("it is sent");
        body.send_data(request.clone(), true).expect("it is sent");
        collect_by_h2(response.await.expect("a head").into_body()).await.len()
    });
    let took = took.await;
    serving.abort();
    took
}

async fn answer_by_h2(request: h2::RecvStream, mut respond: h2::server::SendResponse<Bytes>, reply: Bytes) {
    collect_by_h2(request).await;
    let mut head = Response::new(());
    *head.headers_mut() = headers();
    let mut body = respond.send_response(head, false).expect("it is sent");
    body.send_data(reply, false).expect("it is sent");
    body.send_trailers(trailers()).expect("it is sent");
}

/// Gathers a body into one buffer, as this crate does.
async fn collect_by_h2(mut body: h2::RecvStream) -> Bytes {
    let mut whole = BytesMut::new();
    while let Some(part) = body.data().await {
        let part = part.expect("a part");
        body.flow_control().release_capacity(part.len()).expect("it was received");
        whole.extend_from_slice(&part);
    }
    body.trailers().await.expect("trailers");
    whole.freeze()
}

/// A gRPC message of so many bytes, with its prefix.
fn message(len: usize) -> Bytes {
    [&message_prefix(len)[..], &vec![7; len]].concat().into()
}

/// Headers of a request and of a response, about as gRPC has them.
fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    headers.insert("te", HeaderValue::from_static("trailers"));
    headers.insert("user-agent", HeaderValue::from_static("grpc-go/1.72.0"));
    headers.insert("grpc-timeout", HeaderValue::from_static("119990m"));
    headers
}

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([("grpc-status".parse().expect("a name"), HeaderValue::from_static("0"))])
}

/// A buffered reply, and whether its trailers are still to come.
struct Reply(Option<Bytes>, bool);

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = self.0.take().map(Frame::data);
        let frame = data.or_else(|| std::mem::take(&mut self.1).then(|| Frame::trailers(trailers())));
        Poll::Ready(frame.map(Ok))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |data| data.len() as u64))
    }
}
