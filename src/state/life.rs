//! The life of an instance: its states, what changes them, and what each change leads to.
//!
//! The state is written down when it changes, because a start can only act on what was written: a backend
//! that was added and not listed yet is outside lists, one that is a member and not known is awaited.
//!
//! ```text
//!   a reload adds it                      a start finds it in the file
//!         │                                          │
//!         ▼            Listed, MoveResolved          ▼
//!      Joining ────────────────────────────────► Member
//!         ▲  │                                   │    │ ▲
//!         │  │           GivenUp                 │    │ │ NamedInFile, MoveResolved
//!         └──┼───────────────────────────────────┘    │ │
//!            └───────────── LeftFile ────────────► Removed ──► ended, once it owns nothing
//! ```
//!
//! | change | Joining | Member | Removed | applied in |
//! |---|---|---|---|---|
//! | [`LifeChange::Listed`] | Member | Member | Removed | `InstanceState::replace_list` |
//! | [`LifeChange::MoveResolved`] | Member | Member | Member | `app/backends/moved.rs` |
//! | [`LifeChange::LeftFile`] | Removed | Removed | Removed | `Backends::keep_removed` |
//! | [`LifeChange::NamedInFile`] | Joining | Member | Member | `Backends::carry_out_step` |
//! | [`LifeChange::GivenUp`] | Joining | Joining | never: it has ended | `state/load.rs` |
//!
//! | the state | its lists are not known | its lists are known |
//! |---|---|---|
//! | Joining | outside lists, gets no sandbox | the same; it may be another instance that moved |
//! | Member | *awaited*: the node's lists fail until it is listed or declared empty | in all lists |
//! | Removed | *awaited* too, until it is declared empty | in all lists until it owns nothing |

/// Where an instance stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Life {
    /// Configured. Until its lists are known, the node's lists wait for it.
    #[default]
    Member,
    /// Added by a reload: outside lists, and given no sandbox, until its first full pair of lists.
    Joining,
    /// Gone from the file: still dialled, listed and served, until it owns nothing.
    Removed,
}

/// What changes where an instance stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LifeChange {
    /// Its first full pair of lists was received.
    Listed,
    /// The lists of a backend that moved told whether it is the instance that it was.
    MoveResolved,
    /// The file does not name it any more.
    LeftFile,
    /// The file names it, perhaps again.
    NamedInFile,
    /// A start finds that the operator gave up what was on it.
    GivenUp,
}

impl Life {
    /// Returns where the instance stands after a change; see the first table above.
    #[must_use]
    pub fn after(self, change: LifeChange) -> Self {
        match (change, self) {
            (LifeChange::LeftFile, _) => Self::Removed,
            (LifeChange::GivenUp, _) => Self::Joining,
            (LifeChange::Listed, Self::Joining)
            | (LifeChange::NamedInFile, Self::Removed)
            | (LifeChange::MoveResolved, _) => Self::Member,
            (LifeChange::Listed | LifeChange::NamedInFile, same) => same,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_leads_from_every_state_to_the_one_in_the_table() {
        use Life::{Joining, Member, Removed};
        let table = [
            (LifeChange::Listed, [Member, Member, Removed]),
            (LifeChange::MoveResolved, [Member, Member, Member]),
            (LifeChange::LeftFile, [Removed, Removed, Removed]),
            (LifeChange::NamedInFile, [Joining, Member, Member]),
            (LifeChange::GivenUp, [Joining, Joining, Joining]),
        ];
        for (change, after) in table {
            assert_eq!([Joining, Member, Removed].map(|life| life.after(change)), after, "{change:?}");
        }
    }
}
