//! What is left after crimux is killed between any two steps, and of files that are damaged.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::state::writer::Step;

fn file_with(dir: &Path, prefix: &str) -> PathBuf {
    let mut files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let named = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(prefix);
    files.find(named).unwrap_or_else(|| panic!("no {prefix} in {}", dir.display()))
}

fn bad_files(dir: &Path) -> usize {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_str().unwrap().contains(".bad-")).count()
}

fn heard_of(backend: &InstanceState) -> Vec<String> {
    let mut ids = Vec::new();
    backend.for_each_sandbox(|facts| ids.push(facts.id.to_owned()));
    ids.sort();
    ids
}

#[test]
fn nothing_acknowledged_is_lost_at_any_step_of_writing_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let backend = store.backend("runc", true);
    take_pair(&backend, &["listed", "removed"], &[]);
    let mut expected = vec!["listed".to_owned()];
    let mut steps = Vec::new();
    for round in 0..3 {
        backend.record_sandbox_created(&format!("between-{round}"), &run_request("a"));
        backend.record_sandbox_removed("removed");
        expected.push(format!("between-{round}"));
        let write = |step: Step| {
            let survivor = copy(dir.path());
            let after = open(survivor.path()).backend("runc", true);
            let mut found = heard_of(&after);
            let all_but_listed = round == 0 && !after.has_lists();
            found.retain(|id| id != "listed" && id != "removed");
            let mut wanted = expected.clone();
            wanted.retain(|id| id != "listed");
            wanted.sort();
            assert_eq!(found, wanted, "round {round}, killed after {step:?}");
            if !all_but_listed {
                assert!(ids(&after, ListKind::Sandboxes).unwrap().contains(&"listed".to_owned()));
                assert!(!ids(&after, ListKind::Sandboxes).unwrap().contains(&"removed".to_owned()));
            }
            steps.push(step);
            let id = format!("during-{round}-{}", steps.len());
            backend.record_sandbox_created(&id, &run_request("b"));
            expected.push(id);
        };
        let mut write = write;
        store.write(true, &mut write).unwrap();
    }
    for step in [Step::Rotated, Step::Captured, Step::LastWrite, Step::Renamed, Step::Deleted] {
        assert!(steps.contains(&step), "{step:?} was never taken");
    }
}

#[test]
fn what_the_snapshot_has_is_not_replayed_over_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let backend = store.backend("runc", true);
    take_pair(&backend, &[], &[]);
    // Recorded in the new journal, listed as gone by the backend, and captured as such.
    let mut hook = |step: Step| {
        if step == Step::Rotated {
            backend.record_sandbox_created("short-lived", &run_request("a"));
            take_pair(&backend, &["other"], &[]);
        }
    };
    store.write(true, &mut hook).unwrap();
    let survivor = copy(dir.path());
    let after = open(survivor.path()).backend("runc", true);
    assert_eq!(heard_of(&after), ["other"]);
}

#[test]
fn a_journal_cut_at_any_byte_keeps_the_snapshot_and_the_whole_records() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let backend = store.backend("runc", true);
    take_pair(&backend, &["listed"], &[]);
    store.flush().unwrap();
    backend.record_sandbox_created("s1", &run_request("a"));
    backend.record_sandbox_created("s2", &run_request("b"));
    let content = fs::read(file_with(dir.path(), "journal-")).unwrap();
    let mut counts = Vec::new();
    for cut in 0..=content.len() {
        let survivor = copy(dir.path());
        fs::write(file_with(survivor.path(), "journal-"), &content[..cut]).unwrap();
        let (store, warnings) = StateStore::open(survivor.path(), BOOT);
        let found = heard_of(&store.backend("runc", true));
        let whole = ["listed", "s1", "s2"];
        assert_eq!(found, whole[..found.len()], "cut at {cut}");
        assert_eq!(warnings.len(), bad_files(survivor.path()), "cut at {cut}: each warning leaves a file");
        assert!(warnings.len() <= 1 && store.was_whole());
        assert_eq!(store.write_error(), None);
        counts.push(found.len());
    }
    assert!(counts.is_sorted() && counts.first() == Some(&1) && counts.last() == Some(&3));
}

