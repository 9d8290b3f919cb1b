//! Moving pods one by one: a split for pods without a RuntimeClass, one pod that an operator aims, a drain
//! that says what is left; and the names that a shell completes meanwhile.

use std::process::{Command, Stdio};

use serde_json::{Value, json};
use testkit::client::sandbox_config;
use testkit::runtime::SimRuntime;
use testkit::{cri, eventually};

use crate::cli::{crimux as run, on, told};
use crate::support::{Crimux, SOON, config};

/// Two runtimes behind a crimux with these additions to its configuration.
async fn two(more: &str) -> (SimRuntime, SimRuntime, Crimux) {
    let a = SimRuntime::builder("a").handlers(["runc"]).start().await;
    let b = SimRuntime::builder("b").handlers(["runc"]).start().await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&dir, &[("a", &a), ("b", &b)], more);
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    (a, b, crimux)
}

const SHARES: &str =
    "  runc: { split: [ { backend: a, handler: runc }, { backend: b, handler: runc, weight: 0 } ] }\n";

/// Creates a sandbox and returns where it is.
async fn place(
    (a, b, crimux): &(SimRuntime, SimRuntime, Crimux),
    request: cri::RunPodSandboxRequest,
) -> &'static str {
    let id = crimux.client().runtime().run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id;
    match (a.state().sandbox(&id).is_some(), b.state().sandbox(&id).is_some()) {
        (true, false) => "a",
        (false, true) => "b",
        other => panic!("{other:?}"),
    }
}

async fn next(crimux: &Crimux, pod: &str, backend: &str) -> (i32, String, String) {
    on(crimux, &["route", "--next", pod, backend], "").await
}

#[tokio::test]
async fn pods_without_a_runtime_class_are_shared_by_the_default_split() {
    let world = two("default_split: [ { backend: a, weight: 1 }, { backend: b, weight: 3 } ]\n").await;
    let mut placed = Vec::new();
    for number in 0..24 {
        placed.push(place(&world, sandbox_config(&format!("pod-{number}")).run("")).await);
    }
    let to_b = placed.iter().filter(|backend| **backend == "b").count();
    assert!((12..24).contains(&to_b), "three quarters: {placed:?}");
    let retried = place(&world, sandbox_config("pod-0").attempt(1).run("")).await;
    assert_eq!(retried, placed[0], "the uid decides");
    let (_, json, _) = on(&world.2, &["route", "", "-o", "json"], "").await;
    let route: Value = serde_json::from_str(&json).unwrap();
    let shares: Vec<_> = route["targets"].as_array().unwrap().iter().map(|t| t["share"].clone()).collect();
    assert_eq!(shares, [json!(0.25), json!(0.75)]);
    let (_, json, _) = on(&world.2, &["ps", "--backend", "b", "-o", "json"], "").await;
    let pods: Value = serde_json::from_str(&json).unwrap();
    assert!(pods["pods"].as_array().unwrap().iter().all(|pod| pod["handler"] == ""), "{pods}");
    // Only a split leaves a drained default backend an alternative.
    assert_eq!(on(&world.2, &["backend", "drain", "a"], "").await.0, 1, "handler a leads to it alone");
    assert_eq!(on(&world.2, &["backend", "drain", "a", "--force"], "").await.0, 0);
    for number in 24..30 {
        assert_eq!(place(&world, sandbox_config(&format!("pod-{number}")).run("")).await, "b");
    }
}

#[tokio::test]
async fn an_aimed_pod_goes_where_no_weight_leads_and_stays_there() {
    let world = two(SHARES).await;
    let crimux = &world.2;
    assert_eq!(place(&world, sandbox_config("before").run("runc")).await, "a");
    let (code, text, error) = next(crimux, "default/web-0", "b").await;
    assert!(
        code == 0 && text.contains("next sandbox of pod default/web-0 goes to backend b"),
        "{text}{error}"
    );
    assert!(on(crimux, &["route"], "").await.1.contains("next sandbox of pod default/web-0: b (for "));
    assert_eq!(place(&world, sandbox_config("web-1").run("runc")).await, "a", "another pod");
    assert_eq!(place(&world, sandbox_config("web-0").run("runc")).await, "b");
    assert!(!on(crimux, &["route"], "").await.1.contains("next sandbox"), "it was met");
    assert_eq!(place(&world, sandbox_config("web-0").attempt(1).run("runc")).await, "b", "the same pod");
    assert_eq!(place(&world, sandbox_config("web-0").uid("new").run("runc")).await, "a", "the pod after it");
    // A pod without a RuntimeClass goes to the backend's own default.
    assert_eq!(next(crimux, "default/plain", "b").await.0, 0);
    assert_eq!(place(&world, sandbox_config("plain").run("")).await, "b");
    let (_, json, _) = on(crimux, &["route", "-o", "json"], "").await;
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["aimed"], json!([]));
}

