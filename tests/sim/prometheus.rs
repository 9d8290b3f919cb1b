//! What Prometheus sees: every metric that the docs, the rules and the dashboard name exists, with those
//! labels, and a real Prometheus reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use crimux::wire;
use nix::sys::signal::Signal;
use prost::Message as _;
use testkit::client::sandbox_config;
use testkit::runtime::{Reply, SimRuntime};
use testkit::{cri, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::doctor::over_tls;
use crate::pki::Authority;
use crate::support::{Crimux, SOON, config};

/// crimux after one of everything that is counted: two backends, one of them then down, and one behind TLS.
async fn busy() -> (Vec<SimRuntime>, Crimux) {
    let a = SimRuntime::builder("a").handlers(["a"]).sandboxes(1, 1).start().await;
    let b = SimRuntime::builder("b").handlers(["b"]).sandboxes(1, 1).start().await;
    let dir = tempfile::tempdir().unwrap();
    let always = format!("a: {{ streaming: {{ relay: always }}, endpoint: \"{}\"", a.endpoint());
    let far = SimRuntime::builder("far").start().await;
    let authority = Authority::new("ca");
    let port = over_tls(&far, &authority.issue("far", &["localhost"]), &authority).await;
    let ours = authority.issue("crimux", &["crimux"]);
    for (name, text) in [("ca.crt", authority.pem()), ("our.crt", ours.cert), ("our.key", ours.key)] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let behind_tls = format!(
        "  far: {{ endpoint: \"https://localhost:{port}\", timeouts: {{ connect: 10s }}, \
         tls: {{ ca: ca.crt, cert: our.crt, key: our.key }} }}\nhandlers:\n"
    );
    let yaml = config(&dir, &[("a", &a), ("b", &b)], "")
        .replace("handlers:\n", &behind_tls)
        .replace(&format!("a: {{ endpoint: \"{}\"", a.endpoint()), &always)
        .replace("http: off", "http: 127.0.0.1:0");
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    let mut runtime = crimux.client().runtime();
    runtime.run_pod_sandbox(sandbox_config("pod").run("a")).await.unwrap();
    let container_id = a.state().containers().next().unwrap().id.clone();
    let exec =
        cri::ExecRequest { container_id, cmd: vec!["true".into()], stdout: true, ..Default::default() };
    let url = runtime.exec(exec).await.unwrap().into_inner().url;
    stream(&url).await;
    get_answers_wrong(&b, &crimux).await;
    b.stop().await;
    eventually(SOON, async || crimux.metric("crimux_backend_up{backend=\"b\"}").await == Some(0.0)).await;
    runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await.unwrap();
    runtime.list_pod_sandbox_metrics(cri::ListPodSandboxMetricsRequest {}).await.unwrap();
    crimux.signal(Signal::SIGHUP);
    let reloads = "crimux_config_reloads_total{result=\"unchanged\"}";
    eventually(SOON, async || crimux.metric(reloads).await.is_some()).await;
    (vec![a, b, far], crimux)
}

/// Lets `b` list a sandbox with a handler that is not UTF-8, and stats of no container.
async fn get_answers_wrong(b: &SimRuntime, crimux: &Crimux) {
    let metadata = Some(cri::PodSandboxMetadata::default());
    let mut sandbox = cri::PodSandbox { id: "x".into(), metadata, ..Default::default() }.encode_to_vec();
    let handler = 7;
    wire::put_bytes(&mut sandbox, handler, b"\xff");
    for (method, item) in [("ListPodSandbox", sandbox), ("ListContainerStats", Vec::new())] {
        let mut list = Vec::new();
        wire::put_bytes(&mut list, 1, &item);
        b.reply_raw(method, Reply::message(list));
        let path = format!("/runtime.v1.RuntimeService/{method}");
        crimux.client().raw(&path, &[], Bytes::new()).await.unwrap();
    }
    b.clear_replies();
}

/// Opens an exec stream through the relay, and ends it.
async fn stream(url: &str) {
    let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let upgrade = "connection: upgrade\r\nupgrade: SPDY/3.1\r\n";
    let request = format!("POST /{path} HTTP/1.1\r\nhost: {address}\r\n{upgrade}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 101");
}

/// The base names of all series in a scrape, and the labels of each without `le`.
fn scraped(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let histograms: BTreeSet<_> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" histogram")).collect();
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let base = base.filter(|base| histograms.contains(base)).unwrap_or(name);
        let labels = labels.split(',').filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
        found.entry(base.to_owned()).or_default().extend(labels.filter(|label| label != "le"));
    }
    found
}

