//! How long lists take while crimux hands over, and else. Nothing is asserted about time: it prints figures.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crimux::shutdown::Shutdown;

use super::*;
use crate::outage::sandboxes;
use crate::systemd::is_unsent;

/// Between two lists.
const TICK: Duration = Duration::from_millis(10);
/// How many lists are measured before the first handover, and between two.
const USUAL: usize = 1000;
const BETWEEN: usize = 20;
const HANDOVERS: usize = 20;

/// Lists every 10 ms over one connection, which follows each handover, until told to stop; returns when each
/// list began and how long it took.
async fn list_until(
    client: Client,
    wanted: usize,
    answered: Arc<AtomicUsize>,
    stop: Shutdown,
) -> Vec<(Instant, Duration)> {
    let (mut tick, mut lists) = (tokio::time::interval(TICK), Vec::new());
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !stop.is_begun() {
        tick.tick().await;
        let began = Instant::now();
        let listed = loop {
            match sandboxes(&client, None).await {
                // Sent again, as every gRPC client does.
                Err(status) if is_unsent(&status) => {}
                listed => break listed.unwrap(),
            }
        };
        assert_eq!(listed.len(), wanted);
        lists.push((began, began.elapsed()));
        answered.store(lists.len(), Ordering::Relaxed);
    }
    lists
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let [p50, p99, longest] = [50, 99, 100].map(|percent| times[(times.len() - 1) * percent / 100]);
    eprintln!("{what}: {} lists, p50 {p50:?}, p99 {p99:?}, longest {longest:?}", times.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints how long lists take during handovers"]
async fn lists_during_handovers_and_else() {
    let a = SimRuntime::builder("a").containers(110, 1).start().await;
    let b = SimRuntime::builder("b").containers(110, 1).start().await;
    let node = Node::start(&[("a", &a), ("b", &b)], "").await;
    let (stop, answered) = (Shutdown::default(), Arc::<AtomicUsize>::default());
    let lists = tokio::spawn(list_until(node.client(), 220, Arc::clone(&answered), stop.clone()));
    let more = async |count: usize| {
        let wanted = answered.load(Ordering::Relaxed) + count;
        eventually(SOON * 60, async || answered.load(Ordering::Relaxed) >= wanted || lists.is_finished())
            .await;
    };
    more(USUAL).await;
    let mut handovers = Vec::new();
    for _ in 0..HANDOVERS {
        let began = Instant::now();
        node.upgraded(&["--wait"]).await;
        handovers.push((began, Instant::now()));
        more(BETWEEN).await;
    }
    stop.begin();
    let (during, usual): (Vec<_>, Vec<_>) = lists.await.unwrap().into_iter().partition(|(began, time)| {
        let ended = *began + *time;
        handovers.iter().any(|(first, last)| *began < *last && ended > *first)
    });
    let times = |lists: Vec<(Instant, Duration)>| lists.into_iter().map(|(_, time)| time).collect();
    print("usual", times(usual));
    print("during handovers", times(during));
    print("handovers", handovers.into_iter().map(|(began, ended)| ended - began).collect());
}
