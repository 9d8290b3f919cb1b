//! Routes, verdicts and references, each rule by itself.

use std::collections::BTreeMap;

use prost::Message;

use super::answers::User;
use super::*;
use crate::cri;
use crate::router::Handlers;

const SEEN: &str = "kubernetes.io/config.seen";

/// A router with the default backend `a`; handler `kata` is `b`'s, `both` is split.
fn router() -> Router {
    let yaml = "listen: unix:///run/x/x.sock\n\
                default_backend: a\n\
                backends:\n  a: { endpoint: 'unix:///run/a.sock' }\n  b: { endpoint: 'unix:///run/b.sock' }\n\
                handlers:\n  kata: { backend: b, handler: kata-qemu }\n  b: { backend: b, handler: b }\n  \
                both: { split: [ { backend: a, handler: x, weight: 1 }, { backend: b, handler: y, weight: 1 } ] }\n";
    let config = crate::config::Config::parse(yaml, std::path::Path::new("/")).unwrap();
    Router::new(Handlers::new(
        &config,
        &BTreeMap::from([("a".to_owned(), id("a")), ("b".to_owned(), id("b"))]),
    ))
}

/// The identifier of the backend of this name.
fn id(backend: &str) -> InstanceId {
    InstanceId(if backend == "a" { 1 } else { 2 })
}

fn name(backend: InstanceId) -> &'static str {
    if backend == id("a") { "a" } else { "b" }
}

fn learn(router: &Router, id: &str, backend: &str, uid: &str, annotations: &[(&str, &str)]) {
    let pod = SandboxRecord {
        created_at: 1,
        ready: true,
        ..SandboxRecord::new(uid, backend, annotations.iter().copied())
    };
    router.owners.learn_sandbox(id, super::tests::id(backend), pod);
}

fn spec(handler: &str, annotations: &[(&str, &str)]) -> Vec<u8> {
    let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let image = cri::ImageSpec {
        image: "busybox".into(),
        annotations: annotations.collect(),
        runtime_handler: handler.into(),
        ..Default::default()
    };
    cri::ImageStatusRequest { image: Some(image), verbose: false }.encode_to_vec()
}

/// A node on which `down` is down and `using` has containers of every image.
fn route_with(
    router: &Router,
    handler: &str,
    annotations: &[(&str, &str)],
    (down, using, is_young_process): (&str, &[&str], bool),
) -> Result<(Rule, String), Error> {
    let known = BackendFacts {
        is_down: &|backend| name(backend) == down,
        sandboxes_using: &|_, _| using.iter().map(|id| (*id).to_owned()).collect(),
        is_young_process,
    };
    let request = spec(handler, annotations);
    let route = router.route_of_status(&ImageRequest::read(&request).unwrap(), &known)?;
    let stores = route.stores.iter().map(|StoreTarget { backend, backend_handler }| match backend_handler {
        Some(handler) => format!("{}:{handler}", name(*backend)),
        None => name(*backend).to_owned(),
    });
    Ok((route.rule, stores.collect::<Vec<_>>().join(",")))
}

fn route(router: &Router, handler: &str, annotations: &[(&str, &str)]) -> (Rule, String) {
    route_with(router, handler, annotations, ("", &[], false)).unwrap()
}

fn to(rule: Rule, stores: &str) -> (Rule, String) {
    (rule, stores.to_owned())
}

#[test]
fn every_rule_has_one_row() {
    for (index, row) in RULES.iter().enumerate() {
        assert_eq!(RULES.iter().position(|other| other.rule == row.rule), Some(index), "{:?}", row.rule);
        assert_eq!(row.rule.row().reason, row.reason);
    }
    assert_eq!(Rule::Unknown as usize + 1, RULES.len(), "the last rule is the last row");
}

#[test]
fn config_seen_leads_to_the_sandbox_and_its_owner() {
    let router = router();
    learn(&router, "s1", "b", "u1", &[(SEEN, "t1"), ("note", "x")]);
    learn(&router, "s2", "a", "u2", &[(SEEN, "t2"), ("note", "x")]);
    assert_eq!(route(&router, "", &[(SEEN, "t1"), ("note", "changed since")]), to(Rule::ConfigSeen, "b"));
    assert_eq!(route(&router, "", &[(SEEN, "t2")]), to(Rule::ConfigSeen, "a"));
    let down = route_with(&router, "", &[(SEEN, "t2")], ("a", &["s1"], false)).unwrap();
    assert_eq!(down, to(Rule::ConfigSeen, "a"), "a pod that is known is nobody else's");
}

