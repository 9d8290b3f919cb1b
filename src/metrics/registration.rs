//! Makes metrics and registers them, under the prefix `crimux_`. The help of each is its sentence in
//! `docs/metrics.md`, so that a scrape and the reference say the same.

use prometheus::core::Collector;
use prometheus::{
    Error, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, Result,
};

/// The reference of all metrics.
const REFERENCE: &str = include_str!("../../docs/metrics.md");

/// Makes metrics in one registry. Every method fails if the registry already has a metric of that name, or
/// the reference has none.
#[derive(Debug)]
pub(crate) struct Registrar<'a> {
    pub(crate) registry: &'a Registry,
}

impl Registrar<'_> {
    pub(crate) fn counter(&self, name: &str) -> Result<IntCounter> {
        self.register(IntCounter::with_opts(opts(name)?)?)
    }

    pub(crate) fn counters(&self, name: &str, labels: &[&str]) -> Result<IntCounterVec> {
        self.register(IntCounterVec::new(opts(name)?, labels)?)
    }

    pub(crate) fn gauge(&self, name: &str) -> Result<IntGauge> {
        self.register(IntGauge::with_opts(opts(name)?)?)
    }

    pub(crate) fn gauges(&self, name: &str, labels: &[&str]) -> Result<IntGaugeVec> {
        self.register(IntGaugeVec::new(opts(name)?, labels)?)
    }

    pub(crate) fn float_gauges(&self, name: &str, labels: &[&str]) -> Result<GaugeVec> {
        self.register(GaugeVec::new(opts(name)?, labels)?)
    }

    /// A histogram in seconds, by method and backend.
    pub(crate) fn histograms(&self, name: &str, buckets: &[f64]) -> Result<HistogramVec> {
        let opts = HistogramOpts::from(opts(name)?).buckets(buckets.to_vec());
        self.register(HistogramVec::new(opts, &["method", "backend"])?)
    }

    pub(crate) fn float_gauge(&self, name: &str) -> Result<Gauge> {
        self.register(Gauge::with_opts(opts(name)?)?)
    }

    pub(crate) fn histogram(&self, name: &str, buckets: &[f64]) -> Result<Histogram> {
        let opts = HistogramOpts::from(opts(name)?).buckets(buckets.to_vec());
        self.register(Histogram::with_opts(opts)?)
    }

    fn register<C: Collector + Clone + 'static>(&self, metric: C) -> Result<C> {
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }
}

fn opts(name: &str) -> Result<Opts> {
    let unknown = || Error::Msg(format!("crimux_{name} is not in docs/metrics.md"));
    Ok(Opts::new(name, help(name).ok_or_else(unknown)?).namespace("crimux"))
}

/// Returns the meaning of a metric in the reference as a sentence.
fn help(name: &str) -> Option<String> {
    let start = format!("| `crimux_{name}` |");
    let row = REFERENCE.lines().find(|line| line.starts_with(&start))?;
    let meaning = row.trim_end_matches([' ', '|']).rsplit(" | ").next()?.replace('`', "");
    let first = meaning.chars().next()?;
    Some(format!("{}{}.", first.to_uppercase(), &meaning[first.len_utf8()..]))
}

/// Sets a gauge to a count.
pub(super) fn set_count(gauge: &IntGauge, count: usize) {
    gauge.set(count.try_into().unwrap_or(i64::MAX));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_is_the_sentence_of_the_reference() {
        let saved = "0 while the state on the disk is not whole, because the last write failed.";
        assert_eq!(help("state_saved").as_deref(), Some(saved));
        let calls = "Calls that wait for the backend now.";
        assert_eq!(help("requests_in_flight").as_deref(), Some(calls));
        assert_eq!(help("requests"), None);
        let error = Registrar { registry: &Registry::new() }.counter("nothing_total").unwrap_err();
        assert!(error.to_string().contains("crimux_nothing_total is not in docs/metrics.md"), "{error}");
    }
}
