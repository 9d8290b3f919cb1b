//! No address that is not ours: the names in the repository are on a short list, and the project's own come
//! from one file.

use std::collections::BTreeMap;

use super::{read, repository, tool};

/// Names that the repository may hold, each with what it stands there for. A name stands for its subdomains
/// too.
const KNOWN: [(&str, &str); 18] = [
    ("kubernetes.io", "labels, annotations and API groups of Kubernetes"),
    ("k8s.io", "API groups, and images of Kubernetes that the testbed stands in for"),
    ("gcr.io", "images of Kubernetes that the testbed stands in for"),
    ("coreos.com", "the API group of the Prometheus operator"),
    ("crimux.io", "the prefix of the node label crimux.io/node; a label is never looked up"),
    ("docker.io", "image names that the router and the simulated runtime complete"),
    ("quay.io", "image names in tests"),
    ("github.com", "Go modules, crates and actions by their name; never this project"),
    ("sigs.k8s.io", "Go modules"),
    ("go.etcd.io", "Go modules"),
    ("golang.org", "Go modules"),
    ("helm.sh", "Go modules"),
    ("go.dev", "where a message sends who has no Go"),
    ("json-schema.org", "the name of the schema language"),
    ("apache.org", "the text of the licence"),
    ("debian.org", "the name of the format of deploy/debian/copyright"),
    ("example.com", "reserved by RFC 2606"),
    ("w3.org", "the XML namespace of SVG"),
];

/// Endings that make a word with dots a name on the Internet. `.example`, `.test` and `.invalid` are
/// nobody's.
const ENDINGS: [&str; 12] = ["com", "org", "net", "io", "dev", "sh", "rs", "cloud", "app", "co", "ai", "im"];

/// Files whose names are those of modules or crates, or that are fuzzing input.
const LEFT_OUT: [&str; 5] = ["Cargo.lock", "go.sum", "go.mod", "fuzz/corpus/", "proto/cri-api.json"];

/// Every file of the repository that is text, by its path, or `None` where git cannot say.
fn files() -> Option<BTreeMap<String, String>> {
    let mut git = tool("git", "git")?;
    let output = git.arg("-C").arg(repository("")).args(["ls-files", "-z"]).output().unwrap();
    if !output.status.success() {
        testkit::bed::skipped("this is no git checkout");
        return None;
    }
    let names = String::from_utf8(output.stdout).unwrap();
    let kept = names.split('\0').filter(|name| !name.is_empty());
    let kept = kept.filter(|name| !LEFT_OUT.iter().any(|part| name.contains(part)));
    Some(
        kept.filter_map(|name| Some((name.to_owned(), std::fs::read_to_string(repository(name)).ok()?)))
            .collect(),
    )
}

/// The names on the Internet in a text: words with dots that end like one and are followed by a path, or
/// follow `://` or `@`.
fn hosts(text: &str) -> Vec<&str> {
    let part_of_name = |c: char| c.is_ascii_alphanumeric() || ".-".contains(c);
    let mut found = Vec::new();
    let mut start = 0;
    while let Some(length) = text[start..].find(part_of_name) {
        let from = start + length;
        let to = text[from..].find(|c| !part_of_name(c)).map_or(text.len(), |length| from + length);
        let word = text[from..to].trim_matches(['.', '-']);
        let ending = word.rsplit_once('.').map(|(_, ending)| ending);
        let addressed =
            text[..from].ends_with("://") || text[..from].ends_with('@') || text[to..].starts_with('/');
        if addressed && ending.is_some_and(|ending| ENDINGS.contains(&ending)) {
            found.push(word);
        }
        start = to;
    }
    found
}

#[test]
fn names_on_the_internet_are_found_in_links_images_and_addresses() {
    let text = "see https://quay.io/x, docker.io/you/image:1 and <x@example.com>; not src/lib.rs, 10.0.0.1/8 or https://c.example/";
    assert_eq!(hosts(text), ["quay.io", "docker.io", "example.com"]);
}

#[test]
fn the_repository_names_no_host_that_is_not_on_the_list() {
    let Some(files) = files() else { return };
    assert!(files.len() > 200, "{}", files.len());
    let known = |host: &str| {
        KNOWN.iter().any(|(known, _)| {
            host == *known || host.strip_suffix(known).is_some_and(|rest| rest.ends_with('.'))
        })
    };
    let named = files.iter().flat_map(|(name, text)| hosts(text).into_iter().map(move |host| (name, host)));
    let unknown: Vec<_> = named.filter(|(_, host)| !known(host)).collect();
    assert!(unknown.is_empty(), "not on the list of this test: {unknown:?}");
}

#[test]
fn nothing_names_an_account_that_belongs_to_somebody_else() {
    let Some(files) = files() else { return };
    // In two parts each, so that this file does not hold them.
    let foreign = [("github.com", "/crimux"), ("ghcr.io", "/crimux"), ("users.noreply.", "github.com")];
    for (name, text) in &files {
        for (host, account) in foreign {
            assert!(!text.contains(&format!("{host}{account}")), "{name}: {host}{account}");
        }
    }
}

/// What `deploy/home.env` sets `key` to.
pub(crate) fn home(key: &str) -> String {
    let file = read("deploy/home.env");
    let value = file.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("deploy/home.env does not set {key}")).trim_matches('"').to_owned()
}

#[test]
fn units_and_alerts_link_to_the_documents_of_the_home_file() {
    let documents = home("CRIMUX_DOCS");
    for unit in ["crimux.service", "crimux.socket"] {
        let text = read(&format!("deploy/systemd/{unit}"));
        assert!(text.lines().any(|line| line == format!("Documentation={documents}")), "{unit}");
    }
    let alerts = read("deploy/prometheus/alerts.rules.yaml");
    for link in alerts.lines().filter_map(|line| line.trim().strip_prefix("runbook_url: ")) {
        assert!(link.starts_with(&format!("{documents}/runbook.md#")), "{link}");
    }
}