#[test]
fn equal_annotations_stand_in_for_an_unknown_config_seen() {
    let router = router();
    learn(&router, "s1", "b", "u1", &[(SEEN, "t1"), ("kubernetes.io/config.source", "api"), ("note", "x")]);
    let asked = [("note", "x"), (SEEN, "t9")];
    assert_eq!(route(&router, "", &asked), to(Rule::Alike, "b"));
    learn(&router, "s2", "a", "u2", &[(SEEN, "t2"), ("note", "x")]);
    assert_eq!(route(&router, "", &asked), to(Rule::Alike, "a,b"));
    router.owners.record_ready("s1", false);
    assert_eq!(route(&router, "", &asked), to(Rule::Alike, "a"), "image calls need a ready sandbox");
    assert_eq!(route(&router, "", &[("note", "y"), (SEEN, "t9")]), to(Rule::NoPod, "a"));
}

#[test]
fn of_pods_alike_those_with_a_container_of_the_image_are_meant() {
    let router = router();
    learn(&router, "s1", "b", "u1", &[(SEEN, "t1")]);
    learn(&router, "s2", "a", "u2", &[(SEEN, "t2")]);
    let with = |using: &[&str]| route_with(&router, "", &[(SEEN, "t9")], ("", using, false)).unwrap();
    assert_eq!(with(&["s1"]), to(Rule::UsedBy, "b"));
    assert_eq!(with(&["s1", "s2"]), to(Rule::UsedBy, "a,b"));
    assert_eq!(with(&["gone"]), to(Rule::Alike, "a,b"));
}

#[test]
fn a_backend_that_is_down_is_no_candidate_unless_there_is_no_other() {
    let router = router();
    learn(&router, "s1", "b", "u1", &[(SEEN, "t1")]);
    let down = |using: &[&str]| route_with(&router, "", &[(SEEN, "t9")], ("b", using, false)).unwrap();
    assert_eq!(down(&[]), to(Rule::Alike, "b"), "it is Unavailable there, and absent nowhere");
    learn(&router, "s2", "a", "u2", &[(SEEN, "t2")]);
    assert_eq!(down(&[]), to(Rule::Alike, "a"));
    assert_eq!(down(&["s1"]), to(Rule::Alike, "a"));
}

#[test]
fn pods_without_other_annotations_are_alike_but_sandboxes_that_are_not_of_kubelet_are_not() {
    let router = router();
    learn(&router, "s1", "b", "u1", &[(SEEN, "t1")]);
    learn(&router, "s2", "a", "u2", &[]);
    assert_eq!(route(&router, "", &[(SEEN, "t9")]), to(Rule::Alike, "b"));
    assert_eq!(route(&router, "", &[]), to(Rule::OtherClient, "a"));
    assert_eq!(
        route(&router, "", &[("note", "x")]),
        to(Rule::OtherClient, "a"),
        "kubelet never leaves config.seen out"
    );
}

#[test]
fn one_config_seen_of_two_pods_means_both_of_their_backends() {
    let router = router();
    learn(&router, "s1", "b", "u1", &[(SEEN, "t1")]);
    learn(&router, "s2", "a", "u2", &[(SEEN, "t1")]);
    assert_eq!(route(&router, "", &[(SEEN, "t1")]), to(Rule::ConfigSeen, "a,b"));
}

#[test]
fn a_call_without_annotations_is_the_default_backends_unless_a_start_is_under_way() {
    let router = router();
    learn(&router, "s1", "b", "u1", &[(SEEN, "t1")]);
    assert_eq!(route(&router, "", &[]), to(Rule::OtherClient, "a"));
    router.image_starts.begin("busybox", "t1", vec![id("b")], Instant::now());
    assert_eq!(route(&router, "", &[]), to(Rule::StartUnderWay, "b"));
    router.image_starts.begin("busybox", "t2", vec![id("a")], Instant::now());
    assert_eq!(route(&router, "", &[]), to(Rule::StartUnderWay, "a,b"));
    let down = route_with(&router, "", &[], ("b", &[], false)).unwrap();
    assert_eq!(down, to(Rule::StartUnderWay, "a,b"), "b may be back before the container is created");
}

#[test]
fn what_a_kubelet_that_is_gone_was_starting_is_over_when_the_pods_new_config_seen_is_learnt() {
    let router = router();
    learn(&router, "s1", "b", "u1", &[(SEEN, "t1")]);
    router.image_starts.begin("busybox", "t1", vec![id("b")], Instant::now());
    router.record_config_seen("u1", "t1");
    assert_eq!(route(&router, "", &[]), to(Rule::StartUnderWay, "b"));
    router.image_starts.begin("busybox", "t2", vec![id("b")], Instant::now());
    router.record_config_seen("u1", "t2");
    assert_eq!(route(&router, "", &[]), to(Rule::StartUnderWay, "b"), "the new kubelet's goes on");
    router.image_starts.end_all("t2");
    assert_eq!(route(&router, "", &[]), to(Rule::OtherClient, "a"));
}

