//! Single values and positions of a file that may have problems elsewhere.
//!
//! A broken file is when an operator needs the admin socket most. Nothing here reports a problem.

use std::path::{Path, PathBuf};

use super::{tree, values};

/// Returns `admin.socket` of a file that may have problems elsewhere; `None` if it cannot be read.
pub fn admin_socket_of(path: &Path) -> Option<PathBuf> {
    values::socket(&raw_value(path, "admin", "socket")?).ok()
}

/// Returns `state_dir` of a file that may have problems elsewhere, or its default.
pub fn state_dir_of(path: &Path) -> PathBuf {
    let named = super::read_bounded(path).ok().and_then(|(text, _)| {
        let text = String::from_utf8_lossy(&text).into_owned();
        let line = || Some(text.lines().find_map(|line| line.strip_prefix("state_dir:"))?.trim().to_owned());
        tree::find_text(&text, &["state_dir"]).or_else(line)
    });
    named
        .and_then(|named| values::directory(&named).ok())
        .unwrap_or_else(|| PathBuf::from(super::DEFAULT_STATE_DIR))
}

/// Tells whether a file that may have problems elsewhere sets `log.format: json`.
pub fn is_log_json(path: &Path) -> bool {
    raw_value(path, "log", "format").is_some_and(|format| format == "json")
}

/// Returns the text of `section.key` in a file that may have problems elsewhere.
fn raw_value(path: &Path, section: &str, key: &str) -> Option<String> {
    let (text, _) = super::read_bounded(path).ok()?;
    let text = String::from_utf8_lossy(&text);
    let value = tree::find_text(&text, &[section, key]);
    // Behind a YAML syntax error there is no tree; then the line of the key is enough.
    value.or_else(|| {
        let text = format!("\n{text}");
        let section = text.split(&format!("\n{section}:")).nth(1)?;
        let rest = section.split_once(&format!("{key}:"))?.1.lines().next()?;
        Some(rest.trim().trim_matches(['"', '\'', '}', ' ']).split([',', ' ']).next()?.to_owned())
    })
}

/// Returns line and column, both counted from 1, of a key in the text of a file: of its value if that is
/// text. A key that is not given stands where the section around it does; `None` if that is not given either.
pub fn position_of(text: &str, key: &str) -> Option<(usize, usize)> {
    let position = tree::find_position(text, key)?;
    Some((position.line, position.column))
}
