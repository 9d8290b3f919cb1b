//! The cgroup drivers of the local backends, which must agree, because kubelet has one.

use std::sync::Arc;

use prost::Message;

use crate::backend::Backend;
use crate::config::CgroupDriver;
use crate::cri::{self, Rpc, RuntimeConfigResponse};
use crate::proxy::Node;

impl Node {
    /// Warns if local backends have different cgroup drivers, because kubelet has one.
    pub(super) fn compare_cgroup_drivers(&self, backend: &Backend) {
        let drivers = cgroup_drivers(self);
        if let Some((first, driver)) = drivers.first() {
            for (other, _) in drivers.iter().filter(|(_, theirs)| theirs != driver) {
                tracing::warn!(backends = ?[first, other], "local backends have different cgroup drivers");
            }
        }
        let is_default = self.config().default_backend == *backend.name;
        if is_default
            && self.config().cgroup_driver.is_none()
            && backend.state.is_unimplemented(Rpc::RuntimeConfig)
        {
            tracing::warn!(
                backend = %backend.name,
                "backend does not tell its cgroup driver: kubelet uses its own cgroupDriver, and from 1.38 on it needs cgroup_driver here"
            );
        }
    }
}

/// Returns a driver as `RuntimeConfig` gives it.
pub(super) fn number(driver: CgroupDriver) -> i32 {
    match driver {
        CgroupDriver::Systemd => cri::CgroupDriver::Systemd.into(),
        CgroupDriver::Cgroupfs => cri::CgroupDriver::Cgroupfs.into(),
    }
}

/// Returns the cgroup drivers that local backends report, and the configured one. They must agree, because
/// kubelet has one.
fn cgroup_drivers(node: &Node) -> Vec<(Arc<str>, i32)> {
    let backends = node.backends();
    let local = backends.iter().filter(|backend| backend.config().local);
    let reported = local.filter_map(|backend| {
        let config = RuntimeConfigResponse::decode(backend.state.reply(Rpc::RuntimeConfig)?).ok()?;
        Some((Arc::clone(&backend.name), config.linux?.cgroup_driver))
    });
    let configured = node.config().cgroup_driver.map(|driver| ("cgroup_driver".into(), number(driver)));
    configured.into_iter().chain(reported).collect()
}
