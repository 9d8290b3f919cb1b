//! What the writer appends to the journal: it costs little, and a replay makes the same state of it.

use proptest::prelude::*;

use super::*;
use crate::cri::Rpc;
use crate::state::writer::{MAX_JOURNAL, Step};

fn steps(store: &StateStore) -> Vec<Step> {
    let mut steps = Vec::new();
    store.write(false, &mut |step| steps.push(step)).unwrap();
    steps
}

fn journal(dir: &Path) -> std::path::PathBuf {
    let last = crate::state::journal::generations(dir).unwrap().pop().unwrap();
    crate::state::journal::path(dir, last)
}

/// All that is served of a backend, in an order of its own.
fn served(backend: &InstanceState) -> String {
    let images = list(backend, ListKind::Images).map(|list| {
        let mut images = cri::ListImagesResponse::decode(list).unwrap().images;
        images.sort_by(|one, other| one.id.cmp(&other.id));
        images
    });
    let status = |kind, ids: Option<Vec<String>>| -> Vec<_> {
        ids.unwrap_or_default().iter().map(|id| (id.clone(), backend.status(kind, id))).collect()
    };
    let (sandboxes, containers) = (ids(backend, ListKind::Sandboxes), ids(backend, ListKind::Containers));
    format!(
        "{:?}\n{:?}\n{images:?}\n{:?}\n{:?}\n{:?} {:?} {:?}",
        shown(backend, ListKind::Sandboxes),
        shown(backend, ListKind::Containers),
        status(Kind::Sandbox, sandboxes),
        status(Kind::Container, containers),
        (backend.is_draining(), backend.is_declared_empty(), backend.instance()),
        backend.reply(Rpc::RuntimeConfig).is_some(),
        backend.is_unimplemented(Rpc::ListPodSandboxStats),
    )
}

/// Something that happens to a backend.
#[derive(Debug, Clone)]
enum DeltaEvent {
    /// A pair of lists: the state of each sandbox that is listed, and of its container.
    Pair(Vec<(u8, i32, i32)>),
    /// A filtered reply with one sandbox.
    Seen(u8, i32),
    Images(Vec<u8>),
    ImageRemoved(u8),
    ImagesForgotten,
    Created(u8),
    Started(u8),
    Stopped(u8),
    SandboxRemoved(u8),
    ContainerRemoved(u8),
    Status(u8, i32),
    StatusDropped(u8),
    Foreign(u8, bool),
    Drained(bool),
    LacksStats(bool),
    Forgotten,
    Write(bool),
}

fn event() -> impl Strategy<Value = DeltaEvent> {
    let id = || 0..6u8;
    prop_oneof![
        6 => proptest::collection::vec((id(), 0..2, 0..4), 0..6).prop_map(DeltaEvent::Pair),
        2 => (id(), 0..2).prop_map(|(id, state)| DeltaEvent::Seen(id, state)),
        2 => proptest::collection::vec(id(), 0..4).prop_map(DeltaEvent::Images),
        1 => id().prop_map(DeltaEvent::ImageRemoved),
        1 => Just(DeltaEvent::ImagesForgotten),
        3 => id().prop_map(DeltaEvent::Created),
        2 => id().prop_map(DeltaEvent::Started),
        2 => id().prop_map(DeltaEvent::Stopped),
        2 => id().prop_map(DeltaEvent::SandboxRemoved),
        2 => id().prop_map(DeltaEvent::ContainerRemoved),
        4 => (id(), 0..4).prop_map(|(id, state)| DeltaEvent::Status(id, state)),
        1 => id().prop_map(DeltaEvent::StatusDropped),
        1 => (id(), any::<bool>()).prop_map(|(id, foreign)| DeltaEvent::Foreign(id, foreign)),
        1 => any::<bool>().prop_map(DeltaEvent::Drained),
        1 => any::<bool>().prop_map(DeltaEvent::LacksStats),
        1 => Just(DeltaEvent::Forgotten),
        8 => proptest::bool::weighted(0.1).prop_map(DeltaEvent::Write),
    ]
}

fn images(images: &[u8]) -> Bytes {
    let image = |id: &u8| cri::Image { id: format!("i{id}"), ..Default::default() };
    cri::ListImagesResponse { images: images.iter().map(image).collect() }.encode_to_vec().into()
}

