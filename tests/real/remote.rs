//! A backend on another host: CRI over mutual TLS, streams through crimux, and everything that can go wrong
//! between.
//!
//! The other host is a containerd with network, mounts and host name of its own, on the other end of a cable
//! that can be pulled. kubelet's place is inside the bed, where crimux and the client of the streams are.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use testkit::bed::Bed;
use testkit::bed::pods::{IMAGE, Pods};
use testkit::cri::{ListContainersRequest, ListImagesRequest, PodSandboxStatusRequest, StatusRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use super::lifecycle::{Kernel, whole_life};
use super::world::{self, Crimux, IDLE, SOON, eventually, sandbox_state};
use super::{streams, streams::said};

/// `timeouts.connect` and `timeouts.read`: within these a peer that has gone silent is noticed.
const SILENCE: Duration = Duration::from_secs(3);
/// What a busy test machine may add to any time.
const SLACK: Duration = Duration::from_secs(2);
/// `timeouts.connect`, within which a stream is connected or refused.
const CONNECT: Duration = Duration::from_secs(1);
/// `timeouts.list`, within which a list is answered whatever a backend does.
const LIST: Duration = Duration::from_secs(1);

/// A local backend with runc, one with crun, and the remote node.
fn bed() -> Option<Bed> {
    let bed = Bed::up_or_skip(&[("a", "runc"), ("b", "crun")])?;
    bed.node().unwrap();
    Some(bed)
}

/// An entry of `backends` for the remote node, with this `tls`.
fn entry(name: &str, tls: &str) -> String {
    let streaming = "streaming: { address: \"10.77.1.2:10011\" }";
    format!(
        "  {name}: {{ endpoint: \"https://10.77.1.2:10010\", local: false, {streaming}, tls: {{ {tls} }} }}\n"
    )
}

/// The `tls` with this authority and this certificate of our own.
fn tls(bed: &Bed, authority: &str, own: &str) -> String {
    let tls = bed.directory().join("tls");
    let tls = tls.display();
    format!("ca: {tls}/{authority}.crt, cert: {tls}/{own}.crt, key: {tls}/{own}.key")
}

/// `a`, `b` whose streams are always relayed, and `r1` with this `tls`; each has a handler of its name.
fn configuration(bed: &Bed, tls: &str) -> String {
    let [a, b] = ["a", "b"].map(|name| bed.socket(name));
    let local = format!(
        "  a: {{ endpoint: \"unix://{}\" }}\n  b: {{ endpoint: \"unix://{}\", streaming: {{ relay: always }} }}\n",
        a.display(),
        b.display()
    );
    let handlers = "  a: { backend: a }\n  b: { backend: b }\n  r1: { backend: r1 }\n";
    world::document(bed, &(local + &entry("r1", tls)), handlers)
}

/// crimux in front of all three, with good certificates.
async fn crimux(bed: &Bed) -> Crimux<'_> {
    world::crimux_with(bed, &configuration(bed, &tls(bed, "ca", "client"))).await
}

/// The value of one series, as the admin socket tells it; 0 if it is not there yet.
async fn metric(crimux: &Crimux<'_>, series: &str) -> f64 {
    let socket = crimux.socket.with_file_name("admin.sock");
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\nhost: crimux\r\n\r\n").await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    let value = reply.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.map_or(0.0, |value| value.parse().unwrap())
}

async fn is_up(crimux: &Crimux<'_>) -> bool {
    metric(crimux, "crimux_backend_up{backend=\"r1\"}").await > 0.5
}

