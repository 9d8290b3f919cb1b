//! Traces: crimux between kubelet and the runtime where it is told to be, and invisible where not.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use prost::Message;
use testkit::runtime::SimRuntime;
use testkit::{cri, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tonic::Code;
use tonic::body::Body;

use crate::support::{Crimux, SOON, config};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const UNSAMPLED: &str = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
const LIST: &str = "/runtime.v1.RuntimeService/ListContainers";
const STATUS: &str = "/runtime.v1.RuntimeService/ContainerStatus";

/// One span, as far as these tests look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    name: String,
    /// 2 is a server's, 3 a client's.
    kind: u64,
    /// Text, or a number as text.
    attributes: BTreeMap<String, String>,
}

/// An OTLP/gRPC collector that keeps what it is sent.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    /// Listens on a free port; returns itself and its endpoint.
    async fn start() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let collector = Self::default();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(tonic::transport::Server::builder().serve_with_incoming(collector.clone(), incoming));
        (collector, endpoint)
    }

    fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }

    /// Waits until there are this many spans of a method.
    async fn of(&self, method: &str, count: usize) -> Vec<Span> {
        let of = || -> Vec<Span> {
            self.spans().into_iter().filter(|span| span.name.ends_with(&format!("/{method}"))).collect()
        };
        eventually(SOON, async || of().len() >= count).await;
        of()
    }

    /// Reads an `ExportTraceServiceRequest` (opentelemetry-proto, trace.proto).
    fn keep(&self, request: &[u8]) {
        let each = |message: &[u8], number| -> Vec<Vec<u8>> {
            crimux::wire::items(message, number).map(|item| item.unwrap().to_vec()).collect()
        };
        for resource in each(request, 1) {
            let own =
                each(&resource, 1).iter().flat_map(|resource| each(resource, 1)).map(|a| pair(&a)).collect();
            let attributes: BTreeMap<_, _> = own;
            assert_eq!(attributes["service.name"], "crimux");
            for span in each(&resource, 2).iter().flat_map(|scope| each(scope, 2)) {
                let bytes =
                    |number| hex(crimux::wire::peek_bytes(&span, &[number]).unwrap().unwrap_or_default());
                self.spans.lock().unwrap().push(Span {
                    trace: bytes(1),
                    id: bytes(2),
                    parent: bytes(4),
                    name: crimux::wire::peek_str(&span, &[5]).unwrap().to_owned(),
                    kind: crimux::wire::peek_varint(&span, &[6]).unwrap(),
                    attributes: each(&span, 9).iter().map(|attribute| pair(attribute)).collect(),
                });
            }
        }
    }
}

/// Reads a `KeyValue` whose value is text or a number.
fn pair(attribute: &[u8]) -> (String, String) {
    let key = crimux::wire::peek_str(attribute, &[1]).unwrap().to_owned();
    let value = match crimux::wire::peek_bytes(attribute, &[2, 1]) {
        Ok(Some(text)) => String::from_utf8(text.to_vec()).unwrap(),
        _ => crimux::wire::peek_varint(attribute, &[2, 3]).unwrap().to_string(),
    };
    (key, value)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

impl tower::Service<http::Request<Body>> for Collector {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let collector = self.clone();
        Box::pin(async move {
            assert_eq!(request.uri().path(), "/opentelemetry.proto.collector.trace.v1.TraceService/Export");
            let message = crimux::codec::collect_request(request.into_body()).await.unwrap();
            collector.keep(message.encoded());
            let reply = crimux::codec::Message::new(&[]).framed();
            let body = crimux::codec::BufferedBody::new(vec![reply], crimux::codec::ok_trailers());
            let mut response = http::Response::new(Body::new(body));
            *response.headers_mut() = crimux::codec::reply_headers();
            Ok(response)
        })
    }
}

async fn traced(backends: &[(&str, &SimRuntime)], tracing: &str) -> Crimux {
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&dir, backends, &format!("tracing: {{ {tracing} }}\n"));
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    crimux
}

