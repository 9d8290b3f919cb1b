//! Compares the handlers of the configuration with the RuntimeClasses of a cluster.
//!
//! A RuntimeClass whose handler no node serves leaves its pods in ContainerCreating; a handler that no
//! RuntimeClass names is never used. Both are typos, more often than not. The objects are read from YAML or
//! JSON as kubectl writes them (a List, one object, or several documents); only `kind`, the name and
//! `handler` are looked at.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::Deserialize;
use serde_yaml::Value;

use crate::cli::finding::{Finding, Grade};
use crate::config::Config;

/// Returns what does not fit.
///
/// # Errors
/// If `text` is not YAML, or holds no `RuntimeClass`.
pub(super) fn compare(config: &Config, text: &str) -> anyhow::Result<Vec<Finding>> {
    let classes = read(text)?;
    let unserved = classes.iter().filter(|(_, handler)| !config.handlers.contains_key(*handler));
    let unserved = unserved.map(|(class, handler)| {
        let text = format!("its handler {handler:?} is not configured, so its pods are refused on this node");
        Finding::new(Grade::Error, format!("RuntimeClass {class}"), text)
    });
    let unused = config.handlers.keys().filter(|handler| !classes.values().any(|used| used == *handler));
    let unused = unused.map(|handler| {
        Finding::new(Grade::Warning, format!("handlers.{handler}"), "no RuntimeClass uses this handler")
    });
    let mut findings: Vec<_> = unserved.chain(unused).collect();
    if findings.is_empty() {
        let text = format!("{} RuntimeClasses, every one is served", classes.len());
        findings.push(Finding::new(Grade::Ok, "RuntimeClasses", text));
    }
    Ok(findings)
}

/// Returns the handler of every `RuntimeClass` by its name.
fn read(text: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let mut classes = BTreeMap::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let document = Value::deserialize(document).context("the RuntimeClasses are not YAML")?;
        let items = document.get("items").and_then(Value::as_sequence);
        for item in items.map_or(std::slice::from_ref(&document), Vec::as_slice) {
            let word = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
            if word(item.get("kind")) == "RuntimeClass" {
                let name = word(item.get("metadata").and_then(|metadata| metadata.get("name")));
                classes.insert(name, word(item.get("handler")));
            }
        }
    }
    anyhow::ensure!(!classes.is_empty(), "no RuntimeClass was found (kubectl get runtimeclass -o yaml)");
    Ok(classes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn config() -> Config {
        let text = "default_backend: a\nbackends: { a: { endpoint: unix:///a.sock } }\n\
                    handlers: { runc: { backend: a }, kata: { backend: a } }\n";
        Config::parse(text, Path::new("/")).expect("a valid configuration")
    }

    fn class(name: &str, handler: &str) -> String {
        format!(
            "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {{ name: {name} }}\nhandler: {handler}\n"
        )
    }

    fn findings(text: &str) -> Vec<(Grade, String)> {
        let findings = compare(&config(), text).expect("readable");
        findings.into_iter().map(|finding| (finding.grade, finding.about)).collect()
    }

    #[test]
    fn an_unserved_class_is_an_error_and_an_unused_handler_a_warning() {
        let documents = format!("{}---\n{}", class("runc", "runc"), class("gvisor", "runsc"));
        let expected =
            [(Grade::Error, "RuntimeClass gvisor".to_owned()), (Grade::Warning, "handlers.kata".to_owned())];
        assert_eq!(findings(&documents), expected);
    }

    #[test]
    fn a_list_is_read_as_kubectl_writes_it_in_yaml_and_json() {
        let json = r#"{"kind":"List","items":[{"kind":"RuntimeClass","metadata":{"name":"a"},"handler":"runc"},
                       {"kind":"RuntimeClass","metadata":{"name":"b"},"handler":"kata"}]}"#;
        assert_eq!(findings(json), [(Grade::Ok, "RuntimeClasses".to_owned())]);
    }

    #[test]
    fn what_holds_no_class_is_refused() {
        for text in ["", "kind: Pod\n", "items: []\n", "{"] {
            assert!(compare(&config(), text).is_err(), "{text:?}");
        }
    }
}
