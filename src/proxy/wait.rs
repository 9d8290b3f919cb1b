//! How long a call waits for a backend, and what it means if that time passes.

use std::time::Duration;

use crate::proxy::Call;

/// The part of the caller's timeout that is used: crictl gives up after 2 s, and a reply from last-known
/// state must be sent before that. A call without a last-known reply may take longer: `DEADLINE_MARGIN` of
/// `backend/call.rs` leaves only the time to send an error.
const CALLER_SHARE: f64 = 0.8;

/// How long a call waits for a backend.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wait {
    pub(super) time: Duration,
    /// Whether `time` is the backend's own deadline. Only a backend that outlasts its own is late: the
    /// caller's may be shorter.
    pub(super) is_backends_own: bool,
}

impl Call {
    /// Returns the backend's own deadline, or the caller's budget if that is less.
    pub(super) fn wait_within(&self, deadline: Duration) -> Wait {
        let time = self.caller_budget().map_or(deadline, |caller| deadline.min(caller));
        Wait { time, is_backends_own: time == deadline }
    }

    /// Returns 80 % of the caller's timeout; `None` without one.
    pub(super) fn caller_budget(&self) -> Option<Duration> {
        self.caller_timeout.map(|caller| caller.mul_f64(CALLER_SHARE))
    }
}
