//! Records owners and last-known state from replies, before they are sent to the client.
//!
//! The owner of a new ID must be known before the client gets the ID, because its next call may come within a
//! millisecond. An ID in a list belongs to the backend that sent it, unless another one owns it
//! (`learn/conflicts.rs`). A list that cannot be parsed is an
//! error of that backend and never reaches a merged reply.

use bytes::Bytes;

use crate::backend::Backend;
use crate::cri::{ITEM_ID, LIST_ITEMS, field};
use crate::error::Error;
use crate::merge::required;
use crate::method::List;
use crate::proxy::Node;
use crate::router::SandboxRecord;
use crate::state::{ListKind, Revision, SANDBOX_READY, SandboxRef};
use crate::utf8;
use crate::wire::{self, WireError};

mod conflicts;
mod created;
mod event;
mod handed;

/// Learns from the replies of one backend.
#[derive(Debug, Clone, Copy)]
pub(super) struct Learner<'a> {
    node: &'a Node,
    backend: &'a Backend,
}

/// A list as a backend sent it.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReceivedList<'a> {
    pub(super) list: List,
    /// The revision before it was requested.
    pub(super) revision: Revision,
    /// Whether it is of everything: only such a list replaces the last-known one.
    pub(super) unfiltered: bool,
    pub(super) encoded: &'a Bytes,
}

/// Where a backend showed an ID. Before anything else, the place decides whether another owner stays; see
/// [`Learner::settle_owner`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SeenIn {
    /// The reply that created it, an event, or a change that the process before has handed over.
    Reply,
    /// A list.
    List,
    /// One frame of a streamed list.
    Frame,
    /// The last-known state.
    LastKnown,
    /// What the backend lists while another one owns it, looked at again.
    Foreign,
}

impl<'a> Learner<'a> {
    pub(super) fn new(node: &'a Node, backend: &'a Backend) -> Self {
        Self { node, backend }
    }

    /// Takes a list, and returns it without items that clients cannot read.
    ///
    /// | step | of |
    /// |---|---|
    /// | items that no client can read are removed, texts are repaired to UTF-8 | bytes that are new |
    /// | the owners of new IDs are learnt | the same, or owners that were forgotten since |
    /// | it replaces the last-known list, or only updates items | an unfiltered list; a filtered one |
    /// | it is cached as a reply | lists that are not kept item by item |
    pub(super) fn accept_list(self, received: ReceivedList<'_>) -> Result<Bytes, Error> {
        let ReceivedList { list, revision, unfiltered, encoded } = received;
        let state = &self.backend.state;
        let kind = ListKind::of(list);
        // kubelet lists every second and mostly nothing has changed.
        let unchanged = kind.filter(|_| unfiltered).and_then(|kind| state.newest_equal(kind, encoded));
        let version = self.node.router.owners.version();
        let was_outside_lists = self.node.is_outside_lists(self.backend);
        let is_learnt = kind.is_some_and(|kind| state.is_learnt_at(kind, version));
        let encoded = match unchanged {
            Some(unchanged) if is_learnt => unchanged,
            Some(unchanged) => {
                // The list is unchanged, but owners learnt from it were forgotten since.
                self.learn_owners(list, &unchanged, SeenIn::List).map_err(|error| self.unreadable(error))?;
                unchanged
            }
            None => self.check_and_learn(list, encoded, SeenIn::List)?,
        };
        if list == List::Images && unfiltered {
            self.node.image_lists.record(self.backend.id);
        }
        match kind {
            Some(kind) if unfiltered => {
                // While the backend is outside lists, the next list is learnt from even if it is equal: the
                // first one inside lists decides who owns what it shares with others.
                state.set_learnt_at(kind, (!was_outside_lists).then_some(version));
                state.replace_list(kind, revision, encoded.clone());
                if state.maybe_moved_from().is_some() && state.has_lists() {
                    self.node.notify_moved_listed();
                }
            }
            Some(kind) => {
                state.update_items(kind, revision, &encoded).map_err(|error| self.unreadable(error))?;
            }
            // Values of metrics are of the moment, and many; those of a backend that does not answer are
            // left out.
            None if list == List::SandboxMetrics => {}
            None => {
                state.remember_reply(list.unary().rpc, &encoded);
                self.backend.health.record_answer(list.unary());
            }
        }
        Ok(encoded)
    }

