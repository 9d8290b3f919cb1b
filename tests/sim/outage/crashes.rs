//! crimux is killed at every step of a create, of a removal and of writing its snapshot.
//!
//! After the restart, an object whose creation was acknowledged is listed, one whose removal was acknowledged
//! is not, and an object that a backend still has never vanishes, whether or not that backend can be reached.

use std::collections::BTreeSet;
use std::path::Path;

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use testkit::Client;
use testkit::client::sandbox_config;
use testkit::cri::{RemoveContainerRequest, RemovePodSandboxRequest};
use testkit::runtime::{Fault, SimRuntime};
use tokio::process::Child;

use super::state::snapshot_holds;
use super::strace::{held, strace};
use super::{World, containers, sandboxes};
use crate::support::SOON;

/// Long enough to be killed in it.
const HOLD: &str = "60000000";

/// A backend that is added so that crimux writes a snapshot.
const DUE: &str = "makes-a-snapshot-due";

/// Where a call stands when crimux is killed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Point {
    /// On the way to the backend, which does not read.
    Sent,
    /// At the backend, which has done nothing yet.
    Arrived,
    /// Done, and the answer is still with the backend.
    Done,
    /// crimux has the answer and is about to write it down.
    Answered,
    /// It is written down, and the client has not been told.
    Noted,
}

const POINTS: [Point; 5] = [Point::Sent, Point::Arrived, Point::Done, Point::Answered, Point::Noted];

/// What is called.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Deed {
    Create,
    Remove,
}

impl Deed {
    fn method(self) -> &'static str {
        match self {
            Self::Create => "RunPodSandbox",
            Self::Remove => "RemovePodSandbox",
        }
    }

    async fn call(self, client: Client, victim: String) -> Result<(), tonic::Status> {
        let mut runtime = client.runtime();
        match self {
            Self::Create => runtime.run_pod_sandbox(sandbox_config("half-way").run("b")).await.map(drop),
            Self::Remove => {
                let request = RemovePodSandboxRequest { pod_sandbox_id: victim };
                runtime.remove_pod_sandbox(request).await.map(drop)
            }
        }
    }
}

#[tokio::test]
async fn a_create_that_is_cut_off_by_a_kill_anywhere_is_no_lie() {
    join_all(POINTS.map(|point| cut_off(Deed::Create, point))).await;
}

#[tokio::test]
async fn a_removal_that_is_cut_off_by_a_kill_anywhere_is_no_lie() {
    join_all(POINTS.map(|point| cut_off(Deed::Remove, point))).await;
}

