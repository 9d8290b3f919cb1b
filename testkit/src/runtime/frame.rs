//! Puts messages into gRPC frames and takes them out again.
//!
//! A frame is one flag byte (compressed or not), four bytes of length, and the message. This is all of gRPC's
//! framing, and having it in the open is what lets a fault break it on purpose.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{decode_key, decode_varint};

/// The bytes before each message.
pub(crate) const PREFIX: usize = 5;

/// Encodes `message` as one frame.
pub(crate) fn encode(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX + length);
    put_prefix(&mut frame, length);
    message.encode(&mut frame).expect("the buffer was sized for the message");
    frame.freeze()
}

/// Frames messages that are encoded already, one after the other.
pub(crate) fn join<'a>(messages: impl IntoIterator<Item = &'a Bytes>) -> Bytes {
    let mut frames = BytesMut::new();
    for message in messages {
        frames.reserve(PREFIX + message.len());
        put_prefix(&mut frames, message.len());
        frames.extend_from_slice(message);
    }
    frames.freeze()
}

/// Moves the first item of a framed list behind the last one. An empty list stays as it is.
pub(crate) fn rotated(frame: &Bytes) -> Bytes {
    let (prefix, list) = frame.split_at(PREFIX);
    let mut rest = list;
    let (Ok(_), Ok(length)) = (decode_key(&mut rest), decode_varint(&mut rest)) else { return frame.clone() };
    let length = usize::try_from(length).expect("the list is in memory");
    let (first, others) = list.split_at(list.len() - rest.len() + length);
    [prefix, others, first].concat().into()
}

/// Takes the next whole message off the front of `buffer`; `None` if it is not all there yet.
pub(crate) fn take(buffer: &mut Bytes) -> Option<Bytes> {
    let length = announced(buffer)?;
    if buffer.len() - PREFIX < length {
        return None;
    }
    buffer.advance(PREFIX);
    Some(buffer.split_to(length))
}

/// Returns the length that the first frame of `buffer` announces, if its prefix is there.
pub(crate) fn announced(buffer: &[u8]) -> Option<usize> {
    let prefix = buffer.get(1..PREFIX)?;
    let length = u32::from_be_bytes(prefix.try_into().expect("the slice has four bytes"));
    Some(length as usize)
}

fn put_prefix(frame: &mut BytesMut, length: usize) {
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).expect("no message here comes near 4 GiB"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_rotates_by_one_item() {
        let framed = |list: &[u8]| join([&Bytes::copy_from_slice(list)]);
        let list = framed(b"\x0a\x01a\x0a\x02bc\x0a\x00");
        let once = rotated(&list);
        assert_eq!(once, framed(b"\x0a\x02bc\x0a\x00\x0a\x01a"));
        assert_eq!(rotated(&rotated(&once)), list);
        assert_eq!(rotated(&framed(b"")), framed(b""));
    }

    #[test]
    fn joined_messages_come_apart_again() {
        let messages = [Bytes::from_static(b"one"), Bytes::new(), Bytes::from_static(b"three")];
        let mut frames = join(&messages);
        for message in messages {
            assert_eq!(take(&mut frames), Some(message));
        }
        assert_eq!(take(&mut frames), None);
    }

    #[test]
    fn half_a_message_is_left_in_place() {
        let mut frames = join([&Bytes::from_static(b"message")]);
        frames.truncate(8);
        assert_eq!(take(&mut frames), None);
        assert_eq!(frames.len(), 8);
        assert_eq!(announced(&frames), Some(7));
    }
}
