//! Composes the node's `Status` from the statuses of the backends.
//!
//! kubelet needs `RuntimeReady` and `NetworkReady` by these names: they are the default backend's, and-ed
//! with those of `required` ones. Every backend adds a condition `Backend/NAME`. Handlers are listed by
//! their public names, with the features of the handlers they map to. The node has the features that all
//! backends have. The `info` of a verbose call keeps the default backend's keys; the keys of other backends
//! get the prefix `NAME/`.

use std::collections::BTreeMap;

use prost::Message;

use crate::cri::{
    RuntimeCondition, RuntimeFeatures, RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus, StatusResponse,
};

/// The conditions that decide whether kubelet reports the node ready.
pub const NODE_CONDITIONS: [&str; 2] = ["RuntimeReady", "NetworkReady"];

/// The current or last-known status of one backend.
#[derive(Debug)]
pub struct BackendStatus<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its `Status` reply; `None` if it never sent one.
    pub reply: Option<StatusResponse>,
    /// Whether its conditions count for the node: the default backend's do, and those of `required` ones.
    pub decides: bool,
    /// Whether it is the default backend.
    pub default: bool,
    /// Why its last-known conditions no longer count; `None` while they do.
    pub expired: Option<String>,
    /// Whether it is ready, for `Backend/NAME`; otherwise why not.
    pub state: Result<(), String>,
}

/// A public handler and the backend it leads to.
#[derive(Debug)]
pub struct HandlerEntry<'a> {
    /// The `RuntimeClass` handler.
    pub handler: &'a str,
    /// The backend.
    pub backend: &'a str,
    /// The name of the handler at that backend.
    pub known_as: &'a str,
}

/// Composes the node's status. Conditions of backends come in the order given.
pub fn compose(backends: &[BackendStatus<'_>], handlers: &[HandlerEntry<'_>]) -> StatusResponse {
    StatusResponse {
        status: Some(RuntimeStatus { conditions: conditions(backends) }),
        info: info(backends),
        runtime_handlers: runtime_handlers(backends, handlers),
        features: features(backends),
    }
}

/// Decodes a backend's reply; `None` if it cannot be decoded.
pub fn decode(reply: &[u8]) -> Option<StatusResponse> {
    StatusResponse::decode(reply).ok()
}

/// Tells whether a backend's reply has any condition.
pub fn is_whole(reply: &StatusResponse) -> bool {
    reply.status.as_ref().is_some_and(|status| !status.conditions.is_empty())
}

