//! Streaming lists: every backend's frames, whatever a backend can do, and none twice.

use std::collections::BTreeSet;
use std::sync::Mutex;

use bytes::Bytes;
use prost::Message;
use testkit::cri;
use testkit::runtime::{Fault, Reply, SimRuntime};
use testkit::{Client, eventually};
use tonic::{Code, Status};

use crate::support::{Crimux, SOON, config};

const CONTAINERS: &str = "/runtime.v1.RuntimeService/StreamContainers";
const SANDBOXES: &str = "/runtime.v1.RuntimeService/StreamPodSandboxes";

/// The streams, and the unary list that has the same items.
const STREAMS: [(&str, &str); 6] = [
    ("RuntimeService/StreamPodSandboxes", "RuntimeService/ListPodSandbox"),
    ("RuntimeService/StreamContainers", "RuntimeService/ListContainers"),
    ("RuntimeService/StreamContainerStats", "RuntimeService/ListContainerStats"),
    ("RuntimeService/StreamPodSandboxStats", "RuntimeService/ListPodSandboxStats"),
    ("RuntimeService/StreamPodSandboxMetrics", "RuntimeService/ListPodSandboxMetrics"),
    ("ImageService/StreamImages", "ImageService/ListImages"),
];

async fn streaming(name: &str, containers: usize, batch: usize) -> SimRuntime {
    let builder = SimRuntime::builder(name).containers(containers, 2).images(3);
    let builder = builder.abilities(|abilities| {
        abilities.stream_lists = true;
        abilities.stream_batch = batch;
    });
    builder.start().await
}

async fn plain(name: &str, containers: usize) -> SimRuntime {
    SimRuntime::builder(name).containers(containers, 2).images(3).start().await
}

/// The items of a list, in frames, with the status.
async fn frames(client: &Client, path: &str) -> (Vec<Bytes>, Status) {
    let reply = client.raw(path, &[], Bytes::new()).await.unwrap();
    assert!(reply.rest.is_empty(), "whole frames only");
    (reply.messages.clone(), reply.status())
}

/// The items of field 1 of each frame, sorted.
fn items(frames: &[Bytes]) -> Vec<Vec<u8>> {
    let whole: Bytes = frames.concat().into();
    let items = crimux::wire::items(&whole, 1).map(|item| item.unwrap().to_vec());
    let mut items: Vec<_> = items.collect();
    items.sort();
    items
}

fn container_ids(frames: &[Bytes]) -> Vec<String> {
    let whole: Bytes = frames.concat().into();
    cri::ListContainersResponse::decode(whole).unwrap().containers.into_iter().map(|c| c.id).collect()
}

fn ids_of(runtimes: &[&SimRuntime]) -> BTreeSet<String> {
    let ids = |runtime: &&SimRuntime| -> Vec<String> {
        runtime.state().containers().map(|container| container.id.clone()).collect()
    };
    runtimes.iter().flat_map(ids).collect()
}

/// The IDs, each once.
fn unique(ids: Vec<String>) -> BTreeSet<String> {
    let count = ids.len();
    let unique: BTreeSet<_> = ids.into_iter().collect();
    assert_eq!(unique.len(), count, "an item came twice");
    unique
}

#[tokio::test]
async fn every_stream_has_the_items_of_its_unary_list() {
    let (a, b) = (streaming("a", 20, 7).await, plain("b", 10).await);
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    for (stream, unary) in STREAMS {
        // Stats and metrics carry the time, so both must come from the same kept reply of the runtimes.
        let (streamed, status) = frames(&crimux.client(), &format!("/runtime.v1.{stream}")).await;
        assert_eq!(status.code(), Code::Ok, "{stream}: {status:?}");
        let unary = crimux.client().raw(&format!("/runtime.v1.{unary}"), &[], Bytes::new()).await.unwrap();
        assert!(!streamed.is_empty() && streamed.iter().all(|frame| !frame.is_empty()), "{stream}");
        let (streamed, listed) = (items(&streamed), items(&[unary.single()]));
        assert_eq!(streamed.len(), listed.len(), "{stream}");
        if !stream.contains("Stats") && !stream.contains("Metrics") {
            assert_eq!(streamed, listed, "{stream}");
        }
    }
}

