//! Graceful shutdown: one trigger, any number of watchers, one deadline.
//!
//! "Drain" means: accept nothing new, finish the work in flight. A [`Drain`] is the trigger;
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
pub struct Drain(CancellationToken);

impl Drain {
    /// Begins the drain. A second call does nothing.
    pub fn begin(&self) {
        self.0.cancel();
    }

    /// Completes when the drain begins.
    pub async fn begun(&self) {
        self.0.cancelled().await;
    }

    /// Completes when the drain begins; the future owns its watcher.
    pub async fn into_begun(self) {
        self.0.cancelled_owned().await;
    }

    /// Tells whether the drain has begun.
    pub fn is_begun(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Returns a drain that begins with this one, or earlier by itself.
    #[must_use]
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }
}

/// How a component's drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainResult {
    /// All its work ended by itself.
    Finished,
    /// The deadline passed first, and the rest was cut off.
    Cut,
}

/// Runs `serving` until it ends by itself, or until `deadline` has passed since `drain` began. `deadline` is
/// asked for at that moment, so that a reload can change it.
///
/// `serving` must watch `drain`: it stops accepting when the drain begins and completes with its last call.
/// At the deadline it is dropped, so whatever it must cut off has to end with it.
pub async fn run_with_deadline(
    component: &'static str,
    drain: &Drain,
    deadline: impl FnOnce() -> Duration,
    serving: impl Future<Output = ()>,
) -> DrainResult {
    let overdue = async {
        drain.begun().await;
        let deadline = deadline();
        tokio::time::sleep(deadline).await;
        deadline
    };
    tokio::select! {
        biased;
        () = serving => DrainResult::Finished,
        deadline = overdue => {
            tracing::warn!(component, ?deadline, "the component did not finish in time: calls still in flight are cut");
            DrainResult::Cut
        }
    }
}

/// Components that drain together, each a task with the same deadline.
pub struct Servers {
    drain: Drain,
    deadline: Arc<dyn Fn() -> Duration + Send + Sync>,
    tasks: JoinSet<DrainResult>,
}

impl Servers {
    /// Returns a set without components. `deadline` is as in [`run_with_deadline`].
    pub fn new(drain: Drain, deadline: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self { drain, deadline: Arc::new(deadline), tasks: JoinSet::new() }
    }

    /// Returns the drain that the components must watch.
    pub fn drain(&self) -> &Drain {
        &self.drain
    }

    /// Runs `serving` on `runtime` as [`run_with_deadline`] does.
    pub fn spawn(
        &mut self,
        component: &'static str,
        runtime: &Handle,
        serving: impl Future<Output = ()> + Send + 'static,
    ) {
        let (drain, deadline) = (self.drain.clone(), Arc::clone(&self.deadline));
        let serving = async move { run_with_deadline(component, &drain, || deadline(), serving).await };
        self.tasks.spawn_on(serving, runtime);
    }

    /// Waits until all components have ended. The result is [`DrainResult::Cut`] if any of them was cut off,
    /// or failed.
    pub async fn join(&mut self) -> DrainResult {
        let mut joined = DrainResult::Finished;
        while let Some(result) = self.tasks.join_next().await {
            if !matches!(result, Ok(DrainResult::Finished)) {
                joined = DrainResult::Cut;
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
        let drain = Drain::default();
        let hung = run_with_deadline("test", &drain, || DEADLINE, std::future::pending());
        let mut hung = std::pin::pin!(hung);
        assert!(tokio::time::timeout(DEADLINE * 10, &mut hung).await.is_err(), "no drain, no deadline");
        drain.begin();
        let started = tokio::time::Instant::now();
        assert_eq!(hung.await, DrainResult::Cut);
        assert_eq!(started.elapsed(), DEADLINE);
    }

    #[tokio::test(start_paused = true)]
    async fn what_finishes_in_time_is_not_cut() {
        let drain = Drain::default();
        drain.begin();
        let last_call = tokio::time::sleep(DEADLINE / 2);
        assert_eq!(run_with_deadline("test", &drain, || DEADLINE, last_call).await, DrainResult::Finished);
    }
}
