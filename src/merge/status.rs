//! `Status` of the node, composed from what each backend says of itself.
//!
//! kubelet needs `RuntimeReady` and `NetworkReady` by these names: they are the default backend's, and-ed with
//! those of `required` ones. Every backend adds a condition `Backend/NAME`. Handlers are the public names, with
//! the features of what they map to; features of the node are what all backends have. The extra information of
//! a verbose call keeps the default backend's keys and prefixes the others'.

use std::collections::BTreeMap;

use prost::Message;

use crate::cri::{
    RuntimeCondition, RuntimeFeatures, RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus, StatusResponse,
};

/// The conditions that kubelet judges the node by.
const JUDGED: [&str; 2] = ["RuntimeReady", "NetworkReady"];

/// What one backend says, or last said, of itself.
#[derive(Debug)]
pub struct Said<'a> {
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
pub fn compose(said: &[Said<'_>], handlers: &[Served<'_>]) -> StatusResponse {
    StatusResponse {
        status: Some(RuntimeStatus { conditions: conditions(said) }),
        info: info(said),
        runtime_handlers: runtime_handlers(said, handlers),
        features: features(said),
    }
}

/// Decodes a backend's reply; a reply that is none counts as never given.
pub fn decode(reply: &[u8]) -> Option<StatusResponse> {
    StatusResponse::decode(reply).ok()
}

/// Tells whether a backend's reply says anything about its conditions.
pub fn is_whole(reply: &StatusResponse) -> bool {
    reply.status.as_ref().is_some_and(|status| !status.conditions.is_empty())
}

fn conditions(said: &[Said<'_>]) -> Vec<RuntimeCondition> {
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
fn judge(said: &[Said<'_>], kind: &str) -> RuntimeCondition {
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

fn runtime_handlers(said: &[Said<'_>], handlers: &[Served<'_>]) -> Vec<RuntimeHandler> {
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

fn features(said: &[Said<'_>]) -> Option<RuntimeFeatures> {
    let mut all =
        said.iter().filter_map(|backend| Some(backend.reply.as_ref()?.features.unwrap_or_default()));
    let first = all.next()?;
    Some(all.fold(first, |a, b| RuntimeFeatures {
        supplemental_groups_policy: a.supplemental_groups_policy && b.supplemental_groups_policy,
        user_namespaces_host_network: a.user_namespaces_host_network && b.user_namespaces_host_network,
        mount_options: a.mount_options && b.mount_options,
    }))
}

fn info(said: &[Said<'_>]) -> std::collections::HashMap<String, String> {
    let mut info = BTreeMap::new();
    for backend in said {
        for (key, value) in backend.reply.iter().flat_map(|reply| &reply.info) {
            let key = if backend.default { key.clone() } else { format!("{}/{key}", backend.name) };
            info.insert(key, value.clone());
        }
    }
    info.into_iter().collect()
}
