//! Rebuilds the state from what `state_dir` holds: the snapshot, then the journals it names, in order.
//!
//! Each file counts for what it proves. Whatever is wrong with one becomes a warning, never an error.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use super::Warning;
use super::file;
use super::journal::{self, Journal, Replay};
use super::state::{State, unshared};

/// What was loaded.
#[derive(Debug)]
pub(super) struct Loaded {
    /// The state of every backend heard of.
    pub(super) states: BTreeMap<String, State>,
    /// Whether no intact snapshot was found, or one that still awaits the first list of a backend.
    pub(super) fresh: bool,
    /// The highest sequence number met.
    pub(super) seq: u64,
    /// The journal to go on with; not opened yet.
    pub(super) journal: Journal,
    /// Why the directory cannot be used.
    pub(super) error: Option<io::Error>,
    pub(super) warnings: Vec<Warning>,
}

/// Loads what `dir` holds.
pub(super) fn load(dir: &Path, boot_id: &str) -> Loaded {
    let mut loaded = Loaded {
        states: BTreeMap::new(),
        fresh: true,
        seq: 0,
        journal: Journal::new(dir, boot_id, 0),
        error: file::make_dir(dir).err(),
        warnings: Vec::new(),
    };
    let _ = fs::remove_file(file::tmp_path(dir));
    let first = loaded.read_snapshot(dir);
    let saved: BTreeMap<String, u64> =
        loaded.states.iter().map(|(name, state)| (name.clone(), state.seq)).collect();
    let generations = journal::generations(dir).unwrap_or_default();
    for &generation in generations.iter().filter(|generation| **generation >= first) {
        loaded.read_journal(&journal::path(dir, generation), &saved);
    }
    let states = loaded.states.values().map(|state| state.seq);
    loaded.seq = states.chain(saved.into_values()).max().unwrap_or(0).max(loaded.seq);
    // While a start without state still waits for others, what was forgotten must not be waited for again.
    loaded.states.retain(|_, state| loaded.fresh || !state.forgotten);
    let last = generations.last().copied().unwrap_or(0);
    loaded.journal = Journal::new(dir, boot_id, last.max(first.saturating_sub(1)));
    loaded
}

impl Loaded {
    /// Reads the snapshot and returns the first journal generation to replay.
    fn read_snapshot(&mut self, dir: &Path) -> u64 {
        let path = file::path(dir);
        let saved = match fs::read(&path) {
            Ok(content) => file::decode(content).map_err(str::to_owned),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return 0,
            Err(error) => Err(error.to_string()),
        };
        match saved {
            Ok(saved) => {
                self.fresh = saved.fresh;
                for backend in saved.backends {
                    self.states.insert(backend.name.clone(), State::load(backend));
                }
                saved.journal
            }
            Err(problem) => {
                self.warn(&path, &problem, file::set_aside(&path));
                0
            }
        }
    }

    fn read_journal(&mut self, path: &Path, saved: &BTreeMap<String, u64>) {
        match fs::read(path).map(journal::read) {
            Ok(Some(replay)) => {
                if let Some(damage) = replay.damage {
                    let problem = format!("{damage} was left out");
                    self.warn(path, &problem, file::copy_aside(path));
                }
                self.replay(replay, saved);
            }
            Ok(None) => self.warn(path, "it is no journal", file::set_aside(path)),
            Err(error) => self.warn(path, &error.to_string(), file::set_aside(path)),
        }
    }

    fn replay(&mut self, replay: Replay, saved: &BTreeMap<String, u64>) {
        for record in replay.records {
            let saved = saved.get(&record.backend).copied().unwrap_or(0);
            let state = self.states.entry(record.backend);
            let state = state.or_insert_with(|| State::new(&replay.boot_id, 0));
            for mut change in record.changes {
                self.seq = self.seq.max(change.seq);
                change.op = change.op.map(unshared);
                state.replay(change, saved);
            }
        }
    }

    fn warn(&mut self, path: &Path, problem: &str, aside: io::Result<std::path::PathBuf>) {
        let done = match aside {
            Ok(to) => format!("kept as {}", to.display()),
            Err(error) => format!("and cannot be set aside: {error}"),
        };
        self.warnings.push(Warning { file: path.to_owned(), problem: format!("{problem}; {done}") });
    }
}
