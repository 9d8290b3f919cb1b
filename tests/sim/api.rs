//! The rest of the API: pod metrics, stats from elsewhere, checkpoint and restore, old and future versions,
//! and four runtimes that differ in everything behind one crimux.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;
use testkit::client::{container_config, sandbox_config};
use testkit::runtime::{ApiVersions, Call, Fault, MetricLabels, Reply, SimRuntime};
use testkit::{Client, cri, eventually};
use tonic::{Code, Status};

use crate::outage::state::snapshot_holds;
use crate::support::{Crimux, SOON, config};

fn runtime(method: &str) -> String {
    format!("/runtime.v1.RuntimeService/{method}")
}

async fn start(backends: &[(&str, &SimRuntime)], change: impl FnOnce(String) -> String) -> Crimux {
    let dir = tempfile::tempdir().unwrap();
    let yaml = change(config(&dir, backends, ""));
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    crimux
}

async fn down(crimux: &Crimux, name: &str, runtime: &SimRuntime) {
    runtime.stop().await;
    let up = format!("crimux_backend_up{{backend=\"{name}\"}}");
    eventually(SOON, async || crimux.metric(&up).await == Some(0.0)).await;
}

// Pod metrics.

async fn with_labels(name: &str, labels: MetricLabels) -> SimRuntime {
    let builder = SimRuntime::builder(name).containers(4, 2);
    builder.abilities(|abilities| abilities.metric_labels = labels).start().await
}

async fn announced(client: &Client) -> BTreeMap<String, Vec<String>> {
    let reply = client.raw(&runtime("ListMetricDescriptors"), &[], Bytes::new()).await.unwrap();
    let descriptors = reply.decode::<cri::ListMetricDescriptorsResponse>().descriptors;
    let count = descriptors.len();
    let keys: BTreeMap<_, _> = descriptors.into_iter().map(|d| (d.name, d.label_keys)).collect();
    assert_eq!(keys.len(), count, "each name once");
    keys
}

/// The labels of all metrics of all containers: metric, container, and each label by the name it would get.
fn labelled(
    metrics: &[cri::PodSandboxMetrics],
    keys: &BTreeMap<String, Vec<String>>,
) -> BTreeSet<(String, BTreeMap<String, String>)> {
    let containers = metrics.iter().flat_map(|pod| &pod.container_metrics);
    let all =
        containers.flat_map(|container| &container.metrics).chain(metrics.iter().flat_map(|p| &p.metrics));
    all.map(|metric| {
        let keys = &keys[&metric.name];
        assert_eq!(keys.len(), metric.label_values.len());
        (metric.name.clone(), keys.iter().cloned().zip(metric.label_values.iter().cloned()).collect())
    })
    .collect()
}

async fn metrics(client: &Client, method: &str) -> Vec<cri::PodSandboxMetrics> {
    let reply = client.raw(&runtime(method), &[], Bytes::new()).await.unwrap();
    assert_eq!(reply.code(), Code::Ok, "{:?}", reply.status());
    let whole = Bytes::from(reply.messages.concat());
    cri::ListPodSandboxMetricsResponse::decode(whole).unwrap().pod_metrics
}

#[tokio::test]
async fn pod_metrics_keep_their_labels_whatever_the_order_of_a_backend() {
    let a = with_labels("a", MetricLabels::Containerd).await;
    let b = with_labels("b", MetricLabels::Crio).await;
    for backends in [[("a", &a), ("b", &b)], [("b", &b), ("a", &a)]] {
        let crimux = Crimux::start(&backends).await;
        let mut wanted = BTreeSet::new();
        for runtime in [&a, &b] {
            let direct = Client::unix(runtime.socket());
            wanted.extend(labelled(
                &metrics(&direct, "ListPodSandboxMetrics").await,
                &announced(&direct).await,
            ));
        }
        let keys = announced(&crimux.client()).await;
        let first = announced(&Client::unix(backends[0].1.socket())).await;
        assert_eq!(keys, first, "the default backend's order is announced");
        for method in ["ListPodSandboxMetrics", "StreamPodSandboxMetrics"] {
            assert_eq!(labelled(&metrics(&crimux.client(), method).await, &keys), wanted, "{method}");
        }
    }
}

