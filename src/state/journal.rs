//! The journal: every change since the snapshot was captured, one `write(2)` each, before its call is
//! answered, and what the writer found to differ from the disk.
//!
//! A process that is killed loses nothing that the kernel has, so there is no fsync on the way of a call.
//! Each start and each snapshot begins a new generation, a file of its own; older ones are deleted only once
//! the snapshot that holds their changes is in place. A record is `length, CRC-32C, payload`; what does not
//! check is not believed. This file must not know what a change means.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes};
use prost::Message;

use super::changes::Change;

/// What a journal starts with: the name of the format and its version.
const MAGIC: &[u8; 8] = b"crmxjrn\x01";
const PREFIX: &str = "journal-";
/// Length and checksum, in bytes, before each record.
pub(super) const HEADER: usize = 8;

/// The changes of one call to one backend.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Record {
    /// The label of the instance.
    #[prost(string, tag = "1")]
    pub(super) backend: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) changes: Vec<Change>,
    /// The identifier of the instance; zero in what a version wrote that had none.
    #[prost(uint64, tag = "3")]
    pub(super) instance: u64,
    /// A compressed [`Delta`](super::delta::Delta) of the writer, or nothing.
    #[prost(bytes = "vec", tag = "4")]
    pub(super) delta: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(string, tag = "1")]
    boot_id: String,
}

/// What a journal file proves.
#[derive(Debug)]
pub(super) struct Replay {
    /// The boot during which it was written.
    pub(super) boot_id: String,
    /// Its records, in order.
    pub(super) records: Vec<Record>,
    /// What was found that is no record.
    pub(super) damage: Option<&'static str>,
}

/// The journal that is appended to.
#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
    boot_id: String,
    generation: u64,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Where the records start.
    start: u64,
    len: u64,
}

impl Journal {
    /// Makes a journal whose first file will be the one after `generation`. Nothing is opened yet.
    pub(super) fn new(dir: &Path, boot_id: &str, generation: u64) -> Self {
        Self { dir: dir.to_owned(), boot_id: boot_id.to_owned(), generation, open: None }
    }

    /// Starts the next generation and returns it. On failure the current file stays in use.
    pub(super) fn rotate(&mut self) -> io::Result<u64> {
        let generation = self.generation + 1;
        let path = path(&self.dir, generation);
        let mut start = MAGIC.to_vec();
        start.extend(frame(&Header { boot_id: self.boot_id.clone() }));
        // A file left by a start that failed here holds no record.
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
        file.set_len(0)?;
        if let Err(error) = file.write_all(&start) {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        let start = start.len() as u64;
        self.open = Some(Open { file, start, len: start });
        self.generation = generation;
        Ok(generation)
    }

    /// Appends a record, as [`frame`] made it, with one `write(2)`. A failed or short write leaves no trace
    /// of itself.
    pub(super) fn append(&mut self, record: &[u8]) -> io::Result<()> {
        if self.open.is_none() {
            self.rotate()?;
        }
        let open = self.open.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let problem = match open.file.write(record) {
            Ok(written) if written == record.len() => {
                open.len += record.len() as u64;
                return Ok(());
            }
            Ok(_) => io::Error::new(io::ErrorKind::StorageFull, "no room for a whole record"),
            Err(error) => error,
        };
        if open.file.set_len(open.len).is_err() {
            self.open = None;
        }
        Err(problem)
    }

    /// Returns the bytes of records in the current file.
    pub(super) fn len(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.len - open.start)
    }

    /// Returns the current file for an `fsync` that holds up no append; `None` if there is none.
    pub(super) fn file(&self) -> io::Result<Option<File>> {
        self.open.as_ref().map(|open| open.file.try_clone()).transpose()
    }

    /// Returns the generation in use, or the last one that was.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns a generation in which no change is recorded yet: the current one, or a new one.
    pub(super) fn start_empty(&mut self) -> io::Result<u64> {
        match &self.open {
            Some(open) if open.len == open.start => Ok(self.generation),
            _ => self.rotate(),
        }
    }

    /// Puts a file in the place of the current one, to make appends fail.
    #[cfg(test)]
    pub(super) fn replace_file(&mut self, file: File) {
        self.open = Some(Open { file, start: 0, len: 0 });
    }
}

/// Returns the path of a generation.
pub(super) fn path(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{generation:016x}"))
}

