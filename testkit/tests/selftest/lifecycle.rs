//! Pods from their first to their last RPC, images, and what lists and events say meanwhile.

use testkit::client::{container_config, image_spec, sandbox_config};
use testkit::cri::{self, ContainerEventType, ContainerState};
use testkit::runtime::SimRuntime;
use tonic::Code;

use crate::client_of;

#[tokio::test]
async fn a_pod_lives_from_run_to_remove() {
    let sim = SimRuntime::builder("containerd").handlers(["runc", "runsc"]).start().await;
    let (mut runtime, mut images) = (client_of(&sim).runtime(), client_of(&sim).images());

    let config = sandbox_config("web");
    let request = config.clone().run("runsc");
    let sandbox = runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id;
    let auth = cri::AuthConfig { username: "me".into(), ..Default::default() };
    let pull = cri::PullImageRequest {
        image: Some(image_spec("busybox")),
        auth: Some(auth.clone()),
        sandbox_config: None,
    };
    let image = images.pull_image(pull).await.unwrap().into_inner().image_ref;
    assert_eq!(sim.state().pulls[0].auth, Some(auth));
    let request = container_config("app", &image).env("KEY", "value").create_in(&sandbox, &config.build());
    let container = runtime.create_container(request).await.unwrap().into_inner().container_id;
    let start = cri::StartContainerRequest { container_id: container.clone() };
    runtime.start_container(start).await.unwrap();

    let request = cri::ContainerStatusRequest { container_id: container[..13].into(), verbose: true };
    let reply = runtime.container_status(request).await.unwrap().into_inner();
    let status = reply.status.unwrap();
    assert_eq!(status.id, container, "a unique prefix is enough");
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    assert_eq!(status.image_ref, image);
    assert!(reply.info["info"].contains("KEY=value"));

    let exec = cri::ExecSyncRequest { container_id: container.clone(), cmd: vec!["hi".into()], timeout: 1 };
    assert_eq!(runtime.exec_sync(exec).await.unwrap().into_inner().stdout, b"hi");

    let stop = cri::StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() };
    runtime.stop_pod_sandbox(stop).await.unwrap();
    let listed = runtime.list_containers(cri::ListContainersRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.containers[0].state(), ContainerState::ContainerExited);
    let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: sandbox };
    runtime.remove_pod_sandbox(remove).await.unwrap();
    let listed = runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await.unwrap().into_inner();
    assert!(listed.items.is_empty());
    let status = cri::ContainerStatusRequest { container_id: container, verbose: false };
    assert_eq!(runtime.container_status(status).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn names_handlers_and_images_are_checked_as_containerd_does() {
    let sim = SimRuntime::builder("containerd").start().await;
    let mut runtime = client_of(&sim).runtime();
    let sandbox = runtime.run_pod_sandbox(sandbox_config("web").run("")).await.unwrap().into_inner();

    let twice = runtime.run_pod_sandbox(sandbox_config("web").run("")).await.unwrap_err();
    assert!(twice.message().starts_with("failed to reserve sandbox name"), "{twice}");
    runtime.run_pod_sandbox(sandbox_config("web").attempt(1).run("")).await.unwrap();
    let unknown = runtime.run_pod_sandbox(sandbox_config("other").run("nope")).await.unwrap_err();
    assert!(unknown.message().contains("no runtime for \"nope\""), "{unknown}");
    let config = sandbox_config("web").build();
    let request = container_config("app", "busybox").create_in(&sandbox.pod_sandbox_id, &config);
    assert_eq!(runtime.create_container(request).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn lists_obey_their_filters() {
    let sim = SimRuntime::builder("containerd").seed(1).containers(6, 2).start().await;
    let mut runtime = client_of(&sim).runtime();
    let (sandbox, container) = {
        let mut state = sim.state();
        let container = state.containers().next().unwrap().clone();
        state.exit_container(&container.id, 3);
        (container.sandbox_id, container.id)
    };
    let mut count = async |filter: cri::ContainerFilter| {
        let request = cri::ListContainersRequest { filter: Some(filter) };
        runtime.list_containers(request).await.unwrap().into_inner().containers.len()
    };
    let none = cri::ContainerFilter::default();
    assert_eq!(count(none.clone()).await, 6);
    assert_eq!(count(cri::ContainerFilter { id: container[..12].into(), ..none.clone() }).await, 1);
    assert_eq!(count(cri::ContainerFilter { id: "unknown".into(), ..none.clone() }).await, 0);
    assert_eq!(count(cri::ContainerFilter { pod_sandbox_id: sandbox, ..none.clone() }).await, 2);
    let exited = cri::ContainerStateValue { state: ContainerState::ContainerExited.into() };
    assert_eq!(count(cri::ContainerFilter { state: Some(exited), ..none.clone() }).await, 1);
    let created = cri::ContainerStateValue::default();
    assert_eq!(count(cri::ContainerFilter { state: Some(created), ..none.clone() }).await, 0);
    let label_selector = [("app".to_owned(), "app-1".to_owned())].into();
    assert_eq!(count(cri::ContainerFilter { label_selector, ..none }).await, 2);
}

#[tokio::test]
async fn a_list_shows_every_change_at_once() {
    let sim = SimRuntime::builder("containerd").sandboxes(2, 0).start().await;
    let mut runtime = client_of(&sim).runtime();
    let mut count = async || {
        let request = cri::ListPodSandboxRequest::default();
        runtime.list_pod_sandbox(request).await.unwrap().into_inner().items.len()
    };
    assert_eq!(count().await, 2);
    assert_eq!(count().await, 2, "from the kept reply");
    let id = sim.state().sandboxes().next().unwrap().id.clone();
    sim.state().remove_sandbox(&id).unwrap();
    assert_eq!(count().await, 1);
}

#[tokio::test]
async fn events_tell_what_happens() {
    let sim = SimRuntime::builder("containerd").events().start().await;
    let mut runtime = client_of(&sim).runtime();
    let mut events = runtime.get_container_events(cri::GetEventsRequest {}).await.unwrap().into_inner();
    let id =
        runtime.run_pod_sandbox(sandbox_config("web").run("")).await.unwrap().into_inner().pod_sandbox_id;
    runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id.clone() }).await.unwrap();
    for expected in [
        ContainerEventType::ContainerCreatedEvent,
        ContainerEventType::ContainerStartedEvent,
        ContainerEventType::ContainerStoppedEvent,
        ContainerEventType::ContainerDeletedEvent,
    ] {
        let event = events.message().await.unwrap().unwrap();
        assert_eq!((event.container_event_type(), &event.container_id), (expected, &id));
        assert!(event.pod_sandbox_status.is_some(), "kubelet drops events without it");
    }
    sim.state().end_event_streams(&tonic::Status::unavailable("bye"));
    assert_eq!(events.message().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_restored_pod_has_running_containers() {
    let sim = SimRuntime::builder("containerd").start().await;
    let mut runtime = client_of(&sim).runtime();
    let request = cri::RestorePodRequest {
        config: Some(sandbox_config("web").build()),
        runtime_handler: "runc".into(),
        container_configs: vec![container_config("app", "busybox").build()],
        ..Default::default()
    };
    let reply = runtime.restore_pod(request).await.unwrap().into_inner();
    assert_eq!(reply.restored_containers[0].name, "app");
    let state = sim.state();
    let container = state.container(&reply.restored_containers[0].container_id).unwrap();
    assert_eq!(container.sandbox_id, reply.pod_sandbox_id);
    assert_eq!(container.state, ContainerState::ContainerRunning);
}
