//! Moments as milliseconds from now, for another process, which has no use for an `Instant` of this one.

use std::time::{Duration, Instant};

/// Returns the time that is left until `until`, in milliseconds; 0 if it has passed.
pub(super) fn millis_until(until: Instant) -> u64 {
    millis(until.saturating_duration_since(Instant::now()))
}

/// Returns the time since `since`, in milliseconds.
pub(super) fn millis_since(since: Instant) -> u64 {
    millis(since.elapsed())
}

/// Returns the moment that was `millis` ago, or now if the clock does not reach so far back.
pub(super) fn moment_ago(millis: u64) -> Instant {
    let now = Instant::now();
    now.checked_sub(Duration::from_millis(millis)).unwrap_or(now)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
