//! What the run ends with: one table, the verdicts, and the same as JSON.
//!
//! Ratios to the direct call are the result; times are context, for they are the machine's.

use std::fmt;
use std::process::Command;

use serde_json::{Value, json};

use crate::case::{Measured, Row};
use crate::fleet::{World, find};
use crate::footprint::Footprint;
use crate::plan;
use crate::verdict::{Verdict, cpu, p50};

/// Everything that was measured.
#[derive(Debug)]
pub(crate) struct Report {
    /// The cases in the order of the table.
    pub(crate) cases: Vec<Measured>,
    /// Memory and start.
    pub(crate) footprint: Option<Footprint>,
    /// Cases that could not be measured.
    pub(crate) failures: Vec<Failure>,
    /// How the targets were met.
    pub(crate) verdicts: Vec<Verdict>,
    quick: bool,
    /// What it was measured with and on, a line each.
    context: Vec<String>,
}

/// A case that could not be measured. It costs no other case its rows.
#[derive(Debug)]
pub(crate) struct Failure {
    case: &'static str,
    reason: String,
}

impl Failure {
    pub(crate) fn of(case: &'static str, error: &anyhow::Error) -> Self {
        Self { case, reason: format!("{error:#}") }
    }
}

impl Report {
    pub(crate) fn new(world: &World, quick: bool) -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let model = read("/proc/cpuinfo");
        let model = model.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let model = model.trim_start_matches(['\t', ' ', ':']);
        let mut context = vec![
            format!("Linux {}, {cores} cores, {model}", read("/proc/sys/kernel/osrelease")),
            format!("load average at the start: {}", read("/proc/loadavg")),
            version(world.crimux.as_os_str(), "--version"),
        ];
        for other in &world.versions {
            context.push(format!("{}: {}", other.name, version(other.program.as_os_str(), "--version")));
        }
        for (peer, flag) in [("nginx", "-v"), ("haproxy", "-v")] {
            context.push(match find(peer) {
                Some(program) => version(program.as_os_str(), flag),
                None => format!("{peer} IS MISSING and left out"),
            });
        }
        let (cases, failures, verdicts) = (Vec::new(), Vec::new(), Vec::new());
        Self { cases, footprint: None, failures, verdicts, quick, context }
    }

    /// Tells whether nothing was measured, nor failed.
    pub(crate) fn is_empty(&self) -> bool {
        self.cases.is_empty() && self.footprint.is_none() && self.failures.is_empty()
    }

    /// Returns everything as JSON; times in microseconds, memory in bytes.
    pub(crate) fn to_json(&self) -> Value {
        let rows: Vec<_> = self.rows().map(|(case, row)| row_json(case, row)).collect();
        let verdicts = self.verdicts.iter().map(|verdict| {
            json!({ "what": verdict.what, "value": verdict.value, "best": verdict.best,
                    "target": verdict.target,
                    "unit": verdict.unit.trim(), "verdict": verdict.word() })
        });
        let footprint = self.footprint.as_ref().map(|footprint| {
            let idle = footprint.idle.iter().map(|(name, memory)| (name.clone(), memory.resident.into()));
            json!({ "idle_rss": idle.collect::<serde_json::Map<_, _>>(),
                    "large_rss": footprint.large.resident, "large_rss_peak": footprint.large.peak,
                    "start_ms": footprint.start, "start_large_ms": footprint.start_large,
                    "events_cpu_ms_per_second": footprint.events })
        });
        let failures =
            self.failures.iter().map(|Failure { case, reason }| json!({ "case": case, "reason": reason }));
        json!({ "quick": self.quick, "context": self.context, "rows": rows, "footprint": footprint,
                "failures": failures.collect::<Vec<_>>(), "verdicts": verdicts.collect::<Vec<_>>() })
    }

    fn rows(&self) -> impl Iterator<Item = (&Measured, &Row)> {
        self.cases.iter().flat_map(|case| case.rows.iter().map(move |row| (case, row)))
    }
}

fn version(program: &std::ffi::OsStr, flag: &str) -> String {
    let Ok(output) = Command::new(program).arg(flag).output() else { return String::new() };
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_owned()
}

