//! The numbers that kubelet serves of its pods: the same through crimux as directly.

use std::collections::BTreeSet;
use std::process::Stdio;

use serde_json::Value;

use super::{GATES, Node, command, eventually};

/// Where kubelet serves numbers of pods.
const PATHS: [&str; 3] = ["stats/summary", "metrics/resource", "metrics/cadvisor"];

#[test]
fn kubelet_serves_the_same_numbers_as_directly() {
    let Some(node) = Node::up_with(&[("NODE_BACKENDS", "new:runc@newest"), ("NODE_FEATURES", GATES)]) else {
        return;
    };
    let pods = ["first", "second"];
    for pod in pods {
        node.pod(pod, "new", "trap 'exit 0' TERM; sleep 86400 & wait");
    }
    node.ready(&pods);
    let through = PATHS.map(|path| {
        numbers_have(&node, path, &pods);
        settled(&node, path)
    });
    let mut direct = command(&node.directory, &["start-kubelet"]);
    direct.env("NODE_DIRECT", "new").env("NODE_FEATURES", GATES).stdin(Stdio::null());
    assert!(direct.status().unwrap().success(), "kubelet does not start on the backend itself");
    node.node_ready();
    for (path, through) in PATHS.into_iter().zip(through) {
        numbers_have(&node, path, &pods);
        let direct = settled(&node, path);
        let only = |these: &BTreeSet<String>, those| these.difference(those).cloned().collect::<Vec<_>>();
        assert_eq!(only(&direct, &through), [""; 0], "{path}: not through crimux");
        assert_eq!(only(&through, &direct), [""; 0], "{path}: not directly");
    }
}

/// What kubelet serves at this path comes to have every one of these pods.
pub(super) fn numbers_have(node: &Node, path: &str, pods: &[&str]) {
    eventually(&format!("{path} has {pods:?}"), || {
        let numbers = fetch(node, path).unwrap_or_default();
        pods.iter().all(|pod| match serde_json::from_str::<Value>(&numbers) {
            Ok(summary) => of_pods(&summary).any(|(name, stats)| name == *pod && stats["memory"].is_object()),
            Err(_) => numbers.contains(&format!("pod=\"{pod}\"")),
        })
    });
}

/// The names of a path's numbers once many answers in a row have the same: rates need a second sample.
fn settled(node: &Node, path: &str) -> BTreeSet<String> {
    let mut last = BTreeSet::new();
    let mut same = 0;
    eventually(&format!("{path} has the same numbers 60 times"), || {
        let now = fetch(node, path).map(|numbers| names(&numbers)).unwrap_or_default();
        same = if now.is_empty() || now != last { 0 } else { same + 1 };
        last = now;
        same >= 60
    });
    last
}

fn fetch(node: &Node, path: &str) -> Result<String, String> {
    let url = format!("https://127.0.0.1:10250/{path}");
    node.try_run(&["run", "curl", "-sfk", "--max-time", "30", &url])
}

/// The pods of a summary with their names.
fn of_pods(summary: &Value) -> impl Iterator<Item = (&str, &Value)> {
    summary["pods"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|pod| Some((pod["podRef"]["name"].as_str()?, pod)))
}

/// The series of pods, or the fields of the summary's pods, without their values.
fn names(numbers: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    if let Ok(summary) = serde_json::from_str::<Value>(numbers) {
        for (name, pod) in of_pods(&summary) {
            fields(name, pod, &mut names);
        }
    } else {
        let series = numbers.lines().filter(|line| line.contains("pod=\"") && !line.contains("pod=\"\""));
        names.extend(series.filter_map(|line| Some(line.rsplit_once('}')?.0.to_owned())));
    }
    names
}

/// The paths of every leaf below this value; an item of a list is named by its `name`.
fn fields(at: &str, value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                fields(&format!("{at}.{key}"), member, names);
            }
        }
        Value::Array(items) => {
            for item in items {
                fields(&format!("{at}[{}]", item["name"].as_str().unwrap_or_default()), item, names);
            }
        }
        _ => drop(names.insert(at.to_owned())),
    }
}
