//! The Debian package: built by `dev/package`, installed, upgraded and purged in a private root.
//!
//! crimux in it is a stand-in, and so is systemd, which is found through PATH and writes down what it is
//! asked.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::{read, repository, scratch, text, tool, write};

pub(super) const CONFIG: &str = "etc/crimux/config.yaml";

/// The man pages and completions, as `dev/package` has them generated.
fn generated_files() -> &'static Path {
    static GENERATED: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    GENERATED.get_or_init(|| {
        let directory = scratch("generated");
        for what in ["man", "completions"] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_crimux"));
            let output = command.args(["generate", what]).arg(directory.join(what)).output().unwrap();
            assert!(output.status.success(), "{}", text(&output));
        }
        directory
    })
}

/// Builds the package around the program `binary`.
fn build(version: &str, binary: &Path, to: &Path) {
    let output = Command::new(repository("dev/package"))
        .args(["--deb-version", version, "--architecture", "all", "--binary"])
        .arg(binary)
        .arg("--generated")
        .arg(generated_files())
        .arg("--output")
        .arg(to)
        .env("SOURCE_DATE_EPOCH", "1700000000")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

/// A private root with dpkg's database and a stand-in for systemd, and the packages to install in it.
pub(super) struct Machine {
    pub(super) root: PathBuf,
}

impl Machine {
    /// `None`, after saying so, where dpkg is missing or may not be used like this.
    pub(super) fn new(name: &str) -> Option<Self> {
        tool("dpkg-deb", "dpkg")?;
        tool("python3", "python3")?;
        if fs::metadata("/proc/self").unwrap().uid() != 0 {
            testkit::bed::skipped("dpkg installs into a private root only as root");
            return None;
        }
        let root = scratch(name);
        for directory in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "run/systemd/system", "var/lib/crimux"]
        {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        write(&root.join("var/lib/dpkg/status"), "");
        let log = "#!/bin/sh\nprintf '%s %s\\n' \"${0##*/}\" \"$*\" >> \"$DPKG_ROOT/asked\"\n";
        for program in ["systemctl", "deb-systemd-invoke", "systemd-tmpfiles"] {
            script(&root.join("stand-ins").join(program), log);
        }
        Some(Self { root })
    }

    /// Builds the package with a crimux that accepts or refuses every configuration.
    fn package(&self, version: &str, accepts: bool) -> PathBuf {
        let binary = self.root.join("crimux-stand-in");
        script(&binary, if accepts { "#!/bin/sh\n" } else { "#!/bin/sh\nexit 64\n" });
        let file = self.root.join(format!("crimux-{version}.deb"));
        build(version, &binary, &file);
        file
    }

    fn dpkg(&self, arguments: &[&str]) -> Output {
        let path = format!("{}:{}", self.root.join("stand-ins").display(), std::env::var("PATH").unwrap());
        tool("dpkg", "dpkg")
            .unwrap()
            .args(["--force-script-chrootless", "--force-confold"])
            .arg(format!("--root={}", self.root.display()))
            .args(arguments)
            .env("PATH", path)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .output()
            .unwrap()
    }

    #[track_caller]
    pub(super) fn succeeds(&self, arguments: &[&str]) -> Output {
        let output = self.dpkg(arguments);
        assert!(output.status.success(), "{}", text(&output));
        output
    }

    fn install(&self, package: &Path) -> Output {
        self.succeeds(&["--install", package.to_str().unwrap()])
    }

    pub(super) fn asked(&self) -> String {
        fs::read_to_string(self.root.join("asked")).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.root);
        }
    }
}

