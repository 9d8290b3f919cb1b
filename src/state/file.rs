//! The files of `state_dir`: the snapshot's format, its atomic replacement, and the quarantine of invalid
//! files.
//!
//! The snapshot is one file, `magic and version, length, CRC-32C, body`, valid as a whole or not at all: with
//! a part of the state pods would vanish. It is replaced by write, fsync, rename, fsync of the directory. An
//! invalid file is renamed to `NAME.bad-N` for the operator; the newest few are kept.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;

use super::changes::Change;
use super::instance::SavedInstance;

/// What a snapshot starts with: the name of the format and its version.
const MAGIC: &[u8; 8] = b"crmxsnp\x02";
/// The oldest version that is read: its journals have no deltas.
const OLDEST_VERSION: u8 = 1;
/// Magic, length and checksum.
const PREAMBLE: usize = 20;
/// How many files set aside are kept.
const MAX_BAD: usize = 8;

/// The body of a snapshot.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Saved {
    /// The first journal generation that may hold changes which are not in here.
    #[prost(uint64, tag = "1")]
    pub(super) journal: u64,
    #[prost(message, repeated, tag = "2")]
    pub(super) backends: Vec<SavedBackend>,
    /// The highest identifier that an instance ever had.
    #[prost(uint64, tag = "4")]
    pub(super) last_instance: u64,
}

/// What is saved of one backend.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SavedBackend {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) boot_id: String,
    /// Changes up to this sequence number are in here.
    #[prost(uint64, tag = "3")]
    pub(super) seq: u64,
    #[prost(bool, tag = "4")]
    pub(super) drained: bool,
    /// Seconds since the Unix epoch; zero for never.
    #[prost(uint64, tag = "5")]
    pub(super) listed_at: u64,
    #[prost(bytes = "bytes", optional, tag = "6")]
    pub(super) sandboxes: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "7")]
    pub(super) containers: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "8")]
    pub(super) images: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "9")]
    pub(super) container_stats: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "10")]
    pub(super) sandbox_stats: Option<Bytes>,
    #[prost(message, repeated, tag = "11")]
    pub(super) changes: Vec<Change>,
    #[prost(message, repeated, tag = "12")]
    pub(super) statuses: Vec<SavedStatus>,
    #[prost(message, repeated, tag = "13")]
    pub(super) replies: Vec<SavedReply>,
    /// Whether the operator declared it lost and nothing was heard of it since.
    #[prost(bool, tag = "14")]
    pub(super) forgotten: bool,
    /// Who it is; absent in what a version wrote that knew names alone.
    #[prost(message, optional, tag = "15")]
    pub(super) instance: Option<SavedInstance>,
    /// The IDs that were created through crimux.
    #[prost(string, repeated, tag = "16")]
    pub(super) created: Vec<String>,
    /// The IDs that it lists and another instance owns.
    #[prost(string, repeated, tag = "17")]
    pub(super) foreign: Vec<String>,
}

/// A status and whose it is.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SavedStatus {
    #[prost(bool, tag = "1")]
    pub(super) container: bool,
    #[prost(string, tag = "2")]
    pub(super) id: String,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) reply: Bytes,
}

/// A reply and the method it answers.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SavedReply {
    #[prost(string, tag = "1")]
    pub(super) method: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) reply: Bytes,
}

/// Makes the directory if need be, and closes it to everyone else.
pub(super) fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    if fs::metadata(dir)?.permissions().mode() & 0o777 != 0o700 {
        fs::set_permissions(dir, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Returns the path of the snapshot.
pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join("snapshot")
}

/// Returns the path that a snapshot has while it is not all there was: a record could not be written after
/// it.
pub(super) fn partial_path(dir: &Path) -> PathBuf {
    dir.join("snapshot.partial")
}

/// Returns the path under which the next snapshot is written.
pub(super) fn tmp_path(dir: &Path) -> PathBuf {
    dir.join("snapshot.tmp")
}

/// Encodes a snapshot.
pub(super) fn encode(saved: &Saved) -> Vec<u8> {
    let len = saved.encoded_len();
    let mut out = Vec::with_capacity(PREAMBLE + len);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&(len as u64).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    saved.encode(&mut out).expect("a Vec grows as needed");
    let checksum = crc32c::crc32c(&out[PREAMBLE..]);
    out[16..PREAMBLE].copy_from_slice(&checksum.to_le_bytes());
    out
}

/// Decodes a snapshot; the error says what is wrong with it.
pub(super) fn decode(content: Vec<u8>) -> Result<Saved, &'static str> {
    let content = Bytes::from(content);
    if content.len() < PREAMBLE {
        return Err("it is truncated");
    }
    if content[..7] != MAGIC[..7] {
        return Err("it is no snapshot");
    }
    if !(OLDEST_VERSION..=MAGIC[7]).contains(&content[7]) {
        return Err("it was written by another version");
    }
    let (preamble, body) = (&content[..PREAMBLE], content.slice(PREAMBLE..));
    if preamble[8..16] != (body.len() as u64).to_le_bytes() {
        return Err("it is truncated");
    }
    if preamble[16..] != crc32c::crc32c(&body).to_le_bytes() {
        return Err("its checksum is wrong");
    }
    Saved::decode(body).map_err(|_| "it cannot be read")
}

/// Writes the next snapshot beside the current one, and makes it durable.
pub(super) fn write_tmp(dir: &Path, content: &[u8]) -> io::Result<()> {
    let path = tmp_path(dir);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    if written.is_err() {
        // On a full disk, what half a snapshot takes is the room that the journal needs.
        let _ = fs::remove_file(&path);
    }
    written
}

/// Makes renames in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Renames `file` so that it is out of the way, and drops the oldest of its like. Returns the new path.
pub(super) fn quarantine(file: &Path) -> io::Result<PathBuf> {
    let to = next_bad(file)?;
    fs::rename(file, &to)?;
    Ok(to)
}

/// Copies `file` for a human to look at, and drops the oldest of its like. Returns the path of the copy.
pub(super) fn copy_aside(file: &Path) -> io::Result<PathBuf> {
    let to = next_bad(file)?;
    fs::copy(file, &to)?;
    Ok(to)
}

fn next_bad(file: &Path) -> io::Result<PathBuf> {
    let dir = file.parent().unwrap_or(Path::new("."));
    let mut bad: Vec<(u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let number = path.extension().and_then(|end| end.to_str()?.strip_prefix("bad-")?.parse().ok());
        bad.extend(number.map(|number| (number, path)));
    }
    bad.sort();
    let next = bad.last().map_or(1, |(number, _)| number + 1);
    for (_, oldest) in bad.iter().take((bad.len() + 1).saturating_sub(MAX_BAD)) {
        // What cannot be removed, as a directory cannot, is not worth failing for.
        let _ = fs::remove_file(oldest);
    }
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".bad-{next}"));
    Ok(dir.join(name))
}
