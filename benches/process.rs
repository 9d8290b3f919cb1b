//! A process that is measured: started, asked for its CPU time and memory, ended with this value.
//!
//! Its ID stands in the file `pids` of the run's directory while it lives, so that `dev/bench` can end it if
//! the benchmark itself is killed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a process may take to end when it is asked to.
const FAREWELL: Duration = Duration::from_secs(10);

/// A running process.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    note: PathBuf,
    log: PathBuf,
}

/// Memory of a process, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Resident now.
    pub(crate) resident: u64,
    /// The most that was ever resident.
    pub(crate) peak: u64,
}

impl Process {
    /// Starts `command`; what it prints goes to `NAME.log` in `dir`.
    pub(crate) fn start(dir: &Path, name: &str, command: &mut Command) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log)?;
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .env_remove("CRIMUX_LOG")
            .env_remove("NOTIFY_SOCKET")
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let note = dir.join("pids").join(child.id().to_string());
        std::fs::write(&note, &program)?;
        Ok(Self { child, note, log })
    }

    /// Returns its ID.
    pub(crate) fn id(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Fails if it has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            bail!("it ended with {status}: {}", log.lines().last().unwrap_or_default());
        }
        Ok(())
    }

    /// Asks it to end and waits until it has.
    pub(crate) async fn end(mut self) -> Result<()> {
        kill(self.id(), Signal::SIGTERM)?;
        let asked = Instant::now();
        while self.child.try_wait()?.is_none() {
            anyhow::ensure!(asked.elapsed() < FAREWELL, "a process did not end when it was asked to");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; either way nothing of it is left.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.note);
    }
}

/// Returns the CPU time of all threads of a process, user and system. Its CPU clock counts nanoseconds, /proc
/// only ticks of ten milliseconds.
pub(crate) fn cpu(process: Pid) -> Result<Duration> {
    let clock = nix::time::clock_getcpuclockid(process)?;
    Ok(nix::time::clock_gettime(clock)?.into())
}

/// Returns the memory of a process.
pub(crate) fn memory(process: Pid) -> Result<Memory> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Ok(Memory { resident: field("VmRSS:").context("no VmRSS")?, peak: field("VmHWM:").context("no VmHWM")? })
}
