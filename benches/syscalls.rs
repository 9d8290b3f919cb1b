//! Looks into the contenders instead of timing them: system calls per call, and a profile of crimux.
//!
//! Both slow what they look at by far, so no time is reported.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::Client;
use crate::fleet::{Contender, Stock, World, find};
use crate::load::{count_as_float, exactly};
use crate::plan;

/// What is looked at, and how many calls of it.
const COUNTED: [(&str, usize); 2] = [("status-1", 2000), ("list-500", 200)];
const STOCK: Stock = Stock::of(250, 500);

/// Prints the system calls per call of every proxy.
pub(crate) async fn count(world: &World) -> Result<()> {
    let strace = find("strace").context("strace is not installed (apt-get install strace)")?;
    let backends = world.backends(1, STOCK).await?;
    let mut contenders = vec![world.crimux(&backends, STOCK.containers).await?];
    contenders.extend(world.peers(&backends[0], STOCK.containers).await);
    println!("system calls per call:");
    for (case, calls) in COUNTED {
        let load = plan::load(case, &backends[0]).await?;
        for contender in &contenders {
            let client = Client::connect(&contender.socket).await?;
            exactly(&client, &load, 100).await?;
            let output = world.dir.join("strace");
            let mut tracing = attach(&strace, contender.process.id(), &output).await?;
            exactly(&client, &load, calls).await?;
            kill(Pid::from_raw(tracing.id().cast_signed()), Signal::SIGINT)?;
            tracing.wait()?;
            let counts = parse(&std::fs::read_to_string(&output)?);
            let per_call = |count: usize| count_as_float(count) / count_as_float(calls);
            let shown = counts.iter().filter(|(_, count)| per_call(**count) >= 0.01);
            let shown: Vec<_> = shown.map(|(name, n)| format!("{name} {:.2}", per_call(*n))).collect();
            let total = per_call(counts.values().sum());
            println!("  {case:<10} {:<8} {total:>6.2}  = {}", contender.name, shown.join(", "));
        }
    }
    Ok(())
}

/// Attaches strace and waits until it has.
async fn attach(strace: &Path, process: Pid, output: &Path) -> Result<std::process::Child> {
    let mut command = Command::new(strace);
    command.args(["-c", "-f", "-U", "name,calls", "-p", &process.to_string(), "-o"]).arg(output);
    let mut tracing = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let started = Instant::now();
    let traced = || {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
    };
    while !traced() {
        ensure!(tracing.try_wait()?.is_none(), "strace cannot attach");
        ensure!(started.elapsed() < Duration::from_secs(10), "strace does not attach");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(tracing)
}

/// Reads the names and counts of strace's summary.
fn parse(summary: &str) -> BTreeMap<String, usize> {
    let counted = summary.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (name, calls) = (words.next()?, words.next()?.parse().ok()?);
        (name != "total").then(|| (name.to_owned(), calls))
    });
    counted.collect()
}

/// Profiles crimux alone under callgrind while it serves `calls` calls of `case` (default: `status-1`).
pub(crate) async fn profile(world: &World, case: &str, calls: usize) -> Result<()> {
    let valgrind = find("valgrind").context("valgrind is not installed (apt-get install valgrind)")?;
    let control = find("callgrind_control").context("callgrind_control is missing")?;
    let case = if case.is_empty() { "status-1" } else { case };
    let stock = plan::stock_of(case).with_context(|| format!("{case} is no case over one backend"))?;
    let backends = world.backends(1, stock).await?;
    let output = world.dir.join("callgrind.out");
    let wrap = ["--tool=callgrind", "--instr-atstart=no", "--collect-atstart=yes", "--quiet"];
    let mut words = vec![valgrind.display().to_string()];
    words.extend(wrap.map(str::to_owned));
    words.push(format!("--callgrind-out-file={}", output.display()));
    *world.wrap.borrow_mut() = words;
    let crimux: Contender = world.crimux(&backends, stock.containers).await?;
    let load = plan::load(case, &backends[0]).await?;
    let client = Client::connect(&crimux.socket).await?;
    exactly(&client, &load, 600).await?;
    let process = crimux.process.id().to_string();
    let instrument = |state: &str| Command::new(&control).args(["-i", state, &process]).output();
    instrument("on")?;
    exactly(&client, &load, calls).await?;
    instrument("off")?;
    crimux.process.end().await?;
    println!("{}", output.display());
    Ok(())
}
