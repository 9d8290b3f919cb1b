//! One mapping of the file, read key by key against the table of keys.
//!
//! Everything that all sections have in common happens here once: unknown keys with a hint, missing keys,
//! defaults, values of the wrong shape. A reader asks for a key and gets `None` exactly if a problem was
//! noted, so readers compose with `?` after all of them have run. What a key means is not known here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::diagnostics::{Diagnostics, Position, SocketUse};
use super::hint::nearest;
use super::keys::{self, DefaultValue, Key, ValueKind, child_path};
use super::sample;
use super::tree::{MERGE_KEY, MapEntry, YamlNode, YamlValue};
use super::values::{self, Parsed, quote};

/// Words that people look for in the file, which has another word or a command for them.
const OTHER_WORDS: [(&str, &str); 5] = [
    ("drain", "a drain is a command: crimux backend drain NAME"),
    ("draining", "a drain is a command: crimux backend drain NAME"),
    ("runtimes", "did you mean backends or handlers?"),
    ("runtime_classes", "did you mean handlers?"),
    ("default_runtime", "did you mean default_backend?"),
];

/// A mapping whose keys are in the table.
#[derive(Debug)]
pub(super) struct Section<'a> {
    diagnostics: &'a Diagnostics,
    entries: &'a [MapEntry],
    /// The section's row in the table; empty at the top.
    row: String,
    /// The section's path in the file.
    path: String,
    position: Position,
    /// Keys that an unknown one was probably meant to be; they are not also reported as missing.
    meant: Vec<&'static str>,
}

/// A section whose name the operator chose.
#[derive(Debug)]
pub(super) struct Named<'a> {
    pub(super) name: &'a str,
    pub(super) position: Position,
    /// `None` if it is no mapping, which is reported.
    pub(super) section: Option<Section<'a>>,
}

/// Where a section stands: the row of the table of keys, and the path in the file.
#[derive(Default)]
struct SectionPath {
    row: String,
    path: String,
}

impl<'a> Section<'a> {
    /// The whole file.
    pub(super) fn top(root: &'a YamlNode, diagnostics: &'a Diagnostics) -> Option<Self> {
        Self::new(root, Position::START, SectionPath::default(), diagnostics)
    }

    fn new(
        node: &'a YamlNode,
        position: Position,
        at: SectionPath,
        diagnostics: &'a Diagnostics,
    ) -> Option<Self> {
        let SectionPath { row, path } = at;
        let entries: &[MapEntry] = match &node.value {
            YamlValue::Map(entries) => entries,
            YamlValue::Null => &[],
            _ => {
                let right = (!row.is_empty()).then(|| sample::section(&row, &path, node));
                misshapen(diagnostics, node, &path, ValueKind::Section, right);
                return None;
            }
        };
        let mut section = Self { diagnostics, entries, row, path, position, meant: Vec::new() };
        for entry in entries {
            section.check_known(entry);
        }
        Some(section)
    }

    fn check_known(&mut self, entry: &MapEntry) {
        let known = || keys::below(&self.row).map(Key::name);
        if known().any(|name| name == entry.key) || matches!(entry.value.value, YamlValue::Refused) {
            return;
        }
        if self.diagnostics.is_full() {
            return self.diagnostics.add(entry.position, "", "unknown key");
        }
        let elsewhere = keys::KEYS.iter().map(|key| key.path).find_map(|path| {
            let below = path.strip_prefix(&self.row)?.trim_start_matches('.');
            (below.ends_with(&format!(".{}", entry.key)) && !below.contains(['*', '['])).then_some(below)
        });
        let near = nearest(&entry.key, known());
        self.meant.extend(near);
        let deeper = || {
            let named = keys::KEYS.iter().map(|key| key.path).filter(|path| !path.contains('['));
            let mut named = named.filter_map(|path| path.strip_suffix(&entry.key)?.strip_suffix(".*."));
            let named = if self.row.is_empty() { named.next() } else { None };
            named.map(|above| format!("did you mean {above}.NAME.{0}? indent {0} below that name", entry.key))
        };
        let other =
            OTHER_WORDS.iter().find(|(word, _)| *word == entry.key).map(|(_, hint)| (*hint).to_owned());
        let hint = near.or(elsewhere).map(|near| format!("did you mean {near}?")).or(other).or_else(deeper);
        let hint = hint.unwrap_or_else(|| match self.diagnostics.list_keys(&self.row, entry.position.line) {
            Some(line) => format!("the message of line {line} lists the known ones"),
            None => format!("known here: {}", known().collect::<Vec<_>>().join(", ")),
        });
        self.diagnostics.add(
            entry.position,
            &child_path(&self.path, &entry.key),
            format!("unknown key ({hint})"),
        );
    }