fn row_json(case: &Measured, row: &Row) -> Value {
    let rounds = row.samples.iter().map(|sample| {
        json!({ "p50_us": sample.p50.as_secs_f64() * 1e6, "p99_us": sample.p99.as_secs_f64() * 1e6,
                "per_second": sample.rate, "count": sample.count,
                "cpu_us": sample.cpu.map(|cpu| cpu.as_secs_f64() * 1e6) })
    });
    json!({ "case": case.name, "contender": row.name,
            "offered": !row.samples.is_empty(),
            "p50_us": row.median(p50).map(|seconds| seconds * 1e6),
            "best_p50_us": row.best(p50).map(|seconds| seconds * 1e6),
            "p99_us": row.median(|sample| Some(sample.p99.as_secs_f64() * 1e6)),
            "per_second": row.median(|sample| Some(sample.rate)),
            "cpu_us": row.median(cpu).map(|seconds| seconds * 1e6),
            "best_cpu_us": row.best(cpu).map(|seconds| seconds * 1e6),
            "ratio_to_direct": row.ratio(&case.rows[0], p50),
            "rss": row.resident, "rounds": rounds.collect::<Vec<_>>() })
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.context {
            writeln!(out, "{line}")?;
        }
        if self.quick {
            writeln!(out, "A QUICK RUN: these numbers show that everything works and nothing else.")?;
        }
        for case in &self.cases {
            writeln!(out, "\n{}: {}", case.name, plan::describe(case.name))?;
            let head =
                ["x direct", "p50 µs", "best p50", "p99 µs", "per second", "CPU µs", "best CPU", "RSS MiB"];
            let head = head.map(|name| format!("{name:>11}")).concat();
            writeln!(out, "  {:<14}{head}", "")?;
            case.rows.iter().try_for_each(|row| write_row(out, case, row))?;
        }
        if let Some(footprint) = &self.footprint {
            write_footprint(out, footprint)?;
        }
        for Failure { case, reason } in &self.failures {
            writeln!(out, "\n{case} FAILED, and has no rows: {reason}")?;
        }
        writeln!(
            out,
            "\nx direct, p50, p99, per second and CPU are medians over the rounds; a busy machine moves them, and the best"
        )?;
        writeln!(out, "rounds less. CPU is that of the proxy's process per call, user and system.")?;
        writeln!(out, "\ntargets")?;
        for verdict in &self.verdicts {
            let Verdict { what, target, unit, .. } = verdict;
            let value = verdict.value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}{unit}"));
            let limit = format!("<= {target}{unit}");
            let best =
                verdict.best.map_or_else(String::new, |best| format!(" (best rounds: {best:.2}{unit})"));
            writeln!(out, "  {what:<61} {value:>10}  {limit:<12}{}{best}", verdict.word())?;
        }
        Ok(())
    }
}

fn write_row(out: &mut fmt::Formatter<'_>, case: &Measured, row: &Row) -> fmt::Result {
    if row.samples.is_empty() {
        return writeln!(out, "  {:<14}{:>11}", row.name, "not offered");
    }
    let show = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| format!("{:>11}", "-"), |value| format!("{value:>11.digits$}"))
    };
    let cells = [
        show(row.ratio(&case.rows[0], p50), 2),
        show(row.median(p50).map(|seconds| seconds * 1e6), 1),
        show(row.best(p50).map(|seconds| seconds * 1e6), 1),
        show(row.median(|sample| Some(sample.p99.as_secs_f64() * 1e6)), 1),
        show(row.median(|sample| Some(sample.rate)), 0),
        show(row.median(cpu).map(|seconds| seconds * 1e6), 1),
        show(row.best(cpu).map(|seconds| seconds * 1e6), 1),
        row.resident.map_or_else(|| show(None, 0), |bytes| format!("{:>11}", mib(bytes))),
    ];
    writeln!(out, "  {:<14}{}", row.name, cells.concat())
}

fn write_footprint(out: &mut fmt::Formatter<'_>, footprint: &Footprint) -> fmt::Result {
    let Footprint { idle, large, start, start_large, events: [quiet, listened] } = footprint;
    writeln!(out, "\nfootprint: memory (RSS), start and CPU at rest")?;
    for (name, memory) in idle {
        writeln!(out, "  {name} idle, one empty backend: {} MiB", mib(memory.resident))?;
    }
    let (resident, peak) = (mib(large.resident), mib(large.peak));
    writeln!(
        out,
        "  crimux, 8 backends, 500 pods, 5000 containers, all known: {resident} MiB (peak {peak} MiB)"
    )?;
    writeln!(out, "  crimux, start to first list, 500 pods and 1000 containers saved: {start:.1} ms")?;
    writeln!(out, "  crimux, start to first list, that large node saved: {start_large:.1} ms")?;
    writeln!(
        out,
        "  crimux, 110 pods on a backend without an event stream: {quiet:.2} ms of CPU a second while nobody listens to \
         events, {listened:.2} ms while one client does"
    )
}

fn mib(bytes: u64) -> String {
    let tenths = bytes * 10 / (1 << 20);
    format!("{}.{}", tenths / 10, tenths % 10)
}