#[test]
fn one_config_seen_of_two_pods_is_over_when_both_have_another() {
    let router = router();
    learn(&router, "s1", "b", "u1", &[(SEEN, "t1")]);
    learn(&router, "s2", "b", "u2", &[(SEEN, "t1")]);
    router.image_starts.begin("busybox", "t1", vec![id("b")], Instant::now());
    router.record_config_seen("u1", "t2");
    assert_eq!(route(&router, "", &[]), to(Rule::StartUnderWay, "b"));
    router.record_config_seen("u2", "t3");
    assert_eq!(route(&router, "", &[]), to(Rule::OtherClient, "a"));
}

#[test]
fn soon_after_the_start_all_backends_with_pods_of_kubelet_may_be_meant() {
    let router = router();
    let started = |router: &Router| route_with(router, "", &[], ("", &[], true)).unwrap();
    learn(&router, "s1", "b", "u1", &[]);
    assert_eq!(started(&router), to(Rule::OtherClient, "a"), "no pod is kubelet's");
    learn(&router, "s2", "b", "u2", &[(SEEN, "t1")]);
    assert_eq!(started(&router), to(Rule::YoungProcess, "a,b"));
}

#[test]
fn a_handler_is_renamed_and_a_pod_that_is_known_goes_before_it() {
    let router = router();
    learn(&router, "s1", "a", "u1", &[(SEEN, "t1")]);
    assert_eq!(route(&router, "kata", &[]), to(Rule::Handler, "b:kata-qemu"));
    assert_eq!(
        route(&router, "kata", &[(SEEN, "t1")]),
        to(Rule::ConfigSeen, "a:a"),
        "the sandbox's own handler"
    );
    assert_eq!(route(&router, "b", &[]), to(Rule::Handler, "b"), "the same name needs no change");
    assert_eq!(route(&router, "both", &[(SEEN, "t1")]), to(Rule::ConfigSeen, "a:x"));
    assert_eq!(route(&router, "both", &[]), to(Rule::Handler, "a:x,b:y"));
    assert_eq!(route(&router, "both", &[(SEEN, "t9")]), to(Rule::Handler, "a:x"), "a has the pods alike");
    let unknown = |annotations: &[(&str, &str)]| route_with(&router, "gone", annotations, ("", &[], false));
    assert!(matches!(unknown(&[]).unwrap_err(), Error::UnknownHandler { .. }));
}

#[test]
fn a_handler_that_was_taken_out_does_not_block_the_pods_it_made() {
    let router = router();
    learn(&router, "s1", "b", "u1", &[(SEEN, "t1")]);
    assert_eq!(route(&router, "gone", &[(SEEN, "t1")]), to(Rule::ConfigSeen, "b:b"), "as b knows it");
    assert_eq!(route(&router, "gone", &[(SEEN, "t9")]), to(Rule::Alike, "b:b"));
    let refused = |_: &str, _: &str| -> Result<Choice, Error> { panic!("the pod decides") };
    let asked = ImageRequest { handler: "gone", uid: "u1", ..ImageRequest::default() };
    let pod = router.owners.newest(|pod| &*pod.uid == "u1");
    let pull = router.route_of_pull(&asked, pod.as_ref(), refused).unwrap();
    let store = StoreTarget { backend: id("b"), backend_handler: Some("b".to_owned()) };
    assert_eq!(pull, ImageRoute { rule: Rule::PodUid, stores: vec![store] });
}

#[test]
fn a_pull_goes_to_the_sandbox_that_it_is_for_or_to_the_default_backend() {
    let router = router();
    learn(&router, "s1", "b", "u1", &[(SEEN, "t1")]);
    let request = |uid: &str| {
        let metadata = Some(cri::PodSandboxMetadata { uid: uid.into(), ..Default::default() });
        let sandbox_config = Some(cri::PodSandboxConfig { metadata, ..Default::default() });
        cri::PullImageRequest { sandbox_config, ..Default::default() }.encode_to_vec()
    };
    let rule = |request: &[u8]| {
        let asked = ImageRequest::read(request).unwrap();
        let pod = router.owners.newest(|pod| !asked.uid.is_empty() && &*pod.uid == asked.uid);
        let route = router.route_of_pull(&asked, pod.as_ref(), |_, _| panic!("no handler")).unwrap();
        (route.rule, name(route.stores[0].backend).to_owned())
    };
    assert_eq!(rule(&request("u1")), to(Rule::PodUid, "b"));
    assert_eq!(rule(&request("u2")), to(Rule::PullWithoutPod, "a"));
    learn(&router, "s3", "b", "", &[]);
    assert_eq!(rule(&request("")), to(Rule::PullWithoutPod, "a"), "an empty uid is no pod's");
}

