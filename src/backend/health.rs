//! What is known of a backend's health beside its connection: what is late, since when, and the last error.
//!
//! A kind of list is late once a call outlasted its own deadline; stats and images never make sandboxes late.
//! While it is late, answers come from last-known state and one refresh stays in flight, whose answer, however
//! late, ends the lateness. The pair of sandbox and container lists is treated the same when it fails in another
//! way, so that both of the pair are of one moment: live again only once both were listed. Learnt from real
//! calls only.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

use crate::method::{self, List, Method, Route};

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
}

const CLASSES: usize = 8;

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
    refreshing: [bool; CLASSES],
    silent: Option<SystemTime>,
    last_error: Option<LastError>,
}

/// The health of one backend.
#[derive(Debug, Default)]
pub struct Health {
    inner: Mutex<Inner>,
    /// Whether the pair was listed over the present connection, or was found late.
    settled: watch::Sender<bool>,
    /// The methods that the backend said it does not have, one bit for each row of the table.
    lacking: AtomicU64,
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
        self.inner().silent.get_or_insert_with(SystemTime::now);
    }

    /// Records that `Status` was answered.
    pub fn mark_heard(&self) {
        self.inner().silent = None;
    }

    /// Returns since when the backend could not say how it is; connections that came to nothing do not count.
    pub fn silent_since(&self) -> Option<SystemTime> {
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
        self.lacking.load(Ordering::Relaxed) & (1 << method.index) != 0
    }

    /// Records that the backend does not have this method.
    pub fn note_lack(&self, method: &Method) {
        self.lacking.fetch_or(1 << method.index, Ordering::Relaxed);
    }

    /// Forgets all lateness and what was lacking: the connection is new, and so may be the runtime.
    pub fn reset(&self) {
        self.settled.send_replace(false);
        self.lacking.store(0, Ordering::Relaxed);
        self.inner().late = Default::default();
    }

    /// Takes the place of the one refresh in flight; false if it is taken.
    pub(super) fn begin_refresh(&self, class: Class) -> bool {
        !std::mem::replace(&mut self.inner().refreshing[class as usize], true)
    }

    /// Gives that place back.
    pub(super) fn end_refresh(&self, class: Class) {
        self.inner().refreshing[class as usize] = false;
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
