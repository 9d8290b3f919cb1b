//! Moments for documents, and durations as kubectl prints ages: at most two units, for tables that people
//! read.
//!
//! Source: `k8s.io/apimachinery/pkg/util/duration`, `HumanDuration`. Not for output that a machine parses.

use std::time::{Duration, SystemTime};

/// Formats a time in UTC, to the second.
pub(super) fn rfc3339(moment: SystemTime) -> String {
    humantime::format_rfc3339_seconds(moment).to_string()
}

/// Formats a duration as `5s`, `2m10s`, `15m`, `3h12m`, `12h`, `2d4h`, `40d` or `3y20d`.
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

fn two(high: u64, high_unit: &str, low: u64, low_unit: &str) -> String {
    if low == 0 { format!("{high}{high_unit}") } else { format!("{high}{high_unit}{low}{low_unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_kubectl_writes_them() {
        let ages = [0, 119, 120, 130, 900, 11_520, 43_200, 187_200, 3_456_000, 96_336_000];
        let shown = ages.map(|seconds| human(Duration::from_secs(seconds)));
        let expected = ["0s", "119s", "2m", "2m10s", "15m", "3h12m", "12h", "2d4h", "40d", "3y20d"];
        assert_eq!(shown, expected);
    }
}
