//! The backends of a node are renamed and their names given away under running pods; Kubernetes sees nothing
//! of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{CLASSES, Node, Watch, eventually};

/// How long the runtime whose name is given away takes no call.
const BUSY: Duration = Duration::from_millis(2500);

#[test]
fn a_runtime_that_is_renamed_or_gives_its_name_away_loses_no_pod() {
    let Some(node) = Node::up_or_skip("") else { return };
    node.one_pod_per_class();
    let before = node.sandboxes();
    let watch = node.watch();

    // A name is a key of `backends`, and what handlers and `default_backend` refer to.
    let path = node.run(&["config"]);
    let first = std::fs::read_to_string(&path).unwrap();
    let renamed = rename(&first, "new", "main");
    assert_ne!(renamed, first);
    edit(&node, &path, &renamed);
    same(&node, &watch, &before, "the default backend was renamed");

    // Its name goes to a runtime that is not known yet, while it takes no call.
    node.run(&["backend", "extra", "runc@2.1", "10.88.9"]);
    let given_away = rename(&renamed, "main", "main-old");
    let entry = renamed.lines().find(|line| line.starts_with("  main: { endpoint:")).unwrap();
    let extra = format!("backends:\n{}\n", entry.replace("/new/", "/extra/"));
    assert!(extra.contains("/extra/"), "{extra}");
    let given_away = given_away.replacen("backends:\n", &extra, 1);
    node.run(&["stop", "new"]);
    let stopped = Instant::now();
    edit(&node, &path, &given_away);
    // What is shown is what the time does: kubelet asks throughout.
    std::thread::sleep(BUSY.saturating_sub(stopped.elapsed()));
    node.run(&["cont", "new"]);
    eventually("the runtime answers again", || {
        node.try_run(&["kubectl", "exec", "new", "--", "true"]).is_ok()
    });
    same(&node, &watch, &before, "its name was given to another runtime");
}

/// Gives a backend another name wherever the file has it.
fn rename(config: &str, from: &str, to: &str) -> String {
    config
        .replace(&format!("default_backend: {from}\n"), &format!("default_backend: {to}\n"))
        .replace(&format!("\n  {from}: {{ endpoint:"), &format!("\n  {to}: {{ endpoint:"))
        .replace(&format!("backend: {from},"), &format!("backend: {to},"))
        .replace(&format!("backend: {from} }}"), &format!("backend: {to} }}"))
}

/// Applies another configuration.
fn edit(node: &Node, path: &str, text: &str) {
    std::fs::write(path, text).unwrap();
    node.run(&["crimux", "reload"]);
}

/// Asserts that kubelet has found nothing to do, by the time that another pod came and went.
fn same(node: &Node, watch: &Watch, before: &BTreeMap<String, Vec<String>>, what: &str) {
    // kubelet relists each second, and syncs a pod that looks changed at once.
    node.pod("beside", "crun", "sleep 86400");
    node.ready(&["beside"]);
    node.kubectl(&["delete", "pod", "beside", "--now"]);
    eventually("the deleted pod is gone", || !node.sandboxes().contains_key("beside"));
    assert_eq!(&node.sandboxes(), before, "{what}: a pod has another sandbox, or a second one");
    watch.shows_nothing_of(&CLASSES, what);
}
