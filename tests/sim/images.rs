//! Image calls reach the store they mean, and nothing is absent that was not asked for everywhere.

// kubelet's calls one after the other make a large future, which a test can bear.
#![allow(clippy::large_futures)]

use prost::Message;
use testkit::client::{container_config, image_spec, sandbox_config};
use testkit::cri::{self, ImageSpec, PodSandboxConfig};
use testkit::runtime::{Fault, ImageIds, Reply, SimRuntime};
use tonic::Code;

use crate::kubelet::{Created, Failure, Kubelet, Policy, annotated, bare, see_again};
use crate::support::{self, Crimux, SOON};

const IMAGE: &str = "registry.example/app:1";
const PULL: &str = "PullImage";

/// Two containerds `a` (the default) and `b`, and a CRI-O `o`, each a handler of its name; crimux in front.
struct Node {
    a: SimRuntime,
    b: SimRuntime,
    o: SimRuntime,
    crimux: Crimux,
}

/// A pod whose sandbox runs.
struct Pod {
    sandbox: String,
    config: PodSandboxConfig,
}

async fn runtime(name: &str, image_ids: ImageIds) -> SimRuntime {
    SimRuntime::builder(name).abilities(|can| can.image_ids = image_ids).start().await
}

async fn node() -> Node {
    node_with("", str::to_owned).await
}

/// A node whose configuration has `more` at its end, under `handlers`, and is edited then.
async fn node_with(more: &str, edit: impl Fn(&str) -> String) -> Node {
    let a = runtime("a", ImageIds::Containerd).await;
    let b = runtime("b", ImageIds::Containerd).await;
    let o = runtime("o", ImageIds::Crio).await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = support::config(&dir, &[("a", &a), ("b", &b), ("o", &o)], more);
    let crimux = Crimux::start_in(dir, &edit(&yaml));
    crimux.wait_ready().await;
    let node = Node { a, b, o, crimux };
    node.wait_up(&["a", "b", "o"]).await;
    node
}

impl Node {
    async fn wait_up(&self, names: &[&str]) {
        for name in names {
            let series = format!("crimux_backend_up{{backend=\"{name}\"}}");
            testkit::eventually(SOON, async || self.crimux.metric(&series).await == Some(1.0)).await;
            // What crimux keeps known of a backend is asked for beside the connection.
            self.runtime(name).wait_for_call("Status", 1).await;
            self.runtime(name).wait_for_call("ImageFsInfo", 1).await;
        }
    }

    async fn wait_down(&self, name: &str) {
        let series = format!("crimux_backend_up{{backend=\"{name}\"}}");
        testkit::eventually(SOON, async || self.crimux.metric(&series).await == Some(0.0)).await;
    }

    fn runtime(&self, name: &str) -> &SimRuntime {
        match name {
            "a" => &self.a,
            "b" => &self.b,
            _ => &self.o,
        }
    }

    fn kubelet(&self) -> Kubelet {
        let client = self.crimux.client();
        Kubelet { runtime: client.runtime(), images: client.images() }
    }

    /// Runs a sandbox as kubelet does, its pod having these annotations.
    async fn pod(&self, name: &str, handler: &str, annotations: &[(&str, &str)]) -> Pod {
        let mut config = sandbox_config(name).build();
        for (key, value) in annotations {
            config.annotations.insert((*key).to_owned(), (*value).to_owned());
        }
        see_again(&mut config);
        let request =
            cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
        let reply = self.kubelet().runtime.run_pod_sandbox(request).await.unwrap().into_inner();
        Pod { sandbox: reply.pod_sandbox_id, config }
    }

    async fn start(&self, pod: &Pod, image: &str, policy: Policy) -> Result<Created, Failure> {
        // A name is reserved while its container exists.
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let container = container_config(&format!("main-{number}"), "").build();
        self.kubelet().start(&pod.sandbox, &pod.config, container, image, policy).await
    }

    /// How many pulls reached each backend.
    fn pulls(&self) -> [usize; 3] {
        [&self.a, &self.b, &self.o].map(|runtime| runtime.calls(PULL).len())
    }

    /// Puts an image with this user into a store, under an ID of its own.
    fn preload(&self, name: &str, image: &str, uid: i64) -> String {
        let mut state = self.runtime(name).state();
        let id = state.add_image(image);
        let mut found = state.images.remove(&id).unwrap();
        let own = format!("{}{:064x}", if name == "o" { "" } else { "sha256:" }, 0x1000 + uid);
        found.id.clone_from(&own);
        found.uid = Some(cri::Int64Value { value: uid });
        state.images.insert(own.clone(), found);
        own
    }

    async fn listed(&self) -> Vec<cri::Image> {
        let request = cri::ListImagesRequest::default();
        self.kubelet().images.list_images(request).await.unwrap().into_inner().images
    }

    async fn remove(&self, image: &str) -> Result<(), Code> {
        let request = cri::RemoveImageRequest { image: Some(image_spec(image)) };
        self.kubelet().images.remove_image(request).await.map(drop).map_err(|status| status.code())
    }

    /// The references that `RemoveImage` reached a backend with.
    fn removals(&self, name: &str) -> Vec<String> {
        let calls = self.runtime(name).calls("RemoveImage");
        let image = |call: &testkit::runtime::Call| call.decode::<cri::RemoveImageRequest>().image.unwrap();
        calls.iter().map(|call| image(call).image).collect()
    }
}

// Pulls.

