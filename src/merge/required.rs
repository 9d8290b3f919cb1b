//! The fields that clients dereference without a check, and the messages left out because they lack one.
//!
//! kubelet dereferences some fields of list items and statuses although protobuf makes them optional: one
//! item without such a field crashes the process, and no pod on the node can start. Without crimux only the
//! faulty runtime would cause that; behind crimux one backend would take the others down. So the smallest
//! message that would crash a client is left out, and counted. The table below is complete; everything else
//! passes unchanged. Source: kubelet, cri-client and component-base 1.37.2 and crictl 1.37.0 (which uses
//! getters only); cAdvisor does not use the CRI for these.

use bytes::{Bytes, BytesMut};

use crate::cri::{LIST_ITEMS, field, field_path};
use crate::method::List;
use crate::wire::{self, WireError};

/// The replies that are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckedReply {
    /// A list, in one piece or a frame of it.
    List(List),
    /// One `ContainerEventResponse`.
    Event,
    /// `PodSandboxStatusResponse`.
    SandboxStatus,
}

/// What a client needs of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Set, even if empty.
    Present,
    /// UTF-8, and not empty.
    Text,
}

/// What is done to a message that lacks the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// The message at [`RequiredField::message`] is left out.
    LeaveOut,
    /// The reply's `timestamp` is set to 0: kubelet then calls `ContainerStatus` for each container, and
    /// its client checks that reply.
    ClearTimestamp,
}

/// One field that a client reads without a check.
#[derive(Debug, Clone, Copy)]
pub struct RequiredField {
    /// The reply.
    pub reply: CheckedReply,
    /// The path of field numbers to the message.
    pub message: &'static [u32],
    /// The path from there to the field.
    pub field: &'static [u32],
    /// What the client needs of it.
    pub need: Need,
    /// What is done to a message without it.
    pub remedy: Remedy,
    /// The source that reads it.
    pub reader: &'static str,
}

/// A field of a list's items; an item without it is left out.
const fn item_field(list: List, field: &'static [u32], need: Need, reader: &'static str) -> RequiredField {
    RequiredField {
        reply: CheckedReply::List(list),
        message: &[LIST_ITEMS],
        field,
        need,
        remedy: Remedy::LeaveOut,
        reader,
    }
}

use CheckedReply::{Event, SandboxStatus};
use List::{
    ContainerStats, Containers, Filesystems, Images, MetricDescriptors, SandboxMetrics, SandboxStats,
    Sandboxes,
};
use Need::{Present, Text};

/// The table. IDs are in it because no call can name an object without one, and because kubelet's PLEG keys
/// its records by ID.
pub const REQUIRED_FIELDS: [RequiredField; 19] = [
    item_field(Sandboxes, &field_path!(PodSandbox.id), Text, "kuberuntime/helpers.go"),
    item_field(
        Sandboxes,
        &field_path!(PodSandbox.metadata),
        Present,
        "cm/helpers.go, kuberuntime_gc.go, stats buildPodStats",
    ),
    item_field(Containers, &field_path!(Container.id), Text, "kuberuntime/helpers.go"),
    item_field(
        Containers,
        &field_path!(Container.metadata),
        Present,
        "cm/helpers.go, kuberuntime_gc.go evictableContainers",
    ),
    item_field(
        ContainerStats,
        &field_path!(ContainerStats.attributes.id),
        Text,
        "stats/cri_stats_provider.go, Attributes.Id",
    ),
    item_field(
        ContainerStats,
        &field_path!(ContainerStats.attributes.metadata),
        Present,
        "stats makeContainerStats, Attributes.Metadata.Name",
    ),
    item_field(
        SandboxStats,
        &field_path!(PodSandboxStats.attributes.id),
        Text,
        "stats ListPodCPUAndMemoryStats, Attributes.Id",
    ),
    item_field(
        SandboxStats,
        &field_path!(PodSandboxStats.linux),
        Present,
        "stats addCRIPodContainerStats, Linux.Containers",
    ),
    RequiredField {
        reply: CheckedReply::List(SandboxStats),
        message: &field_path!(ListPodSandboxStatsResponse.stats.linux.network),
        field: &field_path!(NetworkUsage.default_interface),
        need: Present,
        remedy: Remedy::LeaveOut,
        reader: "stats criInterfaceToSummary, DefaultInterface.Name",
    },
    RequiredField {
        reply: CheckedReply::List(SandboxStats),
        message: &field_path!(ListPodSandboxStatsResponse.stats.linux.containers),
        field: &field_path!(ContainerStats.attributes.id),
        need: Text,
        remedy: Remedy::LeaveOut,
        reader: "stats addCRIPodContainerStats, Attributes.Id",
    },
    RequiredField {
        reply: CheckedReply::List(SandboxStats),
        message: &field_path!(ListPodSandboxStatsResponse.stats.linux.containers),
        field: &field_path!(ContainerStats.attributes.metadata),
        need: Present,
        remedy: Remedy::LeaveOut,
        reader: "stats makeContainerStats, Attributes.Metadata.Name",
    },
    item_field(Images, &field_path!(Image.id), Text, "images/image_gc_manager.go keys by it"),
    item_field(
        Filesystems,
        &field_path!(FilesystemUsage.used_bytes),
        Present,
        "stats ImageFsStats, UsedBytes.Value",
    ),
    item_field(
        MetricDescriptors,
        &field_path!(MetricDescriptor.name),
        Text,
        "component-base/metrics, BaseStableCollector.add panics",
    ),
    RequiredField {
        reply: CheckedReply::List(SandboxMetrics),
        message: &field_path!(ListPodSandboxMetricsResponse.pod_metrics.metrics),
        field: &field_path!(Metric.value),
        need: Present,
        remedy: Remedy::LeaveOut,
        reader: "collectors/cri_metrics.go, GetValue().Value",
    },
    RequiredField {
        reply: CheckedReply::List(SandboxMetrics),
        message: &field_path!(ListPodSandboxMetricsResponse.pod_metrics.container_metrics.metrics),
        field: &field_path!(Metric.value),
        need: Present,
        remedy: Remedy::LeaveOut,
        reader: "collectors/cri_metrics.go, GetValue().Value",
    },
    RequiredField {
        reply: Event,
        message: &field_path!(ContainerEventResponse.pod_sandbox_status),
        field: &field_path!(PodSandboxStatus.metadata),
        need: Present,
        remedy: Remedy::LeaveOut,
        reader: "pleg/evented.go up to 1.36, PodSandboxStatus.Metadata.Uid",
    },
    RequiredField {
        reply: Event,
        message: &field_path!(ContainerEventResponse.containers_statuses),
        field: &field_path!(ContainerStatus.image),
        need: Present,
        remedy: Remedy::LeaveOut,
        reader: "kuberuntime GeneratePodStatus, status.Image.Image",
    },
    RequiredField {
        reply: SandboxStatus,
        message: &field_path!(PodSandboxStatusResponse.containers_statuses),
        field: &field_path!(ContainerStatus.image),
        need: Present,
        remedy: Remedy::ClearTimestamp,
        reader: "kuberuntime GetPodStatus with EventedPLEG, status.Image.Image",
    },
];