/// The metrics of `docs/metrics.md` with their labels.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let docs = include_str!("../../docs/metrics.md");
    let rows = docs.lines().filter_map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let name = cells[0].strip_prefix('`')?.strip_suffix('`')?;
        let labels = cells
            .get(2)?
            .split(", ")
            .filter_map(|l| Some(l.strip_prefix('`')?.strip_suffix('`')?.to_owned()));
        (cells.len() == 5).then(|| (name.to_owned(), labels.collect()))
    });
    rows.collect()
}

/// The words of a file that are names of metrics; recorded ones have a colon and are not ours.
fn named_in(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
        .filter(|word| word.starts_with("crimux_") || word.starts_with("process_"))
        .filter(|word| !word.contains(':') && !word.ends_with('_'))
        .map(|word| {
            ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word)
        })
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn every_metric_of_the_docs_exists_with_its_labels_and_no_other_does() {
    let (_runtimes, crimux) = busy().await;
    let (_, text) = crimux.get("/metrics").await.unwrap();
    let (found, documented) = (scraped(&text), documented());
    assert!(documented.len() > 20, "{documented:?}");
    for (name, labels) in &documented {
        let found = found.get(name).unwrap_or_else(|| panic!("{name} is documented and not there"));
        assert_eq!(found, labels, "{name}");
    }
    let undocumented: Vec<_> = found.keys().filter(|name| !documented.contains_key(*name)).collect();
    assert!(undocumented.is_empty(), "{undocumented:?}");
}

#[tokio::test]
async fn counters_start_at_0_for_every_backend_method_handler_and_result_that_is_known() {
    let a = SimRuntime::builder("a").start().await;
    let b = SimRuntime::builder("b").start().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    for series in [
        "items_left_out_total{backend=\"b\",method=\"ListContainers\"}",
        "items_left_out_total{backend=\"b\",method=\"PodSandboxStatus\"}",
        "items_left_out_total{backend=\"b\",method=\"GetContainerEvents\"}",
        "texts_repaired_total{backend=\"a\",method=\"ListPodSandbox\"}",
        "backends_left_out_total{backend=\"b\",method=\"ImageFsInfo\"}",
        "lists_stale_total{backend=\"b\",method=\"ListContainerStats\"}",
        "merged_lists_large_total{method=\"ListContainers\"}",
        "sandboxes_routed_total{backend=\"b\",handler=\"b\"}",
        "sandboxes_routed_total{backend=\"a\",handler=\"\"}",
        "config_reloads_total{result=\"failed\"}",
        "config_reloads_total{result=\"unchanged\"}",
        "requests_total{backend=\"none\",code=\"InvalidArgument\",method=\"RunPodSandbox\"}",
        "requests_total{backend=\"none\",code=\"Unavailable\",method=\"RunPodSandbox\"}",
    ] {
        assert_eq!(crimux.metric(&format!("crimux_{series}")).await, Some(0.0), "{series}");
    }
    let (_, text) = crimux.get("/metrics").await.unwrap();
    assert!(!text.contains("backends_left_out_total{backend=\"b\",method=\"ListContainers\"}"), "{text}");
}

