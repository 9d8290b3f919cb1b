//! A `state_dir` that takes no writes, as while a backup freezes its file system or a volume stalls.
//!
//! A FIFO that nobody reads stands where the next journal is to be made, which a snapshot begins: opening it
//! blocks the thread that writes snapshots, and with it the journal, as a frozen file system does.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::*;

/// FIFOs in the place of the next journals of `state_dir`.
struct Frozen(Vec<PathBuf>);

impl Frozen {
    fn freeze(state_dir: &Path) -> Self {
        let names = std::fs::read_dir(state_dir).unwrap().map(|entry| entry.unwrap().file_name());
        let digits = names.filter_map(|name| name.to_str()?.strip_prefix("journal-").map(str::to_owned));
        let last = digits.filter_map(|digits| u64::from_str_radix(&digits, 16).ok()).max().unwrap();
        // The journal may be on its way to the next generation already.
        let fifos = (last + 1..last + 9).filter_map(|generation| {
            let path = state_dir.join(format!("journal-{generation:016x}"));
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).ok().map(|()| path)
        });
        Self(fifos.collect())
    }

    /// Makes a blocked `open` return with an error, and removes the file it waits for.
    fn thaw(self) {
        let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
        let readers = self.0.iter().map(|path| OpenOptions::new().read(true).custom_flags(flags).open(path));
        let readers: Vec<_> = readers.collect::<Result<_, _>>().unwrap();
        self.0.iter().for_each(|path| std::fs::remove_file(path).unwrap());
        drop(readers);
    }
}

async fn run(crimux: &Crimux, name: &str) -> String {
    let mut runtime = crimux.client().runtime();
    let reply = Box::pin(in_time(runtime.run_pod_sandbox(sandbox_config(name).run("")))).await;
    reply.expect("the sandbox is created").into_inner().pod_sandbox_id
}

async fn listed(crimux: &Crimux) -> Vec<String> {
    let request = cri::ListPodSandboxRequest::default();
    let items = crimux.client().runtime().list_pod_sandbox(request).await.unwrap().into_inner().items;
    items.into_iter().map(|item| item.id).collect()
}

#[tokio::test]
async fn a_state_dir_that_takes_no_writes_stops_no_call_and_what_was_not_saved_is_counted() {
    let a = SimRuntime::builder("a").start().await;
    let mut crimux = start(&a, |yaml| yaml).await;
    let frozen = Frozen::freeze(&crimux.dir.path().join("state"));
    crimux.add_backend("makes-a-snapshot-due");
    let mut made = Vec::new();
    let unsaved = async || status(&crimux).await["state"]["write_errors"].as_u64().unwrap() > 0;
    while !unsaved().await {
        made.push(run(&crimux, &format!("pod-{}", made.len())).await);
        in_time(crimux.client().runtime().status(cri::StatusRequest::default())).await.unwrap();
    }
    let problem = status(&crimux).await["state"]["problem"].as_str().unwrap().to_owned();
    assert!(problem.contains("the disk did not take a record within 100 ms"), "{problem}");
    made.push(run(&crimux, "one-more").await);
    let request = cri::RemovePodSandboxRequest { pod_sandbox_id: made.remove(0) };
    in_time(crimux.client().runtime().remove_pod_sandbox(request)).await.unwrap();

    frozen.thaw();
    eventually(SOON, async || status(&crimux).await["state"]["problem"].is_null()).await;
    a.stop().await;
    crimux.kill_and_start().await;
    crimux.wait_ready().await;
    let (mut kept, mut known) = (listed(&crimux).await, made);
    kept.sort();
    known.sort();
    assert_eq!(kept, known, "the order of the changes was kept");
}

#[tokio::test]
async fn a_state_dir_that_takes_no_writes_does_not_keep_crimux_from_its_end() {
    let a = SimRuntime::builder("a").start().await;
    let mut crimux = start(&a, |yaml| yaml).await;
    let _frozen = Frozen::freeze(&crimux.dir.path().join("state"));
    crimux.add_backend("makes-a-snapshot-due");
    let mut count = 0;
    while status(&crimux).await["state"]["write_errors"].as_u64() == Some(0) {
        run(&crimux, &format!("pod-{count}")).await;
        count += 1;
    }
    crimux.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(crimux.ended_within(Duration::from_secs(60)).await, Some(0));
}
