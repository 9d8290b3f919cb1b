//! What is known of owners and cannot be read from the saved state, for the process that takes over.

use std::collections::HashMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Owners, SENT};
use crate::method::Kind;
use crate::router::millis::{millis_since, moment_ago};
use crate::state::InstanceId;

/// A creation that was sent to a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedCreation {
    uid: String,
    backend: u64,
    age: u64,
}

/// An ID that was removed lately.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedRemoval {
    id: String,
    backend: u64,
    is_sandbox: bool,
    age: u64,
}

impl Owners {
    /// Returns the `config.seen` of each sandbox that has one, by its ID.
    pub fn config_seen_by_id(&self) -> HashMap<String, String> {
        let sandboxes = self.sandboxes(|record| !record.config_seen.is_empty());
        let entry = |owned: super::OwnedSandbox| (owned.id.into(), owned.record.config_seen.to_string());
        sandboxes.into_iter().map(entry).collect()
    }

    /// Sets the `config.seen` of sandboxes by ID: a list shows the one that a sandbox was created with.
    pub fn take_over_config_seen(&self, by_id: HashMap<String, String>) {
        for (id, seen) in by_id {
            self.change(&id, |record| record.config_seen = seen.into());
        }
    }

    /// Returns the creations that may be pending.
    pub fn handed_creations(&self) -> Vec<HandedCreation> {
        let mut creations = Vec::new();
        for pod in &self.pods {
            let sent = pod.sent.iter().filter(|(_, at)| at.elapsed() < SENT);
            creations.extend(sent.map(|(backend, at)| HandedCreation {
                uid: pod.key().to_string(),
                backend: backend.0,
                age: millis_since(*at),
            }));
        }
        creations
    }

    /// Adds creations that may be pending.
    pub fn take_over_creations(&self, creations: Vec<HandedCreation>) {
        for HandedCreation { uid, backend, age } in creations {
            self.pods.entry(uid.into()).or_default().sent.push((InstanceId(backend), moment_ago(age)));
        }
    }

    /// Returns the IDs that were removed lately, the oldest first.
    pub fn handed_removals(&self) -> Vec<HandedRemoval> {
        let removed = self.removed_ids();
        let removal = |(since, id): &(Instant, Box<str>)| {
            let (backend, kind) = removed.owners.get(id)?;
            let (is_sandbox, age) = (*kind == Kind::Sandbox, millis_since(*since));
            Some(HandedRemoval { id: id.to_string(), backend: backend.0, is_sandbox, age })
        };
        removed.order.iter().filter_map(removal).collect()
    }

    /// Adds IDs that were removed lately, unless something has such an ID again.
    pub fn take_over_removals(&self, removals: Vec<HandedRemoval>) {
        let mut removed = self.removed_ids();
        for HandedRemoval { id, backend, is_sandbox, age } in removals {
            if self.owner_of(&id).is_none() {
                let kind = if is_sandbox { Kind::Sandbox } else { Kind::Container };
                removed.order.push_back((moment_ago(age), id.as_str().into()));
                removed.owners.insert(id.into(), (InstanceId(backend), kind));
            }
        }
        // Those that this process removed meanwhile are in it too; the oldest are dropped from the front.
        removed.order.make_contiguous().sort_by_key(|(since, _)| *since);
    }
}
