//! One backend's event stream, read to its end.
//!
//! A quiet stream is a stream: grpc-go sends not even headers before the first event. So a stream that has
//! not ended within [`TRIAL`] counts; the stream of CRI-O with events switched off, which ends at once with
//! OK, does not. Events pass as the bytes that were received. An event that would crash a client, or that
//! clients know already, is left out.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tonic::Code;

use super::Source;
use crate::backend::{CallRequest, RequestHeaders, own_headers};
use crate::codec::{self, Deframer, Message, PREFIX};
use crate::cri::{Rpc, field};
use crate::error::Error;
use crate::merge::required;
use crate::method;
use crate::proxy::learn::Learner;
use crate::utf8;
use crate::wire::{self, Value, WireError};

/// How long a stream must last to be one.
const TRIAL: Duration = Duration::from_millis(300);
/// The largest event, in bytes: what grpc-go clients take.
const MAX_EVENT: usize = 16 << 20;

/// Why a backend's stream has ended.
pub(super) enum Ended {
    /// This version of the backend has none that can be used.
    Refused(String),
    /// The stream was lost.
    Lost(String),
}

impl Source {
    /// Reads the backend's stream to its end.
    pub(super) async fn read_stream(&self) -> Ended {
        let mut trial = Some(Instant::now() + TRIAL);
        let ended = match self.follow(&mut trial).await {
            Ok(Code::Ok) if trial.is_some() => Ended::Refused("its stream ends at once".to_owned()),
            Ok(Code::Unimplemented) => Ended::Refused("it has no GetContainerEvents".to_owned()),
            Ok(code) => Ended::Lost(format!("GetContainerEvents ended with {code:?}")),
            Err(Error::Malformed(_)) => Ended::Refused("its events have the shape of CRI 0.25".to_owned()),
            Err(error) => Ended::Lost(error.to_string()),
        };
        if matches!(ended, Ended::Refused(_)) {
            self.backend.state.set_streams_events(false);
        }
        ended
    }

    async fn follow(&self, trial: &mut Option<Instant>) -> Result<Code, Error> {
        let method = method::row(Rpc::GetContainerEvents);
        let mut request = CallRequest::of(method, without_deadline(), Message::new(&[]).framed());
        let calling = self.backend.call(&mut request);
        let reply = self.on_trial(trial, calling).await?;
        if let Some(code) = codec::status_code(&reply.headers) {
            return Ok(code);
        }
        let mut body = reply.body;
        let mut deframer = Deframer::default();
        while let Some(chunk) = self.on_trial(trial, body.chunk()).await {
            deframer.push(&chunk?);
            while let Some(event) = deframer.next(MAX_EVENT)? {
                if is_of_cri_0_25(&event[PREFIX..]).unwrap_or(false) {
                    return Err(Error::Malformed(WireError::Unexpected(field!(PodSandboxStatus.state))));
                }
                self.passed_trial(trial);
                self.pass(&event);
            }
        }
        let trailers = std::future::poll_fn(|cx| body.poll_trailers(cx)).await?;
        trailers.as_ref().and_then(codec::status_code).ok_or_else(|| body.without_status())
    }

    /// Learns from one framed event, and passes it on.
    fn pass(&self, event: &Bytes) {
        let encoded = event.slice(PREFIX..);
        match self.readable(&encoded) {
            Ok(None) => {}
            Ok(Some(same)) if same.as_ptr() == encoded.as_ptr() => self.publish(event),
            Ok(Some(repaired)) => self.publish(&Message::new(&repaired).framed()),
            Err(error) => self.backend.health.record_error(format!("an event cannot be read: {error}")),
        }
        self.events.notify_one();
    }

    /// Returns an event as clients can read it; `None` if it is not for them.
    fn readable(&self, encoded: &Bytes) -> Result<Option<Bytes>, Error> {
        let (whole, left_out) = required::remove_incomplete(required::CheckedReply::Event, encoded)?;
        let (text, repaired) = utf8::repair("ContainerEventResponse", &whole)?;
        let (left, name) = (&self.node.left_out, &self.backend.name);
        left.record_items(name, Rpc::GetContainerEvents.name(), left_out);
        left.record_texts(name, Rpc::GetContainerEvents.name(), repaired);
        if left_out > 0 {
            return Ok(None);
        }
        if !Learner::new(&self.node, &self.backend).record_event(&text)? {
            return Ok(None);
        }
        let news = match &mut *self.view() {
            Some(view) => view.record_event(&text)?,
            None => true,
        };
        Ok(news.then_some(text))
    }

    /// Waits for the backend; what takes longer than the trial shows that it streams.
    async fn on_trial<T>(&self, trial: &mut Option<Instant>, future: impl Future<Output = T>) -> T {
        tokio::pin!(future);
        if let Some(until) = *trial {
            if let Ok(answer) = tokio::time::timeout_at(until, &mut future).await {
                return answer;
            }
            if self.backend.is_up() {
                self.passed_trial(trial);
            }
        }
        future.await
    }

    fn passed_trial(&self, trial: &mut Option<Instant>) {
        if trial.take().is_some() {
            self.backend.state.set_streams_events(true);
            self.feed.set_streaming(true);
            self.opened.notify_one();
        }
    }
}

/// Tells whether an event has the metadata of a sandbox where its status stands since CRI 0.26: there field 3
/// is a namespace, here a state.
fn is_of_cri_0_25(event: &[u8]) -> Result<bool, WireError> {
    let Some(status) = wire::peek_bytes(event, &[field!(ContainerEventResponse.pod_sandbox_status)])? else {
        return Ok(false);
    };
    let mut fields = wire::fields(status).map_while(Result::ok);
    Ok(fields.any(|f| f.number == field!(PodSandboxStatus.state) && matches!(f.value, Value::Bytes(_))))
}

fn without_deadline() -> RequestHeaders {
    let mut map = own_headers(Duration::ZERO).map;
    map.remove("grpc-timeout");
    RequestHeaders { map, timeout: None }
}
