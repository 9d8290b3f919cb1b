//! The order of the modules: an import points only down this list. And their names: no type is declared
//! twice.
//!
//! main > cli > app > admin > server > proxy > plan > router, backend, merge, events, relay > state >
//! metrics > method > the leaves. The hops of a call (router, backend, merge, events, relay) do not import
//! each other; only the proxy knows their order. Leaves import only leaves. Read from `crate::` paths in
//! `src/`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// From top to bottom. Modules of one row do not import each other, but for the leaves.
const ROWS: [&[&str]; 12] = [
    &["main"],
    &["cli"],
    &["app"],
    &["admin"],
    &["server"],
    &["proxy"],
    &["plan"],
    &["router", "backend", "merge", "events", "relay"],
    &["state", "limits"],
    // Labels of metrics are rows of the method table.
    &["metrics"],
    &["method"],
    &[
        "wire",
        "codec",
        "error",
        "shutdown",
        "handover",
        "accept",
        "backoff",
        "mutex",
        "log_limit",
        "process",
        "admission",
        "side",
        "history",
        "config",
        "telemetry",
        "utf8",
        "cri",
    ],
];

/// Type names that are declared more than once, each with its reason.
const DECLARED_TWICE: [(&str, &str); 1] =
    [("CallSpan", "spans.rs with the feature otlp, no_spans.rs without it")];

/// Imports that the order does not allow, each with its reason.
const EXCEPTIONS: [(&str, &str, &str); 1] = [(
    "relay",
    "backend",
    "a stream is dialled as its backend's endpoint is: same connector, same TLS identity",
)];

/// Returns all source files with the top module that each belongs to.
fn sources(root: &Path, dir: &Path, found: &mut Vec<(String, PathBuf)>) {
    for entry in std::fs::read_dir(dir).expect("src can be read") {
        let path = entry.expect("src can be read").path();
        if path.is_dir() {
            sources(root, &path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let below = path.strip_prefix(root).expect("it lies in src");
            let top = below.components().next().expect("it has a name").as_os_str().to_string_lossy();
            found.push((top.trim_end_matches(".rs").to_owned(), path));
        }
    }
}

/// Returns a file without its comments and its tests.
fn code_of(text: &str) -> String {
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .take_while(|line| !line.contains("#[cfg(test)]"))
        .flat_map(|line| [line, "\n"])
        .collect()
}

/// Returns the first names after `root` (`crate::`, or `crimux::` in the binary), in braces or not, outside
/// comments and before the tests of the file.
fn imports(text: &str, root: &str) -> BTreeSet<String> {
    let code = code_of(text);
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(root) {
        let rest = &code[at + root.len()..];
        match rest.strip_prefix('{') {
            Some(group) => names.extend(group_heads(group)),
            None => names.extend(head(rest)),
        }
    }
    names
}

/// Returns the first segments of the paths in a group, up to its closing brace.
fn group_heads(group: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut depth = 0;
    let mut start = 0;
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.extend(head(group[start..at].trim_start()));
                start = at + 1;
                if letter == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names
}

fn head(path: &str) -> Option<String> {
    let end = path.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(path.len());
    (end > 0).then(|| path[..end].to_owned())
}

fn row(module: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&module))
}

/// Tells whether `from` may import `to`.
fn may_import(from: &str, to: &str) -> bool {
    let (Some(above), Some(below)) = (row(from), row(to)) else { return false };
    let leaves = ROWS.len() - 1;
    from == to || above < below || (above == leaves && below == leaves)
}

#[test]
fn an_import_points_only_down_the_list() {
    let mut files = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    sources(&root, &root, &mut files);
    let mut wrong: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut seen = 0;
    for (module, path) in files.iter().filter(|(module, _)| module != "lib") {
        let text = std::fs::read_to_string(path).expect("src can be read");
        let root = if module == "main" { "crimux::" } else { "crate::" };
        for import in imports(&text, root) {
            seen += 1;
            let excused = EXCEPTIONS.iter().any(|(from, to, _)| from == module && *to == import);
            if !may_import(module, &import) && !excused {
                wrong.entry(format!("{module} > {import}")).or_default().push(path.display().to_string());
            }
        }
    }
    assert_eq!(wrong, BTreeMap::new());
    assert!(seen > 100, "imports were found: {seen}");
    let stale = EXCEPTIONS.iter().filter(|(from, to, _)| may_import(from, to));
    assert_eq!(stale.count(), 0, "an exception that the order allows is none");
}

