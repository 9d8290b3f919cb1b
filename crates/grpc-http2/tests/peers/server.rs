//! The server, against `h2`'s client and against clients that violate the protocol.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use grpc_http2::Error;
use grpc_http2::server::{IncomingRequest, RequestBody, ServerConfig, handshake};
use h2::client::SendRequest;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

use crate::{SETTINGS, SOON, Violation, collect, connection_errors, frame, pattern, send_all, stream_errors};

/// The longest request.
const LIMIT: usize = 1 << 20;
/// What an endless body has at a time.
const PART: usize = 1 << 14;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A body of these frames.
struct Parts(VecDeque<Result<Frame<Bytes>, Error>>);

impl Parts {
    fn new(parts: impl IntoIterator<Item = Bytes>, trailers: HeaderMap) -> Self {
        Self(parts.into_iter().map(Frame::data).chain([Frame::trailers(trailers)]).map(Ok).collect())
    }
}

impl Body for Parts {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Poll::Ready(self.0.pop_front())
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }
}

/// A body that never ends, and tells of each part that is taken.
struct Endless(UnboundedSender<usize>);

impl Body for Endless {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.0.send(PART).unwrap();
        Poll::Ready(Some(Ok(Frame::data(pattern(PART)))))
    }
}

/// The received bytes of a request's body, and whether it is complete.
async fn collected(request: Request<RequestBody>) -> (Bytes, Result<(), Error>) {
    let mut body = request.into_body();
    let mut whole = Bytes::new();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        match frame {
            Ok(frame) => whole = frame.into_data().expect("data"),
            Err(fault) => return (whole, Err(fault)),
        }
    }
    (whole, Ok(()))
}

fn named((name, value): (&str, HeaderValue)) -> (HeaderName, HeaderValue) {
    (name.parse().unwrap(), value)
}

/// Answers with the path and the headers of the request, with its body in parts of this size, and with its
/// length in the trailers.
async fn echo(request: Request<RequestBody>, part: usize) -> Response<Parts> {
    let mut headers = request.headers().clone();
    headers.insert("x-path", request.uri().path().parse().unwrap());
    let (body, how) = collected(request).await;
    let how = format!("{how:?}").parse().unwrap();
    let trailers = [("x-length", body.len().into()), ("x-how", how)].map(named).into_iter().collect();
    let parts = body.chunks(part).map(Bytes::copy_from_slice).collect::<Vec<_>>();
    let mut response = Response::new(Parts::new(parts, trailers));
    *response.headers_mut() = headers;
    response
}

/// Serves one connection, every call with `answer`; says goodbye when the sender that is returned is dropped.
/// Returns the client's end too, and how the connection ends.
fn serve<F, B>(
    answer: impl Fn(Request<RequestBody>) -> F + Send + Sync + 'static,
) -> (UnixStream, tokio::sync::oneshot::Sender<()>, JoinHandle<Option<Error>>)
where
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error = Error> + Send + 'static,
{
    let (near, far) = UnixStream::pair().unwrap();
    let (goodbye, mut said) = tokio::sync::oneshot::channel();
    let serving = tokio::spawn(async move {
        let mut server = handshake(far, ServerConfig { max_request: LIMIT, ..ServerConfig::default() });
        let mut is_ending = false;
        loop {
            let call = tokio::select! {
                call = server.accept() => call,
                _ = &mut said, if !is_ending => {
                    is_ending = true;
                    server.graceful_shutdown();
                    continue;
                }
            };
            let IncomingRequest { request, mut respond } = match call {
                Some(Ok(call)) => call,
                Some(Err(fault)) => return Some(fault),
                None => return None,
            };
            let answer = answer(request);
            tokio::spawn(async move {
                if let Some(response) = respond.unless_cancelled(answer).await {
                    respond.send_response(response).await;
                }
            });
        }
    });
    (near, goodbye, serving)
}

/// A request without its body.
fn post(path: &str) -> Request<()> {
    let request =
        Request::post(format!("http://localhost/{path}")).header("content-type", "application/grpc");
    request.body(()).unwrap()
}

