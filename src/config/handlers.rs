//! The `handlers` section: where the sandboxes of each `RuntimeClass` handler go.
//!
//! An entry names one backend, or splits new sandboxes among several by weight. The handler `""` is not
//! an entry: it goes to `default_backend`, or by `default_split`.

use std::collections::BTreeMap;
use std::iter;

use super::Target;
use super::backends::BackendNames;
use super::section::{Named, Section};

/// Reads all handlers.
pub(super) fn read(top: &Section<'_>, backends: &BackendNames) -> Option<BTreeMap<String, Vec<Target>>> {
    let named = top.named_sections("handlers")?;
    // All are read before any is judged, so that each reports its own problems.
    let read: Vec<_> =
        named.iter().map(|handler| (handler.name.to_owned(), one(top, handler, backends))).collect();
    read.into_iter().map(|(name, targets)| Some((name, targets?))).collect()
}

/// Reads `default_split`; empty if it is not given.
pub(super) fn read_default_split(top: &Section<'_>, backends: &BackendNames) -> Option<Vec<Target>> {
    if top.has("default_split") { split(top, "default_split", backends) } else { Some(Vec::new()) }
}

fn one(top: &Section<'_>, named: &Named<'_>, backends: &BackendNames) -> Option<Vec<Target>> {
    if named.name.is_empty() {
        let message = "pods without a RuntimeClass go to default_backend (remove this entry; default_split shares them)";
        top.problem_of_name("handlers", named, message);
        return None;
    }
    let section = named.section.as_ref()?;
    if !section.has("split") {
        return target(section, backends, Some(1)).map(|target| vec![target]);
    }
    for other in ["backend", "handler"] {
        if section.has(other) {
            let message = format!("{other} and split exclude each other (remove {other}, or remove split)");
            section.problem_of_key(other, message);
        }
    }
    split(section, "split", backends)
}

fn split(section: &Section<'_>, key: &str, backends: &BackendNames) -> Option<Vec<Target>> {
    let shares = section.list(key)?;
    let read = |share: &Section<'_>| target(share, backends, share.integer("weight"));
    let targets: Vec<_> = shares.iter().map(|share| share.as_ref().and_then(read)).collect();
    for (index, (share, target)) in iter::zip(&shares, &targets).enumerate() {
        let place =
            |target: &Option<Target>| target.clone().map(|target| (target.backend, target.backend_handler));
        let same = |other| target.is_some() && place(other) == place(target);
        if let Some(first) = targets[..index].iter().position(same) {
            let message = format!("{key}[{first}] has the same backend and handler (add its weight there)");
            if let Some(share) = share {
                share.problem("backend", message);
            }
        }
    }
    let targets: Vec<Target> = targets.into_iter().collect::<Option<_>>()?;
    if targets.iter().all(|target| target.weight == 0) {
        section.problem(key, "no share has a weight above 0 (give at least one)");
    }
    Some(targets)
}

fn target(section: &Section<'_>, backends: &BackendNames, weight: Option<u32>) -> Option<Target> {
    let backend = section.read("backend", |name| backends.check(name));
    let handler = section.optional("handler", |name| Ok(name.to_owned()));
    Some(Target { backend: backend?, backend_handler: handler?.unwrap_or_default(), weight: weight? })
}