#[tokio::test]
async fn frames_of_a_backend_pass_as_the_bytes_they_came_in() {
    let a = streaming("a", 20, 7).await;
    let crimux = Crimux::start(&[("a", &a)]).await;
    let (through, _) = frames(&crimux.client(), CONTAINERS).await;
    let (direct, _) = frames(&Client::unix(a.socket()), CONTAINERS).await;
    assert_eq!(direct.len(), 3);
    assert_eq!(through, direct);
}

#[tokio::test]
async fn a_backend_without_streams_is_asked_for_one_once_a_connection() {
    let (a, b) = (streaming("a", 4, 2).await, plain("b", 4).await);
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    b.clear_calls();
    for _ in 0..3 {
        let (frames, status) = frames(&crimux.client(), CONTAINERS).await;
        assert_eq!((status.code(), unique(container_ids(&frames))), (Code::Ok, ids_of(&[&a, &b])));
    }
    assert_eq!(b.calls("StreamContainers").len(), 1);
    assert_eq!(b.calls("ListContainers").len(), 3);

    // A runtime that comes back may be a newer one.
    b.state().abilities.stream_lists = true;
    b.drop_connections();
    eventually(SOON, async || {
        let (frames, status) = frames(&crimux.client(), CONTAINERS).await;
        assert_eq!((status.code(), unique(container_ids(&frames))), (Code::Ok, ids_of(&[&a, &b])));
        b.calls("StreamContainers").len() > 1
    })
    .await;
}

#[tokio::test]
async fn a_large_unary_list_becomes_frames_below_4_mib() {
    let b = plain("b", 2).await;
    let item = |number: usize| cri::Container {
        id: format!("{number:064x}"),
        metadata: Some(cri::ContainerMetadata::default()),
        labels: [("large".to_owned(), "x".repeat(1000))].into(),
        ..Default::default()
    };
    let list = cri::ListContainersResponse { containers: (0..9000).map(item).collect() };
    b.reply_raw("ListContainers", Reply::message(list.encode_to_vec()));
    let crimux = Crimux::start(&[("b", &b)]).await;
    let (frames, status) = frames(&crimux.client(), CONTAINERS).await;
    assert_eq!(status.code(), Code::Ok);
    assert_eq!(frames.len(), 3, "9.7 MB in frames below 4 MiB");
    assert!(frames.iter().all(|frame| frame.len() + 5 < 4 << 20));
    assert_eq!(frames.concat(), list.encode_to_vec());
}

#[tokio::test]
async fn a_backend_that_is_down_contributes_its_last_known_items() {
    let (a, b) = (streaming("a", 6, 2).await, streaming("b", 6, 2).await);
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    // What a stream brought is known as well as what a list brought.
    let created = testkit::client::sandbox_config("late").build();
    b.state().run_sandbox(created, "").unwrap();
    let (live, _) = frames(&crimux.client(), SANDBOXES).await;
    let (containers, _) = frames(&crimux.client(), CONTAINERS).await;
    b.stop().await;
    eventually(SOON, async || crimux.metric("crimux_backend_up{backend=\"b\"}").await == Some(0.0)).await;
    let (last_known, status) = frames(&crimux.client(), SANDBOXES).await;
    assert_eq!((status.code(), items(&last_known)), (Code::Ok, items(&live)));
    let (last_known, _) = frames(&crimux.client(), CONTAINERS).await;
    assert_eq!(items(&last_known), items(&containers));
}

#[tokio::test]
async fn a_backend_that_hangs_contributes_its_last_known_items_in_time() {
    let (a, b) = (streaming("a", 6, 2).await, streaming("b", 6, 2).await);
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    for method in ["StreamContainers", "ListContainers"] {
        b.fault(method, Fault::Hang);
    }
    for _ in 0..2 {
        let (frames, status) = frames(&crimux.client(), CONTAINERS).await;
        assert_eq!((status.code(), unique(container_ids(&frames))), (Code::Ok, ids_of(&[&a, &b])));
    }
    assert_eq!(b.calls("StreamContainers").len(), 1, "a late backend is not asked again for each list");
}

