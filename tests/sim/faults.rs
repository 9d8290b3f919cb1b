//! Every fault of a simulated runtime on every RPC of the API.
//!
//! Two backends stand behind crimux and a fault strikes one of them. What the client is told must be one of
//! the outcomes that the method's route allows, come within a bound, and leave the other backend alone; once
//! the fault is over everything is as the backends have it, and every call works again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crimux::method::{self, Deadline, List, Method, Route, Rpc};
use prost::Message;
use testkit::client::{container_config, image_spec, sandbox_config};
use testkit::runtime::{Container, Fault, Sandbox, SimRuntime};
use testkit::{Client, cri};
use tonic::Code;

use crate::support::{Crimux, SOON, config};

/// What a caller waits whose call hangs.
const PATIENCE: &str = "400m";
/// The longest that anything may take, on a busy machine.
const BOUND: Duration = Duration::from_secs(5);

struct World {
    crimux: Crimux,
    client: Client,
    a: SimRuntime,
    b: SimRuntime,
    /// Objects of `b` that no call has been about yet.
    victims: Vec<(String, String)>,
}

impl World {
    async fn new() -> Self {
        let a = SimRuntime::builder("a").containers(2, 1).images(1).start().await;
        // One pod for each call that may spoil it: twice for each method, and some.
        let b = SimRuntime::builder("b").handlers(["b"]).containers(120, 1).images(1).start().await;
        let dir = tempfile::tempdir().unwrap();
        let yaml = config(&dir, &[("a", &a), ("b", &b)], "");
        // Of `b` alone: on a busy machine `a` may need longer.
        let timeouts = "  b: { timeouts: { list: 300ms, read: 300ms, stats: 300ms }, endpoint";
        let crimux = Crimux::start_in(dir, &yaml.replace("  b: { endpoint", timeouts));
        crimux.wait_ready().await;
        let client = crimux.client();
        // A pod that both have, as simulated runtimes name theirs, may be pulled for at either.
        let shared: BTreeSet<_> = a.state().sandboxes().filter_map(uid).collect();
        let victims = {
            let state = b.state();
            let is_own = |c: &&Container| {
                !uid(state.sandbox(&c.sandbox_id).unwrap()).is_some_and(|uid| shared.contains(&uid))
            };
            state.containers().filter(is_own).map(|c| (c.sandbox_id.clone(), c.id.clone())).collect()
        };
        Self { crimux, client, a, b, victims }
    }

    /// Makes one call that is about `b`, if it is about a backend at all.
    async fn call(&mut self, method: &Method, patience: Option<&str>) -> Code {
        let path = format!("/runtime.v1.{}/{}", method.service.name(), method.name);
        let request = self.request(method);
        let started = Instant::now();
        let patience = patience.map(|patience| ("grpc-timeout", patience));
        let reply = self.client.raw(&path, patience.as_slice(), request).await.unwrap();
        let took = started.elapsed();
        assert!(took < BOUND, "{} took {took:?}", method.name);
        let told = reply.message();
        if reply.code() == Code::Unavailable && told.starts_with("crimux") {
            assert!(told.contains("backend b") || told.contains(": b"), "{}: {told}", method.name);
        }
        reply.code()
    }

