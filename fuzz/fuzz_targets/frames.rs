//! The frame readers: the same whatever the chunks, and never more memory than what has come.
#![no_main]

use bytes::Bytes;
use crimux::codec::{Assembler, Deframer};
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 1 << 16;

fuzz_target!(|data: &[u8]| {
    let Some((&size, data)) = data.split_first() else { return };
    let size = usize::from(size).max(1);
    assert_eq!(assembled(data, size), assembled(data, data.len().max(1)));
    assert_eq!(deframed(data, size), deframed(data, data.len().max(1)));
});

/// The one message, or `None` for anything else.
fn assembled(data: &[u8], size: usize) -> Option<Bytes> {
    let mut assembler = Assembler::default();
    for chunk in data.chunks(size) {
        assembler.push(Bytes::copy_from_slice(chunk), LIMIT).ok()?;
    }
    let message = assembler.finish().ok()??;
    assert_eq!(message.framed(), data);
    Some(message.framed())
}

/// The messages up to the first error.
fn deframed(data: &[u8], size: usize) -> Vec<Bytes> {
    let mut deframer = Deframer::default();
    let mut messages = Vec::new();
    for chunk in data.chunks(size) {
        deframer.push(chunk);
        loop {
            match deframer.next(LIMIT) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(_) => return messages,
            }
        }
    }
    messages
}
