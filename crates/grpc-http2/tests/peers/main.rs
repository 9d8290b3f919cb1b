//! Each side against another implementation of the protocol, and against peers that violate it.
#![allow(clippy::unwrap_used, reason = "a test helper that fails has failed the test")]

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};

mod client;
mod server;

/// Longer than anything here takes on a busy machine.
const SOON: Duration = Duration::from_secs(60);
/// The first frame of every peer.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

/// A frame as it stands on the wire.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A violation: the frames, the error code of the answer and a part of the text.
struct Violation {
    frames: Vec<u8>,
    code: u8,
    what: &'static str,
}

/// Connection errors of both sides; stream 1 is open for a client and idle for a server. `max_block` is how
/// long a header block may be.
fn connection_errors(max_block: usize) -> Vec<Violation> {
    const PROTOCOL: u8 = 1;
    const FLOW_CONTROL: u8 = 3;
    const FRAME_SIZE: u8 = 6;
    const COMPRESSION: u8 = 9;
    let part = vec![0; 1 << 14];
    let parts =
        (0..=max_block / part.len()).map(|number| frame(if number == 0 { 1 } else { 9 }, 0, 1, &part));
    let long = parts.chain([frame(9, 0, 1, &part)]).collect::<Vec<_>>().concat();
    let violations = [
        (frame(5, 4, 1, &[0; 8]), PROTOCOL, "push is disabled"),
        (
            [&[0xff, 0xff, 0xff, 0, 0][..], &[0, 0, 0, 1]].concat(),
            FRAME_SIZE,
            "exceeds SETTINGS_MAX_FRAME_SIZE",
        ),
        (frame(0, 0, 3, b"x"), PROTOCOL, "an idle stream"),
        (frame(1, 4, 2, &[0x88]), PROTOCOL, "an idle stream"),
        (frame(3, 0, 3, &[0; 4]), PROTOCOL, "an idle stream"),
        (frame(8, 0, 3, &[0, 0, 0, 1]), PROTOCOL, "an idle stream"),
        (frame(0, 0, 0, b"x"), PROTOCOL, "names the connection"),
        (frame(1, 4, 0, &[0x88]), PROTOCOL, "names the connection"),
        (frame(2, 0, 0, &[0; 5]), PROTOCOL, "names the connection"),
        (frame(3, 0, 0, &[0; 4]), PROTOCOL, "names the connection"),
        (frame(4, 0, 1, &[]), PROTOCOL, "names a stream"),
        (frame(6, 0, 1, &[0; 8]), PROTOCOL, "names a stream"),
        (frame(7, 0, 1, &[0; 8]), PROTOCOL, "names a stream"),
        ([frame(1, 0, 1, &[0x88]), frame(0, 0, 1, b"x")].concat(), PROTOCOL, "interrupts a header block"),
        ([frame(1, 0, 1, &[0x88]), frame(9, 4, 3, b"x")].concat(), PROTOCOL, "interrupts a header block"),
        (frame(9, 4, 1, &[0x88]), PROTOCOL, "without a header block"),
        (frame(1, 4, 1, &[0x80]), COMPRESSION, "cannot be decompressed"),
        (frame(1, 4, 1, &[0x88, 0x20]), COMPRESSION, "cannot be decompressed"),
        (frame(4, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff]), FLOW_CONTROL, "SETTINGS_INITIAL_WINDOW_SIZE"),
        (frame(4, 0, 0, &[0, 5, 0, 0, 0, 1]), PROTOCOL, "SETTINGS_MAX_FRAME_SIZE"),
        (frame(4, 0, 0, &[0, 2, 0, 0, 0, 2]), PROTOCOL, "SETTINGS_ENABLE_PUSH"),
        (frame(4, 0, 0, &[0]), FRAME_SIZE, "SETTINGS has a wrong length"),
        (frame(4, 1, 0, &[0; 6]), FRAME_SIZE, "has a payload"),
        (frame(6, 0, 0, &[0; 7]), FRAME_SIZE, "PING has a wrong length"),
        (frame(7, 0, 0, &[0; 7]), FRAME_SIZE, "GOAWAY is too short"),
        (frame(2, 0, 3, &[0; 4]), FRAME_SIZE, "PRIORITY has a wrong length"),
        (frame(8, 0, 0, &[0, 0, 0, 0]), PROTOCOL, "an increment of 0"),
        (frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), FLOW_CONTROL, "the largest window"),
        (frame(8, 0, 0, &[0; 5]), FRAME_SIZE, "WINDOW_UPDATE has a wrong length"),
        (long, 11, "too long"),
    ];
    violations.map(|(frames, code, what)| Violation { frames, code, what }).into()
}

/// Errors of stream 1, which is open and whose sender has not ended it: the frames and the code of
/// `RST_STREAM`.
fn stream_errors() -> Vec<(Vec<u8>, u8)> {
    vec![
        (frame(8, 0, 1, &[0; 4]), 1),
        (frame(8, 0, 1, &[0x7f, 0xff, 0xff, 0xff]), 3),
        (frame(2, 0, 1, &[0; 4]), 6),
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
