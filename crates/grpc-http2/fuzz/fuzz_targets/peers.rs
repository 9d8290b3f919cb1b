//! Each side against a peer that sends anything: the connection ends, nothing panics, bodies stay within
//! their limits.
#![no_main]

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use grpc_http2::{client, server};
use http::{HeaderMap, Response};
use http_body::{Body, Frame};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LIMIT: usize = 1 << 16;
/// What a client says before what a server would say too.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fuzz_target!(|data: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let data = &data[..data.len().min(LIMIT)];
    runtime.block_on(async {
        ask(data).await;
        answer(data).await;
    });
});

/// Two calls to a server that says this: one gathered whole, one taken as it comes.
async fn ask(data: &[u8]) {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let (sender, connection) = client::handshake(near, client::ClientConfig::default());
    let mut connection = pin!(connection);
    let headers = HeaderMap::new();
    let mut whole = sender.send_request("/a/b", &headers, |_| false, Bytes::from_static(b"x")).await.expect("open");
    let mut parts = sender.send_request("/a/c", &headers, |_| false, Bytes::new()).await.expect("open");
    far.write_all(data).await.expect("there is room");
    far.shutdown().await.expect("it is open");
    // How it ends is as the peer says: well after a goodbye that ended both calls, else not.
    let _ = connection.as_mut().await;
    if whole.response().await.is_ok()
        && let Ok(body) = whole.collect(LIMIT).await
    {
        assert!(body.len() <= LIMIT);
    }
    let mut cx = Context::from_waker(Waker::noop());
    let mut taken = 0;
    loop {
        match parts.poll_data(&mut cx) {
            Poll::Ready(Some(Ok(part))) => taken += part.len(),
            Poll::Ready(_) => break,
            Poll::Pending => panic!("a call outlives its connection"),
        }
    }
    assert!(taken <= LIMIT);
}

/// A client that says this, and answers to all that it asks.
async fn answer(data: &[u8]) {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let mut connection = server::handshake(near, server::ServerConfig { max_request: LIMIT / 2, ..Default::default() });
    if data.len() % 2 == 1 {
        connection.graceful_shutdown();
    }
    far.write_all(PREFACE).await.expect("there is room");
    far.write_all(data).await.expect("there is room");
    far.shutdown().await.expect("it is open");
    let mut answers = Vec::new();
    let mut cx = Context::from_waker(Waker::noop());
    while let Some(Ok(call)) = connection.accept().await {
        let mut body = pin!(call.request.into_body());
        if let Poll::Ready(Some(Ok(frame))) = body.as_mut().poll_frame(&mut cx) {
            assert!(frame.data_ref().expect("data").len() <= data.len());
        }
        let answer = Box::pin(call.respond.send_response(Response::new(Large(Some(LIMIT)))));
        answers.push(answer);
        answers.retain_mut(|answer| answer.as_mut().poll(&mut cx).is_pending());
    }
    for mut answer in answers {
        assert!(answer.as_mut().poll(&mut cx).is_ready(), "an answer outlives its connection");
    }
    drop(connection);
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).await.expect("the end");
}

/// A body larger than the first window of a peer, without trailers.
struct Large(Option<usize>);

impl Body for Large {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.take().map(|len| Ok(Frame::data(vec![0; len].into()))))
    }
}
