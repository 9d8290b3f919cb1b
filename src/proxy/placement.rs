//! Chooses the backend of a new sandbox.
//!
//! | step | decided by |
//! |---|---|
//! | 1 | the backend that an operator aimed this pod at (`crimux route --next`) |
//! | 2 | the handler's targets; of several, the weight and the pod's uid, without those that drain |
//! | 3 | a target outside lists is refused as joining: kubelet tries again |
//!
//! | the aimed backend | the sandbox |
//! |---|---|
//! | is a target of the handler, whatever its weight | goes there |
//! | is no target, and the pod has no `RuntimeClass` | goes there, to the backend's own default |
//! | is no target, and the pod has a `RuntimeClass` | goes by step 2; the aim is ignored with a warning |
//! | was removed from the file | the same |
//! | has ended | goes by step 2 |
//! | drains | is refused: an aim is for that backend or for none |

use std::sync::Arc;

use tonic::Code;

use crate::error::Error;
use crate::proxy::Node;
use crate::proxy::creation::PodName;
use crate::router::Choice;
use crate::state::{InstanceId, Life};

impl Node {
    /// Chooses the backend of a new sandbox of a pod; `aim` is the backend that an operator aimed it at.
    ///
    /// # Errors
    /// The errors of [`Node::choose`]; [`Error::Draining`] too for an aim at a backend that drains.
    pub(super) fn choose_for_pod(
        &self,
        handler: &str,
        PodName { namespace, name, uid }: PodName<'_>,
        aim: Option<InstanceId>,
    ) -> Result<Choice, Error> {
        let Some(aimed) = aim else { return self.choose(handler, uid) };
        let Ok(backend) = self.backend(aimed) else { return self.choose(handler, uid) };
        let is_removed = backend.state.instance().life == Life::Removed;
        let choice = self.router.handlers().target_at(handler, aimed).filter(|_| !is_removed);
        let Some(choice) = choice else {
            let backend = &backend.name;
            tracing::warn!(namespace, name, uid, handler, %backend, "aim ignored: the handler does not lead there");
            return self.choose(handler, uid);
        };
        if backend.state.is_draining() {
            return Err(Error::Draining { backend: Arc::clone(&backend.name), handler: handler.to_owned() });
        }
        self.refuse_outside_lists(choice)
    }

    /// Chooses the backend of a new sandbox.
    pub(super) fn choose(&self, handler: &str, uid: &str) -> Result<Choice, Error> {
        let is_draining = |id| self.backend(id).is_ok_and(|backend| backend.state.is_draining());
        self.refuse_outside_lists(self.router.handlers().choose(handler, uid, is_draining)?)
    }

    fn refuse_outside_lists(&self, choice: Choice) -> Result<Choice, Error> {
        let backend = self.backend(choice.backend)?;
        if self.is_outside_lists(&backend) {
            return Err(backend.joining_error());
        }
        Ok(choice)
    }

    /// Records where a sandbox was created, or that it was refused, for the status page.
    pub(super) fn record_placement(&self, handler: &str, backend: Option<&Arc<str>>, code: Code) {
        let handlers = self.router.handlers();
        let known = handler.is_empty() || handlers.targets_of(handler).is_ok();
        self.history.record_placement(known.then_some(handler), backend, code);
    }
}
