//! The connection to a backend: connects, probes and reconnects.
//!
//! One HTTP/2 connection carries all calls. When it ends or cannot be made, the backend is down and calls
//! fail at once; crimux reconnects with backoff and jitter, at most a second apart. A `Version` call probes
//! whether the backend answers and which API it speaks. Never HTTP/2 pings: grpc-go answers those with GOAWAY
//! `too_many_pings`.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use grpc_http2::client::{self, SendRequest};
use grpc_http2::{Connection, Error as Http2Error, Reason};
use prost::Message as _;
use tokio::task::AbortHandle;
use tonic::Code;

use crate::backend::connect::{ConnectError, Connector, Stream};
use crate::backend::health::MethodClass;
use crate::backend::link::{Channel, Link};
use crate::backend::{Backend, CallRequest, own_headers};
use crate::backoff::Backoff;
use crate::codec::Message;
use crate::config::BackendConfig;
use crate::cri::VersionResponse;
use crate::error::Error;
use crate::method::{self, Api, Method, Rpc};
use crate::mutex::lock;
use crate::process;
use crate::shutdown::Shutdown;
use crate::utf8;

/// The longest pause before reconnecting.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How often a local backend is probed.
const PROBE_LOCAL: Duration = Duration::from_secs(5);
/// How often a backend is probed whose API is not known yet.
const PROBE_UNKNOWN: Duration = Duration::from_millis(50);
/// How often a remote backend is probed: unacknowledged bytes make the kernel detect a black hole.
const PROBE_REMOTE: Duration = Duration::from_secs(1);

/// How long calls in flight may continue on a connection after GOAWAY with an error.
const AFTER_ERROR: Duration = Duration::from_secs(10);

/// How a connection ended.
enum ConnectionEnd {
    /// The next one is made at once; the calls in flight of this one continue.
    DialAgain,
    /// The backend is down, for this cause.
    Down(String),
}

