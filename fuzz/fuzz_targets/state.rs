//! The state directory: whatever stands in its files, loading ends, and what was loaded can be read and
//! written.
//!
//! Checksums are made right, because a fuzzer would never pass them; the first byte says which file it is.
#![no_main]

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use crimux::state::{Filter, Kind, Life, ListKind, StateStore};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

static DIR: LazyLock<TempDir> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a directory")
});

const BOOT: &str = "this-boot";
const SNAPSHOT: &str = "snapshot";
const JOURNAL: &str = "journal-0000000000000001";

/// How a snapshot and a journal of this version begin: with a magic of eight bytes.
static MAGICS: LazyLock<([u8; 8], [u8; 8])> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, _) = StateStore::open(dir.path(), BOOT);
    store.create("a", Life::Member);
    store.flush().expect("an empty directory can be written");
    let names = fs::read_dir(dir.path()).expect("our own directory").flatten().map(|entry| entry.path());
    let journal =
        names.filter(|path| path.to_string_lossy().contains("journal-")).max().expect("a start begins one");
    let magic = |path: &Path| fs::read(path).expect("our own file")[..8].try_into().expect("eight bytes");
    (magic(&dir.path().join(SNAPSHOT)), magic(&journal))
});

fuzz_target!(|data: &[u8]| {
    let Some((&kind, body)) = data.split_first() else { return };
    let dir = DIR.path();
    for entry in fs::read_dir(dir).expect("our own directory").flatten() {
        let _ = fs::remove_file(entry.path());
    }
    let (name, content) = match kind % 5 {
        0 => (SNAPSHOT, snapshot(body)),
        1 => (SNAPSHOT, body.to_vec()),
        2 => (JOURNAL, journal(body)),
        3 => (JOURNAL, journal(&delta(body))),
        _ => (JOURNAL, body.to_vec()),
    };
    fs::write(dir.join(name), content).expect("our own directory");
    let (snapshot, warnings) = StateStore::open(dir, BOOT);
    assert!(warnings.iter().all(|warning| !warning.to_string().is_empty()));
    for instance in snapshot.instances() {
        let last = snapshot.get(instance.id).expect("nothing ends it meanwhile");
        last.for_each_sandbox(|facts| drop(last.status(Kind::Sandbox, facts.id)));
        last.for_each_container(|_| {});
        for kind in [ListKind::Sandboxes, ListKind::Containers, ListKind::Images, ListKind::ContainerStats] {
            let _ = last.list(kind, &Filter::default());
        }
        last.record_sandbox_removed("x");
    }
    snapshot.flush().expect("what was loaded can be written");
    let (_, warnings) = StateStore::open(dir, BOOT);
    assert!(warnings.is_empty(), "what was written can be loaded: {warnings:?}");
});

/// A snapshot with the right preamble: magic, length, checksum.
fn snapshot(body: &[u8]) -> Vec<u8> {
    let checksum = crc32c::crc32c(body).to_le_bytes();
    [&MAGICS.0[..], &(body.len() as u64).to_le_bytes(), &checksum, body].concat()
}

/// A journal of this boot with one right record: length, checksum, payload.
fn journal(body: &[u8]) -> Vec<u8> {
    let record = |payload: &[u8]| {
        let len = u32::try_from(payload.len()).expect("a small input").to_le_bytes();
        [&len[..], &crc32c::crc32c(payload).to_le_bytes(), payload].concat()
    };
    let header = field(1, BOOT.as_bytes());
    [&MAGICS.1[..], &record(&header), &record(body)].concat()
}

/// A record of the writer: the name of a backend, and what differs, in one deflate block that stores it as it
/// is.
fn delta(body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(body.len()).expect("a small input");
    let block = [&[1][..], &len.to_le_bytes(), &(!len).to_le_bytes(), body].concat();
    [field(1, b"a"), field(4, &block)].concat()
}

/// A protobuf field of bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    prost::encode_length_delimiter(bytes.len(), &mut field).expect("a vector has room");
    field.extend_from_slice(bytes);
    field
}
