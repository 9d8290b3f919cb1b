//! One backend's part of a list: called within its deadline, otherwise last-known.

use std::sync::Arc;

use bytes::Bytes;
use tonic::Code;

use super::completeness::{Absence, Contribution, NoContribution};
use crate::backend::{Backend, BufferedReply, CallRequest, MethodClass, RequestHeaders};
use crate::codec::Message;
use crate::error::Error;
use crate::method::{List, Method};
use crate::proxy::Node;
use crate::proxy::learn::{Learner, ReceivedList};
use crate::proxy::refresh::{mark_late_and_refresh, record_bad_list_and_refresh, start_refresh};
use crate::proxy::wait::Wait;
use crate::state::{Filter, ListKind, Revision};

/// A list call to one backend: what is asked for, and how long the backend may take.
pub(in crate::proxy) struct ListQuery {
    pub(in crate::proxy) node: Arc<Node>,
    pub(in crate::proxy) backend: Arc<Backend>,
    pub(in crate::proxy) list: List,
    pub(in crate::proxy) filter: Arc<Filter>,
    pub(in crate::proxy) headers: RequestHeaders,
    pub(in crate::proxy) message: Message,
    pub(in crate::proxy) wait: Wait,
}

/// The outcome of a call for a list.
enum Asked {
    /// The backend was not called, because it is late.
    IsLate,
    /// The backend's answer, OK or an error, and the revision of before the call.
    Reply(Revision, BufferedReply),
    /// The call failed without an answer.
    NoAnswer(Error),
    /// [`ListQuery::wait`] passed without an answer.
    TimedOut,
}

impl ListQuery {
    /// Asks the backend, and returns its items, live or else last-known, with what another backend owns.
    pub(in crate::proxy) async fn ask_or_last_known(&self) -> Result<Contribution, NoContribution> {
        let (backend, method) = (&self.backend, self.method());
        let class = MethodClass::of(method);
        let mut own_error = None;
        match self.ask(class).await {
            Asked::Reply(revision, reply) if reply.code == Code::Ok => match self.record(revision, &reply) {
                Ok(items) => return Ok(self.live(items)),
                Err(error) => record_bad_list_and_refresh(&self.node, backend, class, &error),
            },
            Asked::Reply(_, reply) if reply.code == Code::Unimplemented && self.list.is_optional() => {
                backend.record_implemented(method, false);
                return Err(self.nothing(Absence::Unimplemented(backend.unimplemented_error(method))));
            }
            Asked::Reply(_, reply) => {
                // The log says what the backend did; a client may get the backend's own status.
                record_bad_list_and_refresh(
                    &self.node,
                    backend,
                    class,
                    &backend.unusable_reply_error(method, &reply),
                );
                own_error = Some(backend.refused_error(method, &reply.trailers));
            }
            // A backend without a connection fails here at once. Its last-known list stands in, and the end
            // of the connection was logged when it ended.
            Asked::NoAnswer(Error::Down { .. }) => {}
            Asked::NoAnswer(error) => record_bad_list_and_refresh(&self.node, backend, class, &error),
            Asked::IsLate => start_refresh(&self.node, backend, class),
            Asked::TimedOut if self.wait.is_backends_own => {
                mark_late_and_refresh(&self.node, backend, class, method);
            }
            // The caller's deadline was shorter than the backend's, so it says nothing about the backend.
            Asked::TimedOut => {}
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
            return Err(self.nothing(error.map_or(Absence::NothingKnown, Absence::AnsweredError)));
        };
        self.node.metrics.count_stale_list(&backend.name, method.name);
        let has_items = !items.is_empty();
        let foreign = backend.state.foreign();
        Ok(Contribution { backend: Arc::clone(backend), items, foreign, has_items, live: false, error })
    }

    async fn ask(&self, class: MethodClass) -> Asked {
        tokio::time::timeout(self.wait.time, self.ask_unless_late(class)).await.unwrap_or(Asked::TimedOut)
    }

    async fn ask_unless_late(&self, class: MethodClass) -> Asked {
        let (backend, method) = (&self.backend, self.method());
        if class == MethodClass::Lists {
            // The first lists of a connection teach the owners; a client's list does not overtake them. They
            // take at most `timeouts.list` (`Node::on_connected`), and this wait ends with `self.wait`.
            backend.listed_or_late().await;
        }
        if backend.health.is_late(class) {
            return Asked::IsLate;
        }
        let revision = backend.state.begin_read();
        // kubelet lists every second, and mostly nothing has changed.
        let newest = ListKind::of(self.list).filter(|_| self.filter.is_empty());
        let newest = newest.and_then(|kind| backend.state.newest_list(kind));
        let fetch = async || {
            let request = CallRequest::of(method, self.headers.clone(), self.message.framed());
            backend.call(&mut CallRequest { expected: newest.clone(), ..request }).await?.collect().await
        };
        let reply = match fetch().await {
            // One sandbox that goes away meanwhile makes containerd refuse the stats of all
            // (sandbox_stats_list.go).
            Ok(BufferedReply { code: Code::NotFound | Code::Unknown, .. }) if self.list.is_measured() => {
                fetch().await
            }
            reply => reply,
        };
        reply.map_or_else(Asked::NoAnswer, |reply| Asked::Reply(revision, reply))
    }

    /// Records the backend's list, and returns it without items that clients cannot read.
    fn record(&self, revision: Revision, reply: &BufferedReply) -> Result<Bytes, Error> {
        let received = ReceivedList {
            list: self.list,
            revision,
            unfiltered: self.filter.is_empty(),
            encoded: &reply.message.encoded_bytes(),
        };
        Learner::new(&self.node, &self.backend).accept_list(received)
    }

    fn live(&self, items: Bytes) -> Contribution {
        self.backend.record_implemented(self.method(), true);
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
