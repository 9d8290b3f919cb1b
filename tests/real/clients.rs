//! Clients that share no code with crimux: gRPC's own implementation, through Python, and grpc-go, which is
//! kubelet's.
//!
//! Two tonics understand each other even where both are wrong. The client in Python writes its messages byte
//! by byte, so that not even the API's definition is shared; the one in Go is containerd's own, which asks
//! for what is not CRI.

use std::path::Path;

use testkit::bed::Bed;

use super::world::{self, HANDLERS};

/// Python with grpcio, as `dev/test real` prepares it.
const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/python/bin/python");

const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/real/client.py");

#[tokio::test]
async fn grpc_of_python_runs_a_pod_through_crimux() {
    let Some(bed) = bed_with_python() else { return };
    let crimux = world::crimux(&bed, &HANDLERS).await;
    for handler in ["runc", "gvisor"] {
        client(&bed, &crimux.socket, handler).await;
    }
}

#[tokio::test]
async fn grpc_of_python_runs_a_pod_on_a_containerd_itself() {
    let Some(bed) = bed_with_python() else { return };
    for handler in ["runc", "runsc"] {
        client(&bed, &bed.socket("a"), handler).await;
    }
}

#[tokio::test]
async fn grpc_go_hears_what_crimux_says() {
    let Some(bed) = world::bed() else { return };
    let crimux = world::crimux(&bed, &HANDLERS).await;
    for _ in 0..20 {
        let output =
            tokio::process::Command::new("ctr").arg("--address").arg(&crimux.socket).arg("version").output();
        let output = tokio::time::timeout(world::SOON, output).await.expect("ctr ends").unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let wanted =
            "code = Unimplemented desc = crimux: /containerd.services.version.v1.Version/Version is not";
        assert!(!output.status.success() && said.contains(wanted), "{said}");
    }
}

fn bed_with_python() -> Option<Bed> {
    if !Path::new(PYTHON).exists() {
        testkit::bed::skipped("no Python with grpcio in target/python (./dev/test real prepares it)");
        return None;
    }
    world::bed()
}

async fn client(bed: &Bed, socket: &Path, handler: &str) {
    let logs = bed.directory().join("pod-logs");
    let output = tokio::process::Command::new(PYTHON)
        .arg(CLIENT)
        .args([socket, Path::new(handler), &logs])
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.ends_with("all fine\n"), "{handler}: {said}{failed}");
}
