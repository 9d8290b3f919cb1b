//! Owners, prefixes, scopes, pods.

use super::*;

const A: InstanceId = InstanceId(1);
const B: InstanceId = InstanceId(2);

#[test]
fn a_removed_id_is_its_owners_alone_and_is_no_prefix_of_anything() {
    let owners = owners();
    owners.remove("xyz");
    assert_eq!(owners.find(Some(Kind::Container), "xyz", None), IdMatch::Exact(B));
    assert_eq!(owners.find(Some(Kind::Sandbox), "xyz", None), IdMatch::Unknown);
    assert_eq!(owners.find(None, "xy", None), IdMatch::Unknown);
    assert_eq!((owners.owner_of("xyz"), owners.count(B)), (None, (0, 1)));
    owners.forget_all_of(B);
    assert_eq!(owners.find(None, "xyz", None), IdMatch::Unknown);
}

fn owners() -> Owners {
    let owners = Owners::default();
    owners.learn_sandbox("abc1", A, SandboxRecord::default());
    owners.learn_container("abc2", B);
    owners.learn_container("xyz", B);
    owners
}

#[test]
fn a_prefix_must_mean_one_id_over_all_backends() {
    let owners = owners();
    assert_eq!(owners.find(None, "ab", None), IdMatch::Ambiguous);
    assert_eq!(owners.find(Some(Kind::Container), "ab", None), IdMatch::Prefix(B, "abc2".into()));
    assert_eq!(owners.find(None, "xyz", None), IdMatch::Exact(B));
    assert_eq!(owners.find(None, "q", None), IdMatch::Unknown);
}

#[test]
fn a_scope_hides_what_other_backends_own() {
    assert_eq!(owners().find(None, "xyz", Some(A)), IdMatch::Unknown);
}

fn pod(uid: &str, seen: &str, created_at: i64, ready: bool) -> SandboxRecord {
    let annotations = [("kubernetes.io/config.seen", seen)];
    SandboxRecord { created_at, ready, ..SandboxRecord::new(uid, "", annotations.into_iter()) }
}

#[test]
fn the_newest_ready_sandbox_of_a_pod_decides() {
    let owners = Owners::default();
    owners.learn_sandbox("s1", A, pod("u", "t1", 1, true));
    owners.learn_sandbox("s2", B, pod("u", "t1", 2, true));
    let newest = || owners.newest(|pod| &*pod.uid == "u").expect("two match").backend;
    assert_eq!(newest(), B);
    owners.record_ready("s2", false);
    assert_eq!(newest(), A);
    owners.record_ready("s1", false);
    assert_eq!(newest(), B);
}

#[test]
fn a_pod_has_one_owner_while_all_its_sandboxes_are_or_may_be_at_one_backend() {
    let owners = Owners::default();
    assert_eq!(owners.sole_backend_of_pod("u"), None);
    owners.record_create_sent("u", A);
    assert_eq!(owners.sole_backend_of_pod("u"), None, "nothing is known to be there");
    owners.learn_sandbox("s1", A, pod("u", "t", 1, true));
    owners.learn_sandbox("s1", A, pod("u", "t", 1, false));
    assert_eq!(owners.sole_backend_of_pod("u"), Some(A));
    owners.record_create_sent("u", B);
    assert_eq!(owners.sole_backend_of_pod("u"), None, "the reply may have been lost");
    owners.learn_sandbox("s2", B, pod("u", "t", 2, true));
    owners.forget("s1");
    assert_eq!(owners.sole_backend_of_pod("u"), None, "it was sent to a, too");
    owners.learn_sandbox("s3", B, pod("v", "t", 2, true));
    assert_eq!(owners.sole_backend_of_pod("v"), Some(B));
    owners.forget("s3");
    owners.expire_sent();
    assert_eq!((owners.sole_backend_of_pod("v"), owners.pods.contains_key("v")), (None, false));
}

#[test]
fn a_new_config_seen_takes_the_place_of_the_old_one_in_all_sandboxes_of_its_pod() {
    let owners = Owners::default();
    owners.learn_sandbox("s1", A, pod("u", "t1", 1, true));
    owners.learn_sandbox("s2", B, pod("v", "t2", 2, true));
    owners.learn_sandbox("s3", B, pod("w", "t2", 3, true));
    let replaced =
        |uid: &str, seen: &str| owners.record_config_seen(uid, seen).into_iter().collect::<String>();
    assert_eq!(replaced("u", "t3"), "t1");
    assert_eq!(replaced("u", "t3"), "");
    assert_eq!(replaced("", "t4"), "");
    assert_eq!(replaced("v", ""), "");
    assert_eq!(replaced("w", "t5"), "", "t2 still means v");
    let seen = |seen: &str| owners.newest(|pod| &*pod.config_seen == seen).map(|owned| owned.backend);
    assert_eq!((seen("t3"), seen("t2")), (Some(A), Some(B)));
    assert_eq!((seen("t1"), seen("t4")), (None, None));
}

#[test]
fn an_id_at_two_backends_keeps_its_first_owner_and_is_reported() {
    let owners = owners();
    assert_eq!(owners.learn_container("xyz", A), Claim::HeldBy(B));
    assert_eq!(owners.find(None, "xyz", None), IdMatch::Exact(B));
}
