//! The life of one call: collect, write down, strike with a fault, answer, send.
//!
//! It works on bytes; only the answer decodes them. The whole reply is handed to the connection in one go, so
//! that it can leave in one write.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response, header, request};
use tokio::sync::{mpsc, watch};
use tonic::{Code, Status};

use super::answer::answer;
use super::fault::{Fault, Faults, Struck};
use super::frame;
use super::gate::Gate;
use super::overrides::{Handler, Overrides};
use super::record::{Call, Recorder, last_segment};
use super::reply::{Body, Reply};
use super::state::State;
use super::streaming::Streams;

/// What all calls of a runtime share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) state: Mutex<State>,
    pub(crate) streams: Arc<Streams>,
    pub(crate) faults: Faults,
    pub(crate) overrides: Overrides,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) gate: Arc<Gate>,
    /// Tells connections to say goodbye.
    pub(crate) goodbye: watch::Sender<()>,
    /// The largest DATA frame, in bytes.
    pub(crate) frame_size: usize,
    pub(crate) max_request: usize,
}

/// What becomes of a call.
enum Outcome {
    Reply(Box<Reply>),
    Reset,
    DropConnection,
}

impl Outcome {
    fn reply(reply: Reply) -> Self {
        Self::Reply(Box::new(reply))
    }
}

/// Serves one stream; returns true if its connection must break.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> bool {
    let (head, body) = request.into_parts();
    let calling = async {
        let call = Call::from_head(head);
        let override_with = shared.overrides.find(&call.path);
        let (call, open) = match collect(&shared, call, body, override_with.as_ref()).await {
            Ok(collected) => collected,
            Err(status) => return (None, Outcome::reply(Reply::status(status))),
        };
        let entry = shared.recorder.record(|| call.clone());
        (Some(entry), work(&shared, call, open, override_with).await)
    };
    let mut calling = pin!(calling);
    let ended = poll_fn(|cx| match calling.as_mut().poll(cx) {
        Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
        Poll::Pending => respond.poll_reset(cx).map(|_| None),
    });
    // A client that has left is answered by nothing; dropping the call marks it as cancelled.
    let Some((entry, outcome)) = ended.await else { return false };
    let (sent, breaks) = match outcome {
        Outcome::Reply(reply) => (send(respond, *reply, shared.frame_size).await, false),
        Outcome::Reset => {
            respond.send_reset(Reason::INTERNAL_ERROR);
            (Ok(()), false)
        }
        Outcome::DropConnection => (Ok(()), true),
    };
    if let (Ok(()), Some(entry)) = (sent, entry) {
        entry.answered();
    }
    breaks
}

/// Reads the request's messages, or the first one if the rest is for a handler that reads on.
async fn collect(
    shared: &Shared,
    mut call: Call,
    mut body: RecvStream,
    override_with: Option<&Handler>,
) -> Result<(Call, Option<mpsc::UnboundedReceiver<Bytes>>), Status> {
    if matches!(override_with, Some(Handler::Open(_))) {
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(pump(body, sender));
        return Ok((call, Some(receiver)));
    }
    let mut frames = Bytes::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(|error| Status::cancelled(error.to_string()))?;
        // Failing to give back window means the stream has ended, which the next read tells.
        let _ = body.flow_control().release_capacity(chunk.len());
        frames = if frames.is_empty() { chunk } else { joined(&frames, &chunk) };
        let announced = frame::announced(&frames).unwrap_or(0);
        if announced > shared.max_request {
            return Err(Status::resource_exhausted(format!(
                "grpc: received message larger than max ({announced} vs. {})",
                shared.max_request
            )));
        }
    }
    if frames.first().is_some_and(|flag| *flag != 0) {
        return Err(Status::unimplemented("grpc: Decompressor is not installed for this message"));
    }
    call.message = frame::take(&mut frames).unwrap_or_default();
    call.further_messages = std::iter::from_fn(|| frame::take(&mut frames)).collect();
    call.at = Instant::now();
    Ok((call, None))
}

/// Hands each message of an open request on as it comes.
async fn pump(mut body: RecvStream, messages: mpsc::UnboundedSender<Bytes>) {
    let mut frames = Bytes::new();
    while let Some(Ok(chunk)) = body.data().await {
        let _ = body.flow_control().release_capacity(chunk.len());
        frames = joined(&frames, &chunk);
        while let Some(message) = frame::take(&mut frames) {
            if messages.send(message).is_err() {
                return;
            }
        }
    }
}

fn joined(front: &[u8], back: &[u8]) -> Bytes {
    let mut whole = BytesMut::with_capacity(front.len() + back.len());
    whole.extend_from_slice(front);
    whole.extend_from_slice(back);
    whole.freeze()
}

