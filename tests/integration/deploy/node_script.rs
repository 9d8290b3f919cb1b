//! The script of the `DaemonSet`, run on a private root directory with a stand-in for systemd.
//!
//! The stand-in writes down what it is asked and answers `is-active` by what lies in the root: crimux runs
//! unless the binary says BROKEN, kubelet runs unless the root says otherwise. So the script's own files and
//! order are what is tested.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::{read, repository, scratch, text, write};

const OURS: &str = "unix:///run/crimux/crimux.sock";
const THEIRS: &str = "unix:///run/containerd/containerd.sock";
const FLAGS: &str = "var/lib/kubelet/kubeadm-flags.env";
const CONFIG: &str = "default_backend: containerd\nbackends:\n  containerd:\n    endpoint: unix:///run/containerd/containerd.sock\n";

const HOST: &str = r#"#!/bin/sh
printf '%s\n' "$*" >> "$CRIMUX_ROOT/asked"
case $1 in
    systemctl)
        for unit in "$@"; do :; done
        case "$2 $unit" in
            "is-active crimux.service") ! grep -q BROKEN "$CRIMUX_ROOT/opt/crimux/current/crimux" ;;
            "is-active kubelet.service")
                ! { [ -e "$CRIMUX_ROOT/kubelet-dislikes-crimux" ] &&
                    grep -q crimux.sock "$CRIMUX_ROOT/var/lib/kubelet/kubeadm-flags.env"; } ;;
        esac ;;
    *) program=$1; shift; exec "$CRIMUX_ROOT$program" "$@" ;;
esac
"#;

const CRIMUX: &str = r#"#!/bin/sh
# VERSION
case $1 in
    check) ! grep -q mistake "$CRIMUX_ROOT$3" ;;
    ps) cat "$CRIMUX_ROOT/pods.json" ;;
esac
"#;

/// A node as kubeadm leaves it, and an image to install from.
struct Node {
    root: PathBuf,
}

impl Node {
    fn new(name: &str) -> Self {
        let node = Self { root: scratch(name) };
        node.put(FLAGS, &format!("KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint={THEIRS} --v=2\"\n"));
        node.put("var/lib/kubelet/config.yaml", "kind: KubeletConfiguration\ncgroupDriver: systemd\n");
        node.put("pods.json", "[]");
        node.put("host", HOST);
        executable(&node.root.join("host"));
        for unit in ["crimux.service", "crimux.socket", "kubelet.service.d/20-crimux.conf"] {
            let name = unit.rsplit('/').next().unwrap();
            node.put(&format!("image/{name}"), &read(&format!("deploy/systemd/{unit}")));
        }
        node.image("1.0", CONFIG);
        node
    }

    /// Puts a version of crimux and a config into the image.
    fn image(&self, version: &str, config: &str) {
        self.put("image/crimux", &CRIMUX.replace("VERSION", version));
        executable(&self.root.join("image/crimux"));
        self.put("image/config.yaml", config);
    }

    fn run(&self, verb: &str) -> Output {
        Command::new("sh")
            .arg(repository("deploy/kubernetes/base/crimux-node.sh"))
            .arg(verb)
            .env("CRIMUX_ROOT", &self.root)
            .env("CRIMUX_SOURCE", self.root.join("image"))
            .env("CRIMUX_CONFIG", self.root.join("image/config.yaml"))
            .env("CRIMUX_HOST_RUN", self.root.join("host"))
            .env("CRIMUX_NOTE", self.root.join("note"))
            .envs([("CRIMUX_TRIES", "3"), ("CRIMUX_SETTLE", "2"), ("CRIMUX_PAUSE", "0")])
            .output()
            .unwrap()
    }

    #[track_caller]
    fn succeeds(&self, verb: &str) {
        let output = self.run(verb);
        assert!(output.status.success(), "{verb}: {}", text(&output));
    }

    #[track_caller]
    fn fails(&self, verb: &str, because: &str) {
        let output = self.run(verb);
        assert!(!output.status.success(), "{verb} should have failed");
        assert!(text(&output).contains(because), "{verb}: {}", text(&output));
    }

