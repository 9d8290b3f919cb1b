//! Drives `dev/bed`: real container runtimes in a private namespace, for one test.
//!
//! What crimux promises is about real runtimes, so its last word is a test against them. A `Bed` is one
//! private world of containerds; it lives exactly as long as the value, and if the test process dies, however
//! it dies, the end of a pipe ends the bed. Nothing here knows how a runtime is configured: that is
//! `dev/bed`'s.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub mod pods;

/// The script that does the work.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../dev/bed");

/// Lines of each log that a failing test shows.
const LOG_TAIL: usize = 20;

/// Real runtimes in a private namespace, ended when dropped.
///
/// Sockets of its backends can be dialled from outside; everything on TCP (a remote node, crimux's metrics)
/// only from inside, see [`Bed::run`] and [`Bed::spawn`].
#[derive(Debug)]
pub struct Bed {
    directory: PathBuf,
    holder: Child,
    /// The bed ends when the other side reads the end of this pipe.
    lifeline: Option<ChildStdin>,
}

/// A process running inside a bed, killed when dropped.
#[derive(Debug)]
pub struct Inside<'bed> {
    bed: &'bed Bed,
    name: String,
}

impl Bed {
    /// Says whether real runtimes can run here.
    ///
    /// # Errors
    /// The reason in one line: not asked for (`CRIMUX_REAL` is not `1`), not root, packages missing, no
    /// namespaces.
    pub fn available() -> Result<(), String> {
        if std::env::var_os("CRIMUX_REAL").is_none_or(|value| value != "1") {
            return Err("real runtimes were not asked for (./dev/test real, or CRIMUX_REAL=1)".to_owned());
        }
        let output = Command::new(SCRIPT).arg("check").output().map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(said.lines().last().unwrap_or("dev/bed check failed").to_owned())
    }

    /// Brings up a bed for a test, or reports loudly that the test is skipped.
    ///
    /// # Panics
    /// If the machine can run a bed and it still does not come up: that is a failure, not a skip.
    pub fn up_or_skip(backends: &[(&str, &str)]) -> Option<Self> {
        if let Err(why) = Self::available() {
            skipped(&why);
            return None;
        }
        Some(Self::up_with(backends).unwrap_or_else(|error| panic!("the bed does not come up: {error}")))
    }

    /// Brings up the three usual backends: `a` (containerd and runc), `b` (crun), `g` (gVisor).
    ///
    /// # Errors
    /// What `dev/bed` said when it does not come up.
    pub fn up() -> io::Result<Self> {
        Self::up_with(&[("a", "runc"), ("b", "crun"), ("g", "runsc")])
    }

