//! Pod metrics of several runtimes under one set of descriptors.
//!
//! A metric identifies its labels by position only, and runtimes order them differently: pod, namespace,
//! container, id, image in containerd; id, image, namespace, pod, container in CRI-O. kubelet asks for the
//! descriptors once in its life (`server/server.go`, `collectors/cri_metrics.go`), so the order announced
//! then is kept, and the label values of every metric are reordered to it. A metric whose own order is
//! unknown is left out: values under wrong label names are worse than no metric. No other field of a metric
//! is read.

use std::collections::{HashMap, HashSet};

use bytes::{Bytes, BytesMut};

use crate::cri::{LIST_ITEMS, field};
use crate::wire::{self, WireError};

/// Field of a descriptor: its name.
const DESCRIPTOR_NAME: u32 = field!(MetricDescriptor.name);
/// Field of a descriptor: its label keys.
const LABEL_KEYS: u32 = field!(MetricDescriptor.label_keys);
/// Field of a metric: its label values.
const LABEL_VALUES: u32 = field!(Metric.label_values);
/// Field of a sandbox or a container: its metrics.
const METRICS: u32 = field!(PodSandboxMetrics.metrics);
const _: () = assert!(METRICS == field!(ContainerMetrics.metrics), "one number for both");

/// Merges lists of descriptors by name.
///
/// The `announced` descriptors come first and unchanged. For a new name the first descriptor is taken, and
/// label keys that only later ones have are appended to it.
///
/// # Errors
/// Returns an error if a descriptor cannot be parsed.
pub fn unite<'a>(announced: &'a [u8], lists: impl IntoIterator<Item = &'a [u8]>) -> Result<Bytes, WireError> {
    let mut names = HashSet::new();
    for descriptor in wire::items(announced, LIST_ITEMS) {
        names.insert(wire::peek_str(descriptor?, &[field!(MetricDescriptor.name)])?);
    }
    let mut positions = HashMap::new();
    let mut new: Vec<(BytesMut, Vec<&str>)> = Vec::new();
    for list in lists {
        for descriptor in wire::items(list, LIST_ITEMS) {
            let descriptor = descriptor?;
            let name = wire::peek_str(descriptor, &[field!(MetricDescriptor.name)])?;
            if names.contains(name) {
                continue;
            }
            let position = *positions.entry(name).or_insert(new.len());
            if position == new.len() {
                new.push((descriptor.into(), keys(descriptor)?));
            } else {
                let (encoded, known) = &mut new[position];
                for key in keys(descriptor)? {
                    if !known.contains(&key) {
                        wire::put_bytes(encoded, LABEL_KEYS, key.as_bytes());
                        known.push(key);
                    }
                }
            }
        }
    }
    let mut united = BytesMut::from(announced);
    for (descriptor, _) in new {
        wire::put_bytes(&mut united, LIST_ITEMS, &descriptor);
    }
    Ok(united.freeze())
}

/// Returns the descriptors to announce now: those of all backends, merged by name. A name that was
/// announced before with the same set of labels keeps their order, because a client that read it then still
/// interprets metrics by it.
///
/// # Errors
/// Returns an error if a descriptor cannot be parsed.
pub fn announce<'a>(before: &'a [u8], lists: impl IntoIterator<Item = &'a [u8]>) -> Result<Bytes, WireError> {
    let united = unite(&[], lists)?;
    let mut known = HashMap::new();
    for descriptor in wire::items(before, LIST_ITEMS) {
        let descriptor = descriptor?;
        known.insert(wire::peek_str(descriptor, &[DESCRIPTOR_NAME])?, keys(descriptor)?);
    }
    let mut out = BytesMut::with_capacity(united.len());
    for descriptor in wire::items(&united, LIST_ITEMS) {
        let descriptor = descriptor?;
        let now = keys(descriptor)?;
        let same = |before: &&Vec<&str>| {
            before.len() == now.len() && before.iter().collect::<HashSet<_>>() == now.iter().collect()
        };
        match known.get(wire::peek_str(descriptor, &[DESCRIPTOR_NAME])?).filter(same) {
            None => wire::put_bytes(&mut out, LIST_ITEMS, descriptor),
            Some(order) => {
                let mut ordered = BytesMut::with_capacity(descriptor.len());
                for field in wire::fields(descriptor) {
                    let field = field?;
                    if field.number != LABEL_KEYS {
                        ordered.extend_from_slice(field.raw);
                    }
                }
                for key in order {
                    wire::put_bytes(&mut ordered, LABEL_KEYS, key.as_bytes());
                }
                wire::put_bytes(&mut out, LIST_ITEMS, &ordered);
            }
        }
    }
    Ok(out.freeze())
}