    fn put(&self, path: &str, contents: &str) {
        write(&self.root.join(path), contents);
    }

    fn get(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap_or_default()
    }

    fn has(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    /// What the node was asked to do since the last time, without the looks at `is-active`.
    fn asked(&self) -> Vec<String> {
        let asked = self.get("asked");
        self.put("asked", "");
        asked
            .lines()
            .filter(|line| !line.contains("is-active") && !line.contains(" check "))
            .map(String::from)
            .collect()
    }

    fn version(&self) -> String {
        self.get("opt/crimux/current/crimux").lines().nth(1).unwrap_or_default().to_owned()
    }

    fn releases(&self) -> usize {
        fs::read_dir(self.root.join("opt/crimux/releases")).unwrap().count()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.root);
        }
    }
}

/// Sets mode 0755.
fn executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn an_installation_starts_crimux_first_and_then_points_kubelet_to_it() {
    let node = Node::new("install");
    node.succeeds("install");
    let asked = node.asked();
    let position = |what: &str| {
        asked.iter().position(|line| line == what).unwrap_or_else(|| panic!("{what}: {asked:?}"))
    };
    assert!(position("systemctl restart crimux.service") < position("systemctl restart kubelet.service"));
    assert_eq!(
        node.get(FLAGS),
        format!("KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint={OURS} --v=2\"\n")
    );
    assert_eq!(node.get("etc/crimux/config.yaml"), CONFIG);
    assert!(node.has("etc/systemd/system/crimux.socket"));
    node.succeeds("ready");
}

#[test]
fn installing_the_same_twice_restarts_nothing() {
    let node = Node::new("twice");
    node.succeeds("install");
    node.asked();
    node.succeeds("install");
    assert_eq!(node.asked(), ["systemctl start crimux.service"]);
    assert_eq!(node.releases(), 1);
}

#[test]
fn a_new_config_alone_is_a_reload() {
    let node = Node::new("reload");
    node.succeeds("install");
    node.asked();
    node.image("1.0", &format!("{CONFIG}drain_timeout: 4s\n"));
    node.succeeds("install");
    assert_eq!(node.asked(), ["systemctl reload crimux.service"]);
    assert!(node.get("etc/crimux/config.yaml").contains("drain_timeout"));
}

#[test]
fn an_upgrade_restarts_crimux_and_not_kubelet_and_can_be_rolled_back() {
    let node = Node::new("upgrade");
    node.succeeds("install");
    node.image("2.0", &format!("{CONFIG}drain_timeout: 4s\n"));
    node.asked();
    node.succeeds("install");
    let asked = node.asked();
    assert!(asked.contains(&"systemctl restart crimux.service".to_owned()), "{asked:?}");
    assert!(!asked.iter().any(|line| line.contains("kubelet")), "{asked:?}");
    assert_eq!(node.version(), "# 2.0");
    node.succeeds("rollback");
    assert_eq!(node.version(), "# 1.0");
    assert_eq!(node.get("etc/crimux/config.yaml"), CONFIG);
    node.fails("ready", "release is not active");
    node.image("3.0", CONFIG);
    node.succeeds("install");
    assert_eq!((node.version().as_str(), node.releases()), ("# 3.0", 2));
}

#[test]
fn a_release_that_does_not_stay_up_is_put_back() {
    let node = Node::new("broken");
    node.succeeds("install");
    node.image("2.0 BROKEN", CONFIG);
    node.fails("install", "does not run on this node");
    assert_eq!(node.version(), "# 1.0");
    node.image("1.0", CONFIG);
    node.succeeds("install");
    node.succeeds("ready");
}

#[test]
fn a_first_installation_that_does_not_stay_up_leaves_kubelet_alone() {
    let node = Node::new("broken-first");
    node.image("1.0 BROKEN", CONFIG);
    node.fails("install", "does not run on this node");
    assert!(node.get(FLAGS).contains(THEIRS));
    node.fails("ready", "release is not active");
}