/// Returns the generations that exist in `dir`, in order.
pub(super) fn generations(dir: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if let Some(digits) = digits.filter(|digits| digits.len() == 16) {
            found.extend(u64::from_str_radix(digits, 16));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Reads the bytes of a journal file; `None` if they are none of ours.
///
/// A record that fails its checksum is passed over if the next can be found by its length: each record that
/// checks is a fact of its own.
pub(super) fn read(content: Vec<u8>) -> Option<Replay> {
    let mut rest = Bytes::from(content);
    if !rest.starts_with(MAGIC) {
        return None;
    }
    rest.advance(MAGIC.len());
    let mut damage = None;
    let header =
        next_payload(&mut rest, &mut damage).and_then(|payload| Header::decode(payload.ok()?).ok())?;
    let mut records = Vec::new();
    while let Some(payload) = next_payload(&mut rest, &mut damage) {
        match payload.map(Record::decode) {
            Ok(Ok(record)) => records.push(record),
            Ok(Err(_)) => damage = Some("a record that cannot be read"),
            Err(Wrong) => {}
        }
    }
    Some(Replay { boot_id: header.boot_id, records, damage })
}

/// A payload that fails its checksum.
struct Wrong;

/// Takes the next payload; `None` at the end.
fn next_payload(rest: &mut Bytes, damage: &mut Option<&'static str>) -> Option<Result<Bytes, Wrong>> {
    if rest.is_empty() {
        return None;
    }
    let whole = (rest.len() > 8).then(|| (rest.get_u32_le() as usize, rest.get_u32_le()));
    let Some((len, checksum)) = whole.filter(|(len, _)| (1..=rest.len()).contains(len)) else {
        *damage = Some("a torn tail");
        return None;
    };
    let payload = rest.split_to(len);
    if crc32c::crc32c(&payload) != checksum {
        *damage = Some("a record whose checksum is wrong");
        return Some(Err(Wrong));
    }
    Some(Ok(payload))
}

/// Returns the payload of one record as [`frame`] made it; `None` if it is another one.
pub(super) fn payload(record: &[u8]) -> Option<Bytes> {
    let mut rest = Bytes::copy_from_slice(record);
    next_payload(&mut rest, &mut None)?.ok()
}

/// Returns `message` as it stands in a journal: length, checksum, payload.
pub(super) fn frame(message: &impl Message) -> Vec<u8> {
    let payload = message.encode_to_vec();
    let len =
        u32::try_from(payload.len()).expect("a record is a request's size, which gRPC bounds below 4 GiB");
    let mut frame = Vec::with_capacity(payload.len() + 8);
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
    frame.extend_from_slice(&payload);
    frame
}

#[cfg(test)]
mod tests {
    use super::super::changes::Op;
    use super::*;

    fn record(seq: u64) -> Record {
        let op = Some(Op::ContainerRemoved(format!("container-{seq}")));
        Record { backend: "runc".into(), changes: vec![Change { seq, op }], instance: 1, delta: Vec::new() }
    }

    fn written(records: u64) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::new(dir.path(), "boot", 0);
        for seq in 1..=records {
            journal.append(&frame(&record(seq))).unwrap();
        }
        fs::read(path(dir.path(), 1)).unwrap()
    }

    #[test]
    fn a_journal_cut_at_any_byte_yields_its_whole_records_and_no_other() {
        let content = written(3);
        let ends: Vec<usize> = (0..=3).map(|records| written(records + 1).len()).collect();
        let header = ends[0] - (ends[1] - ends[0]);
        for cut in 0..=content.len() {
            let Some(replay) = read(content[..cut].to_vec()) else {
                assert!(cut < header, "cut at {cut}");
                continue;
            };
            let whole = ends.iter().filter(|end| **end <= cut).count();
            assert_eq!(replay.records, (1..=whole as u64).map(record).collect::<Vec<_>>(), "cut at {cut}");
            let clean = cut == header || ends.contains(&cut);
            assert_eq!(replay.damage.is_none(), clean, "cut at {cut}");
        }
    }

    #[test]
    fn a_flipped_byte_never_yields_a_record_that_was_not_written() {
        let content = written(3);
        let genuine: Vec<Record> = (1..=3).map(record).collect();
        for at in 0..content.len() {
            let mut flipped = content.clone();
            flipped[at] ^= 0x55;
            let Some(replay) = read(flipped) else { continue };
            assert!(replay.damage.is_some(), "flipped at {at}");
            assert!(replay.records.iter().all(|record| genuine.contains(record)), "flipped at {at}");
        }
    }

    #[test]
    fn a_flipped_payload_costs_that_record_alone() {
        let mut content = written(3);
        let end_of_first = written(1).len();
        content[end_of_first - 1] ^= 1;
        assert_eq!(read(content).unwrap().records, vec![record(2), record(3)]);
    }

    #[test]
    fn zeroes_left_by_a_power_cut_are_no_records() {
        let mut content = written(1);
        content.extend([0; 64]);
        let replay = read(content).unwrap();
        assert_eq!((replay.records, replay.damage.is_some()), (vec![record(1)], true));
    }
}
