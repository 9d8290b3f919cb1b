//! Locks a mutex whatever became of the thread that held it before.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex, also after a panic while it was locked: what crimux keeps behind a mutex is at worst
/// without the one change that was being made, and an outage of all calls would be worse.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
