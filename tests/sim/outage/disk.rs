//! The disk under `state_dir` is full or takes no writes: calls go on, it is said, and what can be kept is
//! kept.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;
use tempfile::TempDir;
use testkit::client::sandbox_config;
use testkit::cri::{PodSandboxStatusRequest, RemovePodSandboxRequest, StopPodSandboxRequest};
use tonic::Code;

use super::{World, sandboxes, state::snapshot_holds};
use crate::support::{Crimux, SOON};

const ERRORS: &str = "crimux_state_write_errors_total";
/// What the file systems here give out at once.
const BLOCK: u64 = 4096;

/// A small file system of its own for `state_dir`; it is unmounted when dropped.
struct Disk {
    dir: TempDir,
}

impl Disk {
    /// A tmpfs of this size; `None`, loudly, where nothing may be mounted.
    fn tmpfs(kib: u32) -> Option<Self> {
        let disk = Self { dir: tempfile::tempdir().unwrap() };
        disk.mounted(&["-t", "tmpfs", "-o", &format!("size={kib}k,mode=0700"), "crimux-test"])
    }

    /// An ext4 that turns read-only at the first error; `None`, loudly, where there can be none.
    fn ext4() -> Option<Self> {
        let disk = Self { dir: tempfile::tempdir().unwrap() };
        let image = disk.dir.path().join("image");
        File::create(&image).unwrap().set_len(1 << 20).unwrap();
        let image = image.to_str().unwrap();
        if let Err(why) = run("mkfs.ext4", &["-q", "-O", "^has_journal", image]) {
            testkit::bed::skipped(&why);
            return None;
        }
        disk.mounted(&["-o", "loop,errors=remount-ro", image])
    }

    fn mounted(self, how: &[&str]) -> Option<Self> {
        std::fs::create_dir(self.at()).unwrap();
        let mounted = run("mount", &[how, &[self.at().to_str().unwrap()]].concat());
        mounted.map_err(|why| testkit::bed::skipped(&why)).ok().map(|()| self)
    }

