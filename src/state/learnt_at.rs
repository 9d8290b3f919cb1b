//! When the owners in a backend's lists were last learnt.

use super::ListKind;

/// The version of the map of owners at which each of the newest lists was last learnt from.
///
/// kubelet lists every second, and mostly nothing has changed: a list whose bytes are those of the newest one
/// is not read again, unless owners were forgotten since, which raises the version.
#[derive(Debug, Default)]
pub(super) struct LearntAt {
    sandboxes: Option<u64>,
    containers: Option<u64>,
}

impl LearntAt {
    /// Returns the version for a list of `kind`; `None` for lists that name no owners.
    pub(super) fn get_mut(&mut self, kind: ListKind) -> Option<&mut Option<u64>> {
        match kind {
            ListKind::Sandboxes => Some(&mut self.sandboxes),
            ListKind::Containers => Some(&mut self.containers),
            ListKind::Images | ListKind::ContainerStats | ListKind::PodSandboxStats => None,
        }
    }
}
