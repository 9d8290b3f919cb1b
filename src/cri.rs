//! The CRI API as generated from `proto/cri.proto` (proto/README.md says how): message types, descriptor,
//! field numbers, RPCs.
//!
//! A field is named where it is read, never by a bare number: `field!` is the number of one field, and
//! `field_path!` the numbers from a message down to a field inside it. Both fail to compile if the API has
//! no such field. Field names are those of the proto.

#![allow(missing_docs, clippy::pedantic, reason = "generated code")]

include!("../proto/generated/messages.rs");
include!("../proto/generated/rpcs.rs");

/// The encoded `FileDescriptorSet` of `proto/cri.proto`, without its comments.
pub const DESCRIPTOR: &[u8] = include_bytes!("../proto/generated/descriptor.bin");

/// The number of every field: `fields::Image::repo_tags::NUMBER`.
#[allow(non_snake_case)]
pub mod fields {
    include!("../proto/generated/fields.rs");
}

/// The number of a field: `field!(Image.repo_tags)`.
macro_rules! field {
    ($message:ident . $field:ident) => {
        $crate::cri::fields::$message::$field::NUMBER
    };
}

/// The numbers of the fields from a message to a field inside it, outermost first, as an array:
/// `field_path!(PullImageRequest.sandbox_config.metadata.uid)`.
macro_rules! field_path {
    (@ [$($at:tt)*] [$($path:tt)*] $field:ident) => { [$($path)* $($at)*::$field::NUMBER] };
    (@ [$($at:tt)*] [$($path:tt)*] $field:ident . $($rest:ident).+) => {
        $crate::cri::field_path!(@ [$($at)*::$field::message] [$($path)* $($at)*::$field::NUMBER,] $($rest).+)
    };
    ($message:ident . $($field:ident).+) => {
        $crate::cri::field_path!(@ [$crate::cri::fields::$message] [] $($field).+)
    };
}

pub(crate) use {field, field_path};

/// The field that holds the items of every list reply; [`fields::ImageFsInfoResponse`] alone has a second
/// list.
pub const LIST_ITEMS: u32 = same(&[
    field!(ListPodSandboxResponse.items),
    field!(ListContainersResponse.containers),
    field!(ListContainerStatsResponse.stats),
    field!(ListPodSandboxStatsResponse.stats),
    field!(ListImagesResponse.images),
    field!(ImageFsInfoResponse.image_filesystems),
    field!(ListMetricDescriptorsResponse.descriptors),
    field!(ListPodSandboxMetricsResponse.pod_metrics),
    field!(StreamPodSandboxesResponse.pod_sandboxes),
    field!(StreamContainersResponse.containers),
    field!(StreamContainerStatsResponse.container_stats),
    field!(StreamPodSandboxStatsResponse.pod_sandbox_stats),
    field!(StreamPodSandboxMetricsResponse.pod_sandbox_metrics),
    field!(StreamImagesResponse.images),
    // The replies about one object are lists of one.
    field!(ContainerStatsResponse.stats),
    field!(PodSandboxStatsResponse.stats),
]);

/// The filter of every list request that has one.
pub const LIST_FILTER: u32 = same(&[
    field!(ListPodSandboxRequest.filter),
    field!(ListContainersRequest.filter),
    field!(ListContainerStatsRequest.filter),
    field!(ListPodSandboxStatsRequest.filter),
    field!(ListImagesRequest.filter),
]);

/// The ID in every list filter that has one.
pub const FILTER_ID: u32 = same(&[
    field!(PodSandboxFilter.id),
    field!(ContainerFilter.id),
    field!(ContainerStatsFilter.id),
    field!(PodSandboxStatsFilter.id),
]);

/// The ID in every item of a list whose items have one of their own.
pub const ITEM_ID: u32 = same(&[field!(PodSandbox.id), field!(Container.id), field!(Image.id)]);

/// The ID in every request about one sandbox or container; tests hold the method table against it.
pub const OBJECT_ID: u32 =
    same(&[field!(StopPodSandboxRequest.pod_sandbox_id), field!(StopContainerRequest.container_id)]);

/// The new ID in every reply to a call that creates something.
pub const CREATED_ID: u32 = same(&[
    field!(RunPodSandboxResponse.pod_sandbox_id),
    field!(CreateContainerResponse.container_id),
    field!(RestorePodResponse.pod_sandbox_id),
]);

/// The URL in every reply to `Exec`, `Attach` and `PortForward`.
pub const STREAM_URL: u32 =
    same(&[field!(ExecResponse.url), field!(AttachResponse.url), field!(PortForwardResponse.url)]);

/// Returns the number that all of `numbers` are; one that differs fails the build.
const fn same(numbers: &[u32]) -> u32 {
    let mut index = 1;
    while index < numbers.len() {
        assert!(numbers[index] == numbers[0], "a field stands under one number in all these messages");
        index += 1;
    }
    numbers[0]
}
