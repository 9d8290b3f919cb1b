//! `crimux check --probe`, one finding after the other: certificates, sockets, cgroup drivers, handlers.

use std::path::Path;

use rustls::version::{TLS12, TLS13};
use testkit::runtime::SimRuntime;
use time::{Duration, OffsetDateTime};
use tokio::net::{TcpListener, UnixListener, UnixStream};

use crate::cli::check;
use crate::pki::{Authority, Files, Issued, server};
use crate::support::config;

/// A day as certificates have it, counted from today.
fn in_days(days: i64) -> (i32, u8, u8) {
    let day = OffsetDateTime::now_utc() + Duration::days(days);
    (day.year(), day.month().into(), day.day())
}

/// Serves a runtime over mutual TLS on a port of its own.
pub(crate) async fn over_tls(runtime: &SimRuntime, shown: &Issued, clients: &Authority) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (acceptor, socket) = (server(shown, Some(clients), &[&TLS13, &TLS12]), runtime.socket().to_owned());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, socket) = (acceptor.clone(), socket.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut runtime = UnixStream::connect(socket).await.unwrap();
                // Either side ends it.
                tokio::io::copy_bidirectional(&mut stream, &mut runtime).await.ok();
            });
        }
    });
    port
}

/// Runs doctor with the TLS files `files` against a backend whose certificate is `shown`; returns exit code
/// and findings.
async fn examined(shown: &Issued, clients: &Authority, files: &Files) -> (i32, String) {
    let runtime = SimRuntime::builder("containerd").start().await;
    let port = over_tls(&runtime, shown, clients).await;
    let at = files.dir.path().display();
    let tls = format!("{{ ca: {at}/ca.crt, cert: {at}/client.crt, key: {at}/client.key }}");
    let yaml = format!(
        "default_backend: far\nbackends:\n  far: {{ endpoint: \"https://localhost:{port}\", local: false, tls: {tls}, \
         timeouts: {{ connect: 10s }} }}\n"
    );
    let file = files.path("crimux.yaml");
    std::fs::write(&file, yaml).unwrap();
    let (code, found, errors) = check(&file, &["--probe"], "").await;
    (code, found + &errors)
}

#[track_caller]
fn contains(found: &str, wanted: &[&str]) {
    for wanted in wanted {
        assert!(found.contains(wanted), "{wanted}\n--\n{found}");
    }
}

#[tokio::test]
async fn sound_certificates_are_named_with_their_dates() {
    let authority = Authority::new("house");
    let files = Files::new(&authority.pem(), Some(&authority.issue("crimux", &["crimux"])));
    let (code, found) = examined(&authority.issue("node", &["localhost"]), &authority, &files).await;
    let ours = format!("far: our certificate is valid: {}", files.path("client.crt").display());
    contains(&found, &["ok: far: authority is valid: ", &ours, "ok: far: its certificate is valid: "]);
    contains(&found, &["CN=node, valid from 2020-01-01T00:00:00Z to 2090-01-01T00:00:00Z"]);
    contains(&found, &["is containerd 2.1.0, CRI v1"]);
    assert_eq!(code, 0, "{found}");
}

#[tokio::test]
async fn certificates_that_end_soon_are_warned_about_on_both_sides() {
    let authority = Authority::new("house");
    let soon = |name, host| authority.issue_for(name, &[host], (2020, 1, 1), in_days(20));
    let files = Files::new(&authority.pem(), Some(&soon("crimux", "crimux")));
    let (code, found) = examined(&soon("node", "localhost"), &authority, &files).await;
    contains(&found, &["warning: far: our certificate expires within 30 days: "]);
    contains(&found, &["warning: far: its certificate expires within 30 days: "]);
    assert_eq!(code, 0, "a warning is no failure: {found}");

    let later = authority.issue_for("crimux", &["crimux"], (2020, 1, 1), in_days(40));
    let files = Files::new(&authority.pem(), Some(&later));
    let (_, found) = examined(&soon("node", "localhost"), &authority, &files).await;
    contains(&found, &["ok: far: our certificate is valid: "]);
}

#[tokio::test]
async fn our_certificate_outside_its_time_is_an_error() {
    let authority = Authority::new("house");
    let node = authority.issue("node", &["localhost"]);
    for (from, to, wanted) in [
        ((2020, 1, 1), (2021, 2, 3), "error: far: our certificate has expired: "),
        (in_days(2), in_days(90), "error: far: our certificate is not valid yet: "),
    ] {
        let files = Files::new(&authority.pem(), Some(&authority.issue_for("crimux", &["crimux"], from, to)));
        let (code, found) = examined(&node, &authority, &files).await;
        contains(&found, &[wanted]);
        assert_eq!(code, 1, "{found}");
    }
}

