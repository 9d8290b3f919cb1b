//! Malformed input, from clients and from backends: a clear status, nothing lost, nothing allocated on a
//! claim.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prost::Message;
use testkit::runtime::{Fault, SimRuntime};
use testkit::{Client, cri, eventually};
use tokio::net::UnixStream;
use tonic::Code;

use crate::support::{Crimux, SOON};

const STATUS: &str = "/runtime.v1.RuntimeService/ContainerStatus";
const EXEC: &str = "/runtime.v1.RuntimeService/ExecSync";
const LIST: &str = "/runtime.v1.RuntimeService/ListContainers";
const RUN: &str = "/runtime.v1.RuntimeService/RunPodSandbox";

/// Malformed messages, with the fault of each.
const BROKEN: [(&str, &[u8]); 8] = [
    ("a varint that does not end", &[0x08, 0xff, 0xff]),
    ("a varint of eleven bytes", &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
    ("a string longer than the message", &[0x0a, 0x7f, b'x']),
    (
        "a string of almost 2⁶⁴ bytes",
        &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, b'x'],
    ),
    ("a number where a string belongs", &[0x08, 0x01]),
    ("a field number of zero", &[0x02, 0x00]),
    ("a wire type that does not exist", &[0x0f, 0x00]),
    ("a group that does not end", &[0x0b, 0x08, 0x01]),
];

async fn one() -> (SimRuntime, Crimux, String) {
    let a = SimRuntime::builder("a").containers(2, 1).start().await;
    let crimux = Crimux::start(&[("a", &a)]).await;
    let id = a.state().containers().next().unwrap().id.clone();
    (a, crimux, id)
}

fn about(id: &str) -> Vec<u8> {
    cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false }.encode_to_vec()
}

/// The resident set of crimux in KiB.
fn resident(crimux: &Crimux) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", crimux.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// How many clients are connected to crimux, or about to be.
fn connections(crimux: &Crimux) -> usize {
    let (socket, listening) = (crimux.socket().display().to_string(), "01");
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let fields = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields.filter(|f| f.get(5) != Some(&listening) && f.get(7) == Some(&socket.as_str())).count()
}

#[tokio::test]
async fn requests_that_are_no_message_are_invalid_and_reach_no_backend() {
    let (a, crimux, id) = one().await;
    a.clear_calls();
    for path in [STATUS, LIST, RUN, "/runtime.v1.RuntimeService/StreamContainers"] {
        for (what, message) in BROKEN {
            let message = if path == STATUS { message.to_vec() } else { wrapped(message) };
            let reply = crimux.client().raw(path, &[], message).await.unwrap();
            if path == RUN && what == "a number where a string belongs" {
                // The configuration's field 1 is a message there; the number is as wrong.
                assert_ne!(reply.code(), Code::Ok);
                continue;
            }
            assert_eq!(reply.code(), Code::InvalidArgument, "{path}: {what}: {:?}", reply.status());
            assert!(reply.message().starts_with("crimux: malformed request"), "{:?}", reply.status());
        }
        assert_eq!(a.calls(path).len(), 0, "{path}");
    }
    assert_eq!(crimux.client().raw(STATUS, &[], about(&id)).await.unwrap().code(), Code::Ok);
}

/// The message as field 1 of another.
fn wrapped(message: &[u8]) -> Vec<u8> {
    let mut outer = BytesMut::new();
    crimux::wire::put_bytes(&mut outer, 1, message);
    outer.to_vec()
}

