//! A backend in a virtual machine: pods under a kernel of their own, beside those of this node.
//!
//! The machine is emulated where there is no hardware for it, so times are generous here; that crimux keeps
//! its own times is shown on the others. Its logs and certificates are in a folder that both sides share.

use std::collections::BTreeSet;

use testkit::bed::pods::Pods;
use testkit::bed::{Bed, skipped};

use super::lifecycle::{Kernel, whole_life};
use super::streams;
use super::world::{self, IDLE};

/// A local backend and the machine, or `None` after a loud skip.
fn bed() -> Option<Bed> {
    if std::env::var_os("CRIMUX_VM").is_none_or(|value| value != "1") {
        skipped("a virtual machine was not asked for (./dev/test vm, or CRIMUX_VM=1)");
        return None;
    }
    let bed = Bed::up_or_skip(&[("a", "runc")])?;
    bed.vm().unwrap();
    Some(bed)
}

fn configuration(bed: &Bed) -> String {
    let tls = bed.directory().join("tls");
    let tls = tls.display();
    let backends = format!(
        "  a: {{ endpoint: \"unix://{}\" }}\n  \
           vm:\n    \
             endpoint: https://10.99.0.2:10010\n    \
             tls: {{ ca: {tls}/ca.crt, cert: {tls}/client.crt, key: {tls}/client.key, server_name: vm }}\n    \
             local: false\n    \
             streaming: {{ address: \"10.99.0.2:10011\" }}\n    \
             timeouts: {{ connect: 5s, list: 10s, read: 20s, stats: 30s }}\n",
        bed.socket("a").display()
    );
    world::document(bed, &backends, "  runc: { backend: a }\n  vm: { backend: vm }\n")
}

#[tokio::test]
async fn a_pod_in_a_machine_has_that_machines_kernel() {
    let Some(bed) = bed() else { return };
    let crimux = world::crimux_with(&bed, &configuration(&bed)).await;
    let mut pods = Pods::dial(&crimux.socket, &bed.directory().join("share/pod-logs")).await.unwrap();
    Box::pin(whole_life(&mut pods, "vm", Kernel::Guest)).await;

    let here = pods.run("here", "runc", &IDLE).await.unwrap();
    let there = pods.run("there", "vm", &IDLE).await.unwrap();
    let listed: BTreeSet<_> = pods.list().await.unwrap().into_iter().map(|sandbox| sandbox.id).collect();
    assert_eq!(listed, BTreeSet::from([here.sandbox.clone(), there.sandbox.clone()]));
    let mut direct = world::dial(&bed, &bed.socket("a")).await;
    let local: Vec<_> = direct.list().await.unwrap().into_iter().map(|sandbox| sandbox.id).collect();
    assert_eq!(local, [here.sandbox]);
    let host = std::fs::read("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(pods.exec(&here.container, &["uname", "-r"]).await.unwrap().stdout, host);
    let guest = pods.exec(&there.container, &["uname", "-r"]).await.unwrap().stdout;
    assert!(guest != host && guest.ends_with(b"-cloud-amd64\n"), "{}", String::from_utf8_lossy(&guest));

    let urls = Box::pin(streams::every_kind(&bed, &mut pods, "vm")).await;
    let port = streams::port(&urls[0]);
    assert!(urls.iter().all(|url| url.starts_with(&format!("http://127.0.0.1:{port}/"))), "{urls:?}");
}
