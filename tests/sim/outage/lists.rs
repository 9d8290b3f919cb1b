//! Lists while a backend is out: whole, of one moment, filtered as live ones, and in time.

use std::collections::{BTreeSet, HashMap};

use testkit::cri::{
    Container, ContainerFilter, ContainerStateValue, ImageFilter, ImageSpec, ListContainerStatsRequest,
    ListContainersRequest, ListImagesRequest, ListPodSandboxRequest, ListPodSandboxStatsRequest, PodSandbox,
    PodSandboxFilter, PodSandboxStateValue,
};
use testkit::runtime::Fault;
use testkit::{Client, client};
use tonic::Code;

use super::{AT_ONCE, DEADLINE, Outage, World, containers, sandboxes, timed, unique};
use crate::support::SOON;

/// Everything that lists say of the node, in an order of its own.
#[derive(Debug, PartialEq)]
struct Lists {
    sandboxes: Vec<PodSandbox>,
    containers: Vec<Container>,
    images: Vec<String>,
    container_stats: Vec<String>,
    /// `None` where kubelet is told not to ask again.
    sandbox_stats: Option<BTreeSet<String>>,
}

async fn all_lists(client: &Client) -> Lists {
    let (mut runtime, mut images) = (client.runtime(), client.images());
    let listed = runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap();
    let mut sandboxes = listed.into_inner().items;
    sandboxes.sort_by(|one, other| one.id.cmp(&other.id));
    let listed = runtime.list_containers(ListContainersRequest::default()).await.unwrap();
    let mut containers = listed.into_inner().containers;
    containers.sort_by(|one, other| one.id.cmp(&other.id));
    let listed = images.list_images(ListImagesRequest::default()).await.unwrap();
    let images = unique(listed.into_inner().images.into_iter().map(|image| image.id));
    let listed = runtime.list_container_stats(ListContainerStatsRequest::default()).await.unwrap();
    let stats = listed.into_inner().stats.into_iter().map(|stats| stats.attributes.unwrap().id);
    let container_stats = unique(stats);
    let sandbox_stats = match runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await {
        Ok(listed) => {
            let stats = listed.into_inner().stats.into_iter();
            Some(unique(stats.map(|stats| stats.attributes.unwrap().id)))
        }
        Err(error) if error.code() == Code::Unimplemented => None,
        Err(error) => panic!("{error}"),
    };
    Lists {
        sandboxes,
        containers,
        images: images.into_iter().collect(),
        container_stats: container_stats.into_iter().collect(),
        sandbox_stats,
    }
}

#[tokio::test]
async fn whatever_happens_to_a_backend_no_list_loses_an_item_and_recovery_needs_no_caller() {
    for outage in Outage::ALL {
        let world = World::new().await;
        let before = all_lists(&world.client).await;
        assert_eq!((before.sandboxes.len(), before.containers.len()), (4, 8), "{outage:?}");

        outage.begin(&world.b).await;
        let (during, took) = timed(all_lists(&world.client)).await;
        let denied = matches!(outage, Outage::Denying).then_some(None);
        let sandbox_stats = denied.unwrap_or_else(|| before.sandbox_stats.clone());
        assert_eq!(during, Lists { sandbox_stats, ..before }, "{outage:?}");
        assert!(took < DEADLINE * 5 * 2, "{outage:?}: five lists took {took:?}");
        let ((), took) = timed(async { drop(all_lists(&world.client).await) }).await;
        assert!(took < AT_ONCE * 5, "{outage:?}: the second round took {took:?}");

        world.b.state().run_sandbox(client::sandbox_config("behind").build(), "b").unwrap();
        outage.end(&world.b).await;
        world.wait_state("b", "ready").await;
        let owned = "crimux_owned_ids{backend=\"b\",kind=\"sandbox\"}";
        testkit::eventually(SOON, async || world.crimux.metric(owned).await == Some(3.0)).await;
        assert_eq!(sandboxes(&world.client, None).await.unwrap().len(), 5, "{outage:?}");
    }
}