impl Backend {
    /// Keeps the backend connected until `stop` begins. `on_connected` runs on each new connection, and is
    /// cancelled when the connection ends.
    pub async fn run(self: Arc<Self>, stop: Shutdown, on_connected: impl AsyncFn(&Arc<Self>)) {
        let mut backoff = Backoff::new(LONGEST_PAUSE);
        while !stop.is_begun() {
            match self.connect().await {
                Ok((sender, connection)) => {
                    let connected = Instant::now();
                    let cause = match self.drive(sender, connection, &stop, &on_connected).await {
                        ConnectionEnd::DialAgain => {
                            self.link.send_replace(Link::Connecting);
                            continue;
                        }
                        ConnectionEnd::Down(cause) => cause,
                    };
                    if stop.is_begun() {
                        return tracing::info!(backend = %self.name, "connection to the backend closed by crimux");
                    }
                    self.set_down(&cause);
                    // The backoff grows while connections end as soon as they are made.
                    if connected.elapsed() > LONGEST_PAUSE {
                        backoff.reset();
                    }
                }
                Err(cause) => self.set_down(&cause),
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_jittered_pause()) => {}
                () = stop.begun() => {}
            }
        }
    }

    /// Applies a new configuration; reconnects if the endpoint or TLS changed.
    pub fn reconfigure(&self, config: &BackendConfig) {
        let old = self.config.swap(Arc::new(config.clone()));
        if old.endpoint != config.endpoint || old.tls != config.tls {
            *lock(&self.connector) = None;
            self.redial.notify_one();
        } else if old.timeouts.connect != config.timeouts.connect {
            // It applies from the next connection on.
            *lock(&self.connector) = None;
        }
    }

    /// Returns the connector for the current endpoint and TLS files.
    ///
    /// # Errors
    /// Returns an error if the TLS files cannot be used.
    pub fn connector(&self) -> Result<Arc<Connector>, ConnectError> {
        let mut known = lock(&self.connector);
        if let Some(connector) = &*known {
            return Ok(Arc::clone(connector));
        }
        let connector = Arc::new(Connector::new(&self.config.load())?);
        *known = Some(Arc::clone(&connector));
        Ok(connector)
    }

    async fn connect(&self) -> Result<(SendRequest, Connection<Stream>), String> {
        let connector = self.connector().map_err(|error| error.to_string())?;
        let http2 = connector.http2();
        let stream = if connector.has_tls() {
            // A handshake takes milliseconds of CPU, which would delay calls to other backends.
            let handshake = self.side.run(async move { connector.connect().await }).await;
            let stream = handshake.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
            self.certificates.set_shown(stream.peer_certificate());
            stream.move_here().map_err(|error| error.to_string())?
        } else {
            connector.connect().await.map_err(|error| error.to_string())?
        };
        *lock(&self.peer) = stream.peer_pid().and_then(|pid| Some((pid, process::start_time(pid)?)));
        Ok(client::handshake(stream, http2))
    }

    /// Drives one connection to its end.
    async fn drive(
        self: &Arc<Self>,
        sender: SendRequest,
        connection: Connection<Stream>,
        stop: &Shutdown,
        on_connected: &impl AsyncFn(&Arc<Self>),
    ) -> ConnectionEnd {
        let connection = tokio::spawn(connection);
        let ending = connection.abort_handle();
        let (connected, retiring) = (Instant::now(), sender.clone());
        self.health.reset();
        let on_connection = async {
            // Calls wait until the API is known, because kubelet disables features after `Unimplemented`.
            self.probe(&sender, self.config.load().timeouts.connect).await;
            self.link.send_replace(Link::Up { sender, api: self.api(), since: SystemTime::now() });
            tokio::join!(on_connected(self), self.keep_probing());
        };
        let cause = tokio::select! {
            // A closed connection is also closed to new calls, so its end must be checked first.
            biased;
            ended = connection => match ended {
                Ok(Err(error)) => error.to_string(),
                _ => "the backend closed the connection".to_owned(),
            },
            () = on_connection => "probing ended".to_owned(),
            () = self.redial.notified() => return ConnectionEnd::DialAgain,
            // After GOAWAY calls in flight continue. The backoff applies if it came as soon as the
            // connection.
            why = retiring.closed_to_new() => {
                self.log_goaway(&why, ending.clone());
                if connected.elapsed() > LONGEST_PAUSE {
                    return ConnectionEnd::DialAgain;
                }
                "the backend is closing the connection".to_owned()
            }
            () = stop.begun() => "crimux is shutting down".to_owned(),
        };
        ending.abort();
        ConnectionEnd::Down(cause)
    }

    /// Logs a GOAWAY. After one with an error, calls in flight are cut after [`AFTER_ERROR`]; after
    /// `NO_ERROR`, as an upgrade of the backend sends it, they may continue, even an hour-long pull.
    fn log_goaway(&self, why: &Http2Error, connection: AbortHandle) {
        let Http2Error::GoAway(goaway) = why else { return };
        if goaway.reason == Reason::NO_ERROR {
            return tracing::info!(backend = %self.name, %goaway, "is closing the connection");
        }
        tracing::warn!(backend = %self.name, %goaway, "closed the connection with an error");
        self.health.record_error(format!("GOAWAY {goaway}"));
        tokio::spawn(async move {
            tokio::time::sleep(AFTER_ERROR).await;
            connection.abort();
        });
    }

    async fn keep_probing(self: &Arc<Self>) {
        loop {
            let local = self.config.load().local;
            // Until the API is known, calls may be sent in one that the backend does not speak.
            if self.is_api_known() {
                tokio::time::sleep(if local { PROBE_LOCAL } else { PROBE_REMOTE }).await;
            } else {
                tokio::time::sleep(PROBE_UNKNOWN).await;
            }
            let sender = match &*self.link.borrow() {
                Link::Up { sender, .. } => sender.clone(),
                Link::Connecting | Link::Down { .. } => continue,
            };
            self.probe(&sender, self.config.load().timeouts.read).await;
        }
    }

    /// Calls `Version` once, in the API that the backend speaks.
    async fn probe(self: &Arc<Self>, sender: &SendRequest, wait: Duration) {
        match tokio::time::timeout(wait, self.negotiate_version(sender, wait)).await {
            Ok(Ok(())) => {
                if self.health.end_lateness(MethodClass::Reads) {
                    tracing::info!(backend = %self.name, "backend answers in time again");
                }
            }
            Err(_) => {
                if self.health.mark_late(MethodClass::Reads) {
                    self.health.mark_said_late(MethodClass::Reads);
                    tracing::warn!(backend = %self.name, "backend does not answer Version within {wait:?}");
                }
                self.health.record_error(format!("Version was not answered within {wait:?}"));
            }
            Ok(Err(error)) => self.health.record_error(error.to_string()),
        }
    }

    /// Calls `Version`, to find out whether the backend answers at all. `timeout` is announced to the
    /// backend; the caller enforces it.
    ///
    /// # Errors
    /// As [`Backend::call`], or [`Error::InvalidReply`] for an invalid reply.
    pub async fn ask_version(self: &Arc<Self>, timeout: Duration) -> Result<(), Error> {
        let channel = self.channel().await?;
        self.negotiate_version(&channel.sender, timeout).await
    }

    /// Calls `Version` in the API that the backend spoke last, then in the other, and keeps the one that is
    /// answered.
    async fn negotiate_version(
        self: &Arc<Self>,
        sender: &SendRequest,
        timeout: Duration,
    ) -> Result<(), Error> {
        let method = method::row(Rpc::Version);
        let known = self.api();
        for api in [known, known.other()] {
            let (headers, message) = (own_headers(timeout), Message::new(&[]).framed());
            let channel = Channel { sender: sender.clone(), api };
            let mut request = CallRequest::of(method, headers, message);
            let reply = self.call_over(&channel, &mut request).await?.collect().await?;
            match reply.code {
                Code::Ok => {
                    self.learn_version(&reply.message)?;
                    self.set_api(api);
                    self.health.record_answer(method);
                    return Ok(());
                }
                Code::Unimplemented => {}
                _ => return Err(self.unusable_reply_error(method, &reply)),
            }
        }
        Err(self.invalid_reply_error("it speaks neither runtime.v1 nor runtime.v1alpha2"))
    }

    /// Caches a `Version` reply without empty fields; kubelet refuses one with an empty field (`cri-client`,
    /// `Version`).
    fn learn_version(&self, reply: &Message) -> Result<(), Error> {
        let (encoded, _) = utf8::repair("VersionResponse", &reply.encoded_bytes())
            .map_err(|error| self.invalid_reply_error(error))?;
        let version =
            VersionResponse::decode(&encoded[..]).map_err(|error| self.invalid_reply_error(error))?;
        let VersionResponse { version, runtime_name, runtime_version, runtime_api_version } = version;
        if [version, runtime_name, runtime_version, runtime_api_version].iter().any(String::is_empty) {
            return Err(self.invalid_reply_error("its version has an empty field"));
        }
        self.state.remember_reply(Rpc::Version, &encoded);
        Ok(())
    }

    /// Records whether the backend has an RPC. While its API is not known, `Unimplemented` is not believed.
    pub fn record_implemented(&self, method: &Method, is_implemented: bool) {
        if is_implemented || self.is_api_known() {
            self.state.set_unimplemented(method.rpc, !is_implemented);
        }
    }

    /// Completes once the backend is connected.
    pub async fn connected(&self) {
        let mut link = self.link.subscribe();
        // The sender lives as long as this.
        link.wait_for(|link| matches!(link, Link::Up { .. })).await.ok();
    }

    fn api(&self) -> Api {
        lock(&self.api).unwrap_or(Api::V1)
    }

    pub(super) fn is_api_known(&self) -> bool {
        lock(&self.api).is_some()
    }

    fn set_api(&self, found: Api) {
        *lock(&self.api) = Some(found);
        self.link.send_if_modified(|link| match link {
            Link::Up { api, .. } => std::mem::replace(api, found) != found,
            Link::Connecting | Link::Down { .. } => false,
        });
    }

    fn set_down(&self, cause: &str) {
        self.health.record_error(cause);
        self.health.mark_status_unanswered();
        self.link.send_modify(|link| {
            if let Link::Down { cause: known, .. } = link {
                if **known != *cause {
                    tracing::warn!(backend = %self.name, cause, "backend is still down, now for another reason");
                }
                *known = cause.into();
            } else {
                tracing::warn!(backend = %self.name, cause, "backend is down");
                *link = Link::Down { since: SystemTime::now(), cause: cause.into() };
            }
        });
    }
}
