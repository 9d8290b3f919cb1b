//! Usage figures of containers and sandboxes.
//!
//! The figures are made up but stable, so that two readings of an unchanged state are equal. The mountpoint
//! of the writable layer is real news to kubelet, which stats that path on its own node.

use tonic::Status;

use super::state::{Container, Sandbox, State, now, selected};
use crate::cri::{self, ContainerState, UInt64Value};

impl State {
    pub(crate) fn container_stats(
        &self,
        request: &cri::ContainerStatsRequest,
    ) -> Result<cri::ContainerStatsResponse, Status> {
        let container = self.known_container(&request.container_id)?;
        Ok(cri::ContainerStatsResponse { stats: Some(self.stats_of(container)) })
    }

    pub(crate) fn list_container_stats(
        &self,
        filter: Option<&cri::ContainerStatsFilter>,
    ) -> Vec<cri::ContainerStats> {
        let none = cri::ContainerStatsFilter::default();
        let filter = filter.unwrap_or(&none);
        let only = self.container(&filter.id).map(|container| container.id.as_str());
        let sandbox = self.sandbox(&filter.pod_sandbox_id).map(|sandbox| sandbox.id.as_str());
        self.containers()
            .filter(|container| container.state == ContainerState::ContainerRunning)
            .filter(|container| filter.id.is_empty() || only == Some(container.id.as_str()))
            .filter(|container| {
                filter.pod_sandbox_id.is_empty() || sandbox == Some(container.sandbox_id.as_str())
            })
            .filter(|container| selected(&filter.label_selector, &container.config.labels))
            .map(|container| self.stats_of(container))
            .collect()
    }

    pub(crate) fn pod_sandbox_stats(
        &self,
        request: &cri::PodSandboxStatsRequest,
    ) -> Result<cri::PodSandboxStatsResponse, Status> {
        self.has_pod_stats("PodSandboxStats")?;
        let sandbox = self.known_sandbox(&request.pod_sandbox_id)?;
        Ok(cri::PodSandboxStatsResponse { stats: Some(self.pod_stats_of(sandbox)) })
    }

    pub(crate) fn list_pod_sandbox_stats(
        &self,
        filter: Option<&cri::PodSandboxStatsFilter>,
    ) -> Result<Vec<cri::PodSandboxStats>, Status> {
        self.has_pod_stats("ListPodSandboxStats")?;
        let none = cri::PodSandboxStatsFilter::default();
        let filter = filter.unwrap_or(&none);
        let only = self.sandbox(&filter.id).map(|sandbox| sandbox.id.as_str());
        let stats = self
            .sandboxes()
            .filter(|sandbox| sandbox.ready)
            .filter(|sandbox| filter.id.is_empty() || only == Some(sandbox.id.as_str()))
            .filter(|sandbox| selected(&filter.label_selector, &sandbox.config.labels))
            .map(|sandbox| self.pod_stats_of(sandbox));
        Ok(stats.collect())
    }

    fn has_pod_stats(&self, method: &str) -> Result<(), Status> {
        if self.abilities.pod_sandbox_stats {
            return Ok(());
        }
        Err(Status::unimplemented(format!("method {method} not implemented")))
    }

    fn stats_of(&self, container: &Container) -> cri::ContainerStats {
        cri::ContainerStats {
            attributes: Some(cri::ContainerAttributes {
                id: container.id.clone(),
                metadata: container.config.metadata.clone(),
                labels: container.config.labels.clone(),
                annotations: container.config.annotations.clone(),
            }),
            cpu: Some(cpu()),
            memory: Some(memory()),
            writable_layer: Some(self.filesystem_usage(8192)),
            swap: Some(cri::SwapUsage { timestamp: now(), ..Default::default() }),
            io: None,
        }
    }

    fn pod_stats_of(&self, sandbox: &Sandbox) -> cri::PodSandboxStats {
        let containers = self.containers_of(&sandbox.id);
        let network = cri::NetworkInterfaceUsage {
            name: "eth0".into(),
            rx_bytes: value(1000),
            rx_errors: value(0),
            tx_bytes: value(2000),
            tx_errors: value(0),
        };
        cri::PodSandboxStats {
            attributes: Some(cri::PodSandboxAttributes {
                id: sandbox.id.clone(),
                metadata: sandbox.config.metadata.clone(),
                labels: sandbox.config.labels.clone(),
                annotations: sandbox.config.annotations.clone(),
            }),
            linux: Some(cri::LinuxPodSandboxStats {
                cpu: Some(cpu()),
                memory: Some(memory()),
                network: Some(cri::NetworkUsage {
                    timestamp: now(),
                    default_interface: Some(network),
                    interfaces: Vec::new(),
                }),
                process: Some(cri::ProcessUsage { timestamp: now(), process_count: value(1) }),
                containers: containers.map(|container| self.stats_of(container)).collect(),
                io: None,
            }),
            windows: None,
        }
    }
}

fn cpu() -> cri::CpuUsage {
    cri::CpuUsage {
        timestamp: now(),
        usage_core_nano_seconds: value(1_000_000),
        usage_nano_cores: value(1000),
        psi: None,
    }
}

fn memory() -> cri::MemoryUsage {
    cri::MemoryUsage {
        timestamp: now(),
        working_set_bytes: value(4 << 20),
        available_bytes: value(0),
        usage_bytes: value(5 << 20),
        rss_bytes: value(3 << 20),
        page_faults: value(10),
        major_page_faults: value(0),
        psi: None,
    }
}

#[allow(clippy::unnecessary_wraps, reason = "the fields it fills are optional")]
fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}
