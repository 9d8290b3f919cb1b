//! Filters let through what a straightforward reading of the decoded messages lets through.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

type LabelMap = HashMap<String, String>;

fn labels() -> impl Strategy<Value = LabelMap> {
    prop::collection::hash_map("[ab]", "[xy]?", 0..3)
}

fn id() -> impl Strategy<Value = String> {
    "[ab]{1,3}"
}

fn distinct<T>(items: Vec<T>, id: impl Fn(&T) -> String) -> Vec<T> {
    let mut seen = std::collections::HashSet::new();
    items.into_iter().filter(|item| seen.insert(id(item))).collect()
}

fn has_labels(item: &LabelMap, selector: &LabelMap) -> bool {
    selector.iter().all(|(key, value)| item.get(key) == Some(value))
}

prop_compose! {
    fn any_sandbox()(id in id(), state in 0..3i32, labels in labels()) -> cri::PodSandbox {
        cri::PodSandbox { id, state, labels, ..Default::default() }
    }
}

prop_compose! {
    fn any_container()(id in id(), sandbox in id(), state in 0..4i32, labels in labels()) -> cri::Container {
        cri::Container { id, pod_sandbox_id: sandbox, state, labels, ..Default::default() }
    }
}

proptest! {
    #[test]
    fn sandboxes(
        items in prop::collection::vec(any_sandbox(), 0..8),
        id in prop::option::of(id()),
        state in prop::option::of(0..2i32),
        selector in labels(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let backend = open(dir.path()).backend("runc", true);
        let items = distinct(items, |item| item.id.clone());
        let all = cri::ListPodSandboxResponse { items: items.clone() };
        backend.replace_list(ListKind::Sandboxes, backend.begin_read(), all.encode_to_vec().into());
        backend.replace_list(ListKind::Containers, backend.begin_read(), Bytes::new());
        let filter = cri::PodSandboxFilter {
            id: id.clone().unwrap_or_default(),
            state: state.map(|state| cri::PodSandboxStateValue { state }),
            label_selector: selector.clone(),
        };
        let request = cri::ListPodSandboxRequest { filter: Some(filter) }.encode_to_vec();
        let filter = Filter::parse(ListKind::Sandboxes, &request).unwrap();
        prop_assert_eq!(filter.is_empty(), id.is_none() && state.is_none() && selector.is_empty());
        let listed = backend.list(ListKind::Sandboxes, &filter).unwrap();
        let expected: Vec<_> = items
            .into_iter()
            .filter(|item| id.as_ref().is_none_or(|id| item.id.starts_with(id)))
            .filter(|item| state.is_none_or(|state| item.state == state))
            .filter(|item| has_labels(&item.labels, &selector))
            .collect();
        prop_assert_eq!(cri::ListPodSandboxResponse::decode(listed).unwrap().items, expected);
    }

    #[test]
    fn containers(
        items in prop::collection::vec(any_container(), 0..8),
        id in prop::option::of(id()),
        sandbox in prop::option::of(id()),
        state in prop::option::of(0..4i32),
        selector in labels(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let backend = open(dir.path()).backend("runc", true);
        let items = distinct(items, |item| item.id.clone());
        let all = cri::ListContainersResponse { containers: items.clone() };
        backend.replace_list(ListKind::Sandboxes, backend.begin_read(), Bytes::new());
        backend.replace_list(ListKind::Containers, backend.begin_read(), all.encode_to_vec().into());
        let filter = cri::ContainerFilter {
            id: id.clone().unwrap_or_default(),
            state: state.map(|state| cri::ContainerStateValue { state }),
            pod_sandbox_id: sandbox.clone().unwrap_or_default(),
            label_selector: selector.clone(),
        };
        let request = cri::ListContainersRequest { filter: Some(filter) }.encode_to_vec();
        let filter = Filter::parse(ListKind::Containers, &request).unwrap();
        let listed = backend.list(ListKind::Containers, &filter).unwrap();
        let expected: Vec<_> = items
            .into_iter()
            .filter(|item| id.as_ref().is_none_or(|id| item.id.starts_with(id)))
            .filter(|item| sandbox.as_ref().is_none_or(|id| item.pod_sandbox_id.starts_with(id)))
            .filter(|item| state.is_none_or(|state| item.state == state))
            .filter(|item| has_labels(&item.labels, &selector))
            .collect();
        prop_assert_eq!(cri::ListContainersResponse::decode(listed).unwrap().containers, expected);
    }

    #[test]
    fn sandbox_stats(
        items in prop::collection::vec((id(), labels()), 0..8),
        id in prop::option::of(id()),
        selector in labels(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let backend = open(dir.path()).backend("runc", true);
        let stats = |(id, labels): (String, LabelMap)| cri::PodSandboxStats {
            attributes: Some(cri::PodSandboxAttributes { id, labels, ..Default::default() }),
            ..Default::default()
        };
        let all = items.iter().cloned().map(stats).collect();
        let all = cri::ListPodSandboxStatsResponse { stats: all };
        backend.replace_list(ListKind::PodSandboxStats, backend.begin_read(), all.encode_to_vec().into());
        let filter = cri::PodSandboxStatsFilter {
            id: id.clone().unwrap_or_default(),
            label_selector: selector.clone(),
        };
        let request = cri::ListPodSandboxStatsRequest { filter: Some(filter) }.encode_to_vec();
        let filter = Filter::parse(ListKind::PodSandboxStats, &request).unwrap();
        let listed = backend.list(ListKind::PodSandboxStats, &filter).unwrap();
        let expected: Vec<_> = items
            .into_iter()
            .filter(|(item, _)| id.as_ref().is_none_or(|id| item.starts_with(id)))
            .filter(|(_, labels)| has_labels(labels, &selector))
            .map(stats)
            .collect();
        prop_assert_eq!(cri::ListPodSandboxStatsResponse::decode(listed).unwrap().stats, expected);
    }
}

#[test]
fn an_absent_or_empty_filter_is_no_filter_and_an_empty_state_is_one() {
    let parse = |filter| {
        let request = cri::ListContainersRequest { filter }.encode_to_vec();
        Filter::parse(ListKind::Containers, &request).unwrap()
    };
    assert!(parse(None).is_empty());
    assert!(parse(Some(cri::ContainerFilter::default())).is_empty());
    let created =
        cri::ContainerFilter { state: Some(cri::ContainerStateValue::default()), ..Default::default() };
    assert!(!parse(Some(created)).is_empty());
}

#[test]
fn a_filter_that_is_not_understood_never_counts_as_none() {
    let mut unknown_in_filter = Vec::new();
    crate::wire::put_bytes(&mut unknown_in_filter, 1, &[0x7a, 0x01, b'x']);
    for request in [&unknown_in_filter[..], &[0x7a, 0x01, b'x']] {
        assert!(!Filter::parse(ListKind::Sandboxes, request).unwrap().is_empty());
    }
    assert!(Filter::parse(ListKind::Sandboxes, &[0x0a, 0x05]).is_err());
}

#[test]
fn images_are_found_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).backend("runc", true);
    let image =
        |id: &str, tag: &str| cri::Image { id: id.into(), repo_tags: vec![tag.into()], ..Default::default() };
    let images = vec![image("sha256:aa", "docker.io/library/busybox:1"), image("sha256:bb", "quay.io/x/y:2")];
    let reply = cri::ListImagesResponse { images: images.clone() }.encode_to_vec();
    backend.replace_list(ListKind::Images, backend.begin_read(), reply.into());
    let found = |name: &str| {
        let spec = cri::ImageSpec { image: name.into(), ..Default::default() };
        let request = cri::ListImagesRequest { filter: Some(cri::ImageFilter { image: Some(spec) }) };
        let filter = Filter::parse(ListKind::Images, &request.encode_to_vec()).unwrap();
        cri::ListImagesResponse::decode(backend.list(ListKind::Images, &filter).unwrap()).unwrap().images
    };
    assert_eq!(found("busybox:1"), images[..1]);
    assert_eq!(found("sha256:bb"), images[1..]);
    assert_eq!(found("alpine"), []);
    assert_eq!(found(""), images);
}
