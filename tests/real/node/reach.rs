//! What kubectl does with a pod reaches it on every backend; kubelet's own numbers have every pod.

use super::numbers::numbers_have;
use super::{CLASSES, GATES, Node, Running, command, eventually};
use std::process::Stdio;

/// What one of the four backends answers Unimplemented.
const LACKS: &str = "crun:PodSandboxStats,ListPodSandboxStats,StreamPodSandboxStats";

#[test]
fn pods_of_every_class_are_ready_and_kubectl_reaches_them() {
    let Some(node) = Node::up_or_skip("") else { return };
    for class in CLASSES {
        let speaks = "echo hello from $HOSTNAME; mkdir -p /tmp/www; echo served >/tmp/www/index.html; httpd -p 80 -h /tmp/www; \
                      while read -r line; do echo got $line; done; trap 'exit 0' TERM; sleep 86400 & wait";
        node.pod(class, class, speaks);
    }
    node.ready(&CLASSES);
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    for class in CLASSES {
        assert_eq!(node.kubectl(&["logs", class]), format!("hello from {class}"));
        let kernel = node.kubectl(&["exec", class, "--", "uname", "-r"]);
        assert_eq!(kernel == host.trim(), class != "gvisor", "{class} has kernel {kernel}");
        let refused = node.try_run(&["kubectl", "exec", class, "--", "sh", "-c", "exit 7"]).unwrap_err();
        assert!(refused.contains("exit code 7"), "{refused}");
    }
    forwarded(&node);
    numbers_have(&node, "stats/summary", &CLASSES);
}

#[test]
fn the_gates_of_kubelet_find_what_they_look_for() {
    // Of the four `old` has neither an event stream nor RuntimeConfig, and `crun` is made to lack pod stats.
    let Some(node) = Node::up_with(&[("NODE_FEATURES", GATES), ("NODE_LACKS", LACKS)]) else { return };
    node.one_pod_per_class();
    let probe = node.run(&["crimux", "check", "--probe"]);
    assert!(probe.contains("crun: it has no PodSandboxStats and keeps them from being offered"), "{probe}");
    let log = node.run(&["logs", "kubelet"]);
    assert!(!log.contains("unrecognized feature gate"), "{log}");
    for class in CLASSES {
        assert_eq!(node.kubectl(&["exec", class, "--", "echo", "here"]), "here");
    }
    let kubelet = process_of(&node, "kubelet");
    numbers_have(&node, "stats/summary", &CLASSES);
    numbers_have(&node, "metrics/resource", &CLASSES);
    // The others have no ListPodSandboxMetrics, as directly.
    numbers_have(&node, "metrics/cadvisor", &["new", "gvisor"]);
    for (round, class) in CLASSES.into_iter().enumerate() {
        stop_behind_kubelet(&node, class);
        restarted_so_far(&node, &CLASSES[..=round], "1");
    }
    // A container of gVisor has no process of its own on the host.
    for class in ["new", "old", "crun"] {
        end_while_its_backend_is_down(&node, class);
    }
    restarted_so_far(&node, &["new", "old", "crun"], "2");
    node.run(&["start-crimux"]);
    node.run(&["restart", "gvisor"]);
    stop_behind_kubelet(&node, "gvisor");
    restarted_so_far(&node, &CLASSES, "2");
    numbers_have(&node, "stats/summary", &CLASSES);
    assert_eq!(process_of(&node, "kubelet"), kubelet, "kubelet was started again");
}

/// The process ID of a program of the node.
fn process_of(node: &Node, name: &str) -> String {
    node.run(&["pid", name])
}

/// The one container of a pod, as its own backend shows it.
fn container_of(node: &Node, class: &str) -> String {
    let ids = node.on_backend(class, &["ps", "-q", "--name", "main"]);
    assert_eq!(ids.lines().count(), 1, "{class} runs {ids}");
    ids
}

fn stop_behind_kubelet(node: &Node, class: &str) {
    let id = container_of(node, class);
    node.on_backend(class, &["stop", "--timeout", "1", &id]);
}

/// The stream is cut when it happens, and no event of it is ever sent.
fn end_while_its_backend_is_down(node: &Node, class: &str) {
    let status = node.on_backend(class, &["inspect", &container_of(node, class)]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let process = status["info"]["pid"].as_u64().unwrap().to_string();
    node.run(&["kill", class]);
    node.run(&["run", "kill", "-TERM", &process]);
    node.run(&["restart", class]);
}

fn restarted_so_far(node: &Node, classes: &[&str], times: &str) {
    eventually("the containers run again", || {
        let seen = node.seen();
        classes.iter().all(|class| seen[*class] == (times.to_owned(), "True".to_owned()))
    });
}

/// A port of a pod of each class is reached through kubelet and crimux.
fn forwarded(node: &Node) {
    for (place, class) in CLASSES.iter().enumerate() {
        let port = 18000 + place;
        let mut forward = command(
            &node.directory,
            &["kubectl", "port-forward", &format!("pod/{class}"), &format!("{port}:80")],
        );
        forward.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let _running = Running::start(&mut forward);
        let url = format!("http://127.0.0.1:{port}/");
        let fetch = || node.try_run(&["run", "curl", "-sf", "--max-time", "5", &url]);
        eventually("the forwarded port answers", || fetch().is_ok_and(|page| page == "served"));
    }
}
