//! What is done to a contender in one slice of a round, and how long each piece of it took.
//!
//! Messages are encoded outside the timed part. A slice ends by time, never by count, so that a slow
//! contender does not prolong the run.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::future::try_join_all;
use h2::RecvStream;
use prost::Message as _;
use testkit::client::sandbox_config;
use testkit::cri;
use tokio::sync::Notify;

use crate::case::Sample;
use crate::client::{Client, PATIENCE, Target, check, framed, next_chunk};

/// Pods under way at once while events are made.
const PODS_AT_ONCE: usize = 4;
/// Events that may be on their way while more pods are made. A client that leaves `events.buffer` (1000)
/// events unread loses its stream, and a proxy that gets no processor for a moment finds all of them at once.
const LEAD: usize = 500;
/// Events of one sandbox from its creation to its removal.
const EVENTS_OF_A_POD: usize = 4;

/// What is done.
#[derive(Debug, Clone)]
pub(crate) enum Load {
    /// Unary calls of `method` with these messages in turn, by so many callers on one connection.
    Calls {
        /// The method.
        method: &'static str,
        /// Framed requests.
        messages: Vec<Bytes>,
        /// How many calls are in flight.
        callers: usize,
    },
    /// `RunPodSandbox`, timed, and `RemovePodSandbox`, not timed.
    Sandboxes,
    /// An event stream, while pods come and go at the backend itself.
    Events,
}

thread_local! {
    /// Counts pods, whose names must be new.
    static PODS: Cell<usize> = const { Cell::new(0) };
}

impl Load {
    /// Does it for so long. `backend` is the backend itself.
    pub(crate) async fn run(&self, client: &Client, backend: &Client, slice: Duration) -> Result<Sample> {
        let limit = slice + PATIENCE;
        let running = async {
            match self {
                Self::Calls { method, messages, callers } => {
                    calls(client, &Target::runtime(method), messages, *callers, slice).await
                }
                Self::Sandboxes => sandboxes(client, slice).await,
                Self::Events => events(client, backend, slice).await,
            }
        };
        tokio::time::timeout(limit, running).await.context("it hangs")?
    }
}

/// Makes calls until `slice` is over.
async fn calls(
    client: &Client,
    target: &Target,
    messages: &[Bytes],
    callers: usize,
    slice: Duration,
) -> Result<Sample> {
    let next = Cell::new(0);
    let times = RefCell::new(Vec::with_capacity(1 << 14));
    let started = Instant::now();
    let caller = async || {
        while started.elapsed() < slice {
            let message = messages[next.replace(next.get() + 1) % messages.len()].clone();
            let asked = Instant::now();
            client.call(target, message).await?;
            times.borrow_mut().push(asked.elapsed());
        }
        anyhow::Ok(())
    };
    try_join_all((0..callers).map(|_| caller())).await?;
    Ok(Sample::of(times.into_inner(), started.elapsed()))
}

/// Makes so many calls, one after the other; for profiles.
pub(crate) async fn exactly(client: &Client, load: &Load, count: usize) -> Result<()> {
    let Load::Calls { method, messages, .. } = load else { return Ok(()) };
    let target = Target::runtime(method);
    for message in messages.iter().cycle().take(count) {
        client.call(&target, message.clone()).await?;
    }
    Ok(())
}

async fn sandboxes(client: &Client, slice: Duration) -> Result<Sample> {
    let run = Target::runtime("RunPodSandbox");
    let started = Instant::now();
    let mut times = Vec::new();
    while started.elapsed() < slice {
        let request = new_pod();
        let asked = Instant::now();
        let reply = client.fetch(&run, request).await?;
        times.push(asked.elapsed());
        remove(client, reply).await?;
    }
    Ok(Sample::of(times, started.elapsed()))
}

/// Times the way of single events for half of the slice, then lets pods come and go and counts their events.
async fn events(client: &Client, backend: &Client, slice: Duration) -> Result<Sample> {
    let request = framed(&cri::GetEventsRequest {});
    let mut stream = client.open(&Target::runtime("GetContainerEvents"), request).await?;
    settle(backend, &mut stream).await?;
    let mut frames = Frames::default();
    let started = Instant::now();
    let mut times = Vec::new();
    while started.elapsed() < slice / 2 {
        times.push(one_event(backend, &mut stream, &mut frames).await?);
    }
    let singles = times.len() * EVENTS_OF_A_POD;
    let mut sample = Sample::of(times, started.elapsed());
    let started = Instant::now();
    let many = many_events(backend, &mut stream, &mut frames, slice / 2).await?;
    sample.rate = count_as_float(many) / started.elapsed().as_secs_f64();
    sample.count = singles + many;
    Ok(sample)
}

