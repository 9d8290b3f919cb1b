//! The YAML text as a tree in which every key and value knows its line and column.
//!
//! It is built from the parser's events instead of a ready-made document, because a document has already lost
//! what an operator needs to hear: that a key is given twice, and where. It also keeps hostile files
//! harmless: size, depth and count are limited, and an alias is refused instead of expanded. It does not know
//! crimux's keys.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, StrInput};

use super::diagnostics::{Diagnostics, Position};
use super::keys::child_path;
use super::syntax;

/// A value and where it starts.
#[derive(Debug)]
pub(super) struct YamlNode {
    pub(super) position: Position,
    pub(super) value: YamlValue,
}

/// What stands at a position. Scalars stay text: what they mean is for the reader of the key to say.
#[derive(Debug)]
pub(super) enum YamlValue {
    /// Nothing, `~` or `null`.
    Null,
    Text(String),
    List(Vec<YamlNode>),
    Map(Vec<MapEntry>),
    /// Invalid, and already reported.
    Refused,
}

/// One key of a mapping with its value.
#[derive(Debug)]
pub(super) struct MapEntry {
    pub(super) key: String,
    pub(super) position: Position,
    pub(super) value: YamlNode,
}

/// The largest file that is read, in bytes.
pub(super) const MAX_BYTES: usize = 1024 * 1024;
const MAX_DEPTH: usize = 16;
/// The key by which YAML 1.1 merges another mapping.
pub(super) const MERGE_KEY: &str = "<<";
const MAX_NODES: usize = 100_000;

/// Reads the one document of `text`; `None` if a problem was found behind which nothing can be read.
pub(super) fn read(text: &str, diagnostics: &Diagnostics) -> Option<YamlNode> {
    if text.len() > MAX_BYTES {
        diagnostics.add(
            Position::START,
            "",
            "the file is larger than 1 MiB (a configuration is a few kilobytes)",
        );
        return None;
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // The parser takes it for the end of the file.
    if let Some(zero) = text.find('\0') {
        let before = &text[..zero];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
        diagnostics.add(Position { line, column }, "", "a zero byte stands here (remove it)");
        return None;
    }
    let mut builder = Builder { text, parser: Parser::new_from_str(text), diagnostics, nodes: 0 };
    match builder.document() {
        Ok(Some(YamlNode { value: YamlValue::Null, .. }) | None) => {
            diagnostics.add(
                Position::START,
                "",
                "the file is empty (at least default_backend and backends are needed)",
            );
            None
        }
        Ok(root) => root,
        Err(fatal) => {
            diagnostics.add(fatal.position, &fatal.path, fatal.message);
            None
        }
    }
}

/// Returns the text at `path` of a file that may have problems; `None` if it is not there, or not text.
pub(super) fn find_text(text: &str, path: &[&str]) -> Option<String> {
    let mut node = read(text, &Diagnostics::default())?;
    for key in path {
        let YamlValue::Map(entries) = node.value else { return None };
        node = entries.into_iter().find(|entry| entry.key == *key)?.value;
    }
    match node.value {
        YamlValue::Text(text) => Some(text),
        _ => None,
    }
}

/// Returns where the key stands, or else the nearest section around it: its value if that is text, the key if
/// not.
pub(super) fn find_position(text: &str, key: &str) -> Option<Position> {
    let root = read(text, &Diagnostics::default())?;
    let (mut node, mut path, mut found) = (&root, String::new(), None);
    while let Some((position, child, at)) = child_towards(key, node, &path) {
        found = Some(if matches!(child.value, YamlValue::Text(_)) { child.position } else { position });
        (node, path) = (child, at);
    }
    found
}

/// Returns the child of a node that the key is, or is below: its position, itself and its path.
fn child_towards<'a>(key: &str, node: &'a YamlNode, path: &str) -> Option<(Position, &'a YamlNode, String)> {
    let leads =
        |at: &str| key.strip_prefix(at).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
    match &node.value {
        YamlValue::Map(entries) => entries.iter().find_map(|entry| {
            let at = child_path(path, &entry.key);
            leads(&at).then_some((entry.position, &entry.value, at))
        }),
        YamlValue::List(items) => items.iter().enumerate().find_map(|(index, item)| {
            let at = format!("{path}[{index}]");
            leads(&at).then_some((item.position, item, at))
        }),
        _ => None,
    }
}

/// A problem that ends the reading.
struct Fatal {
    position: Position,
    path: String,
    message: String,
}

struct Builder<'a> {
    text: &'a str,
    parser: Parser<'a, StrInput<'a>>,
    diagnostics: &'a Diagnostics,
    nodes: usize,
}

