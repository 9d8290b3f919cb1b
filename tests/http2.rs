//! HTTP/2, each side of ours against another implementation of the protocol and against peers that break it.
#![allow(clippy::unwrap_used, reason = "a test helper that fails has failed the test")]

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};

#[path = "http2/client.rs"]
mod client;
#[path = "http2/server.rs"]
mod server;

/// Longer than anything here takes on a busy machine.
const SOON: Duration = Duration::from_secs(60);
/// What a peer that keeps to the protocol says first.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

/// A frame as it stands on the wire.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// What neither side may say, and what is said of it.
fn breaks() -> Vec<(Vec<u8>, &'static str)> {
    let long = [frame(1, 0, 1, &vec![0; 1 << 17]), frame(9, 0, 1, &vec![0; 1 << 17]), frame(9, 0, 1, &[0])];
    vec![
        (frame(5, 4, 1, &[0; 8]), "it pushes what nobody asked for"),
        ([&[0xff, 0xff, 0xff, 0, 0][..], &[0, 0, 0, 1]].concat(), "a frame larger than it may be"),
        (frame(0, 0, 3, b"x"), "a stream that was never begun"),
        (frame(1, 4, 2, &[0x88]), "a stream that was never begun"),
        ([frame(1, 0, 1, &[0x88]), frame(0, 0, 1, b"x")].concat(), "it interrupted a header block"),
        (frame(9, 4, 1, &[0x88]), "a header block that was not begun"),
        (frame(1, 4, 1, &[0x80]), "its header cannot be decoded"),
        (frame(4, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff]), "its settings are wrong"),
        (frame(4, 0, 0, &[0, 5, 0, 0, 0, 1]), "its settings are wrong"),
        (frame(4, 0, 0, &[0]), "its settings are wrong"),
        (frame(8, 0, 0, &[0, 0, 0, 0]), "its window is wrong"),
        (frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), "its window is wrong"),
        (long.concat(), "too long"),
    ]
}

fn pattern(len: usize) -> Bytes {
    (0..=250_u8).cycle().take(len).collect::<Vec<_>>().into()
}

/// Takes a whole body; `None` if it breaks off.
async fn collect(body: &mut RecvStream) -> Option<Bytes> {
    let mut whole = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.ok()?;
        body.flow_control().release_capacity(chunk.len()).ok()?;
        whole.extend_from_slice(&chunk);
    }
    Some(whole.freeze())
}

/// Sends all of `data`, as the peer's windows allow.
async fn send_all(body: &mut SendStream<Bytes>, mut data: Bytes) -> Option<()> {
    while !data.is_empty() {
        body.reserve_capacity(data.len());
        let room = std::future::poll_fn(|cx| body.poll_capacity(cx)).await?.ok()?;
        body.send_data(data.split_to(room.min(data.len())), false).ok()?;
    }
    Some(())
}
