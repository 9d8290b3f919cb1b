//! The client, against `h2`'s server and against servers that violate the protocol.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use grpc_http2::client::{ClientConfig, ClientStream, SendRequest, handshake};
use grpc_http2::grpc::message_prefix;
use grpc_http2::{Error, GoAway, Reason};
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response, StatusCode};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::{SETTINGS, SOON, Violation, collect, connection_errors, frame, pattern, send_all, stream_errors};

/// The window that one call has.
const WINDOW: usize = 16 << 20;
/// No limit.
const ANY: usize = usize::MAX;

/// Serves one connection, every call with `answer`, and returns the client's end.
fn serve<F>(
    server: h2::server::Builder,
    answer: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + Sync + 'static,
) -> (SendRequest, JoinHandle<Result<(), Error>>)
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
    let (sender, connection) = handshake(near, ClientConfig::default());
    (sender, tokio::spawn(connection))
}

async fn call(sender: &SendRequest, body: impl Into<Bytes>) -> Result<ClientStream, Error> {
    let mut headers = HeaderMap::new();
    headers.insert("te", "trailers".parse().unwrap());
    sender.send_request("/runtime.v1.RuntimeService/Status", &headers, |_| false, body.into()).await
}

/// Makes a call and gathers its reply.
async fn fetch(sender: &SendRequest, body: impl Into<Bytes>) -> Result<(Bytes, HeaderMap), Error> {
    let mut exchange = call(sender, body).await?;
    let (status, _) = exchange.response().await?;
    assert_eq!(status, StatusCode::OK);
    let whole = exchange.collect(ANY).await?;
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

/// How the message that a call expects differs from the one that arrives.
#[derive(Debug, Clone)]
enum Difference {
    None,
    /// One byte, at this share of the message.
    Byte(f64),
    /// So much shorter, or longer, by this share.
    Shorter(f64),
    Longer(f64),
}

impl Difference {
    fn of(&self, message: &[u8]) -> Vec<u8> {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let at = |share: &f64| (message.len() as f64 * share) as usize;
        let mut expected = message.to_vec();
        match self {
            Self::None => {}
            Self::Byte(share) => expected[at(share)] ^= 1,
            Self::Shorter(share) => expected.truncate(at(share)),
            Self::Longer(share) => expected.resize(message.len() + 1 + at(share), 7),
        }
        expected
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    /// Whatever is expected, and however it is read, the body is what arrived.
    #[test]
    fn an_expected_message_is_not_copied_and_every_other_body_is_whole(
        size in prop_oneof![1..100_usize, 16_000..17_000_usize, 100_000..400_000_usize],
        difference in prop_oneof![
            Just(Difference::None),
            (0.0..1.0).prop_map(Difference::Byte),
            (0.0..1.0).prop_map(Difference::Shorter),
            (0.0..1.0).prop_map(Difference::Longer),
        ],
        reading in 0..3,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (sender, connection) = serve(h2::server::Builder::new(), echo);
            let message = pattern(size);
            let body = Bytes::from([&message_prefix(size)[..], &message].concat());
            let mut exchange = call(&sender, body.clone()).await.unwrap();
            exchange.expect_message(difference.of(&message).into());
            exchange.response().await.unwrap();
            let read = match reading {
                0 => exchange.collect_unless_expected(ANY).await.unwrap(),
                1 => Some(exchange.collect(ANY).await.unwrap()),
                _ => {
                    let mut read = Vec::new();
                    while let Some(part) = std::future::poll_fn(|cx| exchange.poll_data(cx)).await {
                        read.extend_from_slice(&part.unwrap());
                    }
                    Some(read.into())
                }
            };
            let is_expected = reading == 0 && matches!(difference, Difference::None);
            assert_eq!(read, (!is_expected).then_some(body));
            drop((exchange, sender));
            connection.await.unwrap().unwrap();
        });
    }
}

#[tokio::test]
async fn a_body_beyond_its_limit_fails_though_it_is_expected() {
    let (sender, _connection) = serve(h2::server::Builder::new(), echo);
    let message = pattern(1000);
    let body = [&message_prefix(1000)[..], &message].concat();
    let mut exchange = call(&sender, body).await.unwrap();
    exchange.expect_message(message);
    exchange.response().await.unwrap();
    let error = exchange.collect_unless_expected(1004).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge(1005)), "{error}");
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
    let mut endless = sender.send_request("/endless", &headers, |_| false, Bytes::new()).await.unwrap();
    endless.response().await.unwrap();
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
    assert_eq!(reason, Some(Some(h2::Reason::CANCEL)));
}

