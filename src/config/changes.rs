//! What differs between two configurations, in words.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Config;
use super::keys::child_path;

impl Config {
    /// Returns what a reload of `new` applies, a line `KEY: OLD → NEW` for each key. Without the keys that
    /// need a restart ([`RESTART_KEYS`](super::RESTART_KEYS)), and without what a plan of the backends tells:
    /// which are new or gone, and their endpoints. Handlers that are gone are
    /// [removed handlers](Config::removed_handlers).
    pub fn changes(&self, new: &Self) -> Vec<String> {
        let (old, new) = (self.view(), new.clone().with_restart_keys_of(self).view());
        let mut changes = Vec::new();
        compare("", &old, &new, &mut changes);
        changes
    }
}

/// Adds a line for each value below `path` that differs.
fn compare(path: &str, old: &Value, new: &Value, changes: &mut Vec<String>) {
    let parent = path.rsplit_once('.').map_or("", |(parent, _)| parent);
    let is_told_elsewhere = match parent {
        "backends" => old.is_null() || new.is_null(),
        "handlers" => new.is_null(),
        parent => parent.starts_with("backends.") && path.ends_with(".endpoint"),
    };
    if old == new || is_told_elsewhere {
        return;
    }
    let (Value::Object(old_keys), Value::Object(new_keys), false) = (old, new, parent == "handlers") else {
        changes.push(format!("{path}: {} → {}", words(old), words(new)));
        return;
    };
    for key in old_keys.keys().chain(new_keys.keys()).collect::<BTreeSet<_>>() {
        let path = if path.is_empty() { key.clone() } else { child_path(path, key) };
        compare(&path, old.get(key).unwrap_or(&Value::Null), new.get(key).unwrap_or(&Value::Null), changes);
    }
}

/// Formats a value; the targets of a handler as `BACKEND as HANDLER`, with their shares if there are several.
fn words(value: &Value) -> String {
    match value {
        Value::Null => "not set".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(shares) => shares_in_words(shares),
        Value::Object(keys) => match keys.get("split").and_then(Value::as_array) {
            Some(shares) => shares_in_words(shares),
            None if keys.contains_key("backend") => target_in_words(value),
            None => value.to_string(),
        },
        other => other.to_string(),
    }
}

fn target_in_words(target: &Value) -> String {
    let backend = target["backend"].as_str().unwrap_or_default();
    let handler = target["handler"].as_str().map_or_else(String::new, |handler| format!(" as {handler}"));
    format!("{backend}{handler}")
}

fn shares_in_words(shares: &[Value]) -> String {
    let weight = |share: &Value| share["weight"].as_u64().unwrap_or(0);
    let total = shares.iter().map(weight).sum::<u64>().max(1);
    let share = |share: &Value| format!("{} {}%", target_in_words(share), weight(share) * 100 / total);
    shares.iter().map(share).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_change_that_a_reload_applies_has_a_line() {
        let backends = |of_b: &str| {
            format!("backends: {{ a: {{ endpoint: unix:///a }}, b: {{ endpoint: unix:///b{of_b} }} }}\n")
        };
        let split = |a: u32, b: u32| {
            format!(
                "{{ split: [ {{ backend: a, weight: {a} }}, {{ backend: b, handler: x, weight: {b} }} ] }}"
            )
        };
        let base = format!("default_backend: a\n{}handlers: {{ c: {} }}\n", backends(""), split(9, 1));
        let parse = |text: &str| Config::parse(text, Path::new("/")).expect("a valid configuration");
        let changed = |from: &str, to: &str| parse(&base).changes(&parse(&base.replace(from, to)));
        assert_eq!(changed("x", "x"), [] as [&str; 0]);
        assert_eq!(changed("default_backend: a", "default_backend: b"), ["default_backend: a → b"]);
        assert_eq!(
            changed(&split(9, 1), &split(1, 0)),
            ["handlers.c: a 90%, b as x 10% → a 100%, b as x 0%"]
        );
        assert_eq!(changed(&split(9, 1), "{ backend: b }"), ["handlers.c: a 90%, b as x 10% → b"]);
        assert_eq!(changed("handlers: { ", "handlers: { d: { backend: b }, "), ["handlers.d: not set → b"]);
        assert_eq!(
            changed(&backends(""), &backends(", required: true, timeouts: { list: 3s }")),
            ["backends.b.required: false → true", "backends.b.timeouts.list: 1s → 3s"]
        );
        assert_eq!(
            changed("default_backend: a\n", "default_backend: a\nidentity: crimux\ndrain_timeout: 7s\n"),
            ["drain_timeout: 5s → 7s", "identity: default-backend → crimux"]
        );
        // The plan tells of these.
        assert_eq!(changed("unix:///b", "unix:///other"), [] as [&str; 0]);
        assert_eq!(changed("handlers: ", "state_dir: /elsewhere\nhandlers: "), [] as [&str; 0]);
    }
}
