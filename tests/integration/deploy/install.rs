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
    rest.split_once("```sh\n").unwrap().1.split_once("```").unwrap().0.to_owned()
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
        for directory in ["/var/lib/kubelet", "/etc/systemd", "/usr/share/doc"] {
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
    assert_eq!(steps[..2], ["systemctl daemon-reload", "systemctl restart kubelet"], "{asked}");
    assert!(steps[2].starts_with("kubectl get node "), "{asked}");
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
        let shown = node.paste(&block("## kubeadm"));
        assert!(shown.contains(SOCKET), "{shown}");
        for (file, content) in &files {
            assert_eq!(node.content(file), content.replace(old, SOCKET), "{file}");
        }
        let asked = node.asked();
        let annotated = format!("kubeadm.alpha.kubernetes.io/cri-socket={SOCKET}");
        assert!(
            asked.starts_with("kubectl annotate node NAME --overwrite ") && asked.contains(&annotated),
            "{asked}"
        );
        assert!(asked.ends_with("systemctl restart kubelet\n"), "{asked}");
        // Going back leaves them as they were.
        let shown = node.paste(&block("On kubeadm, `sock` is the socket"));
        assert_eq!(shown, "", "crimux's socket is left in none");
        for (file, content) in &files {
            assert_eq!(&node.content(file), *content, "{file}");
        }
        let annotated = format!("kubeadm.alpha.kubernetes.io/cri-socket={old}\n");
        assert!(node.asked().ends_with(&annotated), "{}", node.asked());
    }
}
