//! What `dev/release` made, tried with that folder alone. `CRIMUX_RELEASE` names it; `dev/test package` makes
//! one.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use testkit::client::sandbox_config;
use testkit::cri::{ListPodSandboxRequest, VersionRequest};
use testkit::runtime::SimRuntime;
use testkit::{Client, eventually};

use super::debian::{CONFIG, Machine};
use super::{read, scratch, text, tool, write};

/// How long an emulated crimux may take to serve on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const FLAGS: &str = "var/lib/kubelet/kubeadm-flags.env";
const THEIRS: &str =
    "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///run/containerd/containerd.sock\"\n";

/// systemd and `nsenter` of the node, as the script in the image meets them: crimux of the node runs in the
/// node's root.
const NODE: &str = r#"#!/bin/sh
printf '%s\n' "$*" >> /host/asked
case "$1 ${2:-}" in
    systemctl*) ;;
    *" ps") echo '[]' ;;
    *) exec busybox chroot /host "$@" ;;
esac
"#;

/// The folder of a release, or `None` after saying so.
pub(super) fn release() -> Option<PathBuf> {
    let folder = std::env::var_os("CRIMUX_RELEASE").map(PathBuf::from);
    if folder.is_none() {
        testkit::bed::skipped("CRIMUX_RELEASE names no release (dev/test package)");
    }
    folder
}

/// The one file of the release whose name has all of `parts`, if it was made.
pub(super) fn file(release: &Path, parts: &[&str]) -> Option<PathBuf> {
    let names = fs::read_dir(release).unwrap().map(|entry| entry.unwrap().path());
    let fits =
        |path: &PathBuf| parts.iter().all(|part| path.file_name().unwrap().to_str().unwrap().contains(part));
    let found = names.filter(fits).collect::<Vec<_>>();
    assert!(found.len() < 2, "{found:?}");
    found.into_iter().next()
}

/// What Debian and Go call this machine's architecture.
pub(super) fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

#[track_caller]
fn succeed(command: &mut Command) -> String {
    let output: Output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn unpack(archive: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    succeed(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(to));
}

/// Runs a program in a root of its own, or answers `None` where that takes a right that the test lacks.
fn in_root(root: &Path, program: &[&str]) -> Option<Command> {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        testkit::bed::skipped("only root can enter a root of its own");
        return None;
    }
    // By its path, because it is looked up in the PATH that the program in the root gets.
    let Some(chroot) =
        ["/usr/sbin/chroot", "/usr/bin/chroot"].into_iter().find(|path| Path::new(path).is_file())
    else {
        testkit::bed::skipped("chroot is not installed (Debian package coreutils)");
        return None;
    };
    let mut command = Command::new(chroot);
    command.arg(root).args(program).env_clear().env("PATH", "/bin");
    Some(command)
}

/// A root with the released binary at `/crimux` and nothing else.
fn empty_root(name: &str) -> Option<PathBuf> {
    let archive = file(&release()?, &["-linux-", architecture(), ".tar.gz"]).unwrap();
    let (root, unpacked) = (scratch(name), scratch(&format!("{name}-tar")));
    unpack(&archive, &unpacked);
    let top = fs::read_dir(&unpacked).unwrap().next().unwrap().unwrap().path();
    fs::rename(top.join("usr/bin/crimux"), root.join("crimux")).unwrap();
    fs::remove_dir_all(unpacked).unwrap();
    Some(root)
}

#[test]
fn the_sums_are_those_of_the_files() {
    let Some(release) = release() else { return };
    let listed = fs::read_to_string(release.join("SHA256SUMS")).unwrap().lines().count();
    assert_eq!(listed + 1, fs::read_dir(&release).unwrap().count(), "a file without a sum");
    succeed(Command::new("sha256sum").args(["--check", "--strict", "SHA256SUMS"]).current_dir(release));
}

