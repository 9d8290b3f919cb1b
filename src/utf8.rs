//! Repairs strings that are not UTF-8 in any message of the API, so that one byte does not fail a whole
//! reply.
//!
//! Protobuf parsers refuse a message with a string that is not UTF-8, and in a merged list that message holds
//! the items of every backend. The string fields are read once from the descriptor of `proto/cri.proto`. An
//! invalid byte becomes U+FFFD; fields that the descriptor does not have stay unchanged. Source: the protobuf
//! language guide, proto3 `string`; Unicode 15, 3.9, substitution of maximal subparts.

use std::collections::HashMap;
use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};

use crate::cri;
use crate::wire::{self, Value, WireError};

// Fields and values of google/protobuf/descriptor.proto.
const SET_FILE: u32 = 1;
const FILE_PACKAGE: u32 = 2;
const FILE_MESSAGE: u32 = 4;
const MESSAGE_NAME: u32 = 1;
const MESSAGE_FIELD: u32 = 2;
const MESSAGE_NESTED: u32 = 3;
const FIELD_NUMBER: u32 = 3;
const FIELD_TYPE: u32 = 5;
const FIELD_TYPE_NAME: u32 = 6;
const TYPE_STRING: u64 = 9;
const TYPE_MESSAGE: u64 = 11;

/// What a length-delimited field holds.
#[derive(Debug, Clone, Copy)]
enum Holds {
    Text,
    /// A message, by its index in [`Schema::messages`].
    Message(usize),
}

/// For every message: its string fields, and its message fields, which may contain strings.
#[derive(Debug, Default)]
struct Schema {
    index_by_name: HashMap<String, usize>,
    messages: Vec<Vec<(u32, Holds)>>,
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    Schema::read(cri::DESCRIPTOR).expect("proto/generated holds the descriptor of proto/cri.proto")
});

/// Returns `encoded`, a message with this name in `proto/cri.proto`, with U+FFFD for invalid UTF-8, and how
/// many strings were repaired. If there were none, the bytes are shared, not copied.
///
/// # Errors
/// Returns an error if the message cannot be parsed.
///
/// # Panics
/// If no message has that name; names are literals in crimux's source.
pub fn repair(message: &str, encoded: &Bytes) -> Result<(Bytes, usize), WireError> {
    let index = SCHEMA.index_by_name.get(message).copied().expect("the name of a message of the API");
    let bad = SCHEMA.count_bad(index, encoded)?;
    if bad == 0 {
        return Ok((encoded.clone(), 0));
    }
    Ok((SCHEMA.repair(index, encoded)?.freeze(), bad))
}

impl Schema {
    /// Reads an encoded `FileDescriptorSet`.
    fn read(set: &[u8]) -> Result<Self, WireError> {
        let mut messages = Vec::new();
        for file in wire::items(set, SET_FILE) {
            let file = file?;
            let package = wire::peek_str(file, &[FILE_PACKAGE])?;
            for message in wire::items(file, FILE_MESSAGE) {
                collect(message?, &format!(".{package}"), &mut messages)?;
            }
        }
        let index_by_name: HashMap<_, _> =
            messages.iter().enumerate().map(|(index, (name, _))| (name.clone(), index)).collect();
        let mut schema = Self::default();
        for (_, message) in &messages {
            let mut fields = Vec::new();
            for field in wire::items(message, MESSAGE_FIELD) {
                let field = field?;
                let number = u32::try_from(wire::peek_varint(field, &[FIELD_NUMBER])?).unwrap_or_default();
                let holds = match wire::peek_varint(field, &[FIELD_TYPE])? {
                    TYPE_STRING => Some(Holds::Text),
                    TYPE_MESSAGE => index_by_name
                        .get(wire::peek_str(field, &[FIELD_TYPE_NAME])?)
                        .copied()
                        .map(Holds::Message),
                    _ => None,
                };
                fields.extend(holds.map(|holds| (number, holds)));
            }
            schema.messages.push(fields);
        }
        schema.index_by_name = index_by_name
            .into_iter()
            .filter_map(|(name, index)| Some((name.rsplit_once('.')?.1.to_owned(), index)))
            .collect();
        Ok(schema)
    }