#[tokio::test]
async fn the_last_of_duplicate_fields_decides_as_for_any_parser() {
    let (a, crimux, id) = one().await;
    let request = [about("0000"), about(&id)].concat();
    let reply = crimux.client().raw(STATUS, &[], request.clone()).await.unwrap();
    assert_eq!(reply.code(), Code::Ok, "{:?}", reply.status());
    assert_eq!(reply.decode::<cri::ContainerStatusResponse>().status.unwrap().id, id);
    assert_eq!(a.calls(STATUS)[0].message, request);
    let reversed = [about(&id), about("")].concat();
    let reply = crimux.client().raw(STATUS, &[], reversed).await.unwrap();
    assert_eq!(reply.code(), Code::Ok, "an empty string is not written, so it changes nothing");
    let emptied = [&about(&id)[..], &[0x0a, 0x00]].concat();
    let reply = crimux.client().raw(STATUS, &[], emptied).await.unwrap();
    assert_eq!(reply.code(), Code::InvalidArgument, "an empty string that is written empties the ID");
}

#[tokio::test]
async fn a_request_of_16_mib_passes_and_one_byte_more_is_refused() {
    let a = SimRuntime::builder("a").containers(1, 1).max_request(32 << 20).start().await;
    let crimux = Crimux::start(&[("a", &a)]).await;
    let mut request = about(&a.state().containers().next().unwrap().id);
    let filling = (16 << 20) - request.len() - 7;
    request.extend([0xfa, 0x3f]);
    prost::encoding::encode_varint(filling as u64 + 1, &mut request);
    request.resize(request.len() + filling + 1, b'x');
    request.truncate(16 << 20);
    let len = request.len();
    assert_eq!(len, 16 << 20);
    let reply = crimux.client().raw(EXEC, &[], request.clone()).await.unwrap();
    assert_eq!(reply.code(), Code::Ok, "{:?}", reply.status());
    assert_eq!(a.calls(EXEC)[0].message.len(), len);
    request.extend([0x10, 0x00]);
    let reply = crimux.client().raw(EXEC, &[], request).await.unwrap();
    assert_eq!(reply.code(), Code::ResourceExhausted, "{:?}", reply.status());
    assert_eq!(a.calls(EXEC).len(), 1);
}

