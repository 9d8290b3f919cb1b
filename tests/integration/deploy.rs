//! Checks of everything in `deploy/` and of the metrics reference in `docs/`, with the tools that read those
//! files in real life.
//!
//! Unit files, rules, manifests and the node script are programs too: a typo in them is found on a node at
//! night if it is not found here. Every check runs the tool itself (systemd-analyze, promtool, shellcheck,
//! kubectl, sh) on a private root directory; where a tool is missing, the check says so on standard error and
//! is skipped. Nothing here starts crimux, touches the machine's own configuration, or needs root.

mod debian;
mod helm;
mod home;
mod install;
mod kubernetes;
mod machine;
mod node_script;
mod prometheus;
mod release;
mod systemd;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A file or directory of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The text of a file of the repository.
fn read(path: &str) -> String {
    fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// An empty directory of this test run alone.
fn scratch(name: &str) -> PathBuf {
    let directory =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("deploy-{name}-{}", std::process::id()));
    if directory.exists() {
        fs::remove_dir_all(&directory).unwrap();
    }
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// Writes `text` to `path` and makes the directories above it.
fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A command for `name`, or `None` after saying which check is skipped for want of it.
fn tool(name: &str, package: &str) -> Option<Command> {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join(name).is_file()));
    if !found {
        testkit::bed::skipped(&format!("{name} is not installed (Debian package {package})"));
        return None;
    }
    Some(Command::new(name))
}

/// Standard output and standard error as one text, for messages.
fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// All files below `directory` whose name ends with one of `endings`.
fn files_below(directory: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}
