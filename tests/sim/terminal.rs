//! What a person at a terminal sees, and what a script in a pipe does: colours, `--watch`, JSON and YAML.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use testkit::eventually;
use testkit::runtime::SimRuntime;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::cli::on;
use crate::support::{Crimux, SOON};

/// What clears the screen before each picture of `--watch`.
const CLEAR: &str = "\x1b[H\x1b[J";
/// A state in green.
const GREEN_READY: &str = "\x1b[32mready\x1b[0m";

/// A verb that runs on a terminal of its own, and what it has shown so far.
struct Terminal {
    child: Child,
    screen: Arc<Mutex<String>>,
}

impl Terminal {
    fn start(running: &Crimux, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let pty = openpty(None, None).unwrap();
        let mut command = verb(running, arguments);
        // Build machines say `CI`, which counts as a terminal with colours whatever `TERM` says.
        for name in ["CI", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
            command.env_remove(name);
        }
        command.env("TERM", "xterm-256color").envs(environment.iter().copied());
        command.stderr(pty.slave.try_clone().unwrap());
        let child = command.stdout(pty.slave).spawn().unwrap();
        // Its descriptors of the terminal, which would keep it open, go with it.
        drop(command);
        let screen = Arc::new(Mutex::new(String::new()));
        let (shown, mut master) = (Arc::clone(&screen), File::from(pty.master));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // It ends with an error once nobody has the terminal open any more.
            while let Ok(length @ 1..) = master.read(&mut bytes) {
                shown.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..length]));
            }
        });
        Self { child, screen }
    }

    fn shown(&self) -> String {
        self.screen.lock().unwrap().clone()
    }

    /// Waits for its end and for this text, and returns all that was shown.
    async fn ended_with(mut self, text: &str) -> String {
        assert!(ended(&mut self.child).await.success());
        eventually(SOON, async || self.shown().contains(text)).await;
        self.shown()
    }
}

async fn ended(child: &mut Child) -> ExitStatus {
    tokio::time::timeout(SOON, child.wait()).await.expect("crimux ends").unwrap()
}

fn verb(running: &Crimux, arguments: &[&str]) -> Command {
    // A test run in the background of a script ignores interrupts, and so would what it starts.
    let mut command = Command::new("env");
    command
        .args(["--default-signal=INT", env!("CARGO_BIN_EXE_crimux")])
        .args(arguments)
        .arg("--socket")
        .arg(running.dir.path().join("admin.sock"))
        .stdin(Stdio::null());
    command.kill_on_drop(true);
    command
}

async fn world() -> (SimRuntime, SimRuntime, Crimux) {
    let a = SimRuntime::builder("containerd").handlers(["a"]).sandboxes(2, 2).images(2).start().await;
    let b = SimRuntime::builder("cri-o").handlers(["b"]).sandboxes(2, 2).start().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    (a, b, crimux)
}

#[tokio::test]
async fn a_terminal_shows_states_in_colour_unless_it_is_told_not_to() {
    let (_a, _b, running) = world().await;
    for verb in [vec!["status"], vec!["ps"], vec!["route"]] {
        let shown = Terminal::start(&running, &verb, &[]).ended_with(GREEN_READY).await;
        assert!(!shown.contains(CLEAR), "{shown:?}");
        for plain in [("NO_COLOR", "1"), ("TERM", "dumb")] {
            let shown = Terminal::start(&running, &verb, &[plain]).ended_with("ready").await;
            assert!(!shown.contains('\x1b'), "{plain:?}: {shown:?}");
        }
        let (_, piped, _) = on(&running, &verb, "").await;
        assert!(piped.contains("ready") && !piped.contains('\x1b'), "{piped:?}");
    }
    let shown = Terminal::start(&running, &["status", "--output", "json"], &[]).ended_with("\"ready\"").await;
    assert!(!shown.contains('\x1b'), "{shown:?}");
}

