//! Forwarding: bytes in, same bytes out.
//!
//! Every claim is held on each of the ways that a reply can take through crimux: passed on while it arrives
//! (`ReopenContainerLog`, `PullImage`), collected and learnt from (`UpdateContainerResources`, the creates)
//! and read within a deadline (`ContainerStatus`).

use bytes::Bytes;
use http::HeaderMap;
use prost::Message;
use testkit::runtime::{Call, Fault, Reply, SimRuntime};
use testkit::{Client, cri};
use tonic::{Code, Status};

use crate::support::Crimux;

const REOPEN: &str = "/runtime.v1.RuntimeService/ReopenContainerLog";
const UPDATE: &str = "/runtime.v1.RuntimeService/UpdateContainerResources";
const READ: &str = "/runtime.v1.RuntimeService/ContainerStatus";
const EXEC_SYNC: &str = "/runtime.v1.RuntimeService/ExecSync";
const RUN: &str = "/runtime.v1.RuntimeService/RunPodSandbox";
const CREATE: &str = "/runtime.v1.RuntimeService/CreateContainer";
const PULL: &str = "/runtime.v1.ImageService/PullImage";
/// One method for each way of a reply.
const WAYS: [&str; 3] = [REOPEN, UPDATE, READ];

/// One runtime with one running container behind crimux, and the container's ID.
async fn one() -> (SimRuntime, Crimux, String) {
    let runtime = SimRuntime::builder("a").containers(1, 1).start().await;
    let crimux = Crimux::start(&[("a", &runtime)]).await;
    let id = runtime.state().containers().next().unwrap().id.clone();
    (runtime, crimux, id)
}

/// A message whose field 1 is `id`, followed by fields that no API has.
fn from_tomorrow(id: &str) -> Bytes {
    let mut message = Vec::new();
    prost::encoding::string::encode(1, &id.to_owned(), &mut message);
    prost::encoding::bytes::encode(1000, &b"\x00\xff unknown".to_vec(), &mut message);
    prost::encoding::uint64::encode(20_000, &u64::MAX, &mut message);
    message.into()
}

fn last(runtime: &SimRuntime, path: &str) -> Call {
    runtime.calls(path).pop().unwrap_or_else(|| panic!("{path} reached the backend"))
}

/// What a reply carries, less the date that an HTTP server writes on it.
fn without_date(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    headers.remove(http::header::DATE);
    headers
}

#[tokio::test]
async fn a_status_passes_with_the_very_bytes_of_its_owner() {
    let runtime = SimRuntime::builder("a").containers(4, 2).start().await;
    let crimux = Crimux::start(&[("a", &runtime)]).await;
    let id = runtime.state().containers().next().unwrap().id.clone();
    let request = cri::ContainerStatusRequest { container_id: id, verbose: false };
    let through = crimux.client().raw_message(READ, &request).await.unwrap();
    let direct = Client::unix(runtime.socket()).raw_message(READ, &request).await.unwrap();
    assert_eq!(through.messages, direct.messages);
    assert_eq!(through.code(), direct.code());
}

#[tokio::test]
async fn unknown_fields_of_requests_and_replies_survive() {
    let (runtime, crimux, id) = one().await;
    let reply = from_tomorrow("an ID, where one is due");
    for path in [REOPEN, UPDATE, READ, EXEC_SYNC] {
        runtime.reply_raw(path, Reply::message(reply.clone()));
        let through = crimux.client().raw(path, &[], from_tomorrow(&id)).await.unwrap();
        assert_eq!(through.messages, std::slice::from_ref(&reply), "{path}");
        assert_eq!(through.code(), Code::Ok, "{path}");
        assert_eq!(last(&runtime, path).message, from_tomorrow(&id), "{path}");
    }
}

