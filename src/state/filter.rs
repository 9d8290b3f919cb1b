//! Applies the filter of a list request to last-known items, as the runtime would to live ones.
//!
//! When a backend cannot be called, its last-known items are the reply, so the filter that it would have
//! applied is applied here. It follows containerd (`internal/cri/server/*_list.go`): a state that is present
//! but empty is the zero state, and a label selector asks for the key to exist. IDs match by prefix. Unknown
//! fields of a filter are not applied, and a reply to such a filter never counts as unfiltered.

use std::collections::{BTreeMap, HashSet};

use super::items::enum_value;
use super::{ListKind, image_name};
use crate::cri::{ITEM_ID, LIST_FILTER, field, field_path};
use crate::wire::{self, Field, WireError};

/// The parsed filter of a list request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// ID or prefix of an ID; empty for all.
    id: String,
    /// State as a number; `None` for all.
    state: Option<i32>,
    /// ID of the sandbox or prefix of an ID; empty for all.
    sandbox: String,
    /// Labels an item must carry.
    labels: BTreeMap<String, String>,
    /// Image reference; empty for all.
    image: String,
    /// Whether the request has unknown fields.
    unknown: bool,
}

/// Field numbers of the filter message of a kind.
struct FilterFields {
    id: u32,
    state: u32,
    sandbox: u32,
    labels: u32,
    image: u32,
}

/// Field numbers in the items of a kind; zero, which is not a field number, for a field that the kind does
/// not have.
struct ItemFields {
    /// The message that holds the ID and labels; zero if it is the item itself.
    holder: u32,
    state: u32,
    sandbox: u32,
    labels: u32,
}

impl Filter {
    /// Reads the filter of an encoded list request of `kind`.
    ///
    /// # Errors
    /// Returns an error if the request cannot be parsed.
    pub fn parse(kind: ListKind, request: &[u8]) -> Result<Self, WireError> {
        let mut filter = Self::default();
        for field in wire::fields(request) {
            let field = field?;
            if field.number == LIST_FILTER {
                filter.read(&filter_fields(kind), field.bytes()?)?;
            } else {
                filter.unknown = true;
            }
        }
        Ok(filter)
    }

    /// Tells whether a list with this filter is the full list. A `state` that is set, even if empty, filters:
    /// it means READY or CREATED.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the ID, or prefix of an ID, that the filter selects.
    pub fn id(&self) -> Option<&str> {
        Some(self.id.as_str()).filter(|id| !id.is_empty())
    }

    /// Returns the value that items must have for the label `key`.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }

    /// Returns the sandbox ID, or prefix of one, whose items the filter selects.
    pub fn sandbox(&self) -> Option<&str> {
        Some(self.sandbox.as_str()).filter(|id| !id.is_empty())
    }

    /// Tells whether `item` matches the filter. `of_sandbox` has the container IDs of the selected sandbox,
    /// for the kind whose items do not name their sandbox.
    pub(super) fn matches(&self, kind: ListKind, item: &[u8], of_sandbox: &HashSet<String>) -> bool {
        self.try_matches(kind, item, of_sandbox).unwrap_or(false)
    }

    fn try_matches(
        &self,
        kind: ListKind,
        item: &[u8],
        of_sandbox: &HashSet<String>,
    ) -> Result<bool, WireError> {
        let at = item_fields(kind);
        let id = item_id(kind, item)?;
        if !id.starts_with(&self.id) || (!self.image.is_empty() && !image_name::is_named(item, &self.image)) {
            return Ok(false);
        }
        if let Some(state) = self.state
            && enum_value(wire::peek_varint(item, &[at.state])?) != state
        {
            return Ok(false);
        }
        if let Some(sandbox) = self.sandbox() {
            let belongs = match at.sandbox {
                0 => of_sandbox.contains(id),
                number => wire::peek_str(item, &[number])?.starts_with(sandbox),
            };
            if !belongs {
                return Ok(false);
            }
        }
        self.labels_match(&at, item)
    }

