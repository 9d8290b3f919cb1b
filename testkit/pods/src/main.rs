//! Runs, looks into and removes pods on a CRI socket, from a shell.
//!
//! `dev/quickstart` and a person trying things out need the few verbs of kubelet's work without kubelet or
//! crictl. It talks to any CRI socket, crimux's or a runtime's own, and knows nothing of either.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crimux::cri;

use client::Client;
use cri::PodSandboxState;

mod client;
mod requests;

const USAGE: &str = "\
usage: pods SOCKET VERB
  run NAME [HANDLER]       run a busybox pod; prints the IDs of its sandbox and its container
  exec CONTAINER CMD...    run a command in a container; its exit code is this one's
  list                     one line per pod: ID, name, handler, state
  remove SANDBOX|all       stop and remove
Logs are written to the directory `pod-logs` beside the socket.";

/// Sleeps until told to end: as PID 1 a plain `sleep` would ignore the request.
const IDLE: [&str; 3] = ["sh", "-c", "trap 'exit 0' TERM; sleep 86400 & wait"];

type Failure = Box<dyn std::error::Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match Box::pin(act(&words)).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pods: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn act(words: &[&str]) -> Result<ExitCode, Failure> {
    let [socket, verb, rest @ ..] = words else { return Ok(usage()) };
    let socket = Path::new(socket);
    let logs = socket.parent().map(PathBuf::from).unwrap_or_default().join("pod-logs");
    let client = Client::dial(socket).await.map_err(|error| format!("{}: {error}", socket.display()))?;
    match (*verb, rest) {
        ("run", [name]) => run(&client, &logs, name, "").await?,
        ("run", [name, handler]) => run(&client, &logs, name, handler).await?,
        ("exec", [container, command @ ..]) if !command.is_empty() => {
            let response = client.call(&requests::exec(container, command)).await?;
            print!("{}", String::from_utf8_lossy(&response.stdout));
            eprint!("{}", String::from_utf8_lossy(&response.stderr));
            return Ok(u8::try_from(response.exit_code).map_or(ExitCode::FAILURE, ExitCode::from));
        }
        ("list", []) => list(&client).await?,
        ("remove", ["all"]) => {
            for pod in client.call(&requests::list()).await?.items {
                remove(&client, &pod.id).await?;
            }
        }
        ("remove", [sandbox]) => remove(&client, sandbox).await?,
        _ => return Ok(usage()),
    }
    Ok(ExitCode::SUCCESS)
}

/// Sandbox first, then the pull for that sandbox, then the container, as kubelet does.
async fn run(client: &Client, logs: &Path, name: &str, handler: &str) -> Result<(), Failure> {
    let config = requests::sandbox_config(name, logs);
    // kubelet makes it, and containerd expects it.
    std::fs::create_dir_all(&config.log_directory)?;
    let sandbox = client.call(&requests::run(&config, handler)).await?.pod_sandbox_id;
    client.call(&requests::pull(&config)).await?;
    let container = client.call(&requests::create(&sandbox, &config, &IDLE)).await?.container_id;
    client.call(&requests::start(&container)).await?;
    println!("{sandbox} {container}");
    Ok(())
}

async fn list(client: &Client) -> Result<(), Failure> {
    for pod in client.call(&requests::list()).await?.items {
        let name = pod.metadata.map(|metadata| metadata.name).unwrap_or_default();
        let handler = if pod.runtime_handler.is_empty() { "\"\"" } else { &pod.runtime_handler };
        let state = if pod.state == PodSandboxState::SandboxReady as i32 { "ready" } else { "not ready" };
        println!("{:<64}  {name:<12}  {handler:<8}  {state}", pod.id);
    }
    Ok(())
}

async fn remove(client: &Client, sandbox: &str) -> Result<(), Failure> {
    client.call(&requests::stop(sandbox)).await?;
    client.call(&requests::remove(sandbox)).await?;
    Ok(())
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}