#[tokio::test]
async fn a_pull_goes_to_the_backend_of_its_pod_and_to_no_other() {
    let node = node().await;
    for (handler, expected) in [("b", [0, 1, 0]), ("o", [0, 1, 1]), ("", [1, 1, 1])] {
        let pod = node.pod(&format!("pod-{handler}"), handler, &[]).await;
        node.kubelet().pull(IMAGE, &pod.config, None).await.unwrap();
        assert_eq!(node.pulls(), expected, "{handler:?}");
    }
}

#[tokio::test]
async fn a_backend_that_merely_lists_a_pods_uid_gets_no_pull_and_its_claim_is_counted() {
    let mut node = node().await;
    let pod = node.pod("web", "b", &[]).await;
    // A newer sandbox of the same uid, made at the runtime itself; IDs and uids stand in the Kubernetes API.
    node.o.state().run_sandbox(pod.config.clone(), "").unwrap();
    let auth = cri::AuthConfig { username: "u".into(), password: "secret".into(), ..Default::default() };
    let listed = async |mut kubelet: Kubelet| {
        let listed = kubelet.runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await.unwrap();
        listed.into_inner().items.len()
    };
    assert_eq!(listed(node.kubelet()).await, 2);
    node.kubelet().pull(IMAGE, &pod.config, Some(auth.clone())).await.unwrap();
    assert_eq!(node.pulls(), [0, 1, 0]);
    assert_eq!(node.crimux.metric("crimux_foreign_pods_total").await, Some(1.0));
    // Who created the pod is known after a restart too, whichever backend is listed first.
    node.crimux.kill_and_start().await;
    node.crimux.wait_ready().await;
    assert_eq!(listed(node.kubelet()).await, 2);
    node.kubelet().pull(IMAGE, &pod.config, Some(auth)).await.unwrap();
    assert_eq!(node.pulls(), [0, 2, 0]);
}

#[tokio::test]
async fn a_pod_that_two_backends_claim_and_none_created_here_is_pulled_for_by_neither() {
    let node = node().await;
    let config = sandbox_config("web").build();
    for runtime in [&node.b, &node.o] {
        runtime.state().run_sandbox(config.clone(), "").unwrap();
    }
    let request = cri::ListPodSandboxRequest::default();
    node.kubelet().runtime.list_pod_sandbox(request).await.unwrap();
    node.kubelet().pull(IMAGE, &config, None).await.unwrap();
    assert_eq!(node.pulls(), [1, 0, 0], "as one of which nobody knows the pod");
    assert_eq!(node.crimux.metric("crimux_foreign_pods_total").await, Some(2.0));
}

#[tokio::test]
async fn a_pull_for_nobody_goes_to_the_default_backend() {
    let node = node().await;
    node.kubelet().pull(IMAGE, &sandbox_config("unknown").build(), None).await.unwrap();
    let request = cri::PullImageRequest { image: Some(image_spec(IMAGE)), ..Default::default() };
    node.kubelet().images.pull_image(request).await.unwrap();
    assert_eq!(node.pulls(), [2, 0, 0]);
}

#[tokio::test]
async fn a_pull_by_handler_goes_to_that_handlers_backend_under_the_name_it_knows() {
    let node = node_with("  kata: { backend: b, handler: kata-qemu }\n", str::to_owned).await;
    let spec = |handler: &str| ImageSpec { runtime_handler: handler.into(), ..image_spec(IMAGE) };
    let request = cri::PullImageRequest { image: Some(spec("kata")), ..Default::default() };
    node.kubelet().images.pull_image(request.clone()).await.unwrap();
    let sent = node.b.calls(PULL)[0].clone();
    assert_eq!(sent.decode::<cri::PullImageRequest>().image.unwrap().runtime_handler, "kata-qemu");
    assert!(sent.message.starts_with(&request.encode_to_vec()), "the client's bytes are all there");
    assert_eq!(node.pulls(), [0, 1, 0]);

    let unknown = cri::PullImageRequest { image: Some(spec("gone")), ..Default::default() };
    let error = node.kubelet().images.pull_image(unknown).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("kata"), "{error:?}");
    let status = node.kubelet().image(spec("kata")).await.unwrap();
    assert!(status.is_some());
    let asked = node.b.calls("ImageStatus")[0].decode::<cri::ImageStatusRequest>();
    assert_eq!(asked.image.unwrap().runtime_handler, "kata-qemu");
    assert_eq!(node.a.calls("ImageStatus").len(), 0);
}

#[tokio::test]
async fn a_pull_is_given_the_handler_of_its_sandbox_where_the_backend_announces_it() {
    let node = node_with("  runc: { backend: b, handler: runc }\n", str::to_owned).await;
    // Its answer comes after those of the backends were noted.
    node.kubelet().runtime.status(cri::StatusRequest::default()).await.unwrap();
    let with = node.pod("with", "runc", &[]).await;
    let without = node.pod("without", "b", &[]).await;
    let request = |pod: &Pod| cri::PullImageRequest {
        image: Some(annotated(IMAGE, &pod.config)),
        sandbox_config: Some(pod.config.clone()),
        ..Default::default()
    };
    for pod in [&with, &without] {
        node.kubelet().images.pull_image(request(pod)).await.unwrap();
    }
    let sent = node.b.calls(PULL);
    let handler = |place: usize| sent[place].decode::<cri::PullImageRequest>().image.unwrap().runtime_handler;
    assert_eq!((handler(0).as_str(), handler(1).as_str()), ("runc", ""));
    // Field 1 (ImageSpec) holding field 19: the fields that are appended, byte by byte.
    assert!(sent[0].message.ends_with(b"\x0a\x07\x9a\x01\x04runc"));
}

