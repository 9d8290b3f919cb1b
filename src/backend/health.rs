//! The health of a connected backend: which classes of methods are late, since when, and the last error.
//!
//! A class is late once one of its calls outlasted the backend's deadline; slow stats or images never make
//! sandboxes late. While a class is late, calls are answered from last-known state and one refresh stays in
//! flight; its answer, however late, makes the class live again. The sandbox and container lists are also
//! late after an error, so that both are always of one moment: they are live again once both were listed. A
//! class of lists that is late again soon has relapsed: for a minute only an answer in time ends its
//! lateness, or each next client would wait for the deadline and get last-known state.
//! Health is learnt from calls of clients and from refreshes; there is no separate health check.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use crate::method::{self, List, LocalReply, Method, Route};
use crate::mutex::lock;

/// The state that operators see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Outside lists: its life is joining, or it is `optional` and has no lists (`Node::is_outside_lists`).
    Joining,
    /// Connected, and every class is in time.
    Ready,
    /// Connected, but a class outlasted its deadline or could not be listed.
    Late,
    /// Not connected.
    Down,
    /// Ready, but takes no new sandboxes.
    Draining,
}

impl Condition {
    /// Returns the word for it in metrics and tables.
    pub fn word(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Ready => "ready",
            Self::Late => "late",
            Self::Down => "down",
            Self::Draining => "draining",
        }
    }
}

/// The classes of methods; each is late on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum MethodClass {
    /// `ListPodSandbox` and `ListContainers`, which are one pair.
    Lists,
    /// `ListImages`.
    Images,
    /// `ListContainerStats`.
    ContainerStats,
    /// `ListPodSandboxStats`.
    SandboxStats,
    /// `ListPodSandboxMetrics` and `ListMetricDescriptors`.
    Metrics,
    /// `ImageFsInfo`.
    Filesystems,
    /// Reads of one object: statuses and stats.
    Reads,
    /// `Status`, by which kubelet judges the node.
    Status,
    /// `RuntimeConfig`.
    RuntimeConfig,
}

const CLASSES: usize = MethodClass::RuntimeConfig as usize + 1;
/// The most late objects that are remembered; reads of further ones wait for their deadline each time.
const MAX_LATE_OBJECTS: usize = 64;
/// A class of lists that is late again within this time has relapsed.
const RELAPSE: Duration = Duration::from_secs(30);
/// How long only an answer in time ends the lateness of a class that has relapsed. Then the next client is
/// passed on again, because its own call may be quicker than the refresh.
const RELAPSED: Duration = Duration::from_secs(60);
/// Every class, in the order of its values.
const ALL_CLASSES: [MethodClass; CLASSES] = [
    MethodClass::Lists,
    MethodClass::Images,
    MethodClass::ContainerStats,
    MethodClass::SandboxStats,
    MethodClass::Metrics,
    MethodClass::Filesystems,
    MethodClass::Reads,
    MethodClass::Status,
    MethodClass::RuntimeConfig,
];

impl MethodClass {
    /// Returns the class of a list.
    pub fn of_list(list: List) -> Self {
        match list {
            List::Sandboxes | List::Containers => Self::Lists,
            List::Images => Self::Images,
            List::ContainerStats => Self::ContainerStats,
            List::SandboxStats => Self::SandboxStats,
            List::MetricDescriptors | List::SandboxMetrics => Self::Metrics,
            List::Filesystems => Self::Filesystems,
        }
    }

    /// Returns its methods, in words.
    pub fn methods(self) -> &'static str {
        match self {
            Self::Lists => "ListPodSandbox and ListContainers",
            Self::Images => "ListImages",
            Self::ContainerStats => "ListContainerStats",
            Self::SandboxStats => "ListPodSandboxStats",
            Self::Metrics => "ListPodSandboxMetrics and ListMetricDescriptors",
            Self::Filesystems => "ImageFsInfo",
            Self::Reads => "reads of single objects",
            Self::Status => "Status",
            Self::RuntimeConfig => "RuntimeConfig",
        }
    }

    /// Tells whether its refresh calls what clients call, so that it takes as long.
    fn is_measured_by_refresh(self) -> bool {
        match self {
            Self::Lists | Self::Images | Self::ContainerStats | Self::SandboxStats | Self::Filesystems => {
                true
            }
            Self::Metrics | Self::Reads | Self::Status | Self::RuntimeConfig => false,
        }
    }

    /// Returns the class of a method.
    pub fn of(method: &Method) -> Self {
        match method.route {
            Route::FanOut(list) | Route::StreamList(list) => Self::of_list(list),
            Route::Local(LocalReply::RuntimeConfig) => Self::RuntimeConfig,
            Route::Local(_) => Self::Status,
            _ => Self::Reads,
        }
    }
}

