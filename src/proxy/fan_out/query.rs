//! One backend's part of a list: called within its deadline, otherwise last-known.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tonic::Code;

use super::completeness::{Absence, Contribution, NoContribution};
use crate::backend::{Backend, BufferedReply, MethodClass};
use crate::codec::Message;
use crate::error::Error;
use crate::method::{List, Method};
use crate::proxy::NodeState;
use crate::proxy::learn::{Learner, ReceivedList};
use crate::proxy::refresh::{record_bad_list, record_timeout, refresh};
use crate::state::{Filter, ListKind, Revision};

/// A list call to one backend: what is asked for, and how long the backend may take.
pub(in crate::proxy) struct ListQuery {
    pub(in crate::proxy) node: Arc<NodeState>,
    pub(in crate::proxy) backend: Arc<Backend>,
    pub(in crate::proxy) list: List,
    pub(in crate::proxy) filter: Arc<Filter>,
    pub(in crate::proxy) headers: HeaderMap,
    pub(in crate::proxy) message: Message,
    /// The backend's own deadline; a backend that exceeds it is late.
    pub(in crate::proxy) limit: Duration,
    /// `limit`, or the caller's budget if that is less.
    pub(in crate::proxy) wait: Duration,
}

impl ListQuery {
    /// Returns the backend's items, live or last-known, with what another backend owns.
    pub(in crate::proxy) async fn contribution(&self) -> Result<Contribution, NoContribution> {
        let (backend, method) = (&self.backend, self.method());
        let class = MethodClass::of(method);
        let mut own_error = None;
        match tokio::time::timeout(self.wait, self.ask(class)).await {
            Ok(None) => refresh(&self.node, backend, class),
            Ok(Some((revision, Ok(reply)))) if reply.code == Code::Ok => {
                match self.record(revision, &reply) {
                    Ok(items) => return Ok(self.live(items)),
                    Err(error) => record_bad_list(&self.node, backend, class, &error),
                }
            }
            Ok(Some((_, Ok(reply)))) if reply.code == Code::Unimplemented && self.list.is_optional() => {
                backend.record_support(method, true);
                return Err(self.nothing(Absence::Unimplemented(backend.unimplemented_error(method))));
            }
            Ok(Some((_, Ok(reply)))) => {
                record_bad_list(&self.node, backend, class, &backend.not_ok_error(method, &reply));
                own_error = Some(backend.refused_error(method, &reply.trailers));
            }
            Ok(Some((_, Err(Error::Down { .. })))) => {}
            Ok(Some((_, Err(error)))) => record_bad_list(&self.node, backend, class, &error),
            Err(_) if self.wait == self.limit => record_timeout(&self.node, backend, class, method),
            Err(_) => {}
        }
        self.last_known(own_error)
    }

    /// Returns the backend's last-known items, with what another backend owns. `error` is the error that
    /// it answered with.
    pub(in crate::proxy) fn last_known(&self, error: Option<Error>) -> Result<Contribution, NoContribution> {
        let (backend, method) = (&self.backend, self.method());
        if self.list.is_optional() && backend.state.is_unimplemented(method.rpc) {
            return Err(self.nothing(Absence::Unimplemented(backend.unimplemented_error(method))));
        }
        let items = match ListKind::of(self.list) {
            Some(kind) => backend.state.list_with_foreign(kind, &self.filter),
            None => backend.state.reply(method.rpc),
        };
        let Some(items) = items else {
            return Err(self.nothing(error.map_or(Absence::Unknown, Absence::Failed)));
        };
        self.node.metrics.count_stale_list(&backend.name, method.name);
        let has_items = !items.is_empty();
        let foreign = backend.state.foreign();
        Ok(Contribution { backend: Arc::clone(backend), items, foreign, has_items, live: false, error })
    }

    /// Calls the backend; `None` if it is late already. The revision is that before the call.
    async fn ask(&self, class: MethodClass) -> Option<(Revision, Result<BufferedReply, Error>)> {
        let (backend, method) = (&self.backend, self.method());
        if class == MethodClass::Lists {
            backend.listed_or_late().await;
        }
        if backend.health.is_late(class) {
            return None;
        }
        let revision = backend.state.revision();
        let fetch = || backend.fetch(method, self.headers.clone(), self.message.framed());
        let reply = match fetch().await {
            // One sandbox that goes away meanwhile makes containerd refuse the stats of all
            // (sandbox_stats_list.go).
            Ok(BufferedReply { code: Code::NotFound | Code::Unknown, .. }) if self.list.is_measured() => {
                fetch().await
            }
            reply => reply,
        };
        Some((revision, reply))
    }

    /// Records the backend's list, and returns it without items that clients cannot read.
    fn record(&self, revision: Revision, reply: &BufferedReply) -> Result<Bytes, Error> {
        let received = ReceivedList {
            list: self.list,
            revision,
            unfiltered: self.filter.is_empty(),
            encoded: &reply.message.encoded_bytes(),
        };
        Learner::new(&self.node, &self.backend).record_list(received)
    }

    fn live(&self, items: Bytes) -> Contribution {
        self.backend.record_support(self.method(), false);
        let has_items = !items.is_empty();
        let foreign = self.backend.state.foreign();
        Contribution {
            backend: Arc::clone(&self.backend),
            items,
            foreign,
            has_items,
            live: true,
            error: None,
        }
    }

    fn nothing(&self, why: Absence) -> NoContribution {
        NoContribution { backend: Arc::clone(&self.backend.name), why }
    }

    /// Returns the unary method that lists these items.
    fn method(&self) -> &'static Method {
        self.list.unary()
    }
}