#[tokio::test]
async fn a_list_with_last_known_items_is_counted_for_its_backend_and_a_live_one_is_not() {
    let world = World::new().await;
    let count = async |backend: &str, method: &str| {
        let series = format!("crimux_lists_stale_total{{backend=\"{backend}\",method=\"{method}\"}}");
        world.crimux.metric(&series).await
    };
    sandboxes(&world.client, None).await.unwrap();
    assert_eq!(count("b", "ListPodSandbox").await, Some(0.0));

    Outage::Killed.begin(&world.b).await;
    world.wait_state("b", "down").await;
    for _ in 0..3 {
        sandboxes(&world.client, None).await.unwrap();
    }
    containers(&world.client, None).await.unwrap();
    testkit::eventually(SOON, async || count("b", "ListContainers").await == Some(1.0)).await;
    assert_eq!(count("b", "ListPodSandbox").await, Some(3.0));
    assert_eq!(count("a", "ListPodSandbox").await, Some(0.0));

    Outage::Killed.end(&world.b).await;
    world.wait_state("b", "ready").await;
    sandboxes(&world.client, None).await.unwrap();
    Outage::Killed.begin(&world.b).await;
    world.wait_state("b", "down").await;
    sandboxes(&world.client, None).await.unwrap();
    // The live list between was not counted.
    testkit::eventually(SOON, async || count("b", "ListPodSandbox").await > Some(3.0)).await;
    assert_eq!(count("b", "ListPodSandbox").await, Some(4.0));
}

fn sandbox_filters(world: &World) -> Vec<PodSandboxFilter> {
    let none = PodSandboxFilter::default();
    let state = |state| PodSandboxFilter { state: Some(PodSandboxStateValue { state }), ..none.clone() };
    let labels = |labels: &[(&str, &str)]| PodSandboxFilter { label_selector: map(labels), ..none.clone() };
    let id = world.sandbox_of_b();
    vec![
        none.clone(),
        state(0),
        state(1),
        PodSandboxFilter { id: id.clone(), ..none.clone() },
        PodSandboxFilter { id: id[..12].to_owned(), ..none.clone() },
        PodSandboxFilter { id: "ffffffffffff".to_owned(), ..none.clone() },
        labels(&[("app", "app-0")]),
        labels(&[("app", "app-1"), ("io.kubernetes.pod.name", "pod-1")]),
        labels(&[("app", "nothing")]),
        PodSandboxFilter { id, label_selector: map(&[("app", "nothing")]), ..none.clone() },
    ]
}

fn container_filters(world: &World) -> Vec<ContainerFilter> {
    let none = ContainerFilter::default();
    let state = |state| ContainerFilter { state: Some(ContainerStateValue { state }), ..none.clone() };
    vec![
        none.clone(),
        state(0),
        state(1),
        state(2),
        ContainerFilter { id: world.container_of_b(), ..none.clone() },
        ContainerFilter { id: world.container_of_b()[..10].to_owned(), ..none.clone() },
        ContainerFilter { pod_sandbox_id: world.sandbox_of_b(), ..none.clone() },
        ContainerFilter { pod_sandbox_id: world.sandbox_of_b(), ..state(1) },
        ContainerFilter { label_selector: map(&[("app", "app-1")]), ..none.clone() },
        ContainerFilter { label_selector: map(&[("app", "nothing")]), ..none.clone() },
    ]
}

fn map(labels: &[(&str, &str)]) -> HashMap<String, String> {
    labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test]
async fn filters_let_through_the_same_items_live_and_as_last_known() {
    let world = World::new().await;
    let (of_sandboxes, of_containers) = (sandbox_filters(&world), container_filters(&world));
    let image = Some(ImageFilter { image: Some(client::image_spec("registry.example/image-1:1")) });
    let mut live = Vec::new();
    for filter in &of_sandboxes {
        live.push(sandboxes(&world.client, Some(filter.clone())).await.unwrap());
    }
    for filter in &of_containers {
        live.push(containers(&world.client, Some(filter.clone())).await.unwrap());
    }
    let live_images = images(&world.client, image.clone()).await;
    assert_eq!(live_images.len(), 1);
    all_lists(&world.client).await;

    world.b.stop().await;
    world.wait_state("b", "down").await;
    let mut last_known = Vec::new();
    for filter in &of_sandboxes {
        last_known.push(sandboxes(&world.client, Some(filter.clone())).await.unwrap());
    }
    for filter in &of_containers {
        last_known.push(containers(&world.client, Some(filter.clone())).await.unwrap());
    }
    let asked =
        of_sandboxes.iter().map(|f| format!("{f:?}")).chain(of_containers.iter().map(|f| format!("{f:?}")));
    for ((live, last_known), filter) in live.iter().zip(&last_known).zip(asked) {
        assert_eq!(live, last_known, "{filter}");
    }
    assert_eq!(images(&world.client, image).await, live_images);
}

async fn images(client: &Client, filter: Option<ImageFilter>) -> Vec<Vec<String>> {
    let listed = client.images().list_images(ListImagesRequest { filter }).await.unwrap();
    listed.into_inner().images.into_iter().map(|image| image.repo_tags).collect()
}

