//! Where a call goes: by handler, by owner, by a unique prefix; and what happens to an ID that nobody is
//! known to own. Nothing is ever guessed, and what cannot be asked is never taken for absent.

use bytes::Bytes;
use crimux::method::{self, Kind, OnUnknownId, Route};
use prost::Message;
use testkit::client::{container_config, sandbox_config};
use testkit::cri;
use testkit::runtime::{Fault, Reply, SimRuntime};
use tonic::Code;

use crate::support::{Crimux, SOON, config};

const RUN: &str = "/runtime.v1.RuntimeService/RunPodSandbox";
const RESTORE: &str = "/runtime.v1.RuntimeService/RestorePod";
const TOMORROW: &str = "/runtime.v1.RuntimeService/Tomorrow";
const SANDBOX_STATUS: &str = "/runtime.v1.RuntimeService/PodSandboxStatus";

/// Two runtimes with two pods each.
async fn two() -> [SimRuntime; 2] {
    let a = SimRuntime::builder("a").containers(2, 1).handlers(["runc"]).start().await;
    let b = SimRuntime::builder("b").containers(2, 1).handlers(["runsc", "kata"]).start().await;
    [a, b]
}

/// A crimux with more handlers, and short deadlines.
async fn crimux([a, b]: &[SimRuntime; 2], handlers: &str) -> Crimux {
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&dir, &[("a", a), ("b", b)], handlers);
    let yaml = yaml.replace("\" }\n", "\", timeouts: { list: 300ms } }\n");
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    for runtime in [a, b] {
        runtime.wait_for_call("RuntimeConfig", 1).await;
        runtime.clear_calls();
    }
    crimux
}

/// A message whose field 1 is `id`.
fn about(id: &str) -> Bytes {
    let mut message = Vec::new();
    prost::encoding::string::encode(1, &id.to_owned(), &mut message);
    message.into()
}

/// The methods that reached a runtime, less the probe.
fn reached(runtime: &SimRuntime) -> Vec<String> {
    let calls = runtime.calls("*").into_iter().map(|call| call.method().to_owned());
    calls.filter(|method| method != "Version").collect()
}

/// The path, kind and rule of every method that goes to an owner.
fn owned() -> Vec<(String, Kind, OnUnknownId)> {
    let rows = method::all().iter().filter_map(|method| match method.route {
        Route::Owner(kind, absent) => {
            Some((format!("/runtime.v1.{}/{}", method.service.name(), method.name), kind, absent))
        }
        _ => None,
    });
    rows.collect()
}

#[tokio::test]
async fn a_handler_leads_to_its_backend_under_the_name_known_there() {
    let both = two().await;
    let crimux = crimux(&both, "  gvisor: { backend: b, handler: runsc }\n").await;
    let [a, b] = &both;
    let request = sandbox_config("p").run("gvisor").encode_to_vec();
    let reply = crimux.client().raw(RUN, &[], request.clone()).await.unwrap();
    assert_eq!((reply.code(), reply.message()), (Code::Ok, String::new()));
    assert_eq!(reached(a), [""; 0]);
    let sent = b.calls(RUN).pop().unwrap().message;
    let (kept, added) = sent.split_at(request.len());
    assert_eq!(kept, request, "every byte of the request stays");
    assert_eq!(added, b"\x12\x05runsc", "field 2 once more, which wins");
    assert_eq!(b.calls(RUN)[0].decode::<cri::RunPodSandboxRequest>().runtime_handler, "runsc");
}

#[tokio::test]
async fn a_restored_pod_goes_by_its_handler_too() {
    let both = two().await;
    let crimux = crimux(&both, "  gvisor: { backend: b, handler: runsc }\n").await;
    let config = sandbox_config("restored").build();
    let request = cri::RestorePodRequest {
        checkpoint_path: "/c".into(),
        config: Some(config),
        runtime_handler: "gvisor".into(),
        ..Default::default()
    };
    crimux.client().raw_message(RESTORE, &request).await.unwrap();
    let [a, b] = &both;
    assert_eq!(reached(a), [""; 0]);
    let sent = &b.calls(RESTORE)[0];
    assert_eq!(sent.decode::<cri::RestorePodRequest>().runtime_handler, "runsc");
    assert_eq!(sent.message[..request.encoded_len()], request.encode_to_vec());
}