/// Writes an executable file.
fn script(path: &Path, contents: &str) {
    write(path, contents);
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn equal_files_make_equal_packages() {
    let Some(machine) = Machine::new("deb-equal") else { return };
    let [first, second] = ["first", "second"].map(|name| {
        let package = machine.package("1.0-1", true);
        let file = machine.root.join(name);
        fs::rename(package, &file).unwrap();
        fs::read(file).unwrap()
    });
    assert!(first == second, "two packages of the same files differ");
}

#[test]
fn the_package_is_installed_upgraded_and_purged_and_keeps_a_changed_config() {
    let Some(machine) = Machine::new("deb") else { return };
    machine.install(&machine.package("1.0-1", true));
    assert!(!machine.asked().contains("start"), "{}", machine.asked());
    assert_eq!(fs::read_to_string(machine.root.join(CONFIG)).unwrap(), read("deploy/debian/config.yaml"));
    assert!(machine.root.join("usr/lib/systemd/system/crimux.socket").is_file());

    write(&machine.root.join(CONFIG), "default_backend: mine\n");
    machine.install(&machine.package("2.0-1", true));
    assert!(machine.asked().contains("deb-systemd-invoke restart crimux.service"), "{}", machine.asked());
    assert_eq!(fs::read_to_string(machine.root.join(CONFIG)).unwrap(), "default_backend: mine\n");

    machine.succeeds(&["--remove", "crimux"]);
    assert!(machine.root.join(CONFIG).is_file() && machine.root.join("var/lib/crimux").is_dir());
    assert!(!machine.root.join("usr/bin/crimux").exists());
    machine.succeeds(&["--purge", "crimux"]);
    assert!(!machine.root.join("etc/crimux").exists() && !machine.root.join("var/lib/crimux").exists());
}

#[test]
fn an_upgrade_that_refuses_the_config_leaves_the_running_crimux_alone() {
    let Some(machine) = Machine::new("deb-refused") else { return };
    machine.install(&machine.package("1.0-1", true));
    let output = machine.install(&machine.package("2.0-1", false));
    assert!(!machine.asked().contains("restart"), "{}", machine.asked());
    assert!(text(&output).contains("the old one runs on"), "{}", text(&output));
}

#[test]
fn a_running_crimux_that_can_hand_over_is_not_restarted() {
    let Some(machine) = Machine::new("deb-handover") else { return };
    machine.install(&machine.package("1.0-1", true));
    let binary = machine.root.join("crimux-stand-in");
    for (version, upgrade, said) in [("2.0-1", 0, ""), ("3.0-1", 1, "the old version runs on")] {
        let stand_in = format!(
            "#!/bin/sh\necho \"crimux $*\" >> \"$DPKG_ROOT/asked\"\ncase $1 in\n\
             status) echo '{{\"pid\": 1}}' ;;\nupgrade) exit {upgrade} ;;\nesac\n"
        );
        script(&binary, &stand_in);
        let package = machine.root.join(format!("crimux-{version}.deb"));
        build(version, &binary, &package);
        let output = machine.install(&package);
        let asked = machine.asked();
        assert!(asked.contains("crimux upgrade --config") && !asked.contains("restart"), "{asked}");
        assert!(text(&output).contains(said), "{}", text(&output));
    }
}

/// Every kind of place in which kubelet is told its endpoint.
const POINTING: [(&str, &str); 14] = [
    ("var/lib/kubelet/kubeadm-flags.env", "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=SOCKET\""),
    ("var/lib/kubelet/config.yaml", "containerRuntimeEndpoint: SOCKET"),
    ("var/lib/kubelet/instance-config.yaml", "containerRuntimeEndpoint: SOCKET"),
    ("etc/kubernetes/kubelet.conf.d/10-runtime.conf", "containerRuntimeEndpoint: \"SOCKET\""),
    ("etc/default/kubelet", "KUBELET_EXTRA_ARGS=--container-runtime-endpoint=SOCKET"),
    ("etc/sysconfig/kubelet", "KUBELET_EXTRA_ARGS=--container-runtime-endpoint=SOCKET"),
    ("etc/default/node", "ARGS=\"--v=2 --container-runtime-endpoint SOCKET\""),
    ("etc/systemd/system/kubelet.service", "ExecStart=/usr/bin/kubelet --container-runtime-endpoint=SOCKET"),
    ("etc/systemd/system/kubelet.service.d/10.conf", "Environment=ENDPOINT=SOCKET"),
    ("run/systemd/system/kubelet.service.d/10.conf", "Environment=ENDPOINT=SOCKET"),
    ("usr/lib/systemd/system/kubelet.service.d/10.conf", "Environment=ENDPOINT=SOCKET"),
    (
        "etc/systemd/system/k3s-agent.service",
        "ExecStart=/usr/bin/k3s agent --container-runtime-endpoint=SOCKET",
    ),
    ("etc/rancher/k3s/config.yaml", "container-runtime-endpoint: SOCKET"),
    ("etc/rancher/k3s/config.yaml.d/10.yaml", "container-runtime-endpoint: SOCKET"),
];

impl Machine {
    #[track_caller]
    fn refuses_removal(&self, place: &str, contents: &str) {
        let file = self.root.join(place);
        write(&file, contents);
        let output = self.dpkg(&["--remove", "crimux"]);
        let said = text(&output);
        assert!(!output.status.success(), "{place}: {said}");
        assert!(said.contains(&format!("kubelet still points to crimux in /{place}.")), "{said}");
        assert!(self.root.join("usr/bin/crimux").exists() && !self.asked().contains("stop"));
        fs::remove_file(file).unwrap();
    }
}

#[test]
fn removal_is_refused_wherever_kubelet_is_pointed_to_crimux() {
    let Some(machine) = Machine::new("deb-in-use") else { return };
    machine.install(&machine.package("1.0-1", true));
    for (place, setting) in POINTING {
        for socket in ["unix:///run/crimux/crimux.sock", "unix:///var/run/crimux/crimux.sock"] {
            machine.refuses_removal(place, &format!("# A comment.\n{}\n", setting.replace("SOCKET", socket)));
        }
    }
    // The command line of a running kubelet.
    write(&machine.root.join("proc/77/comm"), "kubelet\n");
    machine.refuses_removal(
        "proc/77/cmdline",
        "/usr/bin/kubelet\0--container-runtime-endpoint=unix:///run/crimux/crimux.sock\0",
    );
    machine.succeeds(&["--remove", "crimux"]);
    assert!(machine.asked().contains("deb-systemd-invoke stop crimux.service crimux.socket"));
}

#[test]
fn removal_is_refused_for_the_socket_that_the_configuration_or_the_unit_names() {
    let Some(machine) = Machine::new("deb-own-socket") else { return };
    machine.install(&machine.package("1.0-1", true));
    let unit = machine.root.join("etc/systemd/system/crimux.socket.d/10.conf");
    write(&unit, "[Socket]\nListenStream=\nListenStream=/run/by-unit.sock\n");
    for listen in ["unix:///run/mine.sock", "/var/run/mine.sock", "\"unix:///run/mine.sock\" # ours"] {
        write(&machine.root.join(CONFIG), &format!("default_backend: a\nlisten: {listen}\n"));
        for socket in ["/run/mine.sock", "/run/by-unit.sock"] {
            let setting = format!("containerRuntimeEndpoint: unix://{socket}\n");
            machine.refuses_removal("var/lib/kubelet/config.yaml", &setting);
        }
    }
}

#[test]
fn removal_goes_on_when_only_others_name_the_socket() {
    let Some(machine) = Machine::new("deb-others") else { return };
    machine.install(&machine.package("1.0-1", true));
    for (place, contents) in [
        ("etc/crictl.yaml", "runtime-endpoint: unix:///run/crimux/crimux.sock\n"),
        ("etc/default/agent", "SOCKET=/run/crimux/crimux.sock\n"),
        ("etc/default/kubelet", "# --container-runtime-endpoint=unix:///run/crimux/crimux.sock\n"),
        (
            "etc/systemd/system/crimux.service.d/10.conf",
            "# --container-runtime-endpoint=/run/crimux/crimux.sock\n",
        ),
        ("etc/kubernetes/manifests/agent.yaml", "path: /run/crimux/crimux.sock\n"),
        ("var/lib/kubelet/config.yaml", "containerRuntimeEndpoint: unix:///run/containerd/containerd.sock\n"),
    ] {
        write(&machine.root.join(place), contents);
    }
    machine.succeeds(&["--remove", "crimux"]);
}