    /// Learns the owners of the items in one message of a streamed list. Returns it without items that
    /// clients cannot read.
    pub(super) fn record_frame(self, list: List, frame: &Bytes) -> Result<Bytes, Error> {
        self.check_and_learn(list, frame, SeenIn::Frame)
    }

    fn check_and_learn(self, list: List, encoded: &Bytes, seen_in: SeenIn) -> Result<Bytes, Error> {
        let learn = || {
            let encoded = self.remove_invalid(list, encoded)?;
            self.learn_owners(list, &encoded, seen_in)?;
            Ok(encoded)
        };
        learn().map_err(|error| self.unreadable(error))
    }

    /// Returns a list without items that would crash a client, and with text that protobuf parsers take. Each
    /// such item is counted and, once a minute, named in the log.
    fn remove_invalid(self, list: List, encoded: &Bytes) -> Result<Bytes, WireError> {
        let method = list.unary().name;
        let (whole, left_out) = required::remove_incomplete(required::CheckedReply::List(list), encoded)?;
        self.node.left_out.record_items(&self.backend.name, method, left_out);
        let (text, repaired) = utf8::repair(&format!("{method}Response"), &whole)?;
        self.node.left_out.record_texts(&self.backend.name, method, repaired);
        Ok(text)
    }

    /// Validates a list and learns IDs not seen before, in one pass.
    fn learn_owners(self, list: List, encoded: &[u8], seen_in: SeenIn) -> Result<(), WireError> {
        let owners = &self.node.router.owners;
        // A backend that may be another instance that moved owns nothing until that is decided.
        let may_be_moved = self.backend.state.maybe_moved_from().is_some();
        for item in wire::items(encoded, LIST_ITEMS) {
            let item = item?;
            if !matches!(list, List::Sandboxes | List::Containers) {
                wire::fields(item).try_for_each(|field| field.map(drop))?;
                continue;
            }
            let (id, state) = id_and_sandbox_state(item)?;
            if may_be_moved {
                continue;
            }
            if owners.is_owned_by(id, self.backend.id) {
                if list == List::Sandboxes {
                    owners.record_ready(id, state == u64::from(SANDBOX_READY.cast_unsigned()));
                }
                continue;
            }
            self.learn_new_id(list, id, item, seen_in)?;
        }
        Ok(())
    }

    /// Learns the owner of a listed sandbox or container that is not known as this backend's.
    fn learn_new_id(self, list: List, id: &str, item: &[u8], seen_in: SeenIn) -> Result<(), WireError> {
        if list == List::Containers {
            let sandbox = wire::peek_str(item, &[field!(Container.pod_sandbox_id)])?;
            self.learn_container(id, sandbox, seen_in);
            return Ok(());
        }
        let claim = self.node.router.owners.learn_sandbox(id, self.backend.id, listed_record(item)?);
        self.settle_owner(id, claim, seen_in);
        Ok(())
    }

    fn learn_container(self, id: &str, sandbox: &str, seen_in: SeenIn) {
        let owners = &self.node.router.owners;
        // A pod is never in two places: such a container is its sandbox's owner's.
        if owners.owner_of(sandbox).is_some_and(|owner| owner != self.backend.id) {
            return self.record_foreign(id);
        }
        self.settle_owner(id, owners.learn_container(id, self.backend.id), seen_in);
    }

    fn unreadable(self, error: WireError) -> Error {
        self.backend.invalid_reply_error(error)
    }
}

/// Returns the ID of a `PodSandbox` or `Container` and, of the former, its state; checks that all fields are
/// readable.
fn id_and_sandbox_state(item: &[u8]) -> Result<(&str, u64), WireError> {
    let (mut id, mut state) = ("", 0);
    for field in wire::fields(item) {
        let field = field?;
        match field.number {
            ITEM_ID => id = field.string()?,
            // Of a container this is the metadata, which is no varint.
            field!(PodSandbox.state) => state = field.varint().unwrap_or_default(),
            _ => {}
        }
    }
    Ok((id, state))
}

/// Returns what the owners' map keeps of a sandbox in a list, or in the saved state.
pub(super) fn sandbox_record(facts: &SandboxRef<'_>) -> SandboxRecord {
    let ready = facts.state == SANDBOX_READY;
    let record = SandboxRecord::new(facts.uid, facts.runtime_handler, facts.annotations());
    SandboxRecord { created_at: facts.created_at, ready, ..record }
}

fn listed_record(item: &[u8]) -> Result<SandboxRecord, WireError> {
    Ok(sandbox_record(&SandboxRef::parse(item)?))
}
