//! Maps each backend name in a file to a known instance.
//!
//! A name is matched by its endpoint first and by the name itself second. Instances without a name become
//! *removed* and are served until they own nothing.
//!
//! | the file says | with | it is |
//! |---|---|---|
//! | a known endpoint | the same name | the same |
//! | a known endpoint | another name | renamed; taken back, if it was removed |
//! | an unknown endpoint | the name of one on which nothing is | that one, moved empty |
//! | an unknown endpoint | the name of one on which something is | moved or another runtime; lists decide |
//! | an unknown endpoint | an unknown name, or one that was matched already | new |
//! | nothing of it | | removed |
//!
//! The plan is a pure function of what is known and what is wanted, so that `crimux check` and `crimux reload
//! --dry-run` say what a reload would do by asking the same code.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::config::Config;
use crate::state::{InstanceId, Life};

/// What is known of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownInstance {
    /// Its identifier.
    pub id: InstanceId,
    /// Its label.
    pub name: String,
    /// Its canonical endpoint; empty if it is not known.
    pub endpoint: String,
    /// Where it stands in its life.
    pub life: Life,
    /// The sandboxes on it.
    pub pods: usize,
    /// Whether anything is or may be on it: objects, a call in flight, or what was never listed.
    pub is_occupied: bool,
}

/// A backend as a file wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Its canonical endpoint.
    pub endpoint: String,
}

/// The meaning of a name in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// The instance that has this name and endpoint.
    Same,
    /// The instance that answers at this endpoint, which had another name.
    Renamed {
        /// The name it had.
        from: String,
    },
    /// A removed instance that is wanted again.
    TakenBack {
        /// The label it had.
        from: String,
    },
    /// The instance of this name, on which nothing is, at another endpoint.
    MovedEmpty {
        /// The endpoint it had.
        from: String,
    },
    /// The instance of this name at another endpoint, or another runtime: the first full pair of lists tells.
    MaybeMoved {
        /// The endpoint it had.
        from: String,
    },
    /// A backend that was not known.
    New,
}

/// The step that a plan takes for one name in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanStep {
    /// The name in the file.
    pub name: String,
    /// The endpoint in the file.
    pub endpoint: String,
    /// The instance that the name means; for [`Meaning::MaybeMoved`] the one that it perhaps means. `None`
    /// for a new one.
    pub instance: Option<InstanceId>,
    /// How the name was matched.
    pub meaning: Meaning,
    /// The sandboxes on that instance.
    pub pods: usize,
}

/// The step that a plan takes for an instance that the file does not name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// The instance.
    pub id: InstanceId,
    /// The label it had.
    pub name: String,
    /// The label it has from then on: `NAME@ID` if the file gives its name to another.
    pub label: String,
    /// Whether an earlier file removed it.
    pub was_removed: bool,
    /// The sandboxes on it.
    pub pods: usize,
}

/// The steps that make the running backends those of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// One for each name in the file.
    pub steps: Vec<PlanStep>,
    /// One for each instance that the file does not name.
    pub removed: Vec<Removal>,
}

impl Wanted {
    /// Reads the backends of a checked configuration. Blocks: the paths of endpoints are looked up in the
    /// file system.
    pub fn of(config: &Config) -> Vec<Self> {
        let wanted = |(name, backend): (&String, &crate::config::BackendConfig)| Self {
            name: name.clone(),
            endpoint: backend.endpoint.canonical(),
        };
        config.backends.iter().map(wanted).collect()
    }
}

/// The instance that a name in the file was matched with.
#[derive(Debug, Clone, Copy)]
struct Match<'a> {
    known: &'a KnownInstance,
    /// Whether the instance is certain: its endpoint is the one in the file, or it has the name and no
    /// endpoint was saved. Otherwise it has only the name.
    is_certain: bool,
}

