//! Which cases there are, on which backends they run, and who takes part.
//!
//! Cases that share backends form a group: its processes live as long as the group is measured, and no
//! longer.

use anyhow::{Context, Result};
use bytes::Bytes;
use prost::Message as _;
use testkit::cri;

use crate::Effort;
use crate::case::{Entry, Measured, measure};
use crate::client::{Client, Target, framed};
use crate::fleet::{Contender, Stock, World};
use crate::load::Load;

/// Cases on one set of backends.
#[derive(Debug)]
pub(crate) struct Group {
    /// The cases in the order of the table.
    pub(crate) cases: &'static [&'static str],
    stock: Stock,
    /// Over how many backends the same stock is spread for the fan-out case.
    spread: &'static [usize],
}

/// Backends of a fan-out case; over one for the others to be compared with.
const SPREAD: &[usize] = &[1, 2, 3, 4, 8];

/// All cases.
pub(crate) const GROUPS: &[Group] = &[
    Group {
        cases: &["status-1", "status-16", "list-500", "fan-out-500"],
        stock: Stock::of(250, 500),
        spread: SPREAD,
    },
    Group { cases: &["list-100"], stock: Stock::of(50, 100), spread: &[] },
    Group { cases: &["fan-out-2000"], stock: Stock::of(1000, 2000), spread: SPREAD },
    Group { cases: &["list-5000", "fan-out-5000"], stock: Stock::of(2500, 5000), spread: SPREAD },
    Group { cases: &["fan-out-20000"], stock: Stock::of(10_000, 20_000), spread: SPREAD },
    Group {
        cases: &["list-500-rotated"],
        stock: Stock { rotates: true, ..Stock::of(250, 500) },
        spread: &[],
    },
    Group {
        cases: &["list-5000-rotated", "fan-out-5000-rotated"],
        stock: Stock { rotates: true, ..Stock::of(2500, 5000) },
        spread: SPREAD,
    },
    Group { cases: &["one-pod-110"], stock: Stock::of(110, 110), spread: &[4] },
    Group { cases: &["one-pod-1000"], stock: Stock::of(1000, 1000), spread: &[4] },
    Group { cases: &["run-sandbox"], stock: Stock::of(50, 100), spread: &[] },
    Group { cases: &["events"], stock: Stock { events: true, ..Stock::of(10, 10) }, spread: &[] },
];

/// Says what a case is.
pub(crate) fn describe(case: &str) -> &'static str {
    match case {
        "status-1" => "ContainerStatus, 1 caller",
        "status-16" => "ContainerStatus, 16 callers",
        "list-100" => "ListContainers, 100 from one backend",
        "list-500" => "ListContainers, 500 from one backend",
        "list-5000" => "ListContainers, 5000 from one backend",
        "list-500-rotated" => "ListContainers, 500 from one backend, each time in another order",
        "list-5000-rotated" => "ListContainers, 5000 from one backend, each time in another order",
        "fan-out-500" => "ListContainers, 500 from several backends",
        "fan-out-2000" => "ListContainers, 2000 from several backends",
        "fan-out-5000" => "ListContainers, 5000 from several backends",
        "fan-out-20000" => "ListContainers, 20000 from several backends",
        "fan-out-5000-rotated" => "ListContainers, 5000 from several backends, each time in another order",
        "one-pod-110" => "ListContainers of one pod, 110 on several backends",
        "one-pod-1000" => "ListContainers of one pod, 1000 on several backends",
        "run-sandbox" => "RunPodSandbox to reply (calls/s and CPU: with RemovePodSandbox)",
        "events" => "GetContainerEvents (times: from a pod asked for to its first event)",
        _ => "",
    }
}

/// Measures the cases of a group that are wanted. After a case that fails the next one gets new processes.
pub(crate) async fn run(
    group: &Group,
    world: &World,
    only: &str,
    effort: Effort,
) -> Vec<(&'static str, Result<Measured>)> {
    let mut all = Vec::new();
    let mut running = None;
    for &case in group.cases.iter().filter(|case| case.contains(only)) {
        eprintln!("bench: {case}: {}", describe(case));
        let measuring = async {
            let everybody = match running.take() {
                Some(everybody) => everybody,
                None => Everybody::start(world, group.stock).await?,
            };
            let measured = everybody.measure(case, world, group, effort).await?;
            running = Some(everybody);
            Ok(measured)
        };
        let measured: Result<Measured> = measuring.await;
        if let Err(error) = &measured {
            eprintln!("bench: {case} FAILED: {error:#}");
        }
        all.push((case, measured));
    }
    all
}

/// One backend, and everybody who stands in front of it.
struct Everybody {
    backend: Contender,
    proxies: Vec<Contender>,
}