/// Returns the names that the file of a folder re-exports or imports from the files in it, each with its
/// file.
fn re_exports(parent: &str, siblings: &BTreeSet<String>) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for statement in code_of(parent).split(';') {
        let Some(at) = statement.find("use ") else { continue };
        let path = statement[at + 4..].trim();
        let Some((file, rest)) = path.split_once("::").filter(|(file, _)| siblings.contains(*file)) else {
            continue;
        };
        let is_in_name = |letter: char| letter.is_alphanumeric() || letter == '_';
        let rest = rest.split(|letter| !is_in_name(letter)).filter(|name| !name.is_empty());
        names.extend(rest.map(|name| (name.to_owned(), file.to_owned())));
    }
    names
}

/// Returns the files of a folder that `file`, some folders below it, imports: by `super::`, or from the root.
fn sibling_imports(text: &str, folder: &str, depth: usize) -> BTreeSet<String> {
    let up = "super::".repeat(depth);
    let code = code_of(text).replace(&up, "\u{0}");
    // More steps up than to the folder lead out of it.
    let code = code.replace("super::\u{0}", ".").replace("\u{0}\u{0}", ".").replace("\u{0}super::", ".");
    let mut names = imports(&code, "\u{0}");
    names.extend(imports(&code, &format!("crate::{folder}::")));
    names
}

/// Returns the files that each file of a folder imports, re-exports of the folder's own file resolved.
fn imports_in(folder: &Path, root: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut files = Vec::new();
    sources(folder, folder, &mut files);
    files.retain(|(_, path)| !path.iter().any(|part| part == "tests" || part == "tests.rs"));
    let siblings: BTreeSet<_> = files.iter().map(|(sibling, _)| sibling.clone()).collect();
    let parent = std::fs::read_to_string(folder.with_extension("rs")).expect("a folder has a file");
    let names = re_exports(&parent, &siblings);
    let below = folder.strip_prefix(root).expect("it lies in src");
    let path = below.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("::");
    let mut imported: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (sibling, file) in &files {
        let text = std::fs::read_to_string(file).expect("src can be read");
        let depth = file.strip_prefix(folder).expect("it lies in the folder").iter().count();
        let found = sibling_imports(&text, &path, depth).into_iter();
        let found = found.filter_map(|name| names.get(&name).cloned().or(siblings.get(&name).cloned()));
        imported.entry(sibling.clone()).or_default().extend(found.filter(|name| name != sibling));
    }
    imported
}

/// Returns all that `from` imports, and what those import.
fn reach(imported: &BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut open = vec![from.to_owned()];
    while let Some(next) = open.pop() {
        for name in imported.get(&next).into_iter().flatten() {
            if reached.insert(name.clone()) {
                open.push(name.clone());
            }
        }
    }
    reached
}

#[test]
fn the_files_of_a_folder_import_each_other_in_no_circle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &root, &mut files);
    let folders: BTreeSet<_> = files.iter().filter_map(|(_, path)| path.parent()).collect();
    let folders = folders.into_iter().filter(|folder| **folder != root && !folder.ends_with("tests"));
    let (mut circles, mut seen) = (BTreeSet::new(), 0);
    for folder in folders {
        let imported = imports_in(folder, &root);
        seen += imported.values().map(BTreeSet::len).sum::<usize>();
        let in_circle = imported.keys().filter(|file| reach(&imported, file).contains(*file));
        circles.extend(in_circle.map(|file| format!("{}/{file}", folder.display())));
    }
    assert_eq!(circles, BTreeSet::new(), "move what both need into a file below both");
    assert!(seen > 150, "imports were found: {seen}");
}