/// Sends raw bytes as a request's body and returns the code of the answer.
async fn raw_body(crimux: &Crimux, headers: &[(&str, &str)], body: &'static [u8], end: bool) -> Code {
    let socket = UnixStream::connect(crimux.socket()).await.unwrap();
    let (requests, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(async move { connection.await.unwrap_or_default() });
    let mut request =
        http::Request::post(format!("http://localhost{STATUS}")).header("content-type", "application/grpc");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(()).unwrap();
    let (response, mut outgoing) = requests.ready().await.unwrap().send_request(request, false).unwrap();
    outgoing.send_data(Bytes::from_static(body), end).unwrap();
    let response = tokio::time::timeout(SOON, response).await.expect("an answer").unwrap();
    crimux::codec::status_code(response.headers()).expect("an answer that is a status alone")
}

#[tokio::test]
async fn bodies_that_are_no_grpc_frame_are_refused() {
    let (_a, crimux, _) = one().await;
    let cases: [(&str, &'static [u8], Code); 6] = [
        ("no message at all", &[], Code::InvalidArgument),
        ("half a prefix", &[0, 0, 0], Code::InvalidArgument),
        ("less than announced", &[0, 0, 0, 0, 9, 1, 2], Code::InvalidArgument),
        ("more than announced", &[0, 0, 0, 0, 1, 1, 2, 3], Code::InvalidArgument),
        ("a compressed message", &[1, 0, 0, 0, 1, 0], Code::Unimplemented),
        ("a message of 4 GiB", &[0, 0xff, 0xff, 0xff, 0xff, 1], Code::ResourceExhausted),
    ];
    for (what, body, code) in cases {
        assert_eq!(raw_body(&crimux, &[], body, true).await, code, "{what}");
    }
}

#[tokio::test]
async fn nothing_is_allocated_on_a_claimed_length() {
    let (_a, crimux, _) = one().await;
    let before = resident(&crimux);
    let mut held = Vec::new();
    // 100 requests that claim 16 MiB each, and send a byte of it: 1.6 GB if a claim were believed.
    let socket = UnixStream::connect(crimux.socket()).await.unwrap();
    let (requests, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(async move { connection.await.unwrap_or_default() });
    let mut requests = requests.ready().await.unwrap();
    for _ in 0..100 {
        let request = http::Request::post(format!("http://localhost{STATUS}"))
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let (response, mut outgoing) = requests.send_request(request, false).unwrap();
        outgoing.send_data(Bytes::from_static(&[0, 1, 0, 0, 0]), false).unwrap();
        outgoing.send_data(Bytes::from_static(&[1]), false).unwrap();
        held.push((response, outgoing));
        requests = requests.ready().await.unwrap();
    }
    // Another call on the same connection shows that all of them have arrived.
    let request = http::Request::post("http://localhost/runtime.v1.RuntimeService/Version")
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let (response, mut outgoing) = requests.send_request(request, false).unwrap();
    outgoing.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
    assert_eq!(response.await.unwrap().status(), 200);
    let grown = resident(&crimux).saturating_sub(before);
    // Reserved memory is not touched, and is at most 1 MiB for each.
    assert!(grown < 64 << 10, "{grown} KiB for 100 bytes");
}

#[tokio::test]
async fn clients_that_send_headers_and_nothing_else_leave_nothing_behind() {
    let (_a, crimux, id) = one().await;
    let call = |path: &str| {
        let head = http::Request::post(format!("http://localhost{path}"));
        head.header("content-type", "application/grpc").body(()).unwrap()
    };
    for _ in 0..3 {
        let socket = UnixStream::connect(crimux.socket()).await.unwrap();
        let (requests, connection) = h2::client::handshake(socket).await.unwrap();
        let driving = tokio::spawn(async move { connection.await.unwrap_or_default() });
        let mut requests = requests.ready().await.unwrap();
        let mut held = Vec::new();
        for _ in 0..50 {
            held.push(requests.send_request(call(STATUS), false).unwrap());
            requests = requests.ready().await.unwrap();
        }
        assert!(connections(&crimux) >= 1);
        // Others are served meanwhile, and so is this client.
        assert_eq!(crimux.client().raw(STATUS, &[], about(&id)).await.unwrap().code(), Code::Ok);
        let (response, _) = requests.send_request(call("/none"), true).unwrap();
        assert_eq!(response.await.unwrap().headers()["grpc-status"], "12");
        drop((held, requests));
        driving.abort();
    }
    eventually(SOON, async || connections(&crimux) == 0).await;
    // What was never asked is no call.
    assert_eq!(
        crimux
            .metric("crimux_requests_total{backend=\"none\",code=\"Canceled\",method=\"ContainerStatus\"}")
            .await,
        None
    );
}

#[tokio::test]
async fn a_backend_that_answers_garbage_is_named_and_nothing_is_lost() {
    let (a, crimux, id) = one().await;
    let b = SimRuntime::builder("b").containers(2, 1).start().await;
    drop(crimux);
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let whole = crimux.client().raw(LIST, &[], Bytes::new()).await.unwrap().single();
    let faults = [
        Fault::GarbageFrame(Bytes::new()),
        Fault::GarbageFrame(Bytes::from_static(&[0, 0, 0])),
        Fault::GarbageFrame(Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff, 1])),
        Fault::GarbageFrame(Bytes::from_static(&[0, 0, 0, 0, 1, 1, 2, 3])),
        Fault::GarbageFrame(Bytes::from_static(&[1, 0, 0, 0, 1, 0])),
        Fault::Truncate(20),
        Fault::Reset,
    ];
    for fault in faults {
        a.fault_next("ListContainers", 1, fault.clone());
        let reply = crimux.client().raw(LIST, &[], Bytes::new()).await.unwrap();
        assert_eq!((reply.code(), reply.single()), (Code::Ok, whole.clone()), "{fault:?}");
    }
    for (_, message) in BROKEN {
        a.fault_next("ListContainers", 1, Fault::GarbageMessage(Bytes::from_static(message)));
        let reply = crimux.client().raw(LIST, &[], Bytes::new()).await.unwrap();
        assert_eq!((reply.code(), reply.single()), (Code::Ok, whole.clone()), "{message:?}");
    }
    // A create whose answer is unreadable: an error, and the sandbox is found by the next list.
    for garbage in [&[0x0a, 0x7f][..], &[0x0a, 0x00], &[]] {
        let before = a.state().sandboxes().count();
        a.fault_next("RunPodSandbox", 1, Fault::GarbageMessage(Bytes::copy_from_slice(garbage)));
        let request = testkit::client::sandbox_config(&format!("garbage-{}", garbage.len())).run("");
        let reply = crimux.client().raw_message(RUN, &request).await.unwrap();
        assert_eq!(reply.code(), Code::Internal, "{:?}", reply.status());
        assert!(reply.message().contains("backend a"), "{:?}", reply.status());
        assert_eq!(a.state().sandboxes().count(), before, "the fault came in place of the work");
    }
    assert_eq!(crimux.client().raw(STATUS, &[], about(&id)).await.unwrap().code(), Code::Ok);
}

#[tokio::test]
async fn replies_of_garbage_pass_where_only_the_client_reads_them() {
    let (a, crimux, id) = one().await;
    a.fault("ExecSync", Fault::GarbageMessage(Bytes::from_static(&[0xff; 9])));
    let request = cri::ExecSyncRequest { container_id: id, ..Default::default() };
    let through = crimux.client().raw_message(EXEC, &request).await.unwrap();
    let direct = Client::unix(a.socket()).raw_message(EXEC, &request).await.unwrap();
    assert_eq!((through.code(), through.messages), (direct.code(), direct.messages));
    a.fault("ExecSync", Fault::Reset);
    let reply = tokio::time::timeout(SOON, crimux.client().raw_message(EXEC, &request)).await.unwrap();
    let code = reply.map(|reply| reply.code());
    assert_eq!(code.unwrap(), Code::Unavailable);
}

#[tokio::test]
async fn a_connection_of_garbage_ends_and_others_live() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (_a, crimux, id) = one().await;
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 100],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let mut socket = UnixStream::connect(crimux.socket()).await.unwrap();
        socket.write_all(garbage).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(5), socket.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "it is closed");
        assert_eq!(crimux.client().raw(STATUS, &[], about(&id)).await.unwrap().code(), Code::Ok);
    }
}

