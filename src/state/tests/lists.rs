//! What is listed: pairs, changes on top of them, filtered replies, images, stats.

use std::time::Duration;

use super::*;
use crate::state::list_bytes::FullList;
use crate::state::pair::PAIR_WINDOW;

fn backend() -> (tempfile::TempDir, Arc<InstanceState>) {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).backend("runc", true);
    (dir, backend)
}

#[test]
fn a_backend_never_listed_is_unknown_even_if_something_was_created_on_it() {
    let (_dir, backend) = backend();
    backend.record_sandbox_created("s1", &run_request("web"));
    assert_eq!(list(&backend, ListKind::Sandboxes), None);
    assert!(!backend.has_lists() && !backend.was_listed_live() && backend.age().is_none());
    let mut visited = Vec::new();
    backend.for_each_sandbox(|facts| visited.push(facts.id.to_owned()));
    assert_eq!(visited, ["s1"], "its owner is known all the same");

    let revision = backend.begin_read();
    backend.replace_list(ListKind::Sandboxes, revision, sandboxes(&["s1"]));
    backend.replace_list(ListKind::Containers, revision, containers(&[]));
    assert!(backend.has_lists() && backend.was_listed_live() && backend.age().is_some());
    assert_eq!(ids(&backend, ListKind::Sandboxes).unwrap(), ["s1"]);
}

#[test]
fn an_untouched_list_is_served_as_the_bytes_that_came() {
    let (_dir, backend) = backend();
    take_pair(&backend, &["s1"], &[("c1", "s1")]);
    assert_eq!(list(&backend, ListKind::Sandboxes).unwrap(), sandboxes(&["s1"]));
    assert_eq!(list(&backend, ListKind::Containers).unwrap(), containers(&[("c1", "s1")]));
}

#[test]
fn an_equal_reply_does_not_replace_the_buffer_that_is_kept() {
    let (_dir, backend) = backend();
    take_pair(&backend, &["s1"], &[]);
    let kept = list(&backend, ListKind::Sandboxes).unwrap();
    take_pair(&backend, &["s1"], &[]);
    assert_eq!(list(&backend, ListKind::Sandboxes).unwrap().as_ptr(), kept.as_ptr());
}

#[test]
fn a_list_in_a_bigger_buffer_is_copied_out_of_it_and_stays_the_same() {
    let (_dir, backend) = backend();
    let padded = [vec![0; 4096], sandboxes(&["s1"]).to_vec()].concat();
    let slice = Bytes::from(padded).slice(4096..);
    backend.replace_list(ListKind::Sandboxes, backend.begin_read(), slice.clone());
    backend.replace_list(ListKind::Containers, backend.begin_read(), containers(&[]));
    backend.compact();
    let kept = list(&backend, ListKind::Sandboxes).unwrap();
    assert_eq!(kept, slice);
    assert_ne!(kept.as_ptr(), slice.as_ptr());
    assert!(slice.is_unique(), "nothing holds the big buffer any more");
}

#[test]
fn a_sandbox_list_waits_for_a_container_list_that_was_sent_after_it() {
    let (_dir, backend) = backend();
    take_pair(&backend, &["s1"], &[("c1", "s1")]);
    let before = backend.begin_read();
    backend.replace_list(ListKind::Sandboxes, backend.begin_read(), sandboxes(&["s2"]));
    assert_eq!(ids(&backend, ListKind::Sandboxes).unwrap(), ["s1"]);
    backend.replace_list(ListKind::Containers, before, containers(&[("c-old", "s1")]));
    assert_eq!(ids(&backend, ListKind::Sandboxes).unwrap(), ["s1"], "sent before the sandbox list");
    assert_eq!(ids(&backend, ListKind::Containers).unwrap(), ["c1"]);
    backend.replace_list(ListKind::Containers, backend.begin_read(), containers(&[("c2", "s2")]));
    assert_eq!(ids(&backend, ListKind::Sandboxes).unwrap(), ["s2"]);
    assert_eq!(ids(&backend, ListKind::Containers).unwrap(), ["c2"]);
}

#[test]
fn halves_of_one_epoch_pair_in_whatever_order_they_arrive() {
    let (_dir, backend) = backend();
    take_pair(&backend, &["s1"], &[]);
    let revision = backend.begin_read();
    backend.replace_list(ListKind::Containers, revision, containers(&[("c2", "s2")]));
    assert_eq!(ids(&backend, ListKind::Containers).unwrap(), Vec::<String>::new());
    backend.replace_list(ListKind::Sandboxes, revision, sandboxes(&["s2"]));
    assert_eq!(ids(&backend, ListKind::Containers).unwrap(), ["c2"]);
    assert_eq!(ids(&backend, ListKind::Sandboxes).unwrap(), ["s2"]);
}