fn inside(bed: &Bed, command: &str) {
    let output = bed.run(&command.split(' ').collect::<Vec<_>>()).unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// One pod on each backend, in the order of their names.
async fn one_pod_each(pods: &mut Pods) -> [String; 3] {
    let mut sandboxes = Vec::new();
    for handler in ["a", "b", "r1"] {
        sandboxes.push(pods.run(handler, handler, &IDLE).await.unwrap().sandbox);
    }
    sandboxes.try_into().unwrap()
}

async fn listed(pods: &mut Pods) -> BTreeSet<String> {
    pods.list().await.unwrap().into_iter().map(|sandbox| sandbox.id).collect()
}

#[tokio::test]
async fn a_pod_lives_its_whole_life_on_another_host() {
    let Some(bed) = bed() else { return };
    let crimux = crimux(&bed).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    // The bed's file system is the same on both sides, as a shared log directory would be.
    Box::pin(whole_life(&mut pods, "r1", Kernel::Host)).await;

    let pod = pods.run("where", "r1", &IDLE).await.unwrap();
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.sandbox, verbose: false };
    let status = pods.runtime.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap();
    let address = status.network.unwrap().ip;
    assert!(address.starts_with("10.91.1."), "it runs at {address}");
}

#[tokio::test]
async fn lists_are_merged_and_an_image_that_this_node_has_too_is_not_pinned() {
    let Some(bed) = bed() else { return };
    let crimux = crimux(&bed).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    let ran = one_pod_each(&mut pods).await;
    assert_eq!(listed(&mut pods).await, BTreeSet::from(ran.clone()));
    let containers = pods.runtime.list_containers(ListContainersRequest::default()).await.unwrap();
    let of_sandboxes: BTreeSet<_> =
        containers.into_inner().containers.into_iter().map(|container| container.pod_sandbox_id).collect();
    assert_eq!(of_sandboxes, BTreeSet::from(ran.clone()));

    assert_eq!(
        pinned(&mut pods, IMAGE).await,
        [false],
        "stores of this node have it too: it can be collected"
    );
    pods.remove(&ran[2]).await.unwrap();
    assert_eq!(pinned(&mut pods, IMAGE).await, [false]);
    let mut local = world::dial(&bed, &bed.socket("a")).await;
    assert_eq!(pinned(&mut local, IMAGE).await, [false], "its own runtime does not pin it");
}

/// Whether each image of this name is pinned.
async fn pinned(pods: &mut Pods, name: &str) -> Vec<bool> {
    let images = pods.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
    let named = images.iter().filter(|image| image.repo_tags.iter().any(|tag| tag == name));
    named.map(|image| image.pinned).collect()
}

#[tokio::test]
async fn streams_reach_another_host_and_those_of_this_node_pass() {
    let Some(bed) = bed() else { return };
    let crimux = crimux(&bed).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    let [exec, tty, forward, attach] = Box::pin(streams::every_kind(&bed, &mut pods, "r1")).await;
    let relay = format!("http://127.0.0.1:{}", streams::port(&exec));
    for (url, kind) in [(exec, "exec"), (tty, "exec"), (forward, "portforward"), (attach, "attach")] {
        assert!(url.starts_with(&format!("{relay}/{kind}/")), "{url}");
    }
    let always = Box::pin(streams::every_kind(&bed, &mut pods, "b")).await;
    assert!(always.iter().all(|url| url.starts_with(&relay)), "{always:?}");

    let passed = Box::pin(streams::every_kind(&bed, &mut pods, "a")).await;
    assert!(passed.iter().all(|url| url.starts_with("http://127.0.0.1:") && !url.starts_with(&relay)));
    for (backend, relayed) in [("a", false), ("b", true), ("r1", true)] {
        for direction in ["to_backend", "to_client"] {
            let series =
                format!("crimux_relay_bytes_total{{backend=\"{backend}\",direction=\"{direction}\"}}");
            assert_eq!(metric(&crimux, &series).await > 67_108_864.0, relayed, "{series}");
        }
        let open = format!("crimux_relay_streams{{backend=\"{backend}\"}}");
        eventually("all streams are closed", async || (metric(&crimux, &open).await < 0.5).then_some(()))
            .await;
    }
}

