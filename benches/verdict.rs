//! Holds what was measured against the targets: met, missed by less than 15 %, or missed.

use crate::case::{Measured, Sample};
use crate::footprint::Footprint;
use crate::load::count_as_float;
use crate::report::Report;

/// What is still close to a target.
const CLOSE: f64 = 1.15;
const MIB: f64 = 1024.0 * 1024.0;

/// One target and how it was met.
#[derive(Debug, Clone)]
pub(crate) struct Verdict {
    /// The target in words.
    pub(crate) what: String,
    /// What was measured; `None` if it could not be.
    pub(crate) value: Option<f64>,
    /// The same by the best round of each side, where sides are compared.
    pub(crate) best: Option<f64>,
    /// The most it may be.
    pub(crate) target: f64,
    /// Of both.
    pub(crate) unit: &'static str,
}

impl Verdict {
    /// Says how the target was met.
    pub(crate) fn word(&self) -> &'static str {
        match self.value {
            None => "not measured",
            Some(value) if value <= self.target => "met",
            Some(value) if value <= self.target * CLOSE => "within 1.15x",
            Some(_) => "MISSED",
        }
    }
}

/// Judges by what was measured; cases that were left out by `--only` are left out here too.
pub(crate) fn judge(report: &Report) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for case in &report.cases {
        verdicts.extend(judge_case(case));
    }
    verdicts.extend(judge_growth(report));
    verdicts.extend(report.footprint.as_ref().into_iter().flat_map(judge_footprint));
    verdicts
}

fn judge_case(case: &Measured) -> Vec<Verdict> {
    let times = |what: String, [value, best]: [Option<f64>; 2], target| Verdict {
        what,
        value,
        best,
        target,
        unit: "x",
    };
    match case.name {
        "status-1" | "status-16" => {
            let say = |of: &str| format!("{}: {of} over the better of nginx and HAProxy", case.name);
            vec![
                times(say("p50"), against_better(case, p50), 1.0),
                times(say("CPU per call"), against_better(case, cpu), 1.0),
            ]
        }
        name if name.starts_with("list") => {
            let against = |value| ratios(case, "crimux", "nginx", value);
            vec![
                times(format!("{name}: p50 over nginx"), against(p50), 1.05),
                times(format!("{name}: CPU over nginx"), against(cpu), 1.0),
            ]
        }
        name if name.starts_with("fan-out") => [2, 3, 4, 8]
            .map(|count| {
                let value = ratios(case, &format!("crimux over {count}"), "crimux over 1", cpu);
                times(format!("{name}: CPU over {count} backends over that over one"), value, 1.1)
            })
            .into(),
        "run-sandbox" => {
            let value = case.row("crimux").zip(case.row("direct")).and_then(|(crimux, direct)| {
                let pairs = std::iter::zip(&crimux.samples, &direct.samples);
                let added =
                    pairs.map(|(crimux, direct)| (crimux.p50.as_secs_f64() - direct.p50.as_secs_f64()) * 1e3);
                crate::case::median(added.collect())
            });
            let what = "run-sandbox: added to the p50".to_owned();
            vec![Verdict { what, value, best: None, target: 0.2, unit: " ms" }]
        }
        _ => Vec::new(),
    }
}

/// Ten times the bytes may cost ten times as much, and a list of one pod as much among ten times as many.
fn judge_growth(report: &Report) -> impl Iterator<Item = Verdict> {
    let cost = |case: &str, row: &str| {
        let samples = &report.cases.iter().find(|measured| measured.name == case)?.row(row)?.samples;
        crate::case::median(samples.iter().filter_map(cpu).collect())
    };
    let pairs = [
        (("list-500", "crimux"), ("list-5000", "crimux"), 10.0),
        (("one-pod-110", "crimux over 4"), ("one-pod-1000", "crimux over 4"), 1.2),
    ];
    pairs.into_iter().filter_map(move |(few, many, target)| {
        let value = cost(many.0, many.1)? / cost(few.0, few.1)?;
        let what = format!("growth: CPU of {}, {}, over {}, {}", many.0, many.1, few.0, few.1);
        Some(Verdict { what, value: Some(value), best: None, target, unit: "x" })
    })
}

fn judge_footprint(footprint: &Footprint) -> Vec<Verdict> {
    let mib = |bytes: u64| Some(count_as_float(usize::try_from(bytes).unwrap_or(usize::MAX)) / MIB);
    let idle = footprint.idle.iter().find(|(name, _)| name == "crimux");
    let memory = |what: &str, value, target| Verdict {
        what: what.to_owned(),
        value,
        best: None,
        target,
        unit: " MiB",
    };
    vec![
        memory("memory: RSS idle", idle.and_then(|(_, memory)| mib(memory.resident)), 12.0),
        memory("memory: RSS, 8 backends, 5000 containers", mib(footprint.large.resident), 24.0),
        Verdict {
            what: "start: to the first list, 500 pods saved".to_owned(),
            value: Some(footprint.start),
            best: None,
            target: 50.0,
            unit: " ms",
        },
    ]
}

/// The larger of the ratios to nginx and to `HAProxy` is the one to the better of the two.
fn against_better(case: &Measured, value: fn(&Sample) -> Option<f64>) -> [Option<f64>; 2] {
    let peers = ["nginx", "haproxy"].map(|peer| ratios(case, "crimux", peer, value));
    [0, 1].map(|kind| peers.iter().filter_map(|ratios| ratios[kind]).max_by(f64::total_cmp))
}

/// Returns the ratio of two rows by the median over the rounds, and by the best round of each.
fn ratios(case: &Measured, row: &str, other: &str, value: fn(&Sample) -> Option<f64>) -> [Option<f64>; 2] {
    let Some((row, other)) = case.row(row).zip(case.row(other)) else { return [None, None] };
    let best = row.best(value).zip(other.best(value)).map(|(row, other)| row / other);
    [row.ratio(other, value), best]
}

/// The median time of a call, in seconds.
#[allow(clippy::unnecessary_wraps)] // All that can be compared has this form.
pub(crate) fn p50(sample: &Sample) -> Option<f64> {
    Some(sample.p50.as_secs_f64())
}

/// The CPU time of a call, in seconds.
pub(crate) fn cpu(sample: &Sample) -> Option<f64> {
    sample.cpu.map(|cpu| cpu.as_secs_f64())
}