fn play(store: &StateStore, backend: &InstanceState, event: DeltaEvent) {
    let (s, c) = (|id: u8| format!("s{id}"), |id: u8| format!("c{id}"));
    match event {
        DeltaEvent::Pair(mut pods) => {
            pods.sort_unstable();
            pods.dedup_by_key(|(id, ..)| *id);
            let items =
                pods.iter().map(|(id, state, _)| cri::PodSandbox { state: *state, ..sandbox(&s(*id)) });
            let containers = pods.iter().map(|(id, _, state)| container(&c(*id), &s(*id), *state)).collect();
            let revision = backend.begin_read();
            let list = cri::ListPodSandboxResponse { items: items.collect() }.encode_to_vec();
            backend.replace_list(ListKind::Sandboxes, revision, list.into());
            let list = cri::ListContainersResponse { containers }.encode_to_vec();
            backend.replace_list(ListKind::Containers, revision, list.into());
        }
        DeltaEvent::Seen(id, state) => {
            let items = vec![cri::PodSandbox { state, ..sandbox(&s(id)) }];
            let reply = cri::ListPodSandboxResponse { items }.encode_to_vec();
            backend.update_items(ListKind::Sandboxes, backend.begin_read(), &reply).unwrap();
        }
        DeltaEvent::Images(ids) => {
            backend.replace_list(ListKind::Images, backend.begin_read(), images(&ids));
        }
        DeltaEvent::ImageRemoved(id) => backend.record_image_removed(&format!("i{id}")),
        DeltaEvent::ImagesForgotten => backend.forget_images(),
        DeltaEvent::Created(id) => {
            backend.record_sandbox_created(&s(id), &run_request("a"));
            backend.record_container_created(&c(id), &s(id), &[]);
        }
        DeltaEvent::Started(id) => backend.record_container_started(&c(id)),
        DeltaEvent::Stopped(id) => backend.record_sandbox_stopped(&s(id)),
        DeltaEvent::SandboxRemoved(id) => backend.record_sandbox_removed(&s(id)),
        DeltaEvent::ContainerRemoved(id) => backend.record_container_removed(&c(id)),
        DeltaEvent::Status(id, state) => {
            let status = cri::ContainerStatus { id: c(id), state, ..Default::default() };
            let reply = cri::ContainerStatusResponse { status: Some(status), ..Default::default() };
            let revision = backend.begin_read();
            backend.remember_status(Kind::Container, &c(id), revision, &reply.encode_to_vec());
        }
        DeltaEvent::StatusDropped(id) => _ = backend.invalidate_status(&c(id)),
        DeltaEvent::Foreign(id, true) => _ = backend.mark_foreign(&s(id)),
        DeltaEvent::Foreign(id, false) => backend.clear_foreign(&s(id)),
        DeltaEvent::Drained(drained) => backend.set_draining(drained),
        DeltaEvent::LacksStats(lacks) => backend.set_unimplemented(Rpc::ListPodSandboxStats, lacks),
        DeltaEvent::Forgotten => _ = store.declare_empty(backend.id()),
        DeltaEvent::Write(all) => store.write(all, &mut |_| ()).unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn a_replay_of_the_journal_makes_the_state_that_was_written(
        events in proptest::collection::vec(event(), 1..40)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let [backend, other] = ["runc", "other"].map(|name| store.backend(name, true));
        for (number, event) in events.into_iter().enumerate() {
            play(&store, if number % 5 == 0 { &other } else { &backend }, event);
        }
        store.write(false, &mut |_| ()).unwrap();
        let survivor = copy(dir.path());
        let after = open(survivor.path());
        prop_assert!(after.was_whole());
        for live in [&backend, &other] {
            let after = after.get(live.id()).unwrap();
            if live.is_declared_empty() {
                prop_assert!(after.is_joining());
            } else {
                prop_assert_eq!(served(&after), served(live));
            }
        }
    }
}

#[test]
fn a_list_that_changed_is_appended_and_one_in_another_order_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let backend = store.backend("runc", true);
    take_pair(&backend, &["s1", "s2"], &[]);
    assert!(steps(&store).contains(&Step::Renamed), "the first is a snapshot");
    take_pair(&backend, &["s2", "s1"], &[]);
    assert_eq!(steps(&store), []);
    take_pair(&backend, &["s2"], &[]);
    assert_eq!(steps(&store), [Step::Appended]);
    assert_eq!(steps(&store), []);
    let after = open(copy(dir.path()).path()).backend("runc", true);
    assert_eq!(ids(&after, ListKind::Sandboxes).unwrap(), ["s2"]);
}