#[test]
fn the_user_is_what_kubelet_would_take() {
    let reply = |uid: Option<i64>, username: &str| {
        let uid = uid.map(|value| cri::Int64Value { value });
        let image = cri::Image { id: "i".into(), uid, username: username.into(), ..Default::default() };
        user_if_present(
            &cri::ImageStatusResponse { image: Some(image), ..Default::default() }.encode_to_vec(),
        )
    };
    assert_eq!(reply(Some(1000), ""), Some(User::Uid(1000)));
    assert_eq!(reply(Some(0), "app"), Some(User::Uid(0)));
    assert_eq!(reply(None, "app"), Some(User::Name("app".into())));
    assert_eq!(reply(None, ""), Some(User::Uid(0)));
    assert_eq!(user_if_present(&cri::ImageStatusResponse::default().encode_to_vec()), None);
}

#[test]
fn stores_answer_for_each_other_only_if_they_agree() {
    let (root, app) = (StoreAnswer::Present(User::Uid(0)), StoreAnswer::Present(User::Uid(7)));
    let (absent, silent) = (StoreAnswer::Absent, StoreAnswer::Unavailable);
    let undecided = |answers: &[StoreAnswer], absent_counts| {
        matches!(compare_answers(answers, absent_counts), Verdict::Undecided(_))
    };
    for absent_counts in [true, false] {
        assert_eq!(compare_answers(&[app.clone(), app.clone()], absent_counts), Verdict::Answer(0));
        assert!(undecided(&[app.clone(), root.clone()], absent_counts));
        assert!(undecided(&[app.clone(), absent.clone()], absent_counts));
        assert!(undecided(&[absent.clone(), silent.clone()], absent_counts));
    }
    assert_eq!(compare_answers(&[absent.clone(), absent.clone()], true), Verdict::Absent);
    assert!(undecided(&[absent], false), "kubelet would take it for root");
    assert_eq!(compare_answers(&[silent.clone(), app.clone()], true), Verdict::Answer(1));
    assert!(undecided(&[silent, app], false), "the start may be on the one that does not answer");
}

fn status(id: &str) -> Vec<u8> {
    let image = cri::Image { id: id.into(), ..Default::default() };
    cri::ImageStatusResponse { image: Some(image), ..Default::default() }.encode_to_vec()
}

#[test]
fn the_same_image_is_shown_in_the_form_that_every_runtime_understands() {
    let (long, plain, other) = (status("sha256:ab"), status("ab"), status("cd"));
    assert_eq!(index_of_same_image(&[&long, &plain]), Some(1));
    assert_eq!(index_of_same_image(&[&long, &long]), Some(0));
    assert_eq!(index_of_same_image(&[&long, &other]), None);
    assert_eq!(index_of_same_image(&[]), None);
}

fn list(images: &[(&str, &str)]) -> Vec<u8> {
    let images = images.iter().map(|(id, tag)| cri::Image {
        id: (*id).into(),
        repo_tags: vec![(*tag).into()],
        ..Default::default()
    });
    cri::ListImagesResponse { images: images.collect() }.encode_to_vec()
}

#[test]
fn a_reference_means_the_most_certain_images_of_all_stores() {
    let a = list(&[("sha256:cafe01", "docker.io/library/web:1"), ("sha256:cafe02", "docker.io/library/b:1")]);
    let b = list(&[("cafe01", "docker.io/library/web:1"), ("00", "docker.io/library/cafe:latest")]);
    let ids = |reference: &str| {
        let mut stores = [matching_images(&a, reference), matching_images(&b, reference)];
        keep_best_match(&mut stores, reference).map(|rule| {
            (
                rule,
                stores.map(|images| images.into_iter().map(|image| image.id).collect::<Vec<_>>().join(",")),
            )
        })
    };
    let found = |rule, a: &str, b: &str| (Some(rule), [a.to_owned(), b.to_owned()]);
    assert_eq!(ids("sha256:cafe01").unwrap(), found(Rule::RemoveId, "sha256:cafe01", ""), "b's is another's");
    assert_eq!(ids("cafe01").unwrap(), found(Rule::RemoveId, "", "cafe01"));
    assert_eq!(ids("cafe02").unwrap(), found(Rule::RemoveOtherSpelling, "sha256:cafe02", ""));
    assert_eq!(ids("sha256:00").unwrap(), found(Rule::RemoveOtherSpelling, "", "00"));
    assert_eq!(ids("web:1").unwrap(), found(Rule::RemoveName, "sha256:cafe01", "cafe01"));
    assert_eq!(ids("cafe").unwrap(), found(Rule::RemoveName, "", "00"), "a name goes before a prefix");
    assert_eq!(
        ids("cafe0").unwrap_err().to_string(),
        Error::Ambiguous { kind: "image", prefix: "cafe0".into() }.to_string()
    );
    assert_eq!(ids("nothing").unwrap(), (None, [String::new(), String::new()]));
}
