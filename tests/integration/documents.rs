//! Files and functions that ARCHITECTURE.md and the comments of the code name exist.

use std::collections::BTreeMap;
use std::path::Path;

/// Adds the Rust files below `folder`, each with its text, by their paths below `root`.
fn add_sources(root: &Path, folder: &Path, files: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            add_sources(root, &path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let below = path.strip_prefix(root).unwrap().display().to_string();
            files.insert(below, std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// Returns what of `MODULE::FUNCTION` and `FILE.rs` in a text does not exist. Other modules than ours, and
/// types, are not looked at.
fn stale_names(text: &str, files: &BTreeMap<String, String>) -> Vec<String> {
    let is_in_name = |letter: char| letter.is_alphanumeric() || "_./:".contains(letter);
    let tokens = text.split(|letter| !is_in_name(letter)).map(|token| token.trim_matches(['.', ':']));
    tokens.filter(|token| !is_file(token, files) || !is_function(token, files)).map(str::to_owned).collect()
}

/// Tells whether a name that ends in `.rs` is the end of the path of a file; true for other names.
fn is_file(name: &str, files: &BTreeMap<String, String>) -> bool {
    let end = format!("/{name}");
    Path::new(name).extension().is_none_or(|extension| extension != "rs")
        || files.keys().any(|path| format!("/{path}").ends_with(&end))
}

/// Tells whether `MODULE::FUNCTION` is declared in a file of that module in `src`; true for other names.
fn is_function(name: &str, files: &BTreeMap<String, String>) -> bool {
    let is_lower = |name: &str| name.chars().all(|letter| letter.is_lowercase() || letter == '_');
    let Some((module, function)) = name.split_once("::").filter(|(_, function)| is_lower(function)) else {
        return true;
    };
    let (file, folder) = (format!("/{module}.rs"), format!("/{module}/"));
    let of_module =
        |path: &String| path.starts_with("src/") && (path.ends_with(&file) || path.contains(&folder));
    let mut texts = files.iter().filter(|(path, _)| of_module(path)).map(|(_, text)| text).peekable();
    let declarations = ["fn", "mod"].map(|keyword| format!("{keyword} {function}"));
    texts.peek().is_none()
        || texts.any(|text| declarations.iter().any(|declaration| text.contains(declaration)))
}

#[test]
fn files_and_functions_that_documents_name_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = BTreeMap::new();
    for folder in ["src", "crates", "tests", "benches", "testkit"] {
        add_sources(root, &root.join(folder), &mut files);
    }
    let architecture = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let mut stale = vec![("ARCHITECTURE.md".to_owned(), stale_names(&architecture, &files))];
    for (path, text) in files.iter().filter(|(path, _)| path.starts_with("src/")) {
        let comments = text.lines().filter(|line| line.trim_start().starts_with("//"));
        let comments: Vec<_> = comments.collect();
        stale.push((path.clone(), stale_names(&comments.join("\n"), &files)));
    }
    stale.retain(|(_, names)| !names.is_empty());
    assert_eq!(stale, [], "named in a document, and renamed or moved since");
}

#[test]
fn the_reader_of_names_sees_files_and_functions() {
    let files = BTreeMap::from([("src/a/b.rs".to_owned(), "pub fn run() {}".to_owned())]);
    assert_eq!(stale_names("`b.rs`, a/b.rs, b::run, (a::run), http::get, b::Type.", &files), [""; 0]);
    assert_eq!(stale_names("`c.rs` runs `b::walk`.", &files), ["c.rs", "b::walk"]);
}
