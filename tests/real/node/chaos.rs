//! Backends, crimux and kubelet fail one after the other; no pod of Kubernetes changes by it.

use std::time::Duration;

use super::{CLASSES, Node, eventually};

/// How long a backend is stopped: longer than kubelet takes to call a node unready.
const STOPPED: Duration = Duration::from_secs(40);

#[test]
fn what_fails_below_or_beside_kubelet_changes_no_pod() {
    let Some(node) = Node::up_or_skip("") else { return };
    node.one_pod_per_class();
    let before = node.sandboxes();
    let watch = node.watch();

    a_backend_is_killed(&node);
    watch.shows_nothing_of(&CLASSES, "a backend was killed and started");
    stopped(&node, "crun", STOPPED);
    watch.shows_nothing_of(&CLASSES, "a backend was stopped");
    stopped(&node, "new", STOPPED / 2);
    watch.shows_nothing_of(&CLASSES, "the default backend was stopped");
    crimux_is_restarted(&node);
    watch.shows_nothing_of(&CLASSES, "crimux was killed ten times");
    kubelet_is_restarted_while_a_backend_is_down(&node);
    watch.shows_nothing_of(&CLASSES, "kubelet was restarted while a backend was down");
    assert_eq!(node.sandboxes(), before, "a pod has another sandbox, or a second one");

    a_container_that_dies_meanwhile_is_started_again_once(&node);
    watch.shows_nothing_of(&["new", "crun", "gvisor"], "another pod's container died");
    assert_eq!(node.sandboxes(), before);
}

/// One that is not the default: the node stays ready, other pods come.
fn a_backend_is_killed(node: &Node) {
    node.run(&["kill", "old"]);
    node.pod("beside", "crun", "sleep 86400");
    node.ready(&["beside"]);
    node.kubectl(&["delete", "pod", "beside", "--now"]);
    node.run(&["restart", "old"]);
    eventually("the backend is asked again", || {
        node.try_run(&["kubectl", "exec", "old", "--", "true"]).is_ok()
    });
    eventually("the deleted pod is gone", || !node.sandboxes().contains_key("beside"));
}

fn stopped(node: &Node, name: &str, time: Duration) {
    node.run(&["stop", name]);
    // What is shown is what the time does: kubelet asks throughout.
    std::thread::sleep(time);
    node.run(&["cont", name]);
    node.node_ready();
    eventually("the backend is asked again", || {
        node.try_run(&["kubectl", "exec", name, "--", "true"]).is_ok()
    });
}

fn crimux_is_restarted(node: &Node) {
    for round in 0..10 {
        node.run(&["start-crimux"]);
        let pod = format!("round-{round}");
        node.pod(&pod, CLASSES[round % 3], "sleep 86400");
    }
    let names: Vec<_> = (0..10).map(|round| format!("round-{round}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    node.ready(&names);
    node.kubectl(&[&["delete", "pod", "--now"], &names[..]].concat());
    eventually("the deleted pods are gone", || node.sandboxes().len() == CLASSES.len());
    node.node_ready();
}

fn kubelet_is_restarted_while_a_backend_is_down(node: &Node) {
    node.run(&["kill", "old"]);
    node.run(&["start-kubelet"]);
    node.node_ready();
    node.pod("after", "new", "sleep 86400");
    node.ready(&["after"]);
    node.kubectl(&["delete", "pod", "after", "--now"]);
    node.run(&["restart", "old"]);
    eventually("the backend is asked again", || {
        node.try_run(&["kubectl", "exec", "old", "--", "true"]).is_ok()
    });
    eventually("the deleted pod is gone", || !node.sandboxes().contains_key("after"));
}

/// Its exit is seen when its backend is back, and kubelet starts it again.
fn a_container_that_dies_meanwhile_is_started_again_once(node: &Node) {
    let id = node.run(&["crictl", "ps", "-q", "--label", "io.kubernetes.pod.name=old"]);
    let status = node.run(&["crictl", "inspect", &id]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let pid = status["info"]["pid"].as_u64().unwrap().to_string();
    node.run(&["kill", "old"]);
    node.run(&["run", "kill", "-9", &pid]);
    node.run(&["restart", "old"]);
    eventually("the container runs again", || node.seen()["old"] == ("1".to_owned(), "True".to_owned()));
}
