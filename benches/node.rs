//! What a node pays for crimux: kubelet's calls at kubelet's pace, for 20, 110 and 250 pods.
//!
//! The pace is that of a recorded kubelet 1.36 in a quiet minute, rounded up, with an exec probe for each pod
//! and one container that exits and starts again every five seconds. CPU time and bytes written are counted
//! for [`MEASURED`] and given for a day; the same calls go to a runtime directly meanwhile. Memory is looked
//! at before the first call, and after the restarts of a day without a pause.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::Pid;
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
/// The restarts of a day, which are made without a pause for the memory after a day.
const RESTARTS_A_DAY: usize = 17_280;

/// What a process took in [`MEASURED`], and its memory.
struct Taken {
    /// CPU seconds a day of crimux, of its backend, and of a backend that is called directly.
    cpu: [f64; 3],
    /// Bytes a day written to `state_dir`.
    written: f64,
    /// MiB of crimux: before the first call of kubelet, and after the restarts of a day.
    resident: [f64; 2],
    /// What Prometheus gets after all that: samples, and bytes before compression.
    scrape: [usize; 2],
}

/// Makes kubelet's calls for each size of node, and prints what crimux took.
pub(crate) async fn measure(world: &World) -> Result<()> {
    println!("what a node pays a day, from {} s of kubelet's calls:", MEASURED.as_secs());
    println!(
        "{:>5} {:>9} {:>9} {:>16} {:>16} {:>11} {:>9} {:>15} {:>8} {:>12}",
        "pods",
        "CPU s",
        "of a core",
        "runtime's CPU s",
        "the same, direct",
        "MB written",
        "idle MiB",
        "MiB after a day",
        "samples",
        "scrape bytes"
    );
    for pods in PODS {
        let taken = measure_node(world, pods).await?;
        let [crimux, behind, direct] = taken.cpu;
        let [idle, after] = taken.resident;
        let [samples, bytes] = taken.scrape;
        println!(
            "{pods:>5} {crimux:>9.0} {:>7.2} % {behind:>16.0} {direct:>16.0} {:>11.1} {idle:>9.1} {after:>15.1} \
             {samples:>8} {bytes:>12}",
            crimux / 864.0,
            taken.written / 1e6
        );
    }
    Ok(())
}

/// Measures a node with so many pods beside a runtime with as many that is called directly.
async fn measure_node(world: &World, pods: usize) -> Result<Taken> {
    let stock = Stock::of(pods, pods);
    let mut direct = world.backend(stock).await?;
    let backends = world.backends(1, stock).await?;
    let (dir, socket) = world.crimux_directory(&backends)?;
    let process = world.start_crimux(&dir)?;
    let mut crimux = Contender { name: "crimux".to_owned(), socket, process };
    let processes = [crimux.process.id(), backends[0].process.id(), direct.process.id()];
    let resident =
        || anyhow::Ok(f64::from(u32::try_from(process::memory(processes[0])?.resident >> 10)?) / 1024.0);

    let kubelet = Kubelet::new(&mut crimux, pods).await?;
    let kubelet_direct = Kubelet::new(&mut direct, pods).await?;
    let idle = resident()?;
    tokio::try_join!(kubelet.run(WARM_UP), kubelet_direct.run(WARM_UP))?;
    let (cpu, written) = (cpu_seconds(processes)?, written(&dir).await?);
    tokio::try_join!(kubelet.run(MEASURED), kubelet_direct.run(MEASURED))?;
    let a_day = 86_400.0 / MEASURED.as_secs_f64();
    let now = cpu_seconds(processes)?;
    let cpu = std::array::from_fn(|place| (now[place] - cpu[place]) * a_day);
    let written = (self::written(&dir).await? - written) * a_day;
    for turn in 0..RESTARTS_A_DAY {
        kubelet.restart(turn).await?;
        kubelet.periodic("ListPodSandbox").await?;
        kubelet.periodic("ListContainers").await?;
    }
    let resident = [idle, resident()?];
    let metrics = scrape(&dir).await?;
    let scrape = [metrics.lines().filter(|line| !line.starts_with('#')).count(), metrics.len()];
    let taken = Taken { cpu, written, resident, scrape };
    crimux.process.end().await?;
    Ok(taken)
}

fn cpu_seconds(processes: [Pid; 3]) -> Result<[f64; 3]> {
    let mut seconds = [0.0; 3];
    for (seconds, process) in seconds.iter_mut().zip(processes) {
        *seconds = process::cpu(process)?.as_secs_f64();
    }
    Ok(seconds)
}

