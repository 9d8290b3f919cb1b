//! What `dev/release` made, on a machine whose PID 1 is systemd: installed, started, upgraded, downgraded and
//! removed.
//!
//! `dev/machine` boots a root in namespaces: a bare Debian where `CRIMUX_MACHINE_ROOT` names one, otherwise
//! this machine's own. The runtime is simulated, outside of it, and
//! listens in the directory that both see; inside it stands where containerd would.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use testkit::client::sandbox_config;
use testkit::cri::ListPodSandboxRequest;
use testkit::runtime::SimRuntime;
use testkit::{Client, eventually};

use super::release::{architecture, file, release};
use super::{read, repository, text};

/// How long a service may take to get up on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const SOCKET: &str = "/run/crimux/crimux.sock";

/// A machine with systemd; it ends with this value.
struct Machine {
    keeper: Child,
    /// systemd's, as this process sees it.
    pid: u32,
    /// `/srv` inside.
    shared: tempfile::TempDir,
}

impl Machine {
    /// Boots one with the release in `/srv`; `None`, after saying so, where there is no release or a machine
    /// cannot be had.
    fn boot() -> Option<Self> {
        let release = release()?;
        let shared = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(release).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, shared.path().join(path.file_name().unwrap())).unwrap();
        }
        let mut keeper = Command::new(repository("dev/machine"))
            .arg("hold")
            .arg(shared.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(keeper.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        let Some(pid) = said.trim().strip_prefix("ready ") else {
            keeper.stderr.as_mut().unwrap().read_to_string(&mut said).unwrap();
            keeper.wait().unwrap();
            testkit::bed::skipped(said.trim());
            return None;
        };
        let pid = pid.parse().unwrap();
        let machine = Self { keeper, pid, shared };
        machine.sh("mkdir -p /run/containerd && ln -s /srv/containerd.sock /run/containerd/containerd.sock");
        machine.sh("echo 'APT::Get::Assume-Yes \"true\";' >/etc/apt/apt.conf.d/99yes");
        // The index of all manual pages of this machine would be written again at each step.
        machine.sh("rm -f /var/lib/man-db/auto-update");
        Some(machine)
    }

    /// The runtime behind `/run/containerd/containerd.sock`.
    async fn containerd(&self) -> SimRuntime {
        SimRuntime::builder("containerd").unix(self.shared.path().join("containerd.sock")).start().await
    }

    /// Runs a shell script in `/srv`.
    fn output(&self, script: &str) -> Output {
        Command::new("nsenter")
            .args(["--target", &self.pid.to_string(), "--all", "--root", "--wd"])
            .args(["env", "--chdir=/srv", "DEBIAN_FRONTEND=noninteractive", "sh", "-euc", script])
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    #[track_caller]
    fn sh(&self, script: &str) -> String {
        let output = self.output(script);
        assert!(output.status.success(), "{script}\n{}\n{}", text(&output), self.journal());
        String::from_utf8(output.stdout).unwrap()
    }

    fn journal(&self) -> String {
        text(
            &self.output(
                "journalctl --no-pager --lines 40 --unit crimux.service --unit crimux.socket || true",
            ),
        )
    }

    /// A new client of kubelet's socket: what a new connection meets.
    fn client(&self) -> Client {
        Client::unix(format!("/proc/{}/root{SOCKET}", self.pid))
    }

    fn main_pid(&self) -> String {
        self.sh("systemctl show --property=MainPID --value crimux.service")
    }

    /// Waits until `crimux status` finds the node well served.
    async fn serves(&self) {
        eventually(PATIENCE, async || self.output("crimux status --check").status.success()).await;
    }

    async fn run_pods(&self, names: [&str; 3]) -> BTreeSet<String> {
        let mut made = BTreeSet::new();
        for name in names {
            let request = sandbox_config(name).run("");
            let reply = self.client().runtime().run_pod_sandbox(request).await;
            made.insert(
                reply
                    .unwrap_or_else(|error| panic!("{error}\n{}", self.journal()))
                    .into_inner()
                    .pod_sandbox_id,
            );
        }
        made
    }

    async fn pods(&self) -> Result<BTreeSet<String>, tonic::Status> {
        let reply = self.client().runtime().list_pod_sandbox(ListPodSandboxRequest { filter: None }).await?;
        Ok(reply.into_inner().items.into_iter().map(|item| item.id).collect())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// Lists pods over a new connection each time until it is dropped, and fails if an answer lacks one of them.
struct Watch {
    stop: Arc<AtomicBool>,
    lister: tokio::task::JoinHandle<u32>,
}

impl Watch {
    fn start(machine: &Machine, pods: BTreeSet<String>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, socket) = (stop.clone(), format!("/proc/{}/root{SOCKET}", machine.pid));
        let lister = tokio::spawn(async move {
            let mut answers = 0;
            while !stopped.load(Ordering::Relaxed) {
                let call = Client::unix(&socket)
                    .runtime()
                    .list_pod_sandbox(ListPodSandboxRequest { filter: None })
                    .await;
                // A connection that a process took just before its end may fail; what is answered is never
                // short.
                let Ok(reply) = call else { continue };
                let listed: BTreeSet<String> =
                    reply.into_inner().items.into_iter().map(|item| item.id).collect();
                assert!(listed.is_superset(&pods), "{listed:?} lacks some of {pods:?}");
                answers += 1;
            }
            answers
        });
        Self { stop, lister }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        assert!(self.lister.await.unwrap() > 0, "no list was answered");
    }
}

fn package(release: &Path) -> String {
    let path = file(release, &["crimux_", architecture(), ".deb"]).unwrap();
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

/// The code block that follows `after` in a document, with names as they are on this machine.
fn block(document: &str, after: &str) -> String {
    let text = read(document);
    let rest = text.split_once(after).unwrap_or_else(|| panic!("{document} lacks {after:?}")).1;
    let code = rest.split_once("```").unwrap().1.split_once('\n').unwrap().1.split_once("```").unwrap().0;
    let version = env!("CARGO_PKG_VERSION");
    code.replace("amd64", architecture()).replace("0.1.0", version)
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_listed_through_upgrade_downgrade_and_a_kill() {
    let Some(machine) = Machine::boot() else { return };
    let Some(next) = std::env::var_os("CRIMUX_DEB_NEXT").map(PathBuf::from) else {
        testkit::bed::skipped("CRIMUX_DEB_NEXT names no package (dev/test package)");
        return;
    };
    std::fs::copy(next, machine.shared.path().join("next.deb")).unwrap();
    let package = package(&release().unwrap());
    let _containerd = machine.containerd().await;
    machine.sh(&format!("apt-get install ./{package}"));
    assert!(!machine.output("systemctl is-active crimux.service crimux.socket").status.success());
    machine.sh("systemctl enable --now crimux.socket crimux.service");
    machine.serves().await;
    let pods = machine.run_pods(["one", "two", "three"]).await;

    let watch = Watch::start(&machine, pods.clone());
    for step in [
        "dpkg --install next.deb".into(),
        format!("dpkg --install {package}"),
        "kill -KILL $(systemctl show --property=MainPID --value crimux.service)".into(),
    ] {
        let before = machine.main_pid();
        machine.sh(&step);
        eventually(PATIENCE, async || ![before.as_str(), "0\n"].contains(&machine.main_pid().as_str())).await;
        machine.serves().await;
        eventually(PATIENCE, async || machine.pods().await.is_ok_and(|listed| listed == pods)).await;
    }
    watch.end().await;
    assert!(machine.sh("crimux ps").contains("three"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_of_a_file_with_a_mistake_fails_and_changes_nothing() {
    let Some(machine) = Machine::boot() else { return };
    let _containerd = machine.containerd().await;
    machine.sh(&format!("apt-get install ./{}", package(&release().unwrap())));
    machine.sh("systemctl enable --now crimux.socket crimux.service");
    machine.serves().await;
    let (before, config) = (machine.main_pid(), machine.sh("cat /etc/crimux/config.yaml"));
    let refused = machine.output("echo 'no_such_key: 1' >>/etc/crimux/config.yaml; systemctl reload crimux");
    assert!(!refused.status.success());
    assert!(machine.journal().contains("no_such_key"), "{}", machine.journal());
    std::fs::write(machine.shared.path().join("config.yaml"), config).unwrap();
    machine.sh("cp config.yaml /etc/crimux/config.yaml; systemctl reload crimux");
    assert_eq!(machine.main_pid(), before);
    machine.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_readme_install_and_undo_it() {
    let Some(machine) = Machine::boot() else { return };
    let _containerd = machine.containerd().await;
    let commands = block("README.md", "**Install it, and undo it**");
    // The machine has what the first line makes.
    let (_, commands) = commands.split_once("dev/release ").unwrap().1.split_once('\n').unwrap();
    let (install, undo) = commands.split_once("\napt purge").unwrap();
    machine.sh(install);
    machine.serves().await;
    let pods = machine.run_pods(["one", "two", "three"]).await;
    assert_eq!(machine.pods().await.unwrap(), pods);

    let undo = format!("apt purge{undo}");
    machine.sh("mkdir -p /var/lib/kubelet; echo 'containerRuntimeEndpoint: unix:///run/crimux/crimux.sock' >/var/lib/kubelet/config.yaml");
    let refused = machine.output(&undo);
    assert!(
        !refused.status.success() && text(&refused).contains("kubelet still points to crimux"),
        "{}",
        text(&refused)
    );
    machine.sh("systemctl is-active crimux.service crimux.socket");
    machine.sh("rm /var/lib/kubelet/config.yaml");
    machine.sh(&undo);
    machine.sh("! systemctl is-active crimux.service crimux.socket; ! test -e /usr/bin/crimux; ! test -e /etc/crimux; ! test -e /var/lib/crimux");
    machine.sh("! test -e /run/crimux/crimux.sock; ! test -e /etc/systemd/system/multi-user.target.wants/crimux.service");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_guide_work_with_and_without_dpkg() {
    for way in ["With the Debian package:", "Without dpkg:"] {
        let Some(machine) = Machine::boot() else { return };
        let _containerd = machine.containerd().await;
        let package = block("docs/install.md", "With the Debian package:");
        let after_editor = package.split_once("\neditor").unwrap().1.split_once('\n').unwrap().1;
        let first = block("docs/install.md", way);
        machine.sh(first.split("\neditor").next().unwrap());
        machine.sh(after_editor.split("\ncrimux status").next().unwrap());
        machine.serves().await;
        machine.sh("crimux status; crimux ps");
        machine.run_pods(["one", "two", "three"]).await;
    }
}