#[tokio::test]
async fn unknown_fields_survive_creates_and_pulls() {
    let (runtime, crimux, _) = one().await;
    let sandbox = runtime.state().sandboxes().next().unwrap().id.clone();
    let mut image = Vec::new();
    prost::encoding::bytes::encode(1000, &b"tomorrow".to_vec(), &mut image);
    let mut pod = testkit::client::sandbox_config("p").run("").encode_to_vec();
    prost::encoding::bytes::encode(1000, &b"tomorrow".to_vec(), &mut pod);
    let requests = [(RUN, pod.into()), (CREATE, from_tomorrow(&sandbox)), (PULL, Bytes::from(image))];
    let reply = from_tomorrow(&"f".repeat(64));
    for (path, request) in requests {
        runtime.reply_raw(path, Reply::message(reply.clone()));
        let through = crimux.client().raw(path, &[], request.clone()).await.unwrap();
        assert_eq!(through.messages, std::slice::from_ref(&reply), "{path}: {:?}", through.status());
        assert_eq!(last(&runtime, path).message, request, "{path}");
    }
}

#[tokio::test]
async fn metadata_and_the_deadline_pass() {
    let (runtime, crimux, id) = one().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let metadata = [
        ("traceparent", trace),
        ("tracestate", "vendor=1"),
        ("baggage", "pod=a,node=b"),
        ("grpc-timeout", "7S"),
        ("user-agent", "grpc-go/1.75.0"),
        ("x-token-bin", "AAECA//+"),
        ("x-twice", "one"),
        ("x-twice", "two"),
    ];
    for path in WAYS {
        crimux.client().raw(path, &metadata, from_tomorrow(&id)).await.unwrap();
        let call = last(&runtime, path);
        for (name, value) in &metadata[..6] {
            assert_eq!(call.header(name), Some(*value), "{path}");
        }
        let twice: Vec<_> = call.metadata.get_all("x-twice").iter().collect();
        assert_eq!(twice, ["one", "two"], "{path}");
    }
}

