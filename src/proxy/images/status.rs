//! `ImageStatus`: the answer of the pod's store, of several stores that agree, or an error.
//!
//! The rule that names the stores also decides how their answers become one ([`Rule::combine`]):
//!
//! | rule | how | the table of cases |
//! |---|---|---|
//! | `OwnSocket` | `PassOn`: one store, whose answer passes | |
//! | `ConfigSeen`, `Handler`, `UsedBy` | `AllSame`: present if all that answer agree | `answer_for_pod` |
//! | `Alike`, `NoPod`, `OtherClient` | the same | the same |
//! | `StartUnderWay` | `SameUser`: absent is never an answer | [`images::compare_answers`] |
//! | `YoungProcess` | `SameUser`: absent only if all say so | the same |
//!
//! The last two are kubelet's question for the user, which names no pod: kubelet retries after an error, but
//! runs the container as root if the image is absent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tonic::Code;

use crate::backend::{Backend, BufferedReply, MethodClass};
use crate::codec::Message;
use crate::error::Error;
use crate::method::Method;
use crate::proxy::images::with_handler;
use crate::proxy::reply::Outcome;
use crate::proxy::{Call, refresh};
use crate::router::images::{
    self, Combine, ImageRequest, ImageRoute, Rule, StoreAnswer, StoreTarget, Verdict,
};

/// How long a store that is late already is waited for beside others.
const LATE_STORE: Duration = Duration::from_millis(80);

/// A backend's reply, or the error of the call.
type StoreReply = Result<BufferedReply, Error>;

impl Call {
    pub(super) async fn image_status(
        &mut self,
        method: &'static Method,
        message: Message,
    ) -> Result<Outcome, Error> {
        let request = ImageRequest::read(message.encoded())?;
        let ImageRoute { rule, stores } = match self.scope {
            Some(scope) => ImageRoute::to(Rule::OwnSocket, scope),
            None => self.node.route_of_status(&request)?,
        };
        tracing::debug!(image = request.reference, ?rule, ?stores, "status routed");
        let backends: Vec<_> =
            stores.iter().map(|store| self.node.backend(store.backend)).collect::<Result<_, _>>()?;
        match &backends[..] {
            [only] => self.recorder.set_backend(only),
            _ => self.recorder.set_all_backends(&self.node),
        }
        let answers = self.ask_all(method, &message, &backends, &stores).await;
        match rule.combine() {
            Combine::PassOn => self.answer_of_store(answers),
            Combine::AllSame => self.answer_for_pod(&request, &backends, answers),
            Combine::SameUser { accept_absent } => {
                let compared = images::compare_answers(&store_answers(&answers), accept_absent);
                self.answer_user_query(&request, rule, &backends, answers, compared)
            }
        }
    }

    /// Returns the one store's answer.
    fn answer_of_store(&self, mut answers: Vec<StoreReply>) -> Result<Outcome, Error> {
        debug_assert!(self.scope.is_some(), "one backend's own socket");
        answers.swap_remove(0).map(Outcome::from)
    }

    /// Answers a call that the rules tie to a pod, or to the default backend: present only if all stores that
    /// answer, often one, have the same image. A store that cannot be asked cannot start the container now
    /// either. The first row that fits decides:
    ///
    /// | answers | the client gets | the container start of the pod |
    /// |---|---|---|
    /// | one is absent | absent | ends |
    /// | all are unavailable | the first error: kubelet starts the container again | ends |
    /// | different images by one name | absent: kubelet pulls, and the pull carries the pod's uid | ends |
    /// | the same image | present | begins, at the stores that have the image |
    ///
    /// While the start lasts, kubelet's question for the user, which names no pod, is answered by these
    /// stores. A call without `config.seen` is of no pod and notes nothing.
    fn answer_for_pod(
        &self,
        request: &ImageRequest<'_>,
        backends: &[Arc<Backend>],
        mut answers: Vec<StoreReply>,
    ) -> Result<Outcome, Error> {
        let answers_of_stores = store_answers(&answers);
        let (starts, config_seen) = (&self.node.router.image_starts, request.annotations.config_seen);
        if let Some(index) = answers_of_stores.iter().position(|answer| *answer == StoreAnswer::Absent) {
            starts.end(request.reference, config_seen);
            return answers.swap_remove(index).map(Outcome::from);
        }
        let present_at: Vec<_> = (0..answers_of_stores.len())
            .filter(|index| answers_of_stores[*index] != StoreAnswer::Unavailable)
            .collect();
        if present_at.is_empty() {
            starts.end(request.reference, config_seen);
            return answers.swap_remove(0).map(Outcome::from);
        }
        let replies: Vec<_> = present_at
            .iter()
            .filter_map(|index| answers[*index].as_ref().ok())
            .map(|reply| reply.message.encoded())
            .collect();
        let Some(index) = images::index_of_same_image(&replies) else {
            starts.end(request.reference, config_seen);
            return Ok(Outcome::message(&[]));
        };
        let stores = present_at.iter().map(|index| backends[*index].id).collect();
        starts.begin(request.reference, config_seen, stores, Instant::now());
        answers.swap_remove(present_at[index]).map(Outcome::from)
    }

