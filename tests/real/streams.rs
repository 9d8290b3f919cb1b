//! Exec, attach and port-forward as kubectl uses them: the URL comes from the CRI, a client inside the bed
//! dials it.
//!
//! The client is `stream.py`, which knows nothing of crimux and nothing of CRI runtimes: what it is told by a
//! URL of crimux must be what a runtime's own URL would have told it.

use std::process::Output;

use testkit::bed::pods::{Pod, Pods, container_config};
use testkit::bed::{Bed, Inside};
use testkit::cri::{
    AttachRequest, CreateContainerRequest, ExecRequest, PodSandboxConfig, PortForwardRequest,
    StartContainerRequest,
};
use tonic::Status;

const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/real/stream.py");

/// What is sent to a command and must come back.
const MUCH: &str = "67108864";

/// Hears what is said to it on stdin.
const HEAR: [&str; 3] = ["sh", "-c", "while read -r line; do echo \"heard $line\"; done"];

/// Serves one file over HTTP.
pub(crate) const SERVE: [&str; 6] = ["httpd", "-f", "-p", "80", "-h", "/www"];

/// Returns the URL for a command in a container.
pub(crate) async fn exec_url(
    pods: &mut Pods,
    container: &str,
    command: &[&str],
    tty: bool,
) -> Result<String, Status> {
    let request = ExecRequest {
        container_id: container.to_owned(),
        cmd: command.iter().map(|&word| word.to_owned()).collect(),
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    };
    Ok(pods.runtime.exec(request).await?.into_inner().url)
}

/// Returns the URL for what a container reads and writes.
async fn attach_url(pods: &mut Pods, container: &str) -> String {
    let container_id = container.to_owned();
    let request = AttachRequest { container_id, stdin: true, tty: false, stdout: true, stderr: true };
    pods.runtime.attach(request).await.unwrap().into_inner().url
}

/// Returns the URL for the ports of a pod.
async fn forward_url(pods: &mut Pods, sandbox: &str) -> String {
    let request = PortForwardRequest { pod_sandbox_id: sandbox.to_owned(), port: vec![80] };
    pods.runtime.port_forward(request).await.unwrap().into_inner().url
}

/// Runs the client to its end inside the bed.
pub(crate) fn client(bed: &Bed, arguments: &[&str]) -> Output {
    bed.run(&[&["python3", CLIENT], arguments].concat()).unwrap()
}

/// What the client printed.
///
/// # Panics
/// If it failed.
pub(crate) fn said(bed: &Bed, arguments: &[&str]) -> String {
    let output = client(bed, arguments);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "stream.py {}: {stdout}{stderr}", arguments[0]);
    stdout.into_owned()
}

/// Opens a stream to a command that says something and then waits, and leaves it open.
pub(crate) async fn hold<'bed>(bed: &'bed Bed, pods: &mut Pods, container: &str) -> Inside<'bed> {
    let url = exec_url(pods, container, &["sh", "-c", "echo here; sleep 600"], false).await.unwrap();
    let holder = bed.spawn("holder", "python3".as_ref(), &[CLIENT, "hold", &url]).unwrap();
    super::world::eventually("the stream is open", async || {
        holder.log().ok()?.contains("open").then_some(())
    })
    .await;
    holder
}

/// The port of a URL.
pub(crate) fn port(url: &str) -> u16 {
    let authority = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
    authority.rsplit(':').next().unwrap().parse().unwrap()
}

/// Exec without and with a terminal, attach and port-forward, under a handler. Returns a URL of each, used
/// up.
pub(crate) async fn every_kind(bed: &Bed, pods: &mut Pods, handler: &str) -> [String; 4] {
    let pod = pods.run("web", handler, &SERVE).await.unwrap();
    let exec = exec_url(pods, &pod.container, &["head", "-c", MUCH], false).await.unwrap();
    assert_eq!(said(bed, &["echo", &exec, MUCH]), format!("{MUCH} bytes came back\n"));

    let shell = "until [ \"$(stty size 2>/dev/null)\" = '40 100' ]; do sleep 0.1; done; read -r line; tty; echo \"got $line\"";
    let tty = exec_url(pods, &pod.container, &["sh", "-c", shell], true).await.unwrap();
    let typed = said(bed, &["run", &tty, "typed\n", "100", "40"]);
    // A terminal shows what is typed, and ends its lines as terminals do.
    assert_eq!(typed, "typed\r\n/dev/pts/0\r\ngot typed\r\n");

    let forward = forward_url(pods, &pod.sandbox).await;
    assert_eq!(said(bed, &["get", &forward, "80", "/index.html"]), "hello from busybox httpd\n");

    let attach = Box::pin(attached(bed, pods, &pod)).await;
    pods.remove(&pod.sandbox).await.unwrap();
    [exec, tty, forward, attach]
}

/// Attaches to a second container of the pod, says something and is heard.
async fn attached(bed: &Bed, pods: &mut Pods, pod: &Pod) -> String {
    let hearer = Box::pin(hearing_container(pods, &pod.sandbox, &pod.config)).await;
    let attach = attach_url(pods, &hearer).await;
    // The container is never done, so the client is, once it has heard.
    let heard = said(bed, &["say", &attach, "good morning\n", "heard good morning\n"]);
    assert_eq!(heard, "heard good morning\n");
    attach
}

async fn hearing_container(pods: &mut Pods, sandbox: &str, config: &PodSandboxConfig) -> String {
    let mut container = container_config(config, &HEAR);
    container.stdin = true;
    "hearer".clone_into(&mut container.metadata.as_mut().unwrap().name);
    "hearer.log".clone_into(&mut container.log_path);
    let request = CreateContainerRequest {
        pod_sandbox_id: sandbox.to_owned(),
        config: Some(container),
        sandbox_config: Some(config.clone()),
    };
    let container_id = pods.runtime.create_container(request).await.unwrap().into_inner().container_id;
    let start = StartContainerRequest { container_id: container_id.clone() };
    pods.runtime.start_container(start).await.unwrap();
    container_id
}