#[tokio::test]
async fn a_backend_whose_certificate_cannot_be_trusted_is_an_error_with_the_reason() {
    let (authority, stranger) = (Authority::new("house"), Authority::new("stranger"));
    let files = Files::new(&authority.pem(), Some(&authority.issue("crimux", &["crimux"])));
    let old = authority.issue_for("node", &["localhost"], (2020, 1, 1), (2021, 2, 3));
    for (shown, wanted) in [
        (stranger.issue("node", &["localhost"]), "its certificate is signed by"),
        (authority.issue("node", &["other"]), "other"),
        (old, "its certificate has been expired since 2021-02-03T00:00:00Z"),
    ] {
        let (code, found) = examined(&shown, &authority, &files).await;
        contains(&found, &["error: far: localhost:", wanted]);
        assert_eq!(code, 1, "{found}");
    }
}

#[tokio::test]
async fn a_missing_certificate_file_is_named() {
    let authority = Authority::new("house");
    let files = Files::new(&authority.pem(), Some(&authority.issue("crimux", &["crimux"])));
    std::fs::remove_file(files.path("client.key")).unwrap();
    let (code, found) = examined(&authority.issue("node", &["localhost"]), &authority, &files).await;
    contains(&found, &[&files.path("client.key").display().to_string(), "No such file"]);
    assert_ne!(code, 0, "{found}");
}

/// Probes a configuration of these lines; returns the exit code and the findings.
async fn probed(dir: &Path, yaml: &str) -> (i32, String) {
    let file = dir.join("crimux.yaml");
    std::fs::write(&file, yaml).unwrap();
    let (code, found, errors) = check(&file, &["--probe"], "").await;
    (code, found + &errors)
}

#[tokio::test]
async fn one_runtime_under_two_names_is_an_error() {
    let a = SimRuntime::builder("containerd").start().await;
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("other.sock");
    std::os::unix::fs::symlink(a.socket(), &link).unwrap();
    let more = format!("backends:\n  twin: {{ endpoint: \"unix://{}\" }}\n", link.display());
    let (code, found) =
        probed(dir.path(), &config(&dir, &[("a", &a)], "").replace("backends:\n", &more)).await;
    contains(&found, &["error: twin: its endpoint is the same socket as that of a: remove one of the two"]);
    assert_eq!(code, 1, "{found}");
}

#[tokio::test]
async fn paths_that_kubelet_takes_for_crio_are_pointed_out() {
    let crio = SimRuntime::builder("cri-o").start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/crio/crio.sock");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(crio.socket(), &path).unwrap();
    let yaml = config(&dir, &[("a", &crio)], "");
    let behind = yaml.replace(&crio.endpoint(), &format!("unix://{}", path.display()));
    let (code, found) = probed(dir.path(), &behind).await;
    contains(
        &found,
        &["note: a: kubelet took stats from cAdvisor as long as its endpoint ended in run/crio/crio.sock"],
    );
    assert_eq!(code, 0, "{found}");

    let own = dir.path().join("own/run/crio/crio.sock");
    let listening = yaml.replace(
        &format!("listen: unix://{}/crimux.sock", dir.path().display()),
        &format!("listen: unix://{}", own.display()),
    );
    let (_, found) = probed(dir.path(), &listening).await;
    contains(&found, &[":1:9: warning: listen: kubelet takes a socket with this name for CRI-O"]);
}

#[tokio::test]
async fn cgroup_drivers_that_agree_are_said_and_a_silent_backend_is_noted() {
    let a = SimRuntime::builder("a").start().await;
    let b = SimRuntime::builder("b").start().await;
    let silent = SimRuntime::builder("silent").abilities(|old| old.cgroup_driver = None).start().await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&dir, &[("a", &a), ("b", &b), ("silent", &silent)], "");
    let (code, found) = probed(dir.path(), &yaml).await;
    contains(&found, &["ok: cgroup driver: systemd for all of 2 local backends"]);
    contains(&found, &["note: silent: it does not tell its cgroup driver"]);
    assert_eq!(code, 0, "{found}");
}