    /// Answers kubelet's question which user the image sets, by what comparing the answers gave.
    fn answer_user_query(
        &mut self,
        request: &ImageRequest<'_>,
        rule: Rule,
        backends: &[Arc<Backend>],
        mut answers: Vec<StoreReply>,
        compared: Verdict,
    ) -> Result<Outcome, Error> {
        let cause = match compared {
            Verdict::Answer(index) => {
                self.recorder.set_backend(&backends[index]);
                return answers.swap_remove(index).map(Outcome::from);
            }
            Verdict::Absent => return answers.swap_remove(0).map(Outcome::from),
            Verdict::Undecided(cause) => cause,
        };
        self.node.router.image_starts.record_undecided(request.reference, Instant::now());
        let outcomes: Vec<_> = std::iter::zip(backends, &answers)
            .map(|(backend, answer)| match answer {
                Ok(reply) if reply.code != Code::Ok => format!("{}: {:?}", backend.name, reply.code),
                Ok(_) => backend.name.to_string(),
                Err(error) => error.to_string(),
            })
            .collect();
        let (image, outcomes) = (request.reference.to_owned(), outcomes.join("; "));
        tracing::warn!(image, cause, outcomes, ?rule, "the image's user is not certain");
        Err(Error::ImageUndecided { image, cause: format!("{cause} ({outcomes})") })
    }

    /// Asks these stores at once, each within its deadline for reads or the caller's. Of several, one that is
    /// late already is waited for at most [`LATE_STORE`].
    async fn ask_all(
        &self,
        method: &'static Method,
        message: &Message,
        backends: &[Arc<Backend>],
        stores: &[StoreTarget],
    ) -> Vec<StoreReply> {
        let calls = std::iter::zip(backends, stores).map(|(backend, store)| async move {
            let late =
                backend.health.is_late(MethodClass::Lists) || backend.health.is_late(MethodClass::Reads);
            // Of one store the answer is needed; several are asked to agree, and a late one may be left out.
            let is_brief = late && backends.len() > 1;
            let wait = self.wait_within(if is_brief { LATE_STORE } else { backend.deadline(method) });
            let call = backend.fetch(method, self.headers(), with_handler(message, store));
            if let Ok(answer) = tokio::time::timeout(wait.time, call).await {
                return answer;
            }
            // A wait that the caller or `LATE_STORE` cut short says nothing new about the backend.
            if wait.is_backends_own && !is_brief {
                refresh::mark_late_and_refresh(&self.node, backend, MethodClass::Reads, method);
            }
            Err(backend.timeout_error(method, wait.time))
        });
        join_all(calls).await
    }
}

fn store_answers(replies: &[StoreReply]) -> Vec<StoreAnswer> {
    let answer = |reply: &StoreReply| match reply {
        Ok(reply) if reply.code == Code::Ok => {
            images::user_if_present(reply.message.encoded()).map_or(StoreAnswer::Absent, StoreAnswer::Present)
        }
        _ => StoreAnswer::Unavailable,
    };
    replies.iter().map(answer).collect()
}