/// Iterates over the names of descriptors, up to the first that cannot be read.
pub fn names(descriptors: &[u8]) -> impl Iterator<Item = &str> {
    wire::items(descriptors, LIST_ITEMS)
        .map_while(|descriptor| wire::peek_str(descriptor.ok()?, &[DESCRIPTOR_NAME]).ok())
}

/// Reorders the label values of one backend's metrics to the announced order.
#[derive(Debug, Default)]
pub struct Labels<'a> {
    /// Whether every announced metric has exactly the labels of the backend's own.
    same: bool,
    announced: HashSet<&'a str>,
    /// By name of a metric: for each announced label the index of its value, `None` if the backend has no
    /// such label.
    positions: HashMap<&'a str, Vec<Option<usize>>>,
}

impl<'a> Labels<'a> {
    /// Compares a backend's own descriptors with those that were announced.
    ///
    /// # Errors
    /// Returns an error if a descriptor cannot be parsed.
    pub fn new(own: &'a [u8], announced: &'a [u8]) -> Result<Self, WireError> {
        let mut own_keys = HashMap::new();
        for descriptor in wire::items(own, LIST_ITEMS) {
            let descriptor = descriptor?;
            own_keys.insert(wire::peek_str(descriptor, &[field!(MetricDescriptor.name)])?, keys(descriptor)?);
        }
        let mut labels = Self { same: true, ..Self::default() };
        for descriptor in wire::items(announced, LIST_ITEMS) {
            let descriptor = descriptor?;
            let (name, wanted) =
                (wire::peek_str(descriptor, &[field!(MetricDescriptor.name)])?, keys(descriptor)?);
            labels.announced.insert(name);
            let own_order = own_keys.get(name);
            labels.same &= own_order == Some(&wanted);
            if let Some(own_order) = own_order {
                let position = |key: &&str| own_order.iter().position(|own| own == key);
                labels.positions.insert(name, wanted.iter().map(position).collect());
            }
        }
        Ok(labels)
    }

    /// Reorders the label values in an encoded list of `PodSandboxMetrics`. A list that is in order already
    /// is shared, not copied.
    ///
    /// # Errors
    /// Returns an error if the list cannot be parsed.
    pub fn reorder(&self, list: &Bytes) -> Result<Bytes, WireError> {
        if self.same {
            return Ok(list.clone());
        }
        let mut out = BytesMut::with_capacity(list.len());
        for sandbox in wire::fields(list) {
            let sandbox = sandbox?;
            if sandbox.number == LIST_ITEMS {
                wire::put_bytes(&mut out, LIST_ITEMS, &self.sandbox(sandbox.bytes()?)?);
            } else {
                out.extend_from_slice(sandbox.raw);
            }
        }
        Ok(out.freeze())
    }

    fn sandbox(&self, sandbox: &[u8]) -> Result<BytesMut, WireError> {
        const CONTAINERS: u32 = field!(PodSandboxMetrics.container_metrics);
        let mut out = BytesMut::with_capacity(sandbox.len());
        for field in wire::fields(sandbox) {
            let field = field?;
            match field.number {
                METRICS => self.put_metric(&mut out, field.bytes()?)?,
                CONTAINERS => wire::put_bytes(&mut out, CONTAINERS, &self.container(field.bytes()?)?),
                _ => out.extend_from_slice(field.raw),
            }
        }
        Ok(out)
    }

    fn container(&self, container: &[u8]) -> Result<BytesMut, WireError> {
        let mut out = BytesMut::with_capacity(container.len());
        for field in wire::fields(container) {
            let field = field?;
            match field.number {
                METRICS => self.put_metric(&mut out, field.bytes()?)?,
                _ => out.extend_from_slice(field.raw),
            }
        }
        Ok(out)
    }

    /// Writes one metric with reordered label values. One that was announced but whose own order is unknown
    /// is skipped.
    fn put_metric(&self, out: &mut BytesMut, metric: &[u8]) -> Result<(), WireError> {
        let name = wire::peek_str(metric, &[field!(Metric.name)])?;
        let Some(positions) = self.positions.get(name) else {
            // kubelet drops a metric that was never announced, so its labels do not matter.
            if !self.announced.contains(name) {
                wire::put_bytes(out, METRICS, metric);
            }
            return Ok(());
        };
        let values: Vec<&[u8]> = wire::items(metric, LABEL_VALUES).collect::<Result<_, _>>()?;
        let mut written = BytesMut::with_capacity(metric.len());
        for field in wire::fields(metric) {
            let field = field?;
            if field.number != LABEL_VALUES {
                written.extend_from_slice(field.raw);
            }
        }
        for position in positions {
            let value = position.and_then(|position| values.get(position)).copied().unwrap_or_default();
            wire::put_bytes(&mut written, LABEL_VALUES, value);
        }
        wire::put_bytes(out, METRICS, &written);
        Ok(())
    }
}