/// Returns the time from asking for a pod at the backend to its first event; ends after its last one.
async fn one_event(backend: &Client, stream: &mut RecvStream, frames: &mut Frames) -> Result<Duration> {
    let (target, request) = (Target::runtime("RunPodSandbox"), new_pod());
    let asked = Instant::now();
    let coming = async {
        let chunk = more_events(stream).await?;
        anyhow::Ok((asked.elapsed(), chunk, stream))
    };
    let (reply, came) = tokio::join!(backend.fetch(&target, request), coming);
    let (time, first, stream) = came?;
    let mut seen = frames.count(&first);
    remove(backend, reply?).await?;
    while seen < EVENTS_OF_A_POD {
        seen += frames.count(&more_events(stream).await?);
    }
    Ok(time)
}

/// Lets pods come and go for so long and returns how many events came of it, all of them.
async fn many_events(
    backend: &Client,
    stream: &mut RecvStream,
    frames: &mut Frames,
    slice: Duration,
) -> Result<usize> {
    let (pods, seen, read) = (Cell::new(0), Cell::new(0), Notify::new());
    let started = Instant::now();
    let maker = async || {
        while started.elapsed() < slice {
            while pods.get() * EVENTS_OF_A_POD > seen.get() + LEAD {
                read.notified().await;
            }
            let id = backend.fetch(&Target::runtime("RunPodSandbox"), new_pod()).await?;
            remove(backend, id).await?;
            pods.set(pods.get() + 1);
        }
        anyhow::Ok(())
    };
    let mut making = pin!(try_join_all((0..PODS_AT_ONCE).map(|_| maker())));
    let mut wanted = None;
    while wanted.is_none_or(|wanted| seen.get() < wanted) {
        tokio::select! {
            made = &mut making, if wanted.is_none() => {
                made?;
                wanted = Some(pods.get() * EVENTS_OF_A_POD);
            }
            chunk = more_events(stream) => {
                seen.set(seen.get() + frames.count(&chunk?));
                read.notify_waiters();
            }
        }
    }
    Ok(seen.get())
}

/// Waits for more of an event stream; its end is an error that says why it ended.
async fn more_events(stream: &mut RecvStream) -> Result<Bytes> {
    if let Some(chunk) = next_chunk(stream).await? {
        return Ok(chunk);
    }
    check(stream.trailers().await?.as_ref())?;
    anyhow::bail!("the event stream ended")
}

/// Makes pods until an event of one arrives, and waits until no more come: a proxy may still be on its way to
/// the backend.
async fn settle(backend: &Client, stream: &mut RecvStream) -> Result<()> {
    let quiet = Duration::from_millis(20);
    for _ in 0..100 {
        let id = backend.fetch(&Target::runtime("RunPodSandbox"), new_pod()).await?;
        remove(backend, id).await?;
        let mut came = false;
        while let Ok(chunk) = tokio::time::timeout(quiet, more_events(stream)).await {
            chunk?;
            came = true;
        }
        if came {
            return Ok(());
        }
    }
    anyhow::bail!("no event came")
}

async fn remove(client: &Client, run_reply: Bytes) -> Result<()> {
    let pod_sandbox_id = cri::RunPodSandboxResponse::decode(run_reply)?.pod_sandbox_id;
    let request = framed(&cri::RemovePodSandboxRequest { pod_sandbox_id });
    client.call(&Target::runtime("RemovePodSandbox"), request).await.map(drop)
}

fn new_pod() -> Bytes {
    let number = PODS.replace(PODS.get() + 1);
    framed(&sandbox_config(&format!("bench-{number}")).run("runc"))
}

/// Returns `count` as a float; what is counted here is far below 2^52.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn count_as_float(count: usize) -> f64 {
    count as f64
}

/// Counts gRPC frames in a stream of chunks that need not end where frames end.
#[derive(Debug, Default)]
struct Frames {
    head: Vec<u8>,
    missing: usize,
}

impl Frames {
    /// Returns how many frames were completed by `chunk`.
    fn count(&mut self, mut chunk: &[u8]) -> usize {
        let mut completed = 0;
        while !chunk.is_empty() {
            if self.missing > 0 {
                let taken = self.missing.min(chunk.len());
                chunk = &chunk[taken..];
                self.missing -= taken;
                completed += usize::from(self.missing == 0);
                continue;
            }
            let taken = (5 - self.head.len()).min(chunk.len());
            self.head.extend_from_slice(&chunk[..taken]);
            chunk = &chunk[taken..];
            if let [_, a, b, c, d] = self.head[..] {
                self.missing = u32::from_be_bytes([a, b, c, d]) as usize;
                self.head.clear();
                completed += usize::from(self.missing == 0);
            }
        }
        completed
    }
}
