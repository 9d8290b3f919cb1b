//! `ImageStatus`: the answer of the pod's own store, or of no store at all.
//!
//! A call that names its pod is answered by that pod's backend. One that fits pods of several backends is
//! answered with "there" only if all of them have the same image. One that names nothing is the question as
//! whom the container shall run; it is answered by the backend on which a pod has just been told that the image
//! is there, else by all that have it if they agree, else not at all: kubelet then tries again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::HeaderMap;
use tonic::Code;

use crate::backend::{Backend, Class, Collected};
use crate::codec::Message;
use crate::error::Error;
use crate::method::Method;
use crate::proxy::Call;
use crate::proxy::fan_out::PROMPT;
use crate::proxy::images::with_handler;
use crate::proxy::reply::Outcome;
use crate::router::images::{self, ImageRequest, StatusRoute, StoreAnswer, StoreTarget, Verdict};
use crate::snapshot::{Filter, ListKind};

/// What a backend answered, or why it did not.
type Heard = Result<Collected, Error>;

impl Call {
    pub(super) async fn image_status(
        &mut self,
        method: &'static Method,
        message: Message,
    ) -> Result<Outcome, Error> {
        let asked = ImageRequest::read(message.encoded())?;
        if let Some(scope) = &self.scope {
            let backend = self.node.backend(scope)?;
            self.watch.at(&backend);
            return Ok(self
                .ask(&backend, method, &message, &StoreTarget::plain(Arc::clone(scope)))
                .await?
                .into());
        }
        match self.node.router.way_of_status(&asked)? {
            StatusRoute::One(place) => self.status_at(method, &asked, &message, &place).await,
            StatusRoute::Every(places) => self.status_at_every(method, &asked, &message, &places).await,
            StatusRoute::Unspecified => self.status_anywhere(method, &asked, &message).await,
        }
    }

    /// Answers with what the pod's own store says.
    async fn status_at(
        &mut self,
        method: &'static Method,
        asked: &ImageRequest<'_>,
        message: &Message,
        place: &StoreTarget,
    ) -> Result<Outcome, Error> {
        let backend = self.node.backend(&place.backend)?;
        self.watch.at(&backend);
        let reply = self.ask(&backend, method, message, place).await?;
        self.show(asked, &backend, &reply)?;
        Ok(reply.into())
    }

    /// Answers with the image only if all these stores have it, and the same one.
    async fn status_at_every(
        &mut self,
        method: &'static Method,
        asked: &ImageRequest<'_>,
        message: &Message,
        places: &[StoreTarget],
    ) -> Result<Outcome, Error> {
        self.watch.at_all(&self.node);
        let backends: Vec<_> =
            places.iter().map(|place| self.node.backend(&place.backend)).collect::<Result<_, _>>()?;
        let pairs = std::iter::zip(&backends, places);
        let heard = join_all(pairs.map(|(backend, place)| self.ask(backend, method, message, place))).await;
        let (mut having, mut lost) = (Vec::new(), None);
        for (backend, reply) in std::iter::zip(&backends, heard) {
            match reply {
                Ok(reply) if is_there(&reply) => having.push((backend, reply)),
                Ok(reply) => {
                    self.show(asked, backend, &reply)?;
                    return Ok(reply.into());
                }
                // Nothing starts on a backend that is down, so that it had the image is answer enough.
                Err(error) if !backend.is_up() && had(backend, asked.reference) => lost = Some(error),
                Err(error) => return Err(error),
            }
        }
        let replies: Vec<_> = having.iter().map(|(_, reply)| reply.message.encoded()).collect();
        match (images::same_image(&replies), lost) {
            (Some(place), _) => {
                let (backend, reply) = having.swap_remove(place);
                self.show(asked, backend, &reply)?;
                Ok(reply.into())
            }
            (None, Some(error)) if having.is_empty() => Err(error),
            // Another image under the same name is not the image; a pull settles which one is meant.
            _ => {
                self.node.router.image_uses.missed(asked.reference, asked.pod.config_seen);
                Ok(Outcome::message(&[]))
            }
        }
    }

    /// Answers a call that says nothing of a pod.
    async fn status_anywhere(
        &mut self,
        method: &'static Method,
        asked: &ImageRequest<'_>,
        message: &Message,
    ) -> Result<Outcome, Error> {
        self.watch.at_all(&self.node);
        let default = self.node.default_in(None);
        let mut backends = self.backends();
        backends.retain(|backend| !self.node.is_joining(backend));
        backends.sort_by_key(|backend| backend.name != default);
        let awaited = self.node.router.image_uses.awaited(asked.reference, Instant::now());
        let waiting: Vec<_> = backends.iter().filter(|b| awaited.contains(&b.name)).cloned().collect();
        // Where a pod waits, the others do not matter, and may be slow.
        let asking = if waiting.is_empty() { backends } else { waiting };
        let mut heard = self.ask_all(&asking, method, message).await;
        match self.judge(asked, &awaited, &asking, &heard) {
            Verdict::Answer(place) => self.tell(asked, &asking[place], heard.swap_remove(place)),
            verdict => settle(asked, verdict, heard),
        }
    }