    fn request(&mut self, method: &Method) -> Vec<u8> {
        let (sandbox, container) = self.victims.pop().expect("enough victims");
        match method.name {
            "RunPodSandbox" => sandbox_config(&format!("new-{sandbox}")).run("b").encode_to_vec(),
            "RestorePod" => cri::RestorePodRequest {
                checkpoint_path: "/checkpoint".to_owned(),
                config: Some(sandbox_config(&format!("restored-{sandbox}")).build()),
                runtime_handler: "b".to_owned(),
                ..Default::default()
            }
            .encode_to_vec(),
            "CreateContainer" => {
                let state = self.b.state();
                let pod = state.sandbox(&sandbox).unwrap().config.clone();
                let image = state.images.keys().next().unwrap().clone();
                container_config("another", &image).create_in(&sandbox, &pod).encode_to_vec()
            }
            "RemovePodSandbox" => {
                // Only what was stopped is removed, as kubelet does it.
                self.b.state().stop_sandbox(&sandbox).unwrap();
                cri::RemovePodSandboxRequest { pod_sandbox_id: sandbox }.encode_to_vec()
            }
            "StartContainer" => {
                let (pod, image) = {
                    let state = self.b.state();
                    let pod = state.sandbox(&sandbox).unwrap().config.clone();
                    (pod, state.images.keys().next().unwrap().clone())
                };
                let config = container_config("second", &image).build();
                let made = self.b.state().create_container(&sandbox, config).unwrap();
                drop(pod);
                cri::StartContainerRequest { container_id: made }.encode_to_vec()
            }
            "Exec" | "Attach" => {
                cri::AttachRequest { container_id: container, stdout: true, ..Default::default() }
                    .encode_to_vec()
            }
            "ImageStatus" | "RemoveImage" => cri::ImageStatusRequest {
                image: Some(image_spec("registry.example/image-0:1")),
                ..Default::default()
            }
            .encode_to_vec(),
            "PullImage" => {
                let pod = self.b.state().sandbox(&sandbox).unwrap().config.clone();
                cri::PullImageRequest {
                    image: Some(image_spec("registry.example/image-0:1")),
                    auth: None,
                    sandbox_config: Some(pod),
                }
                .encode_to_vec()
            }
            _ => match method.route {
                Route::Owner(method::Kind::Sandbox, _) => {
                    cri::StopPodSandboxRequest { pod_sandbox_id: sandbox }.encode_to_vec()
                }
                Route::Owner(method::Kind::Container, _) => {
                    cri::StartContainerRequest { container_id: container }.encode_to_vec()
                }
                _ => Vec::new(),
            },
        }
    }

    async fn lists(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let mut runtime = self.client.runtime();
        let listed = runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await.unwrap();
        let sandboxes = listed.into_inner().items;
        let listed = runtime.list_containers(cri::ListContainersRequest::default()).await.unwrap();
        let containers = listed.into_inner().containers;
        let all = (sandboxes.len(), containers.len());
        let sets: (BTreeSet<_>, BTreeSet<_>) =
            (sandboxes.into_iter().map(|s| s.id).collect(), containers.into_iter().map(|c| c.id).collect());
        assert_eq!((sets.0.len(), sets.1.len()), all, "something is listed twice");
        sets
    }

    /// What both backends really have.
    fn truth(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let mut truth = (BTreeSet::new(), BTreeSet::new());
        for runtime in [&self.a, &self.b] {
            let state = runtime.state();
            truth.0.extend(state.sandboxes().map(|s| s.id.clone()));
            truth.1.extend(state.containers().map(|c| c.id.clone()));
        }
        truth
    }

    /// The other backend answers as if nothing had happened.
    async fn other_is_unaffected(&self, method: &Method) {
        let container_id = self.a.state().containers().next().unwrap().id.clone();
        let request = cri::ContainerStatusRequest { container_id, verbose: true };
        let started = Instant::now();
        self.client.runtime().container_status(request).await.unwrap();
        assert!(started.elapsed() < BOUND, "{}: a took {:?}", method.name, started.elapsed());
    }

    /// Everything is as the backends have it, and crimux says so.
    async fn is_well_again(&self, method: &Method) {
        let ready = "crimux_backend_state{backend=\"b\",state=\"ready\"}";
        testkit::eventually(SOON, async || self.crimux.metric(ready).await == Some(1.0)).await;
        // A list that takes the backend too long is answered as last known, which may lack a pod whose
        // creation had no reply.
        let started = Instant::now();
        loop {
            let (lists, truth) = (self.lists().await, self.truth());
            if lists == truth {
                return;
            }
            assert!(started.elapsed() < SOON, "after {}: {lists:?} of {truth:?}", method.name);
        }
    }
}

fn uid(sandbox: &Sandbox) -> Option<String> {
    Some(sandbox.config.metadata.as_ref()?.uid.clone())
}