#[test]
fn a_journal_with_a_gap_between_its_deltas_is_not_the_whole_state() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let backend = store.backend("runc", true);
    take_pair(&backend, &["s1"], &[]);
    steps(&store);
    let start = fs::read(journal(dir.path())).unwrap().len();
    for next in ["s2", "s3"] {
        take_pair(&backend, &["s1", next], &[]);
        assert_eq!(steps(&store), [Step::Appended]);
    }
    let path = journal(dir.path());
    let mut content = fs::read(&path).unwrap();
    content[start + 12] ^= 1;
    fs::write(&path, content).unwrap();
    let (after, warnings) = StateStore::open(dir.path(), BOOT);
    assert_eq!((warnings.len(), after.was_whole()), (1, false));
    assert!(!after.backend("runc", true).has_lists(), "heard of, not known");
}

#[test]
fn a_journal_with_deltas_cut_at_any_byte_shows_one_of_the_lists_and_all_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let backend = store.backend("runc", true);
    take_pair(&backend, &["s0"], &[]);
    steps(&store);
    let mut acknowledged = Vec::new();
    let mut ends = Vec::new();
    for id in ["s1", "s2", "s3"] {
        take_pair(&backend, &["s0"], &[]);
        backend.record_sandbox_created(id, &run_request("a"));
        acknowledged.push(id);
        ends.push(fs::read(journal(dir.path())).unwrap().len());
        let mut listed = vec!["s0"];
        listed.extend(&acknowledged);
        take_pair(&backend, &listed, &[]);
        assert_eq!(steps(&store), [Step::Appended]);
    }
    let content = fs::read(journal(dir.path())).unwrap();
    for cut in ends[0]..=content.len() {
        let survivor = copy(dir.path());
        fs::write(journal(survivor.path()), &content[..cut]).unwrap();
        let (after, warnings) = StateStore::open(survivor.path(), BOOT);
        let known = ids(&after.backend("runc", true), ListKind::Sandboxes).unwrap();
        let count = ends.iter().filter(|end| **end <= cut).count();
        assert_eq!(known[1..], acknowledged[..count], "cut at {cut}");
        assert!(after.was_whole() && warnings.len() <= 1, "cut at {cut}");
    }
}

#[test]
fn a_snapshot_of_the_first_format_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    take_pair(&store.backend("runc", true), &["s1"], &[]);
    store.flush().unwrap();
    let path = dir.path().join("snapshot");
    for (version, whole) in [(1, true), (2, true), (3, false)] {
        let copy = copy(dir.path());
        let mut content = fs::read(&path).unwrap();
        content[7] = version;
        fs::write(copy.path().join("snapshot"), content).unwrap();
        let (after, warnings) = StateStore::open(copy.path(), BOOT);
        assert_eq!((after.was_whole(), warnings.is_empty()), (whole, whole), "version {version}");
    }
}

#[test]
fn a_journal_that_has_grown_is_compacted() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let backend = store.backend("runc", true);
    take_pair(&backend, &["s0"], &[]);
    steps(&store);
    let size = || fs::metadata(journal(dir.path())).unwrap().len();
    let request = run_request(&"a".repeat(64 << 10));
    let mut before = 0;
    for round in 0..100 {
        backend.record_sandbox_created("s1", &request);
        take_pair(&backend, if round % 2 == 0 { &["s1"] } else { &["s0"] }, &[]);
        if steps(&store).contains(&Step::Renamed) {
            break;
        }
        before = size();
    }
    assert!((MAX_JOURNAL - (128 << 10)..=MAX_JOURNAL).contains(&before), "{before}");
    assert!(size() < 1 << 10);
}