/// Returns `encoded` without the messages that would crash a client, and how many there were. If there were
/// none, the bytes are shared, not copied.
///
/// # Errors
/// Returns an error if it cannot be parsed; the fields of an item of a list that follow the required ones are
/// not read.
pub fn remove_incomplete(reply: CheckedReply, encoded: &Bytes) -> Result<(Bytes, usize), WireError> {
    let rules = REQUIRED_FIELDS.each_ref().map(|rule| (rule.reply == reply).then_some(rule));
    let rules: Vec<&RequiredField> = rules.into_iter().flatten().collect();
    let broken = count_broken(&rules, 0, encoded)?;
    if broken == 0 {
        return Ok((encoded.clone(), 0));
    }
    if rules.iter().any(|rule| rule.remedy == Remedy::ClearTimestamp) {
        let mut cleared = BytesMut::from(&encoded[..]);
        // The last occurrence of a scalar wins.
        wire::put_varint(&mut cleared, field!(PodSandboxStatusResponse.timestamp), 0);
        return Ok((cleared.freeze(), broken));
    }
    Ok((prune(&rules, 0, encoded)?.freeze(), broken))
}

/// Counts the smallest messages that break a rule.
fn count_broken(rules: &[&RequiredField], depth: usize, message: &[u8]) -> Result<usize, WireError> {
    if breaks(rules, depth, message)? {
        return Ok(1);
    }
    // The fields of a list's items are read next, where owners are learnt (`proxy/learn.rs`); those of fields
    // inside them are not.
    if depth == 1 && rules.iter().all(|rule| rule.message == [LIST_ITEMS]) {
        return Ok(0);
    }
    let mut broken = 0;
    // The items of a list are all in one field.
    let (mut number, mut inner) = (0, Vec::new());
    for field in wire::fields(message) {
        let field = field?;
        if field.number != number {
            (number, inner) = (field.number, below(rules, depth, field.number));
        }
        if !inner.is_empty() {
            broken += count_broken(&inner, depth + 1, field.bytes()?)?;
        }
    }
    Ok(broken)
}

/// Copies a message without the messages inside it that break a rule.
fn prune(rules: &[&RequiredField], depth: usize, message: &[u8]) -> Result<BytesMut, WireError> {
    let mut out = BytesMut::with_capacity(message.len());
    for field in wire::fields(message) {
        let field = field?;
        let inner = below(rules, depth, field.number);
        if inner.is_empty() {
            out.extend_from_slice(field.raw);
        } else if !breaks(&inner, depth + 1, field.bytes()?)? {
            wire::put_bytes(&mut out, field.number, &prune(&inner, depth + 1, field.bytes()?)?);
        }
    }
    Ok(out)
}

/// Returns the rules about messages in this field.
fn below<'a>(rules: &[&'a RequiredField], depth: usize, number: u32) -> Vec<&'a RequiredField> {
    rules.iter().filter(|rule| rule.message.get(depth) == Some(&number)).copied().collect()
}

/// Tells whether a message breaks a rule about messages at its own depth.
fn breaks(rules: &[&RequiredField], depth: usize, message: &[u8]) -> Result<bool, WireError> {
    for rule in rules.iter().filter(|rule| rule.message.len() == depth) {
        if !meets(message, rule.field, rule.need)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Tells whether a message has the field at `path`. It stops at the first occurrence that satisfies `need`.
fn meets(message: &[u8], path: &[u32], need: Need) -> Result<bool, WireError> {
    let Some((&number, inner)) = path.split_first() else { return Ok(true) };
    for field in wire::fields(message) {
        let field = field?;
        if field.number != number {
            continue;
        }
        let bytes = field.bytes()?;
        let met = match (inner, need) {
            ([], Need::Present) => true,
            ([], Need::Text) => !bytes.is_empty() && std::str::from_utf8(bytes).is_ok(),
            _ => meets(bytes, inner, need)?,
        };
        if met {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests;