/// An error and its time.
#[derive(Debug, Clone)]
pub struct LastError {
    /// When.
    pub at: SystemTime,
    /// Its text, without contents of messages.
    pub text: Arc<str>,
}

/// The lateness of a class.
#[derive(Debug, Clone, Copy)]
struct Late {
    since: SystemTime,
    /// Whether the log says that it is late; otherwise it does not say the end either.
    is_said: bool,
    /// When it was late again soon after its last lateness; `None` if it was not.
    relapsed: Option<Instant>,
}

#[derive(Debug, Default)]
struct Inner {
    late: [Option<Late>; CLASSES],
    /// The last lateness of each class, and when it ended.
    last_late: [Option<(SystemTime, Instant)>; CLASSES],
    /// The connection over which each class is being refreshed.
    refreshing: [Option<u64>; CLASSES],
    /// The number of the current connection, counted from 0.
    connection: u64,
    /// IDs of objects whose reads outlasted their deadline while the backend answered other calls.
    late_objects: HashSet<Box<str>>,
    status_unanswered: Option<Instant>,
    last_error: Option<LastError>,
}

/// What was learnt over the current connection, one bit for each row of the method table.
#[derive(Debug, Default, Clone, Copy)]
struct Answered {
    /// Methods that the backend answered.
    answered: u64,
    /// Methods that it answered with `Unimplemented`.
    unimplemented: u64,
}

fn bit(method: &Method) -> u64 {
    1 << method.index
}

/// The health of one backend.
#[derive(Debug, Default)]
pub struct Health {
    inner: Mutex<Inner>,
    /// Whether sandboxes and containers were listed over the current connection, or are late.
    listed_or_late: watch::Sender<bool>,
    answers: watch::Sender<Answered>,
}

const _: () = assert!(method::COUNT <= u64::BITS as usize, "one bit for each row");

impl Health {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// Tells whether this class is late.
    pub fn is_late(&self, class: MethodClass) -> bool {
        self.late_since(class).is_some()
    }

    /// Returns since when this class is late.
    pub fn late_since(&self, class: MethodClass) -> Option<SystemTime> {
        self.inner().late[class as usize].map(|late| late.since)
    }

    /// Tells whether this class has relapsed within the last minute: only an answer in time ends its
    /// lateness.
    pub fn has_relapsed(&self, class: MethodClass) -> bool {
        let relapsed = self.inner().late[class as usize].and_then(|late| late.relapsed);
        relapsed.is_some_and(|at| at.elapsed() < RELAPSED)
    }

    /// Tells whether the backend answers nothing: neither `Status`, nor lists or `Version`.
    pub fn answers_nothing(&self) -> bool {
        let silent = self.is_late(MethodClass::Lists) || self.is_late(MethodClass::Reads);
        silent && self.status_unanswered_since().is_some()
    }

    /// Returns the classes that are late, each with the time since when.
    pub fn late_classes(&self) -> Vec<(MethodClass, SystemTime)> {
        let inner = self.inner();
        let late = ALL_CLASSES.into_iter().zip(inner.late);
        late.filter_map(|(class, late)| Some((class, late?.since))).collect()
    }

    /// Returns the classes with a refresh in flight.
    pub fn refreshing(&self) -> Vec<MethodClass> {
        let inner = self.inner();
        ALL_CLASSES
            .into_iter()
            .zip(inner.refreshing)
            .filter(|(_, connection)| connection.is_some())
            .map(|(class, _)| class)
            .collect()
    }

    /// Returns since when the first late class is late; `None` if none is.
    pub fn first_late_since(&self) -> Option<SystemTime> {
        self.inner().late.iter().flatten().map(|late| late.since).min()
    }

    /// Makes a class late: one of its calls outlasted its deadline or, of `Lists`, failed. Returns false if
    /// the class was late already.
    pub fn mark_late(&self, class: MethodClass) -> bool {
        if class == MethodClass::Status {
            self.mark_status_unanswered();
        }
        let mut inner = self.inner();
        let news = inner.late[class as usize].is_none();
        if news {
            let last = inner.last_late[class as usize].filter(|(_, ended)| ended.elapsed() < RELAPSE);
            let last = last.filter(|_| class.is_measured_by_refresh());
            let since = last.map_or_else(SystemTime::now, |(since, _)| since);
            let late = Late { since, is_said: false, relapsed: last.map(|_| Instant::now()) };
            inner.late[class as usize] = Some(late);
        }
        drop(inner);
        self.mark_listed_or_late(class);
        news
    }

    /// Records that the log says that this class is late.
    pub fn mark_said_late(&self, class: MethodClass) {
        if let Some(late) = &mut self.inner().late[class as usize] {
            late.is_said = true;
        }
    }