    /// Brings up the named backends, each with its default runtime (`runc`, `crun` or `runsc`, with
    /// `@VERSION` of its containerd where that matters).
    ///
    /// # Errors
    /// What `dev/bed` said when it does not come up.
    pub fn up_with(backends: &[(&str, &str)]) -> io::Result<Self> {
        let directory = fresh_directory()?;
        let list: Vec<_> = backends.iter().map(|(name, runtime)| format!("{name}:{runtime}")).collect();
        let mut holder = Command::new(SCRIPT)
            .arg("hold")
            .env("BED", &directory)
            .env("BED_BACKENDS", list.join(" "))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(directory.join("hold.err"))?)
            // A runner that kills the test's whole process group must not kill what cleans up after it.
            .process_group(0)
            .spawn()?;
        let lifeline = holder.stdin.take();
        let mut line = String::new();
        if let Some(stdout) = holder.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let bed = Self { directory, holder, lifeline };
        if line.trim() == "ready" {
            return Ok(bed);
        }
        let said = std::fs::read_to_string(bed.directory.join("hold.err"))?;
        Err(io::Error::other(format!("dev/bed hold: {}", said.trim())))
    }

    /// The bed's own directory: sockets and state below `run/`, logs in `log/`, certificates in `tls/`.
    /// Seen under the same path from inside and outside.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The CRI socket of a backend.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.directory.join("run").join(name).join("containerd.sock")
    }

    /// Runs a command inside the namespace and waits for its end.
    ///
    /// # Errors
    /// If it cannot be started; its own failure is in the output's status.
    pub fn run(&self, command: &[&str]) -> io::Result<Output> {
        self.script("run").args(command).output()
    }

    /// Starts a program inside the namespace; what it prints goes to [`Bed::log`] under that name.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&self, name: &str, program: &Path, arguments: &[&str]) -> io::Result<Inside<'_>> {
        checked(self.script("spawn").arg(name).arg(program).args(arguments))?;
        Ok(Inside { bed: self, name: name.to_owned() })
    }

    /// Ends a backend with SIGKILL and returns when it is gone; its containers live on.
    ///
    /// # Errors
    /// If there is no such backend.
    pub fn kill(&self, name: &str) -> io::Result<()> {
        checked(self.script("kill").arg(name))
    }

    /// Freezes a backend with SIGSTOP: connections stay, answers do not come.
    ///
    /// # Errors
    /// If there is no such backend.
    pub fn stop(&self, name: &str) -> io::Result<()> {
        checked(self.script("stop").arg(name))
    }

    /// Lets a frozen backend go on (SIGCONT).
    ///
    /// # Errors
    /// If there is no such backend.
    pub fn cont(&self, name: &str) -> io::Result<()> {
        checked(self.script("cont").arg(name))
    }

    /// Kills a backend if it runs, starts it again and returns when it serves.
    ///
    /// # Errors
    /// If it does not come back.
    pub fn restart(&self, name: &str) -> io::Result<()> {
        checked(self.script("restart").arg(name))
    }

    /// Adds one more containerd; `net` is the first three numbers of its pods' network, such as `10.88.7`.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn backend(&self, name: &str, runtime: &str, net: &str) -> io::Result<()> {
        checked(self.script("backend").args([name, runtime, net]))
    }

    /// Adds the remote node `r1`: CRI with mTLS on 10.77.1.2:10010, streaming on 10.77.1.2:10011,
    /// certificates in `tls/` of [`Bed::directory`].
    ///
    /// # Errors
    /// If it does not come up.
    pub fn node(&self) -> io::Result<()> {
        checked(&mut self.script("node"))
    }

    /// Adds a virtual machine with a kernel of its own: CRI with mTLS on 10.99.0.2:10010, streaming on
    /// :10011.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn vm(&self) -> io::Result<()> {
        checked(&mut self.script("vm"))
    }

    /// Adds a registry with passwords: images `private.bed/{alice,bob}/{busybox,web}:latest`, users
    /// `alice:wonderland` and `bob:builder`.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn registry_auth(&self) -> io::Result<()> {
        checked(&mut self.script("registry-auth"))
    }

    /// What a backend or a spawned program has printed so far.
    ///
    /// # Errors
    /// If there is no such log.
    pub fn log(&self, name: &str) -> io::Result<String> {
        std::fs::read_to_string(self.directory.join("log").join(format!("{name}.log")))
    }

    fn script(&self, verb: &str) -> Command {
        let mut command = Command::new(SCRIPT);
        command.arg(verb).env("BED", &self.directory).stdin(Stdio::null());
        command
    }

    fn show_logs(&self) {
        let Ok(entries) = std::fs::read_dir(self.directory.join("log")) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let mut bytes = Vec::new();
            if File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes)).is_ok() {
                let text = String::from_utf8_lossy(&bytes);
                let lines: Vec<_> = text.lines().collect();
                let tail = &lines[lines.len().saturating_sub(LOG_TAIL)..];
                eprintln!("── {} ──\n{}", path.display(), tail.join("\n"));
            }
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        drop(self.lifeline.take());
        // Nothing can be done about an error here; the next bed sweeps what this one left.
        let _ = self.holder.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Inside<'_> {
    /// Sends a signal by its name without `SIG`, such as `HUP`.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn signal(&self, signal: &str) -> io::Result<()> {
        checked(self.bed.script("signal").args([&self.name, signal]))
    }

    /// Ends the process with SIGKILL and returns when it is gone.
    ///
    /// # Errors
    /// If the process is gone already.
    pub fn kill(&self) -> io::Result<()> {
        self.bed.kill(&self.name)
    }

    /// The exit code once the process has ended; 128 plus the signal's number if a signal ended it.
    pub fn exit_code(&self) -> Option<i32> {
        let file = self.bed.directory.join("run").join(format!("{}.exit", self.name));
        std::fs::read_to_string(file).ok()?.trim().parse().ok()
    }

    /// Waits for the end of the process and returns its exit code.
    ///
    /// # Errors
    /// `TimedOut` if it still runs after that time.
    pub fn wait(&self, limit: Duration) -> io::Result<i32> {
        let end = Instant::now() + limit;
        loop {
            match self.exit_code() {
                Some(code) => return Ok(code),
                None if Instant::now() > end => return Err(io::ErrorKind::TimedOut.into()),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// What the process has printed so far, both streams.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn log(&self) -> io::Result<String> {
        self.bed.log(&self.name)
    }

    /// The memory the process occupies (`VmRSS`), in bytes.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn resident_bytes(&self) -> io::Result<u64> {
        let pid_file = self.bed.directory.join("run").join(format!("{}.pid", self.name));
        let pid = std::fs::read_to_string(pid_file)?;
        let output = self.bed.run(&["cat", &format!("/proc/{}/status", pid.trim())])?;
        let status = String::from_utf8_lossy(&output.stdout);
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::other(format!("{} is gone", self.name)))
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if self.exit_code().is_none() {
            // It may end between the question and the signal.
            let _ = self.kill();
        }
    }
}

