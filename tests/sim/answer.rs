//! What crimux answers for the node: `Version`, `Status`, `RuntimeConfig`; and `UpdateRuntimeConfig` for all.

use std::time::{Duration, Instant};

use testkit::cri;
use testkit::runtime::{Fault, SimRuntime};
use tonic::Code;

use crate::routing::wait_down;
use crate::support::{Crimux, config};

const VERSION: &str = "/runtime.v1.RuntimeService/Version";
const STATUS: &str = "/runtime.v1.RuntimeService/Status";
const RUNTIME_CONFIG: &str = "/runtime.v1.RuntimeService/RuntimeConfig";
const UPDATE: &str = "/runtime.v1.RuntimeService/UpdateRuntimeConfig";

async fn two() -> [SimRuntime; 2] {
    let a = SimRuntime::builder("containerd").handlers(["runc"]).start().await;
    let features = cri::RuntimeFeatures { user_namespaces_host_network: true, ..Default::default() };
    let b = SimRuntime::builder("other").handlers(["runsc"]).abilities(|a| a.features = Some(features));
    [a, b.start().await]
}

async fn status(crimux: &Crimux, verbose: bool) -> cri::StatusResponse {
    let reply = crimux.client().raw_message(STATUS, &cri::StatusRequest { verbose }).await.unwrap();
    assert_eq!(reply.code(), Code::Ok, "{}", reply.message());
    reply.decode()
}