#[tokio::test]
async fn descriptors_are_remembered_across_outages_and_what_was_announced_stands() {
    let a = with_labels("a", MetricLabels::Containerd).await;
    let b = with_labels("b", MetricLabels::Crio).await;
    let mut crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let keys = announced(&crimux.client()).await;
    down(&crimux, "a", &a).await;
    assert_eq!(announced(&crimux.client()).await, keys);
    let left = labelled(&metrics(&crimux.client(), "ListPodSandboxMetrics").await, &keys);
    let direct = Client::unix(b.socket());
    let own = labelled(&metrics(&direct, "ListPodSandboxMetrics").await, &announced(&direct).await);
    assert_eq!(left, own, "those of the other backend, under what was announced");
    crimux.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(crimux.ended().await, Some(0));
    crimux.kill_and_start().await;
    crimux.wait_ready().await;
    assert_eq!(announced(&crimux.client()).await, keys);
    assert_eq!(labelled(&metrics(&crimux.client(), "ListPodSandboxMetrics").await, &keys), own);
}

#[tokio::test]
async fn a_backend_without_pod_metrics_is_left_out() {
    let a = with_labels("a", MetricLabels::Containerd).await;
    let b = with_labels("b", MetricLabels::Crio).await;
    for method in ["ListMetricDescriptors", "ListPodSandboxMetrics"] {
        b.reply_raw(method, Reply::status(Status::unimplemented("no metrics")));
    }
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let keys = announced(&crimux.client()).await;
    let pods = metrics(&crimux.client(), "ListPodSandboxMetrics").await;
    assert_eq!((keys.len(), pods.len()), (3, 2));
}

// Stats.

#[tokio::test]
async fn pod_stats_that_one_backend_lacks_follow_the_policy() {
    let a = SimRuntime::builder("a").containers(2, 1).start().await;
    let b = SimRuntime::builder("b").containers(2, 1);
    let b = b.abilities(|abilities| abilities.pod_sandbox_stats = false).start().await;
    for (policy, wanted) in [("unimplemented", Err(Code::Unimplemented)), ("union", Ok(2))] {
        let crimux =
            start(&[("a", &a), ("b", &b)], |yaml| format!("{yaml}pod_sandbox_stats: {policy}\n")).await;
        let reply = crimux.client().raw(&runtime("ListPodSandboxStats"), &[], Bytes::new()).await.unwrap();
        let got = match reply.code() {
            Code::Ok => Ok(reply.decode::<cri::ListPodSandboxStatsResponse>().stats.len()),
            code => Err(code),
        };
        assert_eq!(got, wanted, "{policy}");
    }
    let crimux = start(&[("b", &b)], |yaml| format!("{yaml}pod_sandbox_stats: union\n")).await;
    let reply = crimux.client().raw(&runtime("ListPodSandboxStats"), &[], Bytes::new()).await.unwrap();
    assert_eq!(reply.code(), Code::Unimplemented, "no backend has them");
}

/// The mountpoints that stats of containers name, by whether there are any.
fn mountpoints(stats: &[cri::ContainerStats]) -> BTreeSet<Option<String>> {
    let layer = |stats: &cri::ContainerStats| {
        let layer = stats.writable_layer.as_ref().expect("the rest of the layer stays");
        assert!(layer.used_bytes.is_some_and(|used| used.value > 0));
        layer.fs_id.as_ref().map(|filesystem| filesystem.mountpoint.clone())
    };
    stats.iter().map(layer).collect()
}

