//! The abilities change what they name.

use testkit::client::image_spec;
use testkit::cri;
use testkit::runtime::{ApiVersions, Events, ImageIds, MetricLabels, SimRuntime, UnknownIds};
use tonic::Code;

use crate::client_of;

#[tokio::test]
async fn optional_rpcs_can_be_missing() {
    let sim = SimRuntime::builder("old")
        .abilities(|can| {
            can.pod_sandbox_stats = false;
            can.cgroup_driver = None;
        })
        .start()
        .await;
    let mut runtime = client_of(&sim).runtime();
    let code =
        runtime.list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest::default()).await.unwrap_err().code();
    assert_eq!(code, Code::Unimplemented);
    assert_eq!(
        runtime.runtime_config(cri::RuntimeConfigRequest {}).await.unwrap_err().code(),
        Code::Unimplemented
    );
    let streams = runtime.stream_containers(cri::StreamContainersRequest::default()).await;
    assert_eq!(streams.unwrap_err().code(), Code::Unimplemented);
    assert_eq!(
        runtime.get_container_events(cri::GetEventsRequest {}).await.unwrap_err().code(),
        Code::Unimplemented
    );
    sim.state().abilities.events = Events::EndAtOnce;
    let mut events = runtime.get_container_events(cri::GetEventsRequest {}).await.unwrap().into_inner();
    assert!(events.message().await.unwrap().is_none());
}

#[tokio::test]
async fn streaming_lists_come_in_batches_and_hold_what_the_unary_list_holds() {
    let sim = SimRuntime::builder("new")
        .containers(5, 1)
        .abilities(|can| {
            can.stream_lists = true;
            can.stream_batch = 2;
        })
        .start()
        .await;
    let client = client_of(&sim);
    let stream = client.raw(&crate::path("StreamContainers"), &[], bytes::Bytes::new()).await.unwrap();
    assert_eq!(stream.messages.len(), 3);
    let list = client.raw(&crate::path("ListContainers"), &[], bytes::Bytes::new()).await.unwrap();
    assert_eq!(stream.messages.concat(), list.single());
}

#[tokio::test]
async fn the_api_version_decides_what_paths_exist() {
    let sim = SimRuntime::builder("old").abilities(|can| can.api = ApiVersions::V1alpha2).start().await;
    let client = client_of(&sim);
    let none = bytes::Bytes::new;
    let alpha = client.raw("/runtime.v1alpha2.RuntimeService/Version", &[], none()).await.unwrap();
    assert_eq!(alpha.decode::<cri::VersionResponse>().runtime_api_version, "v1alpha2");
    let v1 = client.raw("/runtime.v1.RuntimeService/Version", &[], none()).await.unwrap();
    assert_eq!(v1.message(), "unknown service runtime.v1.RuntimeService");
    let newer = client.raw("/runtime.v1alpha2.RuntimeService/GetContainerEvents", &[], none()).await.unwrap();
    assert_eq!(newer.code(), Code::Unimplemented);
    sim.state().abilities.api = ApiVersions::Both;
    let v1 = client.raw("/runtime.v1.RuntimeService/Version", &[], none()).await.unwrap();
    assert_eq!(v1.decode::<cri::VersionResponse>().runtime_api_version, "v1");
}

#[tokio::test]
async fn crio_takes_a_containerd_image_id_for_a_name() {
    let sim = SimRuntime::builder("cri-o").abilities(|can| can.image_ids = ImageIds::Crio).start().await;
    let id = sim.state().add_image("busybox");
    let mut images = client_of(&sim).images();
    let remove = |image: &str| cri::RemoveImageRequest { image: Some(image_spec(image)) };
    images.remove_image(remove(&format!("sha256:{id}"))).await.unwrap();
    assert_eq!(sim.state().images.len(), 1, "it was told of another image");
    images.remove_image(remove(&id)).await.unwrap();
    assert_eq!(sim.state().images.len(), 0);
}

#[tokio::test]
async fn metric_values_stand_in_the_order_of_their_labels() {
    for (order, position) in [(MetricLabels::Containerd, 3), (MetricLabels::Crio, 0)] {
        let sim = SimRuntime::builder("any")
            .containers(1, 1)
            .abilities(|can| can.metric_labels = order)
            .start()
            .await;
        let mut runtime = client_of(&sim).runtime();
        let descriptors =
            runtime.list_metric_descriptors(cri::ListMetricDescriptorsRequest {}).await.unwrap();
        let metrics = runtime.list_pod_sandbox_metrics(cri::ListPodSandboxMetricsRequest {}).await.unwrap();
        let container = &metrics.get_ref().pod_metrics[0].container_metrics[0];
        let metric = &container.metrics[0];
        let descriptor = &descriptors.get_ref().descriptors[0];
        assert_eq!(
            (&metric.name, metric.label_values.len()),
            (&descriptor.name, descriptor.label_keys.len())
        );
        assert_eq!(descriptor.label_keys[position], "id");
        assert_eq!(metric.label_values[position], container.container_id);
    }
}

#[tokio::test]
async fn unknown_ids_are_ok_or_not_found() {
    let sim = SimRuntime::builder("any").start().await;
    let mut runtime = client_of(&sim).runtime();
    let request = || cri::StopPodSandboxRequest { pod_sandbox_id: "nobody".into() };
    runtime.stop_pod_sandbox(request()).await.unwrap();
    sim.state().abilities.unknown_ids = UnknownIds::NotFound;
    assert_eq!(runtime.stop_pod_sandbox(request()).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn every_rpc_of_the_cri_is_known() {
    let sim = SimRuntime::builder("new")
        .abilities(|can| {
            can.stream_lists = true;
            can.events = Events::EndAtOnce;
        })
        .start()
        .await;
    let client = client_of(&sim);
    let (mut service, mut known) = ("", 0);
    for line in include_str!("../../../proto/cri.proto").lines() {
        if let Some(rest) = line.strip_prefix("service ") {
            service = rest.trim_end_matches(" {");
        }
        let Some((method, _)) = line.trim().strip_prefix("rpc ").and_then(|rest| rest.split_once('(')) else {
            continue;
        };
        let reply =
            client.raw(&format!("/runtime.v1.{service}/{method}"), &[], bytes::Bytes::new()).await.unwrap();
        assert_ne!(reply.code(), Code::Unimplemented, "{service}/{method}: {}", reply.message());
        known += 1;
    }
    assert!(known > 40, "{known} RPCs were found in the API");
}
