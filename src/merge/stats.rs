//! Removes the filesystem paths of another host from stats, so that kubelet does not look for them here.
//!
//! kubelet calls stat(2) on the mountpoint of a container's writable layer; one that does not exist on this
//! node fails the whole summary and with it eviction (`stats/cri_stats_provider.go getFsInfo`). So
//! `writable_layer.fs_id` is removed. The bytes the layer uses, and all other fields, stay.

use bytes::Bytes;

use crate::cri::field_path;
use crate::method::List;
use crate::wire::{self, WireError};

/// The filesystem in a list of container stats.
const OF_CONTAINER: [u32; 3] = field_path!(ListContainerStatsResponse.stats.writable_layer.fs_id);
/// The filesystems in a list of pod stats.
const OF_SANDBOX: [[u32; 5]; 2] = [
    field_path!(ListPodSandboxStatsResponse.stats.linux.containers.writable_layer.fs_id),
    field_path!(ListPodSandboxStatsResponse.stats.windows.containers.writable_layer.fs_id),
];

/// Removes the filesystems from an encoded list of stats, or from the reply about one container or sandbox,
/// which has the encoding of a list of one.
///
/// # Errors
/// Returns an error if the stats cannot be parsed.
pub fn without_filesystems(list: List, stats: &Bytes) -> Result<Bytes, WireError> {
    let paths: &[&[u32]] = match list {
        List::ContainerStats => &[&OF_CONTAINER],
        List::SandboxStats => &[&OF_SANDBOX[0], &OF_SANDBOX[1]],
        _ => &[],
    };
    paths.iter().try_fold(stats.clone(), |stats, path| Ok(wire::without(&stats, path)?.unwrap_or(stats)))
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::cri;

    fn container(mountpoint: Option<&str>) -> cri::ContainerStats {
        cri::ContainerStats {
            attributes: Some(cri::ContainerAttributes { id: "c".into(), ..Default::default() }),
            cpu: Some(cri::CpuUsage { timestamp: 3, ..Default::default() }),
            writable_layer: Some(cri::FilesystemUsage {
                timestamp: 7,
                fs_id: mountpoint.map(|path| cri::FilesystemIdentifier { mountpoint: path.into() }),
                used_bytes: Some(cri::UInt64Value { value: 300 }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn bytes(message: &impl Message) -> Bytes {
        message.encode_to_vec().into()
    }

    #[test]
    fn a_container_keeps_everything_but_the_filesystem() {
        let list = |path| cri::ListContainerStatsResponse { stats: vec![container(path), container(path)] };
        let stripped = without_filesystems(List::ContainerStats, &bytes(&list(Some("/far/away"))));
        assert_eq!(stripped, Ok(bytes(&list(None))));
        let one = |path| cri::ContainerStatsResponse { stats: Some(container(path)) };
        let stripped = without_filesystems(List::ContainerStats, &bytes(&one(Some("/far/away"))));
        assert_eq!(stripped, Ok(bytes(&one(None))));
    }

    #[test]
    fn the_containers_of_a_sandbox_keep_everything_but_the_filesystem() {
        let list = |path| cri::ListPodSandboxStatsResponse {
            stats: vec![cri::PodSandboxStats {
                linux: Some(cri::LinuxPodSandboxStats {
                    containers: vec![container(path), container(None)],
                    ..Default::default()
                }),
                ..Default::default()
            }],
        };
        let stripped = without_filesystems(List::SandboxStats, &bytes(&list(Some("/far/away"))));
        assert_eq!(stripped, Ok(bytes(&list(None))));
    }

    #[test]
    fn unknown_fields_survive_and_a_list_without_filesystems_is_not_copied() {
        let mut unknown = bytes(&cri::ListContainerStatsResponse { stats: vec![container(None)] }).to_vec();
        wire::put_bytes(&mut unknown, 77, b"of tomorrow");
        let unknown = Bytes::from(unknown);
        let kept = without_filesystems(List::ContainerStats, &unknown).expect("a list");
        assert_eq!(kept.as_ptr(), unknown.as_ptr());
        let mut full =
            bytes(&cri::ListContainerStatsResponse { stats: vec![container(Some("/x"))] }).to_vec();
        wire::put_bytes(&mut full, 77, b"of tomorrow");
        assert_eq!(without_filesystems(List::ContainerStats, &full.into()), Ok(unknown));
    }

    #[test]
    fn garbage_is_an_error() {
        let garbage = Bytes::from_static(&[0x0a, 0x7f, 1]);
        assert_eq!(without_filesystems(List::ContainerStats, &garbage), Err(WireError::Truncated));
    }
}