/// The codes that a client may be told.
fn allowed(method: &Method, fault: &Fault) -> Vec<Code> {
    let from_memory = match method.route {
        Route::Local(_) | Route::FanOut(_) | Route::StreamList(_) => return listed(method.route, fault),
        // Which backend an image call reaches is decided elsewhere; it may well be the other one.
        Route::Image(_) => true,
        _ => method.deadline == Deadline::Read,
    };
    let mut codes = match fault {
        Fault::Delay(_) => vec![Code::Ok],
        Fault::Error(status) => vec![status.code()],
        Fault::GarbageMessage(_) | Fault::GarbageFrame(_) | Fault::Truncate(_) => {
            vec![Code::Ok, Code::Internal]
        }
        Fault::Hang | Fault::HangReply | Fault::Reset | Fault::DropConnection | Fault::LoseReply => {
            vec![Code::Unavailable]
        }
    };
    if from_memory {
        codes.extend([Code::Ok, Code::Unavailable]);
    }
    if method.name == "PullImage" && matches!(fault, Fault::Hang | Fault::HangReply) {
        codes = vec![Code::DeadlineExceeded];
    }
    codes
}

/// A fault of one backend is nothing that an answer for the node shows; that a list does not exist is.
fn listed(route: Route, fault: &Fault) -> Vec<Code> {
    let optional = matches!(route, Route::FanOut(List::SandboxStats) | Route::StreamList(List::SandboxStats));
    match fault {
        Fault::Error(status) if optional && status.code() == Code::Unimplemented => {
            vec![Code::Ok, Code::Unimplemented]
        }
        _ => vec![Code::Ok],
    }
}

/// Strikes every method with this fault, one after another.
async fn strike_all(fault: Fault) {
    let mut world = World::new().await;
    // What has no last-known answer cannot be answered from memory: kubelet asks for these all the time.
    for rpc in [
        Rpc::ListContainerStats,
        Rpc::ListPodSandboxStats,
        Rpc::ListPodSandboxMetrics,
        Rpc::ListMetricDescriptors,
    ] {
        assert_eq!(world.call(method::row(rpc), None).await, Code::Ok, "{}", rpc.name());
    }
    // The stream of events has no end to wait for; `events.rs` strikes it.
    for method in method::all().iter().filter(|method| method.route != Route::Events) {
        let expected = world.call(method, None).await;
        if expected == Code::Unimplemented {
            continue;
        }
        assert_eq!(expected, Code::Ok, "{} works", method.name);
        world.is_well_again(method).await;
        world.b.fault(method.name, fault.clone());
        let patience = matches!(fault, Fault::Hang | Fault::HangReply).then_some(PATIENCE);
        let told = world.call(method, patience).await;
        let codes = allowed(method, &fault);
        assert!(codes.contains(&told), "{fault:?} on {} was told as {told:?}, not {codes:?}", method.name);
        world.other_is_unaffected(method).await;
        world.b.clear_faults();
        world.is_well_again(method).await;
    }
}

macro_rules! faults {
    ($($name:ident: $fault:expr;)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                strike_all($fault).await;
            }
        )*
    };
}

faults! {
    a_slow_backend_is_waited_for: Fault::Delay(Duration::from_millis(20));
    a_hung_backend_is_not_waited_for_longer_than_the_caller_does: Fault::Hang;
    a_backend_that_works_and_does_not_say_so_is_found_out: Fault::HangReply;
    an_error_of_a_backend_passes_as_its_own: Fault::error(Code::Internal, "out of order");
    a_backend_that_is_not_there_yet_is_not_absent: Fault::error(Code::Unavailable, "server is not initialized yet");
    a_method_that_a_backend_denies_switches_nothing_off: Fault::error(Code::Unimplemented, "unknown method");
    a_backend_that_knows_nothing_loses_nothing: Fault::error(Code::NotFound, "not found");
    bytes_that_are_no_message_reach_no_list: Fault::GarbageMessage(b"\xff\xff\xff\xff".as_slice().into());
    a_message_of_another_kind_reaches_no_list: Fault::GarbageMessage(b"\x0a\x05hello".as_slice().into());
    bytes_that_are_no_frame_reach_no_list: Fault::GarbageFrame(b"this is no gRPC message".as_slice().into());
    a_reply_that_ends_early_reaches_no_list: Fault::Truncate(7);
    a_reply_without_anything_is_no_empty_list: Fault::Truncate(0);
    a_stream_that_is_reset_ends_as_unavailable: Fault::Reset;
    a_connection_that_breaks_is_made_again: Fault::DropConnection;
    a_reply_that_is_lost_is_found_out: Fault::LoseReply;
}
