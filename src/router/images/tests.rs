//! Ways, verdicts and references, each rule by itself.

use std::collections::BTreeMap;

use prost::Message;

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
    Router::new(Handlers::new(&config, &BTreeMap::new()))
}

fn learn(router: &Router, id: &str, backend: &str, uid: &str, annotations: &[(&str, &str)]) {
    let pod = Pod::new(uid, "", annotations.iter().copied(), 1, true);
    router.owners.learn_sandbox(id, &backend.into(), pod);
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

fn way(router: &Router, handler: &str, annotations: &[(&str, &str)]) -> StatusRoute {
    router.way_of_status(&ImageRequest::read(&spec(handler, annotations)).unwrap()).unwrap()
}

fn one(backend: &str) -> StatusRoute {
    StatusRoute::One(StoreTarget::plain(backend.into()))
}

fn every(backends: &[&str]) -> StatusRoute {
    StatusRoute::Every(backends.iter().map(|backend| StoreTarget::plain((*backend).into())).collect())
}

#[test]
fn config_seen_leads_to_the_sandbox_and_its_owner() {
    let router = router();
    learn(&router, "s1", "b", "u1", &[(SEEN, "t1"), ("note", "x")]);
    learn(&router, "s2", "a", "u2", &[(SEEN, "t2"), ("note", "x")]);
    assert_eq!(way(&router, "", &[(SEEN, "t1"), ("note", "changed since")]), one("b"));
    assert_eq!(way(&router, "", &[(SEEN, "t2")]), one("a"));
}

#[test]
fn equal_annotations_stand_in_for_an_unknown_config_seen() {
    let router = router();
    learn(&router, "s1", "b", "u1", &[(SEEN, "t1"), ("kubernetes.io/config.source", "api"), ("note", "x")]);
    assert_eq!(way(&router, "", &[("note", "x"), (SEEN, "t9")]), one("b"));
    learn(&router, "s2", "a", "u2", &[(SEEN, "t2"), ("note", "x")]);
    assert_eq!(way(&router, "", &[("note", "x"), (SEEN, "t9")]), every(&["a", "b"]));
    router.owners.note_ready("s1", false);
    assert_eq!(
        way(&router, "", &[("note", "x"), (SEEN, "t9")]),
        one("a"),
        "image calls need a ready sandbox"
    );
    assert_eq!(way(&router, "", &[("note", "y"), (SEEN, "t9")]), one("a"), "no pod is like it: the default");
}

#[test]
fn pods_without_other_annotations_are_alike_but_sandboxes_that_are_not_of_kubelet_are_not() {
    let router = router();
    learn(&router, "s1", "b", "u1", &[(SEEN, "t1")]);
    learn(&router, "s2", "a", "u2", &[]);
    assert_eq!(way(&router, "", &[(SEEN, "t9")]), one("b"));
    assert_eq!(way(&router, "", &[]), StatusRoute::Unspecified);
    assert_eq!(
        way(&router, "", &[("note", "x")]),
        StatusRoute::Unspecified,
        "kubelet never leaves config.seen out"
    );
}

#[test]
fn one_config_seen_of_two_pods_means_both_of_their_backends() {
    let router = router();
    learn(&router, "s1", "b", "u1", &[(SEEN, "t1")]);
    learn(&router, "s2", "a", "u2", &[(SEEN, "t1")]);
    assert_eq!(way(&router, "", &[(SEEN, "t1")]), every(&["a", "b"]));
}

#[test]
fn a_handler_goes_before_everything_and_is_renamed() {
    let router = router();
    learn(&router, "s1", "a", "u1", &[(SEEN, "t1")]);
    let renamed = |backend: &str, handler: &str| StoreTarget {
        backend: backend.into(),
        handler: Some(handler.to_owned()),
    };
    assert_eq!(way(&router, "kata", &[(SEEN, "t1")]), StatusRoute::One(renamed("b", "kata-qemu")));
    assert_eq!(way(&router, "b", &[]), one("b"), "the same name needs no change");
    assert_eq!(way(&router, "both", &[(SEEN, "t1")]), StatusRoute::One(renamed("a", "x")));
    assert_eq!(way(&router, "both", &[]), StatusRoute::Every(vec![renamed("a", "x"), renamed("b", "y")]));
    let request = spec("gone", &[]);
    let error = router.way_of_status(&ImageRequest::read(&request).unwrap()).unwrap_err();
    assert!(matches!(error, Error::UnknownHandler { .. }), "{error}");
}

#[test]
fn a_pull_is_for_the_newest_ready_sandbox_of_its_uid() {
    let router = router();
    learn(&router, "s1", "b", "u1", &[(SEEN, "t1")]);
    let request = |uid: &str| {
        let metadata = Some(cri::PodSandboxMetadata { uid: uid.into(), ..Default::default() });
        let sandbox_config = Some(cri::PodSandboxConfig { metadata, ..Default::default() });
        cri::PullImageRequest { sandbox_config, ..Default::default() }.encode_to_vec()
    };
    let owner =
        |request: &[u8]| router.pod_of_pull(&ImageRequest::read(request).unwrap()).map(|(owner, _)| owner);
    assert_eq!(owner(&request("u1")), Some("b".into()));
    assert_eq!(owner(&request("u2")), None);
    learn(&router, "s3", "a", "", &[]);
    assert_eq!(owner(&request("")), None, "an empty uid is nobody's");
}

#[test]
fn the_user_is_what_kubelet_would_take() {
    let reply = |uid: Option<i64>, username: &str| {
        let uid = uid.map(|value| cri::Int64Value { value });
        let image = cri::Image { id: "i".into(), uid, username: username.into(), ..Default::default() };
        user(&cri::ImageStatusResponse { image: Some(image), ..Default::default() }.encode_to_vec())
    };
    assert_eq!(reply(Some(1000), ""), Some(User::Uid(1000)));
    assert_eq!(reply(Some(0), "app"), Some(User::Uid(0)));
    assert_eq!(reply(None, "app"), Some(User::Name("app".into())));
    assert_eq!(reply(None, ""), Some(User::Uid(0)));
    assert_eq!(user(&cri::ImageStatusResponse::default().encode_to_vec()), None);
}

#[test]
fn absent_is_only_said_where_every_store_denies_it() {
    let nobody = |_| false;
    let has = || StoreAnswer::Has(User::Uid(7));
    assert_eq!(judge(&[StoreAnswer::Lacks, StoreAnswer::Lacks], nobody, None), Verdict::Absent);
    let lacking = judge(&[StoreAnswer::Lacks, StoreAnswer::Lacks], |place| place == 0, None);
    assert!(matches!(lacking, Verdict::Undecided(_)), "a pod waits to hear as whom it runs");
    assert!(matches!(
        judge(&[StoreAnswer::Lacks, StoreAnswer::Nothing], nobody, None),
        Verdict::Undecided(_)
    ));
    assert_eq!(judge(&[StoreAnswer::Nothing, has(), StoreAnswer::Lacks], nobody, None), Verdict::Answer(1));
}

#[test]
fn an_answer_is_that_of_the_awaited_or_of_all_or_of_the_latest_use_or_none() {
    let (root, app) = (StoreAnswer::Has(User::Uid(0)), StoreAnswer::Has(User::Uid(7)));
    let answers = [root.clone(), app.clone(), StoreAnswer::Lacks];
    let at = |wanted: &'static [usize]| move |place: usize| wanted.contains(&place);
    assert_eq!(judge(&answers, at(&[1]), Some(0)), Verdict::Answer(1));
    assert!(matches!(judge(&answers, at(&[0, 1]), Some(0)), Verdict::Undecided(_)));
    assert!(matches!(judge(&answers, at(&[2]), Some(0)), Verdict::Undecided(_)));
    assert_eq!(judge(&answers, at(&[]), Some(0)), Verdict::Answer(0));
    assert!(matches!(judge(&answers, at(&[]), Some(2)), Verdict::Undecided(_)));
    assert!(matches!(judge(&answers, at(&[]), None), Verdict::Undecided(_)));
    assert_eq!(judge(&[app.clone(), app], at(&[]), None), Verdict::Answer(0));
    assert_eq!(judge(&[root, StoreAnswer::Nothing], at(&[0]), None), Verdict::Answer(0));
}

fn status(id: &str) -> Vec<u8> {
    let image = cri::Image { id: id.into(), ..Default::default() };
    cri::ImageStatusResponse { image: Some(image), ..Default::default() }.encode_to_vec()
}

#[test]
fn the_same_image_is_told_in_the_form_that_every_runtime_understands() {
    let (long, plain, other) = (status("sha256:ab"), status("ab"), status("cd"));
    assert_eq!(same_image(&[&long, &plain]), Some(1));
    assert_eq!(same_image(&[&long, &long]), Some(0));
    assert_eq!(same_image(&[&long, &other]), None);
    assert_eq!(same_image(&[]), None);
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
fn a_reference_means_the_surest_images_of_all_stores() {
    let a = list(&[("sha256:cafe01", "docker.io/library/web:1"), ("sha256:cafe02", "docker.io/library/b:1")]);
    let b = list(&[("cafe01", "docker.io/library/web:1"), ("00", "docker.io/library/cafe:latest")]);
    let ids = |reference: &str| {
        let mut stores = [held(&a, reference), held(&b, reference)];
        settle(&mut stores, reference).map(|()| {
            stores.map(|images| images.into_iter().map(|image| image.id).collect::<Vec<_>>().join(","))
        })
    };
    let both = ["sha256:cafe01".to_owned(), "cafe01".to_owned()];
    assert_eq!(ids("sha256:cafe01").unwrap(), both);
    assert_eq!(ids("cafe01").unwrap(), both);
    assert_eq!(ids("web:1").unwrap(), both);
    assert_eq!(ids("cafe").unwrap(), ["", "00"], "a name goes before the beginning of an ID");
    assert_eq!(ids("sha256:cafe02").unwrap(), ["sha256:cafe02", ""]);
    assert!(matches!(ids("caf").unwrap_err(), Error::Ambiguous { .. }));
    assert_eq!(ids("nothing").unwrap(), ["", ""]);
}
