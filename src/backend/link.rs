//! The connection to a backend: made, watched, made again.
//!
//! One HTTP/2 connection carries all calls. When it ends, or is refused, the backend is down from that moment
//! and calls fail at once; reconnecting backs off to a second at the most, with jitter. A `Version` call
//! shows that the backend answers at all and which API it speaks. Never HTTP/2 pings: grpc-go answers those
//! with GOAWAY `too_many_pings`.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use tonic::Code;

use crate::backend::connect::{ConnectError, Connector, Stream};
use crate::backend::health::Class;
use crate::backend::{Backend, own_headers};
use crate::codec::Message;
use crate::config::BackendConfig;
use crate::cork::Corked;
use crate::drain::Drain;
use crate::error::Error;
use crate::method::{self, Api};

/// The first pause before reconnecting; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause before reconnecting.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How often a local backend is probed.
const PROBE_LOCAL: Duration = Duration::from_secs(5);
/// How often a remote one is: what is not acknowledged makes a black hole known.
const PROBE_REMOTE: Duration = Duration::from_secs(1);
/// Room for a list of megabytes in one go, per stream and per connection.
const WINDOW: u32 = 16 << 20;
/// What one DATA frame may have.
const FRAME: u32 = 1 << 18;

/// The state of the connection.
#[derive(Debug, Clone)]
pub enum Link {
    /// The first attempt is not over.
    Connecting,
    /// Connected.
    Up {
        /// Sends requests; cloned for each.
        sender: SendRequest<Bytes>,
        /// The API that the backend speaks.
        api: Api,
        /// When it was connected.
        since: SystemTime,
    },
    /// Not reachable.
    Down {
        /// When it was lost, or found unreachable.
        since: SystemTime,
        /// Why.
        cause: Arc<str>,
    },
}

