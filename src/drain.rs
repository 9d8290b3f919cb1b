//! Shutting down: one trigger, any number of watchers, a deadline that the owner of the trigger keeps.
//!
//! A thin face over `tokio_util`'s token, so that every part names the same two things: "drain" (finish what
//! you have, start nothing) and, after the deadline, the end of the process. It must not know what is drained.

use tokio_util::sync::CancellationToken;

/// Tells its watchers to finish.
#[derive(Debug, Clone, Default)]
pub struct Drain(CancellationToken);

impl Drain {
    /// Begins the drain.
    pub fn begin(&self) {
        self.0.cancel();
    }

    /// Completes when the drain begins.
    pub async fn begun(&self) {
        self.0.cancelled().await;
    }

    /// Completes when the drain begins; for whoever keeps the wait.
    pub async fn into_begun(self) {
        self.0.cancelled_owned().await;
    }

    /// Tells whether it has begun.
    pub fn is_begun(&self) -> bool {
        self.0.is_cancelled()
    }

    #[must_use]
    /// Returns a drain that begins with this one, or earlier by itself.
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }
}