#[test]
fn a_snapshot_cut_or_flipped_at_any_byte_is_set_aside_and_the_journal_still_counts() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let backend = store.backend("runc", true);
    take_pair(&backend, &["listed"], &[]);
    store.flush().unwrap();
    backend.record_sandbox_created("s1", &run_request("a"));
    let content = fs::read(dir.path().join("snapshot")).unwrap();
    let flipped = |at: usize| {
        let mut flipped = content.clone();
        flipped[at] ^= 0x10;
        flipped
    };
    let cuts = (0..content.len()).map(|cut| content[..cut].to_vec());
    for damaged in cuts.chain((0..content.len()).map(flipped)) {
        let survivor = copy(dir.path());
        fs::write(survivor.path().join("snapshot"), &damaged).unwrap();
        let (store, warnings) = StateStore::open(survivor.path(), BOOT);
        assert_eq!((warnings.len(), store.was_whole()), (1, false));
        assert_eq!(fs::read(survivor.path().join("snapshot.bad-1")).unwrap(), damaged);
        assert!(!survivor.path().join("snapshot").exists());
        let backend = store.backend("runc", true);
        assert_eq!((heard_of(&backend), backend.has_lists()), (vec!["s1".to_owned()], false));
    }
}

#[test]
fn files_set_aside_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..20 {
        fs::write(dir.path().join("snapshot"), "not ours").unwrap();
        let (_, warnings) = StateStore::open(dir.path(), BOOT);
        assert_eq!(warnings.len(), 1);
    }
    assert_eq!(bad_files(dir.path()), 8);
    assert!(dir.path().join("snapshot.bad-20").exists());
}

#[test]
fn after_a_reboot_a_local_backend_is_stopped_and_a_remote_one_is_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let status = cri::ContainerStatus { state: CONTAINER_RUNNING, ..Default::default() };
    let status = cri::ContainerStatusResponse { status: Some(status), ..Default::default() }.encode_to_vec();
    for (name, local) in [("local", true), ("remote", false)] {
        let backend = store.backend(name, local);
        take_pair(&backend, &["s1"], &[("c1", "s1")]);
        backend.remember_status(Kind::Container, "c1", backend.begin_read(), &status);
    }
    store.flush().unwrap();
    store.backend("local", true).record_sandbox_created("s2", &run_request("late"));
    drop(store);

    let (rebooted, _) = StateStore::open(dir.path(), "boot-2");
    let local = rebooted.backend("local", true);
    let stopped = vec![("s1".to_owned(), SANDBOX_NOTREADY), ("s2".to_owned(), SANDBOX_NOTREADY)];
    assert_eq!(shown(&local, ListKind::Sandboxes).unwrap(), stopped);
    assert_eq!(shown(&local, ListKind::Containers).unwrap(), [("c1".to_owned(), CONTAINER_EXITED)]);
    assert_eq!(local.status(Kind::Container, "c1"), None);
    let remote = rebooted.backend("remote", false);
    assert_eq!(shown(&remote, ListKind::Sandboxes).unwrap(), [("s1".to_owned(), SANDBOX_READY)]);
    assert_eq!(remote.status(Kind::Container, "c1").unwrap(), status);

    local.record_sandbox_created("s3", &run_request("after the reboot"));
    drop(rebooted);
    let (again, _) = StateStore::open(dir.path(), "boot-2");
    let local = again.backend("local", true);
    let mut with_s3 = stopped;
    with_s3.push(("s3".to_owned(), SANDBOX_READY));
    assert_eq!(shown(&local, ListKind::Sandboxes).unwrap(), with_s3, "only what ran before the reboot");
    take_pair(&local, &["s1"], &[]);
    assert_eq!(shown(&local, ListKind::Sandboxes).unwrap(), [("s1".to_owned(), SANDBOX_READY)]);
}

#[test]
fn what_was_never_listed_is_not_known_after_any_start() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let [a, b] = ["a", "b"].map(|name| store.backend(name, true));
    take_pair(&a, &[], &[]);
    store.flush().unwrap();
    drop((store, a, b));
    let store = open(dir.path());
    let [a, b] = ["a", "b"].map(|name| store.backend(name, true));
    assert!(store.was_whole() && a.has_lists() && !b.has_lists(), "b may hold anything");
    assert_eq!((a.instance().life, b.instance().life), (Life::Member, Life::Member));
}

