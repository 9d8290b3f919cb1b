//! Holds a log line that could repeat with every call back to one a minute.

use std::time::{Duration, Instant};

/// How long after a line the next one may follow.
const INTERVAL: Duration = Duration::from_secs(60);

/// The lines about one thing: when the last was written, and how often it has happened since.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogLimit {
    logged: Option<Instant>,
    unlogged: u64,
}

impl LogLimit {
    /// Counts `count` cases. Returns the count since the last line, these included, if a line is due; the
    /// caller writes it.
    pub fn count(&mut self, count: u64) -> Option<u64> {
        self.unlogged += count;
        if self.logged.is_some_and(|logged| logged.elapsed() < INTERVAL) {
            return None;
        }
        self.logged = Some(Instant::now());
        Some(std::mem::take(&mut self.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_minute_says_how_many_cases_there_were() {
        let mut limit = LogLimit::default();
        assert_eq!(limit.count(2), Some(2));
        assert_eq!(limit.count(3), None);
        limit.logged = Instant::now().checked_sub(INTERVAL);
        assert_eq!(limit.count(1), Some(4));
    }
}