#[tokio::test]
async fn no_handler_is_filled_in_that_the_backend_does_not_announce_or_the_operator_does_not_want() {
    let quiet = runtime("quiet", ImageIds::Containerd).await;
    quiet.reply_raw("Status", Reply::message(cri::StatusResponse::default().encode_to_vec()));
    let loud = runtime("loud", ImageIds::Containerd).await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = support::config(&dir, &[("quiet", &quiet), ("loud", &loud)], "")
        .replace("  quiet: { backend: quiet }", "  quiet: { backend: quiet, handler: runc }")
        .replace("  loud: { backend: loud }", "  loud: { backend: loud, handler: runc }")
        .replace(
            &format!("\"{}\" }}", loud.endpoint()),
            &format!("\"{}\", image_handler: never }}", loud.endpoint()),
        );
    assert!(yaml.contains("never"), "{yaml}");
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    for runtime in [&quiet, &loud] {
        runtime.wait_for_call("ImageFsInfo", 1).await;
        runtime.wait_for_call("Status", 1).await;
    }
    let client = crimux.client();
    client.runtime().status(cri::StatusRequest::default()).await.unwrap();
    for (name, runtime) in [("quiet", &quiet), ("loud", &loud)] {
        client.runtime().run_pod_sandbox(sandbox_config(name).run(name)).await.unwrap();
        let request = cri::PullImageRequest {
            image: Some(image_spec(IMAGE)),
            sandbox_config: Some(sandbox_config(name).build()),
            ..Default::default()
        };
        client.images().pull_image(request.clone()).await.unwrap();
        assert_eq!(runtime.calls(PULL)[0].message, request.encode_to_vec(), "{name}");
    }
}

#[tokio::test]
async fn a_pull_has_no_deadline_of_ours_and_ends_when_its_client_leaves() {
    let node = node().await;
    node.b.fault(PULL, Fault::Hang);
    let pod = node.pod("slow", "b", &[]).await;
    let kubelet = node.kubelet();
    let pull = tokio::spawn(async move { kubelet.pull(IMAGE, &pod.config, None).await });
    let calls = node.b.wait_for_call(PULL, 1).await;
    assert_eq!(calls[0].header("grpc-timeout"), None);
    pull.abort();
    node.b.wait_for_cancel(PULL).await;
}

// Statuses that name their pod.

#[tokio::test]
async fn an_image_is_there_only_if_the_pods_own_backend_has_it() {
    let node = node().await;
    let pods = [node.pod("pa", "a", &[]).await, node.pod("pb", "b", &[]).await];
    node.b.state().add_image(IMAGE);
    let there =
        async |pod: &Pod| node.kubelet().image(annotated(IMAGE, &pod.config)).await.unwrap().is_some();
    assert_eq!((there(&pods[0]).await, there(&pods[1]).await), (false, true));
    assert!(matches!(node.start(&pods[0], IMAGE, Policy::Never).await, Err(Failure::NeverPull)));
    let created = node.start(&pods[0], IMAGE, Policy::IfNotPresent).await.unwrap();
    assert!(created.pulled);
    assert_eq!(node.a.state().container(&created.id).unwrap().sandbox_id, pods[0].sandbox);
    assert!(!node.start(&pods[1], IMAGE, Policy::Never).await.unwrap().pulled);
    assert_eq!(node.pulls(), [1, 0, 0]);
}

#[tokio::test]
async fn a_pods_backend_that_is_down_or_slow_never_makes_its_image_absent() {
    let node = node().await;
    let pod = node.pod("pb", "b", &[]).await;
    node.b.state().add_image(IMAGE);
    node.b.fault("ImageStatus", Fault::Hang);
    let late = node.kubelet().image(annotated(IMAGE, &pod.config)).await.unwrap_err();
    assert_eq!(late.code(), Code::Unavailable);
    node.b.wait_for_cancel("ImageStatus").await;
    node.b.clear_faults();
    node.b.stop().await;
    let down = node.kubelet().image(annotated(IMAGE, &pod.config)).await.unwrap_err();
    assert_eq!(down.code(), Code::Unavailable);
    assert_eq!(node.a.calls("ImageStatus").len() + node.o.calls("ImageStatus").len(), 0);
}

#[tokio::test]
async fn after_a_kubelet_restart_equal_annotations_lead_to_the_pods_backend() {
    let node = node().await;
    let mut pod = node.pod("pb", "b", &[("team", "blue")]).await;
    node.pod("other", "a", &[("team", "red")]).await;
    node.b.state().add_image(IMAGE);
    see_again(&mut pod.config);
    assert!(node.kubelet().image(annotated(IMAGE, &pod.config)).await.unwrap().is_some());
    assert!(!node.start(&pod, IMAGE, Policy::Never).await.unwrap().pulled);
}

