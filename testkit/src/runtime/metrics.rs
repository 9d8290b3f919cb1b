//! Pod metrics: descriptors and values in the label order of one of the two families.
//!
//! Label values are matched to label names by position alone, and the families order them differently, so
//! a proxy that merges two runtimes must reorder them.

use super::abilities::MetricLabels;
use super::state::{Container, Sandbox, State, now};
use crate::cri;

struct Family {
    name: &'static str,
    help: &'static str,
    kind: cri::MetricType,
    /// The label that comes after those that every family has.
    extra: Option<(&'static str, &'static str)>,
    value: u64,
}

const OF_CONTAINERS: [Family; 2] = [
    Family {
        name: "container_cpu_usage_seconds_total",
        help: "Cumulative cpu time consumed in seconds",
        kind: cri::MetricType::Counter,
        extra: Some(("cpu", "total")),
        value: 17,
    },
    Family {
        name: "container_memory_working_set_bytes",
        help: "Current working set in bytes",
        kind: cri::MetricType::Gauge,
        extra: None,
        value: 4 << 20,
    },
];

const OF_SANDBOXES: [Family; 1] = [Family {
    name: "container_network_receive_bytes_total",
    help: "Cumulative count of bytes received",
    kind: cri::MetricType::Counter,
    extra: Some(("interface", "eth0")),
    value: 1000,
}];

impl State {
    pub(crate) fn metric_descriptors(&self) -> Vec<cri::MetricDescriptor> {
        let descriptor = |family: &Family| {
            let labels = self.in_order(["pod", "namespace", "container", "id", "image"]);
            let extra = family.extra.iter().map(|(key, _)| *key);
            cri::MetricDescriptor {
                name: family.name.into(),
                help: family.help.into(),
                label_keys: labels.into_iter().chain(extra).map(str::to_owned).collect(),
            }
        };
        OF_CONTAINERS.iter().chain(&OF_SANDBOXES).map(descriptor).collect()
    }

    pub(crate) fn pod_metrics(&self) -> Vec<cri::PodSandboxMetrics> {
        let ready = self.sandboxes().filter(|sandbox| sandbox.ready);
        let metrics = ready.map(|sandbox| cri::PodSandboxMetrics {
            pod_sandbox_id: sandbox.id.clone(),
            metrics: OF_SANDBOXES.iter().map(|family| self.metric(family, sandbox, None)).collect(),
            container_metrics: self
                .containers_of(&sandbox.id)
                .map(|container| cri::ContainerMetrics {
                    container_id: container.id.clone(),
                    metrics: OF_CONTAINERS
                        .iter()
                        .map(|family| self.metric(family, sandbox, Some(container)))
                        .collect(),
                })
                .collect(),
        });
        metrics.collect()
    }

    fn metric(&self, family: &Family, sandbox: &Sandbox, container: Option<&Container>) -> cri::Metric {
        let pod = sandbox.config.metadata.clone().unwrap_or_default();
        let config = container.map(|container| &container.config);
        let name =
            config.and_then(|config| config.metadata.as_ref()).map_or("POD", |metadata| &metadata.name);
        let image = config.and_then(|config| config.image.as_ref()).map_or("", |image| &image.image);
        let id = container.map_or(&sandbox.id, |container| &container.id);
        let labels = self.in_order([pod.name.as_str(), &pod.namespace, name, id, image]);
        let extra = family.extra.iter().map(|(_, value)| *value);
        cri::Metric {
            name: family.name.into(),
            timestamp: now(),
            metric_type: family.kind.into(),
            label_values: labels.into_iter().chain(extra).map(str::to_owned).collect(),
            value: Some(cri::UInt64Value { value: family.value }),
        }
    }

    /// Brings what is given in containerd's order into the order of this runtime.
    fn in_order<'a>(&self, labels: [&'a str; 5]) -> [&'a str; 5] {
        let [pod, namespace, container, id, image] = labels;
        match self.abilities.metric_labels {
            MetricLabels::Containerd => labels,
            MetricLabels::Crio => [id, image, namespace, pod, container],
        }
    }
}
