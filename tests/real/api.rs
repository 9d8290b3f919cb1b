//! The API's newer and older parts on real runtimes: streaming lists of runtimes that lack them, v1alpha2.

use std::convert::Infallible;
use std::path::Path;

use bytes::Bytes;
use http::{Request, Response};
use testkit::Client;
use testkit::bed::Bed;
use testkit::bed::pods::{Pod, Pods};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::{Code, Status};

use super::world::{self, HANDLERS, IDLE};

/// Streams, and the unary lists they stand for.
const STREAMS: [(&str, &str); 3] = [
    ("RuntimeService/StreamPodSandboxes", "RuntimeService/ListPodSandbox"),
    ("RuntimeService/StreamContainers", "RuntimeService/ListContainers"),
    ("ImageService/StreamImages", "ImageService/ListImages"),
];

async fn one_pod_per_handler(pods: &mut Pods) -> Vec<Pod> {
    let mut ran = Vec::new();
    for (handler, ..) in HANDLERS {
        ran.push(pods.run(handler, handler, &IDLE).await.unwrap());
    }
    ran
}

/// The items of field 1 of all messages, sorted.
fn items(messages: &[Bytes]) -> Vec<Vec<u8>> {
    let whole = messages.concat();
    let mut items: Vec<_> = crimux::wire::items(&whole, 1).map(|item| item.unwrap().to_vec()).collect();
    items.sort();
    items
}

#[tokio::test]
async fn streaming_lists_of_runtimes_without_them_equal_the_unary_lists() {
    let Some(bed) = world::old_bed() else { return };
    let crimux = world::crimux(&bed, &HANDLERS).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    let ran = one_pod_per_handler(&mut pods).await;
    let client = Client::unix(&crimux.socket);
    for (stream, unary) in STREAMS {
        let unary = client.raw(&format!("/runtime.v1.{unary}"), &[], Bytes::new()).await.unwrap();
        let streamed = client.raw(&format!("/runtime.v1.{stream}"), &[], Bytes::new()).await.unwrap();
        assert_eq!(
            (streamed.code(), unary.code()),
            (Code::Ok, Code::Ok),
            "{stream}: {:?}",
            streamed.status()
        );
        assert_eq!(items(&streamed.messages), items(&unary.messages), "{stream}");
    }
    let streamed =
        client.raw("/runtime.v1.RuntimeService/StreamContainers", &[], Bytes::new()).await.unwrap();
    assert_eq!(items(&streamed.messages).len(), ran.len());
    let direct = Client::unix(bed.socket("a"));
    let direct = direct.raw("/runtime.v1.RuntimeService/StreamContainers", &[], Bytes::new()).await.unwrap();
    assert_eq!(direct.code(), Code::Unimplemented, "the runtimes of this bed have no streams");
}

#[tokio::test]
async fn a_client_of_v1alpha2_gets_what_a_client_of_v1_gets() {
    let Some(bed) = world::bed() else { return };
    let crimux = world::crimux(&bed, &HANDLERS).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    let ran = one_pod_per_handler(&mut pods).await;
    let client = Client::unix(&crimux.socket);
    let call = async |package: &str, method: &str, request: Bytes| {
        let reply = client.raw(&format!("/{package}.{method}"), &[], request).await.unwrap();
        assert_eq!(reply.code(), Code::Ok, "{package}.{method}: {:?}", reply.status());
        reply
    };
    let version = call("runtime.v1alpha2", "RuntimeService/Version", Bytes::new()).await;
    assert_eq!(version.decode::<testkit::cri::VersionResponse>().runtime_api_version, "v1alpha2");
    for method in
        ["RuntimeService/ListPodSandbox", "RuntimeService/ListContainers", "ImageService/ListImages"]
    {
        let old = call("runtime.v1alpha2", method, Bytes::new()).await;
        let new = call("runtime.v1", method, Bytes::new()).await;
        assert_eq!(items(&old.messages), items(&new.messages), "{method}");
    }
    for pod in &ran {
        let mut request = vec![0x0a, 64];
        request.extend(pod.container.as_bytes());
        let request = Bytes::from(request);
        let old = call("runtime.v1alpha2", "RuntimeService/ContainerStatus", request.clone()).await;
        let new = call("runtime.v1", "RuntimeService/ContainerStatus", request).await;
        assert_eq!(old.messages, new.messages);
    }
}

/// A containerd that speaks `runtime.v1alpha2` alone, as those up to 1.5 do: the bed's, with everything of
/// `runtime.v1` refused. Returns where it listens.
fn of_old(bed: &Bed, backend: &str) -> std::path::PathBuf {
    let path = bed.directory().join("old.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let containerd = Client::unix(bed.socket(backend));
    let service = tower::service_fn(move |request: Request<Body>| {
        let containerd = containerd.clone();
        async move { Ok::<_, Infallible>(pass_v1alpha2(&containerd, request).await) }
    });
    let server = tonic::transport::Server::builder();
    tokio::spawn(server.serve_with_incoming(service, UnixListenerStream::new(listener)));
    path
}

async fn pass_v1alpha2(containerd: &Client, request: Request<Body>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    if !path.starts_with("/runtime.v1alpha2.") {
        return Status::unimplemented(format!("unknown service of {path}")).into_http();
    }
    let message = crimux::codec::collect_request(request.into_body()).await.unwrap();
    let Ok(reply) = containerd.raw(&path, &[], message.encoded().to_vec()).await else {
        return Status::unavailable("containerd is gone").into_http();
    };
    let frames = reply.messages.iter().map(|message| crimux::codec::Message::new(message).framed());
    let body = crimux::codec::BufferedBody::new(frames.collect::<Vec<_>>(), reply.trailers);
    let mut response = Response::new(Body::new(body));
    *response.headers_mut() = crimux::codec::reply_headers();
    response
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_containerd_that_speaks_v1alpha2_alone_runs_pods() {
    let Some(bed) = world::old_bed() else { return };
    let old = of_old(&bed, "a");
    let directory = bed.directory().join("crimux-old");
    std::fs::create_dir_all(&directory).unwrap();
    let at = directory.display();
    let yaml = format!(
        "listen: unix://{at}/crimux.sock\nstate_dir: {at}/state\n\
         admin: {{ socket: {at}/admin.sock, http: off }}\ndefault_backend: a\n\
         backends: {{ a: {{ endpoint: \"unix://{}\" }} }}\n\
         handlers: {{ runc: {{ backend: a, handler: runc }} }}\n",
        old.display()
    );
    let config = directory.join("crimux.yaml");
    std::fs::write(&config, yaml).unwrap();
    let arguments = ["serve", "--config", config.to_str().unwrap()];
    let process = bed.spawn("crimux-old", Path::new(env!("CARGO_BIN_EXE_crimux")), &arguments).unwrap();
    let socket = directory.join("crimux.sock");
    world::eventually("crimux serves", async || {
        assert_eq!(process.exit_code(), None, "crimux ended: {}", process.log().unwrap());
        let mut pods = Pods::dial(&socket, Path::new("")).await.ok()?;
        pods.list().await.ok()
    })
    .await;
    let mut pods = world::dial(&bed, &socket).await;
    let pod = pods.run("old", "runc", &IDLE).await.unwrap();
    let state = world::container_state(&mut pods, &pod.container).await;
    assert_eq!(state, Ok(testkit::cri::ContainerState::ContainerRunning));
    let client = Client::unix(&socket);
    let streamed =
        client.raw("/runtime.v1.RuntimeService/StreamContainers", &[], Bytes::new()).await.unwrap();
    assert_eq!((streamed.code(), items(&streamed.messages).len()), (Code::Ok, 1));
}