impl Plan {
    /// Decides what `wanted` means for what is `known`.
    pub fn new(known: &[KnownInstance], wanted: &[Wanted]) -> Self {
        let mut matches = vec![None; wanted.len()];
        match_by_endpoint(known, wanted, &mut matches);
        match_by_name(known, wanted, &mut matches);
        let steps: Vec<_> =
            std::iter::zip(wanted, &matches).map(|(want, found)| PlanStep::new(want, *found)).collect();
        let removed = removals(known, &steps);
        Self { steps, removed }
    }

    /// Returns the changes in words, a line each; what stays as it is has none.
    pub fn changes(&self) -> Vec<String> {
        let steps = self.steps.iter().filter(|step| step.meaning != Meaning::Same).map(ToString::to_string);
        let removed = self.removed.iter().filter(|removal| !removal.was_removed).map(ToString::to_string);
        steps.chain(removed).collect()
    }

    /// Says why a reload of `new` is refused unless it is forced: with another `state_dir`, the next start
    /// would not know of the pods on backends that are removed or down, which cannot list them then. `down`
    /// has the backends that are down, with the number of their sandboxes. `None` if no pod would be lost.
    pub fn refusal(
        &self,
        old: &Config,
        new: &Config,
        down: impl IntoIterator<Item = (String, usize)>,
    ) -> Option<String> {
        if old.state_dir == new.state_dir {
            return None;
        }
        let removed = self.removed.iter().map(|removal| (removal.label.clone(), removal.pods));
        let held: BTreeMap<String, usize> = removed.chain(down).filter(|(_, pods)| *pods > 0).collect();
        let (pods, old) = (held.values().sum::<usize>(), old.state_dir.display());
        let names: Vec<_> = held.into_keys().collect();
        (!names.is_empty()).then(|| {
            format!(
                "state_dir: {pods} pods are on backends that are down or not in the file ({}), and only {old} remembers them: \
                 the next start would not know of them",
                names.join(", ")
            )
        })
    }

    /// Tells whether the file means what is there already.
    pub fn changes_nothing(&self) -> bool {
        self.steps.iter().all(|step| step.meaning == Meaning::Same)
            && self.removed.iter().all(|removal| removal.was_removed)
    }
}