#[tokio::test]
async fn pods_of_several_backends_with_equal_annotations_have_an_image_only_together() {
    let node = node().await;
    let mut pod = node.pod("po", "o", &[]).await;
    node.pod("pb", "b", &[]).await;
    see_again(&mut pod.config);
    let spec = annotated(IMAGE, &pod.config);
    let plain = node.o.state().add_image(IMAGE);
    assert!(node.kubelet().image(spec.clone()).await.unwrap().is_none(), "b lacks it");
    node.b.state().add_image(IMAGE);
    let found = node.kubelet().image(spec.clone()).await.unwrap().unwrap();
    assert_eq!(found.id, plain, "the form of the ID that both understand");
    assert_eq!(node.a.calls("ImageStatus").len(), 0, "a has no such pod");

    // Another image under the same name is not the image.
    node.b.state().images.clear();
    node.preload("b", IMAGE, 7);
    assert!(node.kubelet().image(spec.clone()).await.unwrap().is_none());
    // Nothing starts on a backend that is down.
    node.b.stop().await;
    node.wait_down("b").await;
    assert_eq!(node.kubelet().image(spec.clone()).await.unwrap().unwrap().id, plain);
    node.o.stop().await;
    node.wait_down("o").await;
    assert_eq!(node.kubelet().image(spec).await.unwrap_err().code(), Code::Unavailable);
}

/// A container that starts again after kubelet did finds its image where it ran, whatever else there is.
#[tokio::test]
async fn a_container_that_starts_again_after_kubelet_did_finds_its_image_where_it_ran() {
    let node = node().await;
    let mut pods = [node.pod("pa", "a", &[]).await, node.pod("pb", "b", &[]).await];
    node.preload("a", "registry.example/other:1", 0);
    node.b.state().add_image(IMAGE);
    node.start(&pods[0], "registry.example/other:1", Policy::Never).await.unwrap();
    node.start(&pods[1], IMAGE, Policy::Never).await.unwrap();
    for pod in &mut pods {
        see_again(&mut pod.config);
    }
    node.a.clear_calls();
    assert!(!node.start(&pods[1], IMAGE, Policy::Never).await.unwrap().pulled);
    assert_eq!(node.a.calls("ImageStatus").len(), 0, "a has no container of it");

    see_again(&mut pods[1].config);
    node.a.fault("ImageStatus", Fault::Hang);
    assert!(!node.start(&pods[1], IMAGE, Policy::IfNotPresent).await.unwrap().pulled, "a hangs");
    see_again(&mut pods[1].config);
    node.a.stop().await;
    node.wait_down("a").await;
    assert!(!node.start(&pods[1], IMAGE, Policy::Never).await.unwrap().pulled, "a is down");
}

#[tokio::test]
async fn a_handler_that_was_taken_out_of_the_file_does_not_block_its_running_pods() {
    let node = node().await;
    let pod = node.pod("pb", "b", &[]).await;
    node.b.state().add_image(IMAGE);
    let yaml = std::fs::read_to_string(node.crimux.dir.path().join("crimux.yaml")).unwrap();
    let without = yaml.replace("  b: { backend: b }\n", "");
    assert_ne!(without, yaml);
    node.crimux.rewrite(&without);
    node.crimux.signal(nix::sys::signal::Signal::SIGHUP);
    let reloads = "crimux_config_reloads_total{result=\"ok\"}";
    testkit::eventually(SOON, async || node.crimux.metric(reloads).await == Some(1.0)).await;
    let spec = ImageSpec { runtime_handler: "b".into(), ..annotated(IMAGE, &pod.config) };
    assert!(node.kubelet().image(spec.clone()).await.unwrap().is_some());
    let request = cri::PullImageRequest {
        image: Some(spec),
        sandbox_config: Some(pod.config.clone()),
        ..Default::default()
    };
    node.kubelet().images.pull_image(request).await.unwrap();
    assert_eq!(node.pulls(), [0, 1, 0]);
}
#[tokio::test]
async fn a_backend_that_is_down_with_the_image_does_not_stop_the_pods_of_others() {
    let node = node().await;
    let mut pod = node.pod("pa", "a", &[]).await;
    node.pod("pb", "b", &[]).await;
    node.a.state().add_image(IMAGE);
    node.b.state().add_image(IMAGE);
    node.listed().await;
    see_again(&mut pod.config);
    node.b.stop().await;
    assert!(!node.start(&pod, IMAGE, Policy::IfNotPresent).await.unwrap().pulled);
}

#[tokio::test]
async fn a_pull_or_a_container_teaches_the_new_config_seen_of_its_pod() {
    let node = node().await;
    let mut pods = [node.pod("pa", "a", &[]).await, node.pod("pb", "b", &[]).await];
    node.b.state().add_image(IMAGE);
    for pod in &mut pods {
        see_again(&mut pod.config);
    }
    let b_spec = annotated(IMAGE, &pods[1].config);
    assert!(node.kubelet().image(b_spec.clone()).await.unwrap().is_none(), "a or b, and a lacks it");
    // A container that cannot be created tells as much of its pod as one that can.
    let kubelet = node.kubelet();
    let container = container_config("main", "").build();
    kubelet.create(&pods[1].sandbox, &pods[1].config, container, IMAGE, "sha256:00").await.unwrap_err();
    assert!(node.kubelet().image(b_spec).await.unwrap().is_some());

    kubelet.pull("registry.example/other:1", &pods[0].config, None).await.unwrap();
    let a_spec = annotated(IMAGE, &pods[0].config);
    node.a.clear_calls();
    node.b.clear_calls();
    assert!(node.kubelet().image(a_spec).await.unwrap().is_none());
    assert_eq!((node.a.calls("ImageStatus").len(), node.b.calls("ImageStatus").len()), (1, 0));
}