#[tokio::test]
async fn a_sandbox_list_that_fails_is_paired_with_containers_of_the_same_moment() {
    let world = World::new().await;
    let (sandbox, held) = (world.sandbox_of_b(), world.container_of_b());
    assert!(containers(&world.client, None).await.unwrap().contains(&held));

    world.b.fault("ListPodSandbox", Fault::error(Code::Unavailable, "server is not initialized yet"));
    let of_b: Vec<_> = world.b.state().sandboxes().map(|sandbox| sandbox.id.clone()).collect();
    for id in &of_b {
        world.b.state().remove_sandbox(id).unwrap();
    }
    // The containers are gone at the backend, but so are their sandboxes: a NOTREADY sandbox without
    // containers is what kubelet's garbage collector removes.
    assert!(sandboxes(&world.client, None).await.unwrap().contains(&sandbox));
    assert!(containers(&world.client, None).await.unwrap().contains(&held));

    world.b.clear_faults();
    world.wait_state("b", "ready").await;
    assert!(!sandboxes(&world.client, None).await.unwrap().contains(&sandbox));
    assert!(!containers(&world.client, None).await.unwrap().contains(&held));
}

#[tokio::test]
async fn a_hung_backend_costs_one_list_its_deadline_and_has_one_refresh_in_flight() {
    let world = World::new().await;
    let before = sandboxes(&world.client, None).await.unwrap();
    world.b.fault("ListPodSandbox", Fault::Hang);
    world.b.fault("ListContainers", Fault::Hang);
    world.b.clear_calls();

    let (first, took) = timed(sandboxes(&world.client, None)).await;
    assert_eq!(first.unwrap(), before);
    assert!(took < DEADLINE * 2, "the first list took {took:?}");
    world.wait_state("b", "late").await;
    world.b.wait_for_call("ListPodSandbox", 2).await;
    for _ in 0..10 {
        let (listed, took) = timed(sandboxes(&world.client, None)).await;
        assert_eq!(listed.unwrap(), before);
        assert!(took < AT_ONCE, "a later list took {took:?}");
        assert!(containers(&world.client, None).await.is_ok());
    }
    // The list that outlasted its deadline, and the refresh.
    assert_eq!(world.b.calls("ListPodSandbox").len(), 2);
    assert_eq!(world.b.calls("ListContainers").len(), 0);
    assert_eq!(
        world.a.calls("ListPodSandbox").len(),
        13,
        "a is asked by every list, and once when it came up"
    );

    // The late answer ends the lateness without any further call.
    world.b.state().run_sandbox(client::sandbox_config("behind").build(), "b").unwrap();
    world.b.clear_faults();
    world.wait_state("b", "ready").await;
    assert_eq!(world.b.calls("ListPodSandbox").len(), 2);
    world.b.stop().await;
    assert_eq!(sandboxes(&world.client, None).await.unwrap().len(), before.len() + 1);
}

#[tokio::test]
async fn a_caller_with_less_patience_is_answered_before_it_gives_up_and_makes_nobody_late() {
    let world = World::new().await;
    sandboxes(&world.client, None).await.unwrap();
    world.b.freeze();
    let path = "/runtime.v1.RuntimeService/ListPodSandbox";
    let (reply, took) = timed(world.client.raw(path, &[("grpc-timeout", "500m")], Vec::new())).await;
    let listed: testkit::cri::ListPodSandboxResponse = reply.unwrap().decode();
    assert_eq!(listed.items.len(), 4);
    assert!(took < DEADLINE, "it took {took:?}");
    assert_ne!(world.crimux.metric("crimux_backend_state{backend=\"b\",state=\"late\"}").await, Some(1.0));
}

#[tokio::test]
async fn late_stats_and_images_do_not_make_sandboxes_late() {
    let world = World::new().await;
    all_lists(&world.client).await;
    for method in ["ListContainerStats", "ListImages"] {
        world.b.fault(method, Fault::Hang);
    }
    all_lists(&world.client).await;
    world.wait_state("b", "late").await;
    world.b.state().run_sandbox(client::sandbox_config("new").build(), "b").unwrap();
    assert_eq!(sandboxes(&world.client, None).await.unwrap().len(), 5, "sandboxes are live");
    let spec = ImageSpec::default();
    assert_eq!(images(&world.client, Some(ImageFilter { image: Some(spec) })).await.len(), 3);
}

#[tokio::test]
async fn stats_of_a_down_backend_are_its_last_ones_without_those_of_what_was_removed() {
    let world = World::new().await;
    let before = all_lists(&world.client).await;
    let gone = world.container_of_b();
    let request = testkit::cri::RemoveContainerRequest { container_id: gone.clone() };
    world.client.runtime().remove_container(request).await.unwrap();
    world.b.stop().await;
    let after = all_lists(&world.client).await;
    let expected: Vec<_> = before.container_stats.into_iter().filter(|id| *id != gone).collect();
    assert_eq!(after.container_stats, expected);
    assert_eq!(after.sandbox_stats, before.sandbox_stats);
}