/// Speaks to a server as another implementation does.
async fn speak(client: &mut h2::client::Builder, io: UnixStream) -> SendRequest<Bytes> {
    let (sender, connection) = client.handshake(io).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn call(sender: &SendRequest<Bytes>, body: Bytes) -> Result<(Bytes, HeaderMap), h2::Error> {
    let mut sender = sender.clone().ready().await?;
    let request = post("runtime.v1.RuntimeService/Status");
    let (response, mut sending) = sender.send_request(request, false)?;
    let answered = async {
        let mut response = response.await?.into_body();
        let whole = collect(&mut response).await.expect("the whole");
        Ok((whole, response.trailers().await?.unwrap_or_default()))
    };
    let sent = async {
        send_all(&mut sending, body).await.expect("it is taken");
        sending.send_data(Bytes::new(), true).unwrap();
    };
    futures_util::future::join(sent, answered).await.1
}

/// So many bytes that do not claim to be more.
fn message(len: usize) -> Bytes {
    [&[0; 5][..len.min(5)], &pattern(len.saturating_sub(5))].concat().into()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    /// Requests and replies of all sizes and in all parts, many at once, whatever windows and frames the peer
    /// has.
    #[test]
    fn every_call_has_its_own_reply(
        sizes in prop::collection::vec(prop_oneof![0..100_usize, 60_000..70_000_usize, 0..400_000_usize], 1..12),
        part in prop_oneof![1000..10_000_usize, 10_000..400_000_usize],
        window in 1_000_u32..200_000,
        whole_window in 65_535_u32..300_000,
        frame in 16_384_u32..100_000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (io, _goodbye, _serving) = serve(move |request| echo(request, part));
            let mut client = h2::client::Builder::new();
            client.initial_window_size(window).initial_connection_window_size(whole_window).max_frame_size(frame);
            let sender = speak(&mut client, io).await;
            let calls = sizes.iter().map(|&size| call(&sender, message(size)));
            let replies = tokio::time::timeout(SOON, join_all(calls)).await.expect("none hangs");
            for (&size, reply) in sizes.iter().zip(replies) {
                let (whole, trailers) = reply.expect("a reply");
                assert!(whole == message(size), "{} bytes for {size}", whole.len());
                assert_eq!(trailers["x-length"], size.to_string());
                assert_eq!(trailers["x-how"], "Ok(())");
            }
        });
    }
}

/// Counts the futures that are there.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn until(count: &AtomicUsize, wanted: usize) {
    let reached = async {
        while count.load(Ordering::SeqCst) != wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, reached).await.expect("it is reached");
}

#[tokio::test]
async fn a_call_ends_when_its_client_gives_it_up_and_all_end_when_it_goes() {
    let count = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&count);
    let (io, _goodbye, serving) = serve(move |_| {
        let counted = Counted::new(&counting);
        async move {
            std::future::pending::<()>().await;
            drop(counted);
            Response::new(Parts(VecDeque::new()))
        }
    });
    let (mut sender, connection) = h2::client::handshake(io).await.unwrap();
    let driving = tokio::spawn(connection);
    let mut calls = Vec::new();
    for _ in 0..3 {
        sender = sender.ready().await.unwrap();
        calls.push(sender.send_request(post("a/b"), true).unwrap());
    }
    until(&count, 3).await;
    calls.pop().unwrap().1.send_reset(h2::Reason::CANCEL);
    until(&count, 2).await;
    driving.abort();
    until(&count, 0).await;
    assert_eq!(serving.await.unwrap().unwrap().to_string(), "the peer closed the connection");
}