#[tokio::test]
async fn a_backend_that_breaks_off_contributes_the_rest_as_last_known_and_nothing_twice() {
    let (a, b) = (streaming("a", 6, 2).await, streaming("b", 6, 2).await);
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let (all, _) = frames(&Client::unix(b.socket()), CONTAINERS).await;
    assert_eq!(all.len(), 3);
    let half = all[..2].to_vec();
    b.unknown_method("StreamContainers", move |_| {
        let (sender, reply) = Reply::stream();
        for frame in half.clone() {
            sender.send(Ok(frame)).unwrap();
        }
        sender.send(Err(Status::internal("out of luck"))).unwrap();
        reply
    });
    let (frames, status) = frames(&crimux.client(), CONTAINERS).await;
    assert_eq!((status.code(), unique(container_ids(&frames))), (Code::Ok, ids_of(&[&a, &b])));
    assert_eq!(items(&frames).len(), 12);
}

#[tokio::test]
async fn a_stream_whose_connection_breaks_is_completed_from_what_is_known() {
    let (a, b) = (streaming("a", 6, 2).await, streaming("b", 6, 2).await);
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let (all, _) = frames(&Client::unix(b.socket()), CONTAINERS).await;
    let half = all[..2].to_vec();
    let unfinished = Mutex::new(Vec::new());
    b.unknown_method("StreamContainers", move |_| {
        let (sender, reply) = Reply::stream();
        for frame in half.clone() {
            sender.send(Ok(frame)).unwrap();
        }
        unfinished.lock().unwrap().push(sender);
        reply
    });
    b.clear_calls();
    let client = crimux.client();
    let listed = tokio::spawn(async move { frames(&client, CONTAINERS).await });
    eventually(SOON, async || !b.calls("StreamContainers").is_empty()).await;
    b.drop_connections();
    let (frames, status) = listed.await.unwrap();
    assert_eq!((status.code(), unique(container_ids(&frames))), (Code::Ok, ids_of(&[&a, &b])));
}

#[tokio::test]
async fn a_frame_of_garbage_never_reaches_the_client() {
    let (a, b) = (streaming("a", 6, 2).await, streaming("b", 6, 2).await);
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    for fault in [
        Fault::GarbageMessage(Bytes::from_static(&[0x0a, 0xff, 0x01, 0x00])),
        Fault::GarbageFrame(Bytes::from_static(&[0, 0, 0, 0, 9, 1])),
        Fault::Truncate(40),
        Fault::Reset,
    ] {
        b.fault_next("StreamContainers", 1, fault.clone());
        let (frames, status) = frames(&crimux.client(), CONTAINERS).await;
        let got = (status.code(), unique(container_ids(&frames)));
        assert_eq!(got, (Code::Ok, ids_of(&[&a, &b])), "{fault:?}");
    }
}

#[tokio::test]
async fn a_backend_that_was_never_listed_ends_the_stream_with_an_error() {
    let (a, b) = (streaming("a", 2, 2).await, streaming("b", 2, 2).await);
    b.stop().await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&dir, &[("a", &a), ("b", &b)], "");
    let crimux = Crimux::start_in(dir, &yaml);
    eventually(SOON, async || {
        let Ok(reply) = crimux.client().raw(CONTAINERS, &[], Bytes::new()).await else { return false };
        assert_ne!(reply.code(), Code::Ok, "a short list is worse than an error");
        reply.code() == Code::Unavailable && reply.message().contains("not listed yet: b")
    })
    .await;
}

#[tokio::test]
async fn filters_filter_and_learn_nothing_wrong() {
    let (a, b) = (streaming("a", 6, 2).await, streaming("b", 6, 2).await);
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let sandbox = a.state().sandboxes().next().unwrap().id.clone();
    let filter = cri::ContainerFilter { pod_sandbox_id: sandbox.clone(), ..Default::default() };
    let request = cri::StreamContainersRequest { filter: Some(filter) };
    let reply = crimux.client().raw_message(CONTAINERS, &request).await.unwrap();
    let wanted: BTreeSet<_> = a.state().containers_of(&sandbox).map(|c| c.id.clone()).collect();
    assert_eq!(unique(container_ids(&reply.messages)), wanted);
    a.stop().await;
    eventually(SOON, async || crimux.metric("crimux_backend_up{backend=\"a\"}").await == Some(0.0)).await;
    let (frames, _) = frames(&crimux.client(), CONTAINERS).await;
    assert_eq!(unique(container_ids(&frames)), ids_of(&[&a, &b]), "a filtered list removes nothing");
    let reply = crimux.client().raw_message(CONTAINERS, &request).await.unwrap();
    assert_eq!(unique(container_ids(&reply.messages)), wanted, "last-known items are filtered too");
}