#[tokio::test]
async fn stats_of_another_node_name_no_filesystem_of_it() {
    let a = SimRuntime::builder("a").containers(1, 1).start().await;
    let b = SimRuntime::builder("b").containers(1, 1);
    let b = b.abilities(|abilities| abilities.mountpoint = "/of/another/node".into()).start().await;
    let elsewhere = |yaml: String| yaml.replace("  b: { endpoint", "  b: { local: false, endpoint");
    let crimux = start(&[("a", &a), ("b", &b)], elsewhere).await;
    let client = crimux.client();
    let only_local = BTreeSet::from([None, Some("/var/lib/containerd".to_owned())]);

    for method in ["ListContainerStats", "StreamContainerStats"] {
        let reply = client.raw(&runtime(method), &[], Bytes::new()).await.unwrap();
        let list = cri::ListContainerStatsResponse::decode(Bytes::from(reply.messages.concat())).unwrap();
        assert_eq!((list.stats.len(), mountpoints(&list.stats)), (2, only_local.clone()), "{method}");
    }
    for method in ["ListPodSandboxStats", "StreamPodSandboxStats"] {
        let reply = client.raw(&runtime(method), &[], Bytes::new()).await.unwrap();
        let list = cri::ListPodSandboxStatsResponse::decode(Bytes::from(reply.messages.concat())).unwrap();
        let containers: Vec<_> =
            list.stats.into_iter().flat_map(|stats| stats.linux.unwrap().containers).collect();
        assert_eq!((containers.len(), mountpoints(&containers)), (2, only_local.clone()), "{method}");
    }
    for (runtime_of, wanted) in [(&a, Some("/var/lib/containerd".to_owned())), (&b, None)] {
        let (container, sandbox) = {
            let state = runtime_of.state();
            let container = state.containers().next().unwrap();
            (container.id.clone(), container.sandbox_id.clone())
        };
        let request = cri::ContainerStatsRequest { container_id: container };
        let reply = client.raw_message(&runtime("ContainerStats"), &request).await.unwrap();
        let stats = reply.decode::<cri::ContainerStatsResponse>().stats.unwrap();
        assert_eq!(mountpoints(&[stats]), BTreeSet::from([wanted.clone()]));
        let request = cri::PodSandboxStatsRequest { pod_sandbox_id: sandbox };
        let reply = client.raw_message(&runtime("PodSandboxStats"), &request).await.unwrap();
        let stats = reply.decode::<cri::PodSandboxStatsResponse>().stats.unwrap();
        assert_eq!(mountpoints(&stats.linux.unwrap().containers), BTreeSet::from([wanted]));
    }
    let unknown =
        cri::ContainerStatsRequest { container_id: b.state().sandboxes().next().unwrap().id.clone() };
    let reply = client.raw_message(&runtime("ContainerStats"), &unknown).await.unwrap();
    assert_eq!(reply.code(), Code::NotFound);
}

// Checkpoint, restore, pod-level resources.

