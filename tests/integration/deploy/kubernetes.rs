//! The manifests: well-formed, buildable, and of one mind with the configuration they carry.

use std::collections::BTreeSet;
use std::process::Output;

use serde::Deserialize;
use serde_yaml::Value;

use super::{files_below, home, read, repository, scratch, text, tool, write};

const IMAGE: &str = "registry.test/team/crimux-node:1.2.3";

/// Every document of a YAML text.
pub(crate) fn documents(yaml: &str) -> Vec<Value> {
    serde_yaml::Deserializer::from_str(yaml).map(|document| Value::deserialize(document).unwrap()).collect()
}

/// `kubectl kustomize` of `part` of a copy of `deploy/kubernetes` whose `image.env` holds `image`, or `None`
/// without kubectl.
fn kustomize(name: &str, part: &str, image: Option<&str>) -> Option<Output> {
    let mut kubectl = tool("kubectl", "kubernetes-client")?;
    let copy = scratch(name);
    let original = repository("deploy/kubernetes");
    for file in files_below(&original, &[""]) {
        let relative = file.strip_prefix(&original).unwrap();
        if !relative.ends_with("image.env") {
            write(&copy.join(relative), &std::fs::read_to_string(&file).unwrap());
        }
    }
    if let Some(image) = image {
        write(&copy.join("base/image.env"), &format!("image={image}\n"));
    }
    let output = kubectl.arg("kustomize").arg(copy.join(part)).output().unwrap();
    std::fs::remove_dir_all(copy).unwrap();
    Some(output)
}

/// The whole example as `kubectl apply -k` would send it, or `None` without kubectl.
fn built(name: &str) -> Option<Vec<Value>> {
    let output = kustomize(name, "example", Some(IMAGE))?;
    assert!(output.status.success(), "{}", text(&output));
    Some(documents(&String::from_utf8(output.stdout).unwrap()))
}

/// The documents of one kind.
pub(crate) fn of_kind<'a>(documents: &'a [Value], kind: &str) -> Vec<&'a Value> {
    documents.iter().filter(|document| document["kind"].as_str() == Some(kind)).collect()
}

#[test]
fn every_yaml_file_is_well_formed() {
    let files = files_below(&repository("deploy"), &[".yaml", ".yml"]);
    assert!(files.len() > 5, "{files:?}");
    // The chart's templates are YAML only when they are rendered (helm.rs).
    for file in files.iter().filter(|file| !file.to_string_lossy().contains("/templates/")) {
        let text = std::fs::read_to_string(file).unwrap();
        for document in serde_yaml::Deserializer::from_str(&text) {
            let value =
                Value::deserialize(document).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            assert!(!value.is_null(), "{}: empty document", file.display());
        }
    }
}

#[test]
fn every_file_of_the_base_is_part_of_the_kustomization() {
    let kustomization: Value =
        serde_yaml::from_str(&read("deploy/kubernetes/base/kustomization.yaml")).unwrap();
    let named: BTreeSet<String> =
        [&kustomization["resources"], &kustomization["configMapGenerator"][0]["files"]]
            .iter()
            .flat_map(|list| list.as_sequence().unwrap())
            .map(|name| name.as_str().unwrap().to_owned())
            .collect();
    let present: BTreeSet<String> = files_below(&repository("deploy/kubernetes/base"), &[""])
        .iter()
        .map(|file| file.file_name().unwrap().to_string_lossy().into_owned())
        .filter(|name| name != "kustomization.yaml" && name != "image.env")
        .collect();
    assert_eq!(named, present);
}

#[test]
fn runtime_classes_and_handlers_of_the_configuration_are_the_same() {
    let config: Value = serde_yaml::from_str(&read("deploy/kubernetes/base/config.yaml")).unwrap();
    let handlers: BTreeSet<String> =
        config["handlers"].as_mapping().unwrap().keys().map(|key| key.as_str().unwrap().to_owned()).collect();
    let classes: BTreeSet<String> =
        documents(&read("deploy/kubernetes/components/runtimeclasses/runtimeclasses.yaml"))
            .iter()
            .map(|class| class["handler"].as_str().unwrap().to_owned())
            .collect();
    assert_eq!(handlers, classes);
}