fn is_matched(matches: &[Option<Match<'_>>], id: InstanceId) -> bool {
    matches.iter().flatten().any(|found| found.known.id == id)
}

/// Matches names with the instances at their endpoints: first those that have the name already, then those
/// that are configured, then removed ones.
fn match_by_endpoint<'a>(known: &'a [KnownInstance], wanted: &[Wanted], matches: &mut [Option<Match<'a>>]) {
    for same_name in [true, false] {
        for (index, want) in wanted.iter().enumerate().filter(|(_, want)| !want.endpoint.is_empty()) {
            if matches[index].is_some() {
                continue;
            }
            let candidates = known.iter().filter(|have| {
                have.endpoint == want.endpoint
                    && !is_matched(matches, have.id)
                    && (!same_name || have.name == want.name)
            });
            let best = candidates.min_by_key(|have| (have.life == Life::Removed, have.id));
            matches[index] = best.map(|known| Match { known, is_certain: true });
        }
    }
}

/// Matches the names that are left with the instances that have them.
fn match_by_name<'a>(known: &'a [KnownInstance], wanted: &[Wanted], matches: &mut [Option<Match<'a>>]) {
    for (index, want) in wanted.iter().enumerate() {
        if matches[index].is_none() {
            let mut unmatched = known.iter().filter(|have| !is_matched(matches, have.id));
            let namesake = unmatched.find(|have| have.name == want.name);
            matches[index] = namesake.map(|known| Match { known, is_certain: known.endpoint.is_empty() });
        }
    }
}

/// Returns the instances that the file does not name. The old instance of a name that may have moved is one
/// of them until its new endpoint has been listed.
fn removals(known: &[KnownInstance], steps: &[PlanStep]) -> Vec<Removal> {
    let settled = steps.iter().filter(|step| !matches!(step.meaning, Meaning::MaybeMoved { .. }));
    let in_file: BTreeSet<InstanceId> = settled.filter_map(|step| step.instance).collect();
    let names: BTreeSet<&str> = steps.iter().map(|step| step.name.as_str()).collect();
    let left = known.iter().filter(|have| !in_file.contains(&have.id));
    left.map(|have| Removal::new(have, &names)).collect()
}

impl PlanStep {
    fn new(want: &Wanted, found: Option<Match<'_>>) -> Self {
        let Wanted { name, endpoint } = want.clone();
        let Some(Match { known: have, is_certain }) = found else {
            return Self { name, endpoint, instance: None, meaning: Meaning::New, pods: 0 };
        };
        let meaning = match (is_certain, have.life) {
            (true, Life::Removed) => Meaning::TakenBack { from: have.name.clone() },
            (true, _) if have.name == want.name => Meaning::Same,
            (true, _) => Meaning::Renamed { from: have.name.clone() },
            (false, _) if have.is_occupied => Meaning::MaybeMoved { from: have.endpoint.clone() },
            (false, _) => Meaning::MovedEmpty { from: have.endpoint.clone() },
        };
        Self { name, endpoint, instance: Some(have.id), meaning, pods: have.pods }
    }
}

impl Removal {
    fn new(have: &KnownInstance, names: &BTreeSet<&str>) -> Self {
        let given_away = names.contains(have.name.as_str());
        Self {
            id: have.id,
            name: have.name.clone(),
            label: if given_away { format!("{}@{}", have.name, have.id) } else { have.name.clone() },
            was_removed: have.life == Life::Removed,
            pods: have.pods,
        }
    }
}

fn pods(count: usize) -> String {
    if count == 1 { "1 pod".to_owned() } else { format!("{count} pods") }
}

impl fmt::Display for PlanStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, endpoint, .. } = self;
        let stay = if self.pods == 1 { "stays" } else { "stay" };
        let pods = pods(self.pods);
        match &self.meaning {
            Meaning::Same => write!(f, "backend {name}: as it is, {pods}"),
            Meaning::Renamed { from } => {
                write!(f, "backend {from} → {name}: renamed, {pods} {stay} with it")
            }
            Meaning::TakenBack { from } if from == name => {
                write!(f, "backend {name}: taken back, {pods} {stay} with it")
            }
            Meaning::TakenBack { from } => {
                write!(f, "backend {from} → {name}: taken back, {pods} {stay} with it")
            }
            Meaning::MovedEmpty { from } => {
                write!(f, "backend {name}: at {endpoint} instead of {from}; nothing is on it")
            }
            Meaning::MaybeMoved { from } => write!(
                f,
                "backend {name}: moved from {from} to {endpoint}, or another runtime; its {pods} {stay} as last known \
                 until {endpoint} has been listed"
            ),
            Meaning::New => write!(f, "backend {name}: new, it joins with its first full list"),
        }
    }
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, label, pods: count, .. } = self;
        let renamed = if name == label { String::new() } else { format!(" → {label}") };
        match count {
            0 => write!(f, "backend {name}{renamed}: removed, nothing is on it"),
            1 => write!(f, "backend {name}{renamed}: removed, 1 pod stays until it ends"),
            _ => write!(f, "backend {name}{renamed}: removed, {} stay until they end", pods(*count)),
        }
    }
}

