//! The changes that stay applied on top of a list because it may not show them.
//!
//! A change has a sequence number. A list requested after it was recorded shows it, so the change is dropped;
//! a list requested before may not show it, so the change stays. Changes are also the records of the journal,
//! which is why they are protobuf messages: a replay applies the same changes. This file must not know where
//! lists or journals are kept.

use std::collections::{HashMap, HashSet};

use bytes::{Bytes, BytesMut};

use super::instance::SavedInstance;
use super::items::{
    CONTAINER_CREATED, CONTAINER_EXITED, CONTAINER_RUNNING, CONTAINER_UNKNOWN, ContainerRef,
    SANDBOX_NOTREADY, SANDBOX_READY, enum_value,
};
use crate::cri::{ITEM_ID, LIST_ITEMS, field};
use crate::wire;

/// One change and its sequence number.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Change {
    /// Sequence number; unique to a call over all backends.
    #[prost(uint64, tag = "1")]
    pub(super) seq: u64,
    /// What changed; `None` only if a later version wrote it.
    #[prost(oneof = "Op", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19")]
    pub(super) op: Option<Op>,
}

/// An item as it is to be listed.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Item {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    /// The encoded `PodSandbox` or `Container`.
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) item: Bytes,
}

/// What changed.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Op {
    /// Created through crimux; if the list has the item, the list's counts.
    #[prost(message, tag = "2")]
    SandboxAdded(Item),
    /// As above.
    #[prost(message, tag = "3")]
    ContainerAdded(Item),
    /// Shown by a filtered reply; replaces the list's item.
    #[prost(message, tag = "4")]
    SandboxSeen(Item),
    /// As above.
    #[prost(message, tag = "5")]
    ContainerSeen(Item),
    #[prost(string, tag = "6")]
    ContainerStarted(String),
    /// A container that was never started stays as it is.
    #[prost(string, tag = "7")]
    ContainerStopped(String),
    /// Its containers are stopped too.
    #[prost(string, tag = "8")]
    SandboxStopped(String),
    /// Its containers are removed too.
    #[prost(string, tag = "9")]
    SandboxRemoved(String),
    #[prost(string, tag = "10")]
    ContainerRemoved(String),
    /// The image that this reference names.
    #[prost(string, tag = "11")]
    ImageRemoved(String),
    #[prost(bool, tag = "12")]
    Draining(bool),
    #[prost(bool, tag = "13")]
    ImagesForgotten(bool),
    /// The node was rebooted; holds the new boot ID.
    #[prost(string, tag = "14")]
    Rebooted(String),
    /// The instance was declared empty: the operator gave it up, or it was found at another endpoint.
    #[prost(bool, tag = "15")]
    DeclaredEmpty(bool),
    /// Who the backend is changed: its label, its endpoint, or where it stands in its life.
    #[prost(message, boxed, tag = "16")]
    Instance(Box<SavedInstance>),
    /// The instance has ended: it was removed, and owns nothing.
    #[prost(bool, tag = "17")]
    Ended(bool),
    /// The instance lists this ID, and another one owns it.
    #[prost(string, tag = "18")]
    Foreign(String),
    /// The instance owns this ID again, or no longer lists it.
    #[prost(string, tag = "19")]
    ForeignCleared(String),
}

impl Op {
    /// Returns the sandbox or container this is about.
    pub(super) fn id(&self) -> Option<&str> {
        match self {
            Self::SandboxAdded(item)
            | Self::ContainerAdded(item)
            | Self::SandboxSeen(item)
            | Self::ContainerSeen(item) => Some(&item.id),
            Self::ContainerStarted(id)
            | Self::ContainerStopped(id)
            | Self::SandboxStopped(id)
            | Self::SandboxRemoved(id)
            | Self::ContainerRemoved(id) => Some(id),
            _ => None,
        }
    }

    /// Tells whether this is about a sandbox and, with it, its containers.
    pub(super) fn is_of_sandbox(&self) -> bool {
        matches!(
            self,
            Self::SandboxAdded(_) | Self::SandboxSeen(_) | Self::SandboxStopped(_) | Self::SandboxRemoved(_)
        )
    }

    fn is_removal(&self) -> bool {
        matches!(self, Self::SandboxRemoved(_) | Self::ContainerRemoved(_))
    }

    /// Tells whether this was shown by a filtered reply.
    pub(super) fn is_seen(&self) -> bool {
        matches!(self, Self::SandboxSeen(_) | Self::ContainerSeen(_))
    }
}

