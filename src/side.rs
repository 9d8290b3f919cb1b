//! A second runtime thread, for work that must not delay calls: admin HTTP, relayed streams, TLS handshakes.
//!
//! Calls have the main thread to themselves. A status page, a scrape, a stream that is copied or a handshake
//! takes milliseconds of CPU, and each of them would be waited for by every call. Nothing here knows what
//! runs on the thread.

use std::io;

use tokio::runtime::{Builder, Handle};
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

/// A handle of the thread. Clones are of the same thread.
#[derive(Debug, Clone)]
pub struct Side(Handle);

impl Side {
    /// Starts the thread. It ends with the process.
    ///
    /// # Errors
    /// If the system has no thread or no file descriptors for it.
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let run = move || runtime.block_on(std::future::pending::<()>());
        std::thread::Builder::new().name("side".to_owned()).spawn(run)?;
        Ok(Self(handle))
    }

    /// Stands for the runtime that this is called on: nothing moves to another thread.
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn current() -> Self {
        Self(Handle::current())
    }

    /// Returns the runtime of the thread, for tasks whose end another task waits for.
    pub fn handle(&self) -> &Handle {
        &self.0
    }

    /// Runs `work` on the thread and returns what it returns. Dropped early, `work` is dropped too.
    ///
    /// # Errors
    /// If `work` panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, JoinError> {
        AbortOnDropHandle::new(self.0.spawn(work)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_runs_on_a_thread_of_that_name_and_its_result_comes_back() {
        let side = Side::start().unwrap();
        let name = side.run(async { std::thread::current().name().map(str::to_owned) }).await.unwrap();
        assert_eq!(name.as_deref(), Some("side"));
    }

    #[tokio::test]
    async fn work_ends_with_the_wait_for_it() {
        let side = Side::start().unwrap();
        let (alive, ended) = tokio::sync::oneshot::channel::<()>();
        let work = side.run(async move {
            std::future::pending::<()>().await;
            drop(alive);
        });
        let mut work = Box::pin(work);
        assert!(futures_util::poll!(&mut work).is_pending());
        drop(work);
        assert!(ended.await.is_err());
    }
}
