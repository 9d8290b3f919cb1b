//! Metrics in the OpenMetrics text format 1.0, for clients that prefer it, as Prometheus does.
//!
//! It is Prometheus's own text format with a few differences: the family of a counter has no `_total`,
//! quotes in help are escaped, a bucket may have an exemplar, and the last line is `# EOF`. So it is made
//! from that text, and every series has the same name and labels in both.

use std::fmt::Write as _;
use std::time::UNIX_EPOCH;

use crate::method;
use crate::metrics::{Exemplar, Exemplars};

/// The media type.
pub(super) const MEDIA_TYPE: &str = "application/openmetrics-text";
/// The value of `Content-Type`.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The histogram that has exemplars.
const TRACED: &str = "crimux_request_duration_seconds_bucket{";

/// Turns Prometheus's text format into OpenMetrics.
pub(super) fn from_text(text: &str, exemplars: &Exemplars) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 16);
    let counters: Vec<&str> = text.lines().filter_map(counter_of).collect();
    // The series whose exemplar was written: it belongs to one bucket alone.
    let mut written = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            out += &metadata(rest, &counters);
        } else {
            out += line;
            if let Some(series) = line.strip_prefix(TRACED).and_then(Bucket::parse)
                && series.labels != written
                && let Some(exemplar) = series.exemplar(exemplars)
            {
                out += &exemplar;
                series.labels.clone_into(&mut written);
            }
        }
        out.push('\n');
    }
    out + "# EOF\n"
}

/// Returns the name of the counter that a line of metadata declares.
fn counter_of(line: &str) -> Option<&str> {
    line.strip_prefix("# TYPE ")?.strip_suffix(" counter")
}

/// Writes a line of metadata; `rest` is what follows `# `.
fn metadata(rest: &str, counters: &[&str]) -> String {
    let mut parts = rest.splitn(3, ' ');
    let (kind, name, value) = (parts.next(), parts.next(), parts.next().unwrap_or_default());
    let (kind, name) = (kind.unwrap_or_default(), name.unwrap_or_default());
    let family = if counters.contains(&name) { name.strip_suffix("_total").unwrap_or(name) } else { name };
    let value = if kind == "HELP" { value.replace('"', "\\\"") } else { value.to_owned() };
    format!("# {kind} {family} {value}")
}

/// One bucket of the traced histogram.
struct Bucket<'a> {
    /// The labels but `le`.
    labels: &'a str,
    upper: f64,
}

impl<'a> Bucket<'a> {
    /// Parses what follows the brace of a bucket's line. `le` is the last label.
    fn parse(labels: &'a str) -> Option<Self> {
        let (labels, rest) = labels.split_once(",le=\"")?;
        let (upper, _) = rest.split_once('"')?;
        let upper = if upper == "+Inf" { f64::INFINITY } else { upper.parse().ok()? };
        Some(Self { labels, upper })
    }

    /// Returns the exemplar of the series, in the form that follows a sample, if it belongs to this bucket
    /// or one below.
    fn exemplar(&self, exemplars: &Exemplars) -> Option<String> {
        let label = |name: &str| {
            let (_, rest) = self.labels.split_once(&format!("{name}=\""))?;
            Some(rest.split_once('"')?.0)
        };
        let method = label("method")?;
        let row = method::all().iter().map(|row| row.name).find(|name| *name == method);
        let Exemplar { trace_id, waited, at } =
            exemplars.get(row.unwrap_or(method::UNKNOWN_NAME), label("backend")?)?;
        let (waited, at) = (waited.as_secs_f64(), at.duration_since(UNIX_EPOCH).ok()?.as_secs_f64());
        let mut text = String::new();
        _ = write!(text, " # {{trace_id=\"{trace_id}\"}} {waited} {at:.3}");
        (waited <= self.upper).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_family_of_a_counter_has_no_suffix_and_help_is_escaped() {
        let text = "# HELP a_total All \"a\".\n# TYPE a_total counter\na_total{x=\"1\"} 2\n# HELP b B.\n# TYPE b gauge\nb 1\n";
        let expected = "# HELP a All \\\"a\\\".\n# TYPE a counter\na_total{x=\"1\"} 2\n# HELP b B.\n# TYPE b gauge\nb 1\n# EOF\n";
        assert_eq!(from_text(text, &Exemplars::default()), expected);
    }
}
