//! Every state in which the node is not served whole has its words, its level and its section of the runbook.

use serde_json::{Value, json};

use super::*;

/// A node of the default backend `a` and of `b`, both ready; `change` is merged into the status.
fn status(change: &Value) -> StatusView {
    let backend = |name: &str| {
        json!({
            "name": name, "endpoint": "unix:///x", "default": name == "a", "required": false, "local": true,
            "configured": true, "state": "ready", "since": null, "draining": false, "list_age_seconds": 1.0,
            "last_error": null, "in_flight": 0, "sandboxes": 2, "containers": 2, "runtime_name": null,
            "runtime_version": null, "api": "v1",
        })
    };
    let mut status = json!({
        "version": "0", "started_at": "2026-01-01T00:00:00Z", "default_backend": "a",
        "backends": [backend("a"), backend("b")],
        "state": { "dir": "/s", "write_errors": 0, "problem": null },
        "reloads": { "ok": 0, "failed": 0, "last": null },
    });
    merge(&mut status, change);
    serde_json::from_value(status).unwrap()
}

/// Puts the values of `change` into `base`; a list's items by their index.
fn merge(base: &mut Value, change: &Value) {
    match (base, change) {
        (Value::Object(base), Value::Object(change)) => {
            change.iter().for_each(|(key, value)| merge(base.entry(key).or_insert(Value::Null), value));
        }
        (Value::Array(base), Value::Array(change)) if !base.is_empty() => {
            base.iter_mut().zip(change).for_each(|(base, change)| merge(base, change));
        }
        (base, change) => *base = change.clone(),
    }
}

