//! What a hostile client makes crimux hold, and what it makes the others wait: both are bounded.
//!
//! Memory is the resident set: its peak since the test began (`VmHWM`), and what is left of it after the
//! client has gone. Waiting is measured in CPU that crimux used between another client's request and its
//! answer, so that a busy machine changes nothing.

mod backend;
mod hostile;

use std::time::{Duration, Instant};

use testkit::runtime::SimRuntime;
use testkit::{Client, eventually};
use tonic::Code;

use crate::support::{Crimux, SOON};
use hostile::{Hostile, LIST, frame, headers, request};

/// What no abuse may exceed, above what crimux held before.
const PEAK: u64 = 64 << 10;
/// What may be left of it.
const LEFT: u64 = 8 << 10;
/// Longer than memory takes to go back.
const BACK: Duration = Duration::from_secs(10);
/// CPU between a request and its answer, in milliseconds. Unoptimised code takes ten times as much.
const AHEAD: f64 = if cfg!(debug_assertions) { 50.0 } else { 5.0 };

/// A crimux whose memory is watched.
struct Watched {
    crimux: Crimux,
    _runtime: SimRuntime,
    /// What it held before, in KiB.
    idle: u64,
    /// What of that was no page of a file.
    idle_anonymous: u64,
    /// What of that was pages of the program.
    idle_program: u64,
}