#[test]
fn while_nothing_is_known_the_other_order_makes_a_pair_too() {
    let (_dir, backend) = backend();
    backend.replace_list(ListKind::Containers, backend.begin_read(), containers(&[]));
    backend.record_sandbox_created("s1", &run_request("web"));
    backend.record_container_created("c1", "s1", &[]);
    backend.replace_list(ListKind::Sandboxes, backend.begin_read(), sandboxes(&["s1"]));
    assert_eq!(ids(&backend, ListKind::Sandboxes).unwrap(), ["s1"]);
    assert_eq!(ids(&backend, ListKind::Containers).unwrap(), ["c1"]);
}

#[test]
fn a_sandbox_list_from_before_an_outage_makes_no_pair_after_it() {
    let (_dir, backend) = backend();
    take_pair(&backend, &["s1"], &[]);
    let arrived = Instant::now();
    let long_after = arrived + PAIR_WINDOW + Duration::from_millis(1);
    let sent = |at| Revision { seq: backend.begin_read().seq, at };
    let mut state = backend.lock();
    let mut replace = |kind, requested: Revision, encoded| {
        state.lists.replace(FullList { kind, requested, received: requested.at, encoded }).completed_pair
    };
    assert!(!replace(ListKind::Sandboxes, sent(arrived), sandboxes(&["s2"])));
    assert!(!replace(ListKind::Containers, sent(long_after), containers(&[("c3", "s3")])));
    assert!(!replace(ListKind::Sandboxes, sent(long_after), sandboxes(&["s3"])));
    assert!(replace(ListKind::Containers, sent(long_after), containers(&[("c3", "s3")])));
}

#[test]
fn a_container_list_beside_an_older_sandbox_list_is_refused_if_a_sandbox_is_missing() {
    let (_dir, backend) = backend();
    take_pair(&backend, &["s1"], &[("c1", "s1")]);
    let more = containers(&[("c1", "s1"), ("c2", "s2")]);
    backend.replace_list(ListKind::Containers, backend.begin_read(), more.clone());
    assert_eq!(ids(&backend, ListKind::Containers).unwrap(), ["c1"]);
    backend.replace_list(ListKind::Containers, backend.begin_read(), containers(&[]));
    assert_eq!(ids(&backend, ListKind::Containers).unwrap(), Vec::<String>::new(), "nothing is missing");
    backend.replace_list(ListKind::Sandboxes, backend.begin_read(), sandboxes(&["s1", "s2"]));
    backend.replace_list(ListKind::Containers, backend.begin_read(), more);
    assert_eq!(ids(&backend, ListKind::Containers).unwrap(), ["c1", "c2"]);
}

#[test]
fn a_container_whose_sandbox_the_backend_does_not_have_is_listed_once_it_says_so_again() {
    let (_dir, backend) = backend();
    let orphan = &[("c1", "s1"), ("orphan", "lost")];
    take_pair(&backend, &["s1"], orphan);
    assert!(!backend.has_lists(), "the halves may have been answered at different times");
    take_pair(&backend, &["s1"], orphan);
    assert_eq!(ids(&backend, ListKind::Containers).unwrap(), ["c1", "orphan"]);
    let asked_in_turn = [("c1", "s1"), ("orphan-2", "lost")];
    backend.replace_list(ListKind::Sandboxes, backend.begin_read(), sandboxes(&["s1"]));
    backend.replace_list(ListKind::Containers, backend.begin_read(), containers(&asked_in_turn));
    assert_eq!(ids(&backend, ListKind::Containers).unwrap(), ["c1", "orphan-2"]);
}

#[test]
fn changes_show_at_once() {
    let (_dir, backend) = backend();
    take_pair(&backend, &["s1"], &[("c1", "s1")]);
    backend.record_sandbox_created("s2", &run_request("db"));
    backend.record_container_created("c2", "s2", &[]);
    let state_of = |id: &str| {
        let all = shown(&backend, ListKind::Containers).unwrap();
        all.into_iter().find(|(listed, _)| listed == id).map(|(_, state)| state)
    };
    assert_eq!(state_of("c2"), Some(CONTAINER_CREATED));
    backend.record_container_started("c2");
    assert_eq!(state_of("c2"), Some(CONTAINER_RUNNING));
    backend.record_container_stopped("c2");
    assert_eq!(state_of("c2"), Some(CONTAINER_EXITED));
    backend.record_container_removed("c2");
    assert_eq!(state_of("c2"), None);
    backend.record_sandbox_stopped("s1");
    assert_eq!(state_of("c1"), Some(CONTAINER_EXITED));
    let both = vec![("s1".to_owned(), SANDBOX_NOTREADY), ("s2".to_owned(), SANDBOX_READY)];
    assert_eq!(shown(&backend, ListKind::Sandboxes).unwrap(), both);
    backend.record_sandbox_removed("s1");
    assert_eq!(state_of("c1"), None);
    assert_eq!(ids(&backend, ListKind::Sandboxes).unwrap(), ["s2"]);
}