#[tokio::test]
async fn a_token_is_good_once_and_only_on_loopback() {
    let Some(bed) = bed() else { return };
    let crimux = crimux(&bed).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    let pod = pods.run("token", "r1", &IDLE).await.unwrap();
    let url = streams::exec_url(&mut pods, &pod.container, &["echo", "once"], false).await.unwrap();
    assert_eq!(said(&bed, &["run", &url, ""]), "once\n");
    assert_eq!(said(&bed, &["status", &url]), "404\n", "used");
    let (start, token) = url.rsplit_once('/').unwrap();
    assert_eq!(said(&bed, &["status", &format!("{start}/{}", "0".repeat(token.len()))]), "404\n", "guessed");
    let other = streams::exec_url(&mut pods, &pod.container, &["echo", "once"], false).await.unwrap();
    assert_eq!(said(&bed, &["status", &other.replace("/exec/", "/attach/")]), "404\n", "for something else");
    assert!((metric(&crimux, "crimux_relay_refused_tokens_total").await - 3.0).abs() < 0.1);
    let log = crimux.process.log().unwrap();
    assert!(!log.contains(token), "a token is in the log");

    let port = format!(":{:04X}", streams::port(&url));
    let sockets = bed.run(&["cat", "/proc/net/tcp", "/proc/net/tcp6"]).unwrap().stdout;
    let sockets = String::from_utf8_lossy(&sockets).into_owned();
    let listening = sockets.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next()?, fields.nth(1)?);
        (state == "0A" && local.ends_with(&port)).then_some(local)
    });
    assert_eq!(listening.collect::<Vec<_>>(), [format!("0100007F{port}")]);
}