#[tokio::test]
async fn a_watch_redraws_the_screen_and_ends_at_an_interrupt() {
    let (_a, b, running) = world().await;
    let mut watch = Terminal::start(&running, &["status", "--watch"], &[]);
    eventually(SOON, async || watch.shown().matches(CLEAR).count() >= 2).await;
    assert!(watch.shown().contains(GREEN_READY), "{:?}", watch.shown());
    b.stop().await;
    eventually(SOON, async || watch.shown().contains("\x1b[31mdown\x1b[0m")).await;
    kill(Pid::from_raw(watch.child.id().unwrap().try_into().unwrap()), Signal::SIGINT).unwrap();
    // A shell makes 130 of it, and its loop ends too.
    assert_eq!(ended(&mut watch.child).await.signal(), Some(2));
}

#[tokio::test]
async fn a_watch_goes_on_while_crimux_is_restarted() {
    let (_a, _b, mut running) = world().await;
    let watch = Terminal::start(&running, &["status", "--watch"], &[]);
    eventually(SOON, async || watch.shown().contains(GREEN_READY)).await;
    running.signal(Signal::SIGTERM);
    assert_eq!(running.ended().await, Some(0));
    eventually(SOON, async || watch.shown().contains("is crimux running?")).await;
    let dir = std::mem::replace(&mut running.dir, tempfile::tempdir().unwrap());
    let yaml = std::fs::read_to_string(dir.path().join("crimux.yaml")).unwrap();
    let _running = Crimux::start_in(dir, &yaml);
    let before = watch.shown().matches(GREEN_READY).count();
    eventually(SOON, async || watch.shown().matches(GREEN_READY).count() > before).await;
}

#[tokio::test]
async fn a_watch_ends_when_its_reader_has_seen_enough() {
    let (_a, _b, running) = world().await;
    for (output, first) in [("table", "OK: 2 of 2"), ("json", "{"), ("yaml", "version:")] {
        let mut command = verb(&running, &["status", "--watch", "--output", output]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).await.unwrap();
        assert!(line.starts_with(first), "{line}");
        let ended = tokio::time::timeout(SOON, child.wait_with_output()).await.expect("crimux ends").unwrap();
        assert_eq!((ended.status.code(), ended.stderr.as_slice()), (Some(0), &b""[..]), "{output}");
    }
}

/// Takes out what passes between two answers.
fn without_time(mut value: Value) -> Value {
    match &mut value {
        Value::Object(keys) => {
            keys.retain(|key, _| !["list_age_seconds", "in_flight"].contains(&key.as_str()));
            keys.values_mut().for_each(|value| *value = without_time(value.take()));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = without_time(item.take())),
        _ => {}
    }
    value
}

#[tokio::test]
async fn every_verb_that_reads_says_the_same_in_json_and_yaml() {
    let (_a, _b, running) = world().await;
    for (verb, key) in [
        (vec!["status"], "/backends/1/state"),
        (vec!["ps"], "/pods/3/sandbox_id"),
        (vec!["route"], "/routes/1/targets/0/backend"),
        (vec!["route", "b"], "/targets/0/share"),
        (vec!["images"], "/images/0/id"),
    ] {
        let asked = |format: &'static str| [verb.as_slice(), &["--output", format]].concat();
        let (code, json, errors) = on(&running, &asked("json"), "").await;
        assert_eq!((code, errors.as_str()), (0, ""), "{verb:?}");
        let json: Value = serde_json::from_str(&json).unwrap();
        assert!(json.pointer(key).is_some_and(|value| !value.is_null()), "{verb:?}: {json}");
        let (code, yaml, _) = on(&running, &asked("yaml"), "").await;
        assert_eq!(code, 0, "{verb:?}");
        let yaml: Value = serde_yaml::from_str(&yaml).unwrap();
        assert_eq!(without_time(yaml), without_time(json), "{verb:?}");
    }
}