#[test]
fn a_backend_joins_until_its_first_pair_and_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let added = store.create("added", Life::Joining);
    for flushed in [false, true] {
        // Who it is has to be said once, as a reload does.
        added.set_instance(&Instance { endpoint: "unix:///a".into(), ..added.instance() });
        if flushed {
            store.flush().unwrap();
        }
        let survivor = copy(dir.path());
        let again = open(survivor.path()).backend("added", true);
        assert_eq!(again.instance(), added.instance(), "flushed: {flushed}");
        assert!(again.is_joining() && !again.has_lists());
    }
    take_pair(&added, &["s1"], &[]);
    let again = open(copy(dir.path()).path()).backend("added", true);
    assert!(!again.is_joining() && !again.has_lists(), "its pair is not on the disk yet: it is awaited");
    store.flush().unwrap();
    let again = open(copy(dir.path()).path()).backend("added", true);
    assert!(!again.is_joining() && again.has_lists());
}

#[test]
fn a_forgotten_backend_is_known_to_be_empty_and_joins_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let backend = store.backend("lost", false);
    take_pair(&backend, &["s1"], &[("c1", "s1")]);
    take_pair(&store.backend("other", true), &["s2"], &[]);
    store.flush().unwrap();
    assert!(store.declare_empty(backend.id()) && !store.declare_empty(InstanceId(99)));
    assert_eq!(ids(&backend, ListKind::Sandboxes), Some(vec![]));
    assert!(backend.is_declared_empty());
    for flushed in [false, true] {
        if flushed {
            store.flush().unwrap();
        }
        let survivor = copy(dir.path());
        let lost = open(survivor.path()).get(backend.id()).unwrap();
        assert!(lost.is_joining() && !lost.has_lists(), "flushed: {flushed}");
        assert_eq!(heard_of(&lost), [""; 0]);
    }
    take_pair(&backend, &["back"], &[]);
    store.flush().unwrap();
    let again = open(copy(dir.path()).path()).backend("lost", false);
    assert_eq!(ids(&again, ListKind::Sandboxes).unwrap(), ["back"]);
}

#[test]
fn a_removed_instance_is_kept_with_what_is_on_it_until_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let backend = store.backend("b", true);
    take_pair(&backend, &["s1"], &[]);
    store.flush().unwrap();
    backend.set_instance(&Instance { life: Life::Removed, name: "b@1".into(), ..backend.instance() });
    for flushed in [false, true] {
        if flushed {
            store.flush().unwrap();
        }
        let survivor = copy(dir.path());
        let again = open(survivor.path()).get(backend.id()).unwrap();
        assert_eq!(again.instance(), backend.instance());
        assert_eq!(ids(&again, ListKind::Sandboxes).unwrap(), ["s1"]);
    }
    store.end(backend.id());
    for flushed in [false, true] {
        if flushed {
            store.flush().unwrap();
        }
        let survivor = copy(dir.path());
        assert_eq!(open(survivor.path()).instances(), [], "flushed: {flushed}");
    }
    assert_eq!(store.create("next", Life::Member).id(), InstanceId(2), "no identifier is used twice");
}

#[test]
fn where_an_instance_is_survives_a_kill_before_the_first_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let backend = store.create("w", Life::Member);
    backend.journal_instance(&Instance { endpoint: "unix:///run/w.sock".into(), ..backend.instance() });
    let survivor = copy(dir.path());
    let again = open(survivor.path());
    assert_eq!(again.instances(), [backend.instance()]);
    assert!(!again.was_whole(), "there is no snapshot");
}

#[test]
fn what_another_instance_owns_is_not_shown_and_that_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let backend = store.backend("b", true);
    take_pair(&backend, &["s1", "s2"], &[("c1", "s1"), ("c2", "s2")]);
    store.flush().unwrap();
    assert!(backend.mark_foreign("s1") && backend.mark_foreign("c1") && !backend.mark_foreign("s1"));
    let again = open(copy(dir.path()).path()).backend("b", true);
    for backend in [&backend, &again] {
        assert_eq!(ids(backend, ListKind::Sandboxes).unwrap(), ["s2"]);
        assert_eq!(ids(backend, ListKind::Containers).unwrap(), ["c2"]);
        assert_eq!(heard_of(backend), ["s2"]);
        assert!(backend.has_id("s1"));
    }
    backend.clear_foreign("s1");
    assert_eq!(ids(&backend, ListKind::Sandboxes).unwrap(), ["s1", "s2"]);
}