#[tokio::test]
async fn every_metric_that_a_rule_or_the_dashboard_asks_for_exists() {
    let (_runtimes, crimux) = busy().await;
    let (_, text) = crimux.get("/metrics").await.unwrap();
    let found = scraped(&text);
    for (file, text) in [
        ("alerts", include_str!("../../deploy/prometheus/alerts.rules.yaml")),
        ("recording", include_str!("../../deploy/prometheus/recording.rules.yaml")),
        ("dashboard", include_str!("../../deploy/grafana/crimux.json")),
    ] {
        let named = named_in(text);
        assert!(!named.is_empty(), "{file}");
        let missing: Vec<_> = named.iter().filter(|name| !found.contains_key(*name)).collect();
        assert!(missing.is_empty(), "{file}: {missing:?}");
    }
}

/// A Prometheus that scrapes one target every 200 ms; it ends when this is dropped.
struct Prometheus {
    process: Child,
    address: String,
}

impl Prometheus {
    /// `None`, after saying so, where it is not installed.
    fn start(dir: &Path, target: &str) -> Option<Self> {
        let file = dir.join("prometheus.yaml");
        let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus");
        let text = format!(
            "global: {{ evaluation_interval: 200ms }}\n\
             rule_files: [ {rules}/alerts.rules.yaml, {rules}/recording.rules.yaml ]\n\
             scrape_configs:\n- job_name: crimux\n  scrape_interval: 200ms\n  scrape_timeout: 200ms\n  \
             static_configs: [ {{ targets: [ \"{target}\" ] }} ]\n"
        );
        std::fs::write(&file, text).unwrap();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut process) = process else {
            testkit::bed::skipped("prometheus is not installed (Debian package prometheus)");
            return None;
        };
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let listening = lines.find_map(|line| {
            let line = line.unwrap();
            let address =
                line.contains("Listening on").then(|| line.split("address=").nth(1).map(str::to_owned));
            address.flatten()
        });
        // It must not end because nobody reads what it says.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Some(Self { process, address: listening.expect("prometheus says where it listens") })
    }

    /// Asks for the value of the one series of an instant query.
    async fn query(&self, query: &str) -> Option<String> {
        let mut stream = TcpStream::connect(&self.address).await.ok()?;
        let body = format!(
            "query={}",
            percent_encoding::utf8_percent_encode(query, percent_encoding::NON_ALPHANUMERIC)
        );
        let request = format!(
            "POST /api/v1/query HTTP/1.0\r\nhost: prometheus\r\ncontent-type: application/x-www-form-urlencoded\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.ok()?;
        let (_, body) = reply.split_once("\r\n\r\n")?;
        let answer: serde_json::Value = serde_json::from_str(body).ok()?;
        let result = answer["data"]["result"].as_array()?;
        assert!(result.len() <= 1, "{answer}");
        Some(result.first()?["value"][1].as_str()?.to_owned())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has noticed.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[tokio::test]
async fn a_real_prometheus_scrapes_crimux_and_evaluates_the_rules_on_it() {
    let (_runtimes, crimux) = busy().await;
    let dir = tempfile::tempdir().unwrap();
    let Some(prometheus) = Prometheus::start(dir.path(), &crimux.http_address()) else { return };
    for (query, value) in [
        ("up{job=\"crimux\"}", "1"),
        ("crimux_backend_up{backend=\"a\"}", "1"),
        ("crimux_backend_up{backend=\"b\"}", "0"),
        ("crimux_backend_state{backend=\"b\",state=\"down\"}", "1"),
        ("crimux_backend_info{backend=\"a\",runtime_name=\"a\"}", "1"),
        ("crimux_sandboxes_routed_total{handler=\"a\",backend=\"a\"}", "1"),
        ("count(crimux_request_duration_seconds_count{method=\"ListPodSandbox\",backend=\"all\"})", "1"),
        ("count(ALERTS{alertname=\"CrimuxBackendDown\",backend=\"b\"})", "1"),
    ] {
        eventually(SOON, async || prometheus.query(query).await.as_deref() == Some(value)).await;
    }
}