#[tokio::test]
async fn annotations_that_fit_no_pod_mean_the_default_backend() {
    let node = node().await;
    node.pod("pb", "b", &[]).await;
    let mut config = sandbox_config("x").annotation("who", "knows").build();
    see_again(&mut config);
    node.b.state().add_image(IMAGE);
    assert!(node.kubelet().image(annotated(IMAGE, &config)).await.unwrap().is_none());
    node.a.state().add_image(IMAGE);
    assert!(node.kubelet().image(annotated(IMAGE, &config)).await.unwrap().is_some());
    assert_eq!(node.b.calls("ImageStatus").len(), 0);
}

// Statuses that name nothing.

#[tokio::test]
async fn a_client_that_is_not_kubelet_is_answered_by_the_default_backend() {
    let node = node().await;
    node.preload("b", IMAGE, 7);
    assert!(node.kubelet().image(bare(IMAGE)).await.unwrap().is_none(), "its pull would go to a");
    node.preload("a", IMAGE, 0);
    assert_eq!(node.kubelet().uid(IMAGE).await.unwrap(), 0);
    node.b.stop().await;
    assert_eq!(node.kubelet().uid(IMAGE).await.unwrap(), 0);
    assert_eq!(node.b.calls("ImageStatus").len() + node.o.calls("ImageStatus").len(), 0);
}