#[test]
fn a_config_with_a_mistake_changes_nothing() {
    let node = Node::new("mistake");
    node.succeeds("install");
    node.asked();
    node.image("2.0", "mistake: here\n");
    node.fails("install", "crimux check refuses the config");
    assert_eq!((node.version().as_str(), node.get("etc/crimux/config.yaml").as_str()), ("# 1.0", CONFIG));
    assert_eq!(node.asked(), Vec::<String>::new());
    assert!(!node.has("etc/crimux/config.yaml.candidate"));
}

#[test]
fn kubelet_is_not_pointed_to_a_crimux_that_does_not_know_its_runtime() {
    let node = Node::new("unknown-runtime");
    node.put(FLAGS, "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///run/crio/crio.sock\"\n");
    node.fails("install", "its pods would be lost");
    assert!(node.get(FLAGS).contains("crio.sock"));
    assert!(!node.asked().iter().any(|line| line.contains("kubelet")));
}

#[test]
fn the_same_socket_by_its_old_path_is_the_same_runtime() {
    let node = Node::new("var-run");
    node.put(
        FLAGS,
        "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///var/run/containerd/containerd.sock\"\n",
    );
    node.succeeds("install");
    node.succeeds("remove");
    assert!(node.get(FLAGS).contains("unix:///var/run/containerd/containerd.sock"));
}

#[test]
fn a_separate_image_service_endpoint_is_refused() {
    let node = Node::new("image-endpoint");
    node.put("var/lib/kubelet/config.yaml", "imageServiceEndpoint: unix:///run/containerd/containerd.sock\n");
    node.fails("install", "images must go through crimux");
}

#[test]
fn kubelet_is_put_back_when_it_does_not_run_through_crimux() {
    let node = Node::new("kubelet-fails");
    node.put("kubelet-dislikes-crimux", "");
    node.fails("install", "it was put back");
    assert!(node.get(FLAGS).contains(THEIRS));
}

#[test]
fn removing_gives_every_file_back_as_it_was() {
    for appended in [false, true] {
        let node = Node::new(&format!("remove-{appended}"));
        if appended {
            node.put(FLAGS, "KUBELET_KUBEADM_ARGS=\"--v=2\"\n");
        }
        let before = (node.get(FLAGS), node.get("var/lib/kubelet/config.yaml"));
        node.succeeds("install");
        node.succeeds("ready");
        assert_ne!((node.get(FLAGS), node.get("var/lib/kubelet/config.yaml")), before);
        node.succeeds("remove");
        assert_eq!(
            (node.get(FLAGS), node.get("var/lib/kubelet/config.yaml").trim_end().to_owned() + "\n"),
            before
        );
        for gone in [
            "opt/crimux",
            "etc/crimux",
            "etc/systemd/system/crimux.service",
            "etc/systemd/system/kubelet.service.d",
        ] {
            assert!(!node.has(gone), "{gone}");
        }
        node.succeeds("remove");
    }
}

#[test]
fn removing_is_refused_while_pods_run_where_kubelet_would_not_look() {
    let node = Node::new("orphans");
    node.succeeds("install");
    node.put("pods.json", r#"[{"name":"a","backend":"containerd"},{"name":"b","backend": "kata"}]"#);
    node.fails("remove", "pods still run on: kata");
    assert!(node.get(FLAGS).contains(OURS));
}

#[test]
fn the_endpoint_is_found_in_kubelets_configuration_file_too() {
    let node = Node::new("yaml");
    node.put(FLAGS, "KUBELET_KUBEADM_ARGS=\"--v=2\"\n");
    node.put("var/lib/kubelet/config.yaml", &format!("containerRuntimeEndpoint: \"{THEIRS}\"\nport: 1\n"));
    node.put("var/lib/kubelet/instance-config.yaml", &format!("containerRuntimeEndpoint: {THEIRS}\n"));
    node.succeeds("install");
    assert_eq!(
        node.get("var/lib/kubelet/config.yaml"),
        format!("containerRuntimeEndpoint: {OURS}\nport: 1\n")
    );
    assert_eq!(
        node.get("var/lib/kubelet/instance-config.yaml"),
        format!("containerRuntimeEndpoint: {OURS}\n")
    );
}
