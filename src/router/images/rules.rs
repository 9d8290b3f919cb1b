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
    /// A status without annotations soon after crimux started.
    JustStarted,
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
    /// Returns the row of this rule.
    ///
    /// # Panics
    /// Never: every rule has a row (a test).
    pub fn row(self) -> &'static RuleRow {
        RULES.iter().find(|row| row.rule == self).expect("every rule has a row")
    }
}

const fn row(
    rule: Rule,
    call: &'static str,
    carries: &'static str,
    store: &'static str,
    reason: &'static str,
) -> RuleRow {
    RuleRow { rule, call, carries, store, reason }
}

/// The table.
pub const RULES: [RuleRow; 19] = [
    row(
        Rule::OwnSocket,
        "all",
        "anything, on a backend's own socket",
        "that backend's",
        "the socket shows no other",
    ),
    row(
        Rule::PodUid,
        "PullImage",
        "the uid of a pod whose sandbox is known",
        "the backend of the pod's newest sandbox",
        "the container is created there; credentials go nowhere else",
    ),
    row(
        Rule::PullHandler,
        "PullImage",
        "a runtime handler",
        "the handler's backend",
        "a sandbox of that handler would be created there",
    ),
    row(
        Rule::PullWithoutPod,
        "PullImage",
        "neither",
        "the default backend",
        "crictl, critest and pre-pullers name no pod",
    ),
    row(
        Rule::ConfigSeen,
        "ImageStatus",
        "annotations with a known `kubernetes.io/config.seen`",
        "the backend of that pod's sandbox",
        "kubelet sets config.seen once for each pod",
    ),
    row(
        Rule::Handler,
        "ImageStatus",
        "a runtime handler, and no known config.seen",
        "the handler's backends; of several those that hold a pod with these annotations",
        "the pod was created by that handler",
    ),
    row(
        Rule::UsedBy,
        "ImageStatus",
        "an unknown config.seen",
        "the backends of pods with equal annotations that have, or had, a container of this image",
        "kubelet restarted, and starts a container again",
    ),
    row(
        Rule::Alike,
        "ImageStatus",
        "an unknown config.seen, and no such container is known",
        "the backends of pods with equal annotations; present only if all have the same image",
        "kubelet restarted; absent leads to a pull, whose uid tells the pod",
    ),
    row(
        Rule::NoPod,
        "ImageStatus",
        "annotations that no pod has",
        "the default backend",
        "no pod it could be for is known",
    ),
    row(
        Rule::StartUnderWay,
        "ImageStatus",
        "no annotations, while a pod is between an annotated call for this image and CreateContainer",
        "the backend of that start; of several only if their images have the same user, else Unavailable",
        "kubelet asks so which user the container runs as, and takes absent for root",
    ),
    row(
        Rule::JustStarted,
        "ImageStatus",
        "no annotations, in the first 30 s of crimux",
        "the default backend and those with pods of kubelet; Unavailable if they disagree",
        "a start may be under way whose annotated call came before crimux started",
    ),
    row(
        Rule::OtherClient,
        "ImageStatus",
        "no annotations otherwise",
        "the default backend",
        "crictl and critest pull to it and create on it",
    ),
    row(
        Rule::RemoveId,
        "RemoveImage",
        "an ID as some store lists it",
        "every backend that lists exactly this ID",
        "the other spelling may be another backend's image in use",
    ),
    row(
        Rule::RemoveOtherSpelling,
        "RemoveImage",
        "an ID that is listed only with, or only without, `sha256:`",
        "every backend that lists it so",
        "it names that image and no other",
    ),
    row(
        Rule::RemoveName,
        "RemoveImage",
        "a tag or digest",
        "every backend that lists an image by it; it decides whether other tags go too",
        "a tag means the same to each runtime by its own rules",
    ),
    row(
        Rule::RemovePrefix,
        "RemoveImage",
        "a prefix of an ID",
        "every backend that lists the one ID it fits",
        "people type prefixes; one that fits several IDs is InvalidArgument",
    ),
    row(
        Rule::List,
        "ListImages",
        "a filter or none",
        "all backends; pinned if a local one pins it, or if only remote or down ones have it",
        "kubelet collects images to free this node's disk",
    ),
    row(
        Rule::Filesystems,
        "ImageFsInfo",
        "nothing",
        "the default backend's filesystem first, then those of other local backends",
        "kubelet takes the first for the node's; Unavailable until the default backend was heard",
    ),
    row(
        Rule::Unknown,
        "any other",
        "anything",
        "the default backend",
        "crimux does not know what the call means",
    ),
];