fn keys(descriptor: &[u8]) -> Result<Vec<&str>, WireError> {
    wire::items(descriptor, LABEL_KEYS)
        .map(|key| std::str::from_utf8(key?).map_err(|_| WireError::Utf8(LABEL_KEYS)))
        .collect()
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::cri::{
        ContainerMetrics, ListMetricDescriptorsResponse, ListPodSandboxMetricsResponse, Metric,
        MetricDescriptor, PodSandboxMetrics,
    };

    const CONTAINERD: [&str; 5] = ["pod", "namespace", "container", "id", "image"];
    const CRIO: [&str; 5] = ["id", "image", "namespace", "pod", "container"];

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    fn descriptors(of: &[(&str, &[&str])]) -> Bytes {
        let descriptor = |&(name, keys): &(&str, &[&str])| MetricDescriptor {
            name: name.to_owned(),
            help: format!("help of {name}"),
            label_keys: strings(keys),
        };
        ListMetricDescriptorsResponse { descriptors: of.iter().map(descriptor).collect() }
            .encode_to_vec()
            .into()
    }

    fn metric(name: &str, values: &[&str]) -> Metric {
        Metric { name: name.to_owned(), timestamp: 9, label_values: strings(values), ..Default::default() }
    }

    /// One sandbox with `metrics` of its own and the same of one container.
    fn list(metrics: &[Metric]) -> Bytes {
        let pod_metrics = vec![PodSandboxMetrics {
            pod_sandbox_id: "s".into(),
            metrics: metrics.to_vec(),
            container_metrics: vec![ContainerMetrics { container_id: "c".into(), metrics: metrics.to_vec() }],
        }];
        ListPodSandboxMetricsResponse { pod_metrics }.encode_to_vec().into()
    }

    fn decoded(list: &Bytes) -> ListPodSandboxMetricsResponse {
        ListPodSandboxMetricsResponse::decode(list.clone()).expect("a list")
    }

    #[test]
    fn descriptors_are_united_by_name_and_what_was_announced_stays() {
        let announced = descriptors(&[("cpu", &CONTAINERD)]);
        let crio = descriptors(&[("cpu", &CRIO), ("oom", &["id"])]);
        let other = descriptors(&[("oom", &["pod", "id"])]);
        let united = unite(&announced, [&crio[..], &other[..]]).expect("descriptors");
        assert_eq!(united, descriptors(&[("cpu", &CONTAINERD), ("oom", &["id", "pod"])]));
        assert_eq!(unite(&united, [&crio[..]]), Ok(united.clone()));
    }

    #[test]
    fn a_descriptor_is_announced_as_it_is_now_and_keeps_the_order_of_labels_that_are_the_same() {
        let before = descriptors(&[("cpu", &CONTAINERD), ("mem", &["id"]), ("gone", &["id"])]);
        let now = descriptors(&[("cpu", &CRIO), ("mem", &["id", "node"])]);
        let announced = announce(&before, [&now[..]]).expect("descriptors");
        let expected = descriptors(&[("cpu", &CONTAINERD), ("mem", &["id", "node"])]);
        assert_eq!(
            ListMetricDescriptorsResponse::decode(announced).expect("a list"),
            ListMetricDescriptorsResponse::decode(expected).expect("a list")
        );
        assert_eq!(names(&before).collect::<Vec<_>>(), ["cpu", "mem", "gone"]);
    }

    #[test]
    fn labels_come_into_the_announced_order_at_sandboxes_and_containers() {
        let announced = descriptors(&[("cpu", &["pod", "namespace", "container", "id", "image", "zone"])]);
        let own = descriptors(&[("cpu", &CRIO)]);
        let labels = Labels::new(&own, &announced).expect("descriptors");
        let reordered = labels.reorder(&list(&[metric("cpu", &CRIO)])).expect("a list");
        let wanted = metric("cpu", &["pod", "namespace", "container", "id", "image", ""]);
        assert_eq!(decoded(&reordered), decoded(&list(&[wanted])));
    }

    #[test]
    fn metrics_in_the_announced_order_are_not_copied() {
        let announced = descriptors(&[("cpu", &CONTAINERD)]);
        let labels = Labels::new(&announced, &announced).expect("descriptors");
        let metrics = list(&[metric("cpu", &CONTAINERD)]);
        assert_eq!(labels.reorder(&metrics).expect("a list").as_ptr(), metrics.as_ptr());
    }

    #[test]
    fn a_metric_in_an_order_nobody_knows_is_left_out() {
        let announced = descriptors(&[("cpu", &CONTAINERD)]);
        let own = descriptors(&[("other", &["id"])]);
        let labels = Labels::new(&own, &announced).expect("descriptors");
        let reordered =
            labels.reorder(&list(&[metric("cpu", &CRIO), metric("other", &["x"])])).expect("a list");
        assert_eq!(decoded(&reordered), decoded(&list(&[metric("other", &["x"])])));
    }
}
