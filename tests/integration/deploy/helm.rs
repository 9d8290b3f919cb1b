//! The Helm chart: linted, rendered, and of one mind with the kustomize base it is made of.

use std::collections::BTreeSet;
use std::process::{Command, Output};

use serde_yaml::Value;

use super::kubernetes::{documents, of_kind};
use super::{home, read, repository, text, tool};

const CHART: &str = "deploy/helm/crimux";
/// A Helm that was built from its module takes the cluster for a very old one.
pub(crate) const KUBERNETES: &str = "1.37.0";
/// A configuration whose metrics can be scraped.
const OPEN: &str = "config=admin: { http: \"0.0.0.0:19440\" }";
const IMAGE: [&str; 2] = ["--set", "image.repository=registry.test/crimux-node"];

/// `helm VERB` on the chart with more arguments, or `None` without Helm.
fn helm(verb: &[&str], arguments: &[&str]) -> Option<Output> {
    let mut helm: Command = tool("helm", "none; dev/tools/build helm")?;
    helm.args(verb).arg(repository(CHART)).args(["--kube-version", KUBERNETES]).args(arguments);
    Some(helm.output().unwrap())
}

/// What the chart renders with an image and `arguments`.
fn rendered(arguments: &[&str]) -> Option<Vec<Value>> {
    let arguments = [&["--namespace", "crimux-system"], &IMAGE[..], arguments].concat();
    let output = helm(&["template", "crimux"], &arguments)?;
    assert!(output.status.success(), "{}", text(&output));
    Some(documents(&String::from_utf8(output.stdout).unwrap()))
}

/// The names of everything rendered, as `Kind/name`, without the part that follows a `ConfigMap`'s contents.
fn names(rendered: &[Value]) -> BTreeSet<String> {
    let name = |document: &Value| {
        let (kind, name) =
            (document["kind"].as_str().unwrap(), document["metadata"]["name"].as_str().unwrap());
        let hashed = kind == "ConfigMap" && name.starts_with("crimux-node");
        format!("{kind}/{}", if hashed { name.rsplit_once('-').unwrap().0 } else { name })
    };
    rendered.iter().map(name).collect()
}

