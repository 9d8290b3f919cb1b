//! What kubectl does with a pod reaches it on every backend; kubelet's own numbers have every pod.

use super::{CLASSES, LONG, Node, command, eventually};
use std::process::{Child, Stdio};

/// The gates that change how kubelet asks a runtime.
const GATES: &str =
    "EventedPLEG=true,CRIListStreaming=true,PodAndContainerStatsFromCRI=true,RuntimeClassInImageCriApi=true";

/// A command that runs until it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended by itself if its pod ended first.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

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
    summary_has(&node, &CLASSES);
}

#[test]
fn the_gates_of_kubelet_find_what_they_look_for() {
    let Some(node) = Node::up_or_skip(GATES) else { return };
    node.one_pod_per_class();
    let log = node.run(&["logs", "kubelet"]);
    assert!(!log.contains("unrecognized feature gate"), "{log}");
    for class in CLASSES {
        assert_eq!(node.kubectl(&["exec", class, "--", "echo", "here"]), "here");
    }
    summary_has(&node, &CLASSES);
    // A container that dies is noticed and started again, whichever way kubelet learns of it.
    node.kubectl(&["exec", "old", "--", "kill", "1"]);
    eventually("the restart is seen", || node.seen()["old"] == ("1".to_owned(), "True".to_owned()));
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
        let _running = Running(forward.spawn().unwrap());
        let url = format!("http://127.0.0.1:{port}/");
        let fetch = || node.try_run(&["run", "curl", "-sf", "--max-time", "5", &url]);
        eventually("the forwarded port answers", || fetch().is_ok_and(|page| page == "served"));
    }
}

/// kubelet's summary has every one of these pods, with memory of its containers.
fn summary_has(node: &Node, pods: &[&str]) {
    let url = "https://127.0.0.1:10250/stats/summary";
    let mut shown = String::new();
    let end = std::time::Instant::now() + LONG;
    while std::time::Instant::now() < end {
        shown = node.try_run(&["run", "curl", "-sk", "--max-time", "30", url]).unwrap_or_else(|said| said);
        let summary: serde_json::Value = serde_json::from_str(&shown).unwrap_or_default();
        let listed: Vec<_> = summary["pods"].as_array().into_iter().flatten().collect();
        let has = |name: &&str| listed.iter().any(|pod| pod["podRef"]["name"] == **name);
        if pods.iter().all(has) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    panic!("not every pod is in the summary: {shown}");
}
