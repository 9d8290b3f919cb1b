//! The rules by which image calls go to stores, as a table: what a call carries, whose store it means, and
//! why.
//!
//! `docs/images.md` shows this table (a test compares them) and `crimux images --explain` names its rows.

/// A rule. For each call the first that applies, in the order of [`RULES`], decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Any call on a backend's own socket.
    OwnSocket,
    /// A pull for a pod whose sandbox is known.
    PodUid,
    /// A pull that names a handler.
    PullHandler,
    /// Any other pull.
    PullWithoutPod,
    /// A status for a pod whose `config.seen` is known.
    ConfigSeen,
    /// A status that names a handler.
    Handler,
    /// A status for one of the pods that use the image.
    UsedBy,
    /// A status for one of the pods with these annotations.
    Alike,
    /// A status with annotations of no known pod.
    NoPod,
    /// A status without annotations while a start of that image is under way.
    StartUnderWay,
    /// A status without annotations while the process is young.
    YoungProcess,
    /// Any other status.
    OtherClient,
    /// A removal by the ID that stores list.
    RemoveId,
    /// A removal by an ID that stores list in the other spelling.
    RemoveOtherSpelling,
    /// A removal by tag or digest.
    RemoveName,
    /// A removal by a prefix of an ID.
    RemovePrefix,
    /// A list of images.
    List,
    /// The image filesystems.
    Filesystems,
    /// A call that is not in the method table.
    Unknown,
}

/// How the answers of the stores of an `ImageStatus` become one; `proxy/images/status.rs` has the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combine {
    /// The one store's answer passes.
    PassOn,
    /// Present only if all stores that answer have the same image.
    AllSame,
    /// The answer is kubelet's way to ask for the image's user: only stores with the same user agree.
    SameUser {
        /// Whether absent is an answer if all stores say so.
        accept_absent: bool,
    },
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct RuleRow {
    /// The rule.
    pub rule: Rule,
    /// The call.
    pub call: &'static str,
    /// What it carries.
    pub carries: &'static str,
    /// Whose store it goes to.
    pub store: &'static str,
    /// Why.
    pub reason: &'static str,
}

impl Rule {
    /// Returns how the answers of several stores become one answer; `PassOn` for rules of calls other than
    /// `ImageStatus`, which do not ask several stores for one answer.
    pub fn combine(self) -> Combine {
        match self {
            Self::ConfigSeen
            | Self::Handler
            | Self::UsedBy
            | Self::Alike
            | Self::NoPod
            | Self::OtherClient => Combine::AllSame,
            Self::StartUnderWay => Combine::SameUser { accept_absent: false },
            Self::YoungProcess => Combine::SameUser { accept_absent: true },
            Self::OwnSocket
            | Self::PodUid
            | Self::PullHandler
            | Self::PullWithoutPod
            | Self::RemoveId
            | Self::RemoveOtherSpelling
            | Self::RemoveName
            | Self::RemovePrefix
            | Self::List
            | Self::Filesystems
            | Self::Unknown => Combine::PassOn,
        }
    }

    /// Returns the row of this rule.
    ///
    /// # Panics
    /// Never: every rule has a row (a test).
    pub fn row(self) -> &'static RuleRow {
        RULES.iter().find(|row| row.rule == self).expect("every rule has a row")
    }
}

