//! Memory and start: how much crimux holds idle and with a large node known, and how soon it serves.
//!
//! The start is timed with saved state, from the start of the process to the reply to the first list of all
//! sandboxes: that is when kubelet has its runtime back.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use prost::Message as _;
use testkit::cri;

use crate::Effort;
use crate::case::median;
use crate::client::{Client, PATIENCE, Target, framed};
use crate::fleet::{Contender, Stock, World};
use crate::plan;
use crate::process::{self, Memory};

/// What the node has whose memory is measured, over eight backends.
const LARGE: Stock = Stock::of(500, 5000);
/// What the node has whose start is timed, at one backend.
const STARTED: Stock = Stock::of(500, 1000);
/// What the node has whose events are made from its lists, at one backend without an event stream: kubelet's
/// limit.
const COMPARED: Stock = Stock::of(110, 110);
/// How long its CPU time is counted.
const COUNTED: Duration = Duration::from_secs(5);
/// How long crimux is left alone before its memory is read.
const SETTLED: Duration = Duration::from_secs(1);

/// What was found.
#[derive(Debug, Clone)]
pub(crate) struct Footprint {
    /// Resident bytes of each contender with one empty backend, idle.
    pub(crate) idle: Vec<(String, Memory)>,
    /// With eight backends and 5000 containers, lists and statuses known.
    pub(crate) large: Memory,
    /// Milliseconds from the start of the process to the first reply, 500 pods in saved state.
    pub(crate) start: f64,
    /// Milliseconds, likewise, with the saved state of the large node.
    pub(crate) start_large: f64,
    /// Milliseconds of CPU time a second, 110 pods on a backend without an event stream: while nobody
    /// listens, and while one client does.
    pub(crate) events: [f64; 2],
}

/// Measures it all.
pub(crate) async fn measure(world: &World, effort: Effort) -> Result<Footprint> {
    let idle = idle(world).await?;
    let backends = world.backends(8, LARGE).await?;
    let (dir, socket) = world.crimux_directory(&backends)?;
    let large = large(world, &dir, &socket).await?;
    let start_large = start(world, &dir, &socket, LARGE, effort).await?;
    drop(backends);
    let backends = world.backends(1, STARTED).await?;
    let (dir, socket) = world.crimux_directory(&backends)?;
    let start = start(world, &dir, &socket, STARTED, effort).await?;
    let events = events(world).await?;
    Ok(Footprint { idle, large, start, start_large, events })
}

/// Returns the milliseconds of CPU time that crimux takes a second without and with a client of its events.
async fn events(world: &World) -> Result<[f64; 2]> {
    let backends = world.backends(1, COMPARED).await?;
    let crimux = world.crimux(&backends, COMPARED.containers).await?;
    let client = Client::connect(&crimux.socket).await?;
    let counted = async || {
        tokio::time::sleep(SETTLED).await;
        let before = process::cpu(crimux.process.id())?;
        tokio::time::sleep(COUNTED).await;
        let taken = process::cpu(crimux.process.id())?.saturating_sub(before);
        anyhow::Ok(taken.as_secs_f64() * 1e3 / COUNTED.as_secs_f64())
    };
    let quiet = counted().await?;
    let request = framed(&cri::GetEventsRequest {});
    let stream = client.open(&Target::runtime("GetContainerEvents"), request).await?;
    let listened = counted().await?;
    drop(stream);
    Ok([quiet, listened])
}

async fn idle(world: &World) -> Result<Vec<(String, Memory)>> {
    let backends = world.backends(1, Stock::default()).await?;
    let mut contenders = vec![world.crimux(&backends, 0).await?];
    contenders.extend(world.peers(&backends[0], 0).await);
    tokio::time::sleep(SETTLED).await;
    let memory =
        |contender: &Contender| Ok((contender.name.clone(), process::memory(contender.process.id())?));
    contenders.iter().map(memory).collect()
}

/// Lets crimux know everything about a large node, and ends it.
async fn large(world: &World, dir: &Path, socket: &Path) -> Result<Memory> {
    let process = world.start_crimux(dir)?;
    let name = "crimux".to_owned();
    let crimux = Contender { name, socket: socket.to_owned(), process };
    until_listed(socket, LARGE.sandboxes).await?;
    let client = Client::connect(socket).await?;
    let list = framed(&cri::ListContainersRequest::default());
    let status = Target::runtime("ContainerStatus");
    // Twice: kubelet does not stop after the first time.
    for _ in 0..2 {
        let sandboxes = sandboxes(&client).await?;
        client.fetch(&Target::runtime("ListContainers"), list.clone()).await?;
        for request in plan::statuses(&crimux).await? {
            client.call(&status, request).await?;
        }
        for pod_sandbox_id in sandboxes {
            let request = framed(&cri::PodSandboxStatusRequest { pod_sandbox_id, verbose: false });
            client.call(&Target::runtime("PodSandboxStatus"), request).await?;
        }
    }
    tokio::time::sleep(SETTLED).await;
    let memory = process::memory(crimux.process.id())?;
    crimux.process.end().await?;
    Ok(memory)
}

/// Returns the milliseconds to the first list of all sandboxes, with saved state; the median of some starts.
async fn start(world: &World, dir: &Path, socket: &Path, stock: Stock, effort: Effort) -> Result<f64> {
    let mut times = Vec::new();
    // The first start has no saved state, or warms the caches.
    for round in 0..=effort.starts {
        let started = Instant::now();
        let process = world.start_crimux(dir)?;
        until_listed(socket, stock.sandboxes).await?;
        if round > 0 {
            times.push(started.elapsed().as_secs_f64() * 1e3);
        }
        process.end().await?;
    }
    median(times).context("no start was timed")
}

async fn until_listed(socket: &Path, wanted: usize) -> Result<()> {
    let started = Instant::now();
    loop {
        let listing = async { sandboxes(&Client::connect(socket).await?).await };
        match listing.await {
            Ok(listed) if listed.len() == wanted => return Ok(()),
            other => {
                ensure!(started.elapsed() < PATIENCE, "it lists {:?} sandboxes", other.map(|ids| ids.len()));
            }
        }
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
}

async fn sandboxes(client: &Client) -> Result<Vec<String>> {
    let request = framed(&cri::ListPodSandboxRequest::default());
    let reply = client.fetch(&Target::runtime("ListPodSandbox"), request).await?;
    let listed = cri::ListPodSandboxResponse::decode(reply)?.items;
    Ok(listed.into_iter().map(|sandbox| sandbox.id).collect())
}