#[test]
fn the_reader_of_siblings_sees_every_form() {
    let text = "use super::{a, b::C};\nuse crate::proxy::d;\nuse super::super::e;\nuse crate::merge::f;\n";
    let expected = ["a", "b", "d"].map(str::to_owned);
    assert_eq!(sibling_imports(text, "proxy", 1), BTreeSet::from(expected));
    assert_eq!(sibling_imports(text, "x", 2), BTreeSet::from(["e".to_owned()]));
    let siblings = BTreeSet::from(["node".to_owned()]);
    let names = re_exports("pub use node::{One, Two};\nuse other::Three;\n", &siblings);
    assert_eq!(names.keys().collect::<Vec<_>>(), ["One", "Two"]);
}

#[test]
fn every_module_has_its_place_in_the_list() {
    let mut files = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    sources(&root, &root, &mut files);
    let modules: BTreeSet<_> = files.into_iter().map(|(module, _)| module).filter(|m| m != "lib").collect();
    let unplaced: Vec<_> = modules.iter().filter(|module| row(module).is_none()).collect();
    assert_eq!(unplaced, [""; 0]);
}

#[test]
fn the_reader_of_imports_sees_every_form() {
    let text = "use crate::wire;\nuse crate::{a, b::{c, d}, e::f};\n// use crate::comment;\nlet x = crate::g::h();\n\
                use crimux::cli;\nuse crate::{\n    i,\n    j::k,\n};\n#[cfg(test)]\nuse crate::test;\n";
    let expected = ["a", "b", "e", "g", "i", "j", "wire"].map(str::to_owned);
    assert_eq!(imports(text, "crate::"), BTreeSet::from(expected));
    assert_eq!(imports(text, "crimux::"), BTreeSet::from(["cli".to_owned()]));
}

#[test]
fn hops_of_one_row_are_strangers() {
    assert!(!may_import("router", "backend"));
    assert!(!may_import("state", "router"));
    assert!(!may_import("method", "proxy"));
    assert!(!may_import("wire", "method"));
    assert!(may_import("proxy", "merge"));
    assert!(may_import("error", "wire"));
}

/// The HTTP/2 crate is a library: it knows neither crimux nor the messages that it carries.
#[test]
fn the_http2_crate_knows_nothing_of_cri() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/grpc-http2");
    let mut files = Vec::new();
    sources(&root.join("src"), &root.join("src"), &mut files);
    assert!(files.len() > 8, "its sources were found: {}", files.len());
    let manifest = ("manifest".to_owned(), root.join("Cargo.toml"));
    for (_, path) in files.into_iter().chain([manifest]) {
        let text = std::fs::read_to_string(&path).expect("it can be read").to_lowercase();
        let text = text.replace("repository.workspace", "");
        for word in ["crimux", "kubelet", "containerd", "sandbox", "runtime.v1", "prost", "tonic"] {
            assert!(!text.contains(word), "{} names {word}", path.display());
        }
    }
}

/// Returns the name that a line declares a type by, if it does; associated types are not declarations.
fn declared_type(line: &str) -> Option<&str> {
    let item = line.trim_start();
    let item = match item.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(')')?.1.trim_start(),
        Some(rest) => rest.trim_start(),
        None => item,
    };
    let (keyword, rest) = item.split_once(' ')?;
    let is_type = ["struct", "enum", "union", "trait"].contains(&keyword)
        || (keyword == "type" && line == item)
        || (keyword == "type" && line.starts_with("pub"));
    let end = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(rest.len());
    (is_type && end > 0).then(|| &rest[..end])
}

#[test]
fn a_type_name_has_one_meaning() {
    let mut files = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    sources(&root, &root, &mut files);
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (_, path) in files {
        let text = std::fs::read_to_string(&path).expect("src can be read");
        let below = path.strip_prefix(&root).expect("it lies in src").display().to_string();
        for name in text.lines().filter_map(declared_type) {
            places.entry(name.to_owned()).or_default().push(below.clone());
        }
    }
    assert!(places.len() > 200, "declarations were found: {}", places.len());
    let is_excused = |name: &str| DECLARED_TWICE.iter().any(|(excused, _)| *excused == name);
    let twice: BTreeMap<_, _> =
        places.iter().filter(|(name, files)| files.len() > 1 && !is_excused(name)).collect();
    assert_eq!(twice, BTreeMap::new(), "one word, one meaning: rename all but one");
    let needless =
        DECLARED_TWICE.iter().filter(|(name, _)| places.get(*name).is_none_or(|files| files.len() < 2));
    assert_eq!(
        needless.collect::<Vec<_>>(),
        Vec::<&(&str, &str)>::new(),
        "an exception without a second declaration"
    );
}

