//! The client of the forward lane, against `h2`'s server and against peers that break the protocol.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use crimux::http2::{Exchange, Fault, Sender, connect};
use futures_util::future::join_all;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response, StatusCode};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::{SETTINGS, SOON, breaks, collect, frame, pattern, send_all};

/// The window that one call has.
const WINDOW: usize = 16 << 20;
/// No limit.
const ANY: usize = usize::MAX;

/// Serves one connection, every call with `answer`, and returns the client's end.
fn serve<F>(
    server: h2::server::Builder,
    answer: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + Sync + 'static,
) -> (Sender, JoinHandle<Result<(), Fault>>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (near, far) = UnixStream::pair().unwrap();
    tokio::spawn(async move {
        let mut connection = server.handshake(far).await.unwrap();
        while let Some(Ok((request, respond))) = connection.accept().await {
            tokio::spawn(answer(request, respond));
        }
    });
    let (sender, connection) = connect(near);
    (sender, tokio::spawn(connection))
}

async fn call(sender: &Sender, body: impl Into<Bytes>) -> Result<Exchange, Fault> {
    let mut headers = HeaderMap::new();
    headers.insert("te", "trailers".parse().unwrap());
    sender.send("/runtime.v1.RuntimeService/Status", &headers, |_| false, body.into()).await
}

/// Makes a call and gathers its reply.
async fn fetch(sender: &Sender, body: impl Into<Bytes>) -> Result<(Bytes, HeaderMap), Fault> {
    let mut exchange = call(sender, body).await?;
    let (status, _) = exchange.head().await?;
    assert_eq!(status, StatusCode::OK);
    let whole = exchange.whole(ANY).await?;
    let trailers = std::future::poll_fn(|cx| exchange.poll_trailers(cx)).await?;
    Ok((whole, trailers.unwrap_or_default()))
}

/// Answers with the request, and with its length in the trailers.
async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let Some(data) = collect(&mut request.into_body()).await else { return };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    trailers.insert("x-length", data.len().into());
    let Ok(mut body) = respond.send_response(Response::new(()), false) else { return };
    if send_all(&mut body, data).await.is_some() {
        body.send_trailers(trailers).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    /// Requests and replies of all sizes, many at once, whatever windows and frames the peer has.
    #[test]
    fn every_call_has_its_own_reply(
        sizes in prop::collection::vec(prop_oneof![0..100_usize, 60_000..70_000_usize, 0..400_000_usize], 1..12),
        window in 1_u32..200_000,
        frame in 16_384_u32..100_000,
        at_once in 1_u32..5,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut server = h2::server::Builder::new();
            server.initial_window_size(window).max_frame_size(frame).max_concurrent_streams(at_once);
            let (sender, _connection) = serve(server, echo);
            fetch(&sender, "the settings are known after this").await.unwrap();
            let calls = sizes.iter().map(|&size| fetch(&sender, pattern(size)));
            let replies = tokio::time::timeout(SOON, join_all(calls)).await.expect("none hangs");
            for (&size, reply) in sizes.iter().zip(replies) {
                let (whole, trailers) = reply.expect("a reply");
                assert!(whole == pattern(size), "{} bytes for {size}", whole.len());
                assert_eq!(trailers["x-length"], size.to_string());
            }
        });
    }
}

#[tokio::test]
async fn no_more_calls_are_open_than_the_peer_allows_and_one_that_went_away_leaves_its_place() {
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let mut server = h2::server::Builder::new();
    server.max_concurrent_streams(2);
    let (sender, _connection) = serve(server, move |request, respond| {
        let (open, most) = (Arc::clone(&open), Arc::clone(&most));
        async move {
            most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(5)).await;
            open.fetch_sub(1, Ordering::SeqCst);
            echo(request, respond).await;
        }
    });
    fetch(&sender, "the settings are known after this").await.unwrap();
    let calls = (0..20_u64).map(async |number| {
        let patience = if number % 4 == 3 { Duration::from_millis(1) } else { SOON };
        tokio::time::timeout(patience, fetch(&sender, "x")).await.is_ok()
    });
    let answered = join_all(calls).await.into_iter().filter(|answered| *answered).count();
    assert!(answered >= 15, "{answered} were answered");
    assert!(seen.load(Ordering::SeqCst) <= 2, "{} at once", seen.load(Ordering::SeqCst));
}

