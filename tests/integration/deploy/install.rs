//! What docs/install.md has an operator paste to point kubelet at crimux, pasted as it stands on files like a
//! node's.
//!
//! Absolute paths lead into a directory of the test, and `kubectl`, `systemctl` and `crimux` write down what
//! they are asked. The commands that install crimux itself are pasted on a machine with systemd
//! (`machine.rs`).

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{read, repository, scratch, text, write};

const SOCKET: &str = "unix:///run/crimux/crimux.sock";

/// Returns the code that follows `after` in docs/install.md.
fn block(after: &str) -> String {
    let guide = read("docs/install.md");
    let rest = guide.split_once(after).unwrap_or_else(|| panic!("docs/install.md lacks {after:?}")).1;
    let code = rest.split_once("```sh\n").unwrap().1.split_once("```").unwrap().0;
    // A block below an item of a list is indented with it.
    let indentation = code.len() - code.trim_start_matches(' ').len();
    code.lines().map(|line| line.get(indentation..).unwrap_or_default().to_owned() + "\n").collect()
}

/// A node's file system, as far as the guide touches it.
struct Node {
    root: PathBuf,
}

impl Node {
    fn new(name: &str) -> Self {
        let root = scratch(name);
        for tool in ["kubectl", "systemctl", "crimux"] {
            let script = root.join("bin").join(tool);
            write(&script, &format!("#!/bin/sh\necho {tool} \"$@\" >>{}/asked\n", root.display()));
            std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { root }
    }

    fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    fn has(&self, absolute: &str, content: &str) {
        write(&self.path(absolute), content);
    }

    fn content(&self, absolute: &str) -> String {
        std::fs::read_to_string(self.path(absolute)).unwrap()
    }

    /// Pastes commands into a shell, and returns what they print.
    fn paste(&self, commands: &str) -> String {
        let mut commands = commands.to_owned();
        let directories = [
            "/var/lib/kubelet",
            "/var/lib/crimux",
            "/etc/systemd",
            "/etc/crictl",
            "/etc/crimux",
            "/usr/share/doc",
            "/usr/local/bin",
        ];
        for directory in directories {
            commands = commands.replace(directory, self.path(directory).to_str().unwrap());
        }
        let path = format!("{}:{}", self.root.join("bin").display(), std::env::var("PATH").unwrap());
        let output = Command::new("sh").args(["-euc", &commands]).env("PATH", path).output().unwrap();
        assert!(output.status.success(), "{commands}{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn asked(&self) -> String {
        std::fs::read_to_string(self.root.join("asked")).unwrap_or_default()
    }
}

#[test]
fn the_drop_in_of_the_package_points_kubelet_to_crimux() {
    let node = Node::new("install-plain");
    let drop_in =
        std::fs::read_to_string(repository("deploy/systemd/kubelet.service.d/20-crimux.conf")).unwrap();
    // Where deploy/debian/files puts it.
    node.has("/usr/share/doc/crimux/examples/kubelet.service.d/20-crimux.conf", &drop_in);
    node.paste(&block("Leave the image service endpoint unset."));
    let placed = node.path("/etc/systemd/system/kubelet.service.d/20-crimux.conf");
    assert!(Path::new(&placed).is_file());
    let asked = node.asked();
    let steps: Vec<_> = asked.lines().collect();
    assert_eq!(steps, ["systemctl daemon-reload", "systemctl restart kubelet", "crimux status"], "{asked}");
}

#[test]
fn the_way_back_takes_away_what_the_guide_made_and_stops_crimux_last() {
    let node = Node::new("install-back");
    let crictl = "runtime-endpoint: unix:///run/containerd/containerd.sock\ntimeout: 5\n";
    let made = [
        "/etc/systemd/system/kubelet.service.d/20-crimux.conf",
        "/etc/systemd/system/crimux.service",
        "/etc/systemd/system/crimux.socket",
        "/etc/crimux/config.yaml",
        "/usr/local/bin/crimux",
        "/var/lib/crimux/state",
        "/var/lib/kubelet/config.yaml.before-crimux",
    ];
    for path in made {
        node.has(path, "x");
    }
    node.has("/etc/crictl.yaml", crictl);
    let point = block("crictl reads a file:");
    for _ in 0..2 {
        node.paste(&point);
        assert_eq!(node.content("/etc/crictl.yaml"), format!("runtime-endpoint: {SOCKET}\ntimeout: 5\n"));
    }
    node.paste(&block("take away the drop-in"));
    assert_eq!(node.content("/etc/crictl.yaml"), crictl);
    node.paste(&block("Go on only when"));
    node.paste(&block("stop crimux and take away the copies"));
    node.paste(&block("or what the tarball put there"));
    let left: Vec<_> = made.iter().filter(|path| node.path(path).exists()).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!node.path("/etc/crictl.yaml.before-crimux").exists());
    let asked = node.asked();
    let order = ["restart kubelet", "kubectl wait --for=condition=Ready node/NAME", "disable --now crimux"];
    let places: Vec<_> =
        order.iter().map(|step| asked.find(step).unwrap_or_else(|| panic!("{asked}"))).collect();
    assert!(places.is_sorted(), "{asked}");
}

#[test]
fn every_place_where_kubeadm_keeps_the_endpoint_follows() {
    let old = "unix:///run/containerd/containerd.sock";
    let flags = format!(
        "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint={old} --pod-infra-container-image=p:1\"\n"
    );
    let yaml =
        format!("cgroupDriver: systemd\ncontainerRuntimeEndpoint: {old}\nkind: KubeletConfiguration\n");
    let [env, config, instance] = ["kubeadm-flags.env", "config.yaml", "instance-config.yaml"]
        .map(|name| format!("/var/lib/kubelet/{name}"));
    // By the flag, by the file of the node, by the configuration alone.
    for (number, files) in [
        vec![(&env, &flags), (&config, &yaml)],
        vec![(&instance, &yaml), (&config, &yaml)],
        vec![(&config, &yaml)],
    ]
    .into_iter()
    .enumerate()
    {
        let node = Node::new(&format!("install-kubeadm-{number}"));
        // kubeadm always writes this one, with or without the flag.
        node.has(&env, "KUBELET_KUBEADM_ARGS=\"--pod-infra-container-image=p:1\"\n");
        for (file, content) in &files {
            node.has(file, content);
        }
        let annotate = |sock: &str| {
            format!("kubectl annotate node NAME --overwrite kubeadm.alpha.kubernetes.io/cri-socket={sock}\n")
        };
        node.paste(&block("## kubeadm"));
        assert_eq!(node.asked(), annotate(SOCKET));
        let shown = node.paste(&block("each file has its copy beside it"));
        assert!(shown.contains(SOCKET), "{shown}");
        for (file, content) in &files {
            assert_eq!(node.content(file), content.replace(old, SOCKET), "{file}");
            assert_eq!(&node.content(&format!("{file}.before-crimux")), *content, "{file}");
        }
        assert!(node.asked().ends_with("systemctl restart kubelet\n"), "{}", node.asked());
        // Going back leaves them as they were.
        node.paste(&block("On kubeadm, from where kubectl works"));
        assert!(node.asked().ends_with(&annotate(old)), "{}", node.asked());
        let shown = node.paste(&block("On kubeadm, `sock` is the socket"));
        assert_eq!(shown, "", "crimux's socket is left in none");
        for (file, content) in &files {
            assert_eq!(&node.content(file), *content, "{file}");
        }
    }
}
