//! What is known of a backend's health beside its connection: what is late, since when, and the last error.
//!
//! A kind of list is late once a call outlasted its own deadline; stats and images never make sandboxes late.
//! While it is late, answers come from last-known state and one refresh stays in flight, whose answer,
//! however late, ends the lateness. The pair of sandbox and container lists is treated the same when it fails
//! in another way, so that both of the pair are of one moment: live again only once both were listed. Learnt
//! from real calls only.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use tokio::sync::watch;

use crate::method::{self, Answer, List, Method, Route};

/// The state that operators see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Added while state exists; not listed yet, so left out of lists.
    Joining,
    /// Everything in time.
    Ready,
    /// Reachable, but something outlasted its deadline, or could not be listed.
    Late,
    /// Not reachable.
    Down,
    /// Ready, and takes no new sandboxes.
    Draining,
}

impl State {
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

/// What lateness is kept for, each by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Class {
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
    /// The status reads, and those of stats.
    Reads,
    /// `Status`, by which kubelet judges the node.
    Status,
    /// `RuntimeConfig`.
    RuntimeConfig,
}

const CLASSES: usize = Class::RuntimeConfig as usize + 1;
/// How many objects are known to hang, at most; reads of others wait until their deadline each time.
const MAX_LATE_OBJECTS: usize = 64;
/// Every class, in the order of its values.
const ALL_CLASSES: [Class; CLASSES] = [
    Class::Lists,
    Class::Images,
    Class::ContainerStats,
    Class::SandboxStats,
    Class::Metrics,
    Class::Filesystems,
    Class::Reads,
    Class::Status,
    Class::RuntimeConfig,
];

impl Class {
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

    /// Returns the class of a method.
    pub fn of(method: &Method) -> Self {
        match method.route {
            Route::FanOut(list) | Route::StreamList(list) => Self::of_list(list),
            Route::Local(Answer::RuntimeConfig) => Self::RuntimeConfig,
            Route::Local(_) => Self::Status,
            _ => Self::Reads,
        }
    }
}

/// An error and when it came.
#[derive(Debug, Clone)]
pub struct LastError {
    /// When.
    pub at: SystemTime,
    /// What, without any contents of messages.
    pub text: Arc<str>,
}

#[derive(Debug, Default)]
struct Inner {
    late: [Option<SystemTime>; CLASSES],
    /// The connection over which each class is being refreshed.
    refreshing: [Option<u64>; CLASSES],
    /// How many connections there have been.
    connection: u64,
    /// IDs whose reads outlasted their deadline while the backend answered others.
    late_objects: HashSet<Box<str>>,
    silent: Option<Instant>,
    last_error: Option<LastError>,
}

/// What the backend said over the present connection, one bit for each row of the method table.
#[derive(Debug, Default, Clone, Copy)]
struct Said {
    /// Methods that it answered.
    answered: u64,
    /// Methods that it does not have.
    lacking: u64,
}

fn bit(method: &Method) -> u64 {
    1 << method.index
}

/// The health of one backend.
#[derive(Debug, Default)]
pub struct Health {
    inner: Mutex<Inner>,
    /// Whether the pair was listed over the present connection, or was found late.
    settled: watch::Sender<bool>,
    said: watch::Sender<Said>,
}

const _: () = assert!(method::COUNT <= u64::BITS as usize, "one bit for each row");

impl Health {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whether this class is late.
    pub fn is_late(&self, class: Class) -> bool {
        self.late(class).is_some()
    }

    /// Returns since when this class is late.
    pub fn late(&self, class: Class) -> Option<SystemTime> {
        self.inner().late[class as usize]
    }

    /// Returns the classes that are late, each with the time since when.
    pub fn late_classes(&self) -> Vec<(Class, SystemTime)> {
        let inner = self.inner();
        let late = ALL_CLASSES.into_iter().zip(inner.late);
        late.filter_map(|(class, since)| Some((class, since?))).collect()
    }

    /// Returns the classes of which a refresh is in flight.
    pub fn refreshing(&self) -> Vec<Class> {
        let inner = self.inner();
        ALL_CLASSES
            .into_iter()
            .zip(inner.refreshing)
            .filter(|(_, connection)| connection.is_some())
            .map(|(class, _)| class)
            .collect()
    }

    /// Returns since when anything is late.
    pub fn late_since(&self) -> Option<SystemTime> {
        self.inner().late.iter().flatten().min().copied()
    }

