//! The Debian package: built by dpkg-deb from the asset list, installed, upgraded and purged in a private root.
//!
//! cargo-deb writes the same archive from the same list; what is tested here is the list, the conffile and the maintainer
//! scripts. systemd is a stand-in that writes down what it is asked, found through PATH.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use super::{read, repository, scratch, text, tool, write};

const CONFIG: &str = "etc/crimux/config.yaml";

/// The asset list of `Cargo.toml`: source, target, mode.
fn assets() -> Vec<[String; 3]> {
    let manifest = read("Cargo.toml");
    let list = manifest.split("assets = [").nth(1).unwrap().split("\n]").next().unwrap();
    let lines = list.lines().map(|line| line.trim().trim_end_matches(','));
    lines.filter(|line| line.starts_with('[')).map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The files that a source of the list stands for.
fn sources(pattern: &str) -> Vec<PathBuf> {
    let path = match pattern.strip_prefix("target/package/") {
        Some(generated) => generated_files().join(generated),
        None => repository(pattern),
    };
    match path.to_str().unwrap().split_once('*') {
        Some((directory, ending)) => super::files_below(Path::new(directory), &[ending]),
        None => vec![path],
    }
}

/// The man pages and completions, as `dev/package` has them generated.
fn generated_files() -> &'static Path {
    static GENERATED: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    GENERATED.get_or_init(|| {
        let directory = scratch("generated");
        for what in ["man", "completions"] {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_crimux"));
            let output = command.args(["generate", what]).arg(directory.join(what)).output().unwrap();
            assert!(output.status.success(), "{}", text(&output));
        }
        directory
    })
}

/// A private root with dpkg's database and a stand-in for systemd, and the packages to install in it.
struct Machine {
    root: PathBuf,
}