#[test]
fn helm_has_nothing_to_say_about_the_chart() {
    let Some(output) = helm(&["lint", "--strict"], &IMAGE) else { return };
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn the_chart_does_not_render_with_the_placeholder_unless_told_to() {
    let values: Value = serde_yaml::from_str(&read(&format!("{CHART}/values.yaml"))).unwrap();
    assert_eq!(values["image"]["repository"].as_str(), Some(home::home("CRIMUX_IMAGE").as_str()));
    assert_eq!(values["docs"].as_str(), Some(home::home("CRIMUX_DOCS").as_str()));
    let Some(output) = helm(&["template"], &[]) else { return };
    assert!(!output.status.success() && text(&output).contains("is the placeholder"), "{}", text(&output));
    let told = helm(&["template"], &["--set", "allowPlaceholder=true"]).unwrap();
    assert!(told.status.success(), "{}", text(&told));
}

#[test]
fn by_default_the_chart_makes_what_the_base_makes_and_nothing_that_a_cluster_may_lack() {
    let Some(rendered) = rendered(&[]) else { return };
    assert_eq!(
        names(&rendered),
        ["ConfigMap/crimux-node", "DaemonSet/crimux-node", "DaemonSet/crimux-node-remove"]
            .map(String::from)
            .into()
    );
    let map = of_kind(&rendered, "ConfigMap")[0];
    for file in ["config.yaml", "crimux-node.sh"] {
        let original = read(&format!("deploy/kubernetes/base/{file}"));
        assert_eq!(map["data"][file].as_str().map(str::trim_end), Some(original.trim_end()), "{file}");
    }
    for (set, file) in of_kind(&rendered, "DaemonSet").into_iter().zip(["daemonset", "daemonset-remove"]) {
        let base: Value =
            serde_yaml::from_str(&read(&format!("deploy/kubernetes/base/{file}.yaml"))).unwrap();
        let pod = |set: &Value| set["spec"]["template"]["spec"].clone();
        let container = &pod(set)["containers"][0];
        assert_eq!(container["image"].as_str(), Some("registry.test/crimux-node:0.1.0"));
        for key in ["command", "readinessProbe", "securityContext", "volumeMounts", "resources"] {
            assert_eq!(container[key], pod(&base)["containers"][0][key], "{file}: {key}");
        }
        for key in ["nodeSelector", "tolerations", "hostPID", "hostNetwork", "priorityClassName"] {
            assert_eq!(pod(set)[key], pod(&base)[key], "{file}: {key}");
        }
        assert_eq!(set["spec"]["updateStrategy"], base["spec"]["updateStrategy"], "{file}");
        assert_eq!(pod(set)["volumes"][1]["configMap"]["name"], map["metadata"]["name"], "{file}");
    }
}

#[test]
fn what_a_cluster_may_lack_is_made_when_it_is_asked_for() {
    let asked = [
        "--set",
        "podMonitor.enabled=true,prometheusRule.enabled=true,dashboard.enabled=true,networkPolicy.enabled=true",
        "--set",
        "runtimeClasses.gvisor.handler=gvisor,docs=https://docs.example/crimux/",
        "--set-string",
        OPEN,
    ];
    let Some(rendered) = rendered(&asked) else { return };
    let names = names(&rendered);
    for wanted in [
        "PodMonitor/crimux",
        "PrometheusRule/crimux",
        "ConfigMap/crimux-dashboard",
        "NetworkPolicy/crimux",
        "RuntimeClass/gvisor",
    ] {
        assert!(names.contains(wanted), "{wanted} is not in {names:?}");
    }
    let groups = of_kind(&rendered, "PrometheusRule")[0]["spec"]["groups"].as_sequence().unwrap();
    let rules: Vec<&Value> = groups.iter().flat_map(|group| group["rules"].as_sequence().unwrap()).collect();
    assert_eq!(rules.len(), count("alert:") + count("record:"));
    for rule in rules.iter().filter(|rule| !rule["alert"].is_null()) {
        let link = rule["annotations"]["runbook_url"].as_str().unwrap();
        assert!(link.starts_with("https://docs.example/crimux/runbook.md#"), "{link}");
    }
    assert_eq!(of_kind(&rendered, "RuntimeClass")[0]["handler"].as_str(), Some("gvisor"));
}

/// How many rules of the two files have `key`.
fn count(key: &str) -> usize {
    let files = ["alerts", "recording"].map(|name| read(&format!("deploy/prometheus/{name}.rules.yaml")));
    files
        .iter()
        .flat_map(|file| file.lines())
        .filter(|line| line.trim_start_matches([' ', '-']).starts_with(key))
        .count()
}

#[test]
fn a_pool_has_a_configuration_of_its_own_on_nodes_that_no_other_pool_has() {
    let pools = [
        "--set-string",
        "pools.gpu.config=admin: { http: \"10.0.0.1:1944\" }",
        "--set-string",
        OPEN,
        "--set",
        "nodeSelector.disk=ssd,podMonitor.enabled=true",
    ];
    let Some(rendered) = rendered(&pools) else { return };
    let sets = of_kind(&rendered, "DaemonSet");
    let set = |name: &str| *sets.iter().find(|set| set["metadata"]["name"].as_str() == Some(name)).unwrap();
    let (gpu, rest) = (set("crimux-node-pool-gpu"), set("crimux-node"));
    let pod = |set: &Value| set["spec"]["template"]["spec"].clone();
    assert_eq!(pod(gpu)["nodeSelector"]["crimux.io/pool"].as_str(), Some("gpu"));
    assert_eq!(pod(gpu)["nodeSelector"]["disk"].as_str(), Some("ssd"));
    let left_out = &pod(rest)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        [0]["matchExpressions"][0];
    assert_eq!((left_out["operator"].as_str(), left_out["values"][0].as_str()), (Some("NotIn"), Some("gpu")));
    assert_eq!(
        gpu["spec"]["selector"]["matchLabels"], gpu["spec"]["template"]["metadata"]["labels"],
        "a DaemonSet that does not select its own pods is refused"
    );
    assert_ne!(gpu["spec"]["selector"], rest["spec"]["selector"], "one would select the pods of the other");
    let monitored = &of_kind(&rendered, "PodMonitor")[0]["spec"]["selector"]["matchExpressions"][0]["values"];
    assert_eq!(monitored.as_sequence().map(Vec::len), Some(2), "{monitored:?}");
    let maps = of_kind(&rendered, "ConfigMap");
    let config = |set: &Value| {
        let name = pod(set)["volumes"][1]["configMap"]["name"].clone();
        let map = maps.iter().find(|map| map["metadata"]["name"] == name).unwrap();
        map["data"]["config.yaml"].as_str().unwrap().to_owned()
    };
    assert_eq!(config(gpu).trim_end(), "admin: { http: \"10.0.0.1:1944\" }");
    assert_ne!(config(rest), config(gpu));
    let port = |set: &Value| pod(set)["containers"][0]["ports"][0]["hostPort"].as_u64();
    assert_eq!((port(gpu), port(rest)), (Some(1944), Some(19440)), "each has its own port");
}

#[test]
fn ports_follow_admin_http_and_a_monitor_of_ports_that_nobody_reaches_is_refused() {
    let ports = |http: &str| {
        let config = format!("config=admin: {{ http: {http} }}");
        let rendered = rendered(&["--set-string", &config])?;
        let set = of_kind(&rendered, "DaemonSet")[0].clone();
        Some(set["spec"]["template"]["spec"]["containers"][0]["ports"].clone())
    };
    let Some(open) = ports("\"[::]:7000\"") else { return };
    assert_eq!((open[0]["containerPort"].as_u64(), open[0]["hostPort"].as_u64()), (Some(7000), Some(7000)));
    assert!(ports("off").unwrap().is_null());
    let monitored = |config: &[&str]| {
        let arguments = [&IMAGE[..], &["--set", "podMonitor.enabled=true"], config].concat();
        helm(&["template"], &arguments).unwrap()
    };
    let (off, pool) = ("config=admin: { http: off }", "pools.gpu.config=a: b");
    for (config, what) in [
        (vec![], "admin.http of config is 127.0.0.1:19440"),
        (vec!["--set-string", off], "admin.http of config is off"),
        (vec!["--set-string", OPEN, "--set-string", pool], "admin.http of pools.gpu.config is"),
    ] {
        let output = monitored(&config);
        assert!(!output.status.success() && text(&output).contains(what), "{what}: {}", text(&output));
    }
    assert!(monitored(&["--set-string", OPEN]).status.success());
}

#[test]
fn a_mistake_in_the_values_is_refused_with_its_name() {
    for (values, wanted) in [
        ("runtimeClasses.gvisor.x=1", "/runtimeClasses/gvisor"),
        ("pools.gpu.x=1", "/pools/gpu"),
        ("podMonitr.enabled=true", "podMonitr"),
        ("kubelet=sometimes", "kubelet"),
        ("config=a: [", "config is no YAML"),
    ] {
        let Some(output) = helm(&["template"], &[&IMAGE[..], &["--set", values]].concat()) else { return };
        assert!(!output.status.success() && text(&output).contains(wanted), "{values}: {}", text(&output));
    }
}