#[tokio::test]
async fn a_content_length_does_not_outlive_the_bytes_it_counts() {
    let runtime = SimRuntime::builder("a").handlers(["a-much-longer-name"]).start().await;
    let dir = tempfile::tempdir().unwrap();
    let more = "  h: { backend: a, handler: a-much-longer-name }\n";
    let yaml = crate::support::config(&dir, &[("a", &runtime)], more);
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    let request = testkit::client::sandbox_config("p").run("h").encode_to_vec();
    let length = (request.len() + 5).to_string();
    let reply = crimux.client().raw(RUN, &[("content-length", &length)], request).await.unwrap();
    assert_eq!((reply.code(), reply.message()), (Code::Ok, String::new()));
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_at_the_backend() {
    let (runtime, crimux, id) = one().await;
    let sandbox = runtime.state().sandboxes().next().unwrap().id.clone();
    let pod = testkit::client::sandbox_config("p").run("").encode_to_vec().into();
    let calls = [
        (REOPEN, from_tomorrow(&id)),
        (UPDATE, from_tomorrow(&id)),
        (READ, from_tomorrow(&id)),
        (EXEC_SYNC, from_tomorrow(&id)),
        (RUN, pod),
        (CREATE, from_tomorrow(&sandbox)),
        (PULL, Bytes::new()),
    ];
    for (path, request) in calls {
        runtime.clear_calls();
        let method = path.rsplit('/').next().unwrap();
        runtime.fault(method, Fault::Hang);
        let call = crimux.client().raw_stream(path, &[], request).await.unwrap();
        runtime.wait_for_call(path, 1).await;
        drop(call);
        let calls = runtime.wait_for_cancel(path).await;
        assert_eq!(calls.len(), 1, "{path} was sent once");
    }
    assert_eq!(runtime.state().sandboxes().count(), 1, "a cancelled create leaves nothing behind");
}

#[tokio::test]
async fn a_reply_that_is_cancelled_half_way_is_cancelled_at_the_backend() {
    let (runtime, crimux, id) = one().await;
    let path = "/runtime.v1.RuntimeService/Tomorrow";
    runtime.unknown_method(path, |_| {
        let (sender, reply) = Reply::stream();
        sender.send(Ok(Bytes::from_static(b"first"))).unwrap();
        tokio::spawn(async move { sender.closed().await });
        reply
    });
    let mut call = crimux.client().raw_stream(path, &[], from_tomorrow(&id)).await.unwrap();
    assert_eq!(call.next().await.unwrap().unwrap(), Bytes::from_static(b"first"));
    drop(call);
    runtime.wait_for_cancel(path).await;
}

/// An error with everything that one can carry.
fn rich_error() -> Status {
    let mut metadata = HeaderMap::new();
    metadata.insert("x-reason", "disk".parse().unwrap());
    metadata.insert("x-reason-bin", "AAEC".parse().unwrap());
    let details = Bytes::from_static(b"\x08\x05\x12\x04\xff\x00 details");
    let metadata = tonic::metadata::MetadataMap::from_headers(metadata);
    let text = "RegistryUnavailable: образ „x“ 100% weg\nsecond line";
    Status::with_details_and_metadata(Code::ResourceExhausted, text, details, metadata)
}

#[tokio::test]
async fn a_status_with_details_and_trailers_arrives_as_it_was_sent() {
    let (runtime, crimux, id) = one().await;
    let direct = Client::unix(runtime.socket());
    for path in WAYS {
        // Without a header of its own the reply is headers alone; with one it has headers and trailers.
        for reply in [Reply::status(rich_error()), Reply::status(rich_error()).header("x-head", "1")] {
            runtime.reply_raw(path, reply);
            let direct = direct.raw(path, &[], from_tomorrow(&id)).await.unwrap();
            let through = crimux.client().raw(path, &[], from_tomorrow(&id)).await.unwrap();
            assert_eq!(through.trailers.get("grpc-message"), direct.trailers.get("grpc-message"), "{path}");
            assert_eq!(through.message(), rich_error().message(), "{path}");
            assert_eq!(through.details(), Bytes::copy_from_slice(rich_error().details()), "{path}");
            assert_eq!(without_date(&through.headers), direct.headers, "{path}");
            assert_eq!(without_date(&through.trailers), direct.trailers, "{path}");
            assert_eq!((through.messages.len(), through.code()), (0, Code::ResourceExhausted), "{path}");
        }
    }
}

#[tokio::test]
async fn headers_and_trailers_of_a_good_reply_arrive() {
    let (runtime, crimux, id) = one().await;
    for path in WAYS {
        let reply = Reply::message(Bytes::new()).header("x-head-bin", "AAEC").trailer("x-tail", "t");
        runtime.reply_raw(path, reply);
        let through = crimux.client().raw(path, &[], from_tomorrow(&id)).await.unwrap();
        assert_eq!(through.headers.get("x-head-bin").unwrap(), "AAEC", "{path}");
        assert_eq!(through.trailers.get("x-tail").unwrap(), "t", "{path}");
        assert_eq!((through.messages.len(), through.code()), (1, Code::Ok), "{path}");
    }
}

#[tokio::test]
async fn every_code_of_a_backend_is_passed_and_none_is_made_up() {
    let (runtime, crimux, id) = one().await;
    for number in 1..=16 {
        let code = Code::from_i32(number);
        for path in WAYS {
            let method = path.rsplit('/').next().unwrap();
            runtime.fault(method, Fault::error(code, format!("code {number}")));
            let reply = crimux.client().raw(path, &[], from_tomorrow(&id)).await.unwrap();
            assert_eq!((reply.code(), reply.message()), (code, format!("code {number}")), "{path}");
        }
    }
}

#[tokio::test]
async fn a_backend_that_breaks_in_the_middle_is_unavailable_and_garbage_is_internal() {
    let (runtime, crimux, id) = one().await;
    let faults = [
        (Fault::Reset, Code::Unavailable),
        (Fault::Truncate(3), Code::Internal),
        (Fault::GarbageFrame(Bytes::from_static(b"\x01\x00\x00\x00\x01x")), Code::Internal),
        (Fault::GarbageFrame(Bytes::from_static(b"\x00\x00\x00\x00\x00\x00\x00")), Code::Internal),
    ];
    for (fault, code) in faults {
        runtime.fault("UpdateContainerResources", fault.clone());
        let reply = crimux.client().raw(UPDATE, &[], from_tomorrow(&id)).await.unwrap();
        assert_eq!(reply.code(), code, "{fault:?}: {}", reply.message());
        assert!(reply.message().starts_with("crimux: backend a "), "{}", reply.message());
    }
}

/// Makes a call with these bytes as its body, whatever they are.
async fn framed(crimux: &Crimux, path: &str, body: &[u8]) -> HeaderMap {
    let stream = tokio::net::UnixStream::connect(crimux.socket()).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-encoding", "gzip");
    let (response, mut sending) =
        client.ready().await.unwrap().send_request(request.body(()).unwrap(), false).unwrap();
    sending.send_data(Bytes::copy_from_slice(body), true).unwrap();
    response.await.unwrap().into_parts().0.headers
}

#[tokio::test]
async fn a_compressed_request_is_refused_in_the_words_of_grpc() {
    let (runtime, crimux, id) = one().await;
    runtime.clear_calls();
    let message = from_tomorrow(&id);
    let mut body = vec![1];
    body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend(&message);
    for path in [REOPEN, READ, RUN, "/runtime.v1.RuntimeService/ListContainers"] {
        let head = framed(&crimux, path, &body).await;
        assert_eq!(head.get("grpc-status").unwrap(), "12", "{path}");
        assert_eq!(head.get("grpc-accept-encoding").unwrap(), "identity", "{path}");
    }
    for path in [REOPEN, READ, RUN] {
        assert_eq!(runtime.calls(path).len(), 0, "{path} stays here");
    }
}

#[tokio::test]
async fn what_is_no_grpc_message_is_refused() {
    let (runtime, crimux, _) = one().await;
    let bodies: [&[u8]; 4] = [b"", b"\0\0\0", b"\0\0\0\0\x09short", b"\0\0\0\0\0\0\0\0\0\0"];
    for body in bodies {
        let head = framed(&crimux, REOPEN, body).await;
        assert_eq!(head.get("grpc-status").unwrap(), "3", "{body:?}");
    }
    let head = framed(&crimux, REOPEN, b"\0\0\0\0\x02\x0a\x09").await;
    assert_eq!(head.get("grpc-status").unwrap(), "3", "a message that is no protobuf");
    assert_eq!(runtime.calls(REOPEN).len(), 0);
}

/// A request for a container with padding, `total` bytes long.
fn padded(id: &str, total: usize) -> Vec<u8> {
    let mut message = Vec::with_capacity(total);
    prost::encoding::string::encode(1, &id.to_owned(), &mut message);
    // Two bytes of tag and four of length go before the padding.
    let padding = vec![7; total - message.len() - 6];
    prost::encoding::bytes::encode(1000, &padding, &mut message);
    assert_eq!(message.len(), total);
    message
}

#[tokio::test]
async fn a_request_of_16_mib_passes_and_a_larger_one_is_refused() {
    let (runtime, crimux, id) = one().await;
    let request = padded(&id, 16 << 20);
    let reply = crimux.client().raw(REOPEN, &[], request.clone()).await.unwrap();
    assert_eq!((reply.code(), reply.message()), (Code::Ok, String::new()));
    assert!(last(&runtime, REOPEN).message == request, "the bytes are the same");
    let reply = crimux.client().raw(REOPEN, &[], padded(&id, 17 << 20)).await.unwrap();
    assert_eq!(reply.code(), Code::ResourceExhausted);
    assert_eq!(reply.message(), "crimux: request of 17825792 bytes is larger than 16 MiB");
    assert_eq!(runtime.calls(REOPEN).len(), 1);
}

#[tokio::test]
async fn a_reply_of_40_mib_passes() {
    let (runtime, crimux, id) = one().await;
    let stdout = vec![b'o'; 20 << 20];
    let reply = cri::ExecSyncResponse { stdout: stdout.clone(), stderr: stdout, exit_code: 3 };
    let reply = Bytes::from(reply.encode_to_vec());
    runtime.reply_raw(EXEC_SYNC, Reply::message(reply.clone()));
    let through = crimux.client().raw(EXEC_SYNC, &[], from_tomorrow(&id)).await.unwrap();
    assert_eq!(through.code(), Code::Ok);
    assert!(through.single() == reply, "the bytes are the same");
}

#[tokio::test]
async fn a_client_of_v1alpha2_reaches_a_backend_of_v1() {
    let (runtime, crimux, id) = one().await;
    let path = READ.replace("v1", "v1alpha2");
    let through = crimux.client().raw(&path, &[], from_tomorrow(&id)).await.unwrap();
    let direct = Client::unix(runtime.socket()).raw(READ, &[], from_tomorrow(&id)).await.unwrap();
    assert_eq!(through.messages, direct.messages);
    assert_eq!(last(&runtime, "ContainerStatus").path, READ);
    let version = crimux.client().raw("/runtime.v1alpha2.RuntimeService/Version", &[], "").await.unwrap();
    assert_eq!(version.decode::<cri::VersionResponse>().runtime_api_version, "v1alpha2");
}

#[tokio::test]
async fn a_client_of_v1_reaches_a_backend_that_only_speaks_v1alpha2() {
    use testkit::runtime::ApiVersions;
    let old = SimRuntime::builder("old").abilities(|a| a.api = ApiVersions::V1alpha2);
    let old = old.containers(1, 1).start().await;
    let crimux = Crimux::start(&[("old", &old)]).await;
    let id = old.state().containers().next().unwrap().id.clone();
    let through = crimux.client().raw(READ, &[], from_tomorrow(&id)).await.unwrap();
    assert_eq!(through.code(), Code::Ok, "{}", through.message());
    assert_eq!(last(&old, "ContainerStatus").path, READ.replace("v1", "v1alpha2"));
    let tomorrow = "/runtime.v1alpha2.RuntimeService/Tomorrow";
    old.unknown_method(tomorrow, |call| Reply::message(call.message));
    let through = crimux.client().raw(&tomorrow.replace("v1alpha2", "v1"), &[], from_tomorrow(&id)).await;
    assert_eq!(through.unwrap().single(), from_tomorrow(&id));
}

#[tokio::test]
async fn no_call_is_sent_before_the_api_of_a_backend_is_known() {
    use testkit::runtime::ApiVersions;
    let old = SimRuntime::builder("old").abilities(|a| a.api = ApiVersions::V1alpha2);
    let old = old.containers(1, 1).start().await;
    old.fault("Version", Fault::Delay(std::time::Duration::from_millis(200)));
    let dir = tempfile::tempdir().unwrap();
    let yaml = crate::support::config(&dir, &[("old", &old)], "");
    let crimux = Crimux::start_in(dir, &yaml);
    let id = old.state().containers().next().unwrap().id.clone();
    // The file of a socket is there a moment before it listens.
    let listens = async || tokio::net::UnixStream::connect(crimux.socket()).await.is_ok();
    testkit::eventually(crate::support::SOON, listens).await;
    // On a busy machine the first lists may be late, and until they are not, the ID cannot be looked up.
    let is_read = async || {
        crimux.client().raw(READ, &[], from_tomorrow(&id)).await.is_ok_and(|reply| reply.code() == Code::Ok)
    };
    testkit::eventually(crate::support::SOON, is_read).await;
    let wrong = old.calls("*").into_iter().filter(|c| c.path.starts_with("/runtime.v1."));
    let wrong: Vec<_> = wrong.map(|call| call.method().to_owned()).collect();
    assert_eq!(wrong, ["Version"], "only the question which API is spoken is asked in the wrong one");
}