    /// Where it is mounted.
    fn at(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// crimux with its state here, once that knows of both backends.
    async fn world(&self) -> World {
        let at = self.at().display().to_string();
        let world = World::with(|yaml| {
            let line = yaml.lines().find(|line| line.starts_with("state_dir: ")).unwrap().to_owned();
            yaml.replace(&line, &format!("state_dir: {at}"))
        })
        .await;
        for known in [&world.a, &world.b] {
            let id = known.state().sandboxes().next().unwrap().id.clone();
            testkit::eventually(SOON, async || snapshot_holds(&self.at(), &id)).await;
        }
        world
    }

    fn ballast(&self) -> PathBuf {
        self.at().join("ballast")
    }

    /// Leaves no block free.
    fn fill(&self) {
        let mut ballast = File::options().create(true).append(true).open(self.ballast()).unwrap();
        while ballast.write(&[0; 512]).is_ok_and(|written| written > 0) {}
    }

    /// Leaves so many blocks free.
    fn leave(&self, blocks: u64) {
        self.fill();
        let ballast = File::options().write(true).open(self.ballast()).unwrap();
        let len = ballast.metadata().unwrap().len();
        ballast.set_len(len / BLOCK * BLOCK - blocks * BLOCK).unwrap();
    }

    /// Makes room again.
    fn clear(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }

    /// Mounts it read-only or writable; false while a file on it is open for writing.
    fn remount(&self, how: &str) -> bool {
        run("mount", &["-o", &format!("remount,{how}"), self.at().to_str().unwrap()]).is_ok()
    }

    /// Lets the kernel find an error in it; `Err` where it cannot be told to.
    fn fail(&self) -> Result<(), String> {
        let device = output("findmnt", &["-n", "-o", "SOURCE", self.at().to_str().unwrap()])?;
        let name = device.trim().rsplit('/').next().unwrap().to_owned();
        let trigger = format!("/sys/fs/ext4/{name}/trigger_fs_error");
        std::fs::write(&trigger, "a test").map_err(|error| format!("{trigger}: {error}"))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It fails if nothing was mounted. Open files keep the mount alive until they are closed.
        let _ = run("umount", &["-l", self.at().to_str().unwrap()]);
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    output(program, arguments).map(drop)
}

fn output(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Runs a sandbox on a backend; it must succeed whatever the disk does.
async fn create(world: &World, backend: &str, name: &str) -> String {
    let run = sandbox_config(name).run(backend);
    world.client.runtime().run_pod_sandbox(run).await.unwrap().into_inner().pod_sandbox_id
}

async fn remove(world: &World, id: &str) {
    let mut runtime = world.client.runtime();
    let pod_sandbox_id = id.to_owned();
    runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() }).await.unwrap();
    runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await.unwrap();
}

async fn listed(world: &World) -> BTreeSet<String> {
    sandboxes(&world.client, None).await.unwrap()
}

/// Kills crimux and starts it again; returns when it is ready.
async fn restart(world: &mut World) {
    world.crimux.kill_and_start().await;
    world.crimux.wait_ready().await;
    world.client = world.crimux.client();
}

/// Kills crimux and starts it again while b is away, over a state that is not whole: lists are refused, never
/// short.
async fn restart_without_lists(world: &mut World) {
    world.crimux.kill_and_start().await;
    testkit::eventually(SOON, async || {
        world.crimux.get("/readyz").await.is_some_and(|(_, said)| said == "not listed yet: b\n")
    })
    .await;
    world.client = world.crimux.client();
    assert_eq!(sandboxes(&world.client, None).await.unwrap_err().code(), Code::Unavailable);
}

async fn lists_again(world: &World, all: &BTreeSet<String>) {
    testkit::eventually(SOON, async || {
        sandboxes(&world.client, None).await.is_ok_and(|listed| listed == *all)
    })
    .await;
}

async fn status(world: &World, id: &str) -> Code {
    let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
    let answer = world.client.runtime().pod_sandbox_status(request).await;
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

/// Checks that crimux says that nothing is written, and where.
async fn is_said(crimux: &Crimux) {
    testkit::eventually(SOON, async || crimux.metric(ERRORS).await.is_some_and(|count| count >= 1.0)).await;
    testkit::eventually(SOON, async || {
        let log = crimux.log();
        let line = log.lines().find(|line| line.contains("lives in memory alone")).unwrap_or_default();
        line.contains(" ERROR ") && line.contains("state_dir=/") && line.contains("restart neither crimux")
    })
    .await;
}

/// Waits until crimux has written all there is, after it could not.
async fn is_well_again(crimux: &Crimux) {
    let well = "state_dir can be written again";
    testkit::eventually(SOON, async || crimux.log().lines().any(|line| line.contains(well))).await;
}

#[tokio::test]
async fn a_full_disk_stops_no_call_and_costs_nothing_once_it_has_room_again() {
    let Some(disk) = Disk::tmpfs(256) else { return };
    let mut world = disk.world().await;
    disk.fill();
    // The journal goes on to the end of its block. The record that does not fit must leave no trace.
    let mut all = listed(&world).await;
    let mut safe = all.clone();
    for number in 0..40 {
        let id = create(&world, "b", &format!("full-{number}")).await;
        all.insert(id.clone());
        if world.crimux.metric(ERRORS).await == Some(0.0) {
            safe.insert(id);
        }
    }
    is_said(&world.crimux).await;
    assert!(all.len() > safe.len(), "the disk was not full");
    let gone = all.difference(&safe).next().unwrap().clone();
    remove(&world, &gone).await;
    all.remove(&gone);
    assert_eq!(listed(&world).await, all);
    world.b.stop().await;
    assert_eq!(listed(&world).await, all, "memory alone serves it");

    // What is on the disk is not all there was, so no list is made of it, and nothing is denied.
    restart_without_lists(&mut world).await;
    for id in safe.iter().filter(|id| !world.a.state().sandboxes().any(|sandbox| sandbox.id == **id)) {
        assert_eq!(status(&world, id).await, Code::Unavailable);
    }
    world.b.start_again().await;
    lists_again(&world, &all).await;
    all.insert(create(&world, "b", "still full").await);

    disk.clear();
    is_well_again(&world.crimux).await;
    all.insert(create(&world, "b", "room").await);
    world.b.stop().await;
    restart(&mut world).await;
    assert_eq!(listed(&world).await, all);
}

#[tokio::test]
async fn a_snapshot_that_does_not_fit_leaves_the_room_there_is_to_the_journal() {
    let Some(disk) = Disk::tmpfs(512) else { return };
    let mut world = disk.world().await;
    for number in 0..120 {
        create(&world, "b", &format!("before-{number}")).await;
    }
    let last = create(&world, "b", "last").await;
    world.crimux.add_backend("makes-a-snapshot-due");
    let is_written =
        async || snapshot_holds(&disk.at(), &last) && snapshot_holds(&disk.at(), "makes-a-snapshot-due");
    testkit::eventually(SOON, is_written).await;
    let size = std::fs::metadata(disk.at().join("snapshot")).unwrap().len();
    assert!(size > 8 * BLOCK, "a snapshot of {size} bytes would fit");
    disk.leave(6);
    world.crimux.add_backend("makes-another-due");
    is_said(&world.crimux).await;
    for number in 0..40 {
        create(&world, "b", &format!("after-{number}")).await;
    }
    // A busy disk may be what was said first.
    testkit::eventually(SOON, async || {
        world.crimux.get("/v1/status").await.is_some_and(|(_, it)| it.contains("cannot write the snapshot"))
    })
    .await;
    let all = listed(&world).await;
    world.b.stop().await;
    restart(&mut world).await;
    assert_eq!(listed(&world).await, all);
    // The first snapshot of a process is due at once.
    is_said(&world.crimux).await;
    disk.clear();
    is_well_again(&world.crimux).await;
}

#[tokio::test]
async fn a_start_on_a_read_only_disk_knows_what_is_there_and_writes_once_it_can() {
    let Some(disk) = Disk::tmpfs(256) else { return };
    let mut world = disk.world().await;
    create(&world, "b", "in the journal").await;
    let mut all = listed(&world).await;
    world.b.stop().await;
    world.crimux.signal(Signal::SIGKILL);
    testkit::eventually(SOON, async || disk.remount("ro")).await;
    restart(&mut world).await;
    assert_eq!(listed(&world).await, all);
    is_said(&world.crimux).await;
    all.insert(create(&world, "a", "in memory").await);
    assert_eq!(listed(&world).await, all);

    assert!(disk.remount("rw"));
    is_well_again(&world.crimux).await;
    world.a.stop().await;
    restart(&mut world).await;
    assert_eq!(listed(&world).await, all);
}

#[tokio::test]
async fn a_disk_that_turns_read_only_stops_no_call_and_a_start_denies_nothing() {
    let Some(disk) = Disk::ext4() else { return };
    let mut world = disk.world().await;
    create(&world, "b", "before").await;
    let before = listed(&world).await;
    if let Err(why) = disk.fail() {
        return testkit::bed::skipped(&why);
    }
    let mut all = before.clone();
    all.insert(create(&world, "b", "after").await);
    is_said(&world.crimux).await;
    world.b.stop().await;
    assert_eq!(listed(&world).await, all);
    restart_without_lists(&mut world).await;
    for id in &before {
        assert_ne!(status(&world, id).await, Code::NotFound);
    }
    world.b.start_again().await;
    lists_again(&world, &all).await;
}