#[tokio::test]
async fn checkpoints_and_pod_resources_go_to_the_owner_with_the_same_bytes() {
    let a = SimRuntime::builder("a").containers(1, 1).start().await;
    let b = SimRuntime::builder("b").containers(1, 1).start().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let (container_id, pod_sandbox_id) = {
        let state = b.state();
        let container = state.containers().next().unwrap();
        (container.id.clone(), container.sandbox_id.clone())
    };
    let container = cri::CheckpointContainerRequest {
        container_id: container_id.clone(),
        location: "/var/lib/kubelet/checkpoints/one.tar".into(),
        timeout: 10,
    };
    let pod = cri::CheckpointPodRequest {
        pod_sandbox_id: pod_sandbox_id.clone(),
        output_path: "/var/lib/kubelet/checkpoints/pod".into(),
        container_ids: vec![container_id],
        ..Default::default()
    };
    let resources = cri::UpdatePodSandboxResourcesRequest { pod_sandbox_id, ..Default::default() };
    let calls = [
        ("CheckpointContainer", container.encode_to_vec()),
        ("CheckpointPod", pod.encode_to_vec()),
        ("UpdatePodSandboxResources", resources.encode_to_vec()),
    ];
    for (method, mut request) in calls {
        // A field that nobody knows yet.
        request.extend([0xfa, 0x3f, 3, b'n', b'e', b'w']);
        // A memory image takes minutes: kubelet's deadline decides, and no timeout of crimux.
        let minutes = [("grpc-timeout", "600S")];
        let reply = crimux.client().raw(&runtime(method), &minutes, request.clone()).await.unwrap();
        assert_eq!(reply.code(), Code::Ok, "{method}: {:?}", reply.status());
        assert_eq!(b.calls(method)[0].message, request, "{method}");
        assert_eq!(b.calls(method)[0].header("grpc-timeout"), Some("600S"), "{method}");
        assert_eq!(a.calls(method).len(), 0, "{method}");
    }
    assert_eq!(b.state().checkpoints, [container.location, pod.output_path]);
    down(&crimux, "b", &b).await;
    let reply = crimux.client().raw_message(&runtime("CheckpointPod"), &resources).await.unwrap();
    assert_eq!(reply.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_restored_pod_goes_by_its_handler_and_is_known_with_its_containers() {
    let a = SimRuntime::builder("a").start().await;
    let b = SimRuntime::builder("b").handlers(["kata-qemu"]).start().await;
    let named = |yaml: String| {
        yaml.replace("  b: { backend: b }", "  b: { backend: b }\n  kata: { backend: b, handler: kata-qemu }")
    };
    let crimux = start(&[("a", &a), ("b", &b)], named).await;
    let client = crimux.client();
    let request = cri::RestorePodRequest {
        checkpoint_path: "/checkpoints/pod".into(),
        config: Some(sandbox_config("restored").build()),
        runtime_handler: "kata".into(),
        container_configs: ["one", "two"].map(|name| container_config(name, "img:1").build()).into(),
        ..Default::default()
    };
    let reply = client.raw_message(&runtime("RestorePod"), &request).await.unwrap();
    assert_eq!(reply.code(), Code::Ok, "{:?}", reply.status());
    let restored: cri::RestorePodResponse = reply.decode();
    assert_eq!(b.calls("RestorePod")[0].decode::<cri::RestorePodRequest>().runtime_handler, "kata-qemu");
    assert_eq!(a.calls("RestorePod").len(), 0);

    for container in &restored.restored_containers {
        let request =
            cri::ContainerStatusRequest { container_id: container.container_id.clone(), verbose: false };
        let reply = client.raw_message(&runtime("ContainerStatus"), &request).await.unwrap();
        assert_eq!(reply.code(), Code::Ok);
    }
    assert_eq!(crimux.metric("crimux_unknown_ids_total").await, Some(0.0), "their owner was recorded");
    assert_eq!(a.calls("ContainerStatus").len(), 0);

    // Nothing was listed since: what the reply said is all that is known.
    down(&crimux, "b", &b).await;
    let reply = client.raw(&runtime("ListContainers"), &[], Bytes::new()).await.unwrap();
    let listed: BTreeSet<_> =
        reply.decode::<cri::ListContainersResponse>().containers.into_iter().map(|c| c.id).collect();
    assert_eq!(listed, restored.restored_containers.iter().map(|c| c.container_id.clone()).collect());
    let nowhere = cri::RestorePodRequest { runtime_handler: "nowhere".into(), ..request };
    let reply = client.raw_message(&runtime("RestorePod"), &nowhere).await.unwrap();
    assert_eq!(reply.code(), Code::InvalidArgument, "{:?}", reply.status());
}

#[tokio::test]
async fn a_restored_pod_is_owned_whole_over_a_lost_reply_and_a_restart() {
    let a = SimRuntime::builder("a").start().await;
    let b = SimRuntime::builder("b").sandboxes(1, 0).start().await;
    let before = b.state().sandboxes().next().unwrap().id.clone();
    let mut crimux = start(&[("a", &a), ("b", &b)], |yaml| yaml).await;
    // A backend whose lists were never saved is waited for after a start.
    let state = crimux.dir.path().join("state");
    eventually(SOON, async || snapshot_holds(&state, &before)).await;
    let restore = |name: &str| cri::RestorePodRequest {
        checkpoint_path: "/checkpoints/pod".into(),
        config: Some(sandbox_config(name).build()),
        runtime_handler: "b".into(),
        container_configs: ["one", "two"].map(|name| container_config(name, "img:1").build()).into(),
        ..Default::default()
    };
    let path = runtime("RestorePod");
    let minutes = [("grpc-timeout", "600S")];
    let reply = crimux.client().raw(&path, &minutes, restore("whole").encode_to_vec()).await.unwrap();
    assert_eq!(reply.code(), Code::Ok, "{:?}", reply.status());
    assert_eq!(b.calls("RestorePod")[0].header("grpc-timeout"), Some("600S"), "it may take its minutes");
    let whole: cri::RestorePodResponse = reply.decode();
    // Killed between the reply and the next list, and the backend is away.
    b.stop().await;
    crimux.kill_and_start().await;
    crimux.wait_ready().await;
    down(&crimux, "b", &b).await;
    let listed = crimux.client().raw(&runtime("ListContainers"), &[], Bytes::new()).await.unwrap();
    for container in &listed.decode::<cri::ListContainersResponse>().containers {
        assert_eq!(
            container.pod_sandbox_id, whole.pod_sandbox_id,
            "kubelet looks at the containers of its sandbox"
        );
    }
    for id in whole.restored_containers.iter().map(|container| container.container_id.clone()) {
        let request = cri::StopContainerRequest { container_id: id, timeout: 0 };
        let reply = crimux.client().raw_message(&runtime("StopContainer"), &request).await.unwrap();
        assert_eq!(reply.code(), Code::Unavailable, "owned, not denied");
    }
    b.start_again().await;
    eventually(SOON, async || crimux.metric("crimux_backend_up{backend=\"b\"}").await == Some(1.0)).await;
    b.fault_next("RestorePod", 1, Fault::LoseReply);
    let lost = crimux.client().raw_message(&path, &restore("lost")).await.unwrap();
    assert_eq!(lost.code(), Code::Unavailable);
    let ids: Vec<_> = b.state().containers().map(|container| container.id.clone()).collect();
    assert_eq!(ids.len(), 4);
    eventually(SOON, async || crimux.metric("crimux_backend_up{backend=\"b\"}").await == Some(1.0)).await;
    for container_id in ids {
        let request = cri::ContainerStatusRequest { container_id, verbose: false };
        let reply = crimux.client().raw_message(&runtime("ContainerStatus"), &request).await.unwrap();
        assert_eq!(reply.code(), Code::Ok, "{:?}", reply.status());
    }
}

// Old and future versions.

async fn speaking(name: &str, api: ApiVersions) -> SimRuntime {
    let builder = SimRuntime::builder(name).handlers(["runc"]).containers(4, 2);
    builder.abilities(|abilities| abilities.api = api).start().await
}

#[tokio::test]
async fn both_apis_work_in_front_of_both() {
    let (a, b) = (speaking("a", ApiVersions::V1).await, speaking("b", ApiVersions::V1alpha2).await);
    let crimux = start(&[("a", &a), ("b", &b)], |yaml| {
        yaml.replace("  b: { backend: b }", "  b: { backend: b, handler: runc }")
    })
    .await;
    for package in ["runtime.v1", "runtime.v1alpha2"] {
        let client = crimux.client();
        let call = async |method: &str, request: Bytes| {
            let path = format!("/{package}.RuntimeService/{method}");
            let reply = client.raw(&path, &[], request).await.unwrap();
            assert_eq!(reply.code(), Code::Ok, "{path}: {:?}", reply.status());
            reply
        };
        let version: cri::VersionResponse = call("Version", Bytes::new()).await.decode();
        assert_eq!(format!("runtime.{}", version.runtime_api_version), package);
        let name = format!("of-{}", package.replace('.', "-"));
        let run = sandbox_config(&name).run("b").encode_to_vec();
        let made: cri::RunPodSandboxResponse = call("RunPodSandbox", run.into()).await.decode();
        assert!(b.state().sandbox(&made.pod_sandbox_id).is_some());
        let status = cri::PodSandboxStatusRequest { pod_sandbox_id: made.pod_sandbox_id, verbose: false };
        call("PodSandboxStatus", status.encode_to_vec().into()).await;
        for (method, count) in [("ListContainers", 8), ("StreamContainers", 8), ("ListContainerStats", 8)] {
            let whole = Bytes::from(call(method, Bytes::new()).await.messages.concat());
            assert_eq!(crimux::wire::items(&whole, 1).count(), count, "{package} {method}");
        }
        let images = client.raw(&format!("/{package}.ImageService/ListImages"), &[], Bytes::new()).await;
        assert_eq!(images.unwrap().code(), Code::Ok);
    }
    assert!(
        b.calls("*").iter().skip(1).all(|call| call.path.starts_with("/runtime.v1alpha2.")),
        "once learnt"
    );
    assert!(a.calls("*").iter().all(|call| call.path.starts_with("/runtime.v1.")));
}

#[tokio::test]
async fn methods_of_tomorrow_work_by_id_and_without() {
    let (a, b) = (speaking("a", ApiVersions::V1).await, speaking("b", ApiVersions::V1alpha2).await);
    let answer = |name: &'static str| {
        move |call: Call| {
            let echo = Bytes::from([name.as_bytes(), &call.message].concat());
            let messages =
                if call.method() == "StreamTomorrow" { vec![echo.clone(), echo] } else { vec![echo] };
            Reply::messages(messages).trailer("of-tomorrow", "yes")
        }
    };
    for method in ["Tomorrow", "StreamTomorrow"] {
        a.unknown_method(method, answer("a"));
        b.unknown_method(method, answer("b"));
    }
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let mut by_id = vec![0x0a, 64];
    by_id.extend(b.state().containers().next().unwrap().id.as_bytes());
    by_id.extend([0x10, 7]);
    let by_id = Bytes::from(by_id);
    for (request, owner) in [(by_id, "b"), (Bytes::from_static(&[0x10, 7]), "a"), (Bytes::new(), "a")] {
        for (method, count) in [("Tomorrow", 1), ("StreamTomorrow", 2)] {
            let metadata = [("traceparent", "00-1-2-03"), ("x-tomorrow", "1")];
            let reply = crimux.client().raw(&runtime(method), &metadata, request.clone()).await.unwrap();
            assert_eq!(reply.code(), Code::Ok, "{:?}", reply.status());
            let wanted = Bytes::from([owner.as_bytes(), &request].concat());
            assert_eq!(reply.messages, vec![wanted; count], "{method} at {owner}");
            assert_eq!(reply.trailers.get("of-tomorrow").unwrap(), "yes");
        }
    }
    let call = &b.calls("Tomorrow")[0];
    assert_eq!(call.path, "/runtime.v1alpha2.RuntimeService/Tomorrow");
    assert_eq!((call.header("traceparent"), call.header("x-tomorrow")), (Some("00-1-2-03"), Some("1")));
    let image = crimux.client().raw("/runtime.v1.ImageService/Tomorrow", &[], Bytes::new()).await.unwrap();
    assert_eq!(image.single(), "a", "other services too");
    let nobody = crimux.client().raw(&runtime("Nowhere"), &[], Bytes::new()).await.unwrap();
    assert_eq!(nobody.code(), Code::Unimplemented);
}

// Four that differ.

const EACH: usize = 5000;

async fn four() -> [SimRuntime; 4] {
    let builder = |name: &str| SimRuntime::builder(name).containers(EACH, 2).record(false);
    [
        builder("streams").abilities(|abilities| abilities.stream_lists = true).start().await,
        builder("plain").abilities(|a| a.metric_labels = MetricLabels::Crio).start().await,
        builder("events").events().start().await,
        builder("old").abilities(|abilities| abilities.api = ApiVersions::V1alpha2).start().await,
    ]
}

/// All IDs of a list or stream, each once.
async fn listed(client: &Client, method: &str) -> BTreeSet<String> {
    let reply = client.raw(&runtime(method), &[], Bytes::new()).await.unwrap();
    assert_eq!(reply.code(), Code::Ok, "{method}: {:?}", reply.status());
    let whole = Bytes::from(reply.messages.concat());
    let ids: Vec<_> = crimux::wire::items(&whole, 1)
        .map(|item| crimux::wire::peek_str(item.unwrap(), &[1]).unwrap().to_owned())
        .collect();
    let count = ids.len();
    let unique: BTreeSet<_> = ids.into_iter().collect();
    assert_eq!(unique.len(), count, "{method} has an item twice");
    unique
}

fn union(runtimes: &[SimRuntime; 4], ids: impl Fn(&SimRuntime) -> Vec<String>) -> BTreeSet<String> {
    runtimes.iter().flat_map(ids).collect()
}

fn containers(runtime: &SimRuntime) -> Vec<String> {
    runtime.state().containers().map(|container| container.id.clone()).collect()
}

fn sandboxes(runtime: &SimRuntime) -> Vec<String> {
    runtime.state().sandboxes().map(|sandbox| sandbox.id.clone()).collect()
}

/// Removes a pod and adds another, behind crimux's back.
fn churn(runtimes: &[SimRuntime; 4], round: usize) {
    for runtime in runtimes {
        let mut state = runtime.state();
        let gone = state.sandboxes().nth(round).unwrap().id.clone();
        state.remove_sandbox(&gone).unwrap();
        let image = state.add_image("registry.example/app:1");
        let made = state.run_sandbox(sandbox_config(&format!("churn-{round}")).build(), "").unwrap();
        state.create_container(&made, container_config("only", &image).build()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_runtimes_that_differ_are_one_with_5000_containers_each() {
    let runtimes = four().await;
    let names = ["streams", "plain", "events", "old"];
    let backends: Vec<_> = names.into_iter().zip(&runtimes).collect();
    // A debug build decodes 20,000 containers in a simulated runtime each time something changed.
    let patient = |yaml: String| {
        names.iter().fold(yaml, |yaml, name| {
            let line = format!("  {name}: {{ endpoint");
            yaml.replace(&line, &format!("  {name}: {{ timeouts: {{ list: 60s, stats: 60s }}, endpoint"))
        })
    };
    let dir = tempfile::tempdir().unwrap();
    let yaml = patient(config(&dir, &backends, ""));
    let crimux = Crimux::start_in(dir, &yaml);
    // The first lists of 20,000 containers take a loaded machine more than the ten seconds of `wait_ready`.
    eventually(6 * SOON, async || matches!(crimux.get("/readyz").await, Some((200, _)))).await;
    let client = crimux.client();
    for round in 0..2 {
        for _ in ["once", "twice"] {
            let wanted = union(&runtimes, containers);
            assert_eq!(wanted.len(), 4 * (EACH - round));
            for method in ["ListContainers", "StreamContainers"] {
                assert_eq!(listed(&client, method).await, wanted, "{method}, round {round}");
            }
            let wanted = union(&runtimes, sandboxes);
            for method in ["ListPodSandbox", "StreamPodSandboxes"] {
                assert_eq!(listed(&client, method).await, wanted, "{method}, round {round}");
            }
        }
        churn(&runtimes, round);
    }
    let running = |runtime: &SimRuntime| {
        let running = |container: &&testkit::runtime::Container| {
            container.state == cri::ContainerState::ContainerRunning
        };
        runtime.state().containers().filter(running).map(|container| container.id.clone()).collect()
    };
    let reply = client.raw(&runtime("ListContainerStats"), &[], Bytes::new()).await.unwrap();
    let stats = reply.decode::<cri::ListContainerStatsResponse>().stats;
    let measured: BTreeSet<_> = stats.into_iter().map(|stats| stats.attributes.unwrap().id).collect();
    assert_eq!(measured, union(&runtimes, running));
    let mut events = client.raw_stream(&runtime("GetContainerEvents"), &[], Bytes::new()).await.unwrap();
    assert!(events.headers().await.is_ok(), "events are offered whichever backend streams");
}
