//! crimux is killed at any moment of any call, its backends right after it, and forgets nothing it has said.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::Signal;
use testkit::Client;
use testkit::client::sandbox_config;
use testkit::cri::{RemovePodSandboxRequest, StopPodSandboxRequest};
use testkit::runtime::SimRuntime;

use crate::outage::sandboxes;
use crate::support::{Crimux, SOON, config};

/// Most kills; fewer on a slow machine.
const ROUNDS: u64 = 40;
/// The rounds begun by then are the last ones.
const BUDGET: Duration = Duration::from_secs(15);
/// How many clients create and remove at the same time.
const CLIENTS: usize = 4;

/// What clients were told.
#[derive(Debug, Default, Clone)]
struct Model {
    /// Said to be created, and not asked to be removed. What was made without a word is in none of these
    /// until it is removed: a list shows it, but that is written only every few seconds.
    there: BTreeSet<String>,
    /// Removed.
    gone: BTreeSet<String>,
    /// Asked to be removed, without an answer.
    unsure: BTreeSet<String>,
    created: u64,
}

#[tokio::test]
async fn every_acknowledged_create_and_removal_survives_a_kill_at_any_moment() {
    let seed = 4;
    let (a, b) = (SimRuntime::builder("a").start().await, SimRuntime::builder("b").start().await);
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&dir, &[("a", &a), ("b", &b)], "");
    let mut crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    let model = Arc::new(Mutex::new(Model::default()));
    let mut rng = Rng::with_seed(seed);
    // An end in order leaves a first snapshot: a start without any says that it knows nothing, which is no
    // lie.
    crimux.restart().await;
    crimux.wait_ready().await;
    let first = create(&crimux.client(), "first", "a").await.unwrap();
    model.lock().unwrap().there.insert(first.clone());
    testkit::eventually(SOON, async || settled(&crimux).await).await;

    let end = Instant::now() + BUDGET;
    let mut round = 0;
    while round < ROUNDS && Instant::now() < end {
        round += 1;
        let before = model.lock().unwrap().created;
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let rng = rng.fork();
            clients.push(tokio::spawn(churn(
                crimux.client(),
                Arc::clone(&model),
                rng,
                format!("{round}-{number}"),
            )));
        }
        // However slow the machine is, something is created in each round.
        testkit::eventually(SOON, async || model.lock().unwrap().created > before).await;
        tokio::time::sleep(Duration::from_micros(rng.u64(0..80_000))).await;
        crimux.signal(Signal::SIGKILL);
        a.stop().await;
        b.stop().await;
        for client in clients {
            client.await.unwrap();
        }
        crimux.kill_and_start().await;
        crimux.wait_ready().await;
        let listed = sandboxes(&crimux.client(), None).await.unwrap();
        check(round, &model.lock().unwrap(), &listed);
        a.start_again().await;
        b.start_again().await;
        testkit::eventually(SOON, async || settled(&crimux).await).await;
        let real = learn(&mut model.lock().unwrap(), &[&a, &b]);
        let listed = sandboxes(&crimux.client(), None).await.unwrap();
        assert_eq!(listed, real, "seed {seed}, round {round}: live");
    }
    let created = model.lock().unwrap().created;
    assert!(created >= round, "{created} creates in {round} rounds are no churn");
}

async fn settled(crimux: &Crimux) -> bool {
    let ready = |name| format!("crimux_backend_state{{backend=\"{name}\",state=\"ready\"}}");
    crimux.metric(&ready("a")).await == Some(1.0) && crimux.metric(&ready("b")).await == Some(1.0)
}

fn check(round: u64, model: &Model, listed: &BTreeSet<String>) {
    let vanished: Vec<_> = model.there.difference(listed).collect();
    assert!(vanished.is_empty(), "round {round}: {vanished:?} were created and are not listed");
    let back: Vec<_> = model.gone.intersection(listed).collect();
    assert!(back.is_empty(), "round {round}: {back:?} were removed and are listed");
}

/// Returns what the backends really have, and settles what nobody was told of.
fn learn(model: &mut Model, backends: &[&SimRuntime]) -> BTreeSet<String> {
    let mut real = BTreeSet::new();
    for backend in backends {
        real.extend(backend.state().sandboxes().map(|sandbox| sandbox.id.clone()));
    }
    assert!(model.there.is_subset(&real), "the backends lost something themselves");
    let unsure = std::mem::take(&mut model.unsure);
    model.there.extend(unsure.into_iter().filter(|id| real.contains(id)));
    real
}

/// Creates and removes until a call fails.
async fn churn(client: Client, model: Arc<Mutex<Model>>, mut rng: Rng, name: String) {
    for number in 0_u32.. {
        let victim = if rng.bool() { pick(&model, &mut rng) } else { None };
        let done = if let Some(id) = victim {
            remove(&client, &id).await.map(|()| {
                let mut model = model.lock().unwrap();
                model.unsure.remove(&id);
                model.gone.insert(id);
            })
        } else {
            let backend = if rng.bool() { "a" } else { "b" };
            create(&client, &format!("pod-{name}-{number}"), backend).await.map(|id| {
                let mut model = model.lock().unwrap();
                model.there.insert(id);
                model.created += 1;
            })
        };
        if done.is_err() {
            return;
        }
    }
}

/// Takes a sandbox that nobody else removes.
fn pick(model: &Mutex<Model>, rng: &mut Rng) -> Option<String> {
    let mut model = model.lock().unwrap();
    let victims: Vec<_> = model.there.iter().cloned().collect();
    let victim = rng.choice(victims)?;
    model.there.remove(&victim);
    model.unsure.insert(victim.clone());
    Some(victim)
}

async fn create(client: &Client, name: &str, backend: &str) -> Result<String, tonic::Status> {
    let reply = client.runtime().run_pod_sandbox(sandbox_config(name).run(backend)).await?;
    Ok(reply.into_inner().pod_sandbox_id)
}

async fn remove(client: &Client, id: &str) -> Result<(), tonic::Status> {
    let pod_sandbox_id = id.to_owned();
    client
        .runtime()
        .stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() })
        .await?;
    client.runtime().remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await?;
    Ok(())
}