fn status(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

/// CPU time used, in milliseconds.
fn cpu(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e6
}

impl Watched {
    /// Starts a crimux in front of a runtime with this many containers, and lets it list them.
    async fn start(containers: usize) -> Self {
        let runtime = SimRuntime::builder("a").containers(containers, 1).record(false).start().await;
        let crimux = Crimux::start(&[("a", &runtime)]).await;
        for _ in 0..3 {
            crimux.client().raw(LIST, &[], Vec::new()).await.unwrap();
        }
        let pid = crimux.pid();
        // From here on the peak is that of the abuse.
        std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
        let [idle, idle_anonymous, idle_program] =
            ["VmRSS", "RssAnon", "RssFile"].map(|field| status(pid, field));
        Self { crimux, _runtime: runtime, idle, idle_anonymous, idle_program }
    }

    async fn client(&self) -> Hostile {
        Hostile::connect(&self.crimux).await
    }

    /// Another client is answered while this one, which is returned, sends one flood after the other.
    async fn assert_others_are_served_beside(
        &self,
        client: Hostile,
        flood: impl FnMut() -> Vec<u8> + Send + 'static,
    ) -> Hostile {
        let flooding = client.flood(flood);
        self.assert_others_are_served().await;
        flooding.end()
    }

    /// Another client is answered, for little CPU.
    async fn assert_others_are_served(&self) {
        let other: Client = self.crimux.client();
        let version = "/runtime.v1.RuntimeService/Version";
        other.raw(version, &[], Vec::new()).await.unwrap();
        let mut ahead = Vec::new();
        for _ in 0..9 {
            let before = cpu(self.crimux.pid());
            tokio::time::timeout(SOON, other.raw(version, &[], Vec::new()))
                .await
                .expect("it is answered")
                .unwrap();
            ahead.push(cpu(self.crimux.pid()) - before);
        }
        ahead.sort_by(f64::total_cmp);
        assert!(ahead[4] <= AHEAD, "CPU before the answer, in ms: {ahead:?}");
    }

    /// The abuse held no more than it may.
    fn assert_peak(&self) {
        let pid = self.crimux.pid();
        // How much of the program is mapped depends on what of its file is in memory by chance.
        let program = status(pid, "RssFile").saturating_sub(self.idle_program);
        let peak = status(pid, "VmHWM").saturating_sub(self.idle + program);
        assert!(peak < PEAK, "{peak} KiB above {} KiB", self.idle);
    }

    /// What was held has gone back to the system.
    async fn assert_given_back(&self) {
        self.assert_peak();
        let pid = self.crimux.pid();
        // Pages of the program itself are not held by anybody.
        let left = || status(pid, "RssAnon").saturating_sub(self.idle_anonymous);
        let deadline = Instant::now() + BACK;
        while left() >= LEFT && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(left() < LEFT, "{} KiB are left above {} KiB", left(), self.idle_anonymous);
    }

    async fn reached(&self, limit: &str) -> f64 {
        self.crimux.metric(&format!("crimux_limits_reached_total{{limit=\"{limit}\"}}")).await.unwrap()
    }
}

#[tokio::test]
async fn streams_that_are_never_finished_are_refused_beyond_the_limit() {
    let watched = Watched::start(1).await;
    let mut client = watched.client().await;
    for stream in 0..20_000 {
        client.send(&headers(2 * stream + 1, false, &request(LIST))).await;
    }
    watched.assert_others_are_served().await;
    assert!(watched.reached("streams").await >= 19_000.0);
    drop(client);
    watched.assert_given_back().await;
}

#[tokio::test]
async fn bodies_that_are_never_finished_hold_the_budget_and_no_more() {
    let watched = Watched::start(1).await;
    let mut client = watched.client().await;
    // Each announces 16 MiB, and sends all but the end of it.
    let first = [&[0, 1, 0, 0, 0][..], &[7; 16 << 10][5..]].concat();
    for stream in (0..16).map(|number| 2 * number + 1) {
        client.send(&headers(stream, false, &request(LIST))).await;
        client.send(&frame(0, 0, stream, &first)).await;
        for _ in 0..1000 {
            client.send(&frame(0, 0, stream, &[7; 16 << 10])).await;
        }
    }
    watched.assert_others_are_served().await;
    assert!(watched.reached("requests_mib").await >= 10.0);
    drop(client);
    watched.assert_given_back().await;
}

#[tokio::test]
async fn header_bombs_hold_the_budget_and_no_more() {
    let watched = Watched::start(1).await;
    let mut client = watched.client().await;
    // A field of 4000 bytes in the dynamic table, named again and again.
    let long = [&b"\x40\x03x-a\x7f\xa1\x1e"[..], &[b'v'; 4000]].concat();
    for stream in (0..300).map(|number| 2 * number + 1) {
        let bomb = [&request(LIST)[..], &long, &[0xbe; 8000]].concat();
        client.send(&headers(stream, false, &bomb)).await;
    }
    watched.assert_others_are_served().await;
    assert!(watched.reached("metadata_kib").await >= 300.0);
    // And fields that cost more to keep than to send.
    for stream in (300..900).map(|number| 2 * number + 1) {
        let many = [&request(LIST)[..], &b"\x40\x01b\x01c"[..], &[0xbe; 1000]].concat();
        client.send(&headers(stream, false, &many)).await;
    }
    watched.assert_others_are_served().await;
    drop(client);
    watched.assert_given_back().await;
}

#[tokio::test]
async fn lists_that_are_never_read_wait_for_each_other() {
    let watched = Watched::start(3000).await;
    let mut client = watched.client().await;
    client.send(&frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
    for stream in (0..1000).map(|number| 2 * number + 1) {
        client.send(&[headers(stream, false, &request(LIST)), frame(0, 1, stream, &[0; 5])].concat()).await;
    }
    watched.assert_others_are_served().await;
    let list = watched.crimux.client().raw(LIST, &[], Vec::new()).await.unwrap();
    assert!(list.single().len() > 1 << 20, "another client has its list: {}", list.single().len());
    drop(client);
    watched.assert_given_back().await;
}

#[tokio::test]
async fn a_client_that_asks_and_never_reads_is_not_read_from() {
    let watched = Watched::start(3000).await;
    let mut client = watched.client().await;
    client.send(&frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff])).await;
    client.send(&frame(8, 0, 0, &[0x7f, 0, 0, 0])).await;
    for stream in (0..5000).map(|number| 2 * number + 1) {
        let list = [headers(stream, false, &request(LIST)), frame(0, 1, stream, &[0; 5])].concat();
        if !client.send_unless_blocked(&list).await {
            break;
        }
    }
    watched.assert_others_are_served().await;
    drop(client);
    watched.assert_given_back().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_idle_ones_hold_little() {
    let watched = Watched::start(1).await;
    let mut clients = Vec::new();
    for number in 0..400 {
        let mut client = watched.client().await;
        if number < 200 {
            // 200 kB each, of frames that change nothing.
            for _ in 0..12 {
                client.send(&frame(0xfa, 0, 0, &[0; 16 << 10])).await;
            }
        } else {
            // Half a header block.
            client
                .send(&[frame(1, 0, 1, &request(LIST)), frame(9, 0, 1, &[0; 16 << 10][..100])].concat())
                .await;
        }
        clients.push(client);
    }
    let open = async || watched.crimux.metric("crimux_client_connections").await.unwrap();
    assert!(open().await <= 256.0);
    // Those that are closed for others do not answer the GOAWAY.
    eventually(SOON, async || open().await < 256.0).await;
    watched.assert_others_are_served().await;
    drop(clients);
    watched.assert_given_back().await;
}

#[tokio::test]
async fn frames_that_cost_more_than_they_carry_delay_nobody() {
    let watched = Watched::start(200).await;
    let mut client = watched.client().await;
    // A thousand streams whose replies have no window.
    client.send(&frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
    for stream in (0..900).map(|number| 2 * number + 1) {
        client.send(&[headers(stream, false, &request(LIST)), frame(0, 1, stream, &[0; 5])].concat()).await;
    }
    let window = |size: u8| frame(4, 0, 0, &[0, 4, 0, 0, 0, size]);
    let floods = [
        window(1).into_iter().chain(window(0)).collect::<Vec<_>>().repeat(2000),
        frame(6, 0, 0, &[0; 8]).repeat(2000),
        frame(8, 0, 1, &[0, 0, 0, 1]).repeat(2000),
        frame(2, 0, 1, &[0; 5]).repeat(2000),
    ];
    for flood in floods {
        client = watched.assert_others_are_served_beside(client, move || flood.clone()).await;
    }
    drop(client);
    watched.assert_given_back().await;
}

#[tokio::test]
async fn frames_that_carry_nothing_delay_nobody() {
    let watched = Watched::start(1).await;
    let open = headers(1, false, &request(LIST));
    let floods = [
        // A header block that never ends.
        (frame(1, 0, 1, &request(LIST)), frame(9, 0, 1, &[])),
        (open.clone(), frame(0, 0, 1, &[])),
        // Padding alone.
        (open.clone(), frame(0, 8, 1, &[255; 256])),
        // A type that nobody knows.
        (open, frame(0xfa, 0, 1, &[])),
    ];
    for (first, flood) in floods {
        let (mut client, flood) = (watched.client().await, flood.repeat(2000));
        client.send(&first).await;
        watched.assert_others_are_served_beside(client, move || flood.clone()).await;
    }
    watched.assert_given_back().await;
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_start_no_work() {
    let watched = Watched::start(1).await;
    // RST_STREAM, and a WINDOW_UPDATE that has crimux reset the stream.
    for (kind, payload) in [(3, [0, 0, 0, 8]), (8, [0; 4])] {
        let client = watched.client().await;
        let mut stream = 1;
        let flood = move || {
            let mut flood = Vec::new();
            for _ in 0..500 {
                flood.extend(headers(stream, false, &request(LIST)));
                flood.extend(frame(kind, 0, stream, &payload));
                stream += 2;
            }
            flood
        };
        watched.assert_others_are_served_beside(client, flood).await;
    }
    watched.assert_given_back().await;
}

#[tokio::test]
async fn a_configuration_without_an_end_is_read_up_to_its_limit() {
    let watched = Watched::start(1).await;
    let file = watched.crimux.dir.path().join("crimux.yaml");
    std::fs::File::options().append(true).open(file).unwrap().set_len(512 << 20).unwrap();
    eventually(SOON, async || watched.crimux.log().contains("larger than 1 MiB")).await;
    watched.assert_others_are_served().await;
    watched.assert_given_back().await;
}

#[tokio::test]
async fn metadata_beyond_the_limit_fails_its_call_and_no_other() {
    let watched = Watched::start(1).await;
    let client = watched.crimux.client();
    let long = "v".repeat(70_000);
    let metadata = [("x-long", long.as_str())];
    for _ in 0..20 {
        let (good, refused) =
            tokio::join!(client.raw(LIST, &[], Vec::new()), client.raw(LIST, &metadata, Vec::new()));
        assert_eq!(good.unwrap().code(), Code::Ok);
        assert_eq!(refused.unwrap().code(), Code::ResourceExhausted);
    }
    assert!(watched.reached("metadata_kib").await >= 20.0);
}