#[test]
fn a_container_that_was_never_started_is_not_exited_by_a_stop() {
    let (_dir, backend) = backend();
    take_pair(&backend, &["s1"], &[("ran", "s1")]);
    let listed = |id: &str, state| (id.to_owned(), state);
    for id in ["created", "started"] {
        backend.record_container_created(id, "s1", &[]);
        backend.record_container_stopped(id);
    }
    // That stop did nothing, and so the start is one.
    backend.record_container_started("started");
    let running = [
        listed("created", CONTAINER_CREATED),
        listed("ran", CONTAINER_RUNNING),
        listed("started", CONTAINER_RUNNING),
    ];
    assert_eq!(shown(&backend, ListKind::Containers).unwrap(), running);
    backend.record_sandbox_stopped("s1");
    let stopped = [
        listed("created", CONTAINER_CREATED),
        listed("ran", CONTAINER_EXITED),
        listed("started", CONTAINER_EXITED),
    ];
    assert_eq!(shown(&backend, ListKind::Containers).unwrap(), stopped);
}

#[test]
fn a_container_in_an_unknown_state_is_exited_by_a_stop() {
    let (_dir, backend) = backend();
    take_pair(&backend, &["s1"], &[]);
    let unknown = cri::ListContainersResponse { containers: vec![container("c1", "s1", CONTAINER_UNKNOWN)] };
    backend.replace_list(ListKind::Containers, backend.begin_read(), unknown.encode_to_vec().into());
    backend.record_container_stopped("c1");
    assert_eq!(shown(&backend, ListKind::Containers).unwrap(), [("c1".to_owned(), CONTAINER_EXITED)]);
}

#[test]
fn a_restored_pod_is_listed_with_its_running_containers() {
    let (_dir, backend) = backend();
    take_pair(&backend, &[], &[]);
    let config = cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "main".into(), attempt: 4 }),
        ..Default::default()
    };
    let request = cri::RestorePodRequest {
        runtime_handler: "kata".into(),
        container_configs: vec![config],
        ..Default::default()
    };
    let restored =
        |name: &str, id: &str| cri::RestoredContainer { name: name.into(), container_id: id.into() };
    let response = cri::RestorePodResponse {
        pod_sandbox_id: "s1".into(),
        restored_containers: vec![restored("main", "c1"), restored("other", "c2")],
    };
    backend.record_restored(&request.encode_to_vec(), &response.encode_to_vec()).unwrap();
    let mut seen = Vec::new();
    backend.for_each_sandbox(|facts| seen.push(format!("{} {}", facts.id, facts.runtime_handler)));
    backend.for_each_container(|facts| {
        seen.push(format!(
            "{} {} {} {} {}",
            facts.id, facts.sandbox_id, facts.name, facts.attempt, facts.state
        ));
    });
    assert_eq!(seen, ["s1 kata", "c1 s1 main 4 1", "c2 s1 other 0 1"]);
}

#[test]
fn a_change_does_not_turn_back_what_a_newer_list_knows_better() {
    let (_dir, backend) = backend();
    take_pair(&backend, &["s1"], &[("c1", "s1")]);
    let before = backend.begin_read();
    backend.record_container_started("c1");
    let exited = cri::ListContainersResponse { containers: vec![container("c1", "s1", CONTAINER_EXITED)] };
    backend.replace_list(ListKind::Sandboxes, before, sandboxes(&["s1"]));
    backend.replace_list(ListKind::Containers, before, exited.encode_to_vec().into());
    assert_eq!(shown(&backend, ListKind::Containers).unwrap(), [("c1".to_owned(), CONTAINER_EXITED)]);
}