#[tokio::test]
async fn who_does_not_read_stops_the_one_stream_and_no_other() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let (sender, _connection) = serve(h2::server::Builder::new(), move |request, mut respond| {
        let counted = Arc::clone(&counted);
        async move {
            if request.headers().get("x-endless").is_none() {
                return echo(request, respond).await;
            }
            let mut body = respond.send_response(Response::new(()), false).unwrap();
            while send_all(&mut body, pattern(1 << 16)).await.is_some() {
                counted.fetch_add(1 << 16, Ordering::SeqCst);
            }
        }
    });
    let headers = HeaderMap::from_iter([("x-endless".parse().unwrap(), "1".parse().unwrap())]);
    let mut endless = sender.send("/endless", &headers, |_| false, Bytes::new()).await.unwrap();
    endless.head().await.unwrap();
    let mut last = usize::MAX;
    while last != sent.swap(sent.load(Ordering::SeqCst), Ordering::SeqCst) {
        last = sent.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(last <= WINDOW, "{last} bytes for one who does not read");
    let large =
        tokio::time::timeout(SOON, fetch(&sender, pattern(8 << 20))).await.expect("it is not stopped");
    assert_eq!(large.unwrap().0.len(), 8 << 20);
    let mut read = 0;
    while read < 2 * WINDOW {
        let chunk = tokio::time::timeout(SOON, std::future::poll_fn(|cx| endless.poll_data(cx))).await;
        read += chunk.expect("it goes on").expect("it is endless").unwrap().len();
    }
}

#[tokio::test]
async fn a_call_that_is_given_up_is_cancelled_at_the_peer() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let (sender, _connection) = serve(h2::server::Builder::new(), move |_request, mut respond| {
        let tell = tell.clone();
        async move {
            tell.send(None).unwrap();
            let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await.ok();
            tell.send(reason).unwrap();
        }
    });
    let exchange = call(&sender, "x").await.unwrap();
    assert_eq!(told.recv().await, Some(None));
    drop(exchange);
    let reason = tokio::time::timeout(SOON, told.recv()).await.expect("it hears of it");
    assert_eq!(reason, Some(Some(Reason::CANCEL)));
}

#[tokio::test]
async fn a_call_that_the_peer_resets_says_so() {
    let (sender, _connection) = serve(h2::server::Builder::new(), async |_request, mut respond| {
        respond.send_reset(Reason::ENHANCE_YOUR_CALM);
    });
    let fault = fetch(&sender, "x").await.unwrap_err();
    assert_eq!(fault.to_string(), "the peer reset the call: ENHANCE_YOUR_CALM");
    let fault = fetch(&sender, "x").await.unwrap_err();
    assert!(matches!(fault, Fault::Reset(_)), "the connection goes on: {fault}");
}

#[tokio::test]
async fn a_goaway_lets_calls_end_and_takes_no_new_ones() {
    let (near, far) = UnixStream::pair().unwrap();
    let (go, gone) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        let mut server: h2::server::Connection<_, Bytes> = h2::server::handshake(far).await.unwrap();
        let (request, respond) = server.accept().await.unwrap().unwrap();
        server.graceful_shutdown();
        tokio::spawn(async move {
            gone.await.unwrap();
            echo(request, respond).await;
        });
        std::future::poll_fn(|cx| server.poll_closed(cx)).await.unwrap();
    });
    let (sender, connection) = connect(near);
    let connection = tokio::spawn(connection);
    let mut first = call(&sender, "x").await.unwrap();
    tokio::time::timeout(SOON, sender.retired()).await.expect("it is told");
    let refused = fetch(&sender, "x").await.unwrap_err();
    assert!(matches!(refused, Fault::GoAway(0)), "{refused}");
    go.send(()).unwrap();
    first.head().await.unwrap();
    assert_eq!(first.whole(ANY).await.unwrap(), "x");
    drop(first);
    tokio::time::timeout(SOON, connection).await.expect("it ends").unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_ends_with_its_last_sender_and_not_before_its_calls() {
    let (sender, connection) = serve(h2::server::Builder::new(), echo);
    let mut exchange = call(&sender, "x").await.unwrap();
    drop(sender);
    exchange.head().await.unwrap();
    assert_eq!(exchange.whole(ANY).await.unwrap(), "x");
    tokio::time::timeout(SOON, connection).await.expect("it ends").unwrap().unwrap();
}

