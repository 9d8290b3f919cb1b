//! Graceful shutdown: one trigger, any number of watchers, one deadline.
//!
//! "Shutdown" means: accept nothing new, finish the work in flight. A [`Shutdown`] is the trigger;
//! [`run_with_deadline`] gives a component that drains a limited time, so that the process always ends.
//! Nothing here knows what is drained.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Tells its watchers to finish. Clones share one trigger.
#[derive(Debug, Clone, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// Begins the shutdown. A second call does nothing.
    pub fn begin(&self) {
        self.0.cancel();
    }

    /// Completes when the shutdown begins.
    pub async fn begun(&self) {
        self.0.cancelled().await;
    }

    /// Completes when the shutdown begins; the future owns its watcher.
    pub async fn into_begun(self) {
        self.0.cancelled_owned().await;
    }

    /// Tells whether the shutdown has begun.
    pub fn is_begun(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Returns a shutdown that begins with this one, or earlier by itself.
    #[must_use]
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }
}

/// How a component's shutdown ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownResult {
    /// All its work ended by itself.
    Finished,
    /// The deadline passed first, and the rest was cut off.
    Cut,
}

/// Runs `serving` until it ends by itself, or until `deadline` has passed since `shutdown` began. `deadline`
/// is asked for at that moment, so that a reload can change it.
///
/// `serving` must watch `shutdown`: it stops accepting when the shutdown begins and completes with its last
/// call. At the deadline it is dropped, so whatever it must cut off has to end with it.
pub async fn run_with_deadline(
    component: &'static str,
    shutdown: &Shutdown,
    deadline: impl FnOnce() -> Duration,
    serving: impl Future<Output = ()>,
) -> ShutdownResult {
    let overdue = async {
        shutdown.begun().await;
        let deadline = deadline();
        tokio::time::sleep(deadline).await;
        deadline
    };
    tokio::select! {
        biased;
        () = serving => ShutdownResult::Finished,
        deadline = overdue => {
            tracing::warn!(component, ?deadline, "the component did not finish in time: calls still in flight are cut");
            ShutdownResult::Cut
        }
    }
}

/// Components that end together, each a task with the same deadline.
pub struct Servers {
    shutdown: Shutdown,
    deadline: Arc<dyn Fn() -> Duration + Send + Sync>,
    tasks: JoinSet<ShutdownResult>,
}

impl Servers {
    /// Returns a set without components. `deadline` is as in [`run_with_deadline`].
    pub fn new(shutdown: Shutdown, deadline: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self { shutdown, deadline: Arc::new(deadline), tasks: JoinSet::new() }
    }

    /// Returns the shutdown that the components must watch.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// Runs `serving` on `runtime` as [`run_with_deadline`] does.
    pub fn spawn(
        &mut self,
        component: &'static str,
        runtime: &Handle,
        serving: impl Future<Output = ()> + Send + 'static,
    ) {
        let (shutdown, deadline) = (self.shutdown.clone(), Arc::clone(&self.deadline));
        let serving = async move { run_with_deadline(component, &shutdown, || deadline(), serving).await };
        self.tasks.spawn_on(serving, runtime);
    }

    /// Waits until all components have ended. The result is [`ShutdownResult::Cut`] if any of them was cut
    /// off, or failed.
    pub async fn join(&mut self) -> ShutdownResult {
        let mut joined = ShutdownResult::Finished;
        while let Some(result) = self.tasks.join_next().await {
            if !matches!(result, Ok(ShutdownResult::Finished)) {
                joined = ShutdownResult::Cut;
            }
        }
        joined
    }
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Servers").field("running", &self.tasks.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn the_deadline_counts_from_the_beginning_of_the_drain() {
        let shutdown = Shutdown::default();
        let hung = run_with_deadline("test", &shutdown, || DEADLINE, std::future::pending());
        let mut hung = std::pin::pin!(hung);
        assert!(tokio::time::timeout(DEADLINE * 10, &mut hung).await.is_err(), "no shutdown, no deadline");
        shutdown.begin();
        let started = tokio::time::Instant::now();
        assert_eq!(hung.await, ShutdownResult::Cut);
        assert_eq!(started.elapsed(), DEADLINE);
    }

    #[tokio::test(start_paused = true)]
    async fn what_finishes_in_time_is_not_cut() {
        let shutdown = Shutdown::default();
        shutdown.begin();
        let last_call = tokio::time::sleep(DEADLINE / 2);
        assert_eq!(
            run_with_deadline("test", &shutdown, || DEADLINE, last_call).await,
            ShutdownResult::Finished
        );
    }
}
