//! A server of clients that follow a fuzzed script, while its handles answer, wait and drop as the script
//! says. It ends, it does not panic, and after every step it holds no more than its limits say; in the end it
//! holds nothing.
#![no_main]

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use grpc_http2::Budget;
use grpc_http2::server::{SendResponse, ServerConfig, ServerConnection, handshake};
use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use libfuzzer_sys::fuzz_target;
use script::Script;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

mod script;

const STREAMS: u32 = 8;
const REQUESTS: usize = 64 << 10;
const UNREAD: usize = 256 << 10;
/// Of requests, whatever the budget says.
const FREE: usize = 256 << 10;
/// What may wait to be written: the limit of output, a frame, and what one read is answered with.
const OUTPUT: usize = 4 << 20;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const REQUEST: &[u8] = b"\x83\x86\x04\x04/a/b\x0f\x10\x10application/grpc";

fuzz_target!(|data: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(play(Script(data)));
});

async fn play(mut script: Script<'_>) {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let (requests, unread) = (Budget::new(REQUESTS), Budget::new(UNREAD));
    let mut server = handshake(
        near,
        ServerConfig {
            max_concurrent_streams: STREAMS,
            max_header_list: 4 << 10,
            max_request: 32 << 10,
            request_budget: requests.clone(),
            unread_budget: unread.clone(),
            ..ServerConfig::default()
        },
    );
    far.write_all(PREFACE).await.expect("there is room");
    let (mut waiting, mut answers) = (Vec::new(), Vec::new());
    // The first stream that is opened is 3: what is said of 1 is said of one that was skipped.
    let mut last = 1;
    while let Some(operation) = script.byte() {
        match operation {
            ..=191 => {
                let bytes = script.frames(operation, &mut last, REQUEST);
                // A client that does not read is not read from.
                if write_some(&mut far, &bytes).is_err() {
                    break;
                }
            }
            192..=215 => answers.extend(waiting.pop().map(|respond| answer(respond, operation))),
            216..=223 => drop(waiting.pop()),
            224..=231 => drop(answers.pop()),
            232..=239 => server.graceful_shutdown(),
            _ => read_some(&mut far),
        }
        if !turn(&mut server, &mut waiting, &mut answers) {
            break;
        }
        let held = server.held();
        assert!(held.streams <= STREAMS as usize, "{held:?}");
        assert!(held.output <= OUTPUT && held.queued <= 4 * held.streams + 256, "{held:?}");
        assert!(held.received <= REQUESTS + FREE, "{held:?}");
        assert!(requests.used() <= REQUESTS, "{}", requests.used());
        // One response is always accepted.
        assert!(unread.used() <= UNREAD + (1 << 20), "{}", unread.used());
    }
    drop((waiting, answers, server));
    assert_eq!((requests.used(), unread.used()), (0, 0), "nothing is held in the end");
}

type Answer = Pin<Box<dyn Future<Output = ()>>>;

fn answer(respond: SendResponse, operation: u8) -> Answer {
    let len = usize::from(operation - 191) * (20 << 10);
    Box::pin(respond.send_response(Response::new(Buffered(Some(vec![0; len].into()), operation % 2 == 0))))
}

/// Accepts what has come and lets every answer go on; `false` once the connection has ended.
fn turn(server: &mut ServerConnection<DuplexStream>, waiting: &mut Vec<SendResponse>, answers: &mut Vec<Answer>) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    answers.retain_mut(|answer| answer.as_mut().poll(&mut cx).is_pending());
    loop {
        match pin!(server.accept()).poll(&mut cx) {
            Poll::Ready(Some(Ok(call))) => waiting.push(call.respond),
            Poll::Ready(_) => return false,
            Poll::Pending => return true,
        }
    }
}

fn write_some(far: &mut DuplexStream, bytes: &[u8]) -> std::io::Result<()> {
    let mut cx = Context::from_waker(Waker::noop());
    match pin!(far.write_all(bytes)).poll(&mut cx) {
        Poll::Ready(written) => written,
        // The rest of a frame is missing: it cannot go on.
        Poll::Pending => Err(std::io::ErrorKind::WouldBlock.into()),
    }
}

fn read_some(far: &mut DuplexStream) {
    let mut cx = Context::from_waker(Waker::noop());
    let mut buffer = vec![0; 1 << 16];
    let _ = pin!(far.read(&mut buffer)).poll(&mut cx);
}

/// A body that is there, with trailers or without.
struct Buffered(Option<Bytes>, bool);

impl Body for Buffered {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(data) = self.0.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let has_trailers = std::mem::take(&mut self.1);
        Poll::Ready(has_trailers.then(|| Ok(Frame::trailers(HeaderMap::new()))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |data| data.len() as u64))
    }
}
