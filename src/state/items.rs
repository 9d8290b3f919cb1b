//! Parses the items of encoded sandbox and container lists, and builds the item of a new object.
//!
//! A new object is added to the last-known lists before its backend has listed it, so its item is built from
//! the request that created it, by copying encoded fields. Parsing borrows from the list and allocates
//! nothing, because owners are learnt from every list.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};

use crate::cri::{LIST_ITEMS, field, field_path};
use crate::wire::{self, WireError};

/// `SANDBOX_READY`.
pub const SANDBOX_READY: i32 = 0;
/// `SANDBOX_NOTREADY`.
pub const SANDBOX_NOTREADY: i32 = 1;
/// `CONTAINER_CREATED`.
pub const CONTAINER_CREATED: i32 = 0;
/// `CONTAINER_RUNNING`.
pub const CONTAINER_RUNNING: i32 = 1;
/// `CONTAINER_EXITED`.
pub const CONTAINER_EXITED: i32 = 2;
/// `CONTAINER_UNKNOWN`.
pub const CONTAINER_UNKNOWN: i32 = 3;

/// A parsed `PodSandbox` of a list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SandboxRef<'a> {
    /// Full ID.
    pub id: &'a str,
    /// Uid of the pod.
    pub uid: &'a str,
    /// Name of the pod.
    pub name: &'a str,
    /// Namespace of the pod.
    pub namespace: &'a str,
    /// Attempt, counted by kubelet from zero.
    pub attempt: u64,
    /// The handler, by its name at the backend.
    pub runtime_handler: &'a str,
    /// `PodSandboxState`.
    pub state: i32,
    /// Nanoseconds since the Unix epoch.
    pub created_at: i64,
    /// The encoded `PodSandbox`.
    pub item: &'a [u8],
}

/// A parsed `Container` of a list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContainerRef<'a> {
    /// Full ID.
    pub id: &'a str,
    /// Full ID of its sandbox.
    pub sandbox_id: &'a str,
    /// Name within the pod.
    pub name: &'a str,
    /// Attempt, counted by kubelet from zero.
    pub attempt: u64,
    /// `image.image`.
    pub image: &'a str,
    /// `image_ref`.
    pub image_ref: &'a str,
    /// `image_id`; empty from runtimes older than CRI 0.30.
    pub image_id: &'a str,
    /// `ContainerState`.
    pub state: i32,
    /// Nanoseconds since the Unix epoch.
    pub created_at: i64,
    /// The encoded `Container`.
    pub item: &'a [u8],
}

impl<'a> SandboxRef<'a> {
    /// Reads an encoded `PodSandbox`.
    ///
    /// # Errors
    /// Returns an error if it cannot be parsed.
    pub fn parse(item: &'a [u8]) -> Result<Self, WireError> {
        let mut facts = Self { item, ..Self::default() };
        for field in wire::fields(item) {
            let field = field?;
            match field.number {
                field!(PodSandbox.id) => facts.id = field.string()?,
                field!(PodSandbox.metadata) => facts.parse_metadata(field.bytes()?)?,
                field!(PodSandbox.state) => facts.state = enum_value(field.varint()?),
                field!(PodSandbox.created_at) => facts.created_at = field.varint()?.cast_signed(),
                field!(PodSandbox.runtime_handler) => facts.runtime_handler = field.string()?,
                _ => {}
            }
        }
        Ok(facts)
    }