    fn entry(&self, name: &str) -> Option<&'a MapEntry> {
        self.entries.iter().find(|entry| entry.key == name)
    }

    fn key(&self, name: &str) -> &'static Key {
        let path = if self.row.is_empty() { name.to_owned() } else { format!("{}.{name}", self.row) };
        keys::find(&path)
            .expect("every key that is read has a row in keys/table.rs; the tests read all of them")
    }

    /// Whether the key is in the file, even if mistyped or with a wrong value.
    pub(super) fn has(&self, name: &str) -> bool {
        self.entry(name).is_some() || self.meant.contains(&name)
    }

    /// The text under the key as it is written; `None` if it is not given or no text.
    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        match &self.entry(name)?.value.value {
            YamlValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Notes a problem of the key's value, or of the section if the key is not given.
    pub(super) fn problem(&self, name: &str, message: impl Into<String>) {
        let position = self.entry(name).map_or(self.position, |entry| entry.value.position);
        self.diagnostics.add(position, &child_path(&self.path, name), message);
    }

    /// Notes a problem of the key itself, which must be given.
    pub(super) fn problem_of_key(&self, name: &str, message: impl Into<String>) {
        let position = self.entry(name).map_or(self.position, |entry| entry.position);
        self.diagnostics.add(position, &child_path(&self.path, name), message);
    }

    fn missing(&self, name: &str) {
        // A merge key could have brought it, and is reported.
        if !self.has(name) && !self.has(MERGE_KEY) {
            let right = match self.key(name).kind {
                ValueKind::Named => {
                    let label = self.text("default_backend").filter(|name| values::is_label(name));
                    format!("write {}", sample::sections(name, label))
                }
                kind => format!("expected {}", kind.shape()),
            };
            self.problem(name, format!("the key is missing ({right})"));
        }
    }

    fn scalar<T>(&self, name: &str, node: &YamlNode, parse: impl Fn(&str) -> Parsed<T>) -> Option<T> {
        match &node.value {
            YamlValue::Text(text) => match parse(text) {
                Ok(value) => return Some(value),
                Err(message) => self.problem(name, message),
            },
            _ => misshapen(self.diagnostics, node, &child_path(&self.path, name), self.key(name).kind, None),
        }
        None
    }

    /// The key's value, or its default; a key without one must be given.
    pub(super) fn read<T>(&self, name: &str, parse: impl Fn(&str) -> Parsed<T>) -> Option<T> {
        match (self.entry(name), self.key(name).default) {
            (Some(entry), _) => self.scalar(name, &entry.value, parse),
            (None, DefaultValue::Is(text)) => Some(
                parse(text).expect("the defaults in keys/table.rs are valid; the tests read all of them"),
            ),
            (None, _) => {
                self.missing(name);
                None
            }
        }
    }

    /// The key's value, `Some(None)` if it is not given.
    #[allow(clippy::option_option)] // The outer one is every reader's "a problem was noted".
    pub(super) fn optional<T>(&self, name: &str, parse: impl Fn(&str) -> Parsed<T>) -> Option<Option<T>> {
        match self.entry(name) {
            Some(entry) => self.scalar(name, &entry.value, parse).map(Some),
            None => Some(None),
        }
    }

    pub(super) fn boolean(&self, name: &str) -> Option<bool> {
        self.read(name, values::boolean)
    }

    pub(super) fn duration(&self, name: &str) -> Option<Duration> {
        let ValueKind::Duration { max, why } = self.key(name).kind else {
            unreachable!("{name} is no duration in keys/table.rs")
        };
        self.read(name, |text| values::duration(text, max, why))
    }

    pub(super) fn integer(&self, name: &str) -> Option<u32> {
        let ValueKind::Integer { min, max } = self.key(name).kind else {
            unreachable!("{name} is no number in keys/table.rs")
        };
        self.read(name, |text| values::integer(text, min, max))
    }

    /// The meaning of the word that is the key's value.
    pub(super) fn one_of<T: Copy>(&self, name: &str, meanings: &[(&'static str, T)]) -> Option<T> {
        self.read(name, |text| values::word(text, meanings))
    }

    /// A socket that crimux listens on.
    pub(super) fn socket(&self, name: &str) -> Option<PathBuf> {
        let path = self.read(name, values::socket)?;
        self.note_socket(name, &path, SocketUse::Listen);
        Some(path)
    }

    /// Remembers the socket at `path` to be compared with all others.
    pub(super) fn note_socket(&self, name: &str, path: &Path, usage: SocketUse) {
        let position = self.entry(name).map_or(self.position, |entry| entry.value.position);
        self.diagnostics.add_socket(path, usage, position, child_path(&self.path, name));
    }

    fn child(&self, entry: &'a MapEntry) -> Option<Section<'a>> {
        let row = self.key(&entry.key).path.to_owned();
        let at = SectionPath { row, path: child_path(&self.path, &entry.key) };
        Section::new(&entry.value, entry.position, at, self.diagnostics)
    }

    /// The section under the key; an empty one if it is not given, `None` if it is mistyped.
    pub(super) fn section(&self, name: &str) -> Option<Section<'a>> {
        let (diagnostics, row) = (self.diagnostics, self.key(name).path.to_owned());
        match self.entry(name) {
            Some(entry) => self.child(entry),
            None if self.has(name) => None,
            None => Some(Section {
                diagnostics,
                entries: &[],
                row,
                path: child_path(&self.path, name),
                position: self.position,
                meant: Vec::new(),
            }),
        }
    }

    /// The sections under the key by name, in the order of the file; `None` if there is no mapping of names.
    pub(super) fn named_sections(&self, name: &str) -> Option<Vec<Named<'a>>> {
        let key = self.key(name);
        let path = child_path(&self.path, name);
        let entries = match self.entry(name).map(|entry| &entry.value) {
            Some(YamlNode { value: YamlValue::Map(entries), .. }) => entries.as_slice(),
            None | Some(YamlNode { value: YamlValue::Null, .. }) if key.default != DefaultValue::Required => {
                &[]
            }
            None => {
                self.missing(name);
                return None;
            }
            Some(node) => {
                misshapen(self.diagnostics, node, &path, key.kind, Some(sample::by_name(key.path, node)));
                return None;
            }
        };
        let section = |entry: &'a MapEntry| {
            let row = format!("{}.*", key.path);
            if matches!(entry.value.value, YamlValue::Text(_))
                && keys::below(&row).any(|key| key.name() == entry.key)
            {
                let hint =
                    format!("a key of one of the {name}, in the place of a name (indent it below that name)");
                self.diagnostics.add(entry.position, &child_path(&path, &entry.key), hint);
                return None;
            }
            let at = SectionPath { row, path: child_path(&path, &entry.key) };
            Section::new(&entry.value, entry.position, at, self.diagnostics)
        };
        Some(
            entries
                .iter()
                .map(|e| Named { name: &e.key, position: e.position, section: section(e) })
                .collect(),
        )
    }

    /// The sections of the list under the key, which must be given; `None` for one that is no mapping, which
    /// is reported.
    pub(super) fn list(&self, name: &str) -> Option<Vec<Option<Section<'a>>>> {
        let key = self.key(name);
        let path = child_path(&self.path, name);
        let node = &self.entry(name)?.value;
        let YamlValue::List(items) = &node.value else {
            let right = sample::list(key.path, &path, node);
            misshapen(self.diagnostics, node, &path, key.kind, Some(right));
            return None;
        };
        let section = |(index, item): (usize, &'a YamlNode)| {
            let at = SectionPath { row: format!("{}[]", key.path), path: format!("{path}[{index}]") };
            Section::new(item, item.position, at, self.diagnostics)
        };
        Some(items.iter().enumerate().map(section).collect())
    }

    /// Notes a problem of a name that the operator chose below the key, where the name stands.
    pub(super) fn problem_of_name(&self, key: &str, named: &Named<'_>, message: &str) {
        let path = child_path(&child_path(&self.path, key), named.name);
        self.diagnostics.add(named.position, &path, message);
    }
}

/// Reports a value that is not of the shape its key needs; `right` is what could be written.
fn misshapen(diagnostics: &Diagnostics, node: &YamlNode, path: &str, kind: ValueKind, right: Option<String>) {
    let found = match &node.value {
        YamlValue::Null => "the value is missing".to_owned(),
        YamlValue::Text(text) => format!("{} is a single value", quote(text)),
        YamlValue::List(_) => "a list stands here".to_owned(),
        YamlValue::Map(_) => "a mapping stands here".to_owned(),
        YamlValue::Refused => return,
    };
    let right = match right {
        Some(right) => format!("write {right}"),
        None if path.is_empty() => format!(
            "this is no configuration: write default_backend: NAME and {}, as in config.example.yaml",
            sample::sections("backends", None)
        ),
        None => format!("expected {}", kind.shape()),
    };
    diagnostics.add(node.position, path, format!("{found} ({right})"));
}
