//! The units, read by systemd's own parser in a private root.
//!
//! `systemd-analyze verify` answers 0 for keys it does not know, so what counts is that it has nothing to
//! say.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{read, repository, scratch, text, tool, write};

/// The part of exposure (of 100) that remains: network, real users, and `/proc/sys` are needed.
const EXPOSURE_LIMIT: &str = "--threshold=21";

/// A root with the units, stand-ins for what they start, and the targets they name.
fn root_with_units(name: &str) -> PathBuf {
    let root = scratch(name);
    let units = root.join("etc/systemd/system");
    for unit in ["crimux.service", "crimux.socket", "kubelet.service.d/20-crimux.conf"] {
        write(&units.join(unit), &read(&format!("deploy/systemd/{unit}")));
    }
    write(&units.join("kubelet.service"), "[Service]\nExecStart=/usr/bin/crimux\n");
    for target in ["sysinit", "basic", "shutdown", "sockets", "multi-user"] {
        write(&units.join(format!("{target}.target")), "[Unit]\nDefaultDependencies=no\n");
    }
    for slice in ["system.slice", "-.slice"] {
        write(&units.join(slice), "[Unit]\nDefaultDependencies=no\n");
    }
    for program in ["usr/bin/crimux", "bin/sh"] {
        write(&root.join(program), "#!/bin/sh\n");
        make_executable(&root.join(program));
    }
    root
}

/// Sets mode 0755.
fn make_executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// What `systemd-analyze verify` has to say about the units in `root`.
fn verify(mut analyze: Command, root: &Path) -> String {
    let output = analyze
        .arg("verify")
        .arg(format!("--root={}", root.display()))
        .args(["crimux.service", "crimux.socket", "kubelet.service"])
        .output()
        .unwrap();
    let said = text(&output);
    if output.status.success() { said } else { format!("{}: {said}", output.status) }
}

#[test]
fn systemd_has_nothing_to_say_about_the_units() {
    let Some(analyze) = tool("systemd-analyze", "systemd") else { return };
    let root = root_with_units("verify");
    assert_eq!(verify(analyze, &root), "");
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn a_key_systemd_does_not_know_would_be_noticed() {
    let Some(analyze) = tool("systemd-analyze", "systemd") else { return };
    let root = root_with_units("verify-control");
    let unit = root.join("etc/systemd/system/crimux.service");
    write(&unit, &read("deploy/systemd/crimux.service").replace("WatchdogSec=", "WatchdogSecs="));
    assert!(verify(analyze, &root).contains("WatchdogSecs"));
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn the_service_is_exposed_no_more_than_its_job_needs() {
    let Some(mut analyze) = tool("systemd-analyze", "systemd") else { return };
    let root = root_with_units("security");
    let output = analyze
        .args(["security", "--no-pager", "--offline=true", EXPOSURE_LIMIT])
        .arg(format!("--root={}", root.display()))
        .arg("crimux.service")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn tmpfiles_makes_the_directories_with_their_modes() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let Some(mut tmpfiles) = tool("systemd-tmpfiles", "systemd") else { return };
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        testkit::bed::skipped("systemd-tmpfiles can give directories to root only as root");
        return;
    }
    let root = scratch("tmpfiles");
    write(&root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n");
    write(&root.join("etc/group"), "root:x:0:\n");
    write(&root.join("usr/lib/tmpfiles.d/crimux.conf"), &read("deploy/systemd/tmpfiles.d/crimux.conf"));
    fs::create_dir_all(root.join("run")).unwrap();
    fs::create_dir_all(root.join("var/lib")).unwrap();
    let output = tmpfiles
        .arg("--create")
        .arg(format!("--root={}", root.display()))
        .arg("crimux.conf")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let mode = |path: &str| fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("run/crimux"), mode("var/lib/crimux")), (0o711, 0o700));
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn the_units_never_tie_crimux_to_a_backend() {
    for unit in ["crimux.service", "crimux.socket"] {
        for line in read(&format!("deploy/systemd/{unit}")).lines() {
            let key = line.split('=').next().unwrap_or_default();
            assert!(
                !["Requires", "Requisite", "BindsTo", "PartOf", "Wants", "Upholds"].contains(&key),
                "{unit}: {line}"
            );
        }
    }
}

#[test]
fn the_socket_unit_and_the_default_of_the_configuration_name_one_path() {
    let socket = read("deploy/systemd/crimux.socket");
    assert!(socket.lines().any(|line| line == "ListenStream=/run/crimux/crimux.sock"));
    assert!(read("src/config.rs").contains("Default `unix:///run/crimux/crimux.sock`"));
    assert!(repository("deploy/systemd/kubelet.service.d/20-crimux.conf").is_file());
}
