//! Rebuilds the state from what `state_dir` holds: the snapshot, then the journals it names, in order.
//!
//! Each file counts for what it proves. Whatever is wrong with one becomes a warning, never an error.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use super::StateWarning;
use super::delta::Delta;
use super::file;
use super::instance::{Instance, InstanceId};
use super::journal::{self, Journal, Record, Replay};
use super::known::{KnownState, detach};
use super::life::{Life, LifeChange};

/// What was loaded.
#[derive(Debug)]
pub(super) struct Loaded {
    /// The state of every instance heard of.
    pub(super) states: BTreeMap<InstanceId, KnownState>,
    /// Whether what was found is all there was: an intact snapshot, after which every record could be
    /// written.
    pub(super) whole: bool,
    /// The highest identifier that an instance ever had.
    pub(super) last_instance: u64,
    /// The highest sequence number met.
    pub(super) seq: u64,
    /// The journal to go on with; not opened yet.
    pub(super) journal: Journal,
    /// Why the directory cannot be used.
    pub(super) error: Option<io::Error>,
    pub(super) warnings: Vec<StateWarning>,
}

/// Loads what `dir` holds; `doubted` says that a mark outside of it tells that this is not all there was.
pub(super) fn load(dir: &Path, boot_id: &str, doubted: bool) -> Loaded {
    let mut loaded = Loaded {
        states: BTreeMap::new(),
        whole: false,
        last_instance: 0,
        seq: 0,
        journal: Journal::new(dir, boot_id, 0),
        error: file::make_dir(dir).err(),
        warnings: Vec::new(),
    };
    let _ = fs::remove_file(file::tmp_path(dir));
    let first = loaded.read_snapshot(dir);
    loaded.whole &= !doubted;
    let saved: BTreeMap<InstanceId, u64> = loaded.states.iter().map(|(id, state)| (*id, state.seq)).collect();
    let generations = journal::generations(dir).unwrap_or_default();
    for &generation in generations.iter().filter(|generation| **generation >= first) {
        loaded.read_journal(&journal::path(dir, generation), &saved);
    }
    let states = loaded.states.values().map(|state| state.seq);
    loaded.seq = states.chain(saved.into_values()).max().unwrap_or(0).max(loaded.seq);
    loaded
        .states
        .retain(|_, state| !state.ended && (!state.declared_empty || state.instance.life != Life::Removed));
    for state in loaded.states.values_mut() {
        state.purge();
        if state.declared_empty {
            // The operator gave up what was on it: it is not awaited, and what it has counts once it was
            // listed.
            state.reset_to_unknown(state.instance.life.after(LifeChange::GivenUp));
        } else if !loaded.whole {
            state.doubt();
        }
    }
    let last = generations.last().copied().unwrap_or(0);
    loaded.journal = Journal::new(dir, boot_id, last.max(first.saturating_sub(1)));
    loaded
}

impl Loaded {
    /// Reads the snapshot and returns the first journal generation to replay.
    fn read_snapshot(&mut self, dir: &Path) -> u64 {
        let whole = file::path(dir);
        let (path, is_whole) = if whole.exists() { (whole, true) } else { (file::partial_path(dir), false) };
        let saved = match fs::read(&path) {
            Ok(content) => file::decode(content).map_err(str::to_owned),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return 0,
            Err(error) => Err(error.to_string()),
        };
        match saved {
            Ok(saved) => {
                self.whole = is_whole;
                let given = saved.backends.iter().filter_map(|backend| Some(backend.instance.as_ref()?.id));
                self.last_instance = given.max().unwrap_or(0).max(saved.last_instance);
                for backend in saved.backends {
                    let state = KnownState::load(backend, self.last_instance + 1);
                    self.last_instance = self.last_instance.max(state.instance.id.0);
                    self.states.insert(state.instance.id, state);
                }
                saved.journal
            }
            Err(problem) => {
                self.warn(&path, &problem, file::quarantine(&path));
                0
            }
        }
    }

    fn read_journal(&mut self, path: &Path, saved: &BTreeMap<InstanceId, u64>) {
        match fs::read(path).map(journal::read) {
            Ok(Some(replay)) => {
                if let Some(damage) = replay.damage {
                    let problem = format!("{damage} was left out");
                    self.warn(path, &problem, file::copy_aside(path));
                }
                self.replay(replay, saved);
            }
            Ok(None) => self.warn(path, "it is no journal", file::quarantine(path)),
            Err(error) => self.warn(path, &error.to_string(), file::quarantine(path)),
        }
    }

    fn replay(&mut self, replay: Replay, saved: &BTreeMap<InstanceId, u64>) {
        for record in replay.records {
            let id = self.instance_of(&record);
            let saved = saved.get(&id).copied().unwrap_or(0);
            let state = self.states.entry(id);
            let state = state.or_insert_with(|| {
                KnownState::new(Instance::with_name(id.0, &record.backend), &replay.boot_id, 0)
            });
            for mut change in record.changes {
                self.seq = self.seq.max(change.seq);
                change.op = change.op.map(detach);
                state.replay(change, saved);
            }
            if !record.delta.is_empty() {
                let delta = Delta::decode_compressed(&record.delta);
                self.seq = self.seq.max(delta.as_ref().map_or(0, |delta| delta.seq));
                // Without a delta between, a later one would make a state that never was.
                self.whole &= delta.is_some_and(|delta| state.replay_delta(delta, saved));
            }
        }
    }

    /// Returns the instance that a record is about; one without an identifier is about the name.
    fn instance_of(&mut self, record: &Record) -> InstanceId {
        let named = |state: &&KnownState| state.instance.name == record.backend;
        let id = match record.instance {
            0 => self.states.values().find(named).map_or(self.last_instance + 1, |state| state.instance.id.0),
            id => id,
        };
        self.last_instance = self.last_instance.max(id);
        InstanceId(id)
    }

    fn warn(&mut self, path: &Path, problem: &str, aside: io::Result<std::path::PathBuf>) {
        let done = match aside {
            Ok(to) => format!("kept as {}", to.display()),
            Err(error) => format!("and cannot be set aside: {error}"),
        };
        self.warnings.push(StateWarning { file: path.to_owned(), problem: format!("{problem}; {done}") });
    }
}