#[tokio::test]
async fn what_is_no_runtime_is_an_error() {
    let a = SimRuntime::builder("a").start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(stream);
        }
    });
    let more = format!("backends:\n  other: {{ endpoint: \"unix://{}\" }}\n", path.display());
    let yaml = config(&dir, &[("a", &a)], "").replace("backends:\n", &more);
    let (code, found) = probed(dir.path(), &yaml).await;
    contains(&found, &["error: other: connected, but it ended the conversation or does not speak gRPC: "]);
    assert!(found.ends_with("crimux.yaml: 1 error, 0 warnings\n"), "{found}");
    assert_eq!(code, 1, "{found}");
}

#[tokio::test]
async fn runtime_classes_in_a_file_are_compared_both_ways() {
    let a = SimRuntime::builder("a").handlers(["a"]).start().await;
    let dir = tempfile::tempdir().unwrap();
    let (file, classes) = (dir.path().join("crimux.yaml"), dir.path().join("classes.yaml"));
    std::fs::write(&file, config(&dir, &[("a", &a)], "  spare: { backend: a, handler: a }\n")).unwrap();
    let class = |name: &str, handler: &str| {
        format!("kind: RuntimeClass\nmetadata: {{ name: {name} }}\nhandler: {handler}\n")
    };
    std::fs::write(&classes, format!("{}---\n{}", class("one", "a"), class("lost", "kata"))).unwrap();
    let asked = ["--runtime-classes", classes.to_str().unwrap()];
    let (code, found, _) = check(&file, &asked, "").await;
    contains(&found, &["error: RuntimeClass lost: its handler \"kata\" is not configured"]);
    contains(&found, &["warning: handlers.spare: no RuntimeClass uses this handler"]);
    assert_eq!(code, 1, "{found}");

    std::fs::write(&classes, format!("{}---\n{}", class("one", "a"), class("two", "spare"))).unwrap();
    let (code, found, _) = check(&file, &asked, "").await;
    contains(&found, &["ok: RuntimeClasses: 2 RuntimeClasses, every one is served"]);
    assert_eq!(code, 0, "{found}");
}

#[tokio::test]
async fn a_default_backend_without_a_cgroup_driver_wants_the_key_and_the_key_must_be_everyones() {
    let old = SimRuntime::builder("containerd").handlers(["old"]).abilities(|old| old.cgroup_driver = None);
    let (old, new) = (old.start().await, SimRuntime::builder("containerd").handlers(["new"]).start().await);
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&dir, &[("old", &old), ("new", &new)], "");
    let (code, found) = probed(dir.path(), &yaml).await;
    contains(&found, &["warning: old: the default backend has no RuntimeConfig", "set cgroup_driver"]);
    assert_eq!(code, 0, "{found}");
    let (code, found) = probed(dir.path(), &(yaml.clone() + "cgroup_driver: systemd\n")).await;
    assert!(!found.contains("has no RuntimeConfig"), "{found}");
    assert_eq!(code, 0, "{found}");
    let (code, found) = probed(dir.path(), &(yaml + "cgroup_driver: cgroupfs\n")).await;
    contains(
        &found,
        &[
            "error: cgroup driver: local backends differ: the key cgroup_driver uses cgroupfs, new uses systemd",
        ],
    );
    assert_eq!(code, 1, "{found}");
}

#[tokio::test]
async fn a_handler_that_is_not_announced_is_an_error_only_of_a_runtime_that_announces_all() {
    let docker = SimRuntime::builder("docker").handlers(["other"]).start().await;
    let containerd = SimRuntime::builder("containerd").handlers(["other"]).start().await;
    let dir = tempfile::tempdir().unwrap();
    for (runtime, wanted, expected) in [
        (&docker, "warning: handlers.x: backend a does not announce the handler \"x\"", 0),
        (&containerd, "error: handlers.x: backend a does not know the handler \"x\"", 1),
    ] {
        let yaml = config(&dir, &[("a", runtime)], "  x: { backend: a, handler: x }\n");
        let (code, found) = probed(dir.path(), &yaml).await;
        contains(&found, &[wanted]);
        assert_eq!(code, expected, "{found}");
    }
}

#[tokio::test]
async fn backends_without_pod_stats_are_named_as_what_keeps_them_from_being_offered() {
    let a = SimRuntime::builder("a").start().await;
    let b = SimRuntime::builder("b").abilities(|old| old.pod_sandbox_stats = false).start().await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&dir, &[("a", &a), ("b", &b)], "");
    let (_, found) = probed(dir.path(), &yaml).await;
    contains(&found, &["note: b: it has no PodSandboxStats and keeps them from being offered"]);
    let (_, found) = probed(dir.path(), &(yaml + "pod_sandbox_stats: union\n")).await;
    contains(&found, &["note: b: it has no PodSandboxStats: under kubelet's gate"]);
}
