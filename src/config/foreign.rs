//! Recognises files in another format than YAML.

use super::diagnostics::Position;
use super::values::quote;

/// Returns the first line that looks like TOML or INI, if the first line with something on it does.
pub(super) fn other_format(text: &str) -> Option<(Position, String)> {
    let is_significant = |line: &str| !line.is_empty() && !line.starts_with(['#', ';']);
    let (index, line) = text.lines().enumerate().find(|(_, line)| is_significant(line.trim()))?;
    let content = line.trim();
    if !is_table(content) && !is_assignment(content) {
        return None;
    }
    let position =
        Position { line: index + 1, column: line.chars().take_while(|c| c.is_whitespace()).count() + 1 };
    let message = format!("this is not YAML: {} looks like TOML or INI (write KEY: VALUE)", quote(content));
    Some((position, message))
}

/// Tells whether a line is `[name]`, which in YAML would be a list of one text.
fn is_table(line: &str) -> bool {
    let name = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    name.is_some_and(|name| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-\"'[]: ".contains(c);
        !name.trim().is_empty() && name.chars().all(plain)
    })
}

/// Tells whether a line is `name = value`.
fn is_assignment(line: &str) -> bool {
    let name = line.split_once('=').map(|(name, _)| name.trim_end());
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-\"'".contains(c);
    name.is_some_and(|name| !name.is_empty() && name.chars().all(plain))
}