#[tokio::test]
async fn no_handler_means_the_default_backend_with_the_same_bytes() {
    let both = two().await;
    let crimux = crimux(&both, "").await;
    let [a, b] = &both;
    let request = sandbox_config("p").run("");
    let reply = crimux.client().raw_message(RUN, &request).await.unwrap();
    assert_eq!(reply.code(), Code::Ok, "{}", reply.message());
    assert_eq!(a.calls(RUN)[0].message, request.encode_to_vec());
    assert_eq!(reached(b), [""; 0]);
}

#[tokio::test]
async fn an_unknown_handler_is_refused_by_name_and_reaches_nobody() {
    let both = two().await;
    let crimux = crimux(&both, "  gvisor: { backend: b, handler: runsc }\n").await;
    // A name that a backend knows is not a public handler.
    for handler in ["runsc", "nope", "A", " a", "a\0"] {
        let reply = crimux.client().raw_message(RUN, &sandbox_config("p").run(handler)).await.unwrap();
        assert_eq!(reply.code(), Code::InvalidArgument, "{handler:?}");
        let expected = format!(
            "crimux: no runtime handler {handler:?} is configured; configured handlers: a, b, gvisor"
        );
        assert_eq!(reply.message(), expected);
        let restore = cri::RestorePodRequest { runtime_handler: handler.into(), ..Default::default() };
        let reply = crimux.client().raw_message(RESTORE, &restore).await.unwrap();
        assert_eq!((reply.code(), reply.message()), (Code::InvalidArgument, expected));
    }
    for runtime in &both {
        assert_eq!(reached(runtime), [""; 0]);
    }
}

#[tokio::test]
async fn every_call_about_an_object_goes_to_its_owner_alone() {
    let both = two().await;
    let crimux = crimux(&both, "").await;
    let [a, b] = &both;
    let sandbox = b.state().sandboxes().next().unwrap().id.clone();
    let container = b.state().containers().next().unwrap().id.clone();
    let mut rows = owned();
    // What removes its object comes last.
    rows.sort_by_key(|(path, kind, _)| (path.contains("Remove"), *kind == Kind::Sandbox));
    for (path, kind, _) in &rows {
        let id = if *kind == Kind::Sandbox { &sandbox } else { &container };
        crimux.client().raw(path, &[], about(id)).await.unwrap();
        assert_eq!(b.calls(path).len(), 1, "{path}");
        assert_eq!(b.calls(path)[0].message, about(id), "{path}");
    }
    assert_eq!(reached(a), [""; 0]);
    assert_eq!(rows.len(), 19);
}

#[tokio::test]
async fn an_unknown_id_is_looked_for_and_the_call_itself_is_sent_to_nobody() {
    let both = two().await;
    let crimux = crimux(&both, "").await;
    let unknown = "5".repeat(64);
    for (path, kind, absent) in owned() {
        for runtime in &both {
            runtime.clear_calls();
        }
        let reply = crimux.client().raw(&path, &[], about(&unknown)).await.unwrap();
        let list = if kind == Kind::Sandbox { "ListPodSandbox" } else { "ListContainers" };
        match absent {
            OnUnknownId::Ok => {
                assert_eq!((reply.code(), reply.messages.len()), (Code::Ok, 1), "{path}");
                assert_eq!(reply.single(), Bytes::new(), "{path}");
            }
            OnUnknownId::NotFound => {
                assert_eq!(reply.code(), Code::NotFound, "{path}");
                assert_eq!(reply.messages.len(), 0, "{path}");
            }
        }
        for runtime in &both {
            assert_eq!(reached(runtime), [list], "{path}");
            // Field 1 of field 1: the ID and nothing else.
            let mut filter = Vec::new();
            prost::encoding::bytes::encode(1, &about(&unknown).to_vec(), &mut filter);
            assert_eq!(runtime.calls(list)[0].message, filter, "{path}");
        }
    }
}