#[tokio::test]
async fn what_is_compressed_is_refused_in_words_that_name_the_request_or_the_reply() {
    let (a, crimux, id) = one().await;
    let socket = UnixStream::connect(crimux.socket()).await.unwrap();
    let (requests, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(async move { connection.await.unwrap_or_default() });
    let request = http::Request::post(format!("http://localhost{STATUS}")).header("grpc-encoding", "gzip");
    let request = request.header("content-type", "application/grpc").header("te", "trailers");
    let (response, mut outgoing) =
        requests.ready().await.unwrap().send_request(request.body(()).unwrap(), false).unwrap();
    outgoing.send_data(Bytes::from_static(&[1, 0, 0, 0, 1, 0]), true).unwrap();
    let response = tokio::time::timeout(SOON, response).await.expect("an answer").unwrap();
    let status = tonic::Status::from_header_map(response.headers()).unwrap();
    assert_eq!(
        (status.code(), status.message().contains("the request is compressed")),
        (Code::Unimplemented, true)
    );
    assert_eq!(response.headers()["grpc-accept-encoding"], "identity");
    a.fault_next("ContainerStatus", 1, Fault::GarbageFrame(Bytes::from_static(&[1, 0, 0, 0, 1, 0])));
    let reply = crimux.client().raw(STATUS, &[], about(&id)).await.unwrap();
    assert!(reply.message().contains("backend a sent an unreadable reply"), "{}", reply.message());
    assert!(
        reply.message().contains("it is compressed") && !reply.message().contains("request"),
        "{}",
        reply.message()
    );
}