    fn parse_metadata(&mut self, metadata: &'a [u8]) -> Result<(), WireError> {
        for field in wire::fields(metadata) {
            let field = field?;
            match field.number {
                field!(PodSandboxMetadata.name) => self.name = field.string()?,
                field!(PodSandboxMetadata.uid) => self.uid = field.string()?,
                field!(PodSandboxMetadata.namespace) => self.namespace = field.string()?,
                field!(PodSandboxMetadata.attempt) => self.attempt = field.varint()?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Iterates over the annotations.
    pub fn annotations(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        map_entries(self.item, field!(PodSandbox.annotations))
    }
}

impl<'a> ContainerRef<'a> {
    /// Reads an encoded `Container`.
    ///
    /// # Errors
    /// Returns an error if it cannot be parsed.
    pub fn parse(item: &'a [u8]) -> Result<Self, WireError> {
        let mut facts = Self { item, ..Self::default() };
        for field in wire::fields(item) {
            let field = field?;
            match field.number {
                field!(Container.id) => facts.id = field.string()?,
                field!(Container.pod_sandbox_id) => facts.sandbox_id = field.string()?,
                field!(Container.metadata) => facts.parse_metadata(field.bytes()?)?,
                field!(Container.image) => facts.parse_image(field.bytes()?)?,
                field!(Container.image_ref) => facts.image_ref = field.string()?,
                field!(Container.state) => facts.state = enum_value(field.varint()?),
                field!(Container.created_at) => facts.created_at = field.varint()?.cast_signed(),
                field!(Container.image_id) => facts.image_id = field.string()?,
                _ => {}
            }
        }
        Ok(facts)
    }

    fn parse_metadata(&mut self, metadata: &'a [u8]) -> Result<(), WireError> {
        for field in wire::fields(metadata) {
            let field = field?;
            match field.number {
                field!(ContainerMetadata.name) => self.name = field.string()?,
                field!(ContainerMetadata.attempt) => self.attempt = field.varint()?,
                _ => {}
            }
        }
        Ok(())
    }

    fn parse_image(&mut self, image: &'a [u8]) -> Result<(), WireError> {
        for field in wire::fields(image) {
            let field = field?;
            if field.number == field!(ImageSpec.image) {
                self.image = field.string()?;
            }
        }
        Ok(())
    }
}

/// Iterates over the sandboxes of an encoded `ListPodSandboxResponse`.
pub fn sandbox_items(list: &[u8]) -> impl Iterator<Item = Result<SandboxRef<'_>, WireError>> {
    wire::items(list, LIST_ITEMS).map(|item| SandboxRef::parse(item?))
}

/// Iterates over the containers of an encoded `ListContainersResponse`.
pub fn container_items(list: &[u8]) -> impl Iterator<Item = Result<ContainerRef<'_>, WireError>> {
    wire::items(list, LIST_ITEMS).map(|item| ContainerRef::parse(item?))
}

/// Builds the `PodSandbox` of a new sandbox: `config` and `handler` are the numbers of those fields in
/// `request`, a `RunPodSandboxRequest` or `RestorePodRequest`.
pub(super) fn sandbox_item(id: &str, request: &[u8], config: u32, handler: u32) -> Bytes {
    let mut item = BytesMut::with_capacity(512);
    wire::put_bytes(&mut item, field!(PodSandbox.id), id.as_bytes());
    for config in wire::items(request, config).map_while(Result::ok) {
        let copied = [
            (field!(PodSandboxConfig.metadata), field!(PodSandbox.metadata)),
            (field!(PodSandboxConfig.labels), field!(PodSandbox.labels)),
            (field!(PodSandboxConfig.annotations), field!(PodSandbox.annotations)),
        ];
        copy_fields(&mut item, config, &copied);
    }
    wire::put_varint(&mut item, field!(PodSandbox.state), u64::from(SANDBOX_READY.cast_unsigned()));
    wire::put_varint(&mut item, field!(PodSandbox.created_at), now());
    let handler = wire::peek_str(request, &[handler]).unwrap_or_default();
    wire::put_bytes(&mut item, field!(PodSandbox.runtime_handler), handler.as_bytes());
    Bytes::copy_from_slice(&item)
}

/// Builds the `Container` of a new container, from every `ContainerConfig` of its request.
///
/// As in containerd (`internal/cri/server/container_list.go`, `toCRIContainer`), `image` is the config's
/// image. kubelet puts an image ID there, so `image_ref` and `image_id` are set to it too.
pub(super) fn container_item(id: &str, sandbox_id: &str, configs: &[&[u8]], state: i32) -> Bytes {
    let mut item = BytesMut::with_capacity(512);
    wire::put_bytes(&mut item, field!(Container.id), id.as_bytes());
    wire::put_bytes(&mut item, field!(Container.pod_sandbox_id), sandbox_id.as_bytes());
    // kubelet dereferences `image`, so it is never left out.
    wire::put_bytes(&mut item, field!(Container.image), &[]);
    for config in configs {
        let copied = [
            (field!(ContainerConfig.metadata), field!(Container.metadata)),
            (field!(ContainerConfig.image), field!(Container.image)),
            (field!(ContainerConfig.labels), field!(Container.labels)),
            (field!(ContainerConfig.annotations), field!(Container.annotations)),
        ];
        copy_fields(&mut item, config, &copied);
    }
    let image = wire::peek_str(&item, &field_path!(Container.image.image)).unwrap_or_default().to_owned();
    wire::put_bytes(&mut item, field!(Container.image_ref), image.as_bytes());
    wire::put_varint(&mut item, field!(Container.state), u64::from(state.cast_unsigned()));
    wire::put_varint(&mut item, field!(Container.created_at), now());
    wire::put_bytes(&mut item, field!(Container.image_id), image.as_bytes());
    Bytes::copy_from_slice(&item)
}

/// Copies length-delimited fields of `from`, each under its new number.
fn copy_fields(out: &mut BytesMut, from: &[u8], numbers: &[(u32, u32)]) {
    for field in wire::fields(from).map_while(Result::ok) {
        let renumbered = numbers.iter().find(|(number, _)| *number == field.number);
        if let (Some((_, number)), Ok(bytes)) = (renumbered, field.bytes()) {
            wire::put_bytes(out, *number, bytes);
        }
    }
}

/// Reads an enum as protobuf does: the low 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "protobuf truncates enums to 32 bits")]
pub(super) fn enum_value(varint: u64) -> i32 {
    varint as i32
}

fn map_entries(item: &[u8], number: u32) -> impl Iterator<Item = (&str, &str)> {
    wire::items(item, number).filter_map(|entry| wire::map_entry(entry.ok()?).ok())
}

/// Returns nanoseconds since the Unix epoch; 1 on a clock before it, because clients reject a zero time.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use prost::Message;

