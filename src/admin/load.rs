//! Calls per second and their quantiles, over the last minute, for a page that people look at.
//!
//! Prometheus computes these better; this is for the moment when all there is is a browser. The counters and
//! histograms are sampled every few seconds, and the oldest sample is compared with now. Nothing here counts by
//! itself.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::Registry;

/// Between two samples.
pub(super) const STEP: Duration = Duration::from_secs(5);
/// How many samples are kept: a minute.
const KEPT: usize = 12;
/// What a backend takes, fan-out and probes included.
const HISTOGRAM: &str = "crimux_backend_duration_seconds";

/// The samples of the last minute.
#[derive(Debug, Default)]
pub(super) struct Load(Mutex<VecDeque<Sample>>);

/// What one backend did within the last minute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rate {
    pub(super) per_second: f64,
    /// Seconds; none if there were no calls.
    pub(super) p50: Option<f64>,
    pub(super) p99: Option<f64>,
}

#[derive(Debug)]
struct Sample {
    at: Instant,
    backends: Counts,
}

/// By backend: the upper bound of each bucket and how many calls took no longer; infinity is the last bound.
type Counts = BTreeMap<String, Vec<(f64, u64)>>;

impl Load {
    /// Takes a sample.
    pub(super) fn sample(&self, registry: &Registry) {
        let sample = Sample { at: Instant::now(), backends: counts(registry) };
        let mut samples = self.samples();
        samples.truncate(KEPT - 1);
        samples.push_front(sample);
    }

    /// Returns the rates of all backends since the oldest sample.
    pub(super) fn rates(&self, registry: &Registry) -> BTreeMap<String, Rate> {
        let now = counts(registry);
        let samples = self.samples();
        let Some(oldest) = samples.back() else { return BTreeMap::new() };
        let elapsed = oldest.at.elapsed().max(Duration::from_millis(1));
        now.into_iter()
            .map(|(backend, buckets)| {
                let rate = rate(&buckets, oldest.backends.get(&backend), elapsed);
                (backend, rate)
            })
            .collect()
    }

    fn samples(&self) -> MutexGuard<'_, VecDeque<Sample>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn counts(registry: &Registry) -> Counts {
    let mut counts = Counts::new();
    let families = registry.gather();
    for metric in families
        .iter()
        .filter(|family| family.name() == HISTOGRAM)
        .flat_map(prometheus::proto::MetricFamily::get_metric)
    {
        let Some(backend) = metric.get_label().iter().find(|label| label.name() == "backend") else {
            continue;
        };
        let histogram = metric.get_histogram();
        let finite = histogram.get_bucket().iter().map(|b| (b.upper_bound(), b.cumulative_count()));
        let buckets = finite.chain([(f64::INFINITY, histogram.get_sample_count())]);
        let sum = counts.entry(backend.value().to_owned()).or_default();
        for (index, (bound, count)) in buckets.enumerate() {
            match sum.get_mut(index) {
                Some((_, total)) => *total += count,
                None => sum.push((bound, count)),
            }
        }
    }
    counts
}

fn rate(now: &[(f64, u64)], before: Option<&Vec<(f64, u64)>>, elapsed: Duration) -> Rate {
    let before = |index: usize| before.and_then(|b| b.get(index)).map_or(0, |(_, count)| *count);
    let new: Vec<_> = now
        .iter()
        .enumerate()
        .map(|(index, (bound, count))| (*bound, as_f64(count.saturating_sub(before(index)))))
        .collect();
    let total = new.last().map_or(0.0, |(_, count)| *count);
    Rate { per_second: total / elapsed.as_secs_f64(), p50: quantile(&new, 0.50), p99: quantile(&new, 0.99) }
}

/// Interpolates within the bucket, as Prometheus' `histogram_quantile` does.
fn quantile(buckets: &[(f64, f64)], quantile: f64) -> Option<f64> {
    let rank = buckets.last().filter(|(_, total)| *total > 0.0)?.1 * quantile;
    let index = buckets.iter().position(|(_, count)| *count >= rank)?;
    let (low, below) = index.checked_sub(1).map_or((0.0, 0.0), |index| buckets[index]);
    let (high, upto) = buckets[index];
    if high.is_infinite() {
        return Some(low);
    }
    Some(low + (high - low) * (rank - below) / (upto - below).max(f64::MIN_POSITIVE))
}

/// Counts of calls are far below 2^52.
#[allow(clippy::cast_precision_loss)]
fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_quantiles_are_those_of_what_came_since() {
        let before = vec![(0.1, 100), (1.0, 100), (f64::INFINITY, 100)];
        let now = vec![(0.1, 150), (1.0, 200), (f64::INFINITY, 200)];
        let rate = rate(&now, Some(&before), Duration::from_secs(10));
        assert!((rate.per_second - 10.0).abs() < 1e-9, "{rate:?}");
        assert!((rate.p50.expect("there were calls") - 0.1).abs() < 1e-9, "{rate:?}");
        assert!((rate.p99.expect("there were calls") - 0.982).abs() < 1e-9, "{rate:?}");
    }

    #[test]
    fn without_calls_there_are_no_quantiles_and_beyond_the_last_bound_there_is_that_bound() {
        let same = vec![(0.1, 5), (f64::INFINITY, 5)];
        assert_eq!(rate(&same, Some(&same), STEP), Rate { per_second: 0.0, p50: None, p99: None });
        assert_eq!(rate(&[(0.1, 0), (f64::INFINITY, 5)], None, STEP).p99, Some(0.1));
    }

    #[test]
    fn backends_are_summed_over_their_methods() {
        let metrics = crate::metrics::Metrics::new().expect("distinct names");
        let load = Load::default();
        load.sample(&metrics.registry);
        let calls = metrics.calls("a");
        for method in [0, 1] {
            calls.backend_took(method, Duration::from_millis(2));
        }
        let rates = load.rates(&metrics.registry);
        assert_eq!(rates.keys().collect::<Vec<_>>(), ["a"]);
        assert!(rates["a"].per_second > 0.0);
        let p50 = rates["a"].p50.expect("there were calls");
        assert!((0.001..=0.0025).contains(&p50), "{p50}");
    }
}
