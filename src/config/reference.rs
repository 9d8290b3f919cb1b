//! The configuration reference for people and the JSON schema for editors, both made from the table of keys.
//!
//! They are written to `docs/` by the tests, which also fail if what is there is not what the table gives.
//! Neither says anything that the table does not say.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::keys::{self, DefaultValue, Key, ValueKind};

/// The reference as Markdown: one table of keys for each section.
pub fn markdown() -> String {
    let mut page = String::from(INTRODUCTION);
    table(&mut page, "");
    for section in keys::KEYS.iter().filter(|key| matches!(key.kind, ValueKind::Section)) {
        let title =
            section.path.replace("backends.*", "backends.NAME").replace("handlers.*", "handlers.HANDLER");
        let above = if section.path.ends_with(".*") { keys::find(section.parent()) } else { None };
        let about = above.unwrap_or(section).about;
        let _ = write!(page, "\n## `{title}`\n\n{about}\n\n");
        table(&mut page, section.path);
    }
    page
}

const INTRODUCTION: &str = "\
# Configuration

crimux reads one YAML file, given by `--config`, and reads it again on SIGHUP and when it changes. `crimux check`
reports every problem of a file at once, as `FILE:LINE:COLUMN: key: what is wrong (what would be right)`, and exits
with 64; a reload with a problem changes nothing. A key that is not listed here is a problem. YAML aliases and tags
are not supported. [`config.example.yaml`](../config.example.yaml) shows every key in its place, and
[`config.schema.json`](config.schema.json) lets an editor check the file while it is written.

Durations are whole numbers with `ms`, `s`, `m` or `h`, such as `500ms`, `1s` or `1m30s`, above zero.

This page is made from `src/config/keys/table.rs` by `UPDATE=1 cargo test --test config`.

";

fn table(page: &mut String, section: &str) {
    page.push_str("| key | value | default | meaning |\n| --- | --- | --- | --- |\n");
    for key in keys::below(section) {
        let default = match key.default {
            DefaultValue::Required => "must be given".to_owned(),
            DefaultValue::Is(text) => format!("`{text}`"),
            DefaultValue::Derived(text) => text.to_owned(),
        };
        let _ = writeln!(page, "| `{}` | {} | {default} | {} |", key.name(), key.kind.shape(), key.about);
    }
}

/// The reference as a manual page, crimux.yaml(5), in roff.
pub fn manual() -> String {
    let mut page = format!(
        ".TH crimux.yaml 5 \"\" \"crimux {}\"\n.SH NAME\ncrimux.yaml \\- configuration of crimux\n.SH SYNOPSIS\n\
         .I /etc/crimux/config.yaml\n.SH DESCRIPTION\n{}\n.SH KEYS\n",
        env!("CARGO_PKG_VERSION"),
        roff(
            "crimux reads one YAML file, and reads it again on SIGHUP and when it changes. `crimux check` reports every \
             problem of a file at once; a reload with a problem changes nothing. `*` stands for a name that you choose, \
             `[]` for an item of a list. Durations are whole numbers with `ms`, `s`, `m` or `h`."
        )
    );
    for key in keys::KEYS {
        let default = match key.default {
            DefaultValue::Required => "must be given".to_owned(),
            DefaultValue::Is(text) => format!("default: `{text}`"),
            DefaultValue::Derived(text) => format!("default: {text}"),
        };
        let (path, kind) = (roff(key.path), roff(&key.kind.shape()));
        let _ = write!(page, ".TP\n.B {path}\n{kind}; {}.\n.br\n{}\n", roff(&default), roff(key.about));
    }
    page + ".SH \"SEE ALSO\"\n.BR crimux (1),\n.BR crimux-check (1),\n.BR crimux-reload (1).\n\
            .I /usr/share/doc/crimux/examples/config.example.yaml\nshows every key in its place.\n"
}

/// Escapes a text for roff; what stands in backticks becomes bold.
fn roff(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
    let mut bold = false;
    let mut marked = String::new();
    for part in escaped.split('`') {
        marked += if bold { "\\fB" } else { "" };
        marked += part;
        marked += if bold { "\\fR" } else { "" };
        bold = !bold;
    }
    // A dot at the beginning of a line is a request to roff.
    if marked.starts_with('.') { format!("\\&{marked}") } else { marked }
}

