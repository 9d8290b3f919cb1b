//! The forward lane: one backend, the same bytes, and what its answer teaches.
//!
//! A reply that teaches nothing is passed on while it arrives; one that does is small, is collected, and is
//! learnt from before it goes out. A status read has a deadline of its own, after which, or if the backend is
//! down, the remembered status answers as long as it agrees with the last-known list.

use std::sync::Arc;
use std::time::Duration;

use tonic::Code;

use crate::backend::{Backend, Class, Collected};
use crate::codec::Message;
use crate::error::Error;
use crate::merge::stats;
use crate::method::{Effect, List, Method};
use crate::proxy::reply::Outcome;
use crate::proxy::{Call, learn};
use crate::snapshot::StatusKind;
use crate::{router, wire};

impl Call {
    /// Sends a call that creates a sandbox to the backend of its handler.
    pub(super) async fn place(&mut self, field: u32, message: Message) -> Result<Outcome, Error> {
        let method = self.method.expect("a handler lane is a row of the table");
        let request = message.encoded();
        let handler = wire::peek_str(request, &[field])?.to_owned();
        let uid = wire::peek_str(request, &learn::uid_path(method))?.to_owned();
        let choice = match &self.scope {
            Some(backend) => router::Choice { backend: Arc::clone(backend), handler: handler.clone() },
            None => self
                .node
                .choose(&handler, &uid)
                .inspect_err(|error| self.node.placed(&handler, None, error.code()))?,
        };
        let backend = self.node.backend(&choice.backend)?;
        let message = if choice.handler == handler {
            message
        } else {
            Message::new(&wire::append_str(request, &[field], &choice.handler))
        };
        self.watch.at(&backend);
        let reply = self.fetch(&backend, method, &message).await;
        let code = reply.as_ref().map_or_else(Error::code, |reply| reply.code);
        self.node.placed(&handler, Some(&backend.name), code);
        let reply = reply?;
        if reply.code == Code::Ok {
            let id = learn::created(
                &self.node,
                &backend,
                method,
                None,
                message.encoded(),
                reply.message.encoded(),
            )?;
            self.node.metrics.sandboxes_routed.with_label_values(&[&handler, &*backend.name]).inc();
            tracing::info!(method = method.name, %handler, backend = %backend.name, sandbox = %id, "placed");
        }
        Ok(reply.into())
    }

    /// Sends a call about one sandbox or container to its owner. `id` is the full ID.
    pub(super) async fn forward(
        &mut self,
        backend: &Arc<Backend>,
        method: &'static Method,
        id: &str,
        message: Message,
    ) -> Result<Outcome, Error> {
        self.watch.at(backend);
        if learn::is_write(method.effect) {
            backend.last.drop_status(id);
        }
        if method.effect == Effect::ContainerCreated {
            self.note_creation(message.encoded())?;
        }
        match method.effect {
            Effect::Stats if !backend.config().local => {
                self.stats_from_elsewhere(backend, method, &message).await
            }
            Effect::None | Effect::Stats => {
                let headers = std::mem::take(&mut self.headers);
                let reply = backend.call(Some(method), &self.path, headers, message.framed()).await?;
                Ok(Outcome::Arriving(reply))
            }
            Effect::Status => self.read_status(backend, method, id, message).await,
            Effect::StreamUrl => {
                let reply = self.fetch(backend, method, &message).await?;
                self.node.relayed(backend, reply).map(Outcome::from)
            }
            _ => {
                let reply = self.fetch(backend, method, &message).await?;
                if method.effect == Effect::ContainerCreated {
                    self.note_created(backend, message.encoded(), &reply)?;
                }
                if reply.code == Code::Ok {
                    let (request, reply) = (message.encoded(), reply.message.encoded());
                    learn::wrote(&self.node, backend, method, id, request, reply)?;
                }
                Ok(reply.into())
            }
        }
    }

    /// Asks for the stats of one object on another node, and cuts out the paths that are not on this one.
    async fn stats_from_elsewhere(
        &mut self,
        backend: &Arc<Backend>,
        method: &'static Method,
        message: &Message,
    ) -> Result<Outcome, Error> {
        let reply = self.fetch(backend, method, message).await?;
        let list = if method.name == "PodSandboxStats" { List::SandboxStats } else { List::ContainerStats };
        let stats = stats::without_filesystems(list, &reply.message.encoded_bytes());
        let stats = stats.map_err(|error| Error::Garbage {
            backend: Arc::clone(&backend.name),
            cause: error.to_string(),
        })?;
        let message = if reply.code == Code::Ok { Message::new(&stats) } else { reply.message };
        Ok(Collected { message, ..reply }.into())
    }

    async fn fetch(
        &mut self,
        backend: &Arc<Backend>,
        method: &'static Method,
        message: &Message,
    ) -> Result<Collected, Error> {
        backend.fetch(method, std::mem::take(&mut self.headers), message.framed()).await
    }

    /// Reads a status live within its deadline, or from what is remembered.
    async fn read_status(
        &mut self,
        backend: &Arc<Backend>,
        method: &'static Method,
        id: &str,
        message: Message,
    ) -> Result<Outcome, Error> {
        let kind =
            if method.name == "PodSandboxStatus" { StatusKind::Sandbox } else { StatusKind::Container };
        let verbose = wire::peek_varint(message.encoded(), &[2])? != 0;
        let remembered = || (!verbose).then(|| backend.last.status(kind, id)).flatten();
        if (!backend.is_up() || backend.health.is_late(Class::Reads))
            && let Some(status) = remembered()
        {
            return Ok(Outcome::message(&status));
        }
        let limit = backend.config().timeouts.read;
        let wait = self.caller_waits().map_or(limit, |caller| limit.min(caller));
        let read = async {
            let epoch = backend.last.epoch();
            let reply = self.fetch(backend, method, &message).await?;
            backend.health.mark_answered(Class::Reads);
            if reply.code == Code::Ok && !verbose {
                backend.last.remember_status(kind, id, epoch, reply.message.encoded());
            }
            Ok::<_, Error>(reply)
        };
        let late = Error::Late { backend: Arc::clone(&backend.name), waited: wait };
        match tokio::time::timeout(wait, read).await {
            Ok(Ok(reply)) => Ok(reply.into()),
            Ok(Err(error)) => remembered().map(|status| Outcome::message(&status)).ok_or(error),
            Err(_) => {
                if wait == limit {
                    backend.health.mark_late(Class::Reads);
                }
                remembered().map(|status| Outcome::message(&status)).ok_or(late)
            }
        }
    }

    /// Returns most of what the caller still waits, if it said so: crictl gives up after 2 s, and an answer from
    /// last-known state must come before that.
    pub(super) fn caller_waits(&self) -> Option<Duration> {
        let caller = timeout(self.headers.get("grpc-timeout")?.to_str().ok()?)?;
        Some(caller.mul_f64(0.8))
    }
}

/// Reads a `grpc-timeout`: at most eight digits and a unit.
fn timeout(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_in_every_unit_and_nothing_else() {
        assert_eq!(timeout("120S"), Some(Duration::from_secs(120)));
        assert_eq!(timeout("99999999u"), Some(Duration::from_micros(99_999_999)));
        for wrong in ["", "S", "1", "-1S", "123456789S", "1.5S", "1é"] {
            assert_eq!(timeout(wrong), None, "{wrong:?}");
        }
    }
}