#[tokio::test]
async fn an_unknown_id_is_unavailable_while_one_backend_cannot_be_asked() {
    for hung in [false, true] {
        let both = two().await;
        let crimux = crimux(&both, "").await;
        let [a, b] = &both;
        if hung {
            b.fault("*", Fault::Hang);
        } else {
            b.stop().await;
            wait_down(&crimux, "b").await;
        }
        let unknown = about(&"5".repeat(64));
        let client = crimux.client();
        let calls = owned().into_iter().map(|(path, _, _)| {
            let (client, unknown) = (client.clone(), unknown.clone());
            tokio::spawn(async move { (client.raw(&path, &[], unknown).await.unwrap(), path) })
        });
        for call in calls.collect::<Vec<_>>() {
            let (reply, path) = call.await.unwrap();
            assert_eq!(reply.code(), Code::Unavailable, "{path}: {}", reply.message());
            assert!(reply.message().ends_with("could not be looked up at: b"), "{}", reply.message());
        }
        let known = a.state().sandboxes().next().unwrap().id.clone();
        let reply = client.raw(SANDBOX_STATUS, &[], about(&known)).await.unwrap();
        assert_eq!(reply.code(), Code::Ok, "what is known is not looked for");
    }
}

pub(crate) async fn wait_down(crimux: &Crimux, backend: &str) {
    let series = format!("crimux_backend_up{{backend=\"{backend}\"}}");
    testkit::eventually(SOON, async || crimux.metric(&series).await == Some(0.0)).await;
}

#[tokio::test]
async fn an_object_made_behind_our_back_is_found_and_the_call_sent_to_its_owner() {
    let both = two().await;
    let crimux = crimux(&both, "").await;
    let [a, b] = &both;
    let id = b.state().run_sandbox(sandbox_config("new").build(), "kata").unwrap();
    let reply = crimux.client().raw(SANDBOX_STATUS, &[], about(&id)).await.unwrap();
    assert_eq!(reply.code(), Code::Ok, "{}", reply.message());
    assert_eq!(reached(a), ["ListPodSandbox"]);
    assert_eq!(reached(b), ["ListPodSandbox", "PodSandboxStatus"]);
    crimux.client().raw(SANDBOX_STATUS, &[], about(&id)).await.unwrap();
    assert_eq!(reached(a), ["ListPodSandbox"], "it is known now");
}

#[tokio::test]
async fn an_empty_id_is_refused_and_reaches_nobody() {
    let both = two().await;
    let crimux = crimux(&both, "").await;
    // kubelet asks by `PodSandboxStats("")` whether the RPC exists; `stats.rs` shows its answer.
    for (path, kind, _) in owned().into_iter().filter(|(path, ..)| !path.ends_with("/PodSandboxStats")) {
        for message in [Bytes::new(), about("")] {
            let reply = crimux.client().raw(&path, &[], message).await.unwrap();
            let expected = format!("crimux: {} ID is empty", kind.word());
            assert_eq!((reply.code(), reply.message()), (Code::InvalidArgument, expected), "{path}");
        }
    }
    for runtime in &both {
        assert_eq!(reached(runtime), [""; 0]);
    }
}

/// Gives a sandbox of `runtime` this ID in what it lists, and nothing else.
fn list_ids(runtime: &SimRuntime, ids: &[&str]) {
    let items = ids.iter().map(|id| cri::PodSandbox {
        id: (*id).to_owned(),
        metadata: Some(cri::PodSandboxMetadata { name: (*id).to_owned(), ..Default::default() }),
        ..Default::default()
    });
    let reply = cri::ListPodSandboxResponse { items: items.collect() };
    runtime.reply_raw("ListPodSandbox", Reply::message(reply.encode_to_vec()));
    runtime.unknown_method("PodSandboxStatus", |call| Reply::message(call.message));
}

#[tokio::test]
async fn a_prefix_is_resolved_over_all_backends_and_the_full_id_forwarded() {
    let [a, b] = [SimRuntime::builder("a").start().await, SimRuntime::builder("b").start().await];
    list_ids(&a, &["abc111", "abd"]);
    list_ids(&b, &["abc222", "xyz1"]);
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let ask = async |id: &str| crimux.client().raw(SANDBOX_STATUS, &[], about(id)).await.unwrap();
    // The full ID is appended: of field 1 the last occurrence counts.
    let reply = ask("xy").await.decode::<cri::PodSandboxStatusRequest>();
    assert_eq!(reply.pod_sandbox_id, "xyz1");
    assert_eq!((a.calls(SANDBOX_STATUS).len(), b.calls(SANDBOX_STATUS).len()), (0, 1));
    let reply = ask("abc").await;
    assert_eq!(reply.code(), Code::InvalidArgument);
    assert_eq!(reply.message(), "crimux: sandbox ID prefix \"abc\" is ambiguous");
    let reply = ask("abc1").await.decode::<cri::PodSandboxStatusRequest>();
    assert_eq!(reply.pod_sandbox_id, "abc111");
    assert_eq!((a.calls(SANDBOX_STATUS).len(), b.calls(SANDBOX_STATUS).len()), (1, 1));
}