    fn labels_match(&self, at: &ItemFields, item: &[u8]) -> Result<bool, WireError> {
        for (key, wanted) in &self.labels {
            let mut found = None;
            each_label(at, item, &mut |entry_key, value| {
                if entry_key == key {
                    found = Some(value == wanted);
                }
            })?;
            if found != Some(true) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn read(&mut self, numbers: &FilterFields, message: &[u8]) -> Result<(), WireError> {
        for field in wire::fields(message) {
            let field = field?;
            match field.number {
                number if number == numbers.id => field.string()?.clone_into(&mut self.id),
                number if number == numbers.state => self.read_state(&field)?,
                number if number == numbers.sandbox => field.string()?.clone_into(&mut self.sandbox),
                number if number == numbers.labels => {
                    let (key, value) = wire::map_entry(field.bytes()?)?;
                    self.labels.insert(key.to_owned(), value.to_owned());
                }
                number if number == numbers.image => self.read_image(&field)?,
                _ => self.unknown = true,
            }
        }
        Ok(())
    }

    fn read_state(&mut self, field: &Field<'_>) -> Result<(), WireError> {
        /// `PodSandboxStateValue` and `ContainerStateValue` have their state under one number.
        const STATE: [u32; 1] = field_path!(PodSandboxStateValue.state);
        const _: () = assert!(STATE[0] == field!(ContainerStateValue.state), "one number for both");
        let value = field.bytes()?;
        if self.state.is_none() || wire::has_path(value, &STATE)? {
            self.state = Some(enum_value(wire::peek_varint(value, &STATE)?));
        }
        Ok(())
    }

    fn read_image(&mut self, field: &Field<'_>) -> Result<(), WireError> {
        for field in wire::fields(field.bytes()?) {
            let field = field?;
            match field.number {
                field!(ImageSpec.image) => field.string()?.clone_into(&mut self.image),
                _ => self.unknown = true,
            }
        }
        Ok(())
    }
}

/// Returns the ID of an item of `kind`.
///
/// # Errors
/// Returns an error if the item cannot be parsed.
pub fn item_id(kind: ListKind, item: &[u8]) -> Result<&str, WireError> {
    match item_fields(kind).holder {
        0 => wire::peek_str(item, &[ITEM_ID]),
        holder => wire::peek_str(item, &[holder, field!(ContainerAttributes.id)]),
    }
}

fn each_label<'a>(
    at: &ItemFields,
    item: &'a [u8],
    visit: &mut impl FnMut(&'a str, &'a str),
) -> Result<(), WireError> {
    let mut entries = |holder: &'a [u8]| {
        for entry in wire::items(holder, at.labels) {
            let (key, value) = wire::map_entry(entry?)?;
            visit(key, value);
        }
        Ok(())
    };
    if at.holder == 0 {
        return entries(item);
    }
    for holder in wire::items(item, at.holder) {
        entries(holder?)?;
    }
    Ok(())
}

fn filter_fields(kind: ListKind) -> FilterFields {
    let none = FilterFields { id: 0, state: 0, sandbox: 0, labels: 0, image: 0 };
    match kind {
        ListKind::Sandboxes => FilterFields {
            id: field!(PodSandboxFilter.id),
            state: field!(PodSandboxFilter.state),
            labels: field!(PodSandboxFilter.label_selector),
            ..none
        },
        ListKind::Containers => FilterFields {
            id: field!(ContainerFilter.id),
            state: field!(ContainerFilter.state),
            sandbox: field!(ContainerFilter.pod_sandbox_id),
            labels: field!(ContainerFilter.label_selector),
            ..none
        },
        ListKind::ContainerStats => FilterFields {
            id: field!(ContainerStatsFilter.id),
            sandbox: field!(ContainerStatsFilter.pod_sandbox_id),
            labels: field!(ContainerStatsFilter.label_selector),
            ..none
        },
        ListKind::PodSandboxStats => FilterFields {
            id: field!(PodSandboxStatsFilter.id),
            labels: field!(PodSandboxStatsFilter.label_selector),
            ..none
        },
        ListKind::Images => FilterFields { image: field!(ImageFilter.image), ..none },
    }
}

fn item_fields(kind: ListKind) -> ItemFields {
    let none = ItemFields { holder: 0, state: 0, sandbox: 0, labels: 0 };
    match kind {
        ListKind::Sandboxes => {
            ItemFields { state: field!(PodSandbox.state), labels: field!(PodSandbox.labels), ..none }
        }
        ListKind::Containers => ItemFields {
            state: field!(Container.state),
            sandbox: field!(Container.pod_sandbox_id),
            labels: field!(Container.labels),
            ..none
        },
        ListKind::ContainerStats => ItemFields {
            holder: field!(ContainerStats.attributes),
            labels: field!(ContainerAttributes.labels),
            ..none
        },
        ListKind::PodSandboxStats => ItemFields {
            holder: field!(PodSandboxStats.attributes),
            labels: field!(PodSandboxAttributes.labels),
            ..none
        },
        ListKind::Images => none,
    }
}