async fn cut_off(deed: Deed, point: Point) {
    let mut world = World::new().await;
    let state = world.crimux.dir.path().join("state");
    let Acknowledged { made, removed } = Acknowledged::of(&world).await;
    // With all of it listed and in a snapshot the next record of the journal is that of the call.
    sandboxes(&world.client, None).await.unwrap();
    containers(&world.client, None).await.unwrap();
    world.crimux.add_backend(DUE);
    testkit::eventually(SOON, async || snapshot_holds(&state, &made) && snapshot_holds(&state, DUE)).await;
    let before = ids(&world.b);
    let victim = world.b.state().sandboxes().find(|sandbox| !sandbox.ready).unwrap().id.clone();
    let Ok(strace) = hold_at(&world, deed, point, &state).await else { return };
    let called = world.b.calls(deed.method()).len();
    let call = tokio::spawn(deed.call(world.client.clone(), victim.clone()));
    arrive(&world, deed, point, called, &before).await;
    world.crimux.signal(Signal::SIGKILL);
    if let Some(mut strace) = strace {
        // A process is gone only once its tracer has let go of all its threads.
        strace.kill().await.unwrap();
    }
    // On a slow machine the held record may be one of the writer instead.
    let text = if deed == Deed::Create { "half-way" } else { victim.as_str() };
    let records = journals(&state).into_iter().filter_map(|path| std::fs::read(path).ok());
    let is_noted = records
        .into_iter()
        .any(|records| records.windows(text.len()).any(|window| window == text.as_bytes()));
    // A call waits for the disk 100 ms at most: one that is held at the journal may have been answered by
    // now.
    let answered = call.await.unwrap().is_ok();
    assert!(
        !answered || matches!(point, Point::Answered | Point::Noted),
        "{deed:?} {point:?}: nothing was held"
    );
    world.b.thaw();
    world.b.stop().await;
    world.b.clear_faults();

    let truth = ids(&world.b);
    let effect = matches!(point, Point::Done | Point::Answered | Point::Noted);
    assert!(!effect || truth != before, "{deed:?} {point:?}: the backend did nothing");
    let all: BTreeSet<_> = truth.union(&ids(&world.a)).cloned().collect();
    world.crimux.kill_and_start().await;
    testkit::eventually(SOON, async || {
        let ready = world.crimux.get("/readyz").await;
        ready.is_some_and(|(code, said)| code == 200 || said == "not listed yet: b\n")
    })
    .await;
    world.client = world.crimux.client();
    let listed = match sandboxes(&world.client, None).await {
        Err(refused) if matches!(point, Point::Answered | Point::Noted) => {
            // The disk did not take it within 100 ms, so what is on the disk did not count as whole.
            assert_eq!(refused.code(), tonic::Code::Unavailable, "{deed:?} {point:?}");
            world.b.start_again().await;
            let is_whole = async || sandboxes(&world.client, None).await.is_ok_and(|listed| listed == all);
            return testkit::eventually(SOON, is_whole).await;
        }
        listed => listed.unwrap(),
    };
    assert!(!answered, "{deed:?} {point:?}: it was answered before it was on the disk, which is not whole");
    let vanished: Vec<_> = truth.intersection(&before).filter(|id| !listed.contains(*id)).collect();
    assert!(vanished.is_empty(), "{deed:?} {point:?}: {vanished:?} vanished");
    if point == Point::Noted && is_noted {
        assert!(truth.is_subset(&listed), "{deed:?}: what was made is not listed");
        assert_eq!(listed.contains(&victim), deed == Deed::Create, "{deed:?}");
    }
    assert!(!containers(&world.client, None).await.unwrap().contains(&removed), "{deed:?} {point:?}");
    world.b.start_again().await;
    testkit::eventually(SOON, async || sandboxes(&world.client, None).await.unwrap() == all).await;
}

/// Makes the call stop there. At the journal a tracer holds crimux itself; an error if there is no tracer.
async fn hold_at(world: &World, deed: Deed, point: Point, state: &Path) -> Result<Option<Child>, ()> {
    match point {
        Point::Sent => world.b.freeze(),
        Point::Arrived => world.b.fault(deed.method(), Fault::Hang),
        Point::Done => world.b.fault(deed.method(), Fault::HangReply),
        Point::Answered | Point::Noted => {
            let when = if point == Point::Answered { "delay_enter" } else { "delay_exit" };
            let inject = format!("inject=write:{when}={HOLD}:when=1");
            let journals = journals(state);
            let mut options = vec!["-e", "trace=write", "-e", &inject];
            options.extend(journals.iter().flat_map(|journal| ["-P", journal]));
            let trace = world.crimux.dir.path().join("trace");
            return strace(&world.crimux, &trace, &options).await.map(Some).ok_or(());
        }
    }
    Ok(None)
}

/// Waits until the call stands where crimux is to be killed.
async fn arrive(world: &World, deed: Deed, point: Point, called: usize, before: &BTreeSet<String>) {
    match point {
        Point::Sent => {
            let in_flight = "crimux_requests_in_flight{backend=\"b\"}";
            testkit::eventually(SOON, async || {
                world.crimux.metric(in_flight).await.is_some_and(|calls| calls >= 1.0)
            })
            .await;
        }
        Point::Arrived => drop(world.b.wait_for_call(deed.method(), called + 1).await),
        Point::Done => testkit::eventually(SOON, async || ids(&world.b) != *before).await,
        Point::Answered | Point::Noted => held(&world.crimux).await,
    }
}

