//! `docs/migration.md`, "From containerd 1.7 to 2.x": a node whose only runtime has no `RuntimeConfig` gets
//! one that has.

use std::collections::BTreeMap;

use super::{Node, eventually};

/// kubelet counts a runtime without `RuntimeConfig` here; kubeadm's preflight `ContainerRuntimeVersion` asks
/// the same.
const LOSING_SUPPORT: &str = "kubelet_cri_losing_support{version=\"1.38.0\"}";

#[test]
fn a_node_on_an_old_containerd_becomes_one_on_a_new_containerd_without_losing_a_pod() {
    let Some(node) = Node::up_with(&[("NODE_BACKENDS", "old:runc@debian")]) else { return };
    let pods = ["first", "second"];
    for pod in pods {
        node.pod(pod, "old", "trap 'exit 0' TERM; sleep 86400 & wait");
    }
    node.ready(&pods);
    eventually("kubelet counts the missing RuntimeConfig", || {
        kubelet_metrics(&node).contains(LOSING_SUPPORT)
    });
    let before = node.sandboxes();
    let watch = node.watch();

    edit(&node, |yaml| format!("{yaml}cgroup_driver: cgroupfs\n"));
    node.run(&["start-kubelet"]);
    node.node_ready();
    let answer = node.run(&["crictl", "info"]);
    assert!(answer.contains("RuntimeReady"), "{answer}");
    assert!(!kubelet_metrics(&node).contains(LOSING_SUPPORT), "the key answers for the old runtime");

    node.run(&["backend", "new", "runc@newest", "10.88.9"]);
    let endpoint = node.directory.join("run/new/containerd.sock");
    edit(&node, |yaml| {
        let new = format!("backends:\n  new: {{ endpoint: \"unix://{}\" }}\n", endpoint.display());
        yaml.replace("backends:\n", &new)
    });
    node.run(&["crimux", "check", "--probe"]);
    edit(&node, |yaml| {
        yaml.replace("default_backend: old", "default_backend: new")
            .replace("handlers:\n", "handlers:\n  new: { backend: new, handler: runc }\n")
            .replace("  old: { backend: old, handler: runc }", "  old: { backend: new, handler: runc }")
    });
    node.pod("third", "old", "sleep 86400");
    node.ready(&["third"]);
    let on = |backend| node.on_backend(backend, &["pods", "-q"]).lines().count();
    assert_eq!((on("old"), on("new")), (2, 1), "new pods go to the new runtime, old ones stay");
    node.run(&["start-kubelet"]);
    node.node_ready();
    assert!(!kubelet_metrics(&node).contains(LOSING_SUPPORT));
    watch.shows_nothing_of(&pods, "the node was moved");
    let kept: BTreeMap<_, _> =
        node.sandboxes().into_iter().filter(|(pod, _)| pods.contains(&pod.as_str())).collect();
    assert_eq!(kept, before);

    node.kubectl(&["delete", "pod", "first", "second", "--now"]);
    eventually("the old runtime has no pods", || on("old") == 0);
    edit(&node, |yaml| {
        let is_old =
            |line: &&str| !line.starts_with("  old: { endpoint") && !line.starts_with("cgroup_driver");
        let kept: Vec<_> = yaml.lines().filter(is_old).collect();
        kept.join("\n") + "\n"
    });
    node.run(&["kill", "old"]);
    node.run(&["start-kubelet"]);
    node.node_ready();
    assert!(!kubelet_metrics(&node).contains(LOSING_SUPPORT), "the new runtime answers for itself");
    assert_eq!(node.seen()["third"], ("0".to_owned(), "True".to_owned()));
}

/// Rewrites the node's configuration and waits until crimux, which watches the file, has read it.
fn edit(node: &Node, change: impl FnOnce(String) -> String) {
    let reloads = |result: &str| {
        let status = node.run(&["crimux", "status", "-o", "json"]);
        serde_json::from_str::<serde_json::Value>(&status).unwrap()["reloads"][result].as_u64().unwrap()
    };
    let before = reloads("ok");
    let path = node.run(&["config"]);
    let yaml = std::fs::read_to_string(&path).unwrap();
    let changed = change(yaml.clone());
    assert_ne!(changed, yaml, "nothing to change");
    std::fs::write(&path, changed).unwrap();
    eventually("the configuration is read", || {
        assert_eq!(reloads("failed"), 0);
        reloads("ok") > before
    });
}

fn kubelet_metrics(node: &Node) -> String {
    node.run(&["run", "curl", "-sfk", "--max-time", "30", "https://127.0.0.1:10250/metrics"])
}
