//! Says what a simulated runtime can do and whose habits it has.
//!
//! Real runtimes differ in optional RPCs and in details that a multiplexer trips over: the form of image IDs,
//! the order of metric labels, what an unknown ID means. Each such difference is one field here, so that a
//! test names the one it is about. Abilities are data; the answers that follow from them live elsewhere.

use crate::cri;

/// The habits of a simulated runtime; `Default` is a current containerd.
#[derive(Debug, Clone)]
pub struct Abilities {
    /// The handlers that `RunPodSandbox` and `RestorePod` accept beside `""`. Default: `runc`.
    pub handlers: Vec<String>,
    /// The API packages that are served. Default: [`ApiVersions::V1`].
    pub api: ApiVersions,
    /// Whether the six `Stream*` lists exist. Default: no.
    pub stream_lists: bool,
    /// How many items one frame of a `Stream*` list carries. Default: 5000, as containerd.
    pub stream_batch: usize,
    /// Whether each `ListPodSandbox` and `ListContainers` begins with another item than the one before:
    /// containerd's lists have the order of a Go map. Default: no.
    pub rotate_lists: bool,
    /// What `GetContainerEvents` does. Default: [`Events::Unimplemented`].
    pub events: Events,
    /// Whether `PodSandboxStats` and `ListPodSandboxStats` exist. Default: yes.
    pub pod_sandbox_stats: bool,
    /// The form of image IDs. Default: [`ImageIds::Containerd`].
    pub image_ids: ImageIds,
    /// The order of metric labels. Default: [`MetricLabels::Containerd`].
    pub metric_labels: MetricLabels,
    /// What `RuntimeConfig` reports; `None` answers `Unimplemented`. Default: systemd.
    pub cgroup_driver: Option<cri::CgroupDriver>,
    /// What Stop and Remove of an unknown ID answer. Default: [`UnknownIds::Ok`].
    pub unknown_ids: UnknownIds,
    /// The version that `Version` reports. Default: `2.1.0`.
    pub runtime_version: String,
    /// The directory that images and writable layers report. Default: `/var/lib/containerd`.
    pub mountpoint: String,
    /// The features of `Status`. Default: supplemental groups policy only.
    pub features: Option<cri::RuntimeFeatures>,
    /// The start of the URLs of Exec, Attach and `PortForward`; `{port}` is replaced by the port of the
    /// streaming server. Default: `http://127.0.0.1:{port}`.
    pub stream_url: String,
    /// The uid that pulled images report, unless a user name is set. Default: 0.
    pub image_uid: i64,
    /// The user name that pulled images report; empty means the uid is reported. Default: empty.
    pub image_username: String,
}

impl Default for Abilities {
    fn default() -> Self {
        Self {
            handlers: vec!["runc".into()],
            api: ApiVersions::V1,
            stream_lists: false,
            stream_batch: 5000,
            rotate_lists: false,
            events: Events::Unimplemented,
            pod_sandbox_stats: true,
            image_ids: ImageIds::Containerd,
            metric_labels: MetricLabels::Containerd,
            cgroup_driver: Some(cri::CgroupDriver::Systemd),
            unknown_ids: UnknownIds::Ok,
            runtime_version: "2.1.0".into(),
            mountpoint: "/var/lib/containerd".into(),
            features: Some(cri::RuntimeFeatures { supplemental_groups_policy: true, ..Default::default() }),
            stream_url: "http://127.0.0.1:{port}".into(),
            image_uid: 0,
            image_username: String::new(),
        }
    }
}

/// The API packages a runtime serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiVersions {
    /// `runtime.v1` alone: containerd 2, CRI-O from 1.26.
    V1,
    /// `runtime.v1alpha2` alone: containerd up to 1.5.
    V1alpha2,
    /// Both: containerd 1.6 and 1.7.
    Both,
}

/// What `GetContainerEvents` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Events {
    /// Answers `Unimplemented`.
    Unimplemented,
    /// Streams what happens until the client leaves.
    Stream,
    /// Ends at once with OK, as CRI-O does with events switched off.
    EndAtOnce,
}

/// The form of image IDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageIds {
    /// `sha256:` and 64 hex digits; the plain digits and a prefix of them are understood too.
    Containerd,
    /// 64 hex digits; `sha256:…` is read as the name of a repository.
    Crio,
}

/// The order of the labels of pod metrics: same names, other positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricLabels {
    /// pod, namespace, container, id, image.
    Containerd,
    /// id, image, namespace, pod, container.
    Crio,
}

/// What Stop and Remove of an unknown ID answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownIds {
    /// OK, as the CRI demands (critest, `idempotence.go`).
    Ok,
    /// `NotFound`, as some runtimes do.
    NotFound,
}