/// Lists until `r1` is seen to be down: every list is complete and in time. Returns how long that took.
async fn lists_until_down(crimux: &Crimux<'_>, pods: &mut Pods, expected: &BTreeSet<String>) -> Duration {
    let begun = Instant::now();
    while is_up(crimux).await {
        assert!(begun.elapsed() < SOON, "nobody notices");
        list_in_time(pods, expected, LIST + SLACK).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    begun.elapsed()
}

async fn list_in_time(pods: &mut Pods, expected: &BTreeSet<String>, limit: Duration) {
    let asked = Instant::now();
    assert_eq!(&listed(pods).await, expected);
    assert!(asked.elapsed() < limit, "a list took {:?}", asked.elapsed());
}

/// A silent link: noticed in time, lists are as before, calls are refused at once; and over when it is over.
async fn silence(break_it: &str, mend_it: &str, said: &str) {
    let Some(bed) = bed() else { return };
    let crimux = crimux(&bed).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    let [a, b, remote] = one_pod_each(&mut pods).await;
    let all = BTreeSet::from([a.clone(), b, remote.clone()]);

    inside(&bed, break_it);
    let noticed = lists_until_down(&crimux, &mut pods, &all).await;
    // Something is under way to it at least once a second.
    assert!(noticed < Duration::from_secs(1) + SILENCE + SLACK, "noticed after {noticed:?}");
    for _ in 0..20 {
        list_in_time(&mut pods, &all, LIST / 2).await;
    }
    let asked = Instant::now();
    assert_eq!(sandbox_state(&mut pods, &a).await.unwrap() as i32, 0);
    let created = pods.sandbox(&pods.config("new"), "r1").await.unwrap_err();
    assert_eq!(created.code(), Code::Unavailable);
    assert!(asked.elapsed() < LIST / 2, "the refusal took {:?}", asked.elapsed());
    eventually("the error says which step fails", async || {
        let error = pods.sandbox(&pods.config("new"), "r1").await.unwrap_err();
        error.message().contains(said).then_some(())
    })
    .await;

    inside(&bed, mend_it);
    let mended = Instant::now();
    eventually("r1 is back", async || is_up(&crimux).await.then_some(())).await;
    assert!(mended.elapsed() < Duration::from_secs(5) + SLACK, "back after {:?}", mended.elapsed());
    list_in_time(&mut pods, &all, LIST + SLACK).await;
    pods.remove(&remote).await.unwrap();
    assert!(!listed(&mut pods).await.contains(&remote));
}

#[tokio::test]
async fn a_pulled_cable_is_noticed_and_mends_itself() {
    let text = "backend r1 is down since";
    silence("ip link set veth-r1 down", "ip link set veth-r1 up", text).await;
}

#[tokio::test]
async fn a_black_hole_is_noticed_and_mends_itself() {
    let text = "10.77.1.2:10010: not connected within 1s: connecting took too long";
    // On their way in: what netfilter drops on its way out fails at once in the kernel, which then may look
    // at `TCP_USER_TIMEOUT` at its next retransmission only, and that is twice as late. No network does that.
    let rule = "INPUT -s 10.77.1.2 -j DROP";
    silence(&format!("iptables -A {rule}"), &format!("iptables -D {rule}"), text).await;
}

/// Backends that cannot be reached for their certificates: name, entry of `backends`, what the error must
/// say.
fn faults(bed: &Bed) -> [(&'static str, String, String); 6] {
    let directory = bed.directory().join("tls");
    let directory = directory.display();
    let good = tls(bed, "ca", "client");
    let theirs = |what: &str| format!(":10010: its certificate {what}");
    let ours = |name: &str, validity: &str| {
        format!("it refuses our client certificate {directory}/{name}.crt (CN={name}, valid {validity}")
    };
    let past = "from 2000-01-01T00:00:00Z to 2001-01-01T00:00:00Z";
    let unknown = format!("is signed by an authority that is not in {directory}/other-ca.crt");
    let name = "does not hold the name elsewhere.example, only localhost, server, ";
    let missing = "it wants a client certificate, but `tls.cert` and `tls.key` are not configured";
    let on_loopback = entry("past", &good).replace("10.77.1.2:10010", "127.0.0.1:10443");
    let since = "127.0.0.1:10443: its certificate has been expired since 2001-01-01T00:00:00Z";
    [
        ("authority", entry("authority", &tls(bed, "other-ca", "client")), theirs(&unknown)),
        ("name", entry("name", &(good + ", server_name: elsewhere.example")), theirs(name)),
        ("past", on_loopback, since.to_owned()),
        ("missing", entry("missing", &format!("ca: {directory}/ca.crt")), missing.to_owned()),
        ("expired", entry("expired", &tls(bed, "ca", "expired")), ours("expired", past)),
        ("stranger", entry("stranger", &tls(bed, "ca", "stranger")), ours("stranger", "from ")),
    ]
}

#[tokio::test]
async fn an_error_says_whose_certificate_is_wrong_and_why() {
    let Some(bed) = bed() else { return };
    let file = |name: &str| bed.directory().join("tls").join(name).display().to_string();
    let (cert, key) = (file("expired-server.crt"), file("expired-server.key"));
    let serve =
        ["s_server", "-accept", "127.0.0.1:10443", "-cert", &cert, "-key", &key, "-www", "-alpn", "h2"];
    let _server = bed.spawn("expired-server", "openssl".as_ref(), &serve).unwrap();

    let faults = faults(&bed);
    let mut backends = format!("  a: {{ endpoint: \"unix://{}\" }}\n", bed.socket("a").display());
    let mut handlers = String::new();
    for (name, entry, _) in &faults {
        backends += entry;
        writeln!(handlers, "  {name}: {{ backend: {name} }}").unwrap();
    }
    let crimux = world::start(&bed, &world::document(&bed, &backends, &handlers));
    let dialled = async || Pods::dial(&crimux.socket, &bed.directory().join("pod-logs")).await.ok();
    let mut pods = eventually("crimux serves", dialled).await;
    for (name, _, expected) in &faults {
        explained(&mut pods, name, expected).await;
        assert!(crimux.process.log().unwrap().contains(expected), "{name}: not in the log");
    }
}

/// A pod for this backend is refused with these words, and the node's status has them.
async fn explained(pods: &mut Pods, backend: &str, expected: &str) {
    eventually(&format!("{backend} says {expected}"), async || {
        let error = pods.sandbox(&pods.config("pod"), backend).await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable, "{error:?}");
        error.message().contains(expected).then_some(())
    })
    .await;
    let status = pods.runtime.status(StatusRequest::default()).await.unwrap().into_inner().status.unwrap();
    let own = format!("Backend/{backend}");
    let condition = status.conditions.iter().find(|condition| condition.r#type == own).unwrap();
    assert!(!condition.status && condition.message.contains(expected), "{condition:?}");
}

#[tokio::test]
async fn certificates_are_rotated_while_serving() {
    let Some(bed) = bed() else { return };
    let directory = bed.directory().join("tls");
    let put = |name: &str| {
        for kind in ["crt", "key"] {
            let new = directory.join(format!("new.{kind}"));
            std::fs::copy(directory.join(format!("{name}.{kind}")), &new).unwrap();
            std::fs::rename(new, directory.join(format!("own.{kind}"))).unwrap();
        }
    };
    put("client");
    let crimux = world::crimux_with(&bed, &configuration(&bed, &tls(&bed, "ca", "own"))).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    let pod = pods.run("rotated", "r1", &IDLE).await.unwrap();
    let holder = Box::pin(streams::hold(&bed, &mut pods, &pod.container)).await;

    // What is connected stays connected, whatever the files become.
    put("expired");
    assert_eq!(pods.exec(&pod.container, &["echo", "alive"]).await.unwrap().stdout, b"alive\n");
    inside(&bed, "iptables -A OUTPUT -p tcp -d 10.77.1.2 --dport 10010 -j REJECT --reject-with tcp-reset");
    eventually("r1 is down", async || (!is_up(&crimux).await).then_some(())).await;
    inside(&bed, "iptables -D OUTPUT -p tcp -d 10.77.1.2 --dport 10010 -j REJECT --reject-with tcp-reset");
    eventually("the certificate in the files is the one that is refused", async || {
        let error = pods.sandbox(&pods.config("pod"), "r1").await.unwrap_err();
        error.message().contains("it refuses our client certificate").then_some(())
    })
    .await;

    put("client");
    eventually("r1 is back, without a reload", async || is_up(&crimux).await.then_some(())).await;
    assert_eq!(pods.exec(&pod.container, &["echo", "alive"]).await.unwrap().stdout, b"alive\n");
    assert_eq!(holder.exit_code(), None, "the stream of before has ended: {}", holder.log().unwrap());
}

#[tokio::test]
async fn streams_end_with_the_runtime_that_served_them() {
    let Some(bed) = bed() else { return };
    let crimux = crimux(&bed).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    let all = BTreeSet::from(one_pod_each(&mut pods).await);
    let pod = pods.run("held", "r1", &IDLE).await.unwrap();
    let all = &all | &BTreeSet::from([pod.sandbox.clone()]);
    let holder = Box::pin(streams::hold(&bed, &mut pods, &pod.container)).await;
    let open = "crimux_relay_streams{backend=\"r1\"}";
    assert!((metric(&crimux, open).await - 1.0).abs() < 0.1);

    let url = streams::exec_url(&mut pods, &pod.container, &["true"], false).await.unwrap();
    let silent = "OUTPUT -p tcp -d 10.77.1.2 --dport 10011 -j DROP";
    inside(&bed, &format!("iptables -A {silent}"));
    let asked = Instant::now();
    assert_eq!(said(&bed, &["status", &url]), "502\n", "the streaming server is silent");
    assert!(asked.elapsed() < CONNECT + SLACK, "it took {:?}", asked.elapsed());
    inside(&bed, &format!("iptables -D {silent}"));

    let url = streams::exec_url(&mut pods, &pod.container, &["true"], false).await.unwrap();
    bed.kill("r1").unwrap();
    assert_eq!(said(&bed, &["status", &url]), "502\n", "the streaming server is gone");
    assert_eq!(holder.wait(Duration::from_secs(1) + SLACK).unwrap(), 0);
    assert!(holder.log().unwrap().ends_with("ended\n"), "{}", holder.log().unwrap());
    eventually("no stream is open", async || (metric(&crimux, open).await < 0.5).then_some(())).await;
    eventually("r1 is down", async || (!is_up(&crimux).await).then_some(())).await;
    list_in_time(&mut pods, &all, LIST / 2).await;
    let refused = streams::exec_url(&mut pods, &pod.container, &["true"], false).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
}
