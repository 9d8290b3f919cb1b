//! `Status` of the node, composed from what each backend says of itself.
//!
//! kubelet needs `RuntimeReady` and `NetworkReady` by these names: they are the default backend's, and-ed
//! with those of `required` ones. Every backend adds a condition `Backend/NAME`. Handlers are the public
//! names, with the features of what they map to; features of the node are what all backends have. The extra
//! information of a verbose call keeps the default backend's keys and prefixes the others'.

use std::collections::BTreeMap;

use prost::Message;

use crate::cri::{
    RuntimeCondition, RuntimeFeatures, RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus, StatusResponse,
};

/// The conditions that kubelet judges the node by.
pub const JUDGED: [&str; 2] = ["RuntimeReady", "NetworkReady"];

/// What one backend says, or last said, of itself.
#[derive(Debug)]
pub struct BackendStatus<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its reply; `None` if it never gave one.
    pub reply: Option<StatusResponse>,
    /// Whether it decides over the node: the default backend, and `required` ones.
    pub decides: bool,
    /// Whether it is the default backend.
    pub default: bool,
    /// Whether its conditions no longer stand, and why.
    pub expired: Option<String>,
    /// What its own condition says: ready or not, and why not.
    pub state: Result<(), String>,
}

/// A public handler, the backend it leads to and the name that backend knows.
#[derive(Debug)]
pub struct Served<'a> {
    /// The `RuntimeClass` handler.
    pub handler: &'a str,
    /// The backend.
    pub backend: &'a str,
    /// The handler as the backend knows it.
    pub known_as: &'a str,
}

/// Composes the node's status. Backends stand in the order given, the default one first.
pub fn compose(said: &[BackendStatus<'_>], handlers: &[Served<'_>]) -> StatusResponse {
    StatusResponse {
        status: Some(RuntimeStatus { conditions: conditions(said) }),
        info: info(said),
        runtime_handlers: runtime_handlers(said, handlers),
        features: features(said),
    }
}

/// Decodes a backend's reply; an unreadable reply counts as never given.
pub fn decode(reply: &[u8]) -> Option<StatusResponse> {
    StatusResponse::decode(reply).ok()
}

/// Tells whether a backend's reply says anything about its conditions.
pub fn is_whole(reply: &StatusResponse) -> bool {
    reply.status.as_ref().is_some_and(|status| !status.conditions.is_empty())
}

