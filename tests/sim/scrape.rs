//! The size of a scrape, and what its histograms can tell of calls that last.

use testkit::client::{container_config, sandbox_config};
use testkit::cri;
use testkit::runtime::SimRuntime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Crimux, config};

/// Bytes that a scrape of a node with 20 backends may have on the wire.
const LARGEST: usize = 500_000;

/// Calls what kubelet calls in the life of a pod.
async fn live_a_pod(crimux: &Crimux, handler: &str) {
    let (mut runtime, mut images) = (crimux.client().runtime(), crimux.client().images());
    let pod = sandbox_config(&format!("pod-{handler}"));
    let config = pod.clone().build();
    let pull = cri::PullImageRequest {
        image: Some(testkit::client::image_spec("app:1")),
        sandbox_config: Some(config.clone()),
        ..Default::default()
    };
    let pod_sandbox_id = runtime.run_pod_sandbox(pod.run(handler)).await.unwrap().into_inner().pod_sandbox_id;
    images.pull_image(pull).await.unwrap();
    let create = container_config("c", "app:1").create_in(&pod_sandbox_id, &config);
    let container_id = runtime.create_container(create).await.unwrap().into_inner().container_id;
    let start = cri::StartContainerRequest { container_id: container_id.clone() };
    runtime.start_container(start).await.unwrap();
    let status = cri::PodSandboxStatusRequest { pod_sandbox_id: pod_sandbox_id.clone(), verbose: false };
    runtime.pod_sandbox_status(status).await.unwrap();
    let status = cri::ContainerStatusRequest { container_id: container_id.clone(), verbose: false };
    runtime.container_status(status).await.unwrap();
    let exec =
        cri::ExecSyncRequest { container_id: container_id.clone(), cmd: vec!["true".into()], timeout: 1 };
    runtime.exec_sync(exec).await.unwrap();
    runtime.container_stats(cri::ContainerStatsRequest { container_id: container_id.clone() }).await.unwrap();
    let stop = cri::StopContainerRequest { container_id: container_id.clone(), timeout: 1 };
    runtime.stop_container(stop).await.unwrap();
    runtime.remove_container(cri::RemoveContainerRequest { container_id }).await.unwrap();
    let stop = cri::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
    runtime.stop_pod_sandbox(stop).await.unwrap();
    runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id }).await.unwrap();
}

/// Calls what kubelet calls for the whole node.
async fn look_at_the_node(crimux: &Crimux) {
    let (mut runtime, mut images) = (crimux.client().runtime(), crimux.client().images());
    runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await.unwrap();
    runtime.list_containers(cri::ListContainersRequest::default()).await.unwrap();
    runtime.list_container_stats(cri::ListContainerStatsRequest::default()).await.unwrap();
    runtime.list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest::default()).await.unwrap();
    runtime.status(cri::StatusRequest::default()).await.unwrap();
    images.list_images(cri::ListImagesRequest::default()).await.unwrap();
    images.image_fs_info(cri::ImageFsInfoRequest {}).await.unwrap();
}

/// Scrapes the port as Prometheus does; returns the bytes of the compressed body.
async fn scraped_bytes(crimux: &Crimux) -> usize {
    let mut stream = TcpStream::connect(crimux.http_address()).await.unwrap();
    let request = "GET /metrics HTTP/1.0\r\nhost: crimux\r\naccept-encoding: gzip\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await.unwrap();
    let body = reply.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let head = String::from_utf8_lossy(&reply[..body]).to_lowercase();
    assert!(head.contains("content-encoding: gzip"), "{head}");
    reply.len() - body
}

#[tokio::test]
async fn twenty_backends_are_less_than_half_a_megabyte_a_scrape() {
    let mut runtimes = Vec::new();
    for number in 0..20 {
        runtimes.push((format!("backend-{number}"), SimRuntime::builder("sim").start().await));
    }
    let named: Vec<_> = runtimes.iter().map(|(name, runtime)| (name.as_str(), runtime)).collect();
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&dir, &named, "").replace("http: off", "http: 127.0.0.1:0");
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    for (name, _) in &named {
        Box::pin(live_a_pod(&crimux, name)).await;
    }
    look_at_the_node(&crimux).await;
    let (_, text) = crimux.get("/metrics").await.unwrap();
    let histograms = text.lines().filter(|line| line.contains("_seconds_count{")).count();
    assert!(histograms > 20 * 20, "every backend has those of its calls: {histograms}");
    let scraped = scraped_bytes(&crimux).await;
    assert!(scraped < LARGEST, "{scraped} bytes of {}", text.len());
    // As kubelet's deadlines are: 2 minutes for a call, 4 for the calls that may last.
    let of_stops =
        text.lines().filter(|line| line.contains("_bucket{backend=\"backend-0\",method=\"StopContainer\""));
    let bounds: Vec<_> = of_stops.filter(|line| line.starts_with("crimux_request")).collect();
    for bound in ["1", "2", "5", "10", "30", "60", "120", "240", "+Inf"] {
        assert!(bounds.iter().any(|line| line.contains(&format!("le=\"{bound}\""))), "{bound}: {bounds:?}");
    }
}
