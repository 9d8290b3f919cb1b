//! crimux under systemd, whose side of the protocols is played here: socket activation, notification,
//! watchdog.
//!
//! A socket that systemd holds outlives crimux, so a restart refuses no connection. The listening socket is
//! handed over as systemd does it, by file descriptor 3 and `LISTEN_FDS`; where `systemd-socket-activate` is
//! installed it does the same once more.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crimux::shutdown::Shutdown;
use h2::Reason;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::runtime::SimRuntime;
use testkit::{Client, cri, eventually};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tonic::Code;

use crate::support::{SOON, config};

/// Moves the inherited socket from standard input to descriptor 3, as `sd_listen_fds(3)` wants it.
const ACTIVATED: &str =
    "exec 3<&0 0</dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$0\" serve --config \"$1\"";

/// A directory with a configuration, and systemd's ends of what it hands out.
struct Systemd {
    dir: tempfile::TempDir,
    listener: UnixListener,
    notified: tokio::net::UnixDatagram,
}

impl Systemd {
    fn new(runtime: &SimRuntime) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("crimux.yaml"), config(&dir, &[("a", runtime)], "")).unwrap();
        let listener = UnixListener::bind(dir.path().join("crimux.sock")).unwrap();
        let notified = UnixDatagram::bind(dir.path().join("notify.sock")).unwrap();
        notified.set_nonblocking(true).unwrap();
        let notified = tokio::net::UnixDatagram::from_std(notified).unwrap();
        Self { dir, listener, notified }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the service: crimux with the listening socket.
    fn start(&self, watchdog: Option<Duration>) -> Child {
        let socket = Stdio::from(OwnedFd::from(self.listener.try_clone().unwrap()));
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", ACTIVATED, env!("CARGO_BIN_EXE_crimux")]).arg(self.path("crimux.yaml"));
        command.env("NOTIFY_SOCKET", self.path("notify.sock")).env_remove("WATCHDOG_PID");
        if let Some(period) = watchdog {
            command.env("WATCHDOG_USEC", period.as_micros().to_string());
        }
        command.stdin(socket).stdout(Stdio::null()).stderr(log).kill_on_drop(true).spawn().unwrap()
    }

    /// Waits for a notification that says this.
    async fn told(&self, wanted: &str) {
        let mut message = [0; 4096];
        let heard = async {
            loop {
                let length = self.notified.recv(&mut message).await.unwrap();
                let text = String::from_utf8_lossy(&message[..length]).into_owned();
                if text.lines().any(|line| line == wanted) {
                    return;
                }
            }
        };
        tokio::time::timeout(SOON, heard).await.unwrap_or_else(|_| panic!("{wanted}: {}", self.log()));
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().unwrap().try_into().unwrap()), signal).unwrap();
}

async fn ended(child: &mut Child) -> Option<i32> {
    tokio::time::timeout(SOON, child.wait()).await.expect("crimux ends").unwrap().code()
}