impl Everybody {
    async fn start(world: &World, stock: Stock) -> Result<Self> {
        let backend = world.backend(stock).await?;
        let mut proxies = vec![world.crimux(std::slice::from_ref(&backend), stock.containers).await?];
        proxies.extend(world.peers(&backend, stock.containers).await);
        Ok(Self { backend, proxies })
    }

    async fn measure(
        &self,
        case: &'static str,
        world: &World,
        group: &Group,
        effort: Effort,
    ) -> Result<Measured> {
        let same_bytes = !group.stock.rotates;
        let direct = Entry { process: None, ..entry(&self.backend, "direct", same_bytes) };
        let load = load(case, &self.backend).await?;
        if case.starts_with("one-pod") {
            let spread = Spread::start(world, group).await?;
            let (load, entries) = spread.of_one_pod().await?;
            return measure(case, &entries, &load, effort).await;
        }
        if case.starts_with("fan-out") {
            let spread = Spread::start(world, group).await?;
            let entries: Vec<_> = std::iter::once(direct).chain(spread.entries()).collect();
            return measure(case, &entries, &load, effort).await;
        }
        let proxies = self.proxies.iter().map(|proxy| entry(proxy, &proxy.name, same_bytes));
        let entries: Vec<_> = std::iter::once(direct).chain(proxies).collect();
        measure(case, &entries, &load, effort).await
    }
}

/// Several crimuxes by name, each in front of its own backends.
struct Spread(Vec<(String, Contender, Vec<Contender>)>);

impl Spread {
    async fn start(world: &World, group: &Group) -> Result<Self> {
        let mut spread = Vec::new();
        for &count in group.spread {
            let backends = world.backends(count, group.stock).await?;
            let crimux = world.crimux(&backends, group.stock.containers).await?;
            spread.push((format!("crimux over {count}"), crimux, backends));
        }
        Ok(Self(spread))
    }

    /// Returns lists of single pods of the first backend, and who is asked: that backend, and the first
    /// crimux.
    async fn of_one_pod(&self) -> Result<(Load, Vec<Entry>)> {
        let (name, crimux, backends) = self.0.first().context("no backends")?;
        let direct = Entry { process: None, ..entry(&backends[0], "direct", true) };
        let messages = lists_of_one_pod(&backends[0]).await?;
        let load = Load::Calls { method: "ListContainers", messages, callers: 1 };
        Ok((load, vec![direct, entry(crimux, name, true)]))
    }

    fn entries(&self) -> impl Iterator<Item = Entry> {
        self.0.iter().map(|(name, crimux, _)| entry(crimux, name, false))
    }
}

fn entry(contender: &Contender, name: &str, same_bytes: bool) -> Entry {
    Entry {
        name: name.to_owned(),
        socket: contender.socket.clone(),
        process: Some(contender.process.id()),
        same_bytes,
    }
}

/// Returns what the backend of a case has at the start; `None` for a case over several backends or without a
/// row in [`GROUPS`].
pub(crate) fn stock_of(case: &str) -> Option<Stock> {
    let is_of_one = !case.starts_with("fan-out") && !case.starts_with("one-pod");
    GROUPS.iter().find(|group| is_of_one && group.cases.contains(&case)).map(|group| group.stock)
}

/// Prepares the load of a case.
pub(crate) async fn load(case: &str, backend: &Contender) -> Result<Load> {
    Ok(match case {
        "run-sandbox" => Load::Sandboxes,
        "events" => Load::Events,
        "status-1" | "status-16" => Load::Calls {
            method: "ContainerStatus",
            messages: statuses(backend).await?,
            callers: if case == "status-16" { 16 } else { 1 },
        },
        _ => Load::Calls {
            method: "ListContainers",
            messages: vec![framed(&cri::ListContainersRequest::default())],
            callers: 1,
        },
    })
}

/// Returns a request for the containers of each sandbox of a runtime.
async fn lists_of_one_pod(backend: &Contender) -> Result<Vec<Bytes>> {
    let request = |container: cri::Container| {
        let pod_sandbox_id = container.pod_sandbox_id;
        let filter = cri::ContainerFilter { pod_sandbox_id, ..Default::default() };
        framed(&cri::ListContainersRequest { filter: Some(filter) })
    };
    Ok(containers(backend).await?.into_iter().map(request).collect())
}

/// Returns a request for the status of every container of a runtime, reached directly or through a proxy.
pub(crate) async fn statuses(backend: &Contender) -> Result<Vec<Bytes>> {
    let request = |container: cri::Container| {
        framed(&cri::ContainerStatusRequest { container_id: container.id, verbose: false })
    };
    Ok(containers(backend).await?.into_iter().map(request).collect())
}

async fn containers(backend: &Contender) -> Result<Vec<cri::Container>> {
    let client = Client::connect(&backend.socket).await?;
    let request = framed(&cri::ListContainersRequest::default());
    let reply = client.fetch(&Target::runtime("ListContainers"), request).await.context("no list")?;
    Ok(cri::ListContainersResponse::decode(reply)?.containers)
}