#[test]
fn what_could_not_be_written_makes_the_saved_state_not_whole_until_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let backend = store.backend("runc", true);
    take_pair(&backend, &["s1"], &[]);
    store.flush().unwrap();
    let full = fs::OpenOptions::new().append(true).open("/dev/full").unwrap();
    store.shared.journal().replace_file(full);
    backend.record_sandbox_removed("s1");
    let survivor = copy(dir.path());
    let after = open(survivor.path());
    assert!(!after.was_whole());
    let lost = after.backend("runc", true);
    assert_eq!((heard_of(&lost), lost.has_lists()), (vec!["s1".to_owned()], false), "heard of, not known");
    // A second start before anything was written is no wiser.
    drop((after, lost));
    assert!(!open(survivor.path()).was_whole());
    store.flush().unwrap();
    let after = open(copy(dir.path()).path());
    assert!(after.was_whole());
    assert_eq!(ids(&after.backend("runc", true), ListKind::Sandboxes).unwrap(), [""; 0]);
}

#[test]
fn a_mark_outside_makes_the_saved_state_not_whole_where_nothing_can_be_renamed() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mark = Some(other.path().join("mark"));
    let open = || StateStore::open_marked(dir.path(), BOOT, mark.clone()).0;
    let store = open();
    let backend = store.backend("runc", true);
    take_pair(&backend, &["s1"], &[]);
    store.flush().unwrap();
    assert!(open().was_whole());
    // A directory in the way is what cannot be replaced.
    fs::create_dir_all(dir.path().join("snapshot.partial/in-the-way")).unwrap();
    let full = fs::OpenOptions::new().append(true).open("/dev/full").unwrap();
    store.shared.journal().replace_file(full);
    backend.record_sandbox_removed("s1");
    assert!(!open().was_whole());
    store.flush().unwrap();
    assert!(open().was_whole());
}

#[test]
fn a_full_disk_is_told_of_and_costs_nothing_once_it_has_room_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let backend = store.backend("runc", true);
    take_pair(&backend, &[], &[]);
    store.flush().unwrap();
    let full = fs::OpenOptions::new().append(true).open("/dev/full").unwrap();
    store.shared.journal().replace_file(full);
    backend.record_sandbox_created("s1", &run_request("a"));
    assert_eq!(ids(&backend, ListKind::Sandboxes).unwrap(), ["s1"]);
    assert!(store.write_error().unwrap().contains("journal"));
    assert_eq!(store.write_failures(), 1);
    store.flush().unwrap();
    assert_eq!((store.write_error(), store.write_failures()), (None, 1));
    let after = open(copy(dir.path()).path()).backend("runc", true);
    assert_eq!(ids(&after, ListKind::Sandboxes).unwrap(), ["s1"]);
}

#[test]
fn snapshots_that_cannot_be_written_for_long_do_not_fill_the_disk_with_journals() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let backend = store.backend("runc", true);
    take_pair(&backend, &[], &[]);
    store.flush().unwrap();
    let journals = || crate::state::journal::generations(dir.path()).unwrap().len();
    let in_the_way = dir.path().join("snapshot.tmp");
    fs::create_dir(&in_the_way).unwrap();
    let mut made = Vec::new();
    for number in 10..20 {
        made.push(format!("s{number}"));
        backend.record_sandbox_created(&made[made.len() - 1], &run_request("a"));
        assert!(store.flush().is_err());
    }
    assert_eq!(journals(), 2);
    assert_eq!(heard_of(&open(copy(dir.path()).path()).backend("runc", true)), made);
    fs::remove_dir(&in_the_way).unwrap();
    store.flush().unwrap();
    assert_eq!((journals(), store.write_error()), (1, None));
    assert_eq!(store.shared.journal().len(), 0, "all is in the snapshot");
    backend.record_sandbox_removed("s10");
    let after = open(copy(dir.path()).path()).backend("runc", true);
    assert_eq!(ids(&after, ListKind::Sandboxes).unwrap(), made[1..]);
}

#[test]
fn stats_alone_wait_and_a_drain_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let backend = store.backend("runc", true);
    let writes = || {
        let mut steps = 0;
        store.write(false, &mut |_| steps += 1).unwrap();
        steps > 0
    };
    take_pair(&backend, &["s1", "s2"], &[]);
    assert!(writes());
    backend.replace_list(ListKind::PodSandboxStats, backend.begin_read(), Bytes::from_static(&[10, 0]));
    assert!(!writes());
    backend.set_draining(true);
    assert!(open(copy(dir.path()).path()).backend("runc", true).is_draining());
    assert!(!writes(), "the journal has it");
}
