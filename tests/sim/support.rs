//! A crimux of the built binary, with a directory of its own, in front of simulated runtimes.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use testkit::Client;
use testkit::runtime::SimRuntime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

/// How long anything may take that must come true.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A running crimux. It is killed when this value is dropped.
pub(crate) struct Crimux {
    /// Dropped first: what still runs would write into a directory that is being removed.
    child: Child,
    /// Holds the configuration, the sockets, the state and the log.
    pub(crate) dir: TempDir,
}

/// Writes the configuration: `backends` by name, each known under its name as handler too; `more` is YAML
/// that is put at the end.
pub(crate) fn config(dir: &TempDir, backends: &[(&str, &SimRuntime)], more: &str) -> String {
    let at = dir.path().display();
    let mut yaml = format!("listen: unix://{at}/crimux.sock\nlisten_owner: self\nstate_dir: {at}/state\n");
    writeln!(yaml, "admin: {{ socket: {at}/admin.sock, http: off }}\nlog: {{ level: debug }}").unwrap();
    writeln!(yaml, "default_backend: {}\nbackends:", backends[0].0).unwrap();
    for (name, runtime) in backends {
        writeln!(yaml, "  {name}: {{ endpoint: \"{}\" }}", runtime.endpoint()).unwrap();
    }
    yaml.push_str("handlers:\n");
    for (name, _) in backends {
        writeln!(yaml, "  {name}: {{ backend: {name} }}").unwrap();
    }
    yaml.push_str(more);
    yaml
}

impl Crimux {
    /// Starts crimux in front of these backends, the first one being the default, and waits until it is
    /// ready.
    pub(crate) async fn start(backends: &[(&str, &SimRuntime)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let yaml = config(&dir, backends, "");
        let crimux = Self::start_in(dir, &yaml);
        crimux.wait_ready().await;
        crimux
    }

    /// Starts crimux with this configuration in this directory; does not wait.
    pub(crate) fn start_in(dir: TempDir, yaml: &str) -> Self {
        std::fs::write(dir.path().join("crimux.yaml"), yaml).unwrap();
        let child = spawn(&dir);
        Self { child, dir }
    }

    /// Waits until `/readyz` says so.
    pub(crate) async fn wait_ready(&self) {
        let ready = async {
            while self.get("/readyz").await.is_none_or(|(code, _)| code != 200) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(SOON, ready).await.is_err() {
            let log = self.log();
            let own: Vec<_> = log.lines().filter(|line| line.contains(" crimux")).collect();
            panic!("not ready: {:?}\n{}", self.get("/readyz").await, own.join("\n"));
        }
    }

    /// Returns the node's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("crimux.sock")
    }

    /// Returns a client of the node's socket.
    pub(crate) fn client(&self) -> Client {
        Client::unix(self.socket())
    }

    /// Writes another configuration over the file.
    pub(crate) fn rewrite(&self, yaml: &str) {
        std::fs::write(self.dir.path().join("crimux.yaml"), yaml).unwrap();
    }

    /// Adds a backend that nobody serves to the file: it is new, so crimux writes a snapshot.
    pub(crate) fn add_backend(&self, name: &str) {
        let yaml = std::fs::read_to_string(self.dir.path().join("crimux.yaml")).unwrap();
        let line = format!("backends:\n  {name}: {{ endpoint: \"unix:///nobody/{name}.sock\" }}\n");
        self.rewrite(&yaml.replacen("backends:\n", &line, 1));
    }

    /// Returns its process ID.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("crimux runs")
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().expect("crimux runs")).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Waits until crimux has ended, and returns its exit code; `None` if a signal ended it.
    pub(crate) async fn ended(&mut self) -> Option<i32> {
        self.ended_within(SOON).await
    }

    /// The same, for an end that may take longer.
    pub(crate) async fn ended_within(&mut self, limit: Duration) -> Option<i32> {
        tokio::time::timeout(limit, self.child.wait()).await.expect("crimux ends").unwrap().code()
    }

    /// Lets crimux end as systemd does, and starts it again with the same directory.
    pub(crate) async fn restart(&mut self) {
        self.signal(Signal::SIGTERM);
        assert_eq!(self.ended().await, Some(0), "{}", self.log());
        self.child = spawn(&self.dir);
    }

    /// Kills crimux as `kill -9` does, and starts it again with the same directory.
    pub(crate) async fn kill_and_start(&mut self) {
        self.child.kill().await.unwrap();
        self.child = spawn(&self.dir);
    }

    /// Kills crimux, and starts it again with another configuration, which is never a reload.
    pub(crate) async fn kill_and_start_with(&mut self, yaml: &str) {
        self.child.kill().await.unwrap();
        self.rewrite(yaml);
        self.child = spawn(&self.dir);
    }

    /// Starts crimux again with the same directory, after it has ended.
    pub(crate) fn start_again(&mut self) {
        self.child = spawn(&self.dir);
    }

    /// Returns what crimux has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Asks the admin socket; `None` while nobody answers.
    pub(crate) async fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = UnixStream::connect(self.dir.path().join("admin.sock")).await.ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nhost: crimux\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.ok()?;
        let (head, body) = reply.split_once("\r\n\r\n")?;
        let code = head.split(' ').nth(1)?.parse().ok()?;
        Some((code, body.to_owned()))
    }

    /// Asks the admin port, which must be configured as `127.0.0.1:0`; returns the code and the whole reply.
    pub(crate) async fn http(&self, method: &str, path: &str) -> (u16, String) {
        let mut stream = tokio::net::TcpStream::connect(self.http_address()).await.unwrap();
        let request = format!("{method} {path} HTTP/1.0\r\nhost: crimux\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        (reply.split(' ').nth(1).unwrap().parse().unwrap(), reply)
    }

    /// Returns where the admin port is, as the log says.
    pub(crate) fn http_address(&self) -> String {
        let log = self.log();
        let line =
            log.lines().rfind(|line| line.contains("admin.http serves")).expect("a configured admin.http");
        line.rsplit("address=").next().unwrap().trim().to_owned()
    }

    /// Returns the value of one series, such as `crimux_backend_up{backend="a"}`.
    pub(crate) async fn metric(&self, series: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics").await?;
        let line =
            text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))?;
        line.rsplit(' ').next()?.parse().ok()
    }
}

fn spawn(dir: &TempDir) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(dir.path().join("log")).unwrap();
    Command::new(env!("CARGO_BIN_EXE_crimux"))
        .args(["serve", "--config"])
        .arg(dir.path().join("crimux.yaml"))
        .env_remove("CRIMUX_LOG")
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}