async fn runtime(name: &str) -> SimRuntime {
    SimRuntime::builder(name).containers(2, 1).start().await
}

/// Scrapes the admin socket as Prometheus does.
async fn openmetrics(crimux: &Crimux) -> String {
    let mut stream = tokio::net::UnixStream::connect(crimux.dir.path().join("admin.sock")).await.unwrap();
    let accept = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3";
    let request = format!("GET /metrics HTTP/1.0\r\nhost: crimux\r\naccept: {accept}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(body.ends_with("\n# EOF\n"), "{body}");
    for line in body.lines().filter(|line| line.starts_with("# TYPE ") && line.ends_with(" counter")) {
        assert!(!line.contains("_total "), "{line}");
    }
    body.to_owned()
}

/// The trace, span and flags of what a backend was sent.
fn sent(runtime: &SimRuntime, method: &str) -> (String, String, String) {
    let calls = runtime.calls(method);
    let value = calls.last().unwrap().header("traceparent").unwrap().to_owned();
    let [version, trace, span, flags] = value.split('-').collect::<Vec<_>>()[..] else { panic!("{value}") };
    assert_eq!(version, "00");
    (trace.to_owned(), span.to_owned(), flags.to_owned())
}

#[tokio::test]
async fn without_a_collector_the_trace_context_passes_byte_for_byte() {
    let a = runtime("a").await;
    let crimux = Crimux::start(&[("a", &a)]).await;
    let id = a.state().containers().next().unwrap().id.clone();
    let request = cri::ContainerStatusRequest { container_id: id, verbose: false };
    let metadata = [
        ("traceparent", PARENT),
        ("tracestate", "congo=t61rcWkgMzE, rojo=00f067aa0ba902b7"),
        ("baggage", "userId=alice,serverNode=DF%2028;x=y"),
    ];
    for (path, message) in [(STATUS, request.encode_to_vec()), (LIST, Vec::new())] {
        crimux.client().raw(path, &metadata, message).await.unwrap();
        let call = a.calls(path).pop().unwrap();
        for (name, value) in metadata {
            assert_eq!(call.header(name), Some(value), "{path}");
        }
    }
    crimux.client().raw(LIST, &[("traceparent", "no context")], Bytes::new()).await.unwrap();
    assert_eq!(a.calls(LIST).pop().unwrap().header("traceparent"), Some("no context"));
}

#[tokio::test]
async fn crimux_stands_between_client_and_runtime_in_one_trace() {
    let (collector, endpoint) = Collector::start().await;
    let (a, b) = (runtime("a").await, runtime("b").await);
    let crimux = traced(&[("a", &a), ("b", &b)], &format!("otlp: {endpoint}")).await;
    let id = b.state().containers().next().unwrap().id.clone();
    let request = cri::ContainerStatusRequest { container_id: id, verbose: false };
    let metadata = [("traceparent", PARENT), ("tracestate", "a=b"), ("baggage", "c=d")];
    let reply = crimux.client().raw(STATUS, &metadata, request.encode_to_vec()).await.unwrap();
    assert_eq!(reply.code(), Code::Ok);

    let spans = collector.of("ContainerStatus", 2).await;
    let server = spans.iter().find(|span| span.kind == 2).unwrap();
    let client = spans.iter().find(|span| span.kind == 3).unwrap();
    assert_eq!(server.trace, "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(server.parent, "b7ad6b7169203331");
    assert_eq!((&client.trace, &client.parent), (&server.trace, &server.id));
    assert_eq!(sent(&b, STATUS), (client.trace.clone(), client.id.clone(), "01".to_owned()));
    let call = b.calls(STATUS).pop().unwrap();
    assert_eq!((call.header("tracestate"), call.header("baggage")), (Some("a=b"), Some("c=d")));
    let scraped = openmetrics(&crimux).await;
    let exemplar = scraped.lines().find(|line| line.contains(&server.trace)).expect(&scraped);
    assert!(
        exemplar.starts_with(
            "crimux_request_duration_seconds_bucket{backend=\"b\",method=\"ContainerStatus\",le="
        ),
        "{exemplar}"
    );
    for span in [server, client] {
        assert_eq!(span.name, "runtime.v1.RuntimeService/ContainerStatus");
        let wanted = [
            ("crimux.backend", "b"),
            ("rpc.grpc.status_code", "0"),
            ("rpc.method", "ContainerStatus"),
            ("rpc.service", "runtime.v1.RuntimeService"),
            ("rpc.system", "grpc"),
        ];
        assert_eq!(span.attributes, wanted.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    }
}

#[tokio::test]
async fn a_list_has_a_span_for_each_backend_and_an_error_its_code() {
    let (collector, endpoint) = Collector::start().await;
    let (a, b) = (runtime("a").await, runtime("b").await);
    let crimux = traced(&[("a", &a), ("b", &b)], &format!("otlp: {endpoint}")).await;
    crimux.client().raw(LIST, &[], Bytes::new()).await.unwrap();
    let spans = collector.of("ListContainers", 3).await;
    let server = spans.iter().find(|span| span.kind == 2).unwrap();
    assert_eq!(server.parent, "", "the client began no trace, so crimux does");
    assert_eq!(server.attributes["crimux.backend"], "all");
    let backends: Vec<_> = spans.iter().filter(|span| span.kind == 3).collect();
    assert!(backends.iter().all(|span| (&span.trace, &span.parent) == (&server.trace, &server.id)));
    let mut named: Vec<_> = backends.iter().map(|span| span.attributes["crimux.backend"].as_str()).collect();
    named.sort_unstable();
    assert_eq!(named, ["a", "b"], "one each, and none for what crimux asks by itself");

    let reply = crimux.client().raw(STATUS, &[], Bytes::new()).await.unwrap();
    assert_eq!(reply.code(), Code::InvalidArgument);
    let refused = collector.of("ContainerStatus", 1).await;
    assert_eq!(refused[0].attributes["rpc.grpc.status_code"], "3");
}

#[tokio::test]
async fn what_the_client_does_not_sample_is_not_sent_but_still_a_context() {
    let (collector, endpoint) = Collector::start().await;
    let a = runtime("a").await;
    let crimux = traced(&[("a", &a)], &format!("otlp: {endpoint}, sample_ratio: 0")).await;
    crimux.client().raw(LIST, &[("traceparent", UNSAMPLED)], Bytes::new()).await.unwrap();
    let (trace, _, flags) = sent(&a, LIST);
    assert_eq!((trace.as_str(), flags.as_str()), ("1af7651916cd43dd8448eb211c80319c", "00"));
    crimux.client().raw(LIST, &[], Bytes::new()).await.unwrap();
    // A sampled one shows that the others have had their time.
    crimux.client().raw(LIST, &[("traceparent", PARENT)], Bytes::new()).await.unwrap();
    let spans = collector.of("ListContainers", 2).await;
    assert!(spans.iter().all(|span| span.trace == "0af7651916cd43dd8448eb211c80319c"), "{spans:?}");
}

#[tokio::test]
async fn a_collector_that_is_gone_costs_no_call_and_no_shutdown() {
    let a = runtime("a").await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut crimux = traced(&[("a", &a)], &format!("otlp: \"http://{free}\"")).await;
    for _ in 0..20 {
        assert_eq!(crimux.client().raw(LIST, &[], Bytes::new()).await.unwrap().code(), Code::Ok);
    }
    crimux.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(crimux.ended().await, Some(0));
}

#[tokio::test]
async fn the_last_spans_are_sent_at_the_end() {
    let (collector, endpoint) = Collector::start().await;
    let a = runtime("a").await;
    let mut crimux = traced(&[("a", &a)], &format!("otlp: {endpoint}")).await;
    crimux.client().raw(LIST, &[("traceparent", PARENT)], Bytes::new()).await.unwrap();
    crimux.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(crimux.ended().await, Some(0));
    assert_eq!(collector.spans().iter().filter(|span| span.name.ends_with("/ListContainers")).count(), 2);
}