/// Applies the fault that strikes the call, around the work itself.
async fn work(
    shared: &Shared,
    call: Call,
    open: Option<mpsc::UnboundedReceiver<Bytes>>,
    override_with: Option<Handler>,
) -> Outcome {
    let Some(mut struck) = shared.faults.strike(last_segment(&call.path)) else {
        return Outcome::reply(reply(shared, call, open, override_with));
    };
    match struck.fault.clone() {
        Fault::Delay(time) => {
            let _name = Reservation::of(shared, &call);
            tokio::time::sleep(time).await;
        }
        Fault::Hang => {
            let _name = Reservation::of(shared, &call);
            struck.release().await;
        }
        Fault::Error(status) => return Outcome::reply(Reply::status(status)),
        Fault::GarbageMessage(message) => return Outcome::reply(Reply::message(message)),
        Fault::GarbageFrame(bytes) => {
            return Outcome::reply(Reply::new(Body::Whole(bytes), Status::ok("")));
        }
        Fault::Reset => return Outcome::Reset,
        Fault::DropConnection => return Outcome::DropConnection,
        Fault::HangReply | Fault::Truncate(_) | Fault::LoseReply => {}
    }
    let reply = reply(shared, call, open, override_with);
    spoil(struck, reply).await
}

/// A name that a slow create holds, as containerd does: a second try meanwhile is refused, one after the
/// first was cancelled is not.
struct Reservation<'a> {
    shared: &'a Shared,
    name: String,
}

impl<'a> Reservation<'a> {
    fn of(shared: &'a Shared, call: &Call) -> Option<Self> {
        let name = shared.lock().reserve(call.method(), &call.message)?;
        Some(Self { shared, name })
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.shared.lock().names.remove(&self.name);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that panicked while it held the state says so itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Applies a fault that comes after the work.
async fn spoil(mut struck: Struck, mut reply: Reply) -> Outcome {
    match struck.fault.clone() {
        Fault::HangReply => struck.release().await,
        Fault::Truncate(length) => {
            if let Body::Whole(frames) = &mut reply.body {
                frames.truncate(length);
            }
        }
        Fault::LoseReply => return Outcome::DropConnection,
        _ => {}
    }
    Outcome::reply(reply)
}

fn reply(
    shared: &Shared,
    call: Call,
    open: Option<mpsc::UnboundedReceiver<Bytes>>,
    override_with: Option<Handler>,
) -> Reply {
    match (override_with, open) {
        (Some(Handler::Whole(handler)), _) => handler(call),
        (Some(Handler::Open(handler)), Some(messages)) => handler(call, messages),
        _ => match answer(&mut shared.lock(), &shared.streams, &call.path, &call.message) {
            Ok(body) => Reply::new(body, Status::ok("")),
            Err(status) => Reply::status(status),
        },
    }
}

/// Sends a reply; fails if the client leaves before its end.
async fn send(mut respond: SendResponse<Bytes>, reply: Reply, frame_size: usize) -> Result<(), h2::Error> {
    let Reply { headers, body, trailers, status } = reply;
    let mut response = Response::new(());
    *response.headers_mut() = headers;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let nothing = matches!(&body, Body::Whole(frames) if frames.is_empty());
    if nothing && status.code() != Code::Ok && response.headers().len() == 1 {
        // grpc-go answers an error that comes before any message with headers alone.
        response.headers_mut().extend(trailers_of(trailers, &status));
        return respond.send_response(response, true).map(drop);
    }
    let mut stream = respond.send_response(response, false)?;
    let status = match body {
        Body::Whole(frames) => {
            send_frames(&mut stream, frames, frame_size)?;
            status
        }
        Body::Stream(mut frames) => loop {
            match next(&mut stream, &mut frames).await? {
                Some(Ok(frame)) => send_frames(&mut stream, frame, frame_size)?,
                Some(Err(end)) => break end,
                None => break status,
            }
        },
    };
    stream.send_trailers(trailers_of(trailers, &status))
}

/// Waits for the next frame of a stream or for the client to leave.
async fn next(
    stream: &mut SendStream<Bytes>,
    frames: &mut mpsc::UnboundedReceiver<Result<Bytes, Status>>,
) -> Result<Option<Result<Bytes, Status>>, h2::Error> {
    poll_fn(|cx| {
        if let Poll::Ready(frame) = frames.poll_recv(cx) {
            return Poll::Ready(Ok(frame));
        }
        stream.poll_reset(cx).map(|reason| Err(reason.map_or_else(|error| error, h2::Error::from)))
    })
    .await
}

fn send_frames(stream: &mut SendStream<Bytes>, mut frames: Bytes, size: usize) -> Result<(), h2::Error> {
    while !frames.is_empty() {
        let chunk = frames.split_to(size.min(frames.len()));
        stream.send_data(chunk, false)?;
    }
    Ok(())
}

fn trailers_of(mut trailers: HeaderMap, status: &Status) -> HeaderMap {
    // A status whose text fits no header would be a mistake of the test that made it.
    status.add_header(&mut trailers).expect("the status fits into headers");
    trailers
}

impl Call {
    fn from_head(head: request::Parts) -> Self {
        Self {
            path: head.uri.path().to_owned(),
            metadata: head.headers,
            message: Bytes::new(),
            further_messages: Vec::new(),
            at: Instant::now(),
            end: super::record::End::Open,
        }
    }
}

/// Says when connections must break.
pub(crate) type Break = watch::Receiver<()>;
