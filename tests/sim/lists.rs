//! Lists over all backends: the union, with the very bytes of each backend, and filters where they must go.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use prost::Message;
use testkit::runtime::{Fault, Reply, SimRuntime};
use testkit::{Client, cri};
use tonic::Code;

use crate::support::Crimux;

const RUNTIME: &str = "/runtime.v1.RuntimeService";
const IMAGE: &str = "/runtime.v1.ImageService";
const SANDBOXES: &str = "/runtime.v1.RuntimeService/ListPodSandbox";
const CONTAINERS: &str = "/runtime.v1.RuntimeService/ListContainers";

/// Three runtimes with pods of the same names, behind one crimux.
async fn three() -> ([SimRuntime; 3], Crimux) {
    let mut runtimes = Vec::new();
    for (name, containers) in [("a", 12), ("b", 26), ("c", 0)] {
        runtimes.push(SimRuntime::builder(name).containers(containers, 2).images(3).start().await);
    }
    let runtimes: [SimRuntime; 3] = runtimes.try_into().unwrap();
    let [a, b, c] = &runtimes;
    let crimux = Crimux::start(&[("a", a), ("b", b), ("c", c)]).await;
    (runtimes, crimux)
}

/// The items of a list, as bytes.
fn items(list: &[u8]) -> Vec<Bytes> {
    crimux::wire::items(list, 1).map(|item| Bytes::copy_from_slice(item.unwrap())).collect()
}

async fn direct(runtime: &SimRuntime, path: &str, request: &[u8]) -> Bytes {
    Client::unix(runtime.socket()).raw(path, &[], request.to_vec()).await.unwrap().single()
}

#[tokio::test]
async fn a_list_is_the_union_of_what_every_backend_lists() {
    let (runtimes, crimux) = three().await;
    let lists = ["ListPodSandbox", "ListContainers", "ListContainerStats", "ListPodSandboxStats"];
    for path in lists.map(|method| format!("{RUNTIME}/{method}")) {
        let through = crimux.client().raw(&path, &[], "").await.unwrap().single();
        let mut union = Vec::new();
        for runtime in &runtimes {
            union.extend(items(&direct(runtime, &path, b"").await));
        }
        // Stats carry the time at which they were taken.
        if path.contains("Stats") {
            assert_eq!(items(&through).len(), union.len(), "{path}");
        } else {
            assert_eq!(items(&through), union, "{path}");
        }
        assert!(union.len() >= 19, "{path}");
    }
}

#[tokio::test]
async fn unknown_fields_of_list_items_and_of_the_list_itself_survive() {
    let (runtimes, crimux) = three().await;
    let mut expected = Vec::new();
    for (number, runtime) in runtimes.iter().enumerate() {
        let metadata = Some(cri::ContainerMetadata::default());
        let container = cri::Container { id: format!("id-{number}"), metadata, ..Default::default() };
        let mut item = container.encode_to_vec();
        prost::encoding::bytes::encode(1000, &b"tomorrow".to_vec(), &mut item);
        let mut list = Vec::new();
        prost::encoding::bytes::encode(1, &item, &mut list);
        prost::encoding::bytes::encode(1001, &vec![number.try_into().unwrap()], &mut list);
        expected.extend_from_slice(&list);
        runtime.reply_raw("ListContainers", Reply::message(list));
    }
    let through = crimux.client().raw(CONTAINERS, &[], "").await.unwrap().single();
    assert_eq!(through, expected);
}

