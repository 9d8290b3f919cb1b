//! The streaming server: tokens, upgrade, echo, half-close.

use testkit::cri;
use testkit::runtime::SimRuntime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client_of;

async fn exec_url(sim: &SimRuntime) -> String {
    let container_id = sim.state().containers().next().unwrap().id.clone();
    let request = cri::ExecRequest { container_id, cmd: vec!["sh".into()], ..Default::default() };
    client_of(sim).runtime().exec(request).await.unwrap().into_inner().url
}

async fn ask(sim: &SimRuntime, path: &str, headers: &str, body: &str) -> String {
    let mut connection = TcpStream::connect(("127.0.0.1", sim.stream_port())).await.unwrap();
    let request = format!("POST {path} HTTP/1.1\r\nHost: node\r\n{headers}\r\n{body}");
    connection.write_all(request.as_bytes()).await.unwrap();
    connection.shutdown().await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    answer
}

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";

#[tokio::test]
async fn an_upgraded_connection_echoes_to_its_end_and_its_token_is_spent() {
    let sim = SimRuntime::builder("containerd").containers(1, 1).start().await;
    let url = exec_url(&sim).await;
    let path = url.strip_prefix(&format!("http://127.0.0.1:{}", sim.stream_port())).unwrap();
    let answer = ask(&sim, path, UPGRADE, "any \u{1} bytes").await;
    let (head, echo) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("Upgrade: SPDY/3.1"), "{head}");
    assert_eq!(echo, "any \u{1} bytes");
    assert!(sim.stream_requests()[0].head.contains("Host: node"));

    assert!(ask(&sim, path, UPGRADE, "").await.starts_with("HTTP/1.1 404 "));
}

#[tokio::test]
async fn unknown_tokens_and_plain_requests_are_refused() {
    let sim = SimRuntime::builder("containerd").containers(1, 1).start().await;
    assert!(ask(&sim, "/exec/unknown", UPGRADE, "").await.starts_with("HTTP/1.1 404 "));
    let url = exec_url(&sim).await;
    let path = &url[url.find("/exec/").unwrap()..];
    assert!(ask(&sim, path, "", "").await.starts_with("HTTP/1.1 400 "));
    let statuses: Vec<_> = sim.stream_requests().iter().map(|request| request.status).collect();
    assert_eq!(statuses, [404, 400]);
}

#[tokio::test]
async fn the_host_of_urls_can_be_any() {
    let url = "https://node.example:{port}";
    let sim = SimRuntime::builder("far")
        .containers(1, 1)
        .abilities(|can| can.stream_url = url.into())
        .start()
        .await;
    let expected = format!("https://node.example:{}/exec/", sim.stream_port());
    assert!(exec_url(&sim).await.starts_with(&expected));
}