impl<'a> Builder<'a> {
    fn document(&mut self) -> Result<Option<YamlNode>, Fatal> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(root),
                Event::DocumentStart(_) if root.is_some() => {
                    let message = "a second YAML document starts here (one file holds one configuration)";
                    return Err(fatal(position(span.start), "", message));
                }
                Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
                event => root = Some(self.node(event, span, "", 0)?),
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'a>, Span), Fatal> {
        match self.parser.next_event() {
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => {
                let fault = syntax::fault(self.text, error.info(), position(*error.marker()));
                Err(fatal(fault.position, &fault.key, &fault.message))
            }
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, path: &str, depth: usize) -> Result<YamlNode, Fatal> {
        let position = position(span.start);
        self.nodes += 1;
        if depth > MAX_DEPTH {
            return Err(fatal(position, path, "nested too deeply (no key lies deeper than five levels)"));
        }
        if self.nodes > MAX_NODES {
            return Err(fatal(
                position,
                path,
                "the file holds more than 100000 values (a configuration has a few)",
            ));
        }
        let value = match event {
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, Some(_))
            | Event::MappingStart(_, Some(_)) => {
                self.diagnostics.add(position, path, "YAML tags are not supported (write the plain value)");
                self.skip(&event)?;
                YamlValue::Refused
            }
            Event::Scalar(text, ScalarStyle::Plain, _, _) if is_null(&text) => YamlValue::Null,
            Event::Scalar(text, ..) => YamlValue::Text(text.into_owned()),
            Event::SequenceStart(..) => YamlValue::List(self.list(path, depth)?),
            Event::MappingStart(..) => YamlValue::Map(self.map(path, depth)?),
            Event::Alias(_) => {
                self.diagnostics.add(position, path, "YAML aliases are not supported (write the value out)");
                YamlValue::Refused
            }
            _ => YamlValue::Null,
        };
        Ok(YamlNode { position, value })
    }

    fn list(&mut self, path: &str, depth: usize) -> Result<Vec<YamlNode>, Fatal> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd | Event::StreamEnd, _) => return Ok(items),
                (event, span) => {
                    items.push(self.node(event, span, &format!("{path}[{}]", items.len()), depth + 1)?);
                }
            }
        }
    }

    fn map(&mut self, path: &str, depth: usize) -> Result<Vec<MapEntry>, Fatal> {
        let mut entries: Vec<MapEntry> = Vec::new();
        let mut lines: HashMap<String, usize> = HashMap::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd | Event::StreamEnd) {
                return Ok(entries);
            }
            let key_place = position(span.start);
            let key = self.key(event, key_place, path)?;
            let key_path = key.as_ref().map_or_else(|| path.to_owned(), |key| child_path(path, key));
            let (event, span) = self.next()?;
            let mut value = if key.as_deref() == Some(MERGE_KEY) {
                let message = "YAML merge keys (<<) and aliases are not supported (write the values out)";
                self.diagnostics.add(key_place, &key_path, message);
                self.skip(&event)?;
                YamlNode { position: key_place, value: YamlValue::Refused }
            } else {
                self.node(event, span, &key_path, depth + 1)?
            };
            if matches!(value.value, YamlValue::Null) {
                value.position = key_place; // Nothing has no position of its own.
            }
            let Some(key) = key else { continue };
            if let Some(line) = lines.get(&key) {
                let message = format!(
                    "the key is given twice, first on line {line} (keep one of the two, or give one another name)"
                );
                self.diagnostics.add(key_place, &key_path, message);
                continue;
            }
            lines.insert(key.clone(), key_place.line);
            entries.push(MapEntry { key, position: key_place, value });
        }
    }

    /// The text of a key; `None` if it is no text, which is reported.
    fn key(&mut self, event: Event<'a>, position: Position, path: &str) -> Result<Option<String>, Fatal> {
        if let Event::Scalar(text, ..) = event {
            return Ok(Some(text.into_owned()));
        }
        self.diagnostics.add(position, path, "a key must be text (not a list, a mapping or an alias)");
        self.skip(&event)?;
        Ok(None)
    }

    /// Passes over what belongs to a node that was opened by `event`.
    fn skip(&mut self, event: &Event<'a>) -> Result<(), Fatal> {
        let mut open = usize::from(matches!(event, Event::SequenceStart(..) | Event::MappingStart(..)));
        while open > 0 {
            match self.next()?.0 {
                Event::SequenceStart(..) | Event::MappingStart(..) => open += 1,
                Event::SequenceEnd | Event::MappingEnd => open -= 1,
                Event::StreamEnd => return Ok(()),
                _ => {}
            }
        }
        Ok(())
    }
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

fn position(mark: Marker) -> Position {
    Position { line: mark.line().max(1), column: mark.col() + 1 }
}

fn fatal(position: Position, path: &str, message: &str) -> Fatal {
    Fatal { position, path: path.to_owned(), message: message.to_owned() }
}