#[tokio::test]
async fn metadata_passes_to_every_backend() {
    let (runtimes, crimux) = three().await;
    let metadata = [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")];
    crimux.client().raw(CONTAINERS, &metadata, "").await.unwrap();
    for runtime in &runtimes {
        let call = runtime.calls(CONTAINERS).pop().unwrap();
        assert_eq!(call.header("traceparent"), Some(metadata[0].1));
    }
}

/// Sends a container list with this filter; returns the containers and whom it reached.
async fn filtered(
    runtimes: &[SimRuntime; 3],
    crimux: &Crimux,
    filter: cri::ContainerFilter,
) -> (Vec<Bytes>, Vec<usize>) {
    runtimes.iter().for_each(SimRuntime::clear_calls);
    let request = cri::ListContainersRequest { filter: Some(filter) };
    let through = crimux.client().raw_message(CONTAINERS, &request).await.unwrap();
    let reached = runtimes.iter().map(|runtime| runtime.calls(CONTAINERS));
    for call in reached.clone().flatten() {
        assert_eq!(call.message, request.encode_to_vec(), "the filter passes as it is");
    }
    (items(&through.single()), reached.map(|calls| calls.len()).collect())
}

#[tokio::test]
async fn filters_by_id_and_sandbox_go_to_the_owner_and_others_to_all() {
    let (runtimes, crimux) = three().await;
    let container = runtimes[1].state().containers().next().unwrap().clone();
    let id = cri::ContainerFilter { id: container.id.clone(), ..Default::default() };
    let (found, reached) = filtered(&runtimes, &crimux, id).await;
    assert_eq!((found.len(), reached), (1, vec![0, 1, 0]));
    let sandbox = cri::ContainerFilter { pod_sandbox_id: container.sandbox_id.clone(), ..Default::default() };
    let (found, reached) = filtered(&runtimes, &crimux, sandbox).await;
    assert_eq!((found.len(), reached), (2, vec![0, 1, 0]));
    let prefix = cri::ContainerFilter { id: container.id[..12].to_owned(), ..Default::default() };
    let (found, reached) = filtered(&runtimes, &crimux, prefix).await;
    assert_eq!((found.len(), reached), (1, vec![1, 1, 1]));
    let unknown = cri::ContainerFilter { id: "5".repeat(64), ..Default::default() };
    let (found, reached) = filtered(&runtimes, &crimux, unknown).await;
    assert_eq!((found.len(), reached), (0, vec![1, 1, 1]));
    let label_selector = HashMap::from([("app".to_owned(), "app-1".to_owned())]);
    let label = cri::ContainerFilter { label_selector, ..Default::default() };
    let (found, reached) = filtered(&runtimes, &crimux, label).await;
    let app_1 = |runtime: &SimRuntime| {
        runtime.state().containers().filter(|c| c.config.labels["app"] == "app-1").count()
    };
    assert_eq!((found.len(), reached), (app_1(&runtimes[0]) + app_1(&runtimes[1]), vec![1, 1, 1]));
    let exited = cri::ContainerStateValue { state: cri::ContainerState::ContainerExited.into() };
    let state = cri::ContainerFilter { state: Some(exited), ..Default::default() };
    let first = runtimes[0].state().containers().next().unwrap().id.clone();
    runtimes[0].state().exit_container(&first, 1);
    let (found, reached) = filtered(&runtimes, &crimux, state).await;
    assert_eq!((found.len(), reached), (1, vec![1, 1, 1]));
}

#[tokio::test]
async fn a_list_is_never_shorter_for_what_a_backend_does_wrong() {
    let (runtimes, crimux) = three().await;
    let faults = [
        Fault::error(Code::Internal, "no"),
        Fault::error(Code::Unimplemented, "unknown service runtime.v1.RuntimeService"),
        Fault::error(Code::NotFound, "nothing here"),
        Fault::GarbageMessage(Bytes::from_static(b"\x0a\x7f")),
        Fault::GarbageFrame(Bytes::from_static(b"garbage")),
        Fault::Truncate(9),
        Fault::Reset,
    ];
    for path in [SANDBOXES, CONTAINERS] {
        let complete = crimux.client().raw(path, &[], "").await.unwrap().single();
        let complete: BTreeSet<_> = items(&complete).into_iter().collect();
        for fault in &faults {
            runtimes[1].fault(path.rsplit('/').next().unwrap(), fault.clone());
            let through = crimux.client().raw(path, &[], "").await.unwrap();
            assert_eq!(through.code(), Code::Ok, "{path} {fault:?}: {}", through.message());
            let listed: BTreeSet<_> = items(&through.single()).into_iter().collect();
            assert_eq!(listed, complete, "{path} {fault:?}");
        }
        runtimes[1].clear_faults();
    }
}

#[tokio::test]
async fn a_request_that_is_no_message_is_refused() {
    let (_runtimes, crimux) = three().await;
    let reply = crimux.client().raw(CONTAINERS, &[], &b"\x0a\x09x"[..]).await.unwrap();
    assert_eq!(reply.code(), Code::InvalidArgument, "{}", reply.message());
}

#[tokio::test]
async fn images_are_listed_once_however_many_stores_have_them() {
    let (runtimes, crimux) = three().await;
    let image = |tag: &str, size, pinned| cri::Image {
        id: "sha256:1".into(),
        repo_tags: vec!["same:1".into(), tag.into()],
        size,
        pinned,
        ..Default::default()
    };
    let lists = [
        vec![image("a:1", 5, false)],
        vec![image("b:1", 9, true)],
        vec![cri::Image { id: "sha256:2".into(), size: 1, ..Default::default() }],
    ];
    for (runtime, images) in runtimes.iter().zip(lists) {
        let list = cri::ListImagesResponse { images };
        runtime.reply_raw("ListImages", Reply::message(list.encode_to_vec()));
    }
    let listed = crimux.client().raw(&format!("{IMAGE}/ListImages"), &[], "").await.unwrap();
    let images = listed.decode::<cri::ListImagesResponse>().images;
    let ids: Vec<_> = images.iter().map(|image| image.id.as_str()).collect();
    assert_eq!(ids, ["sha256:1", "sha256:2"]);
    assert_eq!(images[0].repo_tags, ["same:1", "a:1", "b:1"]);
    assert_eq!((images[0].size, images[0].pinned, images[1].pinned), (9, true, false));
}

#[tokio::test]
async fn the_filesystem_of_the_default_backend_comes_first() {
    let mut runtimes = Vec::new();
    for name in ["z", "a", "b"] {
        let mountpoint = format!("/var/lib/{}", if name == "b" { "a" } else { name });
        runtimes.push(SimRuntime::builder(name).abilities(|a| a.mountpoint = mountpoint).start().await);
    }
    let crimux = Crimux::start(&[("z", &runtimes[0]), ("a", &runtimes[1]), ("b", &runtimes[2])]).await;
    let info = crimux.client().raw(&format!("{IMAGE}/ImageFsInfo"), &[], "").await.unwrap();
    let info = info.decode::<cri::ImageFsInfoResponse>();
    let mountpoints = |list: &[cri::FilesystemUsage]| {
        list.iter().map(|usage| usage.fs_id.clone().unwrap().mountpoint).collect::<Vec<_>>()
    };
    assert_eq!(mountpoints(&info.image_filesystems), ["/var/lib/z", "/var/lib/a"]);
}

/// How often a backend was asked for sandboxes and containers.
fn asked(runtime: &SimRuntime) -> usize {
    runtime.calls("ListPodSandbox").len() + runtime.calls("ListContainers").len()
}

#[tokio::test]
async fn a_list_of_one_pod_is_put_to_its_owner_alone_while_it_is_the_only_one() {
    const UID: &str = "io.kubernetes.pod.uid";
    let (a, b) = (SimRuntime::builder("a").start().await, SimRuntime::builder("b").start().await);
    let pod = |name: &str, uid: &str| testkit::client::sandbox_config(name).uid(uid).label(UID, uid).build();
    let one = a.state().run_sandbox(pod("one", "u1"), "").unwrap();
    let both = [
        a.state().run_sandbox(pod("old", "u2"), "").unwrap(),
        b.state().run_sandbox(pod("new", "u2"), "").unwrap(),
    ];
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let list = async |uid: &str| {
        let filter = cri::PodSandboxFilter {
            label_selector: [(UID.to_owned(), uid.to_owned())].into(),
            ..Default::default()
        };
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        let reply = crimux.client().raw_message(SANDBOXES, &request).await.unwrap();
        let items = reply.decode::<cri::ListPodSandboxResponse>().items;
        items.into_iter().map(|item| item.id).collect::<BTreeSet<_>>()
    };
    b.clear_calls();
    assert_eq!(list("u1").await, [one].into());
    assert_eq!(asked(&b), 0, "b does not have it");
    assert_eq!(list("u2").await, both.clone().into());
    assert_eq!(asked(&b), 1, "it has sandboxes at both");
    assert_eq!(list("u3").await, BTreeSet::new());
    assert_eq!(asked(&b), 2, "nobody is known to have it");
    // A sandbox whose reply nobody got is known from the next list only.
    b.fault_next("RunPodSandbox", 1, Fault::LoseReply);
    let config = Some(pod("one", "u1"));
    let request = cri::RunPodSandboxRequest { config, runtime_handler: "b".into() };
    let handlers =
        crimux.client().raw_message("/runtime.v1.RuntimeService/RunPodSandbox", &request).await.unwrap();
    assert_eq!(handlers.code(), Code::Unavailable);
    testkit::eventually(crate::support::SOON, async || list("u1").await.len() == 2).await;
}