/// A handler `b` whose only target is in this state.
fn route(state: &str, refused: Option<&str>) -> RouteView {
    serde_json::from_value(json!({
        "handler": "b", "refused": refused,
        "targets": [{ "backend": "b", "backend_handler": "", "weight": 1, "share": 1.0, "state": state }],
    }))
    .unwrap()
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn each_state_has_its_level_its_words_and_its_section() {
    use Level::{Degraded, NotReady, Ok};
    let of_b = |change: Value| json!({ "backends": [{}, change] });
    let table = [
        ("all is well", json!({}), Ok, "2 of 2 backends ready", None),
        ("drained", of_b(json!({ "state": "draining", "draining": true })), Ok, "1 of 2", None),
        (
            "removed, with pods",
            of_b(json!({ "configured": false })),
            Ok,
            "b is not in the configuration",
            Some("crimuxbackendnotconfigured"),
        ),
        (
            "not implemented there",
            of_b(json!({ "left_out": ["ListPodSandboxStats: the whole backend (Unimplemented)"] })),
            Ok,
            "2 of 2",
            None,
        ),
        (
            "down",
            of_b(json!({ "state": "down" })),
            Degraded,
            "b down, 2 sandboxes as last known",
            Some("crimuxbackenddown"),
        ),
        ("late", of_b(json!({ "state": "late" })), Degraded, "b late", Some("crimuxbackendlate")),
        (
            "slow lists",
            of_b(json!({ "state": "late", "late": ["ListPodSandbox and ListContainers", "ListImages"] })),
            Degraded,
            "b late (ListPodSandbox and ListContainers, ListImages not in time), 2 sandboxes as last known; its other calls and",
            Some("crimuxbackendlate"),
        ),
        (
            "late, and left out",
            of_b(json!({ "state": "late", "lacking": ["ImageFsInfo: the whole backend (Timeout)"] })),
            Degraded,
            "b late, 2 sandboxes as last known, left out of ImageFsInfo: the whole backend (Timeout)",
            Some("crimuxbackendlate"),
        ),
        (
            "joining",
            of_b(json!({ "state": "joining", "sandboxes": 0 })),
            Degraded,
            "b joining",
            Some("crimuxbackendjoining"),
        ),
        (
            "optional, and not there yet",
            of_b(json!({ "state": "joining", "sandboxes": 0, "optional": true, "comes_later": true })),
            Ok,
            "1 of 2 backends ready; b is optional and not there yet",
            Some("crimuxbackendjoining"),
        ),
        (
            "optional, there, and not listed",
            of_b(json!({ "state": "joining", "sandboxes": 0, "optional": true })),
            Degraded,
            "b joining",
            Some("crimuxbackendjoining"),
        ),
        (
            "optional, listed once, and down",
            of_b(json!({ "state": "down", "optional": true, "api": null })),
            Degraded,
            "b down, 2 sandboxes as last known",
            Some("crimuxbackenddown"),
        ),
        (
            "forgotten, and down",
            of_b(json!({ "state": "down", "sandboxes": 0 })),
            Degraded,
            "b down",
            Some("crimuxbackenddown"),
        ),
        (
            "removed, and down",
            of_b(json!({ "configured": false, "state": "down" })),
            Degraded,
            "b down",
            Some("crimuxbackenddown"),
        ),
        (
            "required, and down",
            of_b(json!({ "required": true, "state": "down" })),
            NotReady,
            "b is required",
            Some("crimuxbackenddown"),
        ),
        (
            "never listed",
            of_b(json!({ "state": "down", "awaited": true })),
            NotReady,
            "lists are refused until b",
            Some("crimuxlistsrefused"),
        ),
        (
            "slow at its first list",
            of_b(json!({ "awaited": true })),
            NotReady,
            "lists are refused until b",
            Some("crimuxlistsrefused"),
        ),
        (
            "the default is down",
            json!({ "backends": [{ "state": "down" }] }),
            NotReady,
            "a is the default",
            Some("crimuxbackenddown"),
        ),
        (
            "no network there",
            of_b(json!({ "unready": ["NetworkReady is false"] })),
            Degraded,
            "b: NetworkReady",
            Some("crimuxnodenotready"),
        ),
        (
            "no network",
            json!({ "backends": [{ "unready": ["NetworkReady is false"] }] }),
            NotReady,
            "a: NetworkReady",
            Some("crimuxnodenotready"),
        ),
        (
            "items left out",
            of_b(json!({ "lacking": ["ListContainers: items (no id)", "ListPodSandbox: items (no id)"] })),
            Degraded,
            "b is left out of ListContainers: items (no id) and 1 more",
            Some("crimuxitemsleftout"),
        ),
        (
            "left out as a whole",
            of_b(json!({ "lacking": ["ImageFsInfo: the whole backend (Unknown)"] })),
            Degraded,
            "b is left out of ImageFsInfo: the whole backend (Unknown)",
            Some("crimuxbackendsleftout"),
        ),
        (
            "foreign IDs",
            of_b(json!({ "foreign_ids": 3 })),
            Degraded,
            "b lists 3 IDs that another",
            Some("crimuxidconflict"),
        ),
        (
            "disk full",
            json!({ "state": { "problem": "ENOSPC" } }),
            Degraded,
            "state is not saved in /s: ENOSPC; make it writable (df, mount), and restart neither",
            Some("crimuxstatenotwritable"),
        ),
        (
            "reload failed",
            json!({ "reloads": { "last": { "at": "", "result": "failed", "problem": "f:1:1: x" } } }),
            Degraded,
            "the last reload failed, the configuration before it stays current; mend the file before crimux restarts: f:1:1: x",
            Some("crimuxconfigreloadfailed"),
        ),
        (
            "restart needed",
            json!({ "reloads": { "restart_keys": ["listen"] } }),
            Degraded,
            "listen changed in the file",
            Some("crimuxrestartneeded"),
        ),
        (
            "port taken",
            json!({ "admin_http": { "address": "127.0.0.1:1", "problem": "in use" } }),
            Degraded,
            "admin.http does not listen",
            Some("crimuxabsent"),
        ),
    ];
    for (what, change, level, words, section) in table {
        let verdict = judge(&status(&change), &[]);
        assert!(verdict.level == level && verdict.text.contains(words), "{what}: {verdict:?}");
        let next = section.map(|section| format!("{RUNBOOK}#{section}"));
        assert_eq!(verdict.next, next, "{what}");
        let outcome = verdict.text.contains("the node becomes NotReady");
        assert_eq!(outcome, level == NotReady, "{what}: {}", verdict.text);
        assert_eq!(verdict.faults.is_empty(), section.is_none(), "{what}: {verdict:?}");
        for fault in &verdict.faults {
            assert!(fault.text.starts_with(&fault.problem) && fault.next.is_some(), "{what}: {fault:?}");
            assert!(verdict.text.contains(&fault.text), "{what}: {verdict:?}");
        }
    }
}

#[test]
fn the_headline_has_the_worst_fault_and_how_many_more_there_are() {
    let mut status = status(&json!({
        "backends": [{ "state": "down" }, { "state": "late" }], "state": { "problem": "ENOSPC" },
    }));
    let headline = |status: &StatusView| judge(status, &[]).headline;
    assert_eq!(headline(&status), "a down, and 2 more; the node becomes NotReady");
    status.backends.reverse();
    assert_eq!(headline(&status), "a down, and 2 more; the node becomes NotReady", "the worst one is first");
    status.backends[1].state = "ready".to_owned();
    assert_eq!(headline(&status), "state is not saved, and 1 more; the node stays Ready", "it is critical");
    status.backends[0].state = "ready".to_owned();
    assert_eq!(headline(&status), "state is not saved; the node stays Ready");
    status.state.problem = None;
    assert_eq!(headline(&status), "2 of 2 backends ready");
    status.backends[0].configured = false;
    assert_eq!(headline(&status), "1 of 1 backends ready; b is not in the configuration");
}

#[test]
fn refused_handlers_are_named_and_those_of_a_drain_are_no_fault() {
    let down = status(&json!({ "backends": [{}, { "state": "down" }] }));
    let text = judge(&down, &[route("down", Some("backend b is down"))]).text;
    assert!(text.contains("new sandboxes of handler b refused; the node stays Ready"), "{text}");
    let drained = status(&json!({ "backends": [{}, { "state": "draining", "draining": true }] }));
    let verdict = judge(&drained, &[route("draining", Some("backend b is draining"))]);
    assert_eq!(verdict.level, Level::Ok);
    assert!(
        verdict.text.ends_with(
            "new sandboxes of handler b refused: drained by the operator (crimux backend undrain b)"
        ),
        "{verdict:?}"
    );
}

#[test]
fn a_share_that_is_refused_or_waits_is_said_as_a_share() {
    let down = status(&json!({ "backends": [{}, { "state": "down" }] }));
    let targets = |state: &str, takes: bool| {
        json!([
            { "backend": "a", "backend_handler": "", "weight": 9, "share": 0.9, "state": "ready", "takes_new": true },
            { "backend": "b", "backend_handler": "", "weight": 1, "share": 0.1, "state": state, "takes_new": takes,
              "waits": state == "late" },
        ])
    };
    let split = |state: &str, takes: bool, refused: Option<&str>| -> RouteView {
        let targets = targets(state, takes);
        serde_json::from_value(json!({ "handler": "canary", "refused": refused, "targets": targets }))
            .unwrap()
    };
    let (mut b, mut c) = (route("down", Some("backend b is down")), route("down", Some("backend b is down")));
    (b.handler, c.handler) = ("b".to_owned(), String::new());
    let text = judge(&down, &[c, split("down", false, Some("10%: backend b is down")), b]).text;
    let said = "; new sandboxes of pods without a RuntimeClass and of handler b refused; \
                10% of the new sandboxes of handler canary refused; the node stays Ready";
    assert!(text.contains(said), "{text}");
    let late = status(&json!({ "backends": [{}, { "state": "late" }] }));
    let mut b = route("late", None);
    (b.targets[0].takes_new, b.targets[0].waits) = (true, true);
    let text = judge(&late, &[split("late", true, None), b]).text;
    let said = "; new sandboxes of handler b wait until it answers; \
                10% of the new sandboxes of handler canary wait until it answers; the node stays Ready";
    assert!(text.contains(said), "{text}");
}

#[test]
fn a_removed_handler_is_named_while_pods_ask_or_asked_for_it() {
    let judged = |sandboxes: usize, refused: Option<SystemTime>| {
        let last_refused = refused.map(|at| humantime::format_rfc3339_seconds(at).to_string());
        let removed = json!([{ "handler": "kata", "sandboxes": sandboxes, "last_refused": last_refused }]);
        judge(&status(&json!({ "removed_handlers": removed })), &[])
    };
    assert_eq!(judged(0, None).text, "2 of 2 backends ready");
    assert_eq!(judged(0, Some(SystemTime::now() - RECENT * 2)).text, "2 of 2 backends ready");
    let verdict = judged(70, None);
    assert_eq!(
        verdict.text,
        "2 of 2 backends ready; handler kata was removed from the configuration: its new sandboxes are refused, \
         70 are still there"
    );
    assert_eq!(verdict.next, Some(format!("{RUNBOOK}#crimuxsandboxesrefused")));
    let text = judged(0, Some(SystemTime::now())).text;
    assert!(text.contains("its new sandboxes are refused, the last one 0s ago"), "{text}");
}

#[test]
fn a_refused_pod_is_part_of_a_verdict_that_says_nothing_else() {
    let taken = || route("ready", None);
    let refused_of = |handler: &str, at: SystemTime, change: Value| {
        let at = humantime::format_rfc3339_seconds(at).to_string();
        let mut status = status(&change);
        status.last_refusal =
            Some(RefusalView { at, pod: "shop/web".into(), handler: handler.into(), reason: "x".into() });
        judge(&status, &[taken()])
    };
    let refused = |at: SystemTime, change: Value| refused_of("nope", at, change);
    let now = refused(SystemTime::now(), json!({}));
    assert_eq!(now.text, "2 of 2 backends ready; a new sandbox of handler nope was refused 0s ago");
    assert_eq!((now.level, now.next), (Level::Ok, Some(format!("{RUNBOOK}#crimuxsandboxesrefused"))));
    assert_eq!(refused(SystemTime::now() - RECENT * 2, json!({})).text, "2 of 2 backends ready");
    let down = refused(SystemTime::now(), json!({ "backends": [{}, { "state": "down" }] }));
    assert!(!down.text.contains("a new sandbox of"), "{}", down.text);
    let since = |seconds: u64| SystemTime::now() - Duration::from_secs(seconds);
    let over = |seconds: u64| refused_of("b", since(seconds), json!({})).text;
    assert!(
        over(50).contains("refused 50s ago") && !over(70).contains("refused"),
        "its handler takes sandboxes now"
    );
}

fn seconds_from_now(seconds: i64) -> String {
    let (now, by) = (SystemTime::now(), Duration::from_secs(seconds.unsigned_abs()));
    humantime::format_rfc3339_seconds(if seconds < 0 { now - by } else { now + by }).to_string()
}

#[test]
fn a_backend_that_answers_nothing_is_hung_after_a_minute_or_if_its_process_is_stopped() {
    let judged = |silent: Option<i64>, stopped: Option<i32>| {
        let b = json!({
            "state": "late", "since": seconds_from_now(-500), "stopped_pid": stopped,
            "silent_since": silent.map(|seconds| seconds_from_now(-seconds)),
        });
        judge(&status(&json!({ "backends": [{}, b] })), &[])
    };
    let section =
        |verdict: &VerdictView| verdict.next.clone().unwrap().rsplit_once('#').unwrap().1.to_owned();
    assert_eq!(section(&judged(None, None)), "crimuxbackendlate");
    assert_eq!(section(&judged(Some(50), None)), "crimuxbackendlate");
    assert_eq!(section(&judged(Some(70), None)), "crimuxbackendhung");
    let stopped = judged(Some(3), Some(17));
    assert_eq!(section(&stopped), "crimuxbackendhung");
    assert!(stopped.text.contains("its process 17 is stopped (kill -CONT 17)"), "{stopped:?}");
}

#[test]
fn a_certificate_is_told_two_weeks_before_its_end_and_is_a_fault_in_the_last_two_days() {
    let judged = |hours: i64| {
        let ends = seconds_from_now(hours * 3600);
        judge(
            &status(&json!({ "backends": [{}, { "certificate": { "role": "client", "ends": ends } }] })),
            &[],
        )
    };
    assert_eq!(judged(15 * 24).text, "2 of 2 backends ready");
    for (hours, level) in
        [(13 * 24, Level::Ok), (3 * 24, Level::Ok), (47, Level::Degraded), (-1, Level::Degraded)]
    {
        let verdict = judged(hours);
        let said = if hours < 0 { "ended 60m ago" } else { "ends in " };
        let problem = format!("b: the client certificate of its connection {said}");
        assert!(verdict.level == level && verdict.headline.contains(&problem), "{verdict:?}");
        assert_eq!(verdict.next, Some(format!("{RUNBOOK}#crimuxcertificateexpires")));
    }
}

#[test]
fn sandboxes_that_were_lost_and_limits_that_were_reached_are_told_for_a_while() {
    let lost = |ago: i64| {
        let lost = json!({ "at": seconds_from_now(-ago), "sandboxes": 2, "owned": 3 });
        judge(&status(&json!({ "backends": [{}, { "lost": lost }] })), &[])
    };
    assert_eq!(lost(5).headline, "2 of 2 backends ready; b lost 2 of its 3 ready sandboxes 5s ago");
    assert_eq!(lost(601).text, "2 of 2 backends ready");
    let reached = |ago: i64| {
        let clients = json!({
            "connections": 256, "calls": 250, "max_connections": 256,
            "largest": { "pid": 17, "program": "agent", "connections": 250 },
            "reached_limits": [{ "limit": "connections", "at": seconds_from_now(-ago) }],
        });
        judge(&status(&json!({ "clients": clients })), &[])
    };
    let verdict = reached(5);
    assert_eq!(verdict.level, Level::Degraded);
    let said = "clients reached limits.connections 5s ago: a connection beyond 256 is closed, unless its process has \
                fewer than four; pid 17 (agent) has 250 of the 256 connections; the node stays Ready";
    assert_eq!(verdict.text, said);
    assert_eq!(reached(61).text, "2 of 2 backends ready");
}

#[test]
fn no_semicolon_follows_a_question() {
    let status = status(&json!({ "backends": [{}, { "foreign_ids": 3 }] }));
    let text = judge(&status, &[]).text;
    assert!(text.ends_with("are the two one runtime? the node stays Ready"), "{text}");
}

#[test]
fn another_state_dir_is_named_and_no_reason_to_restart() {
    let reloads = json!({ "restart_keys": ["state_dir"], "new_state_dir": "/new" });
    let text = judge(&status(&json!({ "reloads": reloads })), &[]).text;
    let said = "state_dir changed in the file: do not restart crimux: take that back, or stop crimux, copy /s to /new";
    assert!(text.starts_with(said), "{text}");
}
