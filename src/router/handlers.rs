//! `RuntimeClass` handlers and the backends they lead to.
//!
//! The handler `""`, of pods without a `RuntimeClass`, is the default backend's own default unless
//! `default_split` shares it. Where a handler is split, the pod's uid decides, so that kubelet's retry of a
//! sandbox lands where the first try did; a draining target takes no share.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::{Config, Target};
use crate::error::Error;
use crate::router::Names;
use crate::state::InstanceId;

/// The instance of a name without a running backend; a call to it fails with `Gone`.
const NOBODY: InstanceId = InstanceId(0);

/// The handlers of one configuration.
#[derive(Debug)]
pub struct Handlers {
    default: InstanceId,
    default_name: Arc<str>,
    /// Of the handler `""`; never empty.
    default_targets: Vec<(InstanceId, Target)>,
    targets: BTreeMap<String, Vec<(InstanceId, Target)>>,
}

/// Where a sandbox goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The backend.
    pub backend: InstanceId,
    /// The backend's name for the handler.
    pub backend_handler: String,
}

impl Handlers {
    /// Reads the handlers of a checked configuration.
    pub fn new(config: &Config, names: &Names) -> Self {
        let id = |backend: &String| names.get(backend).copied().unwrap_or(NOBODY);
        let meant = |targets: &[Target]| targets.iter().map(|t| (id(&t.backend), t.clone())).collect();
        let targets = config.handlers.iter().map(|(handler, targets)| (handler.clone(), meant(targets)));
        let backend = config.default_backend.clone();
        let default_target = [Target { backend, backend_handler: String::new(), weight: 1 }];
        let shares = &config.default_split;
        Self {
            default: id(&config.default_backend),
            default_name: config.default_backend.as_str().into(),
            default_targets: meant(if shares.is_empty() { &default_target } else { shares }),
            targets: targets.collect(),
        }
    }

    /// Returns the default backend.
    pub fn default_backend(&self) -> InstanceId {
        self.default
    }

    /// Returns every configured handler with its targets, by name; not the handler `""`.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[(InstanceId, Target)])> {
        self.targets.iter().map(|(handler, targets)| (handler.as_str(), targets.as_slice()))
    }

    /// Chooses where a new sandbox of this handler goes; `is_draining` tells which backends take none.
    ///
    /// # Errors
    /// [`Error::UnknownHandler`], naming the handlers that exist; [`Error::Draining`] if no target is left.
    pub fn choose(
        &self,
        handler: &str,
        uid: &str,
        is_draining: impl Fn(InstanceId) -> bool,
    ) -> Result<Choice, Error> {
        let targets = self.targets_of(handler)?;
        let open = || targets.iter().filter(|(backend, _)| !is_draining(*backend));
        let total: u64 = open().map(|(_, target)| u64::from(target.weight)).sum();
        let mut ticket = if total == 0 { 0 } else { uid_hash(uid) % total };
        for (backend, target) in open().filter(|(_, target)| target.weight > 0) {
            let Some(rest) = ticket.checked_sub(u64::from(target.weight)) else {
                let backend_handler = target.backend_handler.clone();
                return Ok(Choice { backend: *backend, backend_handler });
            };
            ticket = rest;
        }
        let first = targets.first().map(|(_, target)| target.backend.as_str().into());
        let backend = first.unwrap_or_else(|| Arc::clone(&self.default_name));
        Err(Error::Draining { backend, handler: handler.to_owned() })
    }

    /// Returns the target of a handler at this backend, whatever its weight; `None` if the handler does not
    /// lead there. A pod without a `RuntimeClass` can go anywhere, to the backend's own default.
    pub fn target_at(&self, handler: &str, backend: InstanceId) -> Option<Choice> {
        let targets = self.targets_of(handler).ok()?;
        let target = targets.iter().find(|(id, _)| *id == backend);
        let configured = target.map(|(_, target)| target.backend_handler.clone());
        let backend_handler = configured.or_else(|| handler.is_empty().then(String::new))?;
        Some(Choice { backend, backend_handler })
    }

    /// Returns the targets of a handler.
    ///
    /// # Errors
    /// [`Error::UnknownHandler`].
    pub fn targets_of(&self, handler: &str) -> Result<&[(InstanceId, Target)], Error> {
        if handler.is_empty() {
            return Ok(&self.default_targets);
        }
        self.targets.get(handler).map(Vec::as_slice).ok_or_else(|| Error::UnknownHandler {
            handler: handler.to_owned(),
            known: self.targets.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
        })
    }
}

/// FNV-1a with a final mix: the same for the same uid in every release of crimux.
fn uid_hash(uid: &str) -> u64 {
    let hash = uid.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: InstanceId = InstanceId(1);
    const B: InstanceId = InstanceId(2);

    fn target(backend: &str, weight: u32) -> (InstanceId, Target) {
        (
            if backend == "a" { A } else { B },
            Target { backend: backend.into(), backend_handler: format!("{backend}-h"), weight },
        )
    }

    fn handlers() -> Handlers {
        let targets = BTreeMap::from([
            ("one".to_owned(), vec![target("a", 1)]),
            ("split".to_owned(), vec![target("a", 9), target("b", 1)]),
        ]);
        let default_targets = vec![(A, Target { backend_handler: String::new(), ..target("a", 1).1 })];
        Handlers { default: A, default_name: "a".into(), default_targets, targets }
    }

    #[test]
    fn an_unknown_handler_is_refused_by_naming_those_that_exist() {
        let error = handlers().choose("kata", "uid", |_| false).expect_err("kata is not configured");
        assert_eq!(
            error.to_string(),
            r#"no runtime handler "kata" is configured; configured handlers: one, split"#
        );
    }

    #[test]
    fn no_handler_goes_to_the_default_backend_as_no_handler() {
        let choice = handlers().choose("", "uid", |_| false).expect("the default is open");
        assert_eq!(choice, Choice { backend: A, backend_handler: String::new() });
    }

    #[test]
    fn a_split_follows_its_weights_and_the_same_uid_goes_the_same_way() {
        let handlers = handlers();
        let pick = |uid: &str| handlers.choose("split", uid, |_| false).expect("open").backend;
        let to_b = (0..1000).filter(|n| pick(&format!("uid-{n}")) == B).count();
        assert!((60..140).contains(&to_b), "{to_b} of 1000 went to the tenth share");
        assert_eq!(pick("uid-7"), pick("uid-7"));
    }

    #[test]
    fn pods_without_a_runtime_class_follow_the_default_split() {
        let shares = vec![target("a", 1), target("b", 1)];
        let handlers = Handlers { default_targets: shares, ..handlers() };
        let pick = |uid: &str| handlers.choose("", uid, |_| false).expect("open");
        let to_b = (0..1000).filter(|n| pick(&format!("uid-{n}")).backend == B).count();
        assert!((400..600).contains(&to_b), "{to_b} of 1000 went to the half of b");
        assert_eq!(pick("uid-7"), pick("uid-7"));
        assert_eq!(handlers.choose("", "uid", |b| b == A).expect("b is open").backend_handler, "b-h");
        assert_eq!(handlers.default_backend(), A);
    }

    #[test]
    fn a_drained_target_takes_no_share_and_the_last_one_refuses() {
        let handlers = handlers();
        for n in 0..50 {
            let choice = handlers.choose("split", &format!("{n}"), |b| b == A).expect("b is open");
            assert_eq!(choice.backend, B);
        }
        let error = handlers.choose("one", "uid", |b| b == A).expect_err("nothing is open");
        assert!(error.to_string().contains("draining"), "{error}");
    }
}