#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod tests {
    use super::*;

    fn known(id: u64, name: &str, endpoint: &str) -> KnownInstance {
        let (name, endpoint) = (name.to_owned(), endpoint.to_owned());
        KnownInstance { id: InstanceId(id), name, endpoint, life: Life::Member, pods: 2, is_occupied: true }
    }

    fn removed(id: u64, name: &str, endpoint: &str) -> KnownInstance {
        KnownInstance { life: Life::Removed, ..known(id, name, endpoint) }
    }

    /// The instance and the meaning of each backend of the file, and ID and label of each that is removed.
    type Planned = (Vec<(Option<u64>, Meaning)>, Vec<(u64, String)>);

    fn plan(known: &[KnownInstance], wanted: &[(&str, &str)]) -> Planned {
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(name, endpoint)| Wanted { name: (*name).into(), endpoint: (*endpoint).into() })
            .collect();
        let plan = Plan::new(known, &wanted);
        (
            plan.steps.into_iter().map(|step| (step.instance.map(|id| id.0), step.meaning)).collect(),
            plan.removed.into_iter().map(|removal| (removal.id.0, removal.label)).collect(),
        )
    }

    #[test]
    fn another_name_for_a_known_endpoint_is_a_rename_and_two_at_once_are_a_swap() {
        let renamed = |from: &str| Meaning::Renamed { from: from.into() };
        let known = [known(1, "a", "/A"), known(2, "b", "/B")];
        assert_eq!(
            plan(&known, &[("c", "/A"), ("b", "/B")]),
            (vec![(Some(1), renamed("a")), (Some(2), Meaning::Same)], vec![])
        );
        assert_eq!(
            plan(&known, &[("a", "/B"), ("b", "/A")]),
            (vec![(Some(2), renamed("b")), (Some(1), renamed("a"))], vec![])
        );
    }

    #[test]
    fn a_name_that_is_given_to_another_endpoint_while_its_own_gets_another_name_is_new() {
        let (steps, gone) = plan(&[known(1, "main", "/A")], &[("main", "/G"), ("main-old", "/A")]);
        assert_eq!(steps, [(None, Meaning::New), (Some(1), Meaning::Renamed { from: "main".into() })]);
        assert_eq!(gone, []);
    }

    #[test]
    fn a_known_name_with_an_unknown_endpoint_is_undecided_while_something_is_on_it() {
        let main = known(1, "main", "/A");
        let (steps, gone) = plan(std::slice::from_ref(&main), &[("main", "/G")]);
        assert_eq!(steps, [(Some(1), Meaning::MaybeMoved { from: "/A".into() })]);
        assert_eq!(gone, [(1, "main@1".to_owned())]);
        let (steps, gone) = plan(&[KnownInstance { is_occupied: false, ..main }], &[("main", "/G")]);
        assert_eq!(steps, [(Some(1), Meaning::MovedEmpty { from: "/A".into() })]);
        assert_eq!(gone, []);
    }

    #[test]
    fn a_removed_one_is_taken_back_by_its_endpoint_under_any_name() {
        let known = [removed(1, "a@1", "/A"), known(2, "a", "/B")];
        let (steps, gone) = plan(&known, &[("a", "/B"), ("z", "/A")]);
        assert_eq!(steps, [(Some(2), Meaning::Same), (Some(1), Meaning::TakenBack { from: "a@1".into() })]);
        assert_eq!(gone, []);
    }

    #[test]
    fn what_the_file_does_not_name_is_removed_and_keeps_its_name_unless_that_was_given_away() {
        let known = [known(1, "a", "/A"), known(2, "b", "/B")];
        assert_eq!(plan(&known, &[("a", "/A")]).1, [(2, "b".to_owned())]);
        assert_eq!(plan(&known, &[("b", "/A")]).1, [(2, "b@2".to_owned())]);
    }

    #[test]
    fn two_names_for_one_endpoint_are_the_known_one_and_a_new_one() {
        let (steps, _) = plan(&[known(1, "b", "/A")], &[("a", "/A"), ("b", "/A")]);
        assert_eq!(steps, [(None, Meaning::New), (Some(1), Meaning::Same)]);
    }

    #[test]
    fn state_of_a_version_that_saved_no_endpoint_belongs_to_the_name() {
        let (steps, gone) = plan(&[known(1, "a", "")], &[("a", "/A")]);
        assert_eq!((steps, gone), (vec![(Some(1), Meaning::Same)], vec![]));
    }

    #[test]
    fn a_plan_is_told_in_the_words_of_an_operator() {
        let known = [known(1, "containerd", "/A"), KnownInstance { pods: 1, ..known(2, "gvisor", "/B") }];
        let wanted = [Wanted { name: "main".into(), endpoint: "/A".into() }];
        let plan = Plan::new(&known, &wanted);
        assert_eq!(plan.steps[0].to_string(), "backend containerd → main: renamed, 2 pods stay with it");
        assert_eq!(plan.removed[0].to_string(), "backend gvisor: removed, 1 pod stays until it ends");
    }
}
