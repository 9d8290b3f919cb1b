//! Ends removed backends that own nothing, and replaced ones without calls.
//!
//! | a backend | new calls | is dialled | until |
//! |---|---|---|---|
//! | runs | see it | yes | |
//! | is idle: removed, listed, owns nothing, no write in flight | see it | yes | [`IDLE`] has passed |
//! | is hidden | do not see it | yes | it has no call in flight |
//! | is replaced: another one runs in its place | do not see it | yes | it has no call in flight |
//! | has ended | do not see it | no | |

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Backends;
use crate::state::Life;

/// How long a removed backend owns nothing, and has no write in flight, before new calls no longer see it.
pub(in crate::app) const IDLE: Duration = Duration::from_secs(1);

impl Backends {
    /// Forgets what is no longer listed, and ends removed backends that own nothing. Returns whether a
    /// removed backend is idle and has not ended: it can end at a further call, [`IDLE`] later.
    pub(in crate::app) fn housekeep(&mut self) -> bool {
        self.node.reconcile_owners();
        self.end_moved_and_renamed();
        let node = Arc::clone(&self.node);
        // A call through a replaced backend may create something on the instance that runs in its place.
        let replaced = self.replaced.iter().filter(|(backend, _)| backend.in_flight() > 0);
        let busy: BTreeSet<_> = replaced.map(|(backend, _)| backend.id).collect();
        self.running.retain(|id, running| {
            let state = &running.backend.state;
            let idle = state.instance().life == Life::Removed
                // What an unlisted backend has is not known, so the operator has to forget it.
                && (state.was_listed_live() || state.is_declared_empty())
                && running.backend.unbounded_in_flight() == 0
                && !busy.contains(id)
                && node.router.owners.count(*id) == (0, 0);
            let ended = idle && running.hidden && running.backend.in_flight() == 0;
            // A creation that chose this backend before the reload may not have been sent yet, and its
            // sandbox would be in no list.
            let since = idle.then(|| running.idle_since.unwrap_or_else(Instant::now));
            running.hidden = since.is_some_and(|since| since.elapsed() >= IDLE);
            running.idle_since = since;
            if ended {
                tracing::info!(backend = %running.backend.name, "backend owns nothing any more and is gone");
                running.stop.begin();
                node.state_store.end(*id);
                node.router.owners.forget_all_of(*id);
                node.metrics.forget_backend(&running.backend.name);
            }
            !ended
        });
        self.replaced.retain(|(backend, stop)| {
            let busy = backend.in_flight() > 0;
            if !busy {
                stop.begin();
            }
            busy
        });
        self.publish();
        self.running.values().any(|running| running.idle_since.is_some())
    }
}
