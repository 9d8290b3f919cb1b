//! What every real test stands in: three runtimes, crimux in front of them, a client on its socket.
//!
//! The configuration is text as a user would write it, and crimux is the built binary, so that nothing of it
//! is tested that a user would not get.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use testkit::bed::pods::{Pod, Pods};
use testkit::bed::{Bed, Inside};
use testkit::cri::{
    ContainerState, ContainerStatusRequest, PodSandboxState, PodSandboxStatusRequest, StatusRequest,
};
use tonic::Code;

/// The three usual backends and their default runtimes: the newest containerd, and the oldest that is
/// supported.
pub(crate) const BACKENDS: [(&str, &str); 3] =
    [("a", "runc@newest"), ("b", "crun@2.1"), ("g", "runsc@newest")];

/// The usual handlers: handler, backend, the backend's name for it.
pub(crate) const HANDLERS: [(&str, &str, &str); 3] =
    [("runc", "a", "runc"), ("crun", "b", "crun"), ("gvisor", "g", "runsc")];

/// How long things may take that happen soon: a log line, a start, a reload.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Sleeps until it is told to end.
pub(crate) const IDLE: [&str; 3] = ["sh", "-c", "trap 'exit 0' TERM; sleep 86400 & wait"];

/// crimux, running inside a bed.
pub(crate) struct Crimux<'bed> {
    pub(crate) process: Inside<'bed>,
    pub(crate) socket: PathBuf,
    pub(crate) config: PathBuf,
}

/// The usual bed, or `None` after a loud skip.
pub(crate) fn bed() -> Option<Bed> {
    Bed::up_or_skip(&BACKENDS)
}

/// The usual bed with Debian's own containerd, which knows no streaming lists and still speaks `v1alpha2`.
pub(crate) fn old_bed() -> Option<Bed> {
    Bed::up_or_skip(&[("a", "runc@debian"), ("b", "crun@debian"), ("g", "runsc@debian")])
}

/// Writes the usual configuration and starts crimux; returns when it answers.
pub(crate) async fn crimux<'bed>(bed: &'bed Bed, handlers: &[(&str, &str, &str)]) -> Crimux<'bed> {
    crimux_with(bed, &configuration(bed, handlers)).await
}

/// Starts crimux with this configuration; returns when it answers.
pub(crate) async fn crimux_with<'bed>(bed: &'bed Bed, configuration: &str) -> Crimux<'bed> {
    let crimux = start(bed, configuration);
    eventually("crimux serves", async || {
        assert_eq!(crimux.process.exit_code(), None, "crimux ended: {}", crimux.process.log().unwrap());
        let mut pods = Pods::dial(&crimux.socket, Path::new("")).await.ok()?;
        pods.list().await.ok()
    })
    .await;
    crimux
}

/// Starts crimux with this configuration; does not wait.
pub(crate) fn start<'bed>(bed: &'bed Bed, configuration: &str) -> Crimux<'bed> {
    let directory = bed.directory().join("crimux");
    std::fs::create_dir_all(&directory).unwrap();
    let config = directory.join("crimux.yaml");
    std::fs::write(&config, configuration).unwrap();
    let arguments = ["serve", "--config", config.to_str().unwrap()];
    let process = bed.spawn("crimux", Path::new(env!("CARGO_BIN_EXE_crimux")), &arguments).unwrap();
    Crimux { process, socket: directory.join("crimux.sock"), config }
}

/// The configuration with the three usual backends and these handlers.
pub(crate) fn configuration(bed: &Bed, handlers: &[(&str, &str, &str)]) -> String {
    let backends = BACKENDS
        .map(|(name, _)| format!("  {name}: {{ endpoint: \"unix://{}\" }}\n", bed.socket(name).display()));
    let handlers: Vec<_> = handlers
        .iter()
        .map(|(handler, backend, inner)| format!("  {handler}: {{ backend: {backend}, handler: {inner} }}\n"))
        .collect();
    document(bed, &backends.concat(), &handlers.concat())
}

/// The configuration with these entries of `backends` and `handlers`; `a` is the default backend.
pub(crate) fn document(bed: &Bed, backends: &str, handlers: &str) -> String {
    with_default(bed, "a", &format!("backends:\n{backends}handlers:\n{handlers}"))
}

/// The configuration with this default backend and these keys below the common ones.
pub(crate) fn with_default(bed: &Bed, default: &str, keys: &str) -> String {
    let directory = bed.directory().join("crimux");
    let directory = directory.display();
    format!(
        "listen: unix://{directory}/crimux.sock\n\
         state_dir: {directory}/state\n\
         admin: {{ socket: {directory}/admin.sock, http: 127.0.0.1:19440 }}\n\
         default_backend: {default}\n{keys}"
    )
}

/// Runs one idle pod under each of the usual handlers, in their order, each named like its handler.
pub(crate) async fn one_pod_per_handler(pods: &mut Pods) -> Vec<Pod> {
    let mut ran = Vec::new();
    for (handler, _, _) in HANDLERS {
        ran.push(pods.run(handler, handler, &IDLE).await.unwrap());
    }
    ran
}

/// A client of a socket of this bed.
///
/// Waits, as kubelet does, until the runtime is initialized: a containerd that has just booted refuses each
/// call for a moment.
pub(crate) async fn dial(bed: &Bed, socket: &Path) -> Pods {
    let mut pods = Pods::dial(socket, &bed.directory().join("pod-logs")).await.unwrap();
    eventually("the runtime is initialized", async || {
        pods.runtime.status(StatusRequest::default()).await.ok()
    })
    .await;
    pods
}

/// The state that the status of a sandbox tells, or the code of its refusal.
pub(crate) async fn sandbox_state(pods: &mut Pods, id: &str) -> Result<PodSandboxState, Code> {
    let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
    let reply = pods.runtime.pod_sandbox_status(request).await.map_err(|status| status.code())?;
    Ok(reply.into_inner().status.unwrap().state())
}

/// The state that the status of a container tells, or the code of its refusal.
pub(crate) async fn container_state(pods: &mut Pods, id: &str) -> Result<ContainerState, Code> {
    let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    let reply = pods.runtime.container_status(request).await.map_err(|status| status.code())?;
    Ok(reply.into_inner().status.unwrap().state())
}

/// Asks again until there is an answer, and returns it.
///
/// # Panics
/// If there is none within [`SOON`].
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + SOON;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < end, "gave up waiting: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
