//! Decides whether what the backends contribute is a complete list, or which error is the reply.

use std::sync::Arc;

use bytes::Bytes;

use crate::backend::Backend;
use crate::error::Error;
use crate::merge;
use crate::method::List;
use crate::proxy::Node;
use crate::state::InstanceId;

/// What one backend contributes to a list.
#[derive(Debug)]
pub(in crate::proxy) struct Contribution {
    pub(in crate::proxy) backend: Arc<Backend>,
    /// Encoded items of field 1.
    pub(in crate::proxy) items: Bytes,
    /// The IDs that another backend owned when the items were taken.
    pub(in crate::proxy) foreign: Vec<Box<str>>,
    /// Whether the backend has items. `items` is empty for a streamed list, which was sent already.
    pub(in crate::proxy) has_items: bool,
    /// Whether the backend answered this call.
    pub(in crate::proxy) live: bool,
    /// The error that the backend answered with; the items are then last-known.
    pub(in crate::proxy) error: Option<Error>,
}

impl Contribution {
    pub(in crate::proxy) fn to_merge(&self, default: InstanceId) -> merge::BackendItems<'_> {
        merge::BackendItems {
            items: &self.items,
            default: self.backend.id == default,
            local: self.backend.config().local,
            live: self.live,
        }
    }
}

/// A backend that contributes nothing.
#[derive(Debug)]
pub(in crate::proxy) struct NoContribution {
    pub(super) backend: Arc<str>,
    pub(super) why: Absence,
}

/// Why a backend contributes nothing.
#[derive(Debug)]
pub(super) enum Absence {
    /// The backend was never listed and has no saved state.
    NeverListed,
    /// The backend answered `Unimplemented`.
    Unimplemented(Error),
    /// The backend answered with an error, and nothing is last-known.
    Failed(Error),
}

/// Decides whether the contributions form a complete list.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Completeness {
    any: bool,
    /// Whether any backend has sent an item just now.
    live_items: bool,
    /// The first error of its own that a backend answered with.
    first_error: Option<Error>,
    lacking: Vec<NoContribution>,
}

impl Completeness {
    /// Adds one backend's contribution, and returns it; `None` from a backend that contributes nothing.
    pub(in crate::proxy) fn add(
        &mut self,
        contribution: Result<Contribution, NoContribution>,
    ) -> Option<Contribution> {
        let error = match &contribution {
            Ok(contribution) => {
                self.any = true;
                self.live_items |= contribution.live && contribution.has_items;
                contribution.error.as_ref()
            }
            Err(NoContribution { why: Absence::Failed(error), .. }) => Some(error),
            Err(_) => None,
        };
        self.first_error = self.first_error.take().or_else(|| error.cloned());
        contribution.map_err(|lacking| self.lacking.push(lacking)).ok()
    }

    /// Returns the error of an incomplete list; records the backends that a complete one lacks. An empty list
    /// of measured values would mean that no pod uses anything: if a backend answered with an error, that
    /// error is the reply. `scoped` is true on a backend's own socket.
    pub(in crate::proxy) fn check(self, node: &Node, list: List, scoped: bool) -> Result<(), Error> {
        let unimplemented = self.lacking.iter().find_map(|lacking| match &lacking.why {
            Absence::Unimplemented(error) => Some(error.clone()),
            _ => None,
        });
        if let Some(error) = unimplemented.clone().filter(|_| node.all_must_implement(list)) {
            return Err(error);
        }
        // kubelet asks for descriptors once, so those that are remembered are better than an error.
        let has_values = if list == List::MetricDescriptors { self.any } else { self.live_items };
        if let Some(error) = self.first_error.filter(|_| list.is_measured() && !has_values) {
            return Err(error);
        }
        let promised = list == List::SandboxStats && !scoped && node.promised_pod_stats() == Some(true);
        if let Some(error) = unimplemented.filter(|_| !self.any && !promised) {
            return Err(error);
        }
        let unheard = self.lacking.iter().filter(|lacking| !matches!(lacking.why, Absence::Unimplemented(_)));
        let unheard: Vec<_> = unheard.map(|lacking| Arc::clone(&lacking.backend)).collect();
        if !unheard.is_empty() && (list.must_be_complete() || !self.any) {
            return Err(Error::NeverListed(unheard));
        }
        if !self.any && list.must_be_complete() {
            // Every backend is joining: a list that nobody contributed to is not an empty list.
            return Err(Error::NeverListed(node.left_out_names()));
        }
        // kubelet takes the first filesystem for the node's, once for its whole life.
        if list == List::Filesystems
            && let Ok(default) = node.backend(node.default_in(None))
            && unheard.contains(&default.name)
        {
            return Err(Error::NeverListed(vec![Arc::clone(&default.name)]));
        }
        for NoContribution { backend, why } in &self.lacking {
            node.left_out.record_backend(backend, list.unary().name, why.cause());
        }
        Ok(())
    }
}

impl Absence {
    /// Returns the backend's error; `None` if it could not be called.
    fn cause(&self) -> Option<&Error> {
        match self {
            Self::NeverListed => None,
            Self::Unimplemented(error) | Self::Failed(error) => Some(error),
        }
    }
}
