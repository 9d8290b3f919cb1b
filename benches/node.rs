//! What a node pays for crimux: kubelet's calls at kubelet's pace, for 20, 110 and 250 pods.
//!
//! The pace is that of a recorded kubelet 1.36 in a quiet minute, rounded up, with an exec probe for each pod
//! and one container that exits and starts again every five seconds. CPU time and bytes written are counted
//! for [`MEASURED`] and given for a day.

use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use prost::Message as _;
use testkit::cri;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::Instant;

use crate::client::{Client, Target, framed};
use crate::fleet::{Contender, Stock, World};
use crate::process;

/// How many pods the node has; each has one container.
const PODS: [usize; 3] = [20, 110, 250];
/// How long kubelet's calls are made before anything is counted.
const WARM_UP: Duration = Duration::from_secs(10);
/// How long CPU time and written bytes are counted.
const MEASURED: Duration = Duration::from_secs(60);
/// Seconds between two calls of kubelet, for the calls that it makes again and again.
const PERIODIC: [(&str, f64); 6] = [
    ("ListPodSandbox", 0.65),
    ("ListContainers", 0.6),
    ("Status", 5.0),
    ("Version", 10.0),
    ("ImageFsInfo", 10.0),
    ("ListImages", 30.0),
];
/// Seconds between two runs of a pod's exec probe.
const PROBE: f64 = 10.0;
/// Seconds between two containers that exit and start again.
const RESTART: f64 = 5.0;

/// Makes kubelet's calls for each size of node, and prints what crimux took.
pub(crate) async fn measure(world: &World) -> Result<()> {
    println!("what a node pays, from {} s of kubelet's calls:", MEASURED.as_secs());
    println!(
        "{:>6} {:>14} {:>10} {:>14} {:>10}",
        "pods", "CPU s a day", "of a core", "MB written/day", "RSS MiB"
    );
    for pods in PODS {
        let stock = Stock { sandboxes: pods, containers: pods, events: false };
        let backends = world.backends(1, stock).await?;
        let (dir, socket) = world.crimux_directory(&backends)?;
        let process = world.start_crimux(&dir)?;
        let mut crimux = Contender { name: "crimux".to_owned(), socket, process };
        let kubelet = Kubelet::new(&mut crimux, pods).await?;
        kubelet.run(WARM_UP).await?;
        let (cpu, written) = (process::cpu(crimux.process.id())?, written(&dir).await?);
        kubelet.run(MEASURED).await?;
        let cpu = process::cpu(crimux.process.id())?.saturating_sub(cpu).as_secs_f64();
        let written = self::written(&dir).await? - written;
        let a_day = 86_400.0 / MEASURED.as_secs_f64();
        let resident = process::memory(crimux.process.id())?.resident >> 10;
        println!(
            "{pods:>6} {:>14.0} {:>8.2} % {:>14.1} {:>10.1}",
            cpu * a_day,
            cpu / MEASURED.as_secs_f64() * 100.0,
            written * a_day / 1e6,
            f64::from(u32::try_from(resident)?) / 1024.0
        );
        crimux.process.end().await?;
    }
    Ok(())
}

async fn pull(client: &Client) -> Result<cri::ImageSpec> {
    let image = cri::ImageSpec { image: "app".to_owned(), ..Default::default() };
    let request = cri::PullImageRequest { image: Some(image.clone()), ..Default::default() };
    client.call(&Target::image("PullImage"), framed(&request)).await?;
    Ok(image)
}

/// Reads `crimux_state_written_bytes_total` over the admin socket.
async fn written(dir: &Path) -> Result<f64> {
    let mut admin = UnixStream::connect(dir.join("admin.sock")).await?;
    admin.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
    let mut reply = String::new();
    admin.read_to_string(&mut reply).await?;
    let value = reply.lines().find_map(|line| line.strip_prefix("crimux_state_written_bytes_total "));
    Ok(value.context("no crimux_state_written_bytes_total")?.trim().parse()?)
}

/// The client, with the objects that it calls about.
struct Kubelet {
    client: Client,
    sandboxes: Vec<cri::PodSandbox>,
    containers: Cell<Vec<String>>,
    /// What its containers run.
    image: cri::ImageSpec,
    /// Counts containers that were started again; it is their attempt.
    restarts: Cell<u32>,
}

/// A call that is made again and again.
struct Timer {
    due: Instant,
    period: Duration,
    what: Job,
}