    fn holds(&self, message: usize, number: u32) -> Option<Holds> {
        self.messages[message].iter().find(|(known, _)| *known == number).map(|(_, holds)| *holds)
    }

    fn count_bad(&self, message: usize, encoded: &[u8]) -> Result<usize, WireError> {
        let mut bad = 0;
        for field in wire::fields(encoded) {
            let field = field?;
            let Value::Bytes(bytes) = field.value else { continue };
            // ASCII is valid UTF-8, and labels, annotations and metadata are nearly always ASCII.
            if bytes.is_ascii() {
                continue;
            }
            match self.holds(message, field.number) {
                Some(Holds::Text) => bad += usize::from(std::str::from_utf8(bytes).is_err()),
                Some(Holds::Message(inner)) => bad += self.count_bad(inner, bytes)?,
                None => {}
            }
        }
        Ok(bad)
    }

    fn repair(&self, message: usize, encoded: &[u8]) -> Result<BytesMut, WireError> {
        let mut out = BytesMut::with_capacity(encoded.len() + 16);
        for field in wire::fields(encoded) {
            let field = field?;
            match (field.value, self.holds(message, field.number)) {
                (Value::Bytes(bytes), Some(Holds::Text)) => {
                    wire::put_bytes(&mut out, field.number, String::from_utf8_lossy(bytes).as_bytes());
                }
                (Value::Bytes(bytes), Some(Holds::Message(inner))) => {
                    wire::put_bytes(&mut out, field.number, &self.repair(inner, bytes)?);
                }
                _ => out.extend_from_slice(field.raw),
            }
        }
        Ok(out)
    }
}

/// Adds a `DescriptorProto` and those nested in it, by full name.
fn collect<'a>(
    message: &'a [u8],
    scope: &str,
    messages: &mut Vec<(String, &'a [u8])>,
) -> Result<(), WireError> {
    let name = format!("{scope}.{}", wire::peek_str(message, &[MESSAGE_NAME])?);
    for nested in wire::items(message, MESSAGE_NESTED) {
        collect(nested?, &name, messages)?;
    }
    messages.push((name, message));
    Ok(())
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn put(number: u32, value: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        wire::put_bytes(&mut out, number, value);
        out
    }

    /// A list of one sandbox whose label has this value.
    fn list(value: &[u8]) -> Bytes {
        let mut entry = put(1, b"app");
        wire::put_bytes(&mut entry, 2, value);
        let mut sandbox = put(1, b"id");
        wire::put_bytes(&mut sandbox, 5, &entry);
        // A field that the descriptor does not know.
        wire::put_bytes(&mut sandbox, 77, b"\xff");
        put(1, &sandbox).freeze()
    }

    #[test]
    fn text_that_is_not_utf8_is_repaired_wherever_it_stands_and_nothing_else_changes() {
        let (fixed, bad) = repair("ListPodSandboxResponse", &list(b"caf\xe9!")).expect("a list");
        assert_eq!((fixed.clone(), bad), (list("caf\u{fffd}!".as_bytes()), 1));
        assert!(cri::ListPodSandboxResponse::decode(list(b"caf\xe9!")).is_err());
        let decoded = cri::ListPodSandboxResponse::decode(fixed).expect("it can be read now");
        assert_eq!(decoded.items[0].labels["app"], "caf\u{fffd}!");
    }

    #[test]
    fn good_text_is_not_copied() {
        let good = list("café".as_bytes());
        let (same, bad) = repair("ListPodSandboxResponse", &good).expect("a list");
        assert_eq!((same.as_ptr(), bad), (good.as_ptr(), 0));
    }

    #[test]
    fn a_message_that_cannot_be_read_is_an_error() {
        assert!(repair("StatusResponse", &Bytes::from_static(&[0x0a, 0x7f, 1])).is_err());
    }
}
