//! One case: its contenders take turns in short rounds, and what each did in each round is kept.
//!
//! A ratio is taken within a round, where both sides met the same noise, and then the median over the rounds.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::unistd::Pid;

use crate::Effort;
use crate::client::{Client, PATIENCE, Target};
use crate::load::{Load, count_as_float};
use crate::process;

/// How long each contender is warmed up, as a part of a slice.
const WARM_UP: u32 = 4;

/// One contender in one case.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Its name in the table.
    pub(crate) name: String,
    /// Where it listens.
    pub(crate) socket: PathBuf,
    /// The process to watch; `None` for the direct call.
    pub(crate) process: Option<Pid>,
    /// Whether its reply is the direct one's, byte for byte.
    pub(crate) same_bytes: bool,
}

/// What one contender did in one round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// Median time of a call.
    pub(crate) p50: Duration,
    /// 99th percentile.
    pub(crate) p99: Duration,
    /// Calls or messages per second.
    pub(crate) rate: f64,
    /// How many there were.
    pub(crate) count: usize,
    /// CPU time of the proxy per call.
    pub(crate) cpu: Option<Duration>,
}

/// All rounds of one contender.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// The contender.
    pub(crate) name: String,
    /// One sample for each round; none if it does not offer this.
    pub(crate) samples: Vec<Sample>,
    /// Its memory after the last round, in bytes.
    pub(crate) resident: Option<u64>,
}

/// A case that was measured.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    /// The name of the case.
    pub(crate) name: &'static str,
    /// The direct call first.
    pub(crate) rows: Vec<Row>,
}

impl Sample {
    /// Sums up the times of the calls that were made in `elapsed`.
    pub(crate) fn of(mut times: Vec<Duration>, elapsed: Duration) -> Self {
        times.sort_unstable();
        let at = |percent: usize| {
            let place = (times.len() * percent / 100).min(times.len().saturating_sub(1));
            times.get(place).copied().unwrap_or_default()
        };
        Self {
            p50: at(50),
            p99: at(99),
            rate: count_as_float(times.len()) / elapsed.as_secs_f64(),
            count: times.len(),
            cpu: None,
        }
    }
}

impl Row {
    /// Returns the median over the rounds; `None` if there is nothing to take it of.
    pub(crate) fn median(&self, value: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        median(self.samples.iter().filter_map(value).collect())
    }

    /// Returns the lowest value of all rounds: what a busy machine disturbs least.
    pub(crate) fn best(&self, value: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        self.samples.iter().filter_map(value).min_by(f64::total_cmp)
    }

    /// Returns the median over the rounds of this row's value divided by that of `other` in the same round.
    pub(crate) fn ratio(&self, other: &Self, value: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        let pairs = std::iter::zip(&self.samples, &other.samples);
        median(pairs.filter_map(|(mine, other)| Some(value(mine)? / value(other)?)).collect())
    }
}

impl Measured {
    /// Finds the row of a contender.
    pub(crate) fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name && !row.samples.is_empty())
    }

    /// Fails if a row cannot be true.
    pub(crate) fn check(&self) -> Result<()> {
        for Row { name, samples, .. } in &self.rows {
            for sample in samples {
                let sane = sample.count > 0 && sample.rate > 0.0 && Duration::ZERO < sample.p50;
                ensure!(sane && sample.p50 <= sample.p99, "{}, {name}: {sample:?} cannot be", self.name);
            }
        }
        ensure!(self.row("direct").is_some(), "{} has no direct row", self.name);
        Ok(())
    }
}

/// Measures one case; the first entry is the direct call.
pub(crate) async fn measure(
    name: &'static str,
    entries: &[Entry],
    load: &Load,
    effort: Effort,
) -> Result<Measured> {
    let backend = Client::connect(&entries[0].socket).await?;
    let mut clients = Vec::new();
    for entry in entries {
        clients.push(Client::connect(&entry.socket).await?);
    }
    let mut rows: Vec<_> = entries
        .iter()
        .map(|entry| Row { name: entry.name.clone(), samples: Vec::new(), resident: None })
        .collect();
    compare(name, entries, &clients, load).await?;
    let mut offered = vec![true; entries.len()];
    for (place, entry) in entries.iter().enumerate() {
        if let Err(error) = load.run(&clients[place], &backend, effort.slice / WARM_UP).await {
            ensure!(matches!(load, Load::Events) && place > 0, "{name}, {}: {error:#}", entry.name);
            eprintln!("bench: {name}: {}: not offered: {error:#}", entry.name);
            offered[place] = false;
        }
    }
    for round in 0..effort.rounds {
        // Nobody always follows the same neighbour.
        for turn in 0..entries.len() {
            let place = (turn + round) % entries.len();
            if !offered[place] {
                continue;
            }
            let before = entries[place].process.map(process::cpu).transpose()?;
            let mut sample = load.run(&clients[place], &backend, effort.slice).await?;
            if let (Some(process), Some(before)) = (entries[place].process, before) {
                let calls = u32::try_from(sample.count.max(1)).unwrap_or(u32::MAX);
                sample.cpu = Some(process::cpu(process)?.saturating_sub(before) / calls);
            }
            rows[place].samples.push(sample);
        }
    }
    for (row, entry) in std::iter::zip(&mut rows, entries) {
        row.resident = entry.process.map(process::memory).transpose()?.map(|memory| memory.resident);
    }
    Ok(Measured { name, rows })
}

/// Fails if a contender's reply is not the direct one's.
async fn compare(name: &str, entries: &[Entry], clients: &[Client], load: &Load) -> Result<()> {
    let Load::Calls { method, messages, .. } = load else { return Ok(()) };
    let target = Target::runtime(method);
    let direct = clients[0].fetch(&target, messages[0].clone()).await?;
    for (entry, client) in std::iter::zip(entries, clients).filter(|(entry, _)| entry.same_bytes) {
        let reply = tokio::time::timeout(PATIENCE, client.fetch(&target, messages[0].clone())).await??;
        ensure!(reply == direct, "{name}: the reply through {} is not the direct one", entry.name);
    }
    Ok(())
}

/// Returns the median of some values.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get(values.len().saturating_sub(1) / 2)?;
    Some(f64::midpoint(lower, upper))
}