#[tokio::test]
async fn a_backend_that_ignores_filters_does_not_make_its_other_objects_candidates() {
    let [a, b] = [SimRuntime::builder("a").start().await, SimRuntime::builder("b").start().await];
    list_ids(&a, &["abc111"]);
    list_ids(&b, &["xyz"]);
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let reply = crimux.client().raw(SANDBOX_STATUS, &[], about("qqq")).await.unwrap();
    assert_eq!(reply.code(), Code::NotFound, "{}", reply.message());
    let stop = "/runtime.v1.RuntimeService/StopPodSandbox";
    let reply = crimux.client().raw(stop, &[], about("qqq")).await.unwrap();
    assert_eq!(reply.code(), Code::Ok, "{}", reply.message());
    assert_eq!((a.calls(stop).len(), b.calls(stop).len()), (0, 0));
}

#[tokio::test]
async fn a_backend_that_answers_garbage_has_not_denied_anything() {
    let both = two().await;
    let crimux = crimux(&both, "").await;
    let garbage = [
        Fault::GarbageMessage(Bytes::from_static(b"\x0a\xff")),
        Fault::GarbageMessage(Bytes::from_static(b"\x0a\x02\x0a\x09")),
        Fault::GarbageFrame(Bytes::from_static(b"not gRPC")),
        Fault::Truncate(2),
        Fault::error(Code::NotFound, "no such thing"),
        Fault::error(Code::Unimplemented, "never heard of it"),
    ];
    for fault in garbage {
        both[1].fault("ListPodSandbox", fault.clone());
        for (path, _, _) in owned().into_iter().filter(|(_, kind, _)| *kind == Kind::Sandbox) {
            let reply = crimux.client().raw(&path, &[], about(&"5".repeat(64))).await.unwrap();
            assert_eq!(reply.code(), Code::Unavailable, "{path} {fault:?}: {}", reply.message());
        }
    }
}

