//! Decides whether what the backends contribute is a complete list, or which error is the reply.

use std::sync::Arc;

use bytes::Bytes;

use crate::backend::Backend;
use crate::error::Error;
use crate::merge;
use crate::method::List;
use crate::proxy::Node;
use crate::state::InstanceId;

/// The contribution of one backend to a list.
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
    /// The backend gave no answer, and no list or reply of it is last-known.
    NothingKnown,
    /// The backend answered `Unimplemented`.
    Unimplemented(Error),
    /// The backend answered with an error, and no list or reply of it is last-known.
    AnsweredError(Error),
}

/// Decides whether the contributions form a complete list.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Completeness {
    any: bool,
    /// Whether any backend has sent an item just now.
    live_items: bool,
    /// The first error of its own that a backend answered with.
    first_error: Option<Error>,
    absent: Vec<NoContribution>,
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
            Err(NoContribution { why: Absence::AnsweredError(error), .. }) => Some(error),
            Err(_) => None,
        };
        self.first_error = self.first_error.take().or_else(|| error.cloned());
        contribution.map_err(|absent| self.absent.push(absent)).ok()
    }

    /// Concludes the list: returns the error of an incomplete one, or records the backends that a complete
    /// one lacks as left out. `scoped` is true on a backend's own socket.
    ///
    /// The first row that fits decides. A backend is absent if it contributes nothing: it was never listed,
    /// it failed and nothing is last-known, or it does not have the list.
    ///
    /// | list | contributions | result |
    /// |---|---|---|
    /// | pod stats, if all must have them | a backend does not have it | its `Unimplemented` |
    /// | measured: stats and metrics | no item of now, and a backend answered with an error | that error |
    /// | descriptors | none, and a backend answered with an error | that error |
    /// | any but promised pod stats | none, and a backend does not have it | its `Unimplemented` |
    /// | one that must be complete | a backend is absent that has the list | [`Error::NeverListed`] |
    /// | any other | none, and a backend is absent that has the list | [`Error::NeverListed`] |
    /// | one that must be complete | none: all are left out | [`Error::NeverListed`] |
    /// | filesystems | the default backend is absent | [`Error::NeverListed`] |
    /// | any | | complete; the absent are counted as left out |
    ///
    /// Before a client has asked for pod stats, all backends may have to have them
    /// (`Node::all_must_implement`); they are *promised* once a client was told that they exist, because it
    /// asks for nothing else from then on. An empty list of measured values would mean that no pod uses
    /// anything. kubelet asks for descriptors once, so remembered ones are better than an error, and takes
    /// the first filesystem for the node's, forever.
    pub(in crate::proxy) fn conclude(self, node: &Node, list: List, scoped: bool) -> Result<(), Error> {
        if let Some(error) = self.incomplete(node, list, scoped) {
            return Err(error);
        }
        for NoContribution { backend, why } in &self.absent {
            node.left_out.record_backend(backend, list.unary().name, why.cause());
        }
        Ok(())
    }

    /// Returns the error by the table above; `None` for a complete list.
    fn incomplete(&self, node: &Node, list: List, scoped: bool) -> Option<Error> {
        let unimplemented = self.absent.iter().find_map(|absent| match &absent.why {
            Absence::Unimplemented(error) => Some(error.clone()),
            _ => None,
        });
        if unimplemented.is_some() && node.all_must_implement(list) {
            return unimplemented;
        }
        let has_values = if list == List::MetricDescriptors { self.any } else { self.live_items };
        if self.first_error.is_some() && list.is_measured() && !has_values {
            return self.first_error.clone();
        }
        let is_promised = list == List::SandboxStats && !scoped && node.promised_pod_stats() == Some(true);
        if unimplemented.is_some() && !self.any && !is_promised {
            return unimplemented;
        }
        let unknown = self.absent.iter().filter(|absent| !matches!(absent.why, Absence::Unimplemented(_)));
        let unknown: Vec<_> = unknown.map(|absent| Arc::clone(&absent.backend)).collect();
        if !unknown.is_empty() && (list.must_be_complete() || !self.any) {
            return Some(Error::NeverListed(unknown));
        }
        if !self.any && list.must_be_complete() {
            return Some(Error::NeverListed(node.names_outside_lists()));
        }
        if list == List::Filesystems
            && let Ok(default) = node.backend(node.default_in(None))
            && unknown.contains(&default.name)
        {
            return Some(Error::NeverListed(vec![Arc::clone(&default.name)]));
        }
        None
    }
}

impl Absence {
    /// Returns the backend's error; `None` if it could not be called.
    fn cause(&self) -> Option<&Error> {
        match self {
            Self::NothingKnown => None,
            Self::Unimplemented(error) | Self::AnsweredError(error) => Some(error),
        }
    }
}