fn by_id(sandboxes: Vec<cri::PodSandbox>) -> HashMap<String, cri::PodSandbox> {
    sandboxes.into_iter().map(|sandbox| (sandbox.id.clone(), sandbox)).collect()
}

async fn pull(client: &Client) -> Result<cri::ImageSpec> {
    let image = cri::ImageSpec { image: "app".to_owned(), ..Default::default() };
    let request = cri::PullImageRequest { image: Some(image.clone()), ..Default::default() };
    client.call(&Target::image("PullImage"), framed(&request)).await?;
    Ok(image)
}

/// Reads the metrics over the admin socket.
async fn scrape(dir: &Path) -> Result<String> {
    let mut admin = UnixStream::connect(dir.join("admin.sock")).await?;
    admin.write_all(b"GET /metrics HTTP/1.0\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
    let mut reply = String::new();
    admin.read_to_string(&mut reply).await?;
    let (_, metrics) = reply.split_once("\r\n\r\n").context("no body of a reply to GET /metrics")?;
    Ok(metrics.to_owned())
}

/// Returns `crimux_state_written_bytes_total`.
async fn written(dir: &Path) -> Result<f64> {
    let metrics = scrape(dir).await?;
    let value = metrics.lines().find_map(|line| line.strip_prefix("crimux_state_written_bytes_total "));
    Ok(value.context("no crimux_state_written_bytes_total")?.trim().parse()?)
}

/// The client, with the pods that it calls about.
struct Kubelet {
    client: Client,
    pods: RefCell<Vec<Pod>>,
    /// What its containers run.
    image: cri::ImageSpec,
}

/// A sandbox with its one container.
#[derive(Clone)]
struct Pod {
    sandbox: cri::PodSandbox,
    container: String,
    /// How many times the container was started again; it is the attempt of the next one.
    restarts: u32,
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
        let list = framed(&cri::ListPodSandboxRequest::default());
        let sandboxes = client.fetch(&Target::runtime("ListPodSandbox"), list).await?;
        let mut sandboxes = by_id(cri::ListPodSandboxResponse::decode(sandboxes)?.items);
        let list = framed(&cri::ListContainersRequest::default());
        let containers = client.fetch(&Target::runtime("ListContainers"), list).await?;
        let containers = cri::ListContainersResponse::decode(containers)?.containers;
        let pods = containers.into_iter().map(|container| {
            let sandbox =
                sandboxes.remove(&container.pod_sandbox_id).context("a sandbox has not one container")?;
            Ok(Pod { sandbox, container: container.id, restarts: 0 })
        });
        let pods = RefCell::new(pods.collect::<Result<_>>()?);
        let image = pull(&client).await?;
        Ok(Self { client, pods, image })
    }

    /// Makes the calls one after the other, each when it is due, for so long.
    async fn run(&self, time: Duration) -> Result<()> {
        let started = Instant::now();
        let timer = |period: f64, what| Timer { due: started, period: Duration::from_secs_f64(period), what };
        let mut timers: Vec<_> = PERIODIC.map(|(method, period)| timer(period, Job::Periodic(method))).into();
        let pods = u32::try_from(self.pods.borrow().len())?;
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

    fn pod(&self, turn: usize) -> (usize, Pod) {
        let pods = self.pods.borrow();
        let place = turn % pods.len();
        (place, pods[place].clone())
    }

    async fn probe(&self, turn: usize) -> Result<()> {
        let container_id = self.pod(turn).1.container;
        let request = cri::ExecSyncRequest { container_id, cmd: vec!["true".to_owned()], timeout: 1 };
        self.client.call(&Target::runtime("ExecSync"), framed(&request)).await.map(drop)
    }

    /// A container exits; kubelet sees it, starts another in its sandbox and removes the old one.
    async fn restart(&self, turn: usize) -> Result<()> {
        let (place, Pod { sandbox, container: container_id, restarts }) = self.pod(turn);
        self.status(&sandbox.id, &container_id).await?;
        let stop = cri::StopContainerRequest { container_id: container_id.clone(), timeout: 0 };
        self.client.call(&Target::runtime("StopContainer"), framed(&stop)).await?;
        self.status(&sandbox.id, &container_id).await?;
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "c".to_owned(), attempt: restarts + 1 }),
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
        self.pods.borrow_mut()[place] = Pod { sandbox, container: created, restarts: restarts + 1 };
        Ok(())
    }

    async fn status(&self, sandbox: &str, container: &str) -> Result<()> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: sandbox.to_owned(), verbose: false };
        self.client.call(&Target::runtime("PodSandboxStatus"), framed(&request)).await?;
        let request = cri::ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        self.client.call(&Target::runtime("ContainerStatus"), framed(&request)).await.map(drop)
    }
}
