//! One test over the whole table: an item without the field goes, or its timestamp does, and nothing else
//! changes.

use prost::Message;

use super::*;
use crate::cri;

fn bytes(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

fn container_stats() -> cri::ContainerStats {
    let attributes = cri::ContainerAttributes {
        id: "c".into(),
        metadata: Some(cri::ContainerMetadata::default()),
        ..Default::default()
    };
    cri::ContainerStats { attributes: Some(attributes), ..Default::default() }
}

fn sandbox_stats() -> cri::PodSandboxStats {
    let attributes = cri::PodSandboxAttributes { id: "s".into(), ..Default::default() };
    let network = cri::NetworkUsage {
        default_interface: Some(cri::NetworkInterfaceUsage::default()),
        ..Default::default()
    };
    let linux = cri::LinuxPodSandboxStats {
        network: Some(network),
        containers: vec![container_stats(), container_stats()],
        ..Default::default()
    };
    cri::PodSandboxStats { attributes: Some(attributes), linux: Some(linux), windows: None }
}

fn metric() -> cri::Metric {
    cri::Metric { name: "cpu".into(), value: Some(cri::UInt64Value { value: 0 }), ..Default::default() }
}

fn status() -> cri::ContainerStatus {
    cri::ContainerStatus { id: "c".into(), image: Some(cri::ImageSpec::default()), ..Default::default() }
}

/// A reply of two items each, with everything that a client reads.
fn whole(reply: CheckedReply) -> Bytes {
    let metadata = || Some(cri::PodSandboxMetadata::default());
    let two = |item: Bytes| {
        let mut list = BytesMut::new();
        for _ in 0..2 {
            wire::put_bytes(&mut list, 1, &item);
        }
        list.freeze()
    };
    match reply {
        CheckedReply::List(List::Sandboxes) => {
            two(bytes(&cri::PodSandbox { id: "s".into(), metadata: metadata(), ..Default::default() }))
        }
        CheckedReply::List(List::Containers) => two(bytes(&cri::Container {
            id: "c".into(),
            metadata: Some(cri::ContainerMetadata::default()),
            ..Default::default()
        })),
        CheckedReply::List(List::ContainerStats) => two(bytes(&container_stats())),
        CheckedReply::List(List::SandboxStats) => two(bytes(&sandbox_stats())),
        CheckedReply::List(List::Images) => two(bytes(&cri::Image { id: "i".into(), ..Default::default() })),
        CheckedReply::List(List::Filesystems) => two(bytes(&cri::FilesystemUsage {
            used_bytes: Some(cri::UInt64Value { value: 0 }),
            ..Default::default()
        })),
        CheckedReply::List(List::MetricDescriptors) => {
            two(bytes(&cri::MetricDescriptor { name: "cpu".into(), ..Default::default() }))
        }
        CheckedReply::List(List::SandboxMetrics) => two(bytes(&cri::PodSandboxMetrics {
            pod_sandbox_id: "s".into(),
            metrics: vec![metric(), metric()],
            container_metrics: vec![cri::ContainerMetrics {
                container_id: "c".into(),
                metrics: vec![metric(), metric()],
            }],
        })),
        CheckedReply::Event => bytes(&cri::ContainerEventResponse {
            pod_sandbox_status: Some(cri::PodSandboxStatus { metadata: metadata(), ..Default::default() }),
            containers_statuses: vec![status(), status()],
            ..Default::default()
        }),
        CheckedReply::SandboxStatus => bytes(&cri::PodSandboxStatusResponse {
            status: Some(cri::PodSandboxStatus { metadata: metadata(), ..Default::default() }),
            containers_statuses: vec![status(), status()],
            timestamp: 7,
            ..Default::default()
        }),
    }
}

/// Returns the reply with the first message at `path` changed, or left out where `change` returns nothing.
fn changed(message: &[u8], path: &[u32], change: &dyn Fn(&[u8]) -> Option<Bytes>) -> Bytes {
    let Some((&number, inner)) = path.split_first() else { return change(message).unwrap_or_default() };
    let (mut out, mut done) = (BytesMut::new(), false);
    for field in wire::fields(message).map(Result::unwrap) {
        if field.number != number || done {
            out.extend_from_slice(field.raw);
            continue;
        }
        done = true;
        if !inner.is_empty() {
            wire::put_bytes(&mut out, number, &changed(field.bytes().unwrap(), inner, change));
        } else if let Some(message) = change(field.bytes().unwrap()) {
            wire::put_bytes(&mut out, number, &message);
        }
    }
    out.freeze()
}

#[test]
fn what_would_crash_a_client_is_left_out_alone_for_every_field_of_the_table() {
    for rule in &REQUIRED_FIELDS {
        let whole = whole(rule.reply);
        assert_eq!(remove_incomplete(rule.reply, &whole), Ok((whole.clone(), 0)), "{rule:?}");
        let lacking =
            |message: &[u8]| Some(wire::without(message, rule.field).unwrap().expect("it was there"));
        let broken = changed(&whole, rule.message, &lacking);
        let expected = match (rule.remedy, rule.message) {
            (Remedy::ClearTimestamp, _) => {
                let mut cleared = cri::PodSandboxStatusResponse::decode(broken.clone()).expect("a status");
                cleared.timestamp = 0;
                bytes(&cleared)
            }
            (Remedy::LeaveOut, path) => changed(&whole, path, &|_| None),
        };
        let (left, count) = remove_incomplete(rule.reply, &broken).expect("it can be read");
        assert_eq!(count, 1, "{rule:?}");
        match rule.remedy {
            Remedy::LeaveOut => assert_eq!(left, expected, "{rule:?}"),
            Remedy::ClearTimestamp => {
                let left = cri::PodSandboxStatusResponse::decode(left).expect("a status");
                assert_eq!(bytes(&left), expected, "{rule:?}");
            }
        }
    }
}

#[test]
fn an_id_that_is_no_text_counts_as_none() {
    let mut item = BytesMut::new();
    wire::put_bytes(&mut item, 1, b"\xff");
    wire::put_bytes(&mut item, 2, b"");
    let mut list = BytesMut::new();
    wire::put_bytes(&mut list, 1, &item);
    assert_eq!(remove_incomplete(CheckedReply::List(List::Sandboxes), &list.freeze()), Ok((Bytes::new(), 1)));
}

#[test]
fn bytes_that_are_no_message_are_an_error() {
    assert!(
        remove_incomplete(CheckedReply::List(List::Sandboxes), &Bytes::from_static(&[0x0a, 0x7f, 1]))
            .is_err()
    );
}

#[test]
fn a_message_deep_in_an_item_that_cannot_be_read_is_an_error() {
    let list = CheckedReply::List(List::SandboxStats);
    let path = field_path!(ListPodSandboxStatsResponse.stats.linux.containers);
    // A tag without a value, in bytes that are all ASCII.
    let cut = |container: &[u8]| Some([container, b"\x12"].concat().into());
    assert!(remove_incomplete(list, &changed(&whole(list), &path, &cut)).is_err());
}