/// `:status: 200`.
const OK: &[u8] = &[0x88];
/// `grpc-status: 0`, a literal.
const TRAILERS: &[u8] = b"\x00\x0bgrpc-status\x010";

/// A peer that says these bytes, in chunks of this size, once it was asked, and reads until the end. Returns how
/// the one call ended and how the connection did.
async fn scripted(
    script: Vec<u8>,
    size: usize,
) -> (Result<(Bytes, HeaderMap), Fault>, Result<(), Fault>, Vec<u8>) {
    let (near, mut far) = UnixStream::pair().unwrap();
    let (sender, connection) = connect(near);
    let connection = tokio::spawn(connection);
    let peer = tokio::spawn(async move {
        let mut heard = vec![0; 1 << 16];
        let len = far.read(&mut heard).await.unwrap();
        heard.truncate(len);
        for chunk in script.chunks(size) {
            // It may be gone before it has heard all.
            if far.write_all(chunk).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        far.shutdown().await.ok();
        far.read_to_end(&mut heard).await.ok();
        heard
    });
    let fetched = tokio::time::timeout(SOON, fetch(&sender, "x")).await.expect("the call ends");
    let ended = tokio::time::timeout(SOON, connection).await.expect("the connection ends").unwrap();
    (fetched, ended, peer.await.unwrap())
}

#[tokio::test]
async fn whatever_the_chunks_the_reply_is_the_same() {
    let script = [
        SETTINGS.to_vec(),
        frame(6, 0, 0, b"pingpong"),
        frame(0xfa, 0xff, 0, b"a frame of the future"),
        // 103 and a header, padded and with a priority, in two frames.
        frame(1, 4, 1, b"\x08\x03103"),
        frame(
            1,
            0x8 | 0x20,
            1,
            &[&[2, 0, 0, 0, 0, 9], OK, b"\x00\x03x-a\x01b"[..3].as_ref(), &[0, 0]].concat(),
        ),
        frame(9, 4, 1, b"x-a\x01b".as_slice().split_at(1).1),
        frame(0, 0, 1, b"\0\0\0\0\x0bhello"),
        frame(0, 8, 1, &[&[3], &b" world"[..], &[0; 3]].concat()),
        frame(0, 0, 1, b""),
        frame(1, 5, 1, TRAILERS),
        // A word too late.
        frame(0, 0, 1, b"late"),
        frame(8, 0, 1, &[0, 0, 0, 9]),
    ];
    let script = script.concat();
    for size in (1..40).chain([script.len()]) {
        let (fetched, ended, heard) = scripted(script.clone(), size).await;
        let (whole, trailers) = fetched.unwrap_or_else(|fault| panic!("in chunks of {size}: {fault}"));
        assert_eq!(whole, &b"\0\0\0\0\x0bhello world"[..], "in chunks of {size}");
        assert_eq!(trailers["grpc-status"], "0");
        assert_eq!(ended.unwrap_err().to_string(), "the peer closed the connection");
        let pong = frame(6, 1, 0, b"pingpong");
        assert!(heard.windows(pong.len()).any(|part| part == pong), "the ping is answered");
    }
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_ends_the_connection_with_a_reason() {
    let mut cases = breaks();
    cases.extend([(frame(0, 8, 1, &[200, 0]), "its padding is wrong"), (frame(3, 0, 1, &[0]), "too short")]);
    let after = cases.into_iter().map(|(frames, why)| ([&SETTINGS[..], &frames].concat(), why));
    let strangers = [b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), frame(6, 0, 0, &[0; 8])];
    let strangers = strangers.map(|script| (script, "it does not speak HTTP/2"));
    for (script, expected) in after.chain(strangers) {
        let (fetched, ended, _) = scripted(script, 1 << 20).await;
        let fault = ended.unwrap_err().to_string();
        assert!(fault.contains(expected), "{fault} instead of {expected}");
        assert_eq!(fetched.unwrap_err().to_string(), fault, "the call ends for the same reason");
    }
}

#[tokio::test]
async fn a_reply_that_is_none_ends_its_call_alone() {
    let cases = [
        (vec![frame(0, 0, 1, b"x")], "data comes before its header"),
        (vec![frame(1, 4, 1, TRAILERS)], "out of order"),
        (vec![frame(1, 4, 1, OK), frame(1, 4, 1, OK)], "out of order"),
        (vec![frame(1, 4, 1, &[0x88, 0x83])], "a field of its header is none"),
        (vec![frame(3, 0, 1, &[0, 0, 0, 7])], "REFUSED_STREAM"),
    ];
    for (frames, expected) in cases {
        let (fetched, ended, _) = scripted([SETTINGS.to_vec(), frames.concat()].concat(), 1 << 20).await;
        let fault = fetched.unwrap_err().to_string();
        assert!(fault.contains(expected), "{fault} instead of {expected}");
        assert_eq!(ended.unwrap_err().to_string(), "the peer closed the connection", "it went on");
    }
}

#[tokio::test]
async fn a_reply_is_as_long_as_its_caller_takes_and_no_longer() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let (sender, connection) = connect(near);
    tokio::spawn(connection);
    // It claims 1 MiB, and sends nothing of it.
    let script = [SETTINGS.to_vec(), frame(1, 4, 1, OK), frame(0, 0, 1, &[0, 0, 0x10, 0, 0, 1])].concat();
    far.write_all(&script).await.unwrap();
    let mut exchange = call(&sender, "x").await.unwrap();
    exchange.head().await.unwrap();
    let fault = tokio::time::timeout(SOON, exchange.whole(1 << 16)).await.expect("at once").unwrap_err();
    assert!(matches!(fault, Fault::TooLarge(len) if len == (1 << 20) + 5), "{fault}");
}

