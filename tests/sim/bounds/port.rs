//! `admin.http` and the relay's port: what anybody on the node may connect to holds up nobody.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

/// More connections than `admin.http` takes at once.
const MANY: usize = 200;

fn on(address: &str) -> impl FnOnce(String) -> String {
    let http = format!("http: \"{address}\"");
    move |yaml: String| yaml.replace("http: off", &http)
}

async fn idle(address: &str, count: usize) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for _ in 0..count {
        streams.push(TcpStream::connect(address).await.unwrap());
    }
    streams
}

#[tokio::test]
async fn a_port_that_is_taken_is_shown_and_tried_again_while_the_node_is_served() {
    let a = SimRuntime::builder("a").start().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let crimux = start(&a, on(&address)).await;
    crimux.client().runtime().version(cri::VersionRequest::default()).await.unwrap();
    let shown = status(&crimux).await["admin_http"].clone();
    assert_eq!(shown["address"], address);
    assert!(shown["problem"].as_str().unwrap().contains("in use"), "{shown}");
    assert!(crimux.log().contains("admin.http does not listen"), "{}", crimux.log());
    drop(taken);
    eventually(SECONDS, async || status(&crimux).await["admin_http"]["problem"].is_null()).await;
    assert_eq!(crimux.http("GET", "/healthz").await.0, 200);
}

#[tokio::test]
async fn idle_connections_to_admin_http_are_bounded_and_keep_nobody_out() {
    let a = SimRuntime::builder("a").start().await;
    let crimux = start(&a, on("127.0.0.1:0")).await;
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", crimux.pid())).unwrap().count();
    let before = descriptors();
    let mut idle = idle(&crimux.http_address(), MANY).await;
    assert_eq!(in_time(crimux.http("GET", "/metrics")).await.0, 200);
    eventually(SOON, async || descriptors() <= before + 64).await;
    // What gave way is closed, and so is, in the end, what only sits there.
    let mut byte = [0];
    for old in [0, MANY - 100] {
        assert!(!matches!(in_time(idle[old].read(&mut byte)).await, Ok(1..)));
    }
    let last = idle.last_mut().unwrap();
    let ended = tokio::time::timeout(SECONDS, last.read_to_end(&mut Vec::new())).await;
    ended.expect("an idle connection is ended").ok();
}

#[tokio::test]
async fn the_metrics_are_made_once_a_second_and_compressed_for_whom_takes_it() {
    let a = SimRuntime::builder("a").start().await;
    let crimux = start(&a, on("127.0.0.1:0")).await;
    let body = async || crimux.http("GET", "/metrics").await.1.split_once("\r\n\r\n").unwrap().1.to_owned();
    // Two that come one after the other are of the same moment, whatever was called in between.
    let same = async || {
        let first = body().await;
        crimux.client().runtime().version(cri::VersionRequest::default()).await.unwrap();
        first == body().await
    };
    eventually(SOON, same).await;
    let first = body().await;
    eventually(SOON, async || body().await != first).await;

    let mut stream = TcpStream::connect(crimux.http_address()).await.unwrap();
    let request = "GET /metrics HTTP/1.0\r\nhost: crimux\r\naccept-encoding: gzip\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await.unwrap();
    let head = String::from_utf8_lossy(&reply).to_lowercase();
    assert!(
        head.contains("content-encoding: gzip\r\n") && head.contains("vary: accept, accept-encoding\r\n")
    );
    let body = reply.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    assert_eq!(reply[body..body + 2], [0x1f, 0x8b], "gzip begins like this");
}

#[tokio::test]
async fn idle_connections_to_the_relays_port_delay_no_stream() {
    let a = SimRuntime::builder("a").containers(1, 1).start().await;
    let crimux = start(&a, |yaml| with(&yaml, "streaming: { relay: always }")).await;
    let container_id = a.state().containers().next().unwrap().id.clone();
    let cmd = vec!["true".to_owned()];
    let request = cri::ExecRequest { container_id, cmd, stdout: true, ..Default::default() };
    let url = crimux.client().runtime().exec(request).await.unwrap().into_inner().url;
    let (authority, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let _idle = idle(authority, 600).await;
    let mut stream = TcpStream::connect(authority).await.unwrap();
    let head = format!(
        "POST /{path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\nover and back"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut reply = String::new();
    // Each idle connection may stay for ten seconds; a client that had to wait behind them would wait as
    // long.
    let answered = tokio::time::timeout(Duration::from_secs(8), stream.read_to_string(&mut reply));
    answered.await.expect("nobody waits behind idle connections").unwrap();
    assert!(reply.starts_with("HTTP/1.1 101 ") && reply.ends_with("over and back"), "{reply}");
}