#[test]
fn the_binary_runs_in_an_empty_root_and_finds_a_host_by_its_name() {
    let Some(root) = empty_root("empty") else { return };
    let Some(mut version) = in_root(&root, &["/crimux", "--version"]) else { return };
    assert!(succeed(&mut version).contains(env!("CARGO_PKG_VERSION")));

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    write(&root.join("etc/hosts"), "127.0.0.1 localhost node-7.example\n");
    // A module of the C library that no static program can load must not matter.
    write(&root.join("etc/nsswitch.conf"), "hosts: files mymachines resolve [!UNAVAIL=return] dns\n");
    write(&root.join("etc/resolv.conf"), "nameserver 127.0.0.1\n");
    let config = format!(
        "default_backend: a\nbackends:\n  a: {{ endpoint: \"https://node-7.example:{port}\", local: false, tls: {{ ca: ca.crt }} }}\n"
    );
    write(&root.join("config.yaml"), &config);
    let authority = rcgen::generate_simple_self_signed(vec!["authority".into()]).unwrap();
    write(&root.join("ca.crt"), &authority.cert.pem());
    let probing = in_root(&root, &["/crimux", "check", "--config", "/config.yaml", "--probe"])
        .unwrap()
        .output()
        .unwrap();
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_ok(), "nobody came to node-7.example:{port}: {}", text(&probing));
    fs::remove_dir_all(root).unwrap();
}

/// crimux of the other architecture, unpacked from the release, and the emulator that runs it. It is killed
/// with this value.
struct Emulated {
    emulator: PathBuf,
    root: PathBuf,
    serving: Option<Child>,
}

impl Emulated {
    /// `None`, after saying so, where the release has no other architecture or nothing emulates it.
    fn unpack(name: &str) -> Option<Self> {
        let release = release()?;
        let (other, emulator) = if architecture() == "amd64" {
            ("arm64", "qemu-aarch64-static")
        } else {
            ("amd64", "qemu-x86_64-static")
        };
        let Some(archive) = file(&release, &["-linux-", other, ".tar.gz"]) else {
            testkit::bed::skipped(&format!("the release was made without {other}"));
            return None;
        };
        let emulator = tool(emulator, "qemu-user-static")?.get_program().into();
        let root = scratch(name);
        unpack(&archive, &root);
        Some(Self { emulator, root, serving: None })
    }