#[test]
fn the_manifests_do_not_render_before_somebody_names_an_image() {
    let Some(output) = kustomize("no-image", "base", None) else { return };
    assert!(!output.status.success() && text(&output).contains("image.env"), "{}", text(&output));
    for set in ["daemonset", "daemonset-remove"] {
        let manifest: Value =
            serde_yaml::from_str(&read(&format!("deploy/kubernetes/base/{set}.yaml"))).unwrap();
        let image = &manifest["spec"]["template"]["spec"]["containers"][0]["image"];
        assert_eq!(image.as_str(), Some(home::home("CRIMUX_IMAGE").as_str()), "{set}");
    }
}

#[test]
fn the_base_alone_needs_no_custom_resources_and_makes_no_runtime_class() {
    let Some(output) = kustomize("base-alone", "base", Some(IMAGE)) else { return };
    assert!(output.status.success(), "{}", text(&output));
    let built = documents(&String::from_utf8(output.stdout).unwrap());
    let kinds: Vec<&str> = built.iter().map(|document| document["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["Namespace", "ConfigMap", "DaemonSet", "DaemonSet"]);
}

#[test]
fn the_base_builds_and_rolls_over_one_node_at_a_time() {
    let Some(built) = built("paced") else { return };
    let sets = of_kind(&built, "DaemonSet");
    assert_eq!(sets.len(), 2);
    for set in sets {
        let update = &set["spec"]["updateStrategy"]["rollingUpdate"];
        assert_eq!((update["maxUnavailable"].as_u64(), update["maxSurge"].as_u64()), (Some(1), Some(0)));
        let container = &set["spec"]["template"]["spec"]["containers"][0];
        assert!(container["readinessProbe"]["exec"].is_mapping());
        assert_eq!(container["image"].as_str(), Some(IMAGE));
    }
    assert_eq!(of_kind(&built, "PodMonitor").len(), 1);
    assert_eq!(of_kind(&built, "RuntimeClass").len(), 2);
}

#[test]
fn the_pod_monitor_finds_the_pods_and_the_port_that_the_configuration_opens() {
    let read =
        |name: &str| serde_yaml::from_str::<Value>(&read(&format!("deploy/kubernetes/{name}"))).unwrap();
    let monitor = read("components/podmonitor/podmonitor.yaml");
    let (set, config) = (read("base/daemonset.yaml"), read("base/config.yaml"));
    let pod = &set["spec"]["template"];
    let (wanted, labels) = (&monitor["spec"]["selector"]["matchLabels"], &pod["metadata"]["labels"]);
    for (key, value) in wanted.as_mapping().unwrap() {
        assert_eq!(labels.get(key), Some(value), "{key:?}");
    }
    let port = &pod["spec"]["containers"][0]["ports"][0];
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    assert_eq!((&endpoint["port"], endpoint["path"].as_str()), (&port["name"], Some("/metrics")));
    let opened = config["admin"]["http"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
    assert_eq!(port["containerPort"].as_u64().map(|port| port.to_string()), Some(opened));
}

#[test]
fn the_config_map_carries_the_script_as_it_is_and_its_name_follows_its_contents() {
    let Some(built) = built("config-map") else { return };
    assert_eq!(of_kind(&built, "ConfigMap").len(), 1, "the image's name is not sent to the cluster");
    let map = of_kind(&built, "ConfigMap")[0];
    assert_eq!(
        map["data"]["crimux-node.sh"].as_str(),
        Some(read("deploy/kubernetes/base/crimux-node.sh").as_str())
    );
    let name = map["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("crimux-node-"), "{name}");
    for set in of_kind(&built, "DaemonSet") {
        assert_eq!(set["spec"]["template"]["spec"]["volumes"][1]["configMap"]["name"].as_str(), Some(name));
    }
}

#[test]
fn shell_scripts_pass_shellcheck() {
    for script in files_below(&repository("deploy"), &[".sh", "postinst", "prerm", "postrm"]) {
        let Some(mut shellcheck) = tool("shellcheck", "shellcheck") else { return };
        let output = shellcheck.arg("--shell=sh").arg(&script).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }
}
