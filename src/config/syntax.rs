//! Names the fault of a text that the YAML parser refuses.
//!
//! The parser says where it gave up, which for an open bracket is the end of the file, and in words of its
//! own grammar. Here the place of the cause is looked for and said in words of the file.

use super::diagnostics::Position;
use super::foreign;

/// A fault of the text.
pub(super) struct Fault {
    pub(super) position: Position,
    /// The key whose value is at fault; empty if that is not known.
    pub(super) key: String,
    pub(super) message: String,
}

/// Returns the fault; `info` and `at` are the parser's.
pub(super) fn fault(text: &str, info: &str, at: Position) -> Fault {
    let of_file = |(position, message)| Fault { position, key: String::new(), message };
    if let Some(found) = foreign::other_format(text) {
        return of_file(found);
    }
    let line = text.lines().nth(at.line - 1).unwrap_or_default();
    let indentation = line.len() - line.trim_start().len();
    if let Some(tab) = line[..indentation].find('\t') {
        let position = Position { line: at.line, column: tab + 1 };
        return of_file((position, "a tab indents this line (use spaces)".to_owned()));
    }
    // A quote that is read in another place than the parser's is not trusted, a bracket is.
    let (open, position) = match first_open(text) {
        Some((open, position)) if !is_quote(open) || info.contains("quoted scalar") => (open, position),
        _ => return of_file((at, in_own_words(info))),
    };
    let message = format!("{} is not closed ({})", in_quotes(open), how_to_close(text, open, position));
    Fault { position, key: key_at(text, position), message }
}

/// Says how a quote or a bracket is closed.
fn how_to_close(text: &str, open: char, position: Position) -> String {
    let end = match open {
        '{' => '}',
        '[' => ']',
        quote => quote,
    };
    let line = text.lines().nth(position.line - 1).unwrap_or_default();
    let value = line.chars().skip(position.column).collect::<String>();
    let value = value.trim_end();
    // Where more stands behind the value, nobody knows where it ends.
    let is_value = !value.is_empty()
        && value.len() <= 60
        && !value.contains(['{', '}', '[', ']', ',', '#', '@', '"', '\'']);
    if is_quote(open) && is_value {
        return format!("write {open}{value}{open}");
    }
    format!("end it with {end}")
}

/// Returns the path of the key whose value begins here, by the indentation of the lines above; empty if it is
/// not at the beginning of its line.
fn key_at(text: &str, position: Position) -> String {
    let lines: Vec<_> = text.lines().take(position.line).collect();
    let Some((last, above)) = lines.split_last() else { return String::new() };
    let before: String = last.chars().take(position.column - 1).collect();
    let Some((mut indentation, own, "")) = key_of(&before) else { return String::new() };
    let mut path = own.to_owned();
    for line in above.iter().rev() {
        if let Some((outer, key, "")) = key_of(line)
            && outer < indentation
        {
            path = format!("{key}.{path}");
            indentation = outer;
        }
    }
    path
}

/// Returns the indentation of a line that begins with a key, the key, and what follows its colon without
/// blanks.
fn key_of(line: &str) -> Option<(usize, &str, &str)> {
    let indentation = line.len() - line.trim_start().len();
    let (key, rest) = line.trim_start().split_once(':')?;
    let is_key = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    is_key.then_some((indentation, key, rest.trim()))
}

fn is_quote(open: char) -> bool {
    matches!(open, '"' | '\'')
}

fn in_quotes(open: char) -> String {
    if open == '"' { "'\"'".to_owned() } else { format!("\"{open}\"") }
}

fn in_own_words(info: &str) -> String {
    const WORDS: [(&str, &str); 10] = [
        ("expected ',' or '}'", "\",\" or \"}\" is missing before this"),
        ("expected ',' or ']'", "\",\" or \"]\" is missing before this"),
        (
            "mapping values are not allowed",
            "a \":\" stands inside a value (indent this key like those around it, or put the value in quotes)",
        ),
        (
            "did not find expected key",
            "no key is read here (indent this line like those around it, or close what is open before it)",
        ),
        (
            "expected '-' indicator",
            "this line is indented as an item of a list (begin it with \"- \", or indent it less)",
        ),
        (
            "expected <document start>",
            "this does not belong to what stands before it (write KEY: VALUE on each line)",
        ),
        ("unknown anchor", "YAML aliases are not supported (write the value out)"),
        ("escape", "\"\\\" begins an escape in double quotes (write \\\\, or use single quotes)"),
        ("a tab", "a tab stands here (use spaces)"),
        ("tabs", "a tab stands here (use spaces)"),
    ];
    if let Some((_, words)) = WORDS.iter().find(|(part, _)| info.contains(part)) {
        return (*words).to_owned();
    }
    match info.split_once("unexpected character: `").and_then(|(_, rest)| rest.chars().next()) {
        Some(first) => format!("a value cannot begin with {first:?} (put it in quotes)"),
        None => format!("this is not valid YAML: {info}"),
    }
}

/// Returns the first quote or bracket of a flow collection that is not closed.
fn first_open(text: &str) -> Option<(char, Position)> {
    let mut open: Vec<(char, Position)> = Vec::new();
    let mut quote: Option<(char, Position)> = None;
    for (index, line) in text.lines().enumerate() {
        let (mut before, mut last_word) = (' ', None);
        let mut characters = line.chars().enumerate().peekable();
        while let Some((column, c)) = characters.next() {
            let at = Position { line: index + 1, column: column + 1 };
            // A quote or bracket is one only where a value begins; elsewhere it is a character of the value.
            let begins = (before.is_whitespace() || "{[,".contains(before))
                && last_word.is_none_or(|word| "{[,:-?".contains(word));
            match (quote, c) {
                (Some(('"', _)), '\\') => drop(characters.next()),
                (Some(('\'', _)), '\'') if characters.peek().is_some_and(|(_, next)| *next == '\'') => {
                    characters.next();
                }
                (Some((mark, _)), c) if c == mark => quote = None,
                (None, '#') if before.is_whitespace() => break,
                (None, '"' | '\'') if begins => quote = Some((c, at)),
                (None, '{' | '[') if begins || !open.is_empty() => open.push((c, at)),
                (None, '}' | ']') => match open.pop() {
                    Some((mark, at)) if (mark == '{') != (c == '}') => return Some((mark, at)),
                    _ => {}
                },
                _ => {}
            }
            before = c;
            last_word = if c.is_whitespace() { last_word } else { Some(c) };
        }
    }
    quote.or(open.first().copied())
}