#[test]
fn a_filtered_reply_adds_and_updates_and_never_removes() {
    let (_dir, backend) = backend();
    take_pair(&backend, &["s1", "s2"], &[("c1", "s1"), ("c2", "s2")]);
    let revision = backend.begin_read();
    backend.record_container_removed("c2");
    let reply = cri::ListContainersResponse {
        containers: vec![
            container("c1", "s1", CONTAINER_EXITED),
            container("c2", "s2", CONTAINER_RUNNING),
            container("c3", "s2", CONTAINER_RUNNING),
            container("c4", "unknown", CONTAINER_RUNNING),
        ],
    };
    backend.update_items(ListKind::Containers, revision, &reply.encode_to_vec()).unwrap();
    let expected = [("c1".to_owned(), CONTAINER_EXITED), ("c3".to_owned(), CONTAINER_RUNNING)];
    assert_eq!(shown(&backend, ListKind::Containers).unwrap(), expected, "c2 was removed, c4 has no sandbox");
    backend.update_items(ListKind::Containers, backend.begin_read(), &[]).unwrap();
    assert_eq!(shown(&backend, ListKind::Containers).unwrap(), expected);
    take_pair(&backend, &["s1"], &[("c1", "s1")]);
    assert_eq!(shown(&backend, ListKind::Containers).unwrap(), [("c1".to_owned(), CONTAINER_RUNNING)]);
}

#[test]
fn a_filtered_reply_older_than_the_list_says_nothing() {
    let (_dir, backend) = backend();
    let old = backend.begin_read();
    take_pair(&backend, &["s1"], &[]);
    backend.update_items(ListKind::Sandboxes, old, &sandboxes(&["s2"])).unwrap();
    assert_eq!(ids(&backend, ListKind::Sandboxes).unwrap(), ["s1"]);
}

#[test]
fn an_unreadable_filtered_reply_is_an_error_and_changes_nothing() {
    let (_dir, backend) = backend();
    take_pair(&backend, &["s1"], &[]);
    let mut torn = sandboxes(&["s2", "s3"]).to_vec();
    torn.pop();
    assert!(backend.update_items(ListKind::Sandboxes, backend.begin_read(), &torn).is_err());
    assert_eq!(ids(&backend, ListKind::Sandboxes).unwrap(), ["s1"]);
}

#[test]
fn a_removed_image_is_gone_at_once_and_stays_gone_for_a_list_sent_before() {
    let (_dir, backend) = backend();
    let image = |id: &str| cri::Image { id: id.into(), ..Default::default() };
    let images = cri::ListImagesResponse { images: vec![image("sha256:aa"), image("sha256:bb")] };
    let images = Bytes::from(images.encode_to_vec());
    let count = || {
        let list = list(&backend, ListKind::Images)?;
        Some(cri::ListImagesResponse::decode(list).unwrap().images.len())
    };
    assert_eq!(count(), None);
    backend.replace_list(ListKind::Images, backend.begin_read(), images.clone());
    let before = backend.begin_read();
    backend.record_image_removed("sha256:aa");
    assert_eq!(count(), Some(1));
    backend.replace_list(ListKind::Images, before, images.clone());
    assert_eq!(count(), Some(1));
    backend.replace_list(ListKind::Images, backend.begin_read(), images.clone());
    assert_eq!(count(), Some(2), "the backend lists it again");
    let before = backend.begin_read();
    backend.forget_images();
    backend.replace_list(ListKind::Images, before, images);
    assert_eq!(count(), None);
}

#[test]
fn stats_are_those_of_what_is_listed() {
    let (_dir, backend) = backend();
    let stats = |id: &str| {
        let attributes = cri::ContainerAttributes { id: id.into(), ..Default::default() };
        cri::ContainerStats { attributes: Some(attributes), ..Default::default() }
    };
    let reply = cri::ListContainerStatsResponse { stats: vec![stats("c1"), stats("c2")] };
    backend.replace_list(ListKind::ContainerStats, backend.begin_read(), reply.encode_to_vec().into());
    take_pair(&backend, &["s1", "s2"], &[("c1", "s1"), ("c2", "s2")]);
    let listed = |filter: &Filter| {
        let list = backend.list(ListKind::ContainerStats, filter).unwrap();
        cri::ListContainerStatsResponse::decode(list).unwrap().stats
    };
    let of_s2 = cri::ListContainerStatsRequest {
        filter: Some(cri::ContainerStatsFilter { pod_sandbox_id: "s2".into(), ..Default::default() }),
    };
    let of_s2 = Filter::parse(ListKind::ContainerStats, &of_s2.encode_to_vec()).unwrap();
    assert_eq!(listed(&of_s2), [stats("c2")]);
    backend.record_sandbox_removed("s2");
    assert_eq!(listed(&Filter::default()), [stats("c1")]);
    assert_eq!(listed(&of_s2), []);
}