/// What clients were told before.
struct Acknowledged {
    /// A sandbox.
    made: String,
    /// A container.
    removed: String,
}

impl Acknowledged {
    async fn of(world: &World) -> Self {
        let removed = world.container_of_b();
        let mut runtime = world.client.runtime();
        let request = RemoveContainerRequest { container_id: removed.clone() };
        runtime.remove_container(request).await.unwrap();
        let run = sandbox_config("told").run("b");
        let made = runtime.run_pod_sandbox(run).await.unwrap().into_inner().pod_sandbox_id;
        Self { made, removed }
    }
}

fn ids(runtime: &SimRuntime) -> BTreeSet<String> {
    runtime.state().sandboxes().map(|sandbox| sandbox.id.clone()).collect()
}

/// The journals that are there, and that may be begun next.
fn journals(state: &Path) -> Vec<String> {
    let last = std::fs::read_dir(state).unwrap().flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        u64::from_str_radix(name.strip_prefix("journal-")?, 16).ok()
    });
    let last = last.max().unwrap();
    (last..last + 3).map(|number| format!("{}/journal-{number:016x}", state.display())).collect()
}

async fn restart(world: &mut World) {
    world.crimux.kill_and_start().await;
    world.crimux.wait_ready().await;
    world.client = world.crimux.client();
}

#[tokio::test]
async fn what_is_acknowledged_while_a_snapshot_is_written_survives_a_kill_at_each_of_its_steps() {
    let renames = "?rename,?renameat,?renameat2";
    let unlinks = "?unlink,?unlinkat";
    let steps = [
        ("fsync", "delay_enter"),
        (renames, "delay_enter"),
        (renames, "delay_exit"),
        (unlinks, "delay_enter"),
        (unlinks, "delay_exit"),
    ];
    join_all(steps.map(|(calls, when)| killed_at(calls, when))).await;
}

async fn killed_at(calls: &str, when: &str) {
    let mut world = World::new().await;
    let state = world.crimux.dir.path().join("state");
    testkit::eventually(SOON, async || snapshot_holds(&state, &world.sandbox_of_b())).await;
    let inject = format!("inject={calls}:{when}={HOLD}:when=1");
    let options = ["-e", &format!("trace={calls}"), "-e", &inject];
    let trace = world.crimux.dir.path().join("trace");
    let Some(mut strace) = strace(&world.crimux, &trace, &options).await else { return };
    let first = Acknowledged::of(&world).await;
    world.crimux.add_backend(DUE);
    held(&world.crimux).await;
    let second = world.container_of_b();
    let request = RemoveContainerRequest { container_id: second.clone() };
    world.client.runtime().remove_container(request).await.unwrap();
    let run = sandbox_config("while it is written").run("b");
    let made = world.client.runtime().run_pod_sandbox(run).await.unwrap().into_inner().pod_sandbox_id;
    world.crimux.signal(Signal::SIGKILL);
    // A process is gone only once its tracer has let go of all its threads.
    strace.kill().await.unwrap();
    world.b.stop().await;

    restart(&mut world).await;
    let listed = sandboxes(&world.client, None).await.unwrap();
    let expected: BTreeSet<_> = ids(&world.a).union(&ids(&world.b)).cloned().collect();
    assert_eq!(listed, expected, "{calls} {when}");
    assert!(listed.contains(&first.made) && listed.contains(&made), "{calls} {when}");
    let listed = containers(&world.client, None).await.unwrap();
    let gone = [first.removed, second];
    assert!(gone.iter().all(|id| !listed.contains(id)), "{calls} {when}: {gone:?} of {listed:?}");
    assert_eq!(listed.len(), 6, "{calls} {when}");
}