#[tokio::test]
async fn a_goodbye_lets_calls_end_and_the_connection_with_the_last() {
    let (let_go, held) = tokio::sync::watch::channel(false);
    let (io, goodbye, serving) = serve(move |request| {
        let mut held = held.clone();
        async move {
            held.wait_for(|go| *go).await.unwrap();
            echo(request, 100).await
        }
    });
    let mut sender = speak(&mut h2::client::Builder::new(), io).await;
    let first = tokio::spawn({
        let sender = sender.clone();
        async move { call(&sender, pattern(10)).await }
    });
    // A second call is known to the server, and with it the first.
    sender = sender.ready().await.unwrap();
    let (second, _) = sender.send_request(post("a/b"), true).unwrap();
    drop(goodbye);
    // It takes no more calls once it has heard.
    let heard = async {
        while std::future::poll_fn(|cx| sender.poll_ready(cx)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, heard).await.expect("it hears");
    assert!(!serving.is_finished());
    let_go.send(true).unwrap();
    assert_eq!(first.await.unwrap().expect("it was begun before").0, pattern(10));
    assert_eq!(second.await.unwrap().status(), 200);
    assert!(tokio::time::timeout(SOON, serving).await.expect("it ends").unwrap().is_none());
}

/// Begins a graceful shutdown of a connection; returns the client's end once the last GOAWAY has arrived and
/// the server has closed its side, and the server.
async fn shut_down() -> (UnixStream, JoinHandle<Option<Error>>) {
    let (mut near, goodbye, serving) = serve(|request| echo(request, 100));
    near.write_all(&after(&[])).await.unwrap();
    drop(goodbye);
    let mut received = Told { fault: None, heard: Vec::new() };
    let ping = frame(6, 0, 0, b"shutdown");
    while !received.has(&ping) {
        assert_ne!(near.read_buf(&mut received.heard).await.unwrap(), 0);
    }
    near.write_all(&frame(6, 1, 0, b"shutdown")).await.unwrap();
    while near.read_buf(&mut received.heard).await.unwrap() > 0 {}
    assert!(received.has(&frame(7, 0, 0, &[0; 8])), "{:?}", received.heard);
    (near, serving)
}

#[tokio::test]
async fn a_client_may_write_until_it_has_read_the_last_goaway() {
    let (mut near, serving) = shut_down().await;
    // A request that was queued before the client read the GOAWAY is ignored, and breaks nothing.
    for id in [1, 3] {
        near.write_all(&frame(1, 5, id, REQUEST)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!serving.is_finished());
    drop(near);
    assert!(tokio::time::timeout(SOON, serving).await.expect("it ends").unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_close_after_the_last_goaway_is_not_awaited_for_long() {
    let (mut near, serving) = shut_down().await;
    while !serving.is_finished() {
        let _ = near.write_all(&[0; 1 << 10]).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(serving.await.unwrap().is_none());
}

#[tokio::test]
async fn who_does_not_read_stops_the_one_reply_and_no_other() {
    let (sent, mut seen) = unbounded_channel();
    let (io, _goodbye, _serving) = serve(move |_| {
        let sent = sent.clone();
        async move { Response::new(Endless(sent)) }
    });
    let mut client = h2::client::Builder::new();
    client.initial_window_size(100_000).initial_connection_window_size(10 << 20);
    let mut sender = speak(&mut client, io).await.ready().await.unwrap();
    let request = || post("a/b");
    let (first, _) = sender.send_request(request(), true).unwrap();
    let first = first.await.unwrap().into_body();
    let mut taken = 0;
    while let Ok(Some(more)) = tokio::time::timeout(Duration::from_millis(300), seen.recv()).await {
        taken += more;
    }
    assert!((100_000..100_000 + 3 * PART).contains(&taken), "{taken} bytes for a window of 100000");
    // Another reply has its own window, and the first goes on once it is read.
    let mut sender = sender.ready().await.unwrap();
    let (second, _) = sender.send_request(request(), true).unwrap();
    for mut body in [second.await.unwrap().into_body(), first] {
        let mut read = 0;
        while read < 1 << 20 {
            let chunk = tokio::time::timeout(SOON, body.data()).await.expect("it goes on").unwrap().unwrap();
            body.flow_control().release_capacity(chunk.len()).unwrap();
            read += chunk.len();
        }
    }
}

#[tokio::test]
async fn a_large_reply_does_not_hold_up_a_small_one() {
    let (io, _goodbye, _serving) = serve(async |request: Request<RequestBody>| {
        let len = if request.uri().path() == "/large" { 4 << 20 } else { 100 << 10 };
        Response::new(Parts::new([pattern(len)], HeaderMap::new()))
    });
    // All of the large one fits its own window; what both share is small.
    let mut client = h2::client::Builder::new();
    client.initial_window_size(16 << 20);
    let mut sender = speak(&mut client, io).await;
    let mut bodies = Vec::new();
    for path in ["large", "small"] {
        sender = sender.ready().await.unwrap();
        let request = post(path);
        bodies.push(sender.send_request(request, true).unwrap().0.await.unwrap().into_body());
    }
    let (mut small, mut large) = (bodies.pop().unwrap(), bodies.pop().unwrap());
    let mut read = 0;
    let reading = async {
        while let Some(chunk) = large.data().await {
            let chunk = chunk.unwrap();
            large.flow_control().release_capacity(chunk.len()).unwrap();
            read += chunk.len();
        }
    };
    tokio::select! {
        biased;
        small = collect(&mut small) => assert_eq!(small.unwrap().len(), 100 << 10),
        () = reading => panic!("the small one came after the large one"),
    }
    assert!(read < 2 << 20, "{read} bytes of the large one came first");
}

/// `:method: POST`, `:scheme: http`, `:path: /a/b`, an `:authority` that no URI may have, and the content
/// type.
const REQUEST: &[u8] = b"\x83\x86\x04\x04/a/b\x01\x08%2Frun%2\x0f\x10\x10application/grpc";

/// What no server says.
const NEVER: &[u8] = b"the end";

/// What a client's script led to.
struct Told {
    /// How the connection ended.
    fault: Option<String>,
    /// All that the client heard.
    heard: Vec<u8>,
}

impl Told {
    fn has(&self, wanted: &[u8]) -> bool {
        self.heard.windows(wanted.len()).any(|part| part == wanted)
    }
}

/// A client that says these bytes, in chunks of this size, to a server that echoes, and goes when it has
/// heard that.
async fn scripted(script: &[u8], size: usize, until: &[u8]) -> Told {
    let (mut near, _goodbye, serving) = serve(|request| echo(request, 100));
    for chunk in script.chunks(size) {
        // It may be gone before it has heard all.
        if near.write_all(chunk).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    let mut told = Told { fault: None, heard: Vec::new() };
    let hearing =
        async { while !told.has(until) && near.read_buf(&mut told.heard).await.is_ok_and(|len| len > 0) {} };
    tokio::time::timeout(SOON, hearing).await.expect("it hears that, or the end");
    drop(near);
    let fault = tokio::time::timeout(SOON, serving).await.expect("it ends").unwrap();
    Told { fault: fault.map(|fault| fault.to_string()), ..told }
}

/// A whole introduction, and these frames after it.
fn after(frames: &[Vec<u8>]) -> Vec<u8> {
    [PREFACE, &SETTINGS, &frames.concat()].concat()
}

/// The requests are reset at once: half of a request, or a whole one, which may be handed out before.
#[tokio::test]
async fn a_turn_is_one_read_of_a_client_that_floods_with_small_frames() {
    const WAITING: usize = 2 << 20;
    const ONE_READ: usize = 256 << 10;
    for is_whole in [false, true] {
        let ids = (1..).step_by(2);
        let requests = ids.map(|id| {
            let flags = if is_whole { 5 } else { 4 };
            [frame(1, flags, id, REQUEST), frame(3, 0, id, &[0, 0, 0, 8])].concat()
        });
        let mut flood = after(&requests.take(WAITING / 48).collect::<Vec<_>>());
        flood.truncate(WAITING);
        let (mut near, far) = tokio::io::duplex(WAITING);
        near.write_all(&flood).await.unwrap();
        let mut server = handshake(far, ServerConfig::default());
        let serving = async { while let Some(Ok(_)) = server.accept().await {} };
        let mut serving = std::pin::pin!(serving);
        let turn = std::future::poll_fn(|cx| Poll::Ready(serving.as_mut().poll(cx))).await;
        assert!(turn.is_pending());
        let read = near.write(&flood).await.unwrap();
        assert!((1..=ONE_READ).contains(&read), "{read} bytes of {WAITING}");
    }
}

#[tokio::test]
async fn whatever_the_chunks_the_request_is_the_same() {
    let (first, second) = REQUEST.split_at(5);
    let script = after(&[
        frame(6, 0, 0, b"pingpong"),
        frame(0xfa, 0xff, 0, b"a frame of the future"),
        // Padded and with a priority, in two frames.
        frame(1, 0x8 | 0x20, 1, &[&[2, 0, 0, 0, 0, 9], first, &[0, 0]].concat()),
        frame(9, 4, 1, &[second, b"\x00\x03x-a\x01b"].concat()),
        frame(0, 0, 1, b"\0\0\0\0\x0bhel"),
        frame(0, 8, 1, &[&[3], &b"lo wor"[..], &[0; 3]].concat()),
        frame(0, 0, 1, b""),
        frame(0, 0, 1, b"ld"),
        // Trailers, which gRPC has not, a GOAWAY, and a frame that may cross the end of the stream.
        frame(1, 5, 1, b"\x00\x03x-b\x01c"),
        frame(7, 0, 0, &[0; 8]),
        frame(8, 0, 1, &[0, 0, 0, 9]),
    ]);
    for size in (1..40).chain([script.len()]) {
        let told = scripted(&script, size, b"x-length\x0216").await;
        for wanted in [&b"\x06x-path\x04/a/b"[..], b"\x03x-a\x01b", b"hello world", b"\x08x-length\x0216"] {
            assert!(
                told.has(wanted),
                "in chunks of {size}: {:?} {:?}",
                told.fault,
                String::from_utf8_lossy(&told.heard)
            );
        }
        assert!(told.has(&frame(6, 1, 0, b"pingpong")), "the ping is answered");
        assert_eq!(told.fault, None, "it has gone after its call");
    }
}

#[tokio::test]
async fn a_violation_ends_the_connection_with_the_code_of_the_rfc() {
    let mut cases = connection_errors(2 * ServerConfig::default().max_header_list as usize + 4096);
    let open = frame(1, 4, 1, REQUEST);
    cases.extend(
        [
            (frame(0, 0, 1, b"x"), 1, "an idle stream"),
            (frame(3, 0, 1, &[0; 4]), 1, "an idle stream"),
            (
                [frame(1, 5, 1, REQUEST), frame(3, 0, 1, &[0; 4]), open.clone()].concat(),
                5,
                "HEADERS on a closed stream",
            ),
            ([&open[..], &frame(0, 8, 1, &[200, 0])].concat(), 1, "padding"),
            ([&open[..], &frame(3, 0, 1, &[0; 5])].concat(), 6, "RST_STREAM has a wrong length"),
            ([frame(1, 4, 5, REQUEST), frame(1, 4, 3, REQUEST)].concat(), 1, "lower than the last one"),
            // A window that is large already, and an initial window that moves it out of its range.
            (
                [&open[..], &frame(8, 0, 1, &[0x7f, 0, 0, 0]), &frame(4, 0, 0, &[0, 4, 0x7f, 0, 0, 0])]
                    .concat(),
                3,
                "SETTINGS_INITIAL_WINDOW_SIZE",
            ),
        ]
        .map(|(frames, code, what)| Violation { frames, code, what }),
    );
    for case in &mut cases {
        case.frames = after(&[std::mem::take(&mut case.frames)]);
    }
    cases.extend(
        [b"GET / HTTP/1.1\r\n\r\n".to_vec(), [PREFACE, &frame(6, 0, 0, &[0; 8])].concat()]
            .map(|frames| Violation { frames, code: 1, what: "does not speak HTTP/2" }),
    );
    for Violation { frames, code, what } in cases {
        let told = scripted(&frames, 1 << 20, NEVER).await;
        let error = told.fault.as_deref().unwrap_or_default();
        assert!(error.contains(what), "{error} instead of {what}");
        let goaway = told.heard.windows(17).find(|part| part[3] == 7 && part[4..9] == [0; 5]);
        assert_eq!(goaway.map(|goaway| goaway[16]), Some(code), "{what}");
    }
}

#[tokio::test]
async fn a_frame_on_a_stream_that_is_not_open_is_a_stream_error() {
    let closed = frame(3, 0, 1, &[0, 0, 0, 5]);
    let ended = frame(1, 5, 1, REQUEST);
    let cancelled = [frame(1, 4, 1, REQUEST), frame(3, 0, 1, &[0, 0, 0, 8])].concat();
    for before in [ended, cancelled] {
        for late in [frame(0, 0, 1, b"late"), frame(0, 1, 1, b"")] {
            let told =
                scripted(&after(&[before.clone(), late, frame(1, 5, 3, REQUEST)]), 1 << 20, &closed).await;
            assert!(told.has(&closed), "{:x?}", told.heard);
        }
    }
    for (frames, code) in stream_errors() {
        let reset = frame(3, 0, 1, &[0, 0, 0, code]);
        let told = scripted(
            &after(&[frame(1, 4, 1, REQUEST), frames, frame(1, 5, 3, REQUEST)]),
            1 << 20,
            b"x-length",
        )
        .await;
        assert!(told.has(&reset) && told.has(b"/a/b"), "{code}");
    }
}

#[tokio::test]
async fn a_stream_beyond_the_limit_is_refused() {
    let config = ServerConfig { max_concurrent_streams: 2, ..ServerConfig::default() };
    let (mut near, far) = UnixStream::pair().unwrap();
    tokio::spawn(async move { handshake(far, config).accept().await.is_none() });
    let open = [1, 3, 5].map(|stream| frame(1, 4, stream, REQUEST));
    near.write_all(&after(&open)).await.unwrap();
    let mut heard = Vec::new();
    let refused = frame(3, 0, 5, &[0, 0, 0, 7]);
    while !heard.windows(refused.len()).any(|part| part == refused) {
        let more =
            tokio::time::timeout(SOON, near.read_buf(&mut heard)).await.expect("it is refused").unwrap();
        assert!(more > 0, "the connection goes on");
    }
    let announced = [0, 3, 0, 0, 0, 2];
    assert!(heard.windows(6).any(|part| part == announced), "SETTINGS_MAX_CONCURRENT_STREAMS");
}

#[tokio::test]
async fn a_request_that_is_not_grpc_is_answered_with_the_status_that_says_so() {
    let get = [b"\x82", &REQUEST[1..]].concat();
    let untyped = &REQUEST[..REQUEST.len() - 19];
    let many = [REQUEST, &b"\x00\x01a\x01b".repeat(2000)].concat();
    let other = [untyped, b"\x0f\x10\x10application/json"].concat();
    for (request, status, code) in
        [(&get[..], "405", "13"), (untyped, "415", "13"), (&other, "415", "13"), (&many, "grpc-status", "8")]
    {
        let code = [&b"grpc-status"[..], &[u8::try_from(code.len()).unwrap()], code.as_bytes()].concat();
        let told =
            scripted(&after(&[frame(1, 5, 1, request), frame(1, 5, 3, REQUEST)]), 1 << 20, b"x-length").await;
        assert!(told.has(status.as_bytes()) && told.has(&code), "{}", String::from_utf8_lossy(&told.heard));
        assert!(told.has(b"/a/b"), "the next is answered");
    }
}

#[tokio::test]
async fn a_ping_ack_that_was_not_asked_for_changes_nothing() {
    let told =
        scripted(&after(&[frame(6, 1, 0, b"shutdown"), frame(1, 5, 1, REQUEST)]), 1 << 20, b"x-length").await;
    assert!(told.has(b"/a/b"));
    assert!(!told.heard.windows(9).any(|part| part[3] == 7 && part[4..] == [0; 5]), "no GOAWAY");
}

#[tokio::test]
async fn a_malformed_request_is_reset_alone() {
    let end = frame(0, 1, 1, b"");
    let with = |field: &[u8]| frame(1, 5, 1, &[REQUEST, field].concat());
    let cases = [
        frame(1, 5, 1, b"\x83\x86"),
        frame(1, 5, 1, &[&[0x88], REQUEST].concat()),
        with(b"\x00\x03x-a\x01b\x84"),
        with(b"\x00\x0aconnection\x05close"),
        with(b"\x00\x03X-A\x01b"),
        with(b"\x00\x02te\x04gzip"),
        with(b"\x00\x03x-a\x02 b"),
        // No scheme, and an empty path.
        frame(1, 5, 1, b"\x83\x04\x04/a/b"),
        frame(1, 5, 1, b"\x83\x86\x04\x00"),
        // A content length that is not the body's.
        with(b"\x0f\x0d\x015"),
        [frame(1, 4, 1, &[REQUEST, b"\x0f\x0d\x015"].concat()), frame(0, 1, 1, b"four")].concat(),
        [frame(1, 4, 1, &[REQUEST, b"\x0f\x0d\x015"].concat()), frame(0, 0, 1, b"longer")].concat(),
        [frame(1, 4, 1, REQUEST), frame(1, 4, 1, REQUEST), end].concat(),
    ];
    for case in cases {
        let told = scripted(&after(&[case.clone(), frame(1, 5, 3, REQUEST)]), 1 << 20, b"x-length").await;
        assert!(told.has(&frame(3, 0, 1, &[0, 0, 0, 1])), "{case:x?} is reset: {:x?}", told.heard);
        assert!(told.has(b"/a/b"), "the next is answered");
    }
}

#[tokio::test]
async fn a_path_that_no_uri_can_have_is_handed_out_as_the_root() {
    for path in [&b"\x03a b"[..], b"\x03foo", b"\x0ahttp://x/y"] {
        let request = [b"\x83\x86\x04", path, &REQUEST[REQUEST.len() - 19..]].concat();
        let told = scripted(&after(&[frame(1, 5, 1, &request)]), 1 << 20, b"x-length").await;
        assert!(told.has(b"\x06x-path\x01/\0"), "{:?}", String::from_utf8_lossy(&told.heard));
    }
}

#[tokio::test]
async fn a_request_that_is_too_long_is_answered_at_once_and_the_rest_not_wanted() {
    let claim = |len: usize| [&[0][..], &u32::try_from(len).unwrap().to_be_bytes()].concat();
    // One that says so, and one that does not.
    let longer = [frame(0, 0, 1, &vec![0; 1 << 14]).repeat(64), frame(0, 0, 1, b"xyz")].concat();
    for (body, len) in [(frame(0, 0, 1, &claim(LIMIT)), LIMIT + 5), (longer, LIMIT + 3)] {
        let (mut near, _goodbye, _serving) = serve(async |request: Request<RequestBody>| {
            let path = request.uri().path().parse().unwrap();
            let how = format!("{:?}", collected(request).await.1).parse().unwrap();
            Response::new(Parts::new([], [("x-path", path), ("x-how", how)].map(named).into_iter().collect()))
        });
        near.write_all(&after(&[frame(1, 4, 1, REQUEST), body])).await.unwrap();
        let mut heard = Vec::new();
        let reset = frame(3, 0, 1, &[0; 4]);
        while !heard.ends_with(&reset) {
            let more = tokio::time::timeout(SOON, near.read_buf(&mut heard)).await.expect("at once").unwrap();
            assert!(more > 0, "it goes on");
        }
        let how = format!("Err(TooLarge({len}))");
        assert!(heard.windows(how.len()).any(|part| part == how.as_bytes()), "{len} bytes");
        // What was on its way is nobody's, and the connection goes on.
        near.write_all(&[frame(0, 1, 1, b"rest"), frame(1, 5, 3, REQUEST)].concat()).await.unwrap();
        while !heard.windows(4).any(|part| part == b"/a/b") {
            tokio::time::timeout(SOON, near.read_buf(&mut heard)).await.expect("it is answered").unwrap();
        }
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_is_reset() {
    let (io, _goodbye, _serving) = serve(async |request: Request<RequestBody>| {
        assert!(request.headers().get("x-panic").is_none(), "as told");
        Response::new(Parts([Ok(Frame::data(pattern(10))), Err(Error::Closed("".into()))].into()))
    });
    let sender = speak(&mut h2::client::Builder::new(), io).await;
    for header in ["x-panic", "x-none"] {
        let mut request = post("a/b");
        request.headers_mut().insert(header, "1".parse().unwrap());
        let (response, _) = sender.clone().ready().await.unwrap().send_request(request, true).unwrap();
        let error = match response.await {
            Err(error) => error,
            Ok(response) => {
                let mut body = response.into_body();
                loop {
                    if let Err(error) = body.data().await.expect("not its end") {
                        break error;
                    }
                }
            }
        };
        assert_eq!(error.reason(), Some(h2::Reason::INTERNAL_ERROR), "{header}");
    }
}

#[tokio::test]
async fn a_response_may_be_its_header_alone_and_may_have_no_trailers() {
    let (io, _goodbye, _serving) = serve(async |request: Request<RequestBody>| {
        let parts = if request.uri().path() == "/none" { vec![] } else { vec![Ok(Frame::data(pattern(10)))] };
        Response::builder().status(418).body(Parts(parts.into())).unwrap()
    });
    let sender = speak(&mut h2::client::Builder::new(), io).await;
    for (path, len) in [("none", 0), ("some", 10)] {
        let request = post(path);
        let (response, _) = sender.clone().ready().await.unwrap().send_request(request, true).unwrap();
        let response = response.await.unwrap();
        assert_eq!((response.status().as_u16(), response.body().is_end_stream()), (418, len == 0));
        let mut body = response.into_body();
        assert_eq!(collect(&mut body).await.unwrap(), pattern(len));
        assert!(body.trailers().await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_peer_that_wants_no_table_is_spoken_to_without_one() {
    let (io, _goodbye, _serving) = serve(|request| echo(request, 100));
    let mut client = h2::client::Builder::new();
    client.header_table_size(0);
    let sender = speak(&mut client, io).await;
    for _ in 0..2 {
        assert_eq!(call(&sender, pattern(1)).await.unwrap().0, pattern(1));
    }
}

#[tokio::test]
async fn trailers_beyond_what_the_client_accepts_arrive_shortened() {
    for with_body in [false, true] {
        let (io, _goodbye, _serving) = serve(move |_: Request<RequestBody>| async move {
            let message = "%20".repeat(1000).parse().unwrap();
            let end: HeaderMap = [("grpc-status", "2".parse().unwrap()), ("grpc-message", message)]
                .map(named)
                .into_iter()
                .collect();
            let mut response =
                Response::new(if with_body { Parts::new([], end.clone()) } else { Parts([].into()) });
            if !with_body {
                *response.headers_mut() = end;
            }
            response
        });
        let mut client = h2::client::Builder::new();
        client.max_header_list_size(1000);
        let sender = speak(&mut client, io).await;
        let (response, _) = sender.ready().await.unwrap().send_request(post("a/b"), true).unwrap();
        let response = response.await.unwrap();
        let headers = response.headers().clone();
        let end = if with_body { response.into_body().trailers().await.unwrap().unwrap() } else { headers };
        assert_eq!(end["grpc-status"], "2");
        let message = end["grpc-message"].to_str().unwrap();
        assert!((700..1000).contains(&message.len()) && message.len() % 3 == 0, "{} bytes", message.len());
    }
}
