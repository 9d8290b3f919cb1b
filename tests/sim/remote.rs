//! A backend that is not on this node: what of it kubelet must not see, and what it must not do to this node.

use testkit::cri;
use testkit::runtime::SimRuntime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;

use crate::support::{self, Crimux, SOON};

/// A runtime of this node and one behind TCP, which is not, with this more in its configuration.
async fn two(more: &str, stream_url: &str) -> (SimRuntime, SimRuntime, Crimux) {
    let here = SimRuntime::builder("here").containers(1, 1).abilities(|it| it.mountpoint = "/here".into());
    let there = SimRuntime::builder("there").containers(1, 1).tcp().abilities(|it| {
        it.mountpoint = "/there".into();
        it.stream_url = stream_url.into();
    });
    let (here, there) = (here.start().await, there.start().await);
    let dir = tempfile::tempdir().unwrap();
    let yaml = support::config(&dir, &[("here", &here), ("there", &there)], "");
    let endpoint = format!("endpoint: \"{}\"", there.endpoint());
    assert!(yaml.contains(&endpoint));
    let more = more.replace("{port}", &there.stream_port().to_string());
    let crimux = Crimux::start_in(dir, &yaml.replace(&endpoint, &(endpoint.clone() + &more)));
    crimux.wait_ready().await;
    (here, there, crimux)
}

/// The mountpoints in `ImageFsInfo`.
async fn mountpoints(crimux: &Crimux) -> Vec<String> {
    let reply =
        crimux.client().images().image_fs_info(cri::ImageFsInfoRequest {}).await.unwrap().into_inner();
    let usages = reply.image_filesystems.into_iter().chain(reply.container_filesystems);
    usages.map(|usage| usage.fs_id.unwrap().mountpoint).collect()
}

/// How many images are listed, and how many of them pinned.
async fn pinned(crimux: &Crimux) -> (usize, usize) {
    let request = cri::ListImagesRequest::default();
    let images = crimux.client().images().list_images(request).await.unwrap().into_inner().images;
    (images.len(), images.iter().filter(|image| image.pinned).count())
}

#[tokio::test]
async fn file_systems_and_images_of_another_host_are_kept_from_the_collector() {
    let (_here, there, crimux) = two("", "").await;
    let mounted = mountpoints(&crimux).await;
    assert!(!mounted.is_empty() && mounted.iter().all(|path| path == "/here"), "{mounted:?}");
    assert_eq!(pinned(&crimux).await, (1, 0), "the same image on both hosts: it frees room here");
    there.state().add_image("registry.example/remote:1");
    assert_eq!(pinned(&crimux).await, (2, 1), "an image of the other host frees none");

    let (_here, _there, crimux) = two(", local: true", "").await;
    assert!(mountpoints(&crimux).await.contains(&"/there".to_owned()), "said to be on this node");
    assert_eq!(pinned(&crimux).await, (1, 0));
}

/// Asks for a stream to a container of `there`.
async fn exec(crimux: &Crimux, there: &SimRuntime) -> Result<String, tonic::Status> {
    let container_id = there.state().containers().next().unwrap().id.clone();
    let cmd = vec!["true".to_owned()];
    let request = cri::ExecRequest { container_id, cmd, stdout: true, ..Default::default() };
    Ok(crimux.client().runtime().exec(request).await?.into_inner().url)
}

#[tokio::test]
async fn a_stream_url_that_aims_elsewhere_is_refused_and_never_dialled() {
    let cases = [
        ("http://localhost:{port}", "names localhost, which would be this node"),
        ("http://:{port}", "names no host, which would be this node"),
        ("http://[::]:{port}", "names no host, which would be this node"),
        ("http://10.9.9.9:{port}", "names 10.9.9.9, which is not its endpoint's host 127.0.0.1"),
        ("http://kubernetes.default.svc", "names kubernetes.default.svc, which is not its endpoint's host"),
    ];
    for (stream_url, said) in cases {
        let (_here, there, crimux) = two("", stream_url).await;
        let status = exec(&crimux, &there).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal, "{stream_url}");
        assert!(status.message().contains(said), "{stream_url}: {}", status.message());
        assert!(
            status.message().contains("stream_server_address"),
            "it says what to set: {}",
            status.message()
        );
        let refused = "crimux_requests_total{backend=\"there\",code=\"Internal\",method=\"Exec\"}";
        testkit::eventually(SOON, async || crimux.metric(refused).await == Some(1.0)).await;
        assert_eq!(there.stream_requests(), []);
    }
}

#[tokio::test]
async fn a_configured_address_is_dialled_whatever_the_url_names() {
    let (_here, there, crimux) =
        two(", streaming: { address: \"127.0.0.1:{port}\" }", "http://10.9.9.9:1").await;
    let url = exec(&crimux, &there).await.unwrap();
    let (authority, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = TcpStream::connect(authority).await.unwrap();
    let request = format!(
        "POST /{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"
    );
    stream.write_all((request + "over and back").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut reply = String::new();
    tokio::time::timeout(SOON, stream.read_to_string(&mut reply)).await.unwrap().unwrap();
    assert!(reply.starts_with("HTTP/1.1 101 ") && reply.ends_with("\r\n\r\nover and back"), "{reply}");
    let requests = there.stream_requests();
    assert_eq!(requests.len(), 1);
    assert!(requests[0].head.contains(&format!("\r\nHost: 127.0.0.1:{}", there.stream_port())));
}