#[test]
fn the_reader_of_declarations_sees_every_form() {
    assert_eq!(declared_type("pub(super) struct Answer<'a> {"), Some("Answer"));
    assert_eq!(declared_type("    enum Local {"), Some("Local"));
    assert_eq!(declared_type("pub type Names = u8;"), Some("Names"));
    assert_eq!(declared_type("type Names = u8;"), Some("Names"));
    assert_eq!(declared_type("    type Error = Status;"), None);
    assert_eq!(declared_type("let structure = 1;"), None);
}

/// Past participles that do not end in `ed`.
const IRREGULAR: [&str; 25] = [
    "begun", "bound", "broken", "chosen", "done", "found", "given", "gone", "heard", "held", "hidden",
    "kept", "known", "learnt", "left", "lost", "made", "met", "said", "seen", "sent", "shown", "taken",
    "told", "written",
];
/// Verbs and nouns that end in `ed`.
const NO_PARTICIPLES: [&str; 6] = ["embed", "exceed", "feed", "need", "proceed", "succeed"];
/// Participles that are words of the field for a query, each with its reason.
const PARTICIPLES: [(&str, &str); 2] = [
    ("encoded", "the bytes of a message, as in prost"),
    ("framed", "the bytes of a message with its gRPC prefix (PROTOCOL-HTTP2.md)"),
];

/// Returns the name of the function that a line declares if it is a participle and nothing else. A future
/// that waits for an event is named by it, as in tokio: it takes nothing but `self`.
fn participle(line: &str) -> Option<&str> {
    let (before, rest) = line.split_once("fn ")?;
    let is_declaration = before.split_whitespace().all(|word| {
        word.starts_with("pub") || word.ends_with(')') || ["async", "const", "unsafe"].contains(&word)
    });
    let end = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_')?;
    let (name, arguments) = rest.split_at(end);
    let is_participle = !name.contains('_')
        && (IRREGULAR.contains(&name) || (name.ends_with("ed") && !NO_PARTICIPLES.contains(&name)));
    let is_future = before.contains("async ") && arguments.starts_with("(&self)");
    let is_excused = PARTICIPLES.iter().any(|(excused, _)| *excused == name);
    (is_declaration && is_participle && !is_future && !is_excused).then_some(name)
}

#[test]
fn a_function_is_named_by_a_verb_or_by_what_it_returns() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &root, &mut files);
    let mut wrong = Vec::new();
    for (_, path) in files.iter().filter(|(_, path)| !path.iter().any(|part| part == "tests")) {
        let text = std::fs::read_to_string(path).expect("src can be read");
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let below = path.strip_prefix(&root).expect("it lies in src").display();
        wrong.extend(text.lines().filter_map(participle).map(|name| format!("{below}: {name}")));
    }
    wrong.retain(|name| !name.contains("tests.rs: "));
    assert_eq!(wrong, [""; 0], "a command is a verb, a query a noun or is_ (docs/style.md)");
}

#[test]
fn the_reader_of_participles_sees_every_form() {
    assert_eq!(participle("    pub(super) fn removed(&self) -> bool {"), Some("removed"));
    assert_eq!(participle("pub async fn drained(&mut self) {"), Some("drained"));
    assert_eq!(participle("fn kept() {"), Some("kept"));
    assert_eq!(participle("    pub async fn closed(&self) {"), None);
    assert_eq!(participle("    fn is_removed(&self) -> bool {"), None);
    assert_eq!(participle("pub(in crate::proxy) fn feed() {"), None);
    assert_eq!(participle("let x = \"fn kept\";"), None);
}