/// Reports loudly that the running test is skipped: on stderr, and in the file named by `CRIMUX_SKIPS`, which
/// `dev/test` shows at its end (test runners hide what a passing test prints).
pub fn skipped(why: &str) {
    let current = std::thread::current();
    let line = format!("{}: {why}\n", current.name().unwrap_or("a test"));
    eprint!("SKIPPED: {line}");
    if let Some(path) = std::env::var_os("CRIMUX_SKIPS") {
        let file = OpenOptions::new().create(true).append(true).open(&path);
        // One write, so that tests that skip at the same time do not mix their lines.
        if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
            eprintln!("cannot write {}: {error}", path.display());
        }
    }
}

/// Makes an empty directory with a short path: Unix socket paths are limited to 107 bytes.
fn fresh_directory() -> io::Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let directory = PathBuf::from(format!("/tmp/bed-{}-{number}", std::process::id()));
    match std::fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::create_dir(&directory)?;
    Ok(directory)
}

/// Runs a command to its end and turns its failure into an error that says what it said.
fn checked(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{command:?}: {}: {}", output.status, said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bed_serves_dies_and_leaves_nothing() {
        let Some(bed) = Bed::up_or_skip(&[("a", "runc")]) else { return };
        let directory = bed.directory().to_owned();
        assert!(std::os::unix::net::UnixStream::connect(bed.socket("a")).is_ok());
        bed.kill("a").unwrap();
        assert!(std::os::unix::net::UnixStream::connect(bed.socket("a")).is_err());
        bed.restart("a").unwrap();
        assert!(std::os::unix::net::UnixStream::connect(bed.socket("a")).is_ok());
        drop(bed);
        assert!(!directory.exists());
    }

    #[test]
    fn a_program_inside_is_seen_signalled_and_its_exit_code_known() {
        let Some(bed) = Bed::up_or_skip(&[]) else { return };
        let sleeper = bed.spawn("sleeper", Path::new("sleep"), &["600"]).unwrap();
        assert!(sleeper.resident_bytes().unwrap() > 0);
        assert_eq!(sleeper.exit_code(), None);
        sleeper.signal("TERM").unwrap();
        assert_eq!(sleeper.wait(Duration::from_secs(10)).unwrap(), 128 + 15);

        let speaker = bed.spawn("speaker", Path::new("sh"), &["-c", "echo hello; exit 3"]).unwrap();
        assert_eq!(speaker.wait(Duration::from_secs(10)).unwrap(), 3);
        assert_eq!(speaker.log().unwrap(), "hello\n");
    }

    #[test]
    fn a_command_inside_has_the_network_of_the_bed_alone() {
        let Some(bed) = Bed::up_or_skip(&[]) else { return };
        let inside = bed.run(&["readlink", "/proc/self/ns/net"]).unwrap().stdout;
        let outside = std::fs::read_link("/proc/self/ns/net").unwrap();
        assert!(inside.starts_with(b"net:["));
        assert_ne!(String::from_utf8_lossy(&inside).trim(), outside.to_string_lossy());
    }
}