/// Tells whether a call was never processed: its connection was accepted by a process that ended, or a
/// graceful shutdown was announced before it was sent (RFC 9113, section 6.8; the h2 crate reports that for
/// calls it has not sent, and for streams beyond the last that GOAWAY names). Every gRPC client sends it
/// again.
pub(crate) fn is_unsent(status: &tonic::Status) -> bool {
    let mut sources =
        std::iter::successors(Some(status as &(dyn std::error::Error + 'static)), |error| error.source());
    let h2 = sources.find_map(|error| error.downcast_ref::<h2::Error>());
    status.code() == Code::Cancelled && status.message() == "operation was canceled"
        || h2.is_some_and(|error| {
            error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR)
        })
}

/// Lists over a connection of its own; returns how many sandboxes there are.
async fn list(socket: &Path) -> Result<usize, String> {
    let mut runtime = Client::unix(socket).runtime();
    let listed = runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default());
    let listed = tokio::time::timeout(SOON, listed).await.map_err(|_| "no answer".to_owned())?;
    match listed {
        Err(status) if is_unsent(&status) => Box::pin(list(socket)).await,
        listed => listed.map(|reply| reply.into_inner().items.len()).map_err(|status| status.to_string()),
    }
}

/// Lists every 50 ms, whether or not the list before was answered, until it is told to stop; returns what it
/// saw.
async fn list_on(socket: PathBuf, answered: Arc<AtomicUsize>, stop: Shutdown) -> Vec<Result<usize, String>> {
    let mut lists = JoinSet::new();
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    while !stop.is_begun() {
        tick.tick().await;
        let (socket, answered) = (socket.clone(), Arc::clone(&answered));
        lists.spawn(async move {
            let seen = list(&socket).await;
            answered.fetch_add(1, Ordering::Relaxed);
            seen
        });
    }
    lists.join_all().await
}

#[tokio::test]
async fn no_list_is_refused_while_crimux_is_restarted_twenty_times() {
    let runtime = SimRuntime::builder("a").sandboxes(5, 5).start().await;
    let systemd = Systemd::new(&runtime);
    let mut crimux = systemd.start(None);
    systemd.told("READY=1").await;
    // The first start knows nothing; it refuses lists until its backend was listed.
    eventually(SOON, async || list(&systemd.path("crimux.sock")).await == Ok(5)).await;
    let (answered, stop) = (Arc::new(AtomicUsize::new(0)), Shutdown::default());
    let client = tokio::spawn(list_on(systemd.path("crimux.sock"), Arc::clone(&answered), stop.clone()));
    for round in 0..20 {
        let before = answered.load(Ordering::Relaxed);
        eventually(SOON, async || answered.load(Ordering::Relaxed) > before).await;
        signal(&crimux, Signal::SIGTERM);
        assert_eq!(ended(&mut crimux).await, Some(0), "round {round}: {}", systemd.log());
        crimux = systemd.start(None);
        systemd.told("READY=1").await;
    }
    stop.begin();
    let seen = client.await.unwrap();
    assert!(seen.len() > 20, "{} lists", seen.len());
    let wrong: Vec<_> = seen.iter().filter(|list| **list != Ok(5)).collect();
    assert!(wrong.is_empty(), "{} of {} lists: {wrong:?}", wrong.len(), seen.len());
    assert!(systemd.path("crimux.sock").exists(), "an inherited socket is not crimux's to remove");
}

#[tokio::test]
async fn the_log_names_the_socket_that_systemd_passed_and_says_that_listen_is_ignored() {
    let runtime = SimRuntime::builder("a").sandboxes(1, 1).start().await;
    let systemd = Systemd::new(&runtime);
    let yaml = config(&systemd.dir, &[("a", &runtime)], "").replace("/crimux.sock", "/other.sock");
    std::fs::write(systemd.path("crimux.yaml"), yaml).unwrap();
    let _crimux = systemd.start(None);
    systemd.told("READY=1").await;
    let (own, other) = (systemd.path("crimux.sock"), systemd.path("other.sock"));
    let log = systemd.log();
    let line = |part: &str| log.lines().find(|line| line.contains(part)).expect(part).to_owned();
    assert!(line(" serving ").contains(&format!("listen={}", own.display())), "{log}");
    let ignored = line("listen is ignored");
    assert!(ignored.contains(own.to_str().unwrap()) && ignored.contains(other.to_str().unwrap()), "{log}");
    assert!(!other.exists());
}

#[tokio::test]
async fn systemd_is_told_of_ready_reload_and_end() {
    let runtime = SimRuntime::builder("a").start().await;
    let systemd = Systemd::new(&runtime);
    let mut crimux = systemd.start(None);
    systemd.told("READY=1").await;
    signal(&crimux, Signal::SIGHUP);
    systemd.told("RELOADING=1").await;
    systemd.told("READY=1").await;
    signal(&crimux, Signal::SIGTERM);
    systemd.told("STOPPING=1").await;
    assert_eq!(ended(&mut crimux).await, Some(0));
}

#[tokio::test]
async fn the_watchdog_is_fed_while_crimux_turns_and_not_while_it_is_stuck() {
    let runtime = SimRuntime::builder("a").start().await;
    let systemd = Systemd::new(&runtime);
    let crimux = systemd.start(Some(Duration::from_millis(400)));
    systemd.told("READY=1").await;
    for _ in 0..3 {
        systemd.told("WATCHDOG=1").await;
    }
    signal(&crimux, Signal::SIGSTOP);
    let stopped = async || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", crimux.id().unwrap())).unwrap();
        stat.rsplit(')').next().unwrap().trim().starts_with('T')
    };
    eventually(SOON, stopped).await;
    let mut message = [0; 4096];
    while systemd.notified.try_recv(&mut message).is_ok() {}
    let fed = tokio::time::timeout(Duration::from_secs(1), systemd.notified.recv(&mut message)).await;
    assert!(fed.is_err(), "nobody feeds it for a crimux that does not turn");
    signal(&crimux, Signal::SIGCONT);
    systemd.told("WATCHDOG=1").await;
}

#[tokio::test]
async fn an_upgrade_tells_systemd_the_new_process_which_keeps_its_socket_and_feeds_the_watchdog() {
    let runtime = SimRuntime::builder("a").sandboxes(2, 2).start().await;
    let systemd = Systemd::new(&runtime);
    let mut crimux = systemd.start(Some(Duration::from_secs(2)));
    systemd.told("READY=1").await;
    let (socket, admin) = (systemd.path("crimux.sock"), systemd.path("admin.sock"));
    eventually(SOON, async || list(&socket).await == Ok(2)).await;
    let arguments = ["upgrade", "--socket", admin.to_str().unwrap()];
    let (code, said, errors) = crate::cli::told(&crate::cli::crimux(&arguments, "").await);
    assert_eq!(code, 0, "{errors}{}", systemd.log());
    let pid = said.split(' ').nth(1).unwrap();
    systemd.told(&format!("MAINPID={pid}")).await;
    systemd.told("READY=1").await;
    assert_eq!(ended(&mut crimux).await, Some(0), "{}", systemd.log());
    for _ in 0..3 {
        systemd.told("WATCHDOG=1").await;
    }
    assert_eq!(list(&socket).await, Ok(2));
    kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGTERM).unwrap();
    systemd.told("STOPPING=1").await;
    eventually(SOON, async || !admin.exists()).await;
    assert!(socket.exists(), "an inherited socket is not crimux's to remove");
}

#[tokio::test]
async fn systemds_own_activation_starts_crimux_at_the_first_connection() {
    let runtime = SimRuntime::builder("a").sandboxes(2, 2).start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("crimux.yaml");
    std::fs::write(&file, config(&dir, &[("a", &runtime)], "")).unwrap();
    let socket = dir.path().join("crimux.sock");
    let activating = Command::new("systemd-socket-activate")
        .arg("-l")
        .arg(&socket)
        .args([env!("CARGO_BIN_EXE_crimux"), "serve", "--config"])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let Ok(_crimux) = activating else {
        testkit::bed::skipped("systemd-socket-activate is not installed (Debian package systemd)");
        return;
    };
    eventually(SOON, async || socket.exists()).await;
    eventually(SOON, async || list(&socket).await == Ok(2)).await;
}