fn conditions(said: &[BackendStatus<'_>]) -> Vec<RuntimeCondition> {
    let judged = JUDGED.iter().map(|&kind| judge(said, kind));
    let own = said.iter().map(|backend| {
        let reason = if backend.state.is_ok() { "" } else { "BackendUnavailable" };
        let message = backend.state.as_ref().err().cloned().unwrap_or_default();
        condition(&format!("Backend/{}", backend.name), backend.state.is_ok(), reason, &message)
    });
    let default = said.iter().find(|backend| backend.default).and_then(|backend| backend.reply.as_ref());
    let others = default.and_then(|reply| reply.status.as_ref()).into_iter().flat_map(|s| &s.conditions);
    let others = others.filter(|condition| !JUDGED.contains(&condition.r#type.as_str())).cloned();
    judged.chain(others).chain(own).collect()
}

/// One of the two conditions of the node: the first backend that is against it has the word.
fn judge(said: &[BackendStatus<'_>], kind: &str) -> RuntimeCondition {
    let mut verdict = None;
    for backend in said.iter().filter(|backend| backend.decides) {
        let told = backend.reply.as_ref().and_then(|reply| reply.status.as_ref());
        let told = told.and_then(|status| status.conditions.iter().find(|c| c.r#type == kind)).cloned();
        let told = match (&backend.expired, told) {
            (Some(why), _) => condition(kind, false, "BackendUnreachable", why),
            (None, Some(told)) => told,
            (None, None) => {
                let why = format!("backend {} has not reported {kind}", backend.name);
                condition(kind, false, "BackendSilent", &why)
            }
        };
        if !told.status {
            return told;
        }
        verdict.get_or_insert(told);
    }
    verdict.unwrap_or_else(|| condition(kind, false, "NoBackend", "no backend decides over the node"))
}

fn condition(kind: &str, status: bool, reason: &str, message: &str) -> RuntimeCondition {
    RuntimeCondition {
        r#type: kind.to_owned(),
        status,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

fn runtime_handlers(said: &[BackendStatus<'_>], handlers: &[Served<'_>]) -> Vec<RuntimeHandler> {
    handlers
        .iter()
        .map(|served| {
            let reply = said.iter().find(|b| b.name == served.backend).and_then(|b| b.reply.as_ref());
            let known = reply.and_then(|r| r.runtime_handlers.iter().find(|h| h.name == served.known_as));
            let features: Option<RuntimeHandlerFeatures> = known.and_then(|handler| handler.features);
            RuntimeHandler { name: served.handler.to_owned(), features }
        })
        .collect()
}

fn features(said: &[BackendStatus<'_>]) -> Option<RuntimeFeatures> {
    let mut all =
        said.iter().filter_map(|backend| Some(backend.reply.as_ref()?.features.unwrap_or_default()));
    let first = all.next()?;
    Some(all.fold(first, |a, b| RuntimeFeatures {
        supplemental_groups_policy: a.supplemental_groups_policy && b.supplemental_groups_policy,
        user_namespaces_host_network: a.user_namespaces_host_network && b.user_namespaces_host_network,
        mount_options: a.mount_options && b.mount_options,
    }))
}

fn info(said: &[BackendStatus<'_>]) -> std::collections::HashMap<String, String> {
    let mut info = BTreeMap::new();
    for backend in said {
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

    fn told(conditions: &[(&str, bool)]) -> StatusResponse {
        let conditions = conditions.iter().map(|(kind, status)| condition(kind, *status, "", ""));
        let status = Some(RuntimeStatus { conditions: conditions.collect() });
        StatusResponse { status, ..StatusResponse::default() }
    }

    fn said(name: &str, reply: Option<StatusResponse>) -> BackendStatus<'_> {
        BackendStatus { name, reply, decides: false, default: false, expired: None, state: Ok(()) }
    }

    /// The default backend, ready.
    fn default() -> BackendStatus<'static> {
        let ready = told(&[("RuntimeReady", true), ("NetworkReady", true), ("Other", true)]);
        BackendStatus { decides: true, default: true, ..said("a", Some(ready)) }
    }

    fn conditions_of(said: &[BackendStatus<'_>]) -> Vec<(String, bool, String)> {
        let status = compose(said, &[]).status.expect("a status");
        status.conditions.into_iter().map(|c| (c.r#type, c.status, c.reason)).collect()
    }

    fn row(kind: &str, status: bool, reason: &str) -> (String, bool, String) {
        (kind.to_owned(), status, reason.to_owned())
    }

    #[test]
    fn a_backend_that_does_not_decide_has_a_condition_of_its_own_only() {
        let mut other = said("b", Some(told(&[("RuntimeReady", false), ("Secret", true)])));
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
        let required = BackendStatus { decides: true, ..said("b", Some(told(&[("RuntimeReady", false)]))) };
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
        let served = [
            Served { handler: "gvisor", backend: "a", known_as: "runsc" },
            Served { handler: "runsc", backend: "b", known_as: "runsc" },
            Served { handler: "lost", backend: "a", known_as: "nowhere" },
        ];
        let handlers = compose(&[first], &served).runtime_handlers;
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
        let all = |said: &[BackendStatus<'_>]| {
            features(said).map(|f| (f.mount_options, f.supplemental_groups_policy))
        };
        assert_eq!(all(&[said("a", with(true, true)), said("b", with(true, false))]), Some((true, false)));
        assert_eq!(
            all(&[said("a", with(true, true)), said("b", None)]),
            Some((true, true)),
            "not known is not no"
        );
        let without = Some(StatusResponse::default());
        assert_eq!(all(&[said("a", with(true, true)), said("b", without)]), Some((false, false)));
        assert_eq!(all(&[said("a", None)]), None);
    }

    #[test]
    fn information_of_others_is_told_apart_by_their_names() {
        let with = |value: &str| StatusResponse {
            info: [("config".to_owned(), value.to_owned())].into(),
            ..StatusResponse::default()
        };
        let mut first = default();
        first.reply = Some(with("1"));
        let info = compose(&[first, said("b", Some(with("2")))], &[]).info;
        let expected = [("config", "1"), ("b/config", "2")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(info, std::collections::HashMap::from(expected));
    }
}