    fn judge(
        &self,
        asked: &ImageRequest<'_>,
        awaited: &[Arc<str>],
        backends: &[Arc<Backend>],
        heard: &[Heard],
    ) -> Verdict {
        let said: Vec<_> = heard.iter().map(said).collect();
        let latest = self.node.router.image_uses.latest(asked.reference, Instant::now());
        let latest = latest.and_then(|name| backends.iter().position(|backend| backend.name == name));
        images::judge(&said, |place| awaited.contains(&backends[place].name), latest)
    }

    fn tell(&mut self, asked: &ImageRequest<'_>, backend: &Backend, heard: Heard) -> Result<Outcome, Error> {
        self.watch.at(backend);
        self.node.router.image_uses.told(asked.reference, Instant::now());
        heard.map(Outcome::from)
    }

    /// Asks one backend within its deadline for reads, or the caller's.
    async fn ask(
        &self,
        backend: &Arc<Backend>,
        method: &'static Method,
        message: &Message,
        place: &StoreTarget,
    ) -> Heard {
        let wait = self.at_most(backend.config().timeouts.read);
        ask_within(wait, backend, method, self.headers.clone(), with_handler(message, place)).await
    }

    /// Asks backends at once. One that is late already only gets a moment, so that it does not slow every pod.
    async fn ask_all(
        &self,
        backends: &[Arc<Backend>],
        method: &'static Method,
        message: &Message,
    ) -> Vec<Heard> {
        let asked = backends.iter().map(|backend| {
            let late = backend.health.is_late(Class::Lists) || backend.health.is_late(Class::Reads);
            let limit = if late && backends.len() > 1 { PROMPT } else { backend.config().timeouts.read };
            ask_within(self.at_most(limit), backend, method, self.headers.clone(), message.framed())
        });
        join_all(asked).await
    }

    /// Remembers whether a pod was shown an image, or holds the pod back for a moment.
    fn show(&self, asked: &ImageRequest<'_>, backend: &Backend, reply: &Collected) -> Result<(), Error> {
        let (remembered, pod) = (&self.node.router.image_uses, asked.pod.config_seen);
        if pod.is_empty() || reply.code != Code::Ok {
            return Ok(());
        }
        let Some(user) = images::user(reply.message.encoded()) else {
            remembered.missed(asked.reference, pod);
            return Ok(());
        };
        let shown = remembered.shown(asked.reference, &backend.name, pod, user, Instant::now());
        shown.map_err(|other| Error::ImageUndecided {
            image: asked.reference.to_owned(),
            cause: format!(
                "it is being started on backend {other} too, where it has another user than on {}; try again",
                backend.name
            ),
        })
    }
}

async fn ask_within(
    wait: Duration,
    backend: &Arc<Backend>,
    method: &'static Method,
    headers: HeaderMap,
    message: bytes::Bytes,
) -> Heard {
    let late = || Error::Late { backend: Arc::clone(&backend.name), waited: wait };
    tokio::time::timeout(wait, backend.fetch(method, headers, message)).await.map_err(|_| late())?
}

fn is_there(reply: &Collected) -> bool {
    reply.code == Code::Ok && images::user(reply.message.encoded()).is_some()
}

fn said(heard: &Heard) -> StoreAnswer {
    match heard {
        Ok(reply) if reply.code == Code::Ok => {
            images::user(reply.message.encoded()).map_or(StoreAnswer::Lacks, StoreAnswer::Has)
        }
        _ => StoreAnswer::Nothing,
    }
}

/// Tells whether the last-known list of a backend has the image.
fn had(backend: &Backend, reference: &str) -> bool {
    let list = backend.last.list(ListKind::Images, &Filter::default());
    list.is_some_and(|list| !images::held(&list, reference).is_empty())
}

/// Answers a call for which no answer was chosen.
fn settle(asked: &ImageRequest<'_>, verdict: Verdict, heard: Vec<Heard>) -> Result<Outcome, Error> {
    let Verdict::Undecided(cause) = verdict else {
        let absent = heard.into_iter().flatten().next();
        return Ok(absent.map_or_else(|| Outcome::message(&[]), Outcome::from));
    };
    let there = heard.iter().flatten().any(is_there);
    let mut missing = Vec::new();
    for reply in heard {
        match reply {
            // Where nobody has it, a backend's own error says more than we could.
            Ok(reply) if reply.code != Code::Ok && !there => return Ok(reply.into()),
            Ok(_) => {}
            Err(error) => missing.push(error.to_string()),
        }
    }
    let image = asked.reference.to_owned();
    tracing::warn!(image, cause, ?missing, "no answer for this image can stand for all backends");
    let more = if missing.is_empty() { String::new() } else { format!(" ({})", missing.join("; ")) };
    Err(Error::ImageUndecided { image, cause: format!("{cause}{more}") })
}