    /// Ends the lateness of a class, because it was answered. Returns whether it was late and the log says
    /// so.
    pub fn end_lateness(&self, class: MethodClass) -> bool {
        let mut inner = self.inner();
        let ended = inner.late[class as usize].take();
        if let Some(late) = ended {
            inner.last_late[class as usize] = Some((late.since, Instant::now()));
        }
        drop(inner);
        self.mark_listed_or_late(class);
        ended.is_some_and(|late| late.is_said)
    }

    /// Records that `Status` was not answered, or that the backend is not connected.
    pub fn mark_status_unanswered(&self) {
        self.inner().status_unanswered.get_or_insert_with(Instant::now);
    }

    /// Records that `Status` was answered.
    pub fn mark_status_answered(&self) {
        self.inner().status_unanswered = None;
    }

    /// Returns since when the backend has not answered `Status`; a new connection alone does not end this. On
    /// the monotonic clock.
    pub fn status_unanswered_since(&self) -> Option<Instant> {
        self.inner().status_unanswered
    }

    /// Completes once sandboxes and containers were listed over the current connection, or are late.
    pub async fn listed_or_late(&self) {
        // The sender lives as long as this.
        self.listed_or_late.subscribe().wait_for(|done| *done).await.ok();
    }

    fn mark_listed_or_late(&self, class: MethodClass) {
        if class == MethodClass::Lists {
            self.listed_or_late.send_if_modified(|done| !std::mem::replace(done, true));
        }
    }

    /// Tells whether the backend answered this method with `Unimplemented` over the current connection.
    pub fn is_unimplemented(&self, method: &Method) -> bool {
        self.answers.borrow().unimplemented & bit(method) != 0
    }

    /// Records that the backend does not have this method.
    pub fn record_unimplemented(&self, method: &Method) {
        self.answers.send_modify(|answers| answers.unimplemented |= bit(method));
    }

    /// Records that the backend answered this method, which crimux calls once for each connection.
    pub fn record_answer(&self, method: &Method) {
        self.answers.send_if_modified(|answers| {
            let before = answers.answered;
            answers.answered |= bit(method);
            answers.answered != before
        });
    }

    /// Tells whether the backend answered this method over the current connection.
    pub fn has_answered(&self, method: &Method) -> bool {
        self.answers.borrow().answered & bit(method) != 0
    }

    /// Completes once the backend answered this method over the current connection, also with
    /// `Unimplemented`.
    pub async fn wait_for_answer(&self, method: &Method) {
        let bit = bit(method);
        // The sender lives as long as this.
        self.answers
            .subscribe()
            .wait_for(|answers| (answers.answered | answers.unimplemented) & bit != 0)
            .await
            .ok();
    }

    /// Forgets all of the last connection, because a new connection may be to another version of the runtime.
    pub fn reset(&self) {
        self.listed_or_late.send_replace(false);
        self.answers.send_replace(Answered::default());
        let mut inner = self.inner();
        (inner.late, inner.last_late) = Default::default();
        inner.late_objects.clear();
        inner.connection += 1;
    }

    /// Returns the number of the current connection.
    pub fn connection(&self) -> u64 {
        self.inner().connection
    }

    /// Begins a refresh of this class, and returns the number of the connection; `None` if one is in flight
    /// over the current connection already. A refresh over an earlier connection does not count.
    pub(super) fn begin_refresh(&self, class: MethodClass) -> Option<u64> {
        let mut inner = self.inner();
        let connection = inner.connection;
        let before = inner.refreshing[class as usize].replace(connection);
        (before != Some(connection)).then_some(connection)
    }

    /// Ends the refresh that began over this connection.
    pub(super) fn end_refresh(&self, class: MethodClass, connection: u64) {
        self.inner().refreshing[class as usize].take_if(|of| *of == connection);
    }

    /// Tells whether this object is late while the backend is not.
    pub fn is_object_late(&self, id: &str) -> bool {
        let inner = self.inner();
        !inner.late_objects.is_empty() && inner.late_objects.contains(id)
    }

    /// Records that a read of this object outlasted its deadline. Returns false if it was late already, or if
    /// 64 objects are.
    pub fn mark_object_late(&self, id: &str) -> bool {
        let mut inner = self.inner();
        inner.late_objects.len() < MAX_LATE_OBJECTS && inner.late_objects.insert(id.into())
    }

    /// Ends the lateness of an object, because a read of it was answered.
    pub fn end_object_lateness(&self, id: &str) {
        self.inner().late_objects.remove(id);
    }

    /// Records an error.
    pub fn record_error(&self, text: impl Into<Arc<str>>) {
        self.inner().last_error = Some(LastError { at: SystemTime::now(), text: text.into() });
    }

    /// Returns the last error.
    pub fn last_error(&self) -> Option<LastError> {
        self.inner().last_error.clone()
    }
}
