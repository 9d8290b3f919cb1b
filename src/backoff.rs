//! Exponential backoff, for everything that is tried again.

use std::time::Duration;

/// The first pause.
const FIRST: Duration = Duration::from_millis(50);

/// The pauses between attempts: 50 ms, then each twice as long as the one before, up to a limit.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    /// Returns a backoff whose pauses are at most `longest`.
    pub fn new(longest: Duration) -> Self {
        Self { next: FIRST, longest }
    }

    /// Returns the next pause.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        pause
    }

    /// Returns the next pause, shortened at random to between half and all of it, so that peers which failed
    /// together do not try again together.
    pub fn next_jittered_pause(&mut self) -> Duration {
        self.next_pause().mul_f64(fastrand::f64().mul_add(0.5, 0.5))
    }

    /// Begins with the first pause again, after a success.
    pub fn reset(&mut self) {
        self.next = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_again_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(300));
        let mut pauses = || (0..5).map(|_| backoff.next_pause().as_millis()).collect::<Vec<_>>();
        assert_eq!(pauses(), [50, 100, 200, 300, 300]);
        backoff.reset();
        let pause = backoff.next_jittered_pause().as_millis();
        assert!((25..=50).contains(&pause), "{pause}");
        assert_eq!(backoff.next_pause().as_millis(), 100);
    }
}
