//! The order of the modules: an import points only down this list. And their names: no type is declared twice.
//!
//! main > cli > app > admin > server > proxy > plan > router, backend, merge, events, relay > snapshot > metrics >
//! method > the leaves. The hops of a call (router, backend, merge, events, relay) do not import each other;
//! only the proxy knows their order. Leaves import only leaves. Read from `crate::` paths in `src/`.

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
    &["snapshot", "limits"],
    // Labels of metrics are rows of the method table.
    &["metrics"],
    &["method"],
    &[
        "wire",
        "codec",
        "error",
        "drain",
        "accept",
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

/// Returns the first names after `root` (`crate::`, or `crimux::` in the binary), in braces or not, outside
/// comments and before the tests of the file.
fn imports(text: &str, root: &str) -> BTreeSet<String> {
    let code: String = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .take_while(|line| !line.contains("#[cfg(test)]"))
        .flat_map(|line| [line, "\n"])
        .collect();
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
    assert!(!may_import("snapshot", "router"));
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
