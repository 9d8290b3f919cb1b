//! What could be written where a mapping or a list of mappings is wanted and something else stands.
//!
//! The sample is made from the table of keys: what stands there is given to the key that takes such a value.

use super::keys::{self, DefaultValue, Key, ValueKind};
use super::tree::{YamlNode, YamlValue};
use super::{likely, values};

/// The longest text that is repeated.
const LONGEST: usize = 60;

/// Returns what to write for a section with this row of the table, in place of `node`.
pub(super) fn section(row: &str, path: &str, node: &YamlNode) -> String {
    let body = mapping(row, text_of(node));
    if row.ends_with("[]") { body } else { format!("{}: {body}", own_name(path)) }
}

/// Returns what to write for one of the sections by name below this row, in place of `node`.
pub(super) fn by_name(row: &str, node: &YamlNode) -> String {
    let row = format!("{row}.*");
    let first = match &node.value {
        YamlValue::List(items) => items.first(),
        _ => Some(node),
    };
    let text = first.and_then(text_of);
    let entries = match first.map(|node| &node.value) {
        Some(YamlValue::Map(entries)) => entries.as_slice(),
        _ => &[],
    };
    let name = entries.iter().find(|entry| entry.key == "name").and_then(|entry| text_of(&entry.value));
    match (name.or(text), text) {
        (Some(name), _) if values::is_label(name) => format!("{name}: {}", mapping(&row, None)),
        (_, text) => format!("NAME: {}", mapping(&row, text)),
    }
}

/// Returns what to write for a list of sections, in place of `node`.
pub(super) fn list(row: &str, path: &str, node: &YamlNode) -> String {
    format!("{}: [ {} ]", own_name(path), mapping(&format!("{row}[]"), text_of(node)))
}

/// Returns what to write for a key that is missing and holds sections by name.
pub(super) fn sections(key: &str, label: Option<&str>) -> String {
    format!("{key}: {{ {}: {} }}", label.unwrap_or("NAME"), mapping(&format!("{key}.*"), None))
}

fn text_of(node: &YamlNode) -> Option<&str> {
    match &node.value {
        YamlValue::Text(text) if text.len() <= LONGEST && !text.contains('@') => Some(text),
        _ => None,
    }
}

/// Returns the last part of a path.
fn own_name(path: &str) -> &str {
    // A name with a dot is in quotes.
    let quoted = path.strip_suffix('"').and_then(|rest| rest.rfind('"')).map(|start| &path[start..]);
    quoted.unwrap_or_else(|| path.rsplit_once('.').map_or(path, |(_, name)| name))
}

/// Returns a mapping with the one key of the section that takes `text`, or else with the most important key.
fn mapping(row: &str, text: Option<&str>) -> String {
    let taking = |key: &'static Key| Some((key, value(key.kind, text?)?));
    let takers: Vec<_> = keys::below(row).filter_map(taking).collect();
    let required = takers.iter().find(|(key, _)| is_required(row, key));
    let only = if takers.len() == 1 { takers.first() } else { None };
    if let Some((key, value)) = required.or(only) {
        return format!("{{ {}: {value} }}", key.name());
    }
    let key = keys::below(row).find(|key| is_required(row, key)).or_else(|| keys::below(row).next());
    let Some(key) = key else { return "{}".to_owned() };
    let value = match (key.kind, key.default) {
        (_, DefaultValue::Is(default)) => default,
        (ValueKind::Endpoint, _) => "unix:///PATH",
        (ValueKind::Backend, _) => "NAME",
        _ => "PATH",
    };
    format!("{{ {}: {value} }}", key.name())
}

/// A handler needs a backend unless it has a split, so no key of it is required by itself.
fn is_required(row: &str, key: &Key) -> bool {
    key.default == DefaultValue::Required || (row == "handlers.*" && key.name() == "backend")
}

/// Returns `text` as it is written as a value of this kind, if it can be one.
fn value(kind: ValueKind, text: &str) -> Option<String> {
    let fits = match kind {
        ValueKind::Backend => values::is_label(text),
        ValueKind::Boolean => values::boolean(text).is_ok(),
        ValueKind::OneOf(words) => words.contains(&text),
        ValueKind::Integer { min, max } => values::integer(text, min, max).is_ok(),
        ValueKind::Ratio => values::ratio(text).is_ok(),
        ValueKind::Duration { max, why } => values::duration(text, max, why).is_ok(),
        ValueKind::Socket => values::socket(text).is_ok(),
        ValueKind::Endpoint if text.starts_with('/') => return likely::endpoint(text),
        ValueKind::Endpoint => values::endpoint(text).is_ok(),
        ValueKind::Directory | ValueKind::File => text.contains(['/', '.']),
        ValueKind::Address => values::address(text).is_ok_and(|address| address.is_some()),
        ValueKind::HostPort => values::host_port(text).is_ok(),
        ValueKind::Url => values::url(text).is_ok_and(|url| url.is_some()),
        ValueKind::Filter => values::filter(text).is_ok(),
        _ => false,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._:-=".contains(c);
    fits.then(|| if text.chars().all(plain) { text.to_owned() } else { format!("{text:?}") })
}