    use super::*;
    use crate::cri;

    fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_created_sandbox_is_listed_as_its_request_describes_it() {
        let metadata = cri::PodSandboxMetadata {
            name: "web".into(),
            uid: "u1".into(),
            namespace: "prod".into(),
            attempt: 3,
        };
        let config = cri::PodSandboxConfig {
            metadata: Some(metadata.clone()),
            labels: labels(&[("app", "web")]),
            annotations: labels(&[("note", "x")]),
            hostname: "never-listed".into(),
            ..Default::default()
        };
        let request = cri::RunPodSandboxRequest { config: Some(config), runtime_handler: "kata-qemu".into() };
        let item = sandbox_item(
            "s1",
            &request.encode_to_vec(),
            field!(RunPodSandboxRequest.config),
            field!(RunPodSandboxRequest.runtime_handler),
        );
        let decoded = cri::PodSandbox::decode(&item[..]).unwrap();
        assert_eq!((decoded.id.as_str(), decoded.metadata), ("s1", Some(metadata)));
        assert_eq!((decoded.state, decoded.runtime_handler.as_str()), (SANDBOX_READY, "kata-qemu"));
        assert_eq!(decoded.labels, labels(&[("app", "web")]));
        assert_eq!(decoded.annotations, labels(&[("note", "x")]));
        assert!(decoded.created_at > 0);
        let facts = SandboxRef::parse(&item).unwrap();
        assert_eq!((facts.id, facts.uid, facts.name), ("s1", "u1", "web"));
        assert_eq!((facts.namespace, facts.attempt, facts.created_at), ("prod", 3, decoded.created_at));
        assert_eq!(facts.annotations().collect::<Vec<_>>(), [("note", "x")]);
    }

    #[test]
    fn a_created_container_is_listed_with_its_image_and_without_its_env() {
        let image = cri::ImageSpec {
            image: "sha256:aa".into(),
            user_specified_image: "busybox:1".into(),
            ..Default::default()
        };
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "main".into(), attempt: 2 }),
            image: Some(image.clone()),
            envs: vec![cri::KeyValue { key: "PASSWORD".into(), value: "hunter2".into() }],
            labels: labels(&[("a", "b")]),
            ..Default::default()
        };
        let item = container_item("c1", "s1", &[&config.encode_to_vec()], CONTAINER_CREATED);
        let decoded = cri::Container::decode(&item[..]).unwrap();
        assert_eq!((decoded.id.as_str(), decoded.pod_sandbox_id.as_str()), ("c1", "s1"));
        assert_eq!(decoded.image, Some(image));
        assert_eq!((decoded.image_ref.as_str(), decoded.image_id.as_str()), ("sha256:aa", "sha256:aa"));
        assert_eq!(decoded.labels, labels(&[("a", "b")]));
        assert!(!item.windows(7).any(|bytes| bytes == b"hunter2"));
        let facts = ContainerRef::parse(&item).unwrap();
        assert_eq!((facts.id, facts.sandbox_id, facts.name, facts.attempt), ("c1", "s1", "main", 2));
        assert_eq!((facts.image, facts.image_id, facts.state), ("sha256:aa", "sha256:aa", CONTAINER_CREATED));
    }

    #[test]
    fn a_container_without_an_image_still_has_the_message_that_kubelet_reads() {
        let item = container_item("c1", "s1", &[], CONTAINER_RUNNING);
        let decoded = cri::Container::decode(&item[..]).unwrap();
        assert_eq!((decoded.image, decoded.state), (Some(cri::ImageSpec::default()), CONTAINER_RUNNING));
    }
}
