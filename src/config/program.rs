//! Recognises the files of other programs.
//!
//! One sentence about the whole file helps more than an unknown key for each of its lines.

use super::diagnostics::Position;
use super::keys;
use super::tree::{MapEntry, YamlNode, YamlValue};
use super::values::quote;

/// Returns the place and name of a file of another program: an object of Kubernetes, or crictl's file.
pub(super) fn other_program(root: &YamlNode) -> Option<(Position, String)> {
    let YamlValue::Map(entries) = &root.value else { return None };
    let is_own = |entry: &MapEntry| keys::below("").any(|key| key.name() == entry.key);
    if entries.iter().any(is_own) {
        return None;
    }
    let find = |name: &str| {
        let entry = entries.iter().find(|entry| entry.key == name)?;
        match &entry.value.value {
            YamlValue::Text(text) => Some((entry.position, text.as_str())),
            _ => None,
        }
    };
    let place = entries.first()?.position;
    let what = match (find("kind"), find("apiVersion")) {
        (Some((_, "ConfigMap" | "Secret")), _) => {
            "this is an object of Kubernetes that holds files (check the file in its data)".to_owned()
        }
        (Some((_, "KubeletConfiguration")), _) => "this is a KubeletConfiguration, kubelet's file, not a \
            configuration of crimux (see config.example.yaml)"
            .to_owned(),
        (Some((_, kind)), Some(_)) => {
            format!("this is an object of Kubernetes, {}, not a configuration of crimux", quote(kind))
        }
        (Some(_), None) | (None, Some(_)) => {
            "this looks like an object of Kubernetes, not like a configuration of crimux".to_owned()
        }
        (None, None) => {
            find("runtime-endpoint").or_else(|| find("image-endpoint"))?;
            "this is crictl's file, not a configuration of crimux (see config.example.yaml)".to_owned()
        }
    };
    Some((place, what))
}