    /// Records that a call of this class outlasted its deadline. Returns whether that is news.
    pub fn mark_late(&self, class: Class) -> bool {
        if class == Class::Status {
            self.mark_silent();
        }
        let late = &mut self.inner().late[class as usize];
        let news = late.is_none();
        late.get_or_insert_with(SystemTime::now);
        self.settle(class);
        news
    }

    /// Records an answer of this class. Returns whether that ended a lateness.
    pub fn mark_answered(&self, class: Class) -> bool {
        let ended = self.inner().late[class as usize].take().is_some();
        self.settle(class);
        ended
    }

    /// Records that `Status` was not answered, or that there is nobody to answer it.
    pub fn mark_silent(&self) {
        self.inner().silent.get_or_insert_with(Instant::now);
    }

    /// Records that `Status` was answered.
    pub fn mark_heard(&self) {
        self.inner().silent = None;
    }

    /// Returns since when the backend could not say how it is; connections that came to nothing do not count.
    /// A step of the wall clock does not change it.
    pub fn silent_since(&self) -> Option<Instant> {
        self.inner().silent
    }

    /// Completes once the pair was listed over the present connection, or was found late.
    pub async fn settled(&self) {
        // The sender lives as long as this.
        self.settled.subscribe().wait_for(|settled| *settled).await.ok();
    }

    fn settle(&self, class: Class) {
        if class == Class::Lists {
            self.settled.send_if_modified(|settled| !std::mem::replace(settled, true));
        }
    }

    /// Tells whether the backend said on this connection that it does not have this method.
    pub fn lacks(&self, method: &Method) -> bool {
        self.said.borrow().lacking & bit(method) != 0
    }

    /// Records that the backend does not have this method.
    pub fn note_lack(&self, method: &Method) {
        self.said.send_modify(|said| said.lacking |= bit(method));
    }

    /// Records that the backend answered this method, which is asked once for each connection.
    pub fn note_answer(&self, method: &Method) {
        self.said.send_if_modified(|said| {
            let before = said.answered;
            said.answered |= bit(method);
            said.answered != before
        });
    }

    /// Tells whether the backend answered this method on this connection.
    pub fn has_answered(&self, method: &Method) -> bool {
        self.said.borrow().answered & bit(method) != 0
    }

    /// Completes once the backend answered this method on this connection, or said that it does not have it.
    pub async fn answered(&self, method: &Method) {
        let bit = bit(method);
        // The sender lives as long as this.
        self.said.subscribe().wait_for(|said| (said.answered | said.lacking) & bit != 0).await.ok();
    }

    /// Forgets all lateness, what was answered and what was lacking: the connection is new, and so may be the
    /// runtime.
    pub fn reset(&self) {
        self.settled.send_replace(false);
        self.said.send_replace(Said::default());
        let mut inner = self.inner();
        inner.late = Default::default();
        inner.late_objects.clear();
        inner.connection += 1;
    }

    /// Returns the number of the present connection.
    pub fn connection(&self) -> u64 {
        self.inner().connection
    }

    /// Takes the place of the one refresh in flight over the present connection, and returns that; `None` if
    /// the place is taken. A refresh over an earlier connection does not hold it.
    pub(super) fn begin_refresh(&self, class: Class) -> Option<u64> {
        let mut inner = self.inner();
        let connection = inner.connection;
        let before = inner.refreshing[class as usize].replace(connection);
        (before != Some(connection)).then_some(connection)
    }

    /// Gives the place of that connection back.
    pub(super) fn end_refresh(&self, class: Class, connection: u64) {
        self.inner().refreshing[class as usize].take_if(|of| *of == connection);
    }

    /// Tells whether reads of this object are not answered in time, while those of others are.
    pub fn is_object_late(&self, id: &str) -> bool {
        let inner = self.inner();
        !inner.late_objects.is_empty() && inner.late_objects.contains(id)
    }

    /// Records that a read of this object outlasted its deadline. Returns whether that is news; false too if
    /// so many hang already that no more are kept.
    pub fn mark_object_late(&self, id: &str) -> bool {
        let mut inner = self.inner();
        inner.late_objects.len() < MAX_LATE_OBJECTS && inner.late_objects.insert(id.into())
    }

    /// Records that a read of this object was answered.
    pub fn mark_object_answered(&self, id: &str) {
        self.inner().late_objects.remove(id);
    }

    /// Records an error.
    pub fn note_error(&self, text: impl Into<Arc<str>>) {
        self.inner().last_error = Some(LastError { at: SystemTime::now(), text: text.into() });
    }

    /// Returns the last error.
    pub fn last_error(&self) -> Option<LastError> {
        self.inner().last_error.clone()
    }
}