/// Inserts `change` in order, and drops the changes that it supersedes.
pub(super) fn insert(changes: &mut Vec<Change>, change: Change) {
    let Some(op) = &change.op else { return };
    if op.is_removal() {
        changes.retain(|earlier| earlier.seq > change.seq || earlier.op.as_ref().and_then(Op::id) != op.id());
    } else if op.is_seen() {
        changes.retain(|earlier| {
            let same = |earlier: &Op| earlier.is_seen() && earlier.id() == op.id();
            earlier.seq > change.seq || !earlier.op.as_ref().is_some_and(same)
        });
    }
    let at = changes.partition_point(|earlier| earlier.seq <= change.seq);
    changes.insert(at, change);
}

/// The effect of all changes on one item.
#[derive(Clone, Copy)]
struct Patch<'a> {
    presence: Presence<'a>,
    steps: Steps,
}

/// The state changes of an item since it was listed.
#[derive(Clone, Copy, Default)]
struct Steps {
    started: bool,
    /// Last of all.
    stopped: bool,
}

#[derive(Clone, Copy)]
enum Presence<'a> {
    /// As the list has it, or not at all.
    Listed,
    /// As the list has it, else this.
    Added(&'a [u8]),
    /// This, whatever the list has.
    Seen(&'a [u8]),
    /// Not at all.
    Removed,
}

/// All changes, folded into one patch for each item.
#[derive(Default)]
pub(super) struct Overlay<'a> {
    sandboxes: Patches<'a>,
    containers: Patches<'a>,
    stopped: HashSet<&'a str>,
    removed: HashSet<&'a str>,
}

/// The patches of one list, and the order in which their items appeared.
#[derive(Default)]
struct Patches<'a> {
    by_id: HashMap<&'a str, Patch<'a>>,
    order: Vec<&'a str>,
}

impl<'a> Patches<'a> {
    fn set(&mut self, id: &'a str, presence: Presence<'a>) {
        if self.by_id.insert(id, Patch { presence, steps: Steps::default() }).is_none() {
            self.order.push(id);
        }
    }

    fn steps(&mut self, id: &'a str) -> &mut Steps {
        let untouched = Patch { presence: Presence::Listed, steps: Steps::default() };
        &mut self.by_id.entry(id).or_insert(untouched).steps
    }
}

impl<'a> Overlay<'a> {
    /// Folds `changes`, oldest first.
    pub(super) fn new(changes: &'a [Change]) -> Self {
        let mut overlay = Self::default();
        for op in changes.iter().filter_map(|change| change.op.as_ref()) {
            overlay.fold(op);
        }
        overlay
    }

    fn fold(&mut self, op: &'a Op) {
        match op {
            Op::SandboxAdded(item) => self.sandbox(&item.id, Presence::Added(&item.item)),
            Op::SandboxSeen(item) => self.sandbox(&item.id, Presence::Seen(&item.item)),
            Op::ContainerAdded(item) => self.containers.set(&item.id, Presence::Added(&item.item)),
            Op::ContainerSeen(item) => self.containers.set(&item.id, Presence::Seen(&item.item)),
            Op::ContainerStarted(id) => *self.containers.steps(id) = Steps { started: true, stopped: false },
            Op::ContainerStopped(id) => self.containers.steps(id).stopped = true,
            Op::ContainerRemoved(id) => self.containers.set(id, Presence::Removed),
            Op::SandboxStopped(id) => {
                self.sandboxes.steps(id).stopped = true;
                self.stopped.insert(id);
            }
            Op::SandboxRemoved(id) => {
                self.sandboxes.set(id, Presence::Removed);
                self.removed.insert(id);
            }
            _ => {}
        }
    }

    fn sandbox(&mut self, id: &'a str, presence: Presence<'a>) {
        self.removed.remove(id);
        self.sandboxes.set(id, presence);
    }

    fn is_empty(&self) -> bool {
        let Self { sandboxes, containers, stopped, removed } = self;
        let no_patches = sandboxes.by_id.is_empty() && containers.by_id.is_empty();
        no_patches && stopped.is_empty() && removed.is_empty()
    }

    /// Returns the sandbox list: that of `base` with the changes applied; without changes, `base` itself.
    pub(super) fn sandboxes(&self, base: &Bytes) -> Bytes {
        if self.is_empty() {
            return base.clone();
        }
        let mut out = Composer::new(base, field!(PodSandbox.state), sandbox_state);
        for (id, item) in items_by_id(base) {
            let patch = self.sandboxes.by_id.get(id).copied();
            out.emit(id, item, patch, false);
        }
        for (id, item) in self.sandboxes.added_items() {
            out.emit_if_new(id, item, self.sandboxes.by_id.get(id).copied(), false);
        }
        out.finish()
    }

