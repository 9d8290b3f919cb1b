//! Tests of the wire format.

//! Held against prost, which reads the same bytes with code of its own.

use std::collections::HashMap;

use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::cri;

prop_compose! {
    fn metadata()(name in ".{0,6}", uid in ".{0,6}", namespace in ".{0,6}", attempt: u32)
        -> cri::PodSandboxMetadata {
        cri::PodSandboxMetadata { name, uid, namespace, attempt }
    }
}

prop_compose! {
    fn sandbox()(
        id in ".{0,8}",
        metadata in prop::option::of(metadata()),
        state in 0..3i32,
        created_at: i64,
        labels in prop::collection::hash_map(".{0,4}", ".{0,4}", 0..4),
        runtime_handler in ".{0,4}",
    ) -> cri::PodSandbox {
        let annotations = HashMap::new();
        cri::PodSandbox { id, metadata, state, created_at, labels, annotations, runtime_handler }
    }
}

proptest! {
    #[test]
    fn a_message_is_peeked_as_prost_decodes_it(sandbox in sandbox()) {
        let bytes = sandbox.encode_to_vec();
        prop_assert_eq!(peek_str(&bytes, &[1]).unwrap(), &sandbox.id);
        let metadata = sandbox.metadata.clone().unwrap_or_default();
        prop_assert_eq!(peek_str(&bytes, &[2, 2]).unwrap(), &metadata.uid);
        prop_assert_eq!(peek_varint(&bytes, &[2, 4]).unwrap(), u64::from(metadata.attempt));
        prop_assert_eq!(peek_varint(&bytes, &[4]).unwrap().cast_signed(), sandbox.created_at);
        prop_assert_eq!(has_path(&bytes, &[2]).unwrap(), sandbox.metadata.is_some());
        let labels = items(&bytes, 5).map(|entry| map_entry(entry.unwrap()).unwrap());
        let labels: HashMap<_, _> = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        prop_assert_eq!(labels, sandbox.labels);
    }

    #[test]
    fn the_fields_of_a_message_are_all_of_its_bytes(sandbox in sandbox()) {
        let bytes = sandbox.encode_to_vec();
        let raw: Vec<u8> = fields(&bytes).flat_map(|field| field.unwrap().raw.to_vec()).collect();
        prop_assert_eq!(raw, bytes);
    }

    #[test]
    fn concatenated_messages_are_peeked_as_prost_merges_them(one in sandbox(), other in sandbox()) {
        let bytes = [one.encode_to_vec(), other.encode_to_vec()].concat();
        let merged = cri::PodSandbox::decode(&bytes[..]).unwrap();
        let metadata = merged.metadata.unwrap_or_default();
        prop_assert_eq!(peek_str(&bytes, &[1]).unwrap(), &merged.id);
        prop_assert_eq!(peek_str(&bytes, &[2, 1]).unwrap(), &metadata.name);
        prop_assert_eq!(peek_varint(&bytes, &[2, 4]).unwrap(), u64::from(metadata.attempt));
        prop_assert_eq!(peek_varint(&bytes, &[3]).unwrap(), u64::from(merged.state.cast_unsigned()));
    }

    #[test]
    fn an_appended_string_replaces_that_string_alone(config in metadata(), handler in ".{0,6}", uid in ".{0,6}") {
        let config = cri::PodSandboxConfig { metadata: Some(config), ..Default::default() };
        let request = cri::RunPodSandboxRequest { config: Some(config), runtime_handler: "old".into() };
        let bytes = append_str(&request.encode_to_vec(), &[2], &handler);
        let bytes = append_str(&bytes, &[1, 1, 2], &uid);
        let mut expected = request;
        expected.runtime_handler = handler;
        expected.config.as_mut().unwrap().metadata.as_mut().unwrap().uid = uid;
        prop_assert_eq!(cri::RunPodSandboxRequest::decode(&bytes[..]).unwrap(), expected);
    }

    #[test]
    fn what_is_written_is_what_prost_writes(name in ".{1,200}", attempt in 1..u32::MAX) {
        let message = cri::ContainerMetadata { name: name.clone(), attempt };
        let mut out = Vec::new();
        put_bytes(&mut out, 1, name.as_bytes());
        prop_assert_eq!(out.len(), bytes_field_len(1, name.len()));
        put_varint(&mut out, 2, u64::from(attempt));
        prop_assert_eq!(out, message.encode_to_vec());
    }

    #[test]
    fn a_truncated_message_is_an_error_or_a_whole_number_of_fields(sandbox in sandbox(), cut: prop::sample::Index) {
        let bytes = sandbox.encode_to_vec();
        let cut = cut.index(bytes.len() + 1);
        let read: Result<Vec<_>, _> = fields(&bytes[..cut]).collect();
        match read {
            Ok(fields) => prop_assert_eq!(fields.iter().map(|field| field.raw.len()).sum::<usize>(), cut),
            Err(_) => prop_assert!(cri::PodSandbox::decode(&bytes[..cut]).is_err()),
        }
    }

    #[test]
    fn arbitrary_bytes_are_read_or_refused_as_prost_does(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        // An empty message knows no field, so prost skips all of them as unknown.
        let read: Result<Vec<_>, _> = fields(&bytes).collect();
        prop_assert_eq!(read.is_ok(), cri::StopPodSandboxResponse::decode(&bytes[..]).is_ok());
    }
}

#[test]
fn a_field_is_read_whatever_the_length_of_its_tag_and_of_its_length() {
    for (number, len) in [(1, 0), (1, 127), (1, 128), (15, 1), (15, 20_000), (16, 1), (2048, 127)] {
        let payload = vec![b'x'; len];
        let mut message = Vec::new();
        put_bytes(&mut message, number, &payload);
        let field = Field { number, value: Value::Bytes(&payload), raw: &message };
        assert_eq!(fields(&message).collect::<Vec<_>>(), [Ok(field)]);
        let cut = &message[..message.len() - 1];
        assert_eq!(fields(cut).collect::<Vec<_>>(), [Err(WireError::Truncated)], "{number}, {len}");
    }
}

#[test]
fn a_group_is_skipped_as_a_whole_and_its_depth_costs_no_stack() {
    let message = [&[0x0b, 0x10, 0x01, 0x0c][..], &[0x12, 0x01, b'x']].concat();
    let values: Vec<_> = fields(&message).map(|field| field.unwrap().value).collect();
    assert_eq!(values, [Value::Group, Value::Bytes(b"x")]);
    let deep = vec![0x0b; 1 << 20];
    assert_eq!(fields(&deep).next(), Some(Err(WireError::Truncated)));
    assert_eq!(fields(&[0x0b, 0x14]).next(), Some(Err(WireError::WireType)));
}

#[test]
fn lengths_beyond_the_message_are_never_trusted() {
    assert_eq!(fields(&[0x0a, 0x02, 0x00]).next(), Some(Err(WireError::Truncated)));
    let huge = [0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    assert_eq!(fields(&huge).next(), Some(Err(WireError::Truncated)));
    assert_eq!(fields(&[0xff; 11]).next(), Some(Err(WireError::Overlong)));
    assert_eq!(fields(&[0x02]).next(), Some(Err(WireError::FieldNumber)));
}