impl Backend {
    /// Keeps the backend connected until the drain begins. `greet` runs beside each new connection, as soon
    /// as it is up; it ends with the connection.
    pub async fn run(self: Arc<Self>, drain: Drain, greet: impl AsyncFn(&Arc<Self>)) {
        let mut pause = FIRST_PAUSE;
        while !drain.is_begun() {
            match self.connect().await {
                Ok((sender, connection)) => {
                    pause = FIRST_PAUSE;
                    let Some(cause) = self.drive(sender, connection, &drain, &greet).await else {
                        self.link.send_replace(Link::Connecting);
                        continue;
                    };
                    self.set_down(&cause);
                }
                Err(cause) => self.set_down(&cause),
            }
            let jittered = pause.mul_f64(fastrand::f64().mul_add(0.5, 0.5));
            tokio::select! {
                () = tokio::time::sleep(jittered) => {}
                () = drain.begun() => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Puts another configuration in force. An endpoint that changed is connected to anew.
    pub fn reconfigure(&self, config: &BackendConfig) {
        let old = self.config.swap(Arc::new(config.clone()));
        if old.endpoint != config.endpoint || old.tls != config.tls {
            *self.connector.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.redial.notify_one();
        }
    }

    /// Returns what connects to the endpoint in force, with the identity in force.
    ///
    /// # Errors
    /// If the TLS files cannot be used.
    pub fn connector(&self) -> Result<Arc<Connector>, ConnectError> {
        let mut known = self.connector.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connector) = &*known {
            return Ok(Arc::clone(connector));
        }
        let connector = Arc::new(Connector::new(&self.config.load())?);
        *known = Some(Arc::clone(&connector));
        Ok(connector)
    }

    async fn connect(&self) -> Result<(SendRequest<Bytes>, Connection<Corked<Stream>, Bytes>), String> {
        let connector = self.connector().map_err(|error| error.to_string())?;
        let stream = connector.connect().await.map_err(|error| error.to_string())?;
        h2::client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_frame_size(FRAME)
            .enable_push(false)
            .handshake(Corked::new(stream))
            .await
            .map_err(|error| error.to_string())
    }

    /// Drives one connection to its end and returns why it ended; `None` if another is to take its place, in
    /// which case its calls in flight go on.
    async fn drive(
        self: &Arc<Self>,
        sender: SendRequest<Bytes>,
        connection: Connection<Corked<Stream>, Bytes>,
        drain: &Drain,
        greet: &impl AsyncFn(&Arc<Self>),
    ) -> Option<String> {
        let connection = tokio::spawn(connection);
        let ending = connection.abort_handle();
        self.health.reset();
        let beside = async {
            let wait = self.config.load().timeouts.read;
            // A backend that does not tell is late; the probe below says so.
            let api = tokio::time::timeout(wait, self.spoken(&sender)).await.unwrap_or(self.last_api());
            self.link.send_replace(Link::Up { sender, api, since: SystemTime::now() });
            self.probe().await;
            greet(self).await;
            self.keep_probing().await;
        };
        let cause = tokio::select! {
            ended = connection => match ended {
                Ok(Err(error)) => error.to_string(),
                _ => "the backend closed the connection".to_owned(),
            },
            () = beside => "probing ended".to_owned(),
            () = self.redial.notified() => return None,
            () = drain.begun() => "crimux is shutting down".to_owned(),
        };
        ending.abort();
        Some(cause)
    }

    async fn keep_probing(self: &Arc<Self>) {
        loop {
            let local = self.config.load().local;
            tokio::time::sleep(if local { PROBE_LOCAL } else { PROBE_REMOTE }).await;
            self.probe().await;
        }
    }

    /// Asks for the version once, in whichever API the backend speaks.
    async fn probe(self: &Arc<Self>) {
        let wait = self.config.load().timeouts.read;
        match tokio::time::timeout(wait, self.version()).await {
            Ok(Ok(())) => {
                if self.health.mark_answered(Class::Reads) {
                    tracing::info!(backend = %self.name, "answers in time again");
                }
            }
            Ok(Err(error)) => self.health.note_error(error.to_string()),
            Err(_) => {
                if self.health.mark_late(Class::Reads) {
                    tracing::warn!(backend = %self.name, "does not answer Version within {wait:?}");
                }
                self.health.note_error(format!("Version was not answered within {wait:?}"));
            }
        }
    }

    async fn version(self: &Arc<Self>) -> Result<(), Error> {
        let method = method::named("Version");
        for _ in [Api::V1, Api::V1Alpha2] {
            let wait = self.config.load().timeouts.read;
            let reply = self.fetch(method, own_headers(wait), Message::new(&[]).framed()).await?;
            match reply.code {
                Code::Ok => {
                    self.last.remember_reply(method.name, reply.message.encoded());
                    return Ok(());
                }
                Code::Unimplemented => self.switch_api(),
                code => return Err(self.garbage(format!("Version was answered with {code:?}"))),
            }
        }
        Err(self.garbage("it speaks neither runtime.v1 nor runtime.v1alpha2"))
    }

    /// Asks which API is spoken over a new connection, the one it spoke last first: a call that came in the
    /// wrong one would be answered Unimplemented, which no client may be told.
    async fn spoken(self: &Arc<Self>, sender: &SendRequest<Bytes>) -> Api {
        let (method, first) = (method::named("Version"), self.last_api());
        for api in [first, first.other()] {
            let (headers, message) = (own_headers(self.config.load().timeouts.read), Message::new(&[]));
            let asked = self.call_over(sender.clone(), api, Some(method), "", headers, message.framed());
            let told = async { asked.await?.collect().await };
            if told.await.is_ok_and(|reply| reply.code == Code::Ok) {
                *self.api.lock().unwrap_or_else(PoisonError::into_inner) = Some(api);
                return api;
            }
        }
        first
    }

    fn last_api(&self) -> Api {
        match *self.api.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(api) => api,
            None => Api::V1,
        }
    }

    fn switch_api(&self) {
        self.link.send_modify(|link| {
            if let Link::Up { api, .. } = link {
                *api = api.other();
                *self.api.lock().unwrap_or_else(PoisonError::into_inner) = Some(*api);
            }
        });
    }

    fn set_down(&self, cause: &str) {
        self.health.note_error(cause);
        self.link.send_modify(|link| {
            if let Link::Down { cause: known, .. } = link {
                *known = cause.into();
            } else {
                tracing::warn!(backend = %self.name, cause, "is down");
                *link = Link::Down { since: SystemTime::now(), cause: cause.into() };
            }
        });
    }
}
