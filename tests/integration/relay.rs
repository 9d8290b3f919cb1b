//! The streaming relay, seen from kubelet on one side and a streaming server on the other.

use std::sync::Arc;
use std::time::Duration;

use crate::pki::{Authority, Files, backend, server};
use crimux::backend::connect::Connector;
use crimux::config::{BackendConfig, Endpoint, RelayMode};
use crimux::relay::{ClientUrl, Relay, RelayMetrics, UrlError};
use crimux::shutdown::{Shutdown, run_with_deadline};
use prometheus::Registry;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

/// Longer than any test takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// A running relay and what it counts.
struct Node {
    relay: Arc<Relay>,
    registry: Registry,
    shutdown: Shutdown,
    running: JoinHandle<()>,
}

impl Node {
    async fn start() -> Self {
        let registry = Registry::new();
        let relay = Relay::bind(RelayMetrics::new(&registry).unwrap()).await.unwrap();
        let shutdown = Shutdown::default();
        let (serving, begun) = (Arc::clone(&relay).run(shutdown.clone()), shutdown.clone());
        let running = tokio::spawn(async move {
            run_with_deadline("relay", &begun, || Duration::from_secs(5), serving).await;
        });
        Self { relay, registry, shutdown, running }
    }

    fn route(&self, config: &BackendConfig, url: &str) -> Result<ClientUrl, UrlError> {
        self.relay.issue_url("edge", config, &Arc::new(Connector::new(config).unwrap()), url)
    }

    /// The path of a relayed `url`.
    fn path(&self, config: &BackendConfig, url: &str) -> String {
        let Ok(ClientUrl::Relayed(ours)) = self.route(config, url) else { panic!("{url} is not relayed") };
        ours.strip_prefix(&format!("http://{}", self.relay.address())).unwrap().to_owned()
    }

    async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.relay.address()).await.unwrap()
    }

    /// Sends an upgrade request for `path` and returns the connection.
    async fn request(&self, path: &str) -> TcpStream {
        let mut client = self.dial().await;
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: x\r\nUpgrade: SPDY/3.1\r\nConnection: Upgrade\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        client
    }

    /// Sends an upgrade request for `path` and returns everything that comes back.
    async fn answer(&self, path: &str) -> String {
        let mut client = self.request(path).await;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// The sum of a metric over its labels.
    fn count(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        family.map_or(0.0, |family| {
            let value = |metric: &prometheus::proto::Metric| {
                metric.get_counter().get_value() + metric.get_gauge().get_value()
            };
            family.get_metric().iter().map(value).sum()
        })
    }
}

/// A streaming server on loopback; always relayed.
async fn streaming_server() -> (TcpListener, BackendConfig, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = backend(Endpoint::Unix("/run/cri.sock".into()), true);
    config.streaming.relay = RelayMode::Always;
    config.timeouts.connect = Duration::from_secs(30);
    let url = format!("http://{}/exec/abc", listener.local_addr().unwrap());
    (listener, config, url)
}

async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: SPDY/3.1\r\n\r\n";

/// Answers 101 and echoes until the other side is done, then is done too.
async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
    let head = read_head(&mut stream).await;
    stream.write_all(SWITCHING.as_bytes()).await.unwrap();
    let (mut from, mut to) = tokio::io::split(stream);
    tokio::io::copy(&mut from, &mut to).await.ok();
    to.shutdown().await.ok();
    head
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("within the deadline")
}

/// Bytes that differ from block to block, so that a lost or repeated block shows.
fn block(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut words = Vec::with_capacity(64 * 1024);
    while words.len() < 64 * 1024 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        words.extend_from_slice(&state.to_le_bytes());
    }
    words
}