#[tokio::test]
async fn a_call_that_the_peer_resets_says_so() {
    let (sender, _connection) = serve(h2::server::Builder::new(), async |_request, mut respond| {
        respond.send_reset(h2::Reason::ENHANCE_YOUR_CALM);
    });
    let fault = fetch(&sender, "x").await.unwrap_err();
    assert_eq!(fault.to_string(), "the peer reset the call: ENHANCE_YOUR_CALM");
    let fault = fetch(&sender, "x").await.unwrap_err();
    assert!(matches!(fault, Error::Reset(Reason::ENHANCE_YOUR_CALM)), "the connection goes on: {fault}");
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
    let (sender, connection) = handshake(near, ClientConfig::default());
    let connection = tokio::spawn(connection);
    let mut first = call(&sender, "x").await.unwrap();
    tokio::time::timeout(SOON, sender.closed_to_new()).await.expect("it is told");
    let refused = fetch(&sender, "x").await.unwrap_err();
    assert!(matches!(&refused, Error::GoAway(goaway) if goaway.reason == Reason::NO_ERROR), "{refused}");
    go.send(()).unwrap();
    first.response().await.unwrap();
    assert_eq!(first.collect(ANY).await.unwrap(), "x");
    drop(first);
    tokio::time::timeout(SOON, connection).await.expect("it ends").unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_ends_with_its_last_sender_and_not_before_its_calls() {
    let (sender, connection) = serve(h2::server::Builder::new(), echo);
    let mut exchange = call(&sender, "x").await.unwrap();
    drop(sender);
    exchange.response().await.unwrap();
    assert_eq!(exchange.collect(ANY).await.unwrap(), "x");
    tokio::time::timeout(SOON, connection).await.expect("it ends").unwrap().unwrap();
}

/// `:status: 200`.
const OK: &[u8] = &[0x88];
/// `grpc-status: 0`, a literal.
const TRAILERS: &[u8] = b"\x00\x0bgrpc-status\x010";

/// A peer that says these bytes, in chunks of this size, once it was asked, and reads until the end. Returns
/// how the one call ended and how the connection did.
async fn scripted(
    script: Vec<u8>,
    size: usize,
) -> (Result<(Bytes, HeaderMap), Error>, Result<(), Error>, Vec<u8>) {
    let (near, mut far) = UnixStream::pair().unwrap();
    let (sender, connection) = handshake(near, ClientConfig::default());
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
        // Frames that may cross the end of the stream.
        frame(8, 0, 1, &[0, 0, 0, 9]),
        frame(3, 0, 1, &[0; 4]),
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
async fn a_violation_ends_the_connection_and_its_calls_with_the_code_of_the_rfc() {
    let mut cases = connection_errors(2 * ClientConfig::default().max_header_list as usize + 4096);
    cases.extend(
        [
            (frame(0, 8, 1, &[200, 0]), 1, "padding"),
            (frame(3, 0, 1, &[0]), 6, "RST_STREAM has a wrong length"),
            // A server must not send 1.
            (frame(4, 0, 0, &[0, 2, 0, 0, 0, 1]), 1, "SETTINGS_ENABLE_PUSH"),
        ]
        .map(|(frames, code, what)| Violation { frames, code, what }),
    );
    for case in &mut cases {
        case.frames.splice(..0, SETTINGS).for_each(drop);
    }
    cases.extend(
        [b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), frame(6, 0, 0, &[0; 8])].map(|frames| Violation {
            frames,
            code: 1,
            what: "does not speak HTTP/2",
        }),
    );
    for Violation { frames, code, what } in cases {
        let (fetched, ended, heard) = scripted(frames, 1 << 20).await;
        let error = ended.unwrap_err();
        assert!(error.to_string().contains(what), "{error} instead of {what}");
        assert!(
            matches!(error, Error::Protocol { reason, .. } if u32::from(reason) == code.into()),
            "{error:?}"
        );
        assert_eq!(fetched.unwrap_err().to_string(), error.to_string(), "the call ends for the same reason");
        let goaway = [&[7, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &[0, 0, 0, code]].concat();
        assert!(
            heard.windows(goaway.len()).any(|part| part[..9] == goaway[..9] && part[9..] == goaway[9..]),
            "{what}"
        );
    }
}

/// `content-length: 5`, a literal with the name of index 28.
const LENGTH_5: &[u8] = b"\x88\x0f\x0d\x015";

#[tokio::test]
async fn a_malformed_response_is_reset_and_ends_its_call_alone() {
    let reset = |code: u8| frame(3, 0, 1, &[0, 0, 0, code]);
    let mut cases = vec![
        (vec![frame(0, 0, 1, b"x")], "DATA comes before HEADERS", reset(1)),
        (vec![frame(1, 4, 1, TRAILERS)], "out of order", reset(1)),
        (vec![frame(1, 4, 1, OK), frame(1, 4, 1, OK)], "out of order", reset(1)),
        (vec![frame(1, 4, 1, &[0x88, 0x83])], "invalid header field", reset(1)),
        (vec![frame(1, 4, 1, b"\x08\x03101")], "status 101", reset(1)),
        (vec![frame(1, 5, 1, b"\x08\x03103")], "out of order", reset(1)),
        (vec![frame(1, 4, 1, b"\x08\x03xyz")], "out of order", reset(1)),
        (vec![frame(1, 4, 1, LENGTH_5), frame(0, 1, 1, b"four")], "shorter than content-length", reset(1)),
        (vec![frame(1, 4, 1, LENGTH_5), frame(0, 0, 1, b"longer")], "longer than content-length", reset(1)),
        (vec![frame(1, 5, 1, LENGTH_5)], "shorter than content-length", reset(1)),
        (vec![frame(3, 0, 1, &[0, 0, 0, 7])], "REFUSED_STREAM", vec![]),
    ];
    cases.extend(stream_errors().into_iter().map(|(frames, code)| (vec![frames], "", reset(code))));
    for (frames, expected, answer) in cases {
        let (fetched, ended, heard) = scripted([SETTINGS.to_vec(), frames.concat()].concat(), 1 << 20).await;
        let error = fetched.unwrap_err().to_string();
        assert!(error.contains(expected), "{error} instead of {expected}");
        assert_eq!(ended.unwrap_err().to_string(), "the peer closed the connection", "it went on");
        assert!(
            heard.windows(answer.len().max(1)).any(|part| part == answer) || answer.is_empty(),
            "{expected}"
        );
    }
}

#[tokio::test]
async fn a_frame_after_end_stream_is_answered_with_stream_closed_and_the_response_stays() {
    let response = [SETTINGS.to_vec(), frame(1, 4, 1, OK), frame(1, 5, 1, TRAILERS)].concat();
    for late in [frame(0, 0, 1, b"late"), frame(1, 5, 1, TRAILERS)] {
        let (fetched, _, heard) = scripted([&response[..], &late].concat(), 1 << 20).await;
        assert_eq!(fetched.unwrap().1["grpc-status"], "0");
        let reset = frame(3, 0, 1, &[0, 0, 0, 5]);
        assert!(heard.windows(reset.len()).any(|part| part == reset));
    }
}

/// A header of this many bytes, as a literal.
fn long_header(len: usize) -> Vec<u8> {
    let mut block = b"\x00\x03x-a\x7f".to_vec();
    let mut rest = len - 0x7f;
    while rest > 0x7f {
        block.push(u8::try_from(rest & 0x7f).unwrap() | 0x80);
        rest >>= 7;
    }
    block.push(u8::try_from(rest).unwrap());
    block.extend(std::iter::repeat_n(b'v', len));
    block
}

/// HEADERS and CONTINUATION of one block.
fn block(flags: u8, block: &[u8]) -> Vec<u8> {
    let last = block.chunks(1 << 17).count() - 1;
    let frames = block.chunks(1 << 17).enumerate().map(|(number, part)| {
        let end = if number == last { 4 } else { 0 };
        if number == 0 { frame(1, flags | end, 1, part) } else { frame(9, end, 1, part) }
    });
    frames.collect::<Vec<_>>().concat()
}

#[tokio::test]
async fn trailers_of_megabytes_arrive_and_larger_ones_fail_their_call_alone() {
    for (len, is_accepted) in [(4 << 20, true), (9 << 20, false)] {
        let trailers = [TRAILERS, &long_header(len)].concat();
        let script =
            [SETTINGS.to_vec(), frame(1, 4, 1, OK), block(1, &trailers), frame(6, 0, 0, b"pingpong")];
        let (fetched, ended, heard) = scripted(script.concat(), 1 << 20).await;
        match fetched {
            Ok((_, trailers)) => assert!(is_accepted && trailers["x-a"].len() == len),
            Err(error) => {
                assert!(
                    !is_accepted && matches!(error, Error::HeadersTooLarge { limit, .. } if limit == 8 << 20)
                );
            }
        }
        assert_eq!(ended.unwrap_err().to_string(), "the peer closed the connection", "it went on");
        assert!(heard.ends_with(&frame(6, 1, 0, b"pingpong")), "the connection goes on");
    }
}

#[tokio::test]
async fn a_call_with_more_headers_than_the_server_accepts_fails_alone() {
    let mut server = h2::server::Builder::new();
    server.max_header_list_size(2000);
    let (sender, _connection) = serve(server, echo);
    fetch(&sender, "the settings are known after this").await.unwrap();
    let with =
        |len: usize| HeaderMap::from_iter([("x-a".parse().unwrap(), "v".repeat(len).parse().unwrap())]);
    let error = sender.send_request("/a/b", &with(2000), |_| false, Bytes::new()).await.unwrap_err();
    assert!(matches!(error, Error::HeadersTooLarge { limit: 2000, .. }), "{error}");
    sender
        .send_request("/a/b", &with(1000), |_| false, Bytes::new())
        .await
        .unwrap()
        .response()
        .await
        .unwrap();
    fetch(&sender, "x").await.unwrap();
}

#[tokio::test]
async fn a_goaway_with_an_error_tells_code_and_debug_text() {
    let debug = [&[0, 0, 0, 0, 0, 0, 0, 11][..], b"too_many\npings"].concat();
    let (fetched, _, _) = scripted([SETTINGS.to_vec(), frame(7, 0, 0, &debug)].concat(), 1 << 20).await;
    let error = fetched.unwrap_err();
    assert_eq!(error.to_string(), "the peer is closing the connection: ENHANCE_YOUR_CALM (too_many\\npings)");
    let Error::GoAway(GoAway { reason, .. }) = error else { panic!("{error:?}") };
    assert_eq!(reason, Reason::ENHANCE_YOUR_CALM);
}

#[tokio::test]
async fn a_request_says_scheme_and_authority_of_its_connection() {
    for (is_https, scheme, authority) in [(false, "http", "localhost"), (true, "https", "node-7:10010")] {
        let (near, far) = UnixStream::pair().unwrap();
        let asked = tokio::spawn(async move {
            let mut server: h2::server::Connection<_, Bytes> = h2::server::handshake(far).await.unwrap();
            server.accept().await.unwrap().unwrap().0.uri().clone()
        });
        let config = ClientConfig { is_https, authority: authority.into(), ..ClientConfig::default() };
        let (sender, connection) = handshake(near, config);
        tokio::spawn(connection);
        let _stream = call(&sender, "x").await.unwrap();
        assert_eq!(
            asked.await.unwrap().to_string(),
            format!("{scheme}://{authority}/runtime.v1.RuntimeService/Status")
        );
    }
}

#[tokio::test]
async fn a_reply_is_as_long_as_its_caller_takes_and_no_longer() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let (sender, connection) = handshake(near, ClientConfig::default());
    tokio::spawn(connection);
    // It claims 1 MiB, and sends nothing of it.
    let script = [SETTINGS.to_vec(), frame(1, 4, 1, OK), frame(0, 0, 1, &[0, 0, 0x10, 0, 0, 1])].concat();
    far.write_all(&script).await.unwrap();
    let mut exchange = call(&sender, "x").await.unwrap();
    exchange.response().await.unwrap();
    let fault = tokio::time::timeout(SOON, exchange.collect(1 << 16)).await.expect("at once").unwrap_err();
    assert!(matches!(fault, Error::TooLarge(len) if len == (1 << 20) + 5), "{fault}");
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
    let (_sender, connection) = handshake(near, ClientConfig::default());
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
