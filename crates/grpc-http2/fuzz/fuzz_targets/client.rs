//! A client of servers that follow a fuzzed script, while its handles ask, read, collect and drop as the
//! script says. It ends, it does not panic, and after every step it holds no more than its limits say.
#![no_main]

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use grpc_http2::client::{ClientConfig, ClientStream, handshake};
use http::HeaderMap;
use libfuzzer_sys::fuzz_target;
use script::Script;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

mod script;

const BUFFERED: usize = 128 << 10;
/// The longest body that is collected.
const LIMIT: usize = 64 << 10;
/// One frame of the script may exceed a limit before it is enforced.
const FRAME: usize = 256 * 64;
const CALLS: usize = 16;
const OUTPUT: usize = 4 << 20;

const RESPONSE: &[u8] = b"\x88\x0f\x10\x10application/grpc";

fuzz_target!(|data: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async { play(Script(data)) });
});

fn play(mut script: Script<'_>) {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let config = ClientConfig { max_header_list: 4 << 10, max_buffered: BUFFERED, ..ClientConfig::default() };
    let (sender, connection) = handshake(near, config);
    let mut connection = Box::pin(connection);
    let mut cx = Context::from_waker(Waker::noop());
    let headers = HeaderMap::new();
    let mut calls: Vec<ClientStream> = Vec::new();
    if !write_some(&mut far, &script::frame(4, 0, 0, &[])) {
        return;
    }
    let mut last = 1;
    while let Some(operation) = script.byte() {
        match operation {
            ..=175 => {
                // A server answers streams; it opens none.
                let mut stream = last;
                let bytes = script.frames(operation, &mut stream, RESPONSE);
                if !write_some(&mut far, &bytes) {
                    break;
                }
            }
            176..=199 if calls.len() < CALLS => {
                let body = Bytes::from(vec![0; usize::from(operation - 176) * 4096]);
                if let Poll::Ready(Ok(call)) =
                    pin!(sender.send_request("/a/b", &headers, |_| false, body)).poll(&mut cx)
                {
                    calls.push(call);
                    last += 2;
                }
            }
            200..=204 => drop(calls.pop()),
            205..=209 => {
                if let Some(call) = calls.last_mut() {
                    call.expect_message(Bytes::from(vec![0; usize::from(operation - 205)]));
                }
            }
            210..=219 => {
                if let Some(call) = calls.last_mut()
                    && let Poll::Ready(Some(Ok(part))) = call.poll_data(&mut cx)
                {
                    assert!(part.len() <= BUFFERED + FRAME);
                }
            }
            220..=224 => {
                if let Some(call) = calls.first_mut()
                    && let Poll::Ready(Ok(Some(whole))) =
                        pin!(call.collect_unless_expected(LIMIT)).poll(&mut cx)
                {
                    assert!(whole.len() <= LIMIT, "{} bytes", whole.len());
                }
            }
            225..=229 => {
                if let Some(call) = calls.first_mut()
                    && let Poll::Ready(Ok(whole)) = pin!(call.collect(LIMIT)).poll(&mut cx)
                {
                    assert!(whole.len() <= LIMIT, "{} bytes", whole.len());
                }
            }
            230..=239 => {
                if let Some(call) = calls.last_mut() {
                    let _ = pin!(call.response()).poll(&mut cx);
                }
            }
            _ => read_some(&mut far),
        }
        let held = connection.held();
        assert!(held.streams <= calls.len(), "{held:?}");
        assert!(held.received <= BUFFERED + FRAME && held.output <= OUTPUT, "{held:?}");
        assert!(held.queued <= 4 * held.streams + 256, "{held:?}");
        if connection.as_mut().poll(&mut cx).is_ready() {
            break;
        }
    }
    drop(connection);
    for call in &mut calls {
        let ended = loop {
            match call.poll_data(&mut cx) {
                Poll::Ready(Some(Ok(_))) => {}
                other => break other,
            }
        };
        assert!(ended.is_ready(), "a call outlives its connection");
    }
}

fn write_some(far: &mut DuplexStream, bytes: &[u8]) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    matches!(pin!(far.write_all(bytes)).poll(&mut cx), Poll::Ready(Ok(())))
}

fn read_some(far: &mut DuplexStream) {
    let mut cx = Context::from_waker(Waker::noop());
    let mut buffer = vec![0; 1 << 16];
    let _ = Pin::new(&mut pin!(far.read(&mut buffer))).poll(&mut cx);
}