/// Sends `blocks` blocks, half-closes, and holds what comes back against them, up to the end.
async fn exchange(mut client: TcpStream, blocks: u64) {
    assert_eq!(read_head(&mut client).await, SWITCHING);
    let (mut from, mut to) = client.split();
    let send = async {
        for number in 0..blocks {
            to.write_all(&block(number)).await.unwrap();
        }
        to.shutdown().await.unwrap();
    };
    let receive = async {
        let mut received = vec![0; 64 * 1024];
        for number in 0..blocks {
            from.read_exact(&mut received).await.unwrap();
            assert!(received == block(number), "block {number} differs");
        }
        assert_eq!(from.read(&mut received).await.unwrap(), 0);
    };
    tokio::join!(send, receive);
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_mebibytes_come_back_byte_for_byte_after_half_close() {
    let node = Node::start().await;
    let (listener, config, url) = streaming_server().await;
    let path = node.path(&config, &url);
    let serving = tokio::spawn(async move { echo(listener.accept().await.unwrap().0).await });
    let client = node.request(&path).await;
    within(exchange(client, 1024)).await;
    let head = within(serving).await.unwrap();
    assert!(head.starts_with("POST /exec/abc HTTP/1.1\r\n"), "{head}");
    let heads = head.len() + SWITCHING.len();
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    let expected = (2 * 64 * 1024 * 1024 + heads) as f64;
    assert!((node.count("crimux_relay_bytes_total") - expected).abs() < 0.5);
}

#[tokio::test(flavor = "multi_thread")]
async fn mutual_tls_streaming_servers_are_reached_with_the_backends_identity() {
    let authority = Authority::new("site");
    let files = Files::new(&authority.pem(), Some(&authority.issue("crimux", &[])));
    for version in [&TLS13, &TLS12] {
        let node = Node::start().await;
        let acceptor = server(&authority.issue("node", &["node-7.example"]), Some(&authority), &[version]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = backend(Endpoint::Unix("/run/tunnel.sock".into()), false);
        config.tls = Some(files.tls());
        config.tls.as_mut().unwrap().server_name = Some("node-7.example".to_owned());
        config.timeouts.connect = Duration::from_secs(30);
        config.streaming.tls = true;
        config.streaming.address = Some(("127.0.0.1".to_owned(), listener.local_addr().unwrap().port()));
        let path = node.path(&config, "http://10.9.9.9:1/exec/abc");
        let serving = tokio::spawn(async move {
            echo(acceptor.accept(listener.accept().await.unwrap().0).await.unwrap()).await
        });
        within(exchange(node.request(&path).await, 64)).await;
        within(serving).await.unwrap();
    }
}

#[tokio::test]
async fn only_path_and_host_of_the_request_change_however_it_is_cut() {
    let (listener, config, url) = streaming_server().await;
    let host = listener.local_addr().unwrap();
    let node = Node::start().await;
    for packet in [1, 7, 10_000] {
        let path = node.path(&config, &format!("{url}?from=backend"));
        let rest = |host: &str| {
            format!(
                "&cmd=%2Fexec HTTP/1.1\r\nX-Stream-Protocol-Version: v5.channel.k8s.io\r\nhOst:  {host}\r\n\
                 X-stream-protocol-version: v4.channel.k8s.io\r\nsec-websocket-KEY: a==\r\n\
                 Connection: Upgrade\r\nupgrade: websocket\r\n\r\n\u{0}early bytes"
            )
        };
        let sent = format!("GET {path}{}", rest("127.0.0.1:9"));
        let mut client = node.dial().await;
        client.set_nodelay(true).unwrap();
        for part in sent.as_bytes().chunks(packet) {
            client.write_all(part).await.unwrap();
            tokio::task::yield_now().await;
        }
        client.shutdown().await.unwrap();
        let (mut served, _) = within(listener.accept()).await.unwrap();
        let mut received = String::new();
        within(served.read_to_string(&mut received)).await.unwrap();
        assert_eq!(received, format!("GET /exec/abc?from=backend{}", rest(&host.to_string())));
    }
}

#[tokio::test]
async fn answers_other_than_101_pass_as_they_are() {
    let node = Node::start().await;
    let (listener, config, url) = streaming_server().await;
    let path = node.path(&config, &url);
    let raw = "HTTP/1.1 403 Forbidden\r\ncontent-LENGTH: 4\r\nX:  odd \r\n\r\nno!\n";
    tokio::spawn(async move {
        let (mut served, _) = listener.accept().await.unwrap();
        read_head(&mut served).await;
        served.write_all(raw.as_bytes()).await.unwrap();
    });
    assert_eq!(within(node.answer(&path)).await, raw);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_output_of_a_process_arrives_though_it_left_its_input_unread() {
    let node = Node::start().await;
    let (listener, config, url) = streaming_server().await;
    let client = node.request(&node.path(&config, &url)).await;
    let (mut served, _) = within(listener.accept()).await.unwrap();
    read_head(&mut served).await;
    let (mut output, mut input) = client.into_split();
    let typing = tokio::spawn(async move { while input.write_all(&[b'i'; 4096]).await.is_ok() {} });
    within(async {
        while node.count("crimux_relay_bytes_total") < 65536.0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    served.write_all(b"last words").await.unwrap();
    drop(served);
    let mut heard = String::new();
    within(output.read_to_string(&mut heard)).await.unwrap();
    assert_eq!(heard, "last words");
    within(typing).await.unwrap();
}

#[tokio::test]
async fn used_guessed_foreign_and_expired_tokens_get_404_and_are_counted() {
    let node = Node::start().await;
    let (listener, config, url) = streaming_server().await;
    let path = node.path(&config, &url);
    let client = node.request(&path).await;
    let serving = tokio::spawn(async move { echo(listener.accept().await.unwrap().0).await });
    within(exchange(client, 1)).await;
    within(serving).await.unwrap();

    let expired = node.path(&config, &url);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
    let fresh = node.path(&config, &url);
    let refused = [
        path.as_str(),
        "/exec/00000000000000000000000000000000",
        "/exec/abc",
        &fresh.replace("exec", "attach"),
        "/",
        "/metrics",
        &expired,
    ];
    for path in refused {
        let answer = within(node.answer(path)).await;
        assert!(answer.starts_with("HTTP/1.1 404 Not Found\r\n"), "{path}: {answer}");
        assert!(answer.ends_with("\r\n\r\n") && answer.contains("Content-Length: 0\r\n"), "{answer}");
    }
    #[allow(clippy::cast_precision_loss, reason = "seven")]
    let expected = refused.len() as f64;
    assert!((node.count("crimux_relay_refused_tokens_total") - expected).abs() < 0.5);
}

#[tokio::test]
async fn a_dead_streaming_server_is_a_502_that_names_the_backend_only() {
    let node = Node::start().await;
    let (listener, config, url) = streaming_server().await;
    let port = listener.local_addr().unwrap().port().to_string();
    drop(listener);
    let answer = within(node.answer(&node.path(&config, &url))).await;
    assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{answer}");
    assert!(answer.ends_with("crimux cannot reach the streaming server of backend edge\n"), "{answer}");
    assert!(!answer.contains(&port), "{answer}");
    assert!(node.count("crimux_relay_streams").abs() < 0.5);
}

#[tokio::test]
async fn a_hostile_remote_backend_gets_no_token_for_this_node() {
    let node = Node::start().await;
    let remote = backend(Endpoint::Tcp { host: "node-7".to_owned(), port: 10010, tls: false }, false);
    for url in ["http://127.0.0.1:10250/exec/abc", "http://:10250/exec/abc", "/exec/abc"] {
        assert!(matches!(node.route(&remote, url), Err(UrlError::ThisNode { .. })), "{url}");
    }
    assert!(matches!(node.route(&remote, "http://10.0.0.8:1/exec/abc"), Err(UrlError::OtherHost { .. })));
    let allowed = node.route(&remote, "http://node-7:1/exec/abc").unwrap();
    assert!(matches!(allowed, ClientUrl::Relayed(ours) if ours.starts_with("http://127.0.0.1:")));
}

#[tokio::test]
async fn only_loopback_is_listened_on() {
    let node = Node::start().await;
    let port = format!(":{:04X}", node.relay.address().port());
    // Columns of these tables: number, local address, remote address, state (0A is LISTEN).
    let listening = |table: &str| -> Vec<String> {
        let table = std::fs::read_to_string(table).unwrap_or_default();
        let rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
        rows.filter(|row| row.len() > 3 && row[3] == "0A" && row[1].ends_with(&port))
            .map(|row| row[1].to_owned())
            .collect()
    };
    assert_eq!(listening("/proc/self/net/tcp"), [format!("0100007F{port}")]);
    assert!(listening("/proc/self/net/tcp6").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_come_or_does_not_end_is_refused() {
    let node = Node::start().await;
    let mut slow = node.dial().await;
    slow.write_all(b"GET /exec/abc HTTP/1.1\r\nHost:").await.unwrap();
    let started = tokio::time::Instant::now();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(started.elapsed().as_secs(), 10);

    let mut endless = node.dial().await;
    endless.write_all(b"GET /exec/abc HTTP/1.1\r\nA: ").await.unwrap();
    endless.write_all(&vec![b'a'; 64 * 1024]).await.unwrap();
    answer.clear();
    endless.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_refuses_connections_and_gives_open_streams_its_time() {
    let node = Node::start().await;
    let (listener, mut config, url) = streaming_server().await;
    // The clock jumps whenever all tasks wait, so the dial must not be what it jumps over.
    config.timeouts.connect = Duration::from_secs(3600);
    let mut client = node.request(&node.path(&config, &url)).await;
    let (mut served, _) = listener.accept().await.unwrap();
    read_head(&mut served).await;
    let address = node.relay.address();
    let started = tokio::time::Instant::now();
    node.shutdown.begin();

    while TcpStream::connect(address).await.is_ok() {
        assert!(started.elapsed() < Duration::from_secs(1), "connections are still accepted");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    served.write_all(b"still open").await.unwrap();
    let mut received = [0; 10];
    client.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"still open");

    node.running.await.unwrap();
    assert_eq!(started.elapsed().as_secs(), 5);
    assert_eq!(client.read(&mut received).await.unwrap_or(0), 0);
}

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_streams_at_once_stay_within_64_kib_each() {
    const STREAMS: usize = 1000;
    rlimit::increase_nofile_limit(8192).unwrap();
    let node = Node::start().await;
    let (listener, config, url) = streaming_server().await;
    tokio::spawn(async move {
        while let Ok((served, _)) = listener.accept().await {
            tokio::spawn(echo(served));
        }
    });
    let before = resident();
    let mut clients = JoinSet::new();
    // Of the connections whose head was not read yet, the relay keeps 512 and closes the oldest.
    let opening = Arc::new(Semaphore::new(256));
    for _ in 0..STREAMS {
        let path = node.path(&config, &url);
        let address = node.relay.address();
        let opening = Arc::clone(&opening);
        clients.spawn(async move {
            let turn = opening.acquire_owned().await.unwrap();
            let mut client = TcpStream::connect(address).await.unwrap();
            let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
            client.write_all(head.as_bytes()).await.unwrap();
            assert_eq!(read_head(&mut client).await, SWITCHING);
            drop(turn);
            for _ in 0..32 {
                client.write_all(&[7; 1024]).await.unwrap();
                let mut back = [0; 1024];
                client.read_exact(&mut back).await.unwrap();
                assert!(back == [7; 1024]);
            }
            client
        });
    }
    let clients = within(clients.join_all()).await;
    assert!((node.count("crimux_relay_streams") - 1000.0).abs() < 0.5);
    // The clients and the streaming server are counted too, being in this process.
    let each = resident().saturating_sub(before) / STREAMS;
    assert!(each < 64 * 1024, "{each} bytes a stream");
    drop(clients);
    within(async {
        while node.count("crimux_relay_streams") > 0.5 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
