//! `crimux upgrade` under a real kubelet: no call and no stream ends, no list goes back, no pod changes.
//!
//! One of the backends is on another host, so that crimux relays what kubectl does with its pod.

use traffic::{Events, Exec, Forward, Lists, LongExec};

use super::{CLASSES, Node, eventually};

mod traffic;

/// How many times crimux is upgraded.
const HANDOVERS: usize = 20;
/// The backend on the other host, its class, and the pod there.
const FAR: &str = "far";
/// A pod that ignores TERM.
const STUBBORN: &str = "stubborn";
/// Serves a page on port 80, and sends back what it gets on port 81.
const SERVES: &str = "mkdir -p /tmp/www; echo served >/tmp/www/index.html; httpd -p 80 -h /tmp/www; \
                      nc -ll -p 81 -e cat & trap 'exit 0' TERM; sleep 86400 & wait";
/// What the exec carries to the container, and back, in bytes.
const CARRIED: usize = 64 << 20;

#[test]
fn twenty_handovers_end_no_call_and_no_stream_and_change_no_pod() {
    let Some(node) = Node::up_or_skip("") else { return };
    another_host(&node);
    let pods = [&CLASSES[..], &[FAR]].concat();
    for pod in &pods {
        node.pod(pod, pod, SERVES);
    }
    node.pod(STUBBORN, CLASSES[0], "trap '' TERM; sleep 86400 & wait");
    node.ready(&[&pods[..], &[STUBBORN]].concat());
    let (before, stubborn) = (node.sandboxes(), container_of(&node, STUBBORN));
    let (watch, logged) = (node.watch(), node.run(&["logs", "kubelet"]).len());

    let lists = Lists::start(node.directory.join("crimux.sock"));
    let mut events = Events::start(&node);
    let call = LongExec::start(&node);
    let mut exec = Exec::start(&node);
    let mut forward = Forward::start(&node);
    node.kubectl(&["delete", "pod", STUBBORN, "--grace-period=60", "--wait=false"]);
    eventually("the container is being stopped", || stops_of(&node, &stubborn) == 1);

    let mut created = Vec::new();
    for round in 0..HANDOVERS {
        lists.wait_for_more();
        exec.send(CARRIED / (HANDOVERS + 1));
        forward.is_answered(&format!("round {round}"));
        if round % 4 == 0 {
            // kubelet creates it while crimux hands over.
            let name = format!("round-{round}");
            node.pod(&name, pods[round / 4], "sleep 86400");
            created.push(name);
        }
        let said = node.run(&["crimux", "upgrade"]);
        assert!(said.contains(" serves; pid "), "{said}");
    }
    lists.wait_for_more();

    node.ready(&created.iter().map(String::as_str).collect::<Vec<_>>());
    events.tell_of(&created[0]);
    call.ends(&node);
    exec.ends(CARRIED);
    forward.is_answered("after");
    let page = node.run(&["run", "curl", "-sf", "--max-time", "30", &traffic::page()]);
    assert_eq!(page, "served", "a later connection through the same port-forward");
    eventually("the stopped pod is gone", || !node.sandboxes().contains_key(STUBBORN));
    assert_eq!(stops_of(&node, &stubborn), 1, "the container was stopped once");
    let wrong = lists.stop();
    assert!(wrong.is_empty(), "{wrong:?}\n{}", node.run(&["logs", "crimux"]));

    watch.shows_nothing_of(&pods, "crimux was upgraded");
    let after = node.sandboxes();
    for pod in &pods {
        assert_eq!(after[*pod], before[*pod], "{pod} has another sandbox, or a second one");
    }
    assert!(created.iter().all(|pod| after[pod].len() == 1), "a pod was created twice: {after:?}");
    let log = node.run(&["logs", "kubelet"]).split_off(logged);
    let failed: Vec<_> = log.lines().filter(|line| line.contains("code = Unavailable")).collect();
    assert!(failed.is_empty(), "kubelet saw calls fail: {failed:?}");
    drop((events, forward));
    eventually("the older processes have ended", || older_processes(&node) == 0);
}

/// Starts a containerd with network and mounts of its own, and makes it a backend with a `RuntimeClass`.
fn another_host(node: &Node) {
    node.run(&["remote", FAR, "1"]);
    let path = node.run(&["config"]);
    let tls = node.directory.join("tls");
    let tls = tls.display();
    let endpoint = "endpoint: \"https://10.77.1.2:10010\", local: false";
    let streaming = "streaming: { address: \"10.77.1.2:10011\" }";
    let tls = format!("tls: {{ ca: {tls}/ca.crt, cert: {tls}/client.crt, key: {tls}/client.key }}");
    let backend = format!("  {FAR}: {{ {endpoint}, {streaming}, {tls} }}\n");
    let handler = format!("handlers:\n  {FAR}: {{ backend: {FAR}, handler: runc }}\n");
    let yaml = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, yaml.replace("handlers:\n", &(backend + &handler))).unwrap();
    node.run(&["crimux", "reload"]);
    node.run(&["class", FAR]);
}

/// How often kubelet has told the backend of a container to stop it.
fn stops_of(node: &Node, container: &str) -> usize {
    let log = node.run(&["logs", CLASSES[0]]);
    let begun = |line: &&str| line.contains("StopContainer for") && line.contains("with timeout");
    log.lines().filter(begun).filter(|line| line.contains(container)).count()
}

/// How many processes of crimux were replaced and still finish calls.
fn older_processes(node: &Node) -> usize {
    let status = node.run(&["crimux", "status", "-o", "json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    status["older_processes"].as_array().map_or(0, Vec::len)
}

/// The one container of a pod.
fn container_of(node: &Node, pod: &str) -> String {
    node.run(&["crictl", "ps", "-q", "--label", &format!("io.kubernetes.pod.name={pod}")])
}