impl Machine {
    /// `None`, after saying so, where dpkg is missing or may not be used like this.
    fn new(name: &str) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        tool("dpkg-deb", "dpkg")?;
        if fs::metadata("/proc/self").unwrap().uid() != 0 {
            eprintln!("SKIPPED: dpkg installs into a private root only as root");
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
        let tree = self.root.join(format!("package-{version}"));
        for [source, target, mode] in assets() {
            let mut to = tree.join(&target);
            for from in sources(&source) {
                if target.ends_with('/') {
                    to = tree.join(&target).join(from.file_name().unwrap());
                }
                if source == "target/release/crimux" {
                    script(&to, if accepts { "#!/bin/sh\n" } else { "#!/bin/sh\nexit 64\n" });
                } else {
                    fs::create_dir_all(to.parent().unwrap()).unwrap();
                    fs::copy(&from, &to).unwrap();
                    assert_eq!(mode, "644");
                }
            }
        }
        let control = format!(
            "Package: crimux\nVersion: {version}\nArchitecture: all\nMaintainer: a <a@b>\nDescription: test\n"
        );
        write(&tree.join("DEBIAN/control"), &control);
        write(&tree.join("DEBIAN/conffiles"), "/etc/crimux/config.yaml\n");
        for name in ["postinst", "prerm", "postrm"] {
            script(&tree.join("DEBIAN").join(name), &read(&format!("deploy/debian/{name}")));
        }
        let file = self.root.join(format!("crimux-{version}.deb"));
        let output = tool("dpkg-deb", "dpkg").unwrap().arg("--build").arg(&tree).arg(&file).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
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
    fn succeeds(&self, arguments: &[&str]) -> Output {
        let output = self.dpkg(arguments);
        assert!(output.status.success(), "{}", text(&output));
        output
    }

    fn install(&self, package: &Path) -> Output {
        self.succeeds(&["--install", package.to_str().unwrap()])
    }

    fn asked(&self) -> String {
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
    use std::os::unix::fs::PermissionsExt;
    write(path, contents);
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn every_asset_of_the_package_exists_and_its_targets_are_distinct() {
    let mut targets = std::collections::BTreeSet::new();
    for [source, target, _] in assets() {
        let found = sources(&source);
        assert!(!found.is_empty(), "{source}");
        for file in found.iter().filter(|_| source != "target/release/crimux") {
            assert!(file.is_file(), "{}", file.display());
            assert!(
                targets.insert((target.clone(), file.file_name().unwrap().to_owned())),
                "{}",
                file.display()
            );
        }
    }
    assert!(targets.len() > 8);
}

#[test]
fn the_package_is_installed_upgraded_and_purged_and_keeps_a_changed_config() {
    let Some(machine) = Machine::new("deb") else { return };
    machine.install(&machine.package("1.0", true));
    assert!(!machine.asked().contains("start"), "{}", machine.asked());
    assert_eq!(fs::read_to_string(machine.root.join(CONFIG)).unwrap(), read("deploy/debian/config.yaml"));
    assert!(machine.root.join("usr/lib/systemd/system/crimux.socket").is_file());

    write(&machine.root.join(CONFIG), "default_backend: mine\n");
    machine.install(&machine.package("2.0", true));
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
    machine.install(&machine.package("1.0", true));
    let output = machine.install(&machine.package("2.0", false));
    assert!(!machine.asked().contains("restart"), "{}", machine.asked());
    assert!(text(&output).contains("the old one runs on"), "{}", text(&output));
}

#[test]
fn removal_is_refused_while_kubelet_points_to_crimux() {
    let Some(machine) = Machine::new("deb-in-use") else { return };
    machine.install(&machine.package("1.0", true));
    for (place, setting) in [
        ("var/lib/kubelet/kubeadm-flags.env", "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint="),
        ("var/lib/kubelet/instance-config.yaml", "containerRuntimeEndpoint: "),
        ("etc/rancher/k3s/config.yaml", "container-runtime-endpoint: "),
    ] {
        let file = machine.root.join(place);
        write(&file, &format!("{setting}unix:///run/crimux/crimux.sock\n"));
        let output = machine.dpkg(&["--remove", "crimux"]);
        let said = text(&output);
        assert!(!output.status.success(), "{place}: {said}");
        assert!(said.contains(&format!("kubelet still points to crimux in /{place}")), "{said}");
        assert!(machine.root.join("usr/bin/crimux").exists() && !machine.asked().contains("stop"));
        fs::remove_file(file).unwrap();
    }
    machine.succeeds(&["--remove", "crimux"]);
    assert!(machine.asked().contains("deb-systemd-invoke stop crimux.service crimux.socket"));
}

#[test]
fn the_package_of_cargo_deb_is_installed_upgraded_and_purged() {
    let file = |name| std::env::var_os(name).map(PathBuf::from);
    let (Some(package), Some(next)) = (file("CRIMUX_DEB"), file("CRIMUX_DEB_NEXT")) else {
        eprintln!("SKIPPED: CRIMUX_DEB and CRIMUX_DEB_NEXT name no packages (dev/test package)");
        return;
    };
    let Some(machine) = Machine::new("cargo-deb") else { return };
    let install =
        |package: &Path| machine.succeeds(&["--force-depends", "--install", package.to_str().unwrap()]);
    install(&package);
    let crimux = |arguments: &[&str]| {
        std::process::Command::new(machine.root.join("usr/bin/crimux")).args(arguments).output().unwrap()
    };
    assert!(crimux(&["--version"]).status.success());
    let config = machine.root.join(CONFIG);
    let checked = crimux(&["check", "--config", config.to_str().unwrap()]);
    assert!(checked.status.success(), "{}", text(&checked));
    for installed in [
        "usr/lib/systemd/system/crimux.service",
        "usr/lib/systemd/system/crimux.socket",
        "usr/share/man/man1/crimux.1.gz",
        "usr/share/man/man1/crimux-backend-forget.1.gz",
        "usr/share/bash-completion/completions/crimux",
        "usr/share/zsh/vendor-completions/_crimux",
        "usr/share/fish/vendor_completions.d/crimux.fish",
        "usr/share/doc/crimux/copyright",
        "usr/share/doc/crimux/config.schema.json",
    ] {
        assert!(machine.root.join(installed).is_file(), "{installed}");
    }

    write(
        &config,
        &read("deploy/debian/config.yaml").replace("containerd:", "mine:").replace(": containerd", ": mine"),
    );
    install(&next);
    assert!(machine.asked().contains("deb-systemd-invoke restart crimux.service"), "{}", machine.asked());
    assert!(fs::read_to_string(&config).unwrap().contains("default_backend: mine"));

    machine.succeeds(&["--purge", "crimux"]);
    for gone in [
        "usr/bin/crimux",
        "etc/crimux",
        "var/lib/crimux",
        "usr/share/doc/crimux",
        "usr/share/man/man1/crimux.1.gz",
    ] {
        assert!(!machine.root.join(gone).exists(), "{gone}");
    }
}