#[tokio::test]
async fn an_aim_that_cannot_be_met_is_refused_with_the_reason() {
    let world = two(SHARES).await;
    let crimux = &world.2;
    place(&world, sandbox_config("only-a").run("a")).await;
    for (pod, backend, part) in [
        ("default/only-a", "b", "handler a, which does not lead to backend b; give it a share there"),
        ("only-a", "b", "expected NAMESPACE/NAME"),
        ("default/web-0", "c", "there is no backend \"c\""),
    ] {
        let (code, _, error) = next(crimux, pod, backend).await;
        assert!(code == 1 && error.contains(part), "{pod} {backend}: {error}");
    }
    assert_eq!(on(crimux, &["backend", "drain", "b", "--force"], "").await.0, 0);
    let (code, _, error) = next(crimux, "default/web-0", "b").await;
    assert!(code == 1 && error.contains("draining"), "{error}");
    assert_eq!(on(crimux, &["backend", "undrain", "b"], "").await.0, 0);
    assert_eq!(next(crimux, "default/web-0", "b").await.0, 0);
    assert!(next(crimux, "default/web-0", "none").await.1.contains("no longer aimed"));
    assert_eq!(place(&world, sandbox_config("web-0").run("runc")).await, "a");
}

#[tokio::test]
async fn a_drain_that_waits_names_what_is_left_and_ends_when_nothing_is() {
    let world = two("default_split: [ { backend: a }, { backend: b, weight: 0 } ]\n").await;
    let (_, b, crimux) = &world;
    let request = sandbox_config("web-0").run("b");
    let reply = crimux.client().runtime().run_pod_sandbox(request).await.unwrap().into_inner();
    let (code, text, error) = on(crimux, &["backend", "drain", "b", "--force", "--wait=1ms"], "").await;
    assert!(code == 1 && error.contains("not empty yet"), "{text}{error}");
    assert!(text.contains("left on backend b: 1 sandboxes, 0 containers"), "{text}");
    assert!(text.contains("default/web-0: it runs; recreate it"), "{text}");
    b.state().stop_sandbox(&reply.pod_sandbox_id).unwrap();
    let (_, text, _) = on(crimux, &["backend", "drain", "b", "--force", "--wait=1ms"], "").await;
    assert!(text.contains("default/web-0: it has ended; kubelet removes it"), "{text}");
    let waiting = on(crimux, &["backend", "drain", "b", "--force", "--wait"], "");
    let removing = async {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: reply.pod_sandbox_id.clone() };
        crimux.client().runtime().remove_pod_sandbox(request).await.unwrap();
    };
    let ((code, text, error), ()) = tokio::join!(waiting, removing);
    assert!(code == 0 && text.ends_with("nothing is left on backend b\n"), "{text}{error}");
}

/// Completes a line in bash as a user does who types it.
async fn complete(crimux: &Crimux, words: &[&str]) -> Vec<String> {
    let (_, script, _) = told(&run(&["completions", "bash"], "").await);
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_crimux"));
    let socket = crimux.dir.path().join("admin.sock");
    // The names come from this crimux, not from one of the machine's.
    let script = format!(
        "{script}\ncrimux() {{ '{}' \"$@\" --socket '{}'; }}\nCOMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1))\n\
         _crimux_with_names crimux \"${{@: -1}}\" \"${{@: -2:1}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
        program.display(),
        socket.display()
    );
    let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
    let run = move || {
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-c", &script, "bash"]).args(words).stdin(Stdio::null()).output().unwrap()
    };
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_shell_completes_the_names_of_backends_handlers_and_pods() {
    let world = two(SHARES).await;
    place(&world, sandbox_config("web-0").run("runc")).await;
    let crimux = &world.2;
    for (words, offered) in [
        (&["crimux", "backend", "drain", ""][..], &["a", "b"][..]),
        (&["crimux", "backend", "drain", "--force", "b"], &["b"]),
        (&["crimux", "ps", "--backend", ""], &["a", "b"]),
        (&["crimux", "ps", "--handler", "r"], &["runc"]),
        (&["crimux", "ps", "-n", ""], &["default"]),
        (&["crimux", "route", ""], &["a", "b", "runc"]),
        (&["crimux", "route", "--next", ""], &["default/web-0"]),
        (&["crimux", "route", "--next", "default/web-0", ""], &["a", "b"]),
        (&["crimux", "back"], &["backend"]),
        (&["crimux", "gener"], &[]),
    ] {
        assert_eq!(complete(crimux, words).await, offered, "{words:?}");
    }
    assert!(complete(crimux, &["crimux", "backend", "drain", "--f"]).await.contains(&"--force".to_owned()));
    // Without a crimux the names are those of the file.
    let file = crimux.dir.path().join("crimux.yaml");
    let gone = crimux.dir.path().join("gone.sock");
    let arguments =
        ["names", "handlers", "--config", file.to_str().unwrap(), "--socket", gone.to_str().unwrap()];
    assert_eq!(told(&run(&arguments, "").await), (0, "a\nb\nrunc\n".to_owned(), String::new()));
}

#[tokio::test]
async fn an_aim_is_taken_by_whoever_comes_first_and_survives_a_backend_that_is_away() {
    let world = two(SHARES).await;
    let (_, b, crimux) = &world;
    b.stop().await;
    eventually(SOON, async || on(crimux, &["status", "--check"], "").await.0 == 1).await;
    let (code, _, warning) = next(crimux, "default/web-0", "b").await;
    assert!(code == 0 && warning.contains("backend b is down"), "{warning}");
    let refused = crimux.client().runtime().run_pod_sandbox(sandbox_config("web-0").run("runc")).await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::Unavailable, "it goes nowhere else meanwhile");
}