#[tokio::test]
async fn a_created_id_is_known_before_its_creator_hears_of_it() {
    let both = two().await;
    let crimux = crimux(&both, "").await;
    let [a, b] = &both;
    // An ID that is not known would be looked for, and not found.
    for runtime in &both {
        runtime.fault("ListPodSandbox", Fault::error(Code::Internal, "not now"));
        runtime.fault("ListContainers", Fault::error(Code::Internal, "not now"));
        runtime.state().add_image("app:1");
    }
    let tasks: Vec<_> = (0..100)
        .map(|number| {
            let client = crimux.client();
            tokio::spawn(async move {
                let handler = ["a", "b"][number % 2];
                let pod = sandbox_config(&format!("p{number}"));
                let config = pod.clone().build();
                let sandbox = client.runtime().run_pod_sandbox(pod.run(handler)).await.unwrap();
                let id = sandbox.into_inner().pod_sandbox_id;
                let status =
                    cri::PodSandboxStatusRequest { pod_sandbox_id: id.clone(), ..Default::default() };
                client.runtime().pod_sandbox_status(status).await.unwrap();
                let create = container_config("c", "app:1").create_in(&id, &config);
                let container = client.runtime().create_container(create).await.unwrap();
                let container_id = container.into_inner().container_id;
                let start = cri::StartContainerRequest { container_id: container_id.clone() };
                client.runtime().start_container(start).await.unwrap();
                let status = cri::ContainerStatusRequest { container_id, ..Default::default() };
                client.runtime().container_status(status).await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    for runtime in [a, b] {
        assert_eq!(runtime.state().sandboxes().count(), 2 + 50);
        assert_eq!(runtime.state().containers().count(), 2 + 50);
    }
}

#[tokio::test]
async fn an_unknown_method_goes_to_the_owner_of_its_first_string() {
    let both = two().await;
    let crimux = crimux(&both, "").await;
    let [a, b] = &both;
    for runtime in &both {
        runtime.unknown_method(TOMORROW, |call| Reply::messages([call.message, Bytes::from_static(b"2")]));
    }
    let known = b.state().containers().next().unwrap().id.clone();
    let behind = b.state().run_sandbox(sandbox_config("new").build(), "kata").unwrap();
    for id in [known, behind] {
        let reply = crimux.client().raw(TOMORROW, &[], about(&id)).await.unwrap();
        assert_eq!(reply.messages, [about(&id), Bytes::from_static(b"2")]);
        assert_eq!(reply.code(), Code::Ok);
    }
    assert_eq!((a.calls(TOMORROW).len(), b.calls(TOMORROW).len()), (0, 2));
    let reply = crimux.client().raw(TOMORROW, &[], about(&"5".repeat(64))).await.unwrap();
    assert_eq!(reply.code(), Code::NotFound, "an ID that nobody has goes to nobody");
    assert_eq!((a.calls(TOMORROW).len(), b.calls(TOMORROW).len()), (0, 2));
}

#[tokio::test]
async fn an_unknown_method_without_an_id_goes_to_the_default_backend() {
    let both = two().await;
    let crimux = crimux(&both, "").await;
    let [a, b] = &both;
    let image = TOMORROW.replace("Runtime", "Image");
    for path in [TOMORROW, image.as_str()] {
        for runtime in &both {
            runtime.unknown_method(path, |call| Reply::message(call.message));
        }
        // Nothing at all, a number in field 1, a string that is no ID, and bytes that are no message.
        for message in [&b""[..], b"\x08\x05", b"\x0a\x04/run", b"\xff\xff\xff"] {
            a.clear_calls();
            let reply = crimux.client().raw(path, &[], message).await.unwrap();
            assert_eq!(reply.single(), message, "{path} {}", reply.message());
            assert_eq!(a.calls(path).len(), 1, "{path} {message:?}");
        }
        assert_eq!(b.calls(path).len(), 0);
    }
    let reply = crimux.client().raw(&TOMORROW.replace("morrow", "day"), &[], "").await.unwrap();
    assert_eq!(reply.code(), Code::Unimplemented, "the backend's own answer");
    assert!(!reply.message().contains("crimux"), "{}", reply.message());
}

#[tokio::test]
async fn paths_outside_the_api_are_refused_here() {
    let both = two().await;
    let crimux = crimux(&both, "").await;
    for path in ["/grpc.health.v1.Health/Check", "/runtime.v2.RuntimeService/Version", "/", "/x"] {
        let reply = crimux.client().raw(path, &[], "").await.unwrap();
        assert_eq!(reply.code(), Code::Unimplemented, "{path}");
    }
    for runtime in &both {
        assert_eq!(reached(runtime), [""; 0]);
    }
}

#[tokio::test]
async fn owners_are_known_again_after_a_crash() {
    let both = two().await;
    let mut crimux = crimux(&both, "").await;
    let [a, b] = &both;
    let pod = sandbox_config("p").run("b");
    let id = crimux.client().runtime().run_pod_sandbox(pod).await.unwrap().into_inner().pod_sandbox_id;
    crimux.kill_and_start().await;
    crimux.wait_ready().await;
    a.clear_calls();
    let reply = crimux.client().raw(SANDBOX_STATUS, &[], about(&id)).await.unwrap();
    assert_eq!(reply.code(), Code::Ok, "{}", reply.message());
    assert_eq!((a.calls(SANDBOX_STATUS).len(), b.calls(SANDBOX_STATUS).len()), (0, 1));
}

#[tokio::test]
async fn a_backend_that_comes_up_later_is_recovered() {
    let both = two().await;
    let [a, b] = &both;
    b.stop().await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&dir, &[("a", a), ("b", b)], "");
    let crimux = Crimux::start_in(dir, &yaml);
    wait_down(&crimux, "b").await;
    let list = "/runtime.v1.RuntimeService/ListPodSandbox";
    let reply = crimux.client().raw(list, &[], "").await.unwrap();
    assert_eq!(reply.code(), Code::Unavailable, "a short list would be a lie");
    b.start_again().await;
    crimux.wait_ready().await;
    let reply = crimux.client().raw(list, &[], "").await.unwrap();
    assert_eq!(reply.decode::<cri::ListPodSandboxResponse>().items.len(), 4);
    let id = b.state().sandboxes().next().unwrap().id.clone();
    let reply = crimux.client().raw(SANDBOX_STATUS, &[], about(&id)).await.unwrap();
    assert_eq!((reply.code(), a.calls(SANDBOX_STATUS).len()), (Code::Ok, 0));
}