    fn crimux(&self, arguments: &[&str]) -> Command {
        let top = self.root.join(format!("crimux-{}", env!("CARGO_PKG_VERSION")));
        let mut command = Command::new(&self.emulator);
        command.arg(top.join("usr/bin/crimux")).args(arguments);
        command
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        if let Some(mut serving) = self.serving.take() {
            let _ = serving.kill();
            let _ = serving.wait();
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_binary_of_the_other_architecture_checks_a_configuration_and_serves() {
    let Some(mut emulated) = Emulated::unpack("other-architecture") else { return };
    let version = succeed(&mut emulated.crimux(&["--version"]));
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");

    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let runtime = SimRuntime::builder("containerd").unix(path("containerd.sock")).start().await;
    let config = format!(
        "listen: unix://{0}/crimux.sock\nstate_dir: {0}/state\nadmin: {{ socket: {0}/admin.sock, http: off }}\n\
         default_backend: a\nbackends:\n  a: {{ endpoint: \"{1}\" }}\n",
        directory.path().display(),
        runtime.endpoint()
    );
    write(&path("config.yaml"), &config);
    let file = path("config.yaml").display().to_string();
    succeed(&mut emulated.crimux(&["check", "--config", &file, "--probe"]));

    let log = fs::File::create(path("log")).unwrap();
    let mut serve = emulated.crimux(&["serve", "--config", &file]);
    emulated.serving = Some(serve.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    let client = Client::unix(path("crimux.sock"));
    let version = async || {
        let request = VersionRequest { version: "0.1.0".into() };
        client.runtime().version(request).await.ok().map(|reply| reply.into_inner().runtime_name)
    };
    eventually(PATIENCE, async || version().await.as_deref() == Some("containerd")).await;
    let request = sandbox_config("web").run("");
    let pod = client.runtime().run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id;
    let listed = client.runtime().list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().items.iter().map(|item| &item.id).collect::<Vec<_>>(), [&pod]);
    let admin = path("admin.sock").display().to_string();
    let status = succeed(&mut emulated.crimux(&["status", "--socket", &admin]));
    assert!(status.contains("ready"), "{status}");
}

/// The JSON file of an unpacked image that a descriptor names.
fn blob(layout: &Path, descriptor: &serde_json::Value) -> PathBuf {
    layout.join("blobs").join(descriptor["digest"].as_str().unwrap().replace(':', "/"))
}

/// The root of this machine's platform in the node image, or `None` where there is no release with one.
fn image_root(name: &str) -> Option<PathBuf> {
    let Some(archive) = file(&release()?, &["crimux-node-", ".oci.tar"]) else {
        testkit::bed::skipped("the release was made without the node image");
        return None;
    };
    let (layout, root) = (scratch(&format!("{name}-layout")), scratch(name));
    unpack(&archive, &layout);
    let json = |path: PathBuf| serde_json::from_slice::<serde_json::Value>(&fs::read(path).unwrap()).unwrap();
    let named = &json(layout.join("index.json"))["manifests"][0];
    let mut manifest = json(blob(&layout, named));
    if let Some(platforms) = manifest["manifests"].as_array() {
        let fits =
            |entry: &&serde_json::Value| entry["platform"]["architecture"].as_str() == Some(architecture());
        manifest = json(blob(&layout, platforms.iter().find(fits).unwrap()));
    }
    for layer in manifest["layers"].as_array().unwrap() {
        unpack(&blob(&layout, layer), &root);
    }
    fs::remove_dir_all(layout).unwrap();
    Some(root)
}

#[test]
fn the_image_is_one_that_skopeo_reads() {
    let Some(release) = release() else { return };
    let Some(archive) = file(&release, &["crimux-node-", ".oci.tar"]) else { return };
    let Some(mut skopeo) = tool("skopeo", "skopeo") else { return };
    let inspected = succeed(skopeo.arg("inspect").arg(format!("oci-archive:{}", archive.display())));
    assert!(inspected.contains(architecture()) && inspected.contains("linux"), "{inspected}");
}

#[test]
fn the_script_in_the_image_installs_crimux_on_a_node_and_removes_it() {
    let Some(image) = image_root("image") else { return };
    let node = image.join("host");
    let put = |path: &str, contents: &str| write(&node.join(path), contents);
    put(FLAGS, THEIRS);
    put("var/lib/kubelet/config.yaml", "kind: KubeletConfiguration\n");
    for file in ["config.yaml", "crimux-node.sh"] {
        let contents = read(&format!("deploy/kubernetes/base/{file}"));
        write(&image.join("etc/crimux-node").join(file), &contents);
    }
    // A container has it from its runtime.
    write(&image.join("dev/null"), "");
    write(&image.join("node"), NODE);
    fs::set_permissions(image.join("node"), fs::Permissions::from_mode(0o755)).unwrap();
    let run = |verb: &str| {
        let mut command = in_root(&image, &["/bin/sh", "/etc/crimux-node/crimux-node.sh", verb])?;
        command.env("CRIMUX_HOST_RUN", "/node").envs([
            ("CRIMUX_TRIES", "1"),
            ("CRIMUX_SETTLE", "1"),
            ("CRIMUX_PAUSE", "0"),
        ]);
        Some(succeed(&mut command))
    };
    if run("install").is_none() {
        return;
    }
    assert!(fs::read_to_string(node.join(FLAGS)).unwrap().contains("unix:///run/crimux/crimux.sock"));
    assert!(node.join("opt/crimux/current/crimux").is_file());
    let asked = fs::read_to_string(node.join("asked")).unwrap();
    assert!(
        asked.contains("systemctl restart crimux.service")
            && asked.contains("systemctl restart kubelet.service")
    );
    run("ready");
    run("remove");
    assert_eq!(fs::read_to_string(node.join(FLAGS)).unwrap(), THEIRS);
    for gone in ["opt/crimux", "etc/crimux", "etc/systemd/system/crimux.service"] {
        assert!(!node.join(gone).exists(), "{gone}");
    }
    fs::remove_dir_all(image).unwrap();
}

#[test]
fn the_chart_and_the_manifests_of_the_release_render_by_themselves() {
    let Some(release) = release() else { return };
    if let Some(mut helm) = tool("helm", "none; dev/tools/build helm") {
        let chart = file(&release, &["crimux-chart-", ".tgz"]).unwrap();
        let image = "image.repository=registry.test/crimux-node";
        let rendered = succeed(
            helm.args(["template", "crimux", "--kube-version", super::helm::KUBERNETES, "--set", image])
                .arg(chart),
        );
        assert!(rendered.contains(&format!("registry.test/crimux-node:{}", env!("CARGO_PKG_VERSION"))));
    }
    let Some(mut kubectl) = tool("kubectl", "kubernetes-client") else { return };
    let unpacked = scratch("manifests");
    unpack(&file(&release, &["-kubernetes.tar.gz"]).unwrap(), &unpacked);
    let top = fs::read_dir(&unpacked).unwrap().next().unwrap().unwrap().path();
    write(&top.join("base/image.env"), "image=registry.test/crimux-node:1\n");
    let rendered = succeed(kubectl.arg("kustomize").arg(top.join("example")));
    assert_eq!(rendered.matches("image: registry.test/crimux-node:1").count(), 2, "{rendered}");
    fs::remove_dir_all(unpacked).unwrap();
}

#[test]
fn lintian_finds_nothing() {
    let Some(package) = std::env::var_os("CRIMUX_DEB") else {
        testkit::bed::skipped("CRIMUX_DEB names no package (dev/test package)");
        return;
    };
    let Some(mut lintian) = tool("lintian", "lintian") else { return };
    let output = lintian.args(["--fail-on", "error,warning", "--allow-root"]).arg(package).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn the_package_with_crimux_in_it_is_installed_upgraded_and_purged() {
    let file = |name| std::env::var_os(name).map(PathBuf::from);
    let (Some(package), Some(next)) = (file("CRIMUX_DEB"), file("CRIMUX_DEB_NEXT")) else {
        testkit::bed::skipped("CRIMUX_DEB and CRIMUX_DEB_NEXT name no packages (dev/test package)");
        return;
    };
    let Some(machine) = Machine::new("deb-real") else { return };
    let install =
        |package: &Path| machine.succeeds(&["--force-depends", "--install", package.to_str().unwrap()]);
    install(&package);
    let crimux = |arguments: &[&str]| {
        Command::new(machine.root.join("usr/bin/crimux")).args(arguments).output().unwrap()
    };
    assert!(crimux(&["--version"]).status.success());
    let config = machine.root.join(CONFIG);
    let checked = crimux(&["check", "--config", config.to_str().unwrap()]);
    assert!(checked.status.success(), "{}", text(&checked));
    for installed in [
        "usr/lib/systemd/system/crimux.service",
        "usr/lib/systemd/system/crimux.socket",
        "usr/share/man/man1/crimux.1.gz",
        "usr/share/man/man1/crimux-backend-forget.1.gz",
        "usr/share/bash-completion/completions/crimux",
        "usr/share/zsh/vendor-completions/_crimux",
        "usr/share/fish/vendor_completions.d/crimux.fish",
        "usr/share/doc/crimux/copyright",
        "usr/share/doc/crimux/config.schema.json",
    ] {
        assert!(machine.root.join(installed).is_file(), "{installed}");
    }

    write(
        &config,
        &read("deploy/debian/config.yaml").replace("containerd:", "mine:").replace(": containerd", ": mine"),
    );
    install(&next);
    assert!(machine.asked().contains("deb-systemd-invoke restart crimux.service"), "{}", machine.asked());
    assert!(fs::read_to_string(&config).unwrap().contains("default_backend: mine"));

    machine.succeeds(&["--purge", "crimux"]);
    for gone in [
        "usr/bin/crimux",
        "etc/crimux",
        "var/lib/crimux",
        "usr/share/doc/crimux",
        "usr/share/man/man1/crimux.1.gz",
    ] {
        assert!(!machine.root.join(gone).exists(), "{gone}");
    }
}