/// Each condition with its value, in order.
fn conditions(status: &cri::StatusResponse) -> Vec<(&str, bool)> {
    let conditions = &status.status.as_ref().unwrap().conditions;
    conditions.iter().map(|condition| (condition.r#type.as_str(), condition.status)).collect()
}

#[tokio::test]
async fn version_is_that_of_the_default_backend_with_the_api_that_kubelet_insists_on() {
    let [a, b] = two().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let version = crimux.client().raw(VERSION, &[], "").await.unwrap().decode::<cri::VersionResponse>();
    let expected = cri::VersionResponse {
        version: "0.1.0".into(),
        runtime_name: "containerd".into(),
        runtime_version: "2.1.0".into(),
        runtime_api_version: "v1".into(),
    };
    assert_eq!(version, expected);
    a.stop().await;
    b.stop().await;
    wait_down(&crimux, "a").await;
    let later = crimux.client().raw(VERSION, &[], "").await.unwrap().decode::<cri::VersionResponse>();
    assert_eq!(later, expected, "it does not depend on any backend");
}

#[tokio::test]
async fn version_can_be_crimux_own() {
    let [a, _] = two().await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = format!("identity: crimux\n{}", config(&dir, &[("a", &a)], ""));
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    let version = crimux.client().raw(VERSION, &[], "").await.unwrap().decode::<cri::VersionResponse>();
    assert_eq!(version.runtime_name, "crimux");
    assert_eq!((version.version.as_str(), version.runtime_api_version.as_str()), ("0.1.0", "v1"));
    assert_eq!(version.runtime_version, env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn status_names_the_public_handlers_with_the_features_of_what_they_map_to() {
    let [a, b] = two().await;
    let dir = tempfile::tempdir().unwrap();
    let more = "  gvisor: { backend: b, handler: runsc }\n  lost: { backend: b, handler: nowhere }\n";
    let yaml = config(&dir, &[("a", &a), ("b", &b)], more);
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    let status = status(&crimux, false).await;
    assert_eq!(
        conditions(&status),
        [("RuntimeReady", true), ("NetworkReady", true), ("Backend/a", true), ("Backend/b", true)]
    );
    let all = cri::RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: true };
    let handlers: Vec<_> = status.runtime_handlers.iter().map(|h| (h.name.as_str(), h.features)).collect();
    assert_eq!(
        handlers,
        [("", Some(all)), ("a", Some(all)), ("b", Some(all)), ("gvisor", Some(all)), ("lost", None)]
    );
    // One has supplemental groups only, the other user namespaces on the host network only.
    assert_eq!(status.features, Some(cri::RuntimeFeatures::default()));
    assert_eq!(status.info.len(), 0);
}

#[tokio::test]
async fn verbose_status_prefixes_what_backends_tell_less_the_default_ones() {
    let [a, b] = two().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let status = status(&crimux, true).await;
    let mut keys: Vec<_> = status.info.keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["b/config", "config"]);
    assert!(status.info["config"].contains("containerd"), "{}", status.info["config"]);
    assert!(status.info["b/config"].contains("other"), "{}", status.info["b/config"]);
}

#[tokio::test]
async fn a_condition_of_the_default_backend_is_the_nodes_and_that_of_another_is_not() {
    let [a, b] = two().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    b.state().set_condition("NetworkReady", false, "NoCni");
    let answer = status(&crimux, false).await;
    assert_eq!(conditions(&answer)[..2], [("RuntimeReady", true), ("NetworkReady", true)]);
    a.state().set_condition("NetworkReady", false, "NoCni");
    let answer = status(&crimux, false).await;
    assert_eq!(conditions(&answer)[..2], [("RuntimeReady", true), ("NetworkReady", false)]);
    assert_eq!(answer.status.unwrap().conditions[1].reason, "NoCni");
}

#[tokio::test]
async fn a_condition_of_a_required_backend_is_the_nodes() {
    let [a, b] = two().await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&dir, &[("a", &a), ("b", &b)], "");
    let endpoint = format!("\"{}\" }}", b.endpoint());
    let yaml = yaml.replace(&endpoint, &endpoint.replace(" }", ", required: true }"));
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    b.state().set_condition("RuntimeReady", false, "Broken");
    let answer = status(&crimux, false).await;
    assert_eq!(conditions(&answer)[..2], [("RuntimeReady", false), ("NetworkReady", true)]);
}

#[tokio::test]
async fn status_is_answered_while_backends_hang_or_are_gone() {
    let [a, b] = two().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let complete = status(&crimux, false).await;
    a.fault("Status", Fault::Hang);
    b.stop().await;
    wait_down(&crimux, "b").await;
    let asked = Instant::now();
    let answer = status(&crimux, false).await;
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    assert_eq!(conditions(&answer)[..2], [("RuntimeReady", true), ("NetworkReady", true)]);
    assert_eq!(conditions(&answer)[3], ("Backend/b", false));
    assert_eq!(answer.runtime_handlers, complete.runtime_handlers);
    assert_eq!(answer.features, complete.features);
}

#[tokio::test]
async fn runtime_config_is_that_of_the_default_backend() {
    let [a, b] = two().await;
    b.state().abilities.cgroup_driver = Some(cri::CgroupDriver::Cgroupfs);
    let crimux = Crimux::start(&[("b", &b), ("a", &a)]).await;
    let answer = async || crimux.client().raw(RUNTIME_CONFIG, &[], "").await.unwrap();
    let expected = cri::LinuxRuntimeConfiguration { cgroup_driver: cri::CgroupDriver::Cgroupfs.into() };
    assert_eq!(answer().await.decode::<cri::RuntimeConfigResponse>().linux, Some(expected));
    b.stop().await;
    wait_down(&crimux, "b").await;
    assert_eq!(answer().await.decode::<cri::RuntimeConfigResponse>().linux, Some(expected));
    testkit::eventually(crate::support::SOON, async || crimux.log().contains("different cgroup drivers"))
        .await;
}

#[tokio::test]
async fn runtime_config_is_unimplemented_only_if_the_default_backend_said_so() {
    let [a, b] = two().await;
    a.state().abilities.cgroup_driver = None;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let reply = crimux.client().raw(RUNTIME_CONFIG, &[], "").await.unwrap();
    assert_eq!(reply.code(), Code::Unimplemented);
    a.stop().await;
    wait_down(&crimux, "a").await;
    let reply = crimux.client().raw(RUNTIME_CONFIG, &[], "").await.unwrap();
    assert_eq!(reply.code(), Code::Unimplemented, "it was said, and stays so");
}

#[tokio::test]
async fn runtime_config_that_nobody_could_be_asked_for_is_unavailable() {
    let [a, _] = two().await;
    a.fault("RuntimeConfig", Fault::error(Code::Internal, "not now"));
    let crimux = Crimux::start(&[("a", &a)]).await;
    let reply = crimux.client().raw(RUNTIME_CONFIG, &[], "").await.unwrap();
    assert_eq!(reply.code(), Code::Unavailable, "{}", reply.message());
}

#[tokio::test]
async fn update_runtime_config_reaches_all_and_fails_if_one_fails() {
    let [a, b] = two().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    let network_config = Some(cri::NetworkConfig { pod_cidr: "10.1.0.0/16".into() });
    let runtime_config = Some(cri::RuntimeConfig { network_config });
    let request = cri::UpdateRuntimeConfigRequest { runtime_config };
    let reply = crimux.client().raw_message(UPDATE, &request).await.unwrap();
    assert_eq!(reply.code(), Code::Ok);
    for runtime in [&a, &b] {
        assert_eq!(runtime.state().pod_cidr.as_deref(), Some("10.1.0.0/16"));
        runtime.clear_calls();
    }
    a.fault("UpdateRuntimeConfig", Fault::error(Code::Internal, "no template"));
    let reply = crimux.client().raw_message(UPDATE, &request).await.unwrap();
    assert_eq!((reply.code(), reply.message()), (Code::Internal, "no template".to_owned()));
    assert_eq!(b.calls(UPDATE).len(), 1, "the others are told all the same");
    a.clear_faults();
    b.stop().await;
    wait_down(&crimux, "b").await;
    let reply = crimux.client().raw_message(UPDATE, &request).await.unwrap();
    assert_eq!(reply.code(), Code::Unavailable);
    assert_eq!(a.calls(UPDATE).len(), 2);
}

#[tokio::test]
async fn a_configured_cgroup_driver_answers_for_a_default_backend_that_tells_none() {
    let a = SimRuntime::builder("a").abilities(|abilities| abilities.cgroup_driver = None).start().await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = crate::support::config(&dir, &[("a", &a)], "cgroup_driver: cgroupfs\n");
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    let answer = async || crimux.client().raw(RUNTIME_CONFIG, &[], bytes::Bytes::new()).await.unwrap();
    let linux =
        |driver: cri::CgroupDriver| Some(cri::LinuxRuntimeConfiguration { cgroup_driver: driver.into() });
    let told = answer().await.decode::<cri::RuntimeConfigResponse>().linux;
    assert_eq!(told, linux(cri::CgroupDriver::Cgroupfs));
    // A newer runtime tells its own.
    a.state().abilities.cgroup_driver = Some(cri::CgroupDriver::Systemd);
    a.drop_connections();
    testkit::eventually(crate::support::SOON, async || {
        answer().await.decode::<cri::RuntimeConfigResponse>().linux == linux(cri::CgroupDriver::Systemd)
    })
    .await;
    let differs = async || crimux.log().contains("different cgroup drivers");
    testkit::eventually(crate::support::SOON, differs).await;
}