    /// Returns the container list: that of `base` with the changes applied. A container that `base` does not
    /// have is only added if `has_sandbox` says so of its sandbox. Without changes it is `base` itself.
    pub(super) fn containers(&self, base: &Bytes, has_sandbox: impl Fn(&str) -> bool) -> Bytes {
        if self.is_empty() {
            return base.clone();
        }
        let mut out = Composer::new(base, field!(Container.state), container_state);
        for (id, item) in items_by_id(base) {
            let sandbox = wire::peek_str(item, &[field!(Container.pod_sandbox_id)]).unwrap_or_default();
            if !self.removed.contains(sandbox) {
                out.emit(id, item, self.containers.by_id.get(id).copied(), self.stopped.contains(sandbox));
            }
        }
        for (id, item) in self.containers.added_items() {
            let sandbox = ContainerRef::parse(item).map(|facts| facts.sandbox_id).unwrap_or_default();
            if !self.removed.contains(sandbox) && has_sandbox(sandbox) {
                let patch = self.containers.by_id.get(id).copied();
                out.emit_if_new(id, item, patch, self.stopped.contains(sandbox));
            }
        }
        out.finish()
    }

    /// Tells whether composing the container list asks for the sandbox list.
    pub(super) fn adds_containers(&self) -> bool {
        self.containers.added_items().next().is_some()
    }
}

impl<'a> Patches<'a> {
    fn added_items(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        self.order.iter().filter_map(|id| match self.by_id.get(id)?.presence {
            Presence::Added(item) | Presence::Seen(item) => Some((*id, item)),
            Presence::Listed | Presence::Removed => None,
        })
    }
}

/// Writes a list, each ID once.
struct Composer<'a> {
    out: BytesMut,
    emitted: HashSet<&'a str>,
    state_field: u32,
    /// The state after these steps of what is listed in that one.
    advance: fn(i32, Steps) -> i32,
}

impl<'a> Composer<'a> {
    fn new(base: &[u8], state_field: u32, advance: fn(i32, Steps) -> i32) -> Self {
        let out = BytesMut::with_capacity(base.len() + 1024);
        Self { out, emitted: HashSet::new(), state_field, advance }
    }

    /// Writes one item; `stopped` says that its sandbox was.
    fn emit(&mut self, id: &'a str, item: &'a [u8], patch: Option<Patch<'a>>, stopped: bool) {
        self.emitted.insert(id);
        let item = match patch.map(|patch| patch.presence) {
            Some(Presence::Removed) => return,
            Some(Presence::Seen(seen)) => seen,
            _ => item,
        };
        let mut steps = patch.map(|patch| patch.steps).unwrap_or_default();
        steps.stopped |= stopped;
        let listed = enum_value(wire::peek_varint(item, &[self.state_field]).unwrap_or_default());
        let state = (self.advance)(listed, steps);
        if state == listed {
            wire::put_bytes(&mut self.out, LIST_ITEMS, item);
        } else {
            // A state and its field number take one byte each.
            wire::put_header(&mut self.out, LIST_ITEMS, item.len() + 2);
            self.out.extend_from_slice(item);
            wire::put_varint(&mut self.out, self.state_field, u64::from(state.cast_unsigned()));
        }
    }

    fn emit_if_new(&mut self, id: &'a str, item: &'a [u8], patch: Option<Patch<'a>>, stopped: bool) {
        if !self.emitted.contains(id) {
            self.emit(id, item, patch, stopped);
        }
    }

    fn finish(self) -> Bytes {
        Bytes::copy_from_slice(&self.out)
    }
}

// States only move forward, so a change that is still applied to a list which knows better does not turn it
// back.

fn sandbox_state(listed: i32, steps: Steps) -> i32 {
    if steps.stopped && listed == SANDBOX_READY { SANDBOX_NOTREADY } else { listed }
}

/// A container that was never started is left as it is by a stop, of its sandbox too (containerd,
/// `container_stop.go`, `stopContainer`).
fn container_state(listed: i32, steps: Steps) -> i32 {
    let state = match listed {
        CONTAINER_CREATED | CONTAINER_UNKNOWN if steps.started => CONTAINER_RUNNING,
        listed => listed,
    };
    match state {
        CONTAINER_RUNNING | CONTAINER_UNKNOWN if steps.stopped => CONTAINER_EXITED,
        state => state,
    }
}

/// Iterates over the items of a list with their IDs, up to the first that cannot be read.
fn items_by_id(base: &[u8]) -> impl Iterator<Item = (&str, &[u8])> {
    wire::items(base, LIST_ITEMS).map_while(|item| {
        let item = item.ok()?;
        Some((wire::peek_str(item, &[ITEM_ID]).ok()?, item))
    })
}
