//! The benchmark behind `dev/bench`: direct, crimux and two general proxies side by side over one simulated
//! backend.
//!
//! The machine it runs on is noisy and shared, so no contender is measured in one go: all take turns in short
//! rounds, every ratio compares neighbours of one round, and what is reported is the median over the rounds.
//! Client, proxy and backend are processes of one thread each. Nothing here may favour a contender: all get
//! the same bytes, and a reply that differs from the direct one ends the run.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use case::Measured;
use report::{Failure, Report};

mod case;
mod client;
mod fleet;
mod footprint;
mod load;
mod node;
mod plan;
mod process;
mod report;
mod syscalls;
mod verdict;

/// Measures crimux beside the direct call and two general proxies.
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
struct Arguments {
    /// Few and short rounds: shows that everything works, proves nothing.
    #[arg(long)]
    quick: bool,
    /// Write everything that was measured to this file too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only the cases whose name contains this.
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
    /// Count the system calls per call instead (needs strace).
    #[arg(long)]
    syscalls: bool,
    /// Profile crimux instead: this many calls of each case under callgrind (needs valgrind).
    #[arg(long, value_name = "CALLS")]
    callgrind: Option<usize>,
    /// Make kubelet's calls at its pace instead, and print what a node pays a day.
    #[arg(long)]
    node: bool,
    /// Measure this crimux too, in the same rounds and under this name.
    #[arg(long, value_name = "NAME=FILE", value_parser = fleet::parse_version)]
    version_of: Vec<fleet::Version>,
    /// A directory of its own for sockets, configurations and logs.
    #[arg(long)]
    dir: PathBuf,
    /// The crimux to measure.
    #[arg(long)]
    crimux: PathBuf,
    /// The testkit whose simulated runtimes are the backends.
    #[arg(long)]
    testkit: PathBuf,
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Effort {
    rounds: usize,
    /// How long one contender is measured in one round.
    slice: Duration,
    /// How many starts are timed.
    starts: usize,
}

impl Effort {
    const FULL: Self = Self { rounds: 15, slice: Duration::from_millis(160), starts: 7 };
    const QUICK: Self = Self { rounds: 2, slice: Duration::from_millis(60), starts: 2 };
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        done = run(&arguments) => done,
        _ = terminated.recv() => anyhow::bail!("told to end"),
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
    }
}

async fn run(arguments: &Arguments) -> Result<()> {
    let effort = if arguments.quick { Effort::QUICK } else { Effort::FULL };
    let mut world = fleet::World::new(&arguments.dir, &arguments.crimux, &arguments.testkit);
    world.versions.clone_from(&arguments.version_of);
    if arguments.syscalls {
        return syscalls::count(&world).await;
    }
    if let Some(calls) = arguments.callgrind {
        return syscalls::profile(&world, &arguments.only, calls).await;
    }
    if arguments.node {
        return node::measure(&world).await;
    }
    let mut report = Report::new(&world, arguments.quick);
    for group in plan::GROUPS {
        for (case, measured) in plan::run(group, &world, &arguments.only, effort).await {
            match measured {
                Ok(measured) => report.cases.push(measured),
                Err(error) => report.failures.push(Failure::of(case, &error)),
            }
        }
    }
    if "footprint".contains(&arguments.only) {
        eprintln!("bench: footprint: memory and start");
        match footprint::measure(&world, effort).await {
            Ok(footprint) => report.footprint = Some(footprint),
            Err(error) => report.failures.push(Failure::of("footprint", &error)),
        }
    }
    ensure!(!report.is_empty(), "no case is named like that");
    report.verdicts = verdict::judge(&report);
    print!("{report}");
    if let Some(file) = &arguments.json {
        let json = serde_json::to_vec_pretty(&report.to_json())?;
        std::fs::write(file, json).with_context(|| format!("cannot write {}", file.display()))?;
    }
    ensure!(report.failures.is_empty(), "{} of the cases failed", report.failures.len());
    report.cases.iter().try_for_each(Measured::check)
}
