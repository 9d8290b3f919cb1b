//! A reply as a test spells it out: headers, messages, trailers and status, nothing implied.
//!
//! Replies made here replace what the simulated runtime would have answered, for RPCs it knows and for RPCs
//! that no CRI has yet.

use bytes::Bytes;
use http::HeaderMap;
use tokio::sync::mpsc;
use tonic::Status;

use super::frame;

/// A whole reply to one call.
#[derive(Debug)]
pub struct Reply {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
    pub(crate) trailers: HeaderMap,
    pub(crate) status: Status,
}

/// The messages of a reply, framed.
#[derive(Debug)]
pub(crate) enum Body {
    /// All there is.
    Whole(Bytes),
    /// Frames as they come; an error ends the stream with that status, the end of the channel with OK.
    Stream(mpsc::UnboundedReceiver<Result<Bytes, Status>>),
}

impl Body {
    pub(crate) fn empty() -> Self {
        Self::Whole(Bytes::new())
    }
}

impl Reply {
    /// A unary reply: one encoded message and status OK.
    pub fn message(message: impl Into<Bytes>) -> Self {
        Self::messages([message.into()])
    }

    /// A streaming reply: encoded messages, then status OK.
    pub fn messages(messages: impl IntoIterator<Item = Bytes>) -> Self {
        let messages: Vec<_> = messages.into_iter().collect();
        Self::new(Body::Whole(frame::join(&messages)), Status::ok(""))
    }

    /// A reply without messages that ends with `status`; its details and metadata become trailers.
    pub fn status(status: Status) -> Self {
        Self::new(Body::empty(), status)
    }

    /// A streaming reply that sends each encoded message as it is given to the sender. Dropping the sender
    /// ends the stream with OK; an error ends it with that status.
    pub fn stream() -> (mpsc::UnboundedSender<Result<Bytes, Status>>, Self) {
        let (messages, mut unframed) = mpsc::unbounded_channel::<Result<Bytes, Status>>();
        let (outgoing, body) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(message) = unframed.recv().await {
                if outgoing.send(message.map(|message| frame::join([&message]))).is_err() {
                    return;
                }
            }
        });
        (messages, Self::new(Body::Stream(body), Status::ok("")))
    }

    /// Adds a response header.
    ///
    /// # Panics
    /// If name or value cannot stand in a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        append(&mut self.headers, name, value);
        self
    }

    /// Adds a trailer.
    ///
    /// # Panics
    /// If name or value cannot stand in a header.
    #[must_use]
    pub fn trailer(mut self, name: &str, value: &str) -> Self {
        append(&mut self.trailers, name, value);
        self
    }

    pub(crate) fn new(body: Body, status: Status) -> Self {
        Self { headers: HeaderMap::new(), body, trailers: HeaderMap::new(), status }
    }

    /// Copies a reply whose messages are all there.
    ///
    /// # Panics
    /// If the reply is an open stream, which only one call can have.
    pub(crate) fn copy(&self) -> Self {
        let Body::Whole(frames) = &self.body else { panic!("an open stream can answer one call only") };
        Self {
            headers: self.headers.clone(),
            body: Body::Whole(frames.clone()),
            trailers: self.trailers.clone(),
            status: self.status.clone(),
        }
    }
}

/// Appends a header given as text.
pub(crate) fn append(headers: &mut HeaderMap, name: &str, value: &str) {
    let name = name.parse::<http::HeaderName>().expect("a header name");
    let value = value.parse::<http::HeaderValue>().expect("a header value");
    headers.append(name, value);
}