#[tokio::test]
async fn what_is_taken_as_it_comes_has_no_more_room_than_it_needs() {
    let (sender, _connection) = serve(h2::server::Builder::new(), async |_request, mut respond| {
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        for _ in 0..8 {
            // Read as a prefix, each of these claims 4 GiB.
            body.send_data(Bytes::from_static(&[0xff; 100]), false).unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        body.send_data(Bytes::new(), true).unwrap();
    });
    let mut exchange = call(&sender, "x").await.unwrap();
    let mut parts = 0;
    while let Some(part) = std::future::poll_fn(|cx| exchange.poll_data(cx)).await {
        let part = part.unwrap().try_into_mut().expect("nobody else has it");
        parts += 1;
        assert!(parts == 1 || part.capacity() < 4096, "{} bytes for {}", part.capacity(), part.len());
    }
    assert!(parts > 1, "they came in one");
}

#[tokio::test]
async fn a_peer_that_asks_and_never_reads_is_not_read_from_for_ever() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let (_sender, connection) = connect(near);
    tokio::spawn(connection);
    far.write_all(&SETTINGS).await.unwrap();
    let pings: Vec<u8> = (0..1 << 12).flat_map(|_| frame(6, 0, 0, &[0; 8])).collect();
    let flood = async {
        // 70 kB of pings each time; 16 MiB of answers in all.
        for _ in 0..240 {
            for ping in pings.chunks_exact(9 + 8) {
                far.write_all(ping).await.unwrap();
            }
        }
    };
    {
        let mut flood = pin!(flood);
        assert!(tokio::time::timeout(Duration::from_secs(2), &mut flood).await.is_err(), "it is not stopped");
    }
    // Once it reads it is read from again, to its last ping.
    let (mut answers, mut questions) = far.into_split();
    let asking = tokio::spawn(async move {
        questions.write_all(&frame(6, 0, 0, b"the last")).await.unwrap();
        questions
    });
    let mut heard = vec![0; 1 << 16];
    let mut tail = Vec::new();
    let last = frame(6, 1, 0, b"the last");
    let listening = async {
        while !tail.windows(last.len()).any(|part| part == last) {
            let len = answers.read(&mut heard).await.unwrap();
            tail.drain(..tail.len().saturating_sub(last.len()));
            tail.extend_from_slice(&heard[..len]);
        }
    };
    tokio::time::timeout(SOON, listening).await.expect("it goes on");
    asking.await.unwrap();
}