/// The JSON schema (draft 7, which editors understand best).
pub fn schema() -> Value {
    let mut schema = mapping("");
    let head = [
        ("$schema", json!("http://json-schema.org/draft-07/schema#")),
        ("title", json!("crimux configuration")),
    ];
    schema.extend(head.map(|(name, value)| (name.to_owned(), value)));
    Value::Object(schema)
}

/// The schema of the section at `path`: its keys, no others, and which of them must be given.
fn mapping(path: &str) -> Map<String, Value> {
    let properties: Map<String, Value> =
        keys::below(path).map(|key| (key.name().to_owned(), property(key))).collect();
    let required: Vec<_> =
        keys::below(path).filter(|key| key.default == DefaultValue::Required).map(Key::name).collect();
    object(json!({
        "type": "object", "properties": properties, "required": required, "additionalProperties": false,
    }))
}

fn property(key: &Key) -> Value {
    let mut schema = match key.kind {
        ValueKind::Section => mapping(key.path),
        ValueKind::Named => named_schema(key),
        ValueKind::List => {
            object(json!({ "type": "array", "minItems": 1, "items": mapping(&format!("{}[]", key.path)) }))
        }
        kind => object(scalar(kind)),
    };
    schema.insert("description".into(), json!(key.about));
    if let DefaultValue::Is(text) = key.default {
        schema.insert("default".into(), default(key.kind, text));
    }
    Value::Object(schema)
}

fn named_schema(key: &Key) -> Map<String, Value> {
    let path = format!("{}.*", key.path);
    let least = usize::from(key.default == DefaultValue::Required);
    let mut schema =
        object(json!({ "type": "object", "minProperties": least, "additionalProperties": mapping(&path) }));
    if key.path == "backends" {
        let label = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
        schema.insert("propertyNames".into(), json!({ "pattern": label, "maxLength": 63 }));
    }
    schema
}

fn scalar(kind: ValueKind) -> Value {
    let text = |pattern: &str| json!({ "type": "string", "pattern": pattern });
    // To a YAML 1.1 editor a bare `off` is false.
    let or_off = |pattern: &str| json!({ "anyOf": [text(pattern), { "const": false }] });
    match kind {
        ValueKind::Boolean => json!({ "type": "boolean" }),
        ValueKind::OneOf(words) => json!({ "enum": words }),
        ValueKind::Integer { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        ValueKind::Ratio => json!({ "type": "number", "minimum": 0, "maximum": 1 }),
        ValueKind::Duration { .. } => text("^([0-9]+(ms|s|m|h))+$"),
        ValueKind::Mode => json!({ "type": ["string", "integer"], "pattern": "^(0o)?[0-7]+$" }),
        ValueKind::Owner => text("^(self|[^:]+:[^:]+)$"),
        ValueKind::Socket => text("^(unix://)?/.*[^/]$"),
        ValueKind::Endpoint => text("^(unix:///.+|https?://.+:[0-9]+|vsock://[0-9]+:[0-9]+)$"),
        ValueKind::Directory => text("^/"),
        ValueKind::Address => or_off("^(off|.+:[0-9]+)$"),
        ValueKind::HostPort => text("^.+:[0-9]+$"),
        ValueKind::Url => or_off("^(off|https?://.+:[0-9]+)$"),
        ValueKind::Text
        | ValueKind::Backend
        | ValueKind::File
        | ValueKind::Filter
        | ValueKind::Section
        | ValueKind::Named
        | ValueKind::List => {
            json!({ "type": "string" })
        }
    }
}

/// The default as the JSON type that its key has.
fn default(kind: ValueKind, text: &str) -> Value {
    match kind {
        ValueKind::Boolean | ValueKind::Integer { .. } | ValueKind::Ratio => {
            serde_json::from_str(text).unwrap_or_else(|_| json!(text))
        }
        _ => json!(text),
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => Map::from_iter([("const".to_owned(), other)]),
    }
}