#[tokio::test]
async fn a_client_that_leaves_is_the_end_of_its_backends_streams() {
    let a = streaming("a", 2, 2).await;
    let crimux = Crimux::start(&[("a", &a)]).await;
    let (sender, reply) = Reply::stream();
    let reply = std::sync::Mutex::new(Some(reply));
    a.unknown_method("StreamContainers", move |_| reply.lock().unwrap().take().unwrap());
    let client = crimux.client();
    let stream = client.raw_stream(CONTAINERS, &[], Bytes::new()).await.unwrap();
    a.wait_for_call("StreamContainers", 1).await;
    drop(stream);
    a.wait_for_cancel("StreamContainers").await;
    drop(sender);
}

#[tokio::test]
async fn an_image_in_two_stores_is_streamed_once() {
    let (a, b) = (streaming("a", 2, 2).await, plain("b", 2).await);
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let (frames, status) = frames(&crimux.client(), "/runtime.v1.ImageService/StreamImages").await;
    assert_eq!(status.code(), Code::Ok);
    let images = cri::ListImagesResponse::decode(Bytes::from(frames.concat())).unwrap().images;
    let wanted: BTreeSet<_> =
        [&a, &b].iter().flat_map(|r| r.state().images.keys().cloned().collect::<Vec<_>>()).collect();
    assert_eq!(unique(images.into_iter().map(|image| image.id).collect()), wanted);
}

#[tokio::test]
async fn pod_stats_of_a_backend_without_them_follow_the_policy() {
    let path = "/runtime.v1.RuntimeService/StreamPodSandboxStats";
    let a = streaming("a", 2, 2).await;
    let b = SimRuntime::builder("b").containers(2, 2);
    let b = b.abilities(|abilities| abilities.pod_sandbox_stats = false).start().await;
    for (policy, code) in [("unimplemented", Code::Unimplemented), ("union", Code::Ok)] {
        let dir = tempfile::tempdir().unwrap();
        let yaml = config(&dir, &[("a", &a), ("b", &b)], &format!("pod_sandbox_stats: {policy}\n"));
        let crimux = Crimux::start_in(dir, &yaml);
        crimux.wait_ready().await;
        let (_, status) = frames(&crimux.client(), path).await;
        assert_eq!(status.code(), code, "{policy}");
    }
}

#[tokio::test]
async fn a_stream_that_ends_unimplemented_after_frames_repeats_nothing() {
    let a = streaming("a", 4, 2).await;
    let crimux = Crimux::start(&[("a", &a)]).await;
    for stream in ["StreamContainers", "StreamPodSandboxMetrics"] {
        let unary = if stream == "StreamContainers" { "ListContainers" } else { "ListPodSandboxMetrics" };
        let direct = Client::unix(a.socket());
        let whole =
            direct.raw(&format!("/runtime.v1.RuntimeService/{unary}"), &[], Bytes::new()).await.unwrap();
        let first = crimux::wire::fields(&whole.single()).next().unwrap().unwrap().raw.to_vec();
        a.unknown_method(stream, move |_| {
            let (messages, reply) = Reply::stream();
            messages.send(Ok(Bytes::from(first.clone()))).unwrap();
            messages.send(Err(Status::unimplemented("no such method"))).unwrap();
            reply
        });
        let path = format!("/runtime.v1.RuntimeService/{stream}");
        let (frames, status) = frames(&crimux.client(), &path).await;
        assert_eq!(status.code(), Code::Ok, "{stream}");
        let items = crimux::wire::fields(&frames.concat()).count();
        assert_eq!(items, crimux::wire::fields(&whole.single()).count(), "{stream}");
        a.clear_replies();
    }
}