#[tokio::test]
async fn soon_after_a_start_stores_that_disagree_make_the_user_unavailable_and_never_root() {
    let node = node().await;
    assert!(node.kubelet().image(bare(IMAGE)).await.unwrap().is_none(), "there is no pod of kubelet");
    node.pod("pb", "b", &[]).await;
    node.preload("b", IMAGE, 7);
    let error = node.kubelet().uid(IMAGE).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "a start on b may be under way");
    assert!(error.message().contains(IMAGE), "{error:?}");
    node.preload("a", IMAGE, 7);
    assert_eq!(node.kubelet().uid(IMAGE).await.unwrap(), 7, "they agree");
    node.b.stop().await;
    node.wait_down("b").await;
    assert_eq!(node.kubelet().uid(IMAGE).await.unwrap(), 7, "nothing starts on b");
    assert_eq!(node.kubelet().uid("registry.example/other:1").await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn the_user_is_not_root_while_the_backend_of_the_start_does_not_answer() {
    let node = node().await;
    let pod = node.pod("po", "o", &[]).await;
    node.preload("o", IMAGE, 9);
    let kubelet = node.kubelet();
    kubelet.image(annotated(IMAGE, &pod.config)).await.unwrap().unwrap();
    node.o.fault("ImageStatus", Fault::Hang);
    assert_eq!(kubelet.uid(IMAGE).await.unwrap_err().code(), Code::Unavailable);
    node.o.clear_faults();
    node.o.state().images.clear();
    assert_eq!(kubelet.uid(IMAGE).await.unwrap_err().code(), Code::Unavailable, "absent is no answer");
}
#[tokio::test]
async fn the_pod_that_was_just_shown_the_image_is_told_its_own_backends_user() {
    let node = node().await;
    node.preload("a", IMAGE, 0);
    node.preload("b", IMAGE, 7);
    node.preload("o", IMAGE, 9);
    for (handler, uid) in [("b", 7), ("o", 9), ("a", 0)] {
        let pod = node.pod(&format!("pod-{handler}"), handler, &[]).await;
        let created = node.start(&pod, IMAGE, Policy::IfNotPresent).await.unwrap();
        assert_eq!((created.uid, created.pulled), (uid, false), "{handler}");
    }
}

#[tokio::test]
async fn a_short_name_and_its_full_form_are_one_image() {
    let node = node().await;
    node.preload("a", "docker.io/library/app:latest", 0);
    node.preload("b", "docker.io/library/app:latest", 7);
    let pod = node.pod("pb", "b", &[]).await;
    let created = node.start(&pod, "app", Policy::IfNotPresent).await.unwrap();
    assert_eq!(created.uid, 7);
}

#[tokio::test]
async fn two_pods_that_start_the_same_name_with_different_users_never_get_each_others() {
    let node = node().await;
    node.preload("a", IMAGE, 0);
    node.preload("b", IMAGE, 7);
    let (pa, pb) = (node.pod("pa", "a", &[]).await, node.pod("pb", "b", &[]).await);
    let kubelet = node.kubelet();
    kubelet.image(annotated(IMAGE, &pb.config)).await.unwrap().unwrap();
    kubelet.image(annotated(IMAGE, &pa.config)).await.unwrap().unwrap();
    for pod in [&pa, &pb] {
        let refused = kubelet.uid(IMAGE).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{:?}", pod.config.metadata);
    }
    // kubelet starts both again, each at its time.
    for (pod, uid) in [(&pa, 0), (&pb, 7)] {
        let started = async || {
            node.start(pod, IMAGE, Policy::IfNotPresent).await.is_ok_and(|created| created.uid == uid)
        };
        testkit::eventually(SOON, started).await;
    }
}
#[tokio::test]
async fn a_pull_amid_another_pods_start_makes_the_user_undecided_and_not_wrong() {
    let node = node().await;
    node.preload("a", IMAGE, 7);
    let (pa, pb) = (node.pod("pa", "a", &[]).await, node.pod("pb", "b", &[]).await);
    let kubelet = node.kubelet();
    kubelet.image(annotated(IMAGE, &pa.config)).await.unwrap().unwrap();
    let id = kubelet.pull(IMAGE, &pb.config, None).await.unwrap();
    assert_eq!(kubelet.uid(IMAGE).await.unwrap_err().code(), Code::Unavailable);
    let container = container_config("main", "").build();
    kubelet.create(&pb.sandbox, &pb.config, container, IMAGE, &id).await.unwrap();
    assert_eq!(kubelet.uid(IMAGE).await.unwrap(), 7, "only pa's start is under way");
}
#[tokio::test]
async fn a_pod_whose_image_vanished_is_not_told_that_it_runs_as_root() {
    let node = node().await;
    let pod = node.pod("pb", "b", &[]).await;
    let kubelet = node.kubelet();
    kubelet.pull(IMAGE, &pod.config, None).await.unwrap();
    node.remove(IMAGE).await.unwrap();
    assert_eq!(kubelet.uid(IMAGE).await.unwrap_err().code(), Code::Unavailable);
    assert!(kubelet.image(annotated(IMAGE, &pod.config)).await.unwrap().is_none());
    assert!(node.start(&pod, IMAGE, Policy::IfNotPresent).await.unwrap().pulled);
}
#[tokio::test]
async fn a_missing_image_fails_the_container_in_its_backends_words_and_the_retry_asks_afresh() {
    let node = node().await;
    node.preload("a", IMAGE, 0);
    node.preload("b", IMAGE, 7);
    let pod = node.pod("pb", "b", &[]).await;
    let kubelet = node.kubelet();
    let id = kubelet.image(annotated(IMAGE, &pod.config)).await.unwrap().unwrap().id;
    node.b.state().images.clear();
    let container = container_config("main", "").build();
    let error = kubelet.create(&pod.sandbox, &pod.config, container, IMAGE, &id).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert_eq!(error.message(), format!("failed to resolve image {id:?}: not found"));
    let created = node.start(&pod, IMAGE, Policy::IfNotPresent).await.unwrap();
    assert!(created.pulled);
}

// Removal and lists.

#[tokio::test]
async fn an_image_is_removed_where_that_very_id_is_listed() {
    let node = node().await;
    for name in ["a", "b", "o"] {
        node.runtime(name).state().add_image("registry.example/other:1");
    }
    let id = node.b.state().add_image(IMAGE);
    let plain = node.o.state().add_image(IMAGE);
    assert_eq!(id, format!("sha256:{plain}"));
    node.listed().await;
    node.remove(&id).await.unwrap();
    assert_eq!(node.removals("b"), std::slice::from_ref(&id));
    assert_eq!(node.removals("o"), [""; 0], "o lists it as another image, which may be in use");
    assert_eq!(node.removals("a"), [""; 0], "it never had it");
    let left: Vec<_> = node.listed().await.into_iter().map(|image| image.id).collect();
    assert!(!left.contains(&id) && left.contains(&plain), "{left:?}");
    // Nobody lists this spelling any more, so it means the other.
    node.remove(&id).await.unwrap();
    assert_eq!(node.removals("o"), std::slice::from_ref(&plain), "as o lists it");
    assert_eq!(node.listed().await.len(), 2);
    assert_eq!(node.remove(&id).await, Ok(()), "removing it again is no error");
}

#[tokio::test]
async fn the_other_spelling_is_not_removed_while_a_store_that_may_have_the_exact_id_is_down() {
    let node = node().await;
    node.listed().await;
    let id = node.b.state().add_image(IMAGE);
    let plain = node.o.state().add_image(IMAGE);
    node.o.refuse_connections().await;
    node.wait_down("o").await;
    assert_eq!(node.remove(&plain).await, Err(Code::Unavailable));
    assert_eq!(node.removals("b"), [""; 0], "{id} is another image to kubelet");
}

#[tokio::test]
async fn one_list_of_each_store_serves_a_whole_collection() {
    let node = node().await;
    let ids: Vec<_> =
        (0..30).map(|number| node.b.state().add_image(&format!("registry.example/old:{number}"))).collect();
    node.listed().await;
    for name in ["a", "b", "o"] {
        node.runtime(name).clear_calls();
    }
    for id in &ids {
        node.remove(id).await.unwrap();
    }
    assert_eq!(node.removals("b").len(), 30);
    let lists = ["a", "b", "o"].map(|name| node.runtime(name).calls("ListImages").len());
    assert_eq!(lists, [0, 0, 0], "kubelet listed them right before");
    assert_eq!(node.listed().await, []);
}

#[tokio::test]
async fn a_store_that_hangs_costs_a_collection_its_deadline_once() {
    let node = node().await;
    let ids: Vec<_> =
        (0..10).map(|number| node.a.state().add_image(&format!("registry.example/old:{number}"))).collect();
    node.o.fault("ListImages", Fault::Hang);
    node.listed().await;
    let started = std::time::Instant::now();
    for id in &ids {
        node.remove(id).await.unwrap();
    }
    assert_eq!(node.removals("a").len(), 10);
    assert!(started.elapsed() < std::time::Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(node.remove("registry.example/nowhere:1").await, Err(Code::Unavailable), "o may have it");
}
#[tokio::test]
async fn an_image_is_removed_by_prefix_tag_and_digest_too() {
    let node = node().await;
    let digest = |node: &Node| {
        let id = node.a.state().add_image(IMAGE);
        let digest = node.a.state().images[&id].repo_digests[0].clone();
        (id, digest)
    };
    for form in 0..3 {
        let (id, digest) = digest(&node);
        node.o.state().add_image(IMAGE);
        node.a.clear_calls();
        let reference = match form {
            0 => id[7..20].to_owned(),
            1 => IMAGE.to_owned(),
            _ => digest,
        };
        node.remove(&reference).await.unwrap();
        let expected = if form == 0 { id.clone() } else { reference };
        assert_eq!(node.removals("a"), [expected]);
        assert_eq!(node.listed().await, []);
    }
}

#[tokio::test]
async fn a_prefix_of_two_images_removes_neither() {
    let node = node().await;
    for (name, hex) in [("a", "ab01"), ("o", "ab02")] {
        let own = if name == "a" { format!("sha256:{hex:0<64}") } else { format!("{hex:0<64}") };
        let image = cri::Image { id: own.clone(), ..Default::default() };
        node.runtime(name).state().images.insert(own, image);
    }
    assert_eq!(node.remove("ab0").await, Err(Code::InvalidArgument));
    assert_eq!(node.removals("a").len() + node.removals("o").len(), 0);
}

#[tokio::test]
async fn an_owner_that_is_down_makes_a_removal_unavailable_after_the_others_did_it() {
    let node = node().await;
    let id = node.a.state().add_image(IMAGE);
    node.o.state().add_image(IMAGE);
    node.b.state().add_image("registry.example/other:1");
    node.listed().await;
    node.o.stop().await;
    assert_eq!(node.remove(IMAGE).await, Err(Code::Unavailable));
    assert_eq!(node.removals("a"), [IMAGE.to_owned()]);
    assert_eq!(node.remove("registry.example/other:1").await, Ok(()), "o is known not to have it");
    assert_eq!(node.remove("registry.example/nobody:1").await, Err(Code::Unavailable), "o might have got it");
    node.o.start_again().await;
    node.wait_up(&["o"]).await;
    assert_eq!(node.remove(&id).await, Ok(()));
    assert_eq!(node.removals("o"), [id[7..].to_owned()]);
    assert_eq!(node.remove("registry.example/nobody:1").await, Ok(()));
}

#[tokio::test]
async fn a_store_that_denies_the_image_is_no_error_and_one_that_refuses_is() {
    let node = node().await;
    let id = node.a.state().add_image(IMAGE);
    node.b.state().add_image(IMAGE);
    node.listed().await;
    node.a.fault_next("RemoveImage", 1, Fault::error(Code::NotFound, "gone already"));
    assert_eq!(node.remove(&id).await, Ok(()));
    assert_eq!(node.removals("b").len(), 1);
    node.b.state().add_image(IMAGE);
    node.listed().await;
    node.b.fault_next("RemoveImage", 1, Fault::error(Code::Unknown, "image is in use"));
    assert_eq!(node.remove(&id).await, Err(Code::Unknown));
}

#[tokio::test]
async fn images_that_only_a_backend_that_is_down_has_stay_listed_and_are_pinned() {
    let node = node().await;
    let pod = node.pod("pb", "b", &[]).await;
    let shared = node.a.state().add_image("registry.example/shared:1");
    node.b.state().add_image("registry.example/shared:1");
    node.b.state().tag_image("registry.example/shared:1", "registry.example/shared:2");
    node.a.state().add_image("registry.example/own:1");
    node.kubelet().pull(IMAGE, &pod.config, None).await.unwrap();
    let tags_and_pins = async || {
        let images = node.listed().await;
        let mut seen: Vec<_> = images.into_iter().map(|image| (image.repo_tags, image.pinned)).collect();
        seen.sort();
        seen
    };
    let tags = |tags: &[&str]| tags.iter().map(|tag| format!("registry.example/{tag}")).collect::<Vec<_>>();
    let expected = |pinned| {
        vec![(tags(&["app:1"]), pinned), (tags(&["own:1"]), false), (tags(&["shared:1", "shared:2"]), false)]
    };
    assert_eq!(tags_and_pins().await, expected(false));
    node.b.stop().await;
    assert_eq!(tags_and_pins().await, expected(true));
    assert!(node.listed().await.iter().any(|image| image.id == shared));
}

#[tokio::test]
async fn filesystems_start_with_the_default_backends_and_name_each_mountpoint_once() {
    let a = SimRuntime::builder("z").abilities(|can| can.mountpoint = "/z".into()).start().await;
    let b = SimRuntime::builder("b").abilities(|can| can.mountpoint = "/b".into()).start().await;
    let c = SimRuntime::builder("c").abilities(|can| can.mountpoint = "/z".into()).start().await;
    let remote = SimRuntime::builder("r").abilities(|can| can.mountpoint = "/r".into()).tcp().start().await;
    // The default backend is not the first by name.
    let crimux = Crimux::start(&[("z", &a), ("b", &b), ("c", &c), ("a-remote", &remote)]).await;
    for runtime in [&a, &b, &c, &remote] {
        runtime.wait_for_call("ImageFsInfo", 1).await;
    }
    let reply =
        crimux.client().images().image_fs_info(cri::ImageFsInfoRequest {}).await.unwrap().into_inner();
    let paths = |list: Vec<cri::FilesystemUsage>| -> Vec<String> {
        list.into_iter().map(|usage| usage.fs_id.unwrap().mountpoint).collect()
    };
    assert_eq!(paths(reply.image_filesystems), ["/z", "/b"]);
    assert_eq!(paths(reply.container_filesystems), ["/z", "/b"]);
}

#[tokio::test]
async fn no_filesystem_is_named_before_the_default_backend_was_heard() {
    let a = SimRuntime::builder("a").abilities(|can| can.mountpoint = "/a".into()).start().await;
    let b = SimRuntime::builder("b").abilities(|can| can.mountpoint = "/b".into()).start().await;
    a.fault("ImageFsInfo", Fault::Hang);
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    b.wait_for_call("ImageFsInfo", 1).await;
    let mut images = crimux.client().images();
    let error = images.image_fs_info(cri::ImageFsInfoRequest {}).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error:?}");
    a.clear_faults();
    let first = async || {
        let reply = images.clone().image_fs_info(cri::ImageFsInfoRequest {}).await.ok()?.into_inner();
        Some(reply.image_filesystems[0].fs_id.clone().unwrap().mountpoint)
    };
    testkit::eventually(SOON, async || first().await.as_deref() == Some("/a")).await;
}

#[tokio::test]
async fn an_image_call_of_tomorrow_goes_to_the_default_backend_whatever_it_names() {
    let node = node().await;
    let id = node.a.state().add_image(IMAGE);
    let plain = id.trim_start_matches("sha256:").to_owned();
    let request = cri::StopPodSandboxRequest { pod_sandbox_id: plain }.encode_to_vec();
    node.a.unknown_method("Tomorrow", |_| Reply::messages(vec![prost::bytes::Bytes::new()]));
    let path = "/runtime.v1.ImageService/Tomorrow";
    let reply = node.crimux.client().raw(path, &[], request).await.unwrap();
    assert_eq!(reply.code(), Code::Ok, "as a answers, not NotFound: {:?}", reply.status());
    assert_eq!(node.b.calls("Tomorrow").len() + node.o.calls("Tomorrow").len(), 0);
}

#[tokio::test]
async fn where_calls_for_an_image_would_go_is_explained() {
    let node = node().await;
    let pod = node.pod("pb", "b", &[]).await;
    node.b.state().add_image(IMAGE);
    node.start(&pod, IMAGE, Policy::Never).await.unwrap();
    let (status, body) = node.crimux.get(&format!("/v1/images/explain?reference={IMAGE}")).await.unwrap();
    assert_eq!(status, 200, "{body}");
    let explanation: serde_json::Value = serde_json::from_str(&body).unwrap();
    let stores = explanation["stores"].as_array().unwrap();
    let of = |name: &str| stores.iter().find(|store| store["backend"] == name).unwrap();
    assert_eq!((of("a")["image"].as_str(), of("b")["image"].as_str()), (Some("absent"), Some("present")));
    assert_eq!(of("b")["sandboxes"], 1);
    let calls = explanation["calls"].as_array().unwrap();
    let to = |call: &str, backend: &str| {
        calls.iter().any(|row| row["call"] == call && row["backends"] == serde_json::json!([backend]))
    };
    assert!(to("PullImage", "a") && to("RemoveImage", "b") && to("ImageStatus", "b"), "{body}");
}

// One backend's own socket, and secrets.

#[tokio::test]
async fn on_a_backends_own_socket_every_image_call_is_its_own() {
    let a = runtime("a", ImageIds::Containerd).await;
    let b = runtime("b", ImageIds::Containerd).await;
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("b.sock");
    let yaml = support::config(&dir, &[("a", &a), ("b", &b)], "").replace(
        &format!("\"{}\" }}", b.endpoint()),
        &format!("\"{}\", socket: \"unix://{}\" }}", b.endpoint(), own.display()),
    );
    assert!(yaml.contains("socket: \"unix"), "{yaml}");
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    let id = a.state().add_image(IMAGE);
    let mut images = testkit::Client::unix(&own).images();
    let mut status = images.clone();
    let mut there = async || {
        let request = cri::ImageStatusRequest { image: Some(bare(IMAGE)), verbose: false };
        status.image_status(request).await.unwrap().into_inner().image.is_some()
    };
    assert!(!there().await, "a's images are not shown");
    let request = cri::PullImageRequest { image: Some(image_spec(IMAGE)), ..Default::default() };
    images.pull_image(request).await.unwrap();
    assert!(there().await);
    assert_eq!((a.calls(PULL).len(), b.calls(PULL).len()), (0, 1));
    images.remove_image(cri::RemoveImageRequest { image: Some(image_spec(&id)) }).await.unwrap();
    assert!(!there().await);
    assert_eq!(a.calls("RemoveImage").len() + a.calls("ImageStatus").len(), 0);
    assert!(a.state().images.contains_key(&id));
}

#[tokio::test]
async fn credentials_reach_the_pods_backend_and_no_log_metric_or_file() {
    const SECRET: &str = "hunter2-of-the-registry";
    let mut node = node_with("", |yaml| yaml.replace("level: debug", "level: trace")).await;
    let pod = node.pod("pb", "b", &[]).await;
    let auth = cri::AuthConfig { username: "u".into(), password: SECRET.into(), ..Default::default() };
    node.kubelet().pull(IMAGE, &pod.config, Some(auth.clone())).await.unwrap();
    node.b.fault_next(PULL, 1, Fault::error(Code::Unknown, "refused"));
    node.kubelet().pull(IMAGE, &pod.config, Some(auth)).await.unwrap_err();
    let pulled = node.b.state().pulls[0].auth.clone().unwrap();
    assert_eq!(pulled.password, SECRET);
    assert_eq!(node.pulls(), [0, 2, 0]);

    let (_, metrics) = node.crimux.get("/metrics").await.unwrap();
    assert!(metrics.contains("PullImage") && !metrics.contains(SECRET));
    let log = node.crimux.log();
    assert!(log.contains("PullImage") && !log.contains(SECRET), "{log}");
    node.crimux.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(node.crimux.ended().await, Some(0));
    let mut files = 0;
    for entry in std::fs::read_dir(node.crimux.dir.path().join("state")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()));
        files += 1;
    }
    assert!(files > 0, "there is saved state to look at");
}
