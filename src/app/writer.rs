//! The task that writes the last-known state down, while this process is the one that does.

use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::shutdown::Shutdown;
use crate::state::StateStore;

/// The task.
#[derive(Debug, Default)]
pub(super) struct Writer {
    stop: Shutdown,
    task: Option<JoinHandle<()>>,
}

impl Writer {
    /// Writes until `shutdown` begins, or until [`Writer::stop`]. Does nothing if it writes already.
    pub(super) fn start(&mut self, store: &Arc<StateStore>, shutdown: &Shutdown) {
        if self.task.is_none() {
            self.stop = shutdown.child();
            self.task = Some(tokio::spawn(Arc::clone(store).run(self.stop.clone().into_begun())));
        }
    }

    /// Stops writing, with a last snapshot.
    pub(super) async fn stop(&mut self) {
        self.stop.begin();
        if let Some(task) = self.task.take()
            && task.await.is_err()
        {
            tracing::error!("the last-known state was not written at the end");
        }
    }
}
