//! Output: aligned tables for people, JSON or YAML for scripts.
//!
//! Tables look like kubectl's and crictl's, without lines, so that `awk` works on them too. Colour marks a
//! state and nothing else; it is only for a terminal, and `NO_COLOR` switches it off (the anstream crate sees
//! to both).

use std::io::{self, Write};
use std::time::SystemTime;

use anstyle::{AnsiColor, Style};
use clap::ValueEnum;
use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use crate::admin::duration;

/// The blanks between two columns of a table.
const GAP: usize = 3;

/// The format of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Columns for people.
    Table,
    /// More columns.
    Wide,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

impl Format {
    /// Tells whether scripts read it.
    pub(super) fn is_document(self) -> bool {
        matches!(self, Self::Json | Self::Yaml)
    }
}

/// Shows `document` in this format; `table` writes the table.
///
/// # Errors
/// If standard output cannot be written.
pub(super) fn show<T: Serialize>(
    format: Format,
    document: &T,
    table: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    let text = match format {
        Format::Table | Format::Wide => table(document),
        Format::Json => serde_json::to_string_pretty(document)? + "\n",
        Format::Yaml => serde_yaml::to_string(document)?,
    };
    print(&text)?;
    Ok(())
}

/// Writes to standard output, without colours unless it is a terminal.
///
/// # Errors
/// If standard output cannot be written.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// The columns that a table and what stands beside it take, as long as names have the usual length.
pub(super) const WIDTH: usize = 80;

/// Breaks a text at spaces into lines of at most `width` characters; the second and later ones are indented
/// by two. A longer word has its own line.
pub(super) fn wrap(text: &str, width: usize) -> String {
    let (mut lines, mut used) = (String::new(), 0);
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > width {
            lines += "\n ";
            used = 1;
        }
        if used > 0 {
            lines.push(' ');
            used += 1;
        }
        lines += word;
        used += length;
    }
    lines + "\n"
}

/// Aligns rows under a header.
pub(super) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut lines = vec![header.map(str::to_owned)];
    // A line break in a cell would end the row.
    lines.extend(rows.into_iter().map(|cells| cells.map(|cell| cell.replace(['\n', '\r', '\t'], " "))));
    let widths: [usize; N] = std::array::from_fn(|column| {
        lines.iter().map(|cells| display_width(&cells[column])).max().unwrap_or_default()
    });
    let mut table = String::new();
    for cells in &lines {
        let padded = cells.iter().zip(widths);
        let line: String = padded
            .map(|(cell, width)| cell.clone() + &" ".repeat(width + GAP - display_width(cell)))
            .collect();
        table.push_str(line.trim_end());
        table.push('\n');
    }
    table
}

/// Returns how many columns of a terminal a text takes; colours take none.
fn display_width(text: &str) -> usize {
    anstream::adapter::strip_str(text).map(UnicodeWidthStr::width).sum()
}

/// Colours a state of a backend or a pod.
pub(super) fn state(word: &str) -> String {
    let colour = match word {
        "ready" => AnsiColor::Green,
        "late" | "joining" | "draining" | "notready" => AnsiColor::Yellow,
        _ => AnsiColor::Red,
    };
    paint(colour, word)
}

/// Colours an error.
pub(super) fn bad(text: &str) -> String {
    paint(AnsiColor::Red, text)
}

/// Colours a warning.
pub(super) fn warn(text: &str) -> String {
    paint(AnsiColor::Yellow, text)
}

/// Colours a success.
pub(super) fn good(text: &str) -> String {
    paint(AnsiColor::Green, text)
}

fn paint(colour: AnsiColor, text: &str) -> String {
    let style = Style::new().fg_color(Some(colour.into()));
    format!("{style}{text}{style:#}")
}

/// Formats how long ago an RFC 3339 time was; `-` for the Unix epoch, which stands for an unknown time.
pub(super) fn since(moment: &str) -> String {
    let Ok(moment) = humantime::parse_rfc3339(moment) else { return "-".to_owned() };
    if moment == SystemTime::UNIX_EPOCH {
        return "-".to_owned();
    }
    duration::human(SystemTime::now().duration_since(moment).unwrap_or_default())
}

/// Returns `-` for an empty cell.
pub(super) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_wrapped_at_spaces_and_a_long_word_has_its_own_line() {
        let shown = wrap("- one two three /a/long/path four", 9);
        assert_eq!(shown, "- one two\n  three\n  /a/long/path\n  four\n");
        assert_eq!(wrap("one two", usize::MAX), "one two\n");
    }

    #[test]
    fn columns_are_aligned_by_what_is_seen() {
        let rows = [[state("ready"), "1".to_owned()], ["longer one".to_owned(), "22".to_owned()]];
        let shown = anstream::adapter::strip_str(&table(["STATE", "N"], rows)).to_string();
        assert_eq!(shown, "STATE        N\nready        1\nlonger one   22\n");
        assert_eq!(table(["A", "B"], [["日本".to_owned(), "1".to_owned()]]), "A      B\n日本   1\n");
    }
}
