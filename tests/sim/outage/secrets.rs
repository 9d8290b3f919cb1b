//! What must never be written down: environments of containers, and credentials of registries.

use testkit::client::{container_config, image_spec, sandbox_config};
use testkit::cri::{
    AuthConfig, ContainerStatusRequest, ExecSyncRequest, PodSandboxStatusRequest, PullImageRequest,
    StatusRequest,
};

use super::state::holds;
use super::{World, containers, sandboxes};
use crate::support::SOON;

const SECRETS: [&str; 5] =
    ["env-value-5f1d", "password-77aa", "user-name-90c1", "token-3e3e", "exec-data-b2b2"];

#[tokio::test]
async fn no_secret_reaches_state_logs_or_metrics() {
    let world = World::with(|yaml| yaml.replace("level: debug", "level: trace")).await;
    let (mut runtime, mut images) = (world.client.runtime(), world.client.images());
    let auth = AuthConfig {
        username: SECRETS[2].to_owned(),
        password: SECRETS[1].to_owned(),
        identity_token: SECRETS[3].to_owned(),
        ..Default::default()
    };
    let run = sandbox_config("secret").run("b");
    let config = run.config.clone().unwrap();
    let sandbox = runtime.run_pod_sandbox(run).await.unwrap().into_inner().pod_sandbox_id;
    let pull = PullImageRequest {
        image: Some(image_spec("registry.example/private:1")),
        auth: Some(auth),
        sandbox_config: Some(config.clone()),
    };
    let image = images.pull_image(pull).await.unwrap().into_inner().image_ref;
    let create = container_config("main", &image).env("SECRET", SECRETS[0]).create_in(&sandbox, &config);
    let container = runtime.create_container(create).await.unwrap().into_inner().container_id;
    let start = testkit::cri::StartContainerRequest { container_id: container.clone() };
    runtime.start_container(start).await.unwrap();
    let cmd = vec![SECRETS[4].to_owned()];
    let exec = ExecSyncRequest { container_id: container.clone(), cmd, timeout: 1 };
    runtime.exec_sync(exec).await.unwrap();
    for verbose in [false, true] {
        let status = ContainerStatusRequest { container_id: container.clone(), verbose };
        runtime.container_status(status).await.unwrap();
        let status = PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose };
        runtime.pod_sandbox_status(status).await.unwrap();
        runtime.status(StatusRequest { verbose }).await.unwrap();
    }
    sandboxes(&world.client, None).await.unwrap();
    containers(&world.client, None).await.unwrap();

    let state = world.crimux.dir.path().join("state");
    testkit::eventually(SOON, async || holds(&state, &container)).await;
    world.crimux.signal(nix::sys::signal::Signal::SIGHUP);
    let (_, metrics) = world.crimux.get("/metrics").await.unwrap();
    assert!(holds(world.crimux.dir.path(), "PullImage"), "the log is at trace level");
    for secret in SECRETS {
        assert!(!holds(&state, secret), "{secret} is in the state");
        assert!(!world.crimux.log().contains(secret), "{secret} is in the log");
        assert!(!metrics.contains(secret), "{secret} is in the metrics");
    }
}
