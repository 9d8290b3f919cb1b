//! What `/proc` says of this process, read at each scrape, under the names that Prometheus' client libraries
//! give it.

use std::collections::HashMap;
use std::fs;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, Result};

const NAMES: [(&str, &str); 7] = [
    ("process_cpu_seconds_total", "Total user and system CPU time spent in seconds."),
    ("process_open_fds", "Number of open file descriptors."),
    ("process_max_fds", "Maximum number of open file descriptors."),
    ("process_virtual_memory_bytes", "Virtual memory size in bytes."),
    ("process_resident_memory_bytes", "Resident memory size in bytes."),
    ("process_start_time_seconds", "Start time of the process since unix epoch in seconds."),
    ("process_threads", "Number of OS threads in the process."),
];

/// Collects the metrics in [`NAMES`]; one that cannot be read is left out.
#[derive(Debug)]
pub(super) struct ProcessCollector {
    descriptions: Vec<Desc>,
    /// In seconds since 1970, when the system was booted.
    booted: Option<f64>,
}

/// The fields of `/proc/self/stat` after the name of the program (proc(5)).
struct Stat(Vec<f64>);

impl ProcessCollector {
    pub(super) fn new() -> Result<Self> {
        let describe =
            |(name, help): &(&str, &str)| Desc::new((*name).into(), (*help).into(), vec![], HashMap::new());
        let descriptions = NAMES.iter().map(describe).collect::<Result<_>>()?;
        Ok(Self { descriptions, booted: number_after("/proc/stat", "btime") })
    }

    /// The values in the order of [`NAMES`].
    fn values(&self) -> [Option<f64>; NAMES.len()] {
        let stat = Stat::read().unwrap_or(Stat(Vec::new()));
        let second = f64_of(rustix::param::clock_ticks_per_second());
        let page = f64_of(rustix::param::page_size() as u64);
        [
            stat.field(14).zip(stat.field(15)).map(|(user, system)| (user + system) / second),
            open_files(),
            number_after("/proc/self/limits", "Max open files"),
            stat.field(23),
            stat.field(24).map(|pages| pages * page),
            self.booted.zip(stat.field(22)).map(|(booted, ticks)| booted + ticks / second),
            stat.field(20),
        ]
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let named = NAMES.into_iter().zip(self.values());
        named.filter_map(|(name, value)| family(name, value?).ok()).flatten().collect()
    }
}

impl Stat {
    fn read() -> Option<Self> {
        let text = fs::read_to_string("/proc/self/stat").ok()?;
        // The name stands in parentheses and may hold any byte. The state, a letter, follows it.
        let fields = text.rsplit_once(") ")?.1.split_whitespace();
        Some(Self(fields.map(|field| field.parse().unwrap_or_default()).collect()))
    }

    /// Returns a field by its number in proc(5), at least 4.
    fn field(&self, number: usize) -> Option<f64> {
        self.0.get(number - 3).copied()
    }
}

fn family((name, help): (&str, &str), value: f64) -> Result<Vec<MetricFamily>> {
    if name.ends_with("_total") {
        let counter = Counter::new(name, help)?;
        counter.inc_by(value);
        return Ok(counter.collect());
    }
    let gauge = Gauge::new(name, help)?;
    gauge.set(value);
    Ok(gauge.collect())
}

/// The number after `key` in a line of a file.
fn number_after(path: &str, key: &str) -> Option<f64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok())
}

/// Counts open files, without the directory that is read for it.
fn open_files() -> Option<f64> {
    let entries = fs::read_dir("/proc/self/fd").ok()?.count();
    Some(f64_of(entries.saturating_sub(1) as u64))
}

/// Returns a number that is far below 2^32 as a float.
fn f64_of(number: u64) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(name: &str) -> f64 {
        let at = NAMES.iter().position(|(known, _)| *known == name).unwrap();
        ProcessCollector::new().unwrap().values()[at].unwrap()
    }

    #[test]
    fn every_value_is_what_the_kernel_says_of_this_process() {
        let before = value("process_open_fds");
        let files: Vec<_> = (0..50).map(|_| fs::File::open("/proc/self/stat").unwrap()).collect();
        assert!(value("process_open_fds") >= 50.0, "{before} were open before {} more", files.len());
        assert!(value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_threads") >= 1.0);
        let resident = value("process_resident_memory_bytes");
        assert!(resident > 100_000.0 && resident < value("process_virtual_memory_bytes"), "{resident}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let started = value("process_start_time_seconds");
        assert!(started > now - 100_000.0 && started < now + 2.0, "{started} of {now}");
        let busy = value("process_cpu_seconds_total");
        assert!((0.0..100_000.0).contains(&busy), "{busy}");
    }

    #[test]
    fn a_counter_and_six_gauges_are_collected() {
        let families = ProcessCollector::new().unwrap().collect();
        let names: Vec<_> = families.iter().map(MetricFamily::name).collect();
        assert_eq!(names, NAMES.map(|(name, _)| name));
        let counters = families.iter().filter(|family| family.name().ends_with("_total"));
        assert_eq!(
            counters.map(MetricFamily::get_field_type).collect::<Vec<_>>(),
            [prometheus::proto::MetricType::COUNTER]
        );
    }
}
