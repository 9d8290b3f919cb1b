//! What can be said of a file beside its problems.
//!
//! The keys with problems are left out, and those that others need get a stand-in, until the rest is a
//! configuration. Only warnings that no problem can change are given.

use std::path::Path;

use super::diagnostics::Diagnostics;
use super::keys::child_path;
use super::problem::Problems;
use super::section::Section;
use super::tree::{self, YamlNode, YamlValue};
use super::{Config, ConfigWarning, file, program};

/// A file with more problems is something else than a configuration.
const MOST_PROBLEMS: usize = 100;
/// Leaving out a key can make another one wrong, which is left out in the next round.
const ROUNDS: usize = 8;

/// The rest of a file with problems.
#[derive(Debug)]
pub struct Remainder {
    config: Config,
    /// The keys with problems.
    broken: Vec<String>,
}

impl Remainder {
    /// Returns what remains of a file that has these problems; `None` if that is no configuration.
    pub fn of(text: &str, base_dir: &Path, problems: &Problems) -> Option<Self> {
        if problems.0.len() > MOST_PROBLEMS {
            return None;
        }
        let mut root = tree::read(text, &Diagnostics::default())?;
        if program::other_program(&root).is_some() {
            return None;
        }
        let keys = |problems: &Problems| -> Vec<_> { problems.0.iter().map(|p| p.key.clone()).collect() };
        let broken = keys(problems);
        let mut wrong = broken.clone();
        for _ in 0..ROUNDS {
            for key in &wrong {
                leave_out(&mut root, key);
            }
            let diagnostics = Diagnostics::default();
            let config = file::config(&Section::top(&root, &diagnostics)?, base_dir);
            diagnostics.check_sockets();
            match diagnostics.problems() {
                None => return Some(Self { config: config?, broken }),
                Some(problems) => wrong = keys(&problems),
            }
        }
        None
    }

    /// The configuration without the keys that have problems: not what the operator means.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns the warnings that hold whatever is done about the problems.
    pub fn warnings(&self) -> Vec<ConfigWarning> {
        self.config.warnings().into_iter().filter(|warning| self.is_certain(&warning.key)).collect()
    }

    /// Returns the notes that hold whatever is done about the problems.
    pub fn notes(&self) -> Vec<ConfigWarning> {
        // They are about backends that nothing names, so every key that may name one must be right.
        let names_none = |key: &String| key.matches('.').count() > 1 && key.starts_with("backends.");
        if self.broken.iter().all(names_none) { self.config.notes() } else { Vec::new() }
    }

    /// Tells whether what is found about a key holds whatever is done about the problems.
    pub fn is_certain(&self, key: &str) -> bool {
        // How streams reach a backend depends on its endpoint, and on whether it is local.
        let subject = key.split(".streaming").next().unwrap_or(key);
        let is_below = |key: &str, above: &str| {
            key.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        let touches = |broken: &String| {
            !broken.is_empty() && (is_below(key, broken) || (subject != key && is_below(broken, subject)))
        };
        !self.broken.iter().any(touches)
    }
}

/// Leaves out the key, or the nearest section around it if it is not there.
fn leave_out(root: &mut YamlNode, key: &str) {
    // The places of a list's other items stay as they are if the whole list goes.
    let key = key.split('[').next().unwrap_or(key);
    if !stand_in(root, key) {
        remove(root, key, "");
    }
}

/// Gives a value to a key that every configuration needs; tells whether it did.
fn stand_in(root: &mut YamlNode, key: &str) -> bool {
    let YamlValue::Map(entries) = &mut root.value else { return false };
    if key == "default_backend" {
        let backends = entries.iter().find(|entry| entry.key == "backends").map(|entry| &entry.value.value);
        let Some(YamlValue::Map(backends)) = backends else { return false };
        let Some(first) = backends.first().map(|backend| backend.key.clone()) else { return false };
        return set(entries, key, first);
    }
    let Some(name) = key.strip_prefix("backends.").and_then(|rest| rest.strip_suffix(".endpoint")) else {
        return false;
    };
    let backends =
        entries.iter_mut().find(|entry| entry.key == "backends").map(|entry| &mut entry.value.value);
    let Some(YamlValue::Map(backends)) = backends else { return false };
    let Some(backend) = backends.iter_mut().find(|backend| child_path("", &backend.key) == name) else {
        return false;
    };
    if !matches!(backend.value.value, YamlValue::Map(_)) {
        backend.value.value = YamlValue::Map(Vec::new());
    }
    let YamlValue::Map(keys) = &mut backend.value.value else { return false };
    set(keys, "endpoint", format!("unix:///nonexistent/{}", backend.key))
}

/// Sets a key to this text; tells whether it was something else.
fn set(entries: &mut Vec<tree::MapEntry>, key: &str, text: String) -> bool {
    let position = entries.first().map_or(super::diagnostics::Position::START, |entry| entry.position);
    if let Some(entry) = entries.iter_mut().find(|entry| entry.key == key) {
        let is_other = !matches!(&entry.value.value, YamlValue::Text(given) if *given == text);
        entry.value.value = YamlValue::Text(text);
        return is_other;
    }
    let value = YamlNode { position, value: YamlValue::Text(text) };
    entries.push(tree::MapEntry { key: key.to_owned(), position, value });
    true
}

/// Removes the entry of a key below a node, or the section that lacks it; tells whether an entry leads to it.
fn remove(node: &mut YamlNode, key: &str, path: &str) -> bool {
    let YamlValue::Map(entries) = &mut node.value else { return false };
    let leads = |at: &str| key.strip_prefix(at).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    let found = entries.iter().position(|entry| leads(&child_path(path, &entry.key)));
    let Some(index) = found else { return false };
    let at = child_path(path, &entries[index].key);
    // What lacks a key goes with it, but not what is around a section that has gone already.
    let is_holder = key.strip_prefix(&at).is_some_and(|rest| rest.rfind('.') == Some(0));
    if at == key || (!remove(&mut entries[index].value, key, &at) && is_holder) {
        entries.remove(index);
    }
    true
}