/// The table.
pub const RULES: [RuleRow; 19] = [
    RuleRow {
        rule: Rule::OwnSocket,
        call: "all",
        carries: "anything, on a backend's own socket",
        store: "that backend's",
        reason: "the socket shows no other",
    },
    RuleRow {
        rule: Rule::PodUid,
        call: "PullImage",
        carries: "the uid of a pod whose sandbox is known",
        store: "the backend of the pod's newest sandbox",
        reason: "the container is created there; credentials go nowhere else",
    },
    RuleRow {
        rule: Rule::PullHandler,
        call: "PullImage",
        carries: "a runtime handler",
        store: "the handler's backend",
        reason: "a sandbox of that handler would be created there",
    },
    RuleRow {
        rule: Rule::PullWithoutPod,
        call: "PullImage",
        carries: "neither",
        store: "the default backend",
        reason: "crictl, critest and pre-pullers name no pod",
    },
    RuleRow {
        rule: Rule::ConfigSeen,
        call: "ImageStatus",
        carries: "annotations with a known `kubernetes.io/config.seen`",
        store: "the backend of that pod's sandbox",
        reason: "kubelet sets config.seen once for each pod",
    },
    RuleRow {
        rule: Rule::Handler,
        call: "ImageStatus",
        carries: "a runtime handler, and no known config.seen",
        store: "the handler's backends; of several those that hold a pod with these annotations",
        reason: "the pod was created by that handler",
    },
    RuleRow {
        rule: Rule::UsedBy,
        call: "ImageStatus",
        carries: "an unknown config.seen",
        store: "the backends of pods with equal annotations that have, or had, a container of this image",
        reason: "kubelet restarted, and starts a container again",
    },
    RuleRow {
        rule: Rule::Alike,
        call: "ImageStatus",
        carries: "an unknown config.seen, and no such container is known",
        store: "the backends of pods with equal annotations; present only if all have the same image",
        reason: "kubelet restarted; absent leads to a pull, whose uid tells the pod",
    },
    RuleRow {
        rule: Rule::NoPod,
        call: "ImageStatus",
        carries: "annotations that no pod has",
        store: "the default backend",
        reason: "no pod it could be for is known",
    },
    RuleRow {
        rule: Rule::StartUnderWay,
        call: "ImageStatus",
        carries: "no annotations, while a pod is between an annotated call for this image and CreateContainer",
        store: "the backend of that start; of several only if their images have the same user, else Unavailable",
        reason: "kubelet asks so which user the container runs as, and takes absent for root",
    },
    RuleRow {
        rule: Rule::YoungProcess,
        call: "ImageStatus",
        carries: "no annotations, in the first 30 s of crimux",
        store: "the default backend and those with pods of kubelet; Unavailable if they disagree",
        reason: "a start may be under way whose annotated call came before crimux started",
    },
    RuleRow {
        rule: Rule::OtherClient,
        call: "ImageStatus",
        carries: "no annotations otherwise",
        store: "the default backend",
        reason: "crictl and critest pull to it and create on it",
    },
    RuleRow {
        rule: Rule::RemoveId,
        call: "RemoveImage",
        carries: "an ID as some store lists it",
        store: "every backend that lists exactly this ID",
        reason: "the other spelling may be another backend's image in use",
    },
    RuleRow {
        rule: Rule::RemoveOtherSpelling,
        call: "RemoveImage",
        carries: "an ID that is listed only with, or only without, `sha256:`",
        store: "every backend that lists it so; Unavailable unless all stores could be listed",
        reason: "it names that image and no other",
    },
    RuleRow {
        rule: Rule::RemoveName,
        call: "RemoveImage",
        carries: "a tag or digest",
        store: "every backend that lists an image by it; it decides whether other tags go too",
        reason: "a tag means the same to each runtime by its own rules",
    },
    RuleRow {
        rule: Rule::RemovePrefix,
        call: "RemoveImage",
        carries: "a prefix of an ID",
        store: "every backend that lists the one ID it fits",
        reason: "people type prefixes; one that fits several IDs is InvalidArgument",
    },
    RuleRow {
        rule: Rule::List,
        call: "ListImages",
        carries: "a filter or none",
        store: "all backends; pinned if a local one pins it, or if only remote or down ones have it",
        reason: "kubelet collects images to free this node's disk",
    },
    RuleRow {
        rule: Rule::Filesystems,
        call: "ImageFsInfo",
        carries: "nothing",
        store: "the default backend's filesystem first, then those of other local backends",
        reason: "kubelet takes the first for the node's; Unavailable until the default backend was heard",
    },
    RuleRow {
        rule: Rule::Unknown,
        call: "any other",
        carries: "anything",
        store: "the default backend",
        reason: "crimux does not know what the call means",
    },
];