#[derive(Clone, Copy)]
enum Job {
    Periodic(&'static str),
    Probe,
    Restart,
}

impl Kubelet {
    async fn new(crimux: &mut Contender, pods: usize) -> Result<Self> {
        let client = crimux.connect_listing(pods).await?;
        let sandboxes = framed(&cri::ListPodSandboxRequest::default());
        let sandboxes = client.fetch(&Target::runtime("ListPodSandbox"), sandboxes).await?;
        let sandboxes = cri::ListPodSandboxResponse::decode(sandboxes)?.items;
        let containers = framed(&cri::ListContainersRequest::default());
        let containers = client.fetch(&Target::runtime("ListContainers"), containers).await?;
        let containers = cri::ListContainersResponse::decode(containers)?.containers;
        let image = pull(&client).await?;
        let containers = Cell::new(containers.into_iter().map(|container| container.id).collect());
        Ok(Self { client, sandboxes, containers, image, restarts: Cell::new(0) })
    }

    /// Makes the calls one after the other, each when it is due, for so long.
    async fn run(&self, time: Duration) -> Result<()> {
        let started = Instant::now();
        let timer = |period: f64, what| Timer { due: started, period: Duration::from_secs_f64(period), what };
        let mut timers: Vec<_> = PERIODIC.map(|(method, period)| timer(period, Job::Periodic(method))).into();
        let pods = u32::try_from(self.sandboxes.len())?;
        timers.push(timer(PROBE / f64::from(pods), Job::Probe));
        timers.push(timer(RESTART, Job::Restart));
        let mut turn = 0;
        while started.elapsed() < time {
            let next = timers.iter_mut().min_by_key(|timer| timer.due).context("no timers")?;
            tokio::time::sleep_until(next.due).await;
            next.due += next.period;
            turn += 1;
            match next.what {
                Job::Periodic(method) => self.periodic(method).await?,
                Job::Probe => self.probe(turn).await?,
                Job::Restart => self.restart(turn).await?,
            }
        }
        Ok(())
    }

    async fn periodic(&self, method: &str) -> Result<()> {
        let target = match method {
            "ImageFsInfo" | "ListImages" => Target::image(method),
            _ => Target::runtime(method),
        };
        // All of them have only optional fields.
        self.client.call(&target, framed(&cri::StatusRequest::default())).await.map(drop)
    }

    async fn probe(&self, turn: usize) -> Result<()> {
        let containers = self.containers.take();
        let container_id = containers[turn % containers.len()].clone();
        self.containers.set(containers);
        let request = cri::ExecSyncRequest { container_id, cmd: vec!["true".to_owned()], timeout: 1 };
        self.client.call(&Target::runtime("ExecSync"), framed(&request)).await.map(drop)
    }

    /// A container exits; kubelet sees it, starts another in its sandbox and removes the old one.
    async fn restart(&self, turn: usize) -> Result<()> {
        self.restarts.set(self.restarts.get() + 1);
        let mut containers = self.containers.take();
        let index = turn % containers.len();
        let container_id = containers[index].clone();
        let sandbox = &self.sandboxes[index];
        self.status(&sandbox.id, &container_id).await?;
        let stop = cri::StopContainerRequest { container_id: container_id.clone(), timeout: 0 };
        self.client.call(&Target::runtime("StopContainer"), framed(&stop)).await?;
        self.status(&sandbox.id, &container_id).await?;
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "c".to_owned(), attempt: self.restarts.get() }),
            image: Some(self.image.clone()),
            ..Default::default()
        };
        let create = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(cri::PodSandboxConfig {
                metadata: sandbox.metadata.clone(),
                ..Default::default()
            }),
        };
        let created = self.client.fetch(&Target::runtime("CreateContainer"), framed(&create)).await?;
        let created = cri::CreateContainerResponse::decode(created)?.container_id;
        let start = cri::StartContainerRequest { container_id: created.clone() };
        self.client.call(&Target::runtime("StartContainer"), framed(&start)).await?;
        self.status(&sandbox.id, &created).await?;
        let remove = cri::RemoveContainerRequest { container_id };
        self.client.call(&Target::runtime("RemoveContainer"), framed(&remove)).await?;
        containers[index] = created;
        self.containers.set(containers);
        Ok(())
    }

    async fn status(&self, sandbox: &str, container: &str) -> Result<()> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: sandbox.to_owned(), verbose: false };
        self.client.call(&Target::runtime("PodSandboxStatus"), framed(&request)).await?;
        let request = cri::ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        self.client.call(&Target::runtime("ContainerStatus"), framed(&request)).await.map(drop)
    }
}
