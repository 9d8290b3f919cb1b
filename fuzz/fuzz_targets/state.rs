//! The state directory: whatever stands in its files, loading ends, and what was loaded can be read and written.
//!
//! Checksums are made right, because a fuzzer would never pass them; the first byte says which file it is.
#![no_main]

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use crimux::snapshot::{Filter, ListKind, Snapshot, StatusKind};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

static DIR: LazyLock<TempDir> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a directory")
});

fuzz_target!(|data: &[u8]| {
    let Some((&kind, body)) = data.split_first() else { return };
    let dir = DIR.path();
    for entry in fs::read_dir(dir).expect("our own directory").flatten() {
        let _ = fs::remove_file(entry.path());
    }
    let (name, content) = match kind % 4 {
        0 => ("snapshot", snapshot(body)),
        1 => ("snapshot", body.to_vec()),
        2 => ("journal-0000000000000001", journal(body)),
        _ => ("journal-0000000000000001", body.to_vec()),
    };
    fs::write(dir.join(name), content).expect("our own directory");
    let (snapshot, warnings) = Snapshot::open(dir, "this-boot");
    assert!(warnings.iter().all(|warning| !warning.to_string().is_empty()));
    for name in snapshot.names() {
        let last = snapshot.backend(&name, true);
        last.for_each_sandbox(|facts| drop(last.status(StatusKind::Sandbox, facts.id)));
        last.for_each_container(|_| {});
        for kind in [ListKind::Sandboxes, ListKind::Containers, ListKind::Images, ListKind::ContainerStats] {
            let _ = last.list(kind, &Filter::default());
        }
        last.record_sandbox_removed("x");
    }
    snapshot.flush().expect("what was loaded can be written");
    let (_, warnings) = Snapshot::open(dir, "this-boot");
    assert!(warnings.is_empty(), "what was written can be loaded: {warnings:?}");
});

/// A snapshot with the right preamble: magic, length, checksum.
fn snapshot(body: &[u8]) -> Vec<u8> {
    let checksum = crc32c::crc32c(body).to_le_bytes();
    [b"crmxsnp\x01", &(body.len() as u64).to_le_bytes()[..], &checksum, body].concat()
}

/// A journal with one right record: length, checksum, payload.
fn journal(body: &[u8]) -> Vec<u8> {
    let record = |payload: &[u8]| {
        let len = u32::try_from(payload.len()).expect("a small input").to_le_bytes();
        [&len[..], &crc32c::crc32c(payload).to_le_bytes(), payload].concat()
    };
    [b"crmxjrn\x01", &record(b"")[..], &record(body)].concat()
}