fn conditions(backends: &[BackendStatus<'_>]) -> Vec<RuntimeCondition> {
    let of_node = NODE_CONDITIONS.iter().map(|&kind| node_condition(backends, kind));
    let own = backends.iter().map(|backend| {
        let reason = if backend.state.is_ok() { "" } else { "BackendUnavailable" };
        let message = backend.state.as_ref().err().cloned().unwrap_or_default();
        condition(&format!("Backend/{}", backend.name), backend.state.is_ok(), reason, &message)
    });
    let default = backends.iter().find(|backend| backend.default).and_then(|backend| backend.reply.as_ref());
    let others = default.and_then(|reply| reply.status.as_ref()).into_iter().flat_map(|s| &s.conditions);
    let others = others.filter(|condition| !NODE_CONDITIONS.contains(&condition.r#type.as_str())).cloned();
    of_node.chain(others).chain(own).collect()
}

/// Returns one of the two conditions of the node: the first backend's that is false, among those that count,
/// otherwise the first.
fn node_condition(backends: &[BackendStatus<'_>], kind: &str) -> RuntimeCondition {
    let mut result = None;
    for backend in backends.iter().filter(|backend| backend.decides) {
        let reported = backend.reply.as_ref().and_then(|reply| reply.status.as_ref());
        let reported =
            reported.and_then(|status| status.conditions.iter().find(|c| c.r#type == kind)).cloned();
        let reported = match (&backend.expired, reported) {
            (Some(why), _) => condition(kind, false, "BackendUnreachable", why),
            (None, Some(reported)) => reported,
            (None, None) => {
                let why = format!("backend {} has not reported {kind}", backend.name);
                condition(kind, false, "BackendSilent", &why)
            }
        };
        if !reported.status {
            return reported;
        }
        result.get_or_insert(reported);
    }
    result.unwrap_or_else(|| condition(kind, false, "NoBackend", "no backend decides over the node"))
}

fn condition(kind: &str, status: bool, reason: &str, message: &str) -> RuntimeCondition {
    RuntimeCondition {
        r#type: kind.to_owned(),
        status,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

fn runtime_handlers(backends: &[BackendStatus<'_>], handlers: &[HandlerEntry<'_>]) -> Vec<RuntimeHandler> {
    handlers
        .iter()
        .map(|entry| {
            let reply = backends.iter().find(|b| b.name == entry.backend).and_then(|b| b.reply.as_ref());
            let known = reply.and_then(|r| r.runtime_handlers.iter().find(|h| h.name == entry.known_as));
            let features: Option<RuntimeHandlerFeatures> = known.and_then(|handler| handler.features);
            RuntimeHandler { name: entry.handler.to_owned(), features }
        })
        .collect()
}

fn features(backends: &[BackendStatus<'_>]) -> Option<RuntimeFeatures> {
    let mut all =
        backends.iter().filter_map(|backend| Some(backend.reply.as_ref()?.features.unwrap_or_default()));
    let first = all.next()?;
    Some(all.fold(first, |a, b| RuntimeFeatures {
        supplemental_groups_policy: a.supplemental_groups_policy && b.supplemental_groups_policy,
        user_namespaces_host_network: a.user_namespaces_host_network && b.user_namespaces_host_network,
        mount_options: a.mount_options && b.mount_options,
    }))
}

fn info(backends: &[BackendStatus<'_>]) -> std::collections::HashMap<String, String> {
    let mut info = BTreeMap::new();
    for backend in backends {
        for (key, value) in backend.reply.iter().flat_map(|reply| &reply.info) {
            let key = if backend.default { key.clone() } else { format!("{}/{key}", backend.name) };
            info.insert(key, value.clone());
        }
    }
    info.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(conditions: &[(&str, bool)]) -> StatusResponse {
        let conditions = conditions.iter().map(|(kind, status)| condition(kind, *status, "", ""));
        let status = Some(RuntimeStatus { conditions: conditions.collect() });
        StatusResponse { status, ..StatusResponse::default() }
    }

    fn backend(name: &str, reply: Option<StatusResponse>) -> BackendStatus<'_> {
        BackendStatus { name, reply, decides: false, default: false, expired: None, state: Ok(()) }
    }

    /// The default backend, ready.
    fn default() -> BackendStatus<'static> {
        let ready = reply(&[("RuntimeReady", true), ("NetworkReady", true), ("Other", true)]);
        BackendStatus { decides: true, default: true, ..backend("a", Some(ready)) }
    }

    fn conditions_of(backends: &[BackendStatus<'_>]) -> Vec<(String, bool, String)> {
        let status = compose(backends, &[]).status.expect("a status");
        status.conditions.into_iter().map(|c| (c.r#type, c.status, c.reason)).collect()
    }

    fn row(kind: &str, status: bool, reason: &str) -> (String, bool, String) {
        (kind.to_owned(), status, reason.to_owned())
    }

    #[test]
    fn a_backend_that_does_not_decide_has_a_condition_of_its_own_only() {
        let mut other = backend("b", Some(reply(&[("RuntimeReady", false), ("Secret", true)])));
        other.state = Err("down: refused".to_owned());
        let expected = [
            row("RuntimeReady", true, ""),
            row("NetworkReady", true, ""),
            row("Other", true, ""),
            row("Backend/a", true, ""),
            row("Backend/b", false, "BackendUnavailable"),
        ];
        assert_eq!(conditions_of(&[default(), other]), expected);
    }

    #[test]
    fn every_backend_that_decides_can_say_no() {
        let required =
            BackendStatus { decides: true, ..backend("b", Some(reply(&[("RuntimeReady", false)]))) };
        let conditions = conditions_of(&[default(), required]);
        let expected = [row("RuntimeReady", false, ""), row("NetworkReady", false, "BackendSilent")];
        assert_eq!(conditions[..2], expected);
    }

    #[test]
    fn a_backend_that_was_lost_for_too_long_or_never_heard_is_not_ready() {
        let expired = BackendStatus { expired: Some("backend a is down".to_owned()), ..default() };
        assert_eq!(conditions_of(&[expired])[0], row("RuntimeReady", false, "BackendUnreachable"));
        let silent = BackendStatus { reply: None, ..default() };
        assert_eq!(conditions_of(&[silent])[0], row("RuntimeReady", false, "BackendSilent"));
        assert_eq!(conditions_of(&[])[1], row("NetworkReady", false, "NoBackend"));
    }

    #[test]
    fn handlers_have_the_features_of_what_they_map_to() {
        let features = Some(RuntimeHandlerFeatures { user_namespaces: true, ..Default::default() });
        let mut first = default();
        let known = RuntimeHandler { name: "runsc".to_owned(), features };
        first.reply.as_mut().expect("a reply").runtime_handlers = vec![known];
        let entry = [
            HandlerEntry { handler: "gvisor", backend: "a", known_as: "runsc" },
            HandlerEntry { handler: "runsc", backend: "b", known_as: "runsc" },
            HandlerEntry { handler: "lost", backend: "a", known_as: "nowhere" },
        ];
        let handlers = compose(&[first], &entry).runtime_handlers;
        let expected = [("gvisor", features), ("runsc", None), ("lost", None)];
        assert_eq!(handlers, expected.map(|(n, features)| RuntimeHandler { name: n.to_owned(), features }));
    }

    #[test]
    fn a_feature_of_the_node_is_one_that_all_have() {
        let with = |mount_options, supplemental_groups_policy| {
            let features =
                RuntimeFeatures { mount_options, supplemental_groups_policy, ..RuntimeFeatures::default() };
            Some(StatusResponse { features: Some(features), ..StatusResponse::default() })
        };
        let all = |backends: &[BackendStatus<'_>]| {
            features(backends).map(|f| (f.mount_options, f.supplemental_groups_policy))
        };
        assert_eq!(
            all(&[backend("a", with(true, true)), backend("b", with(true, false))]),
            Some((true, false))
        );
        assert_eq!(
            all(&[backend("a", with(true, true)), backend("b", None)]),
            Some((true, true)),
            "not known is not no"
        );
        let without = Some(StatusResponse::default());
        assert_eq!(all(&[backend("a", with(true, true)), backend("b", without)]), Some((false, false)));
        assert_eq!(all(&[backend("a", None)]), None);
    }

    #[test]
    fn information_of_others_is_told_apart_by_their_names() {
        let with = |value: &str| StatusResponse {
            info: [("config".to_owned(), value.to_owned())].into(),
            ..StatusResponse::default()
        };
        let mut first = default();
        first.reply = Some(with("1"));
        let info = compose(&[first, backend("b", Some(with("2")))], &[]).info;
        let expected = [("config", "1"), ("b/config", "2")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(info, std::collections::HashMap::from(expected));
    }
}
