//! The client of the admin socket: HTTP/1 over a Unix socket, JSON answers.
//!
//! The socket's path is in the configuration. If that is broken, which is when an operator needs `status`
//! most, the default path is tried. Every error text says what to do next.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::admin::api::ErrorBody;
use crate::cli::output::Format;
use crate::config::{self, Config};

/// The path of the admin socket if the configuration cannot be read.
const DEFAULT_SOCKET: &str = "/run/crimux/admin.sock";
/// How long to wait for an answer. A hung backend delays it by its `timeouts.list`, which an operator may
/// have raised.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The crimux to ask.
#[derive(Debug, clap::Args)]
pub(super) struct AdminClient {
    /// The configuration file, in which `admin.socket` is looked up.
    #[arg(long, short, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// The admin socket, instead of looking it up.
    #[arg(long)]
    socket: Option<PathBuf>,
}

/// The arguments of every verb that reads.
#[derive(Debug, clap::Args)]
pub(super) struct ReadArgs {
    /// A table for people, or the whole answer for scripts.
    #[arg(long, short, value_enum, default_value = "table")]
    pub(super) output: Format,
    #[command(flatten)]
    pub(super) client: AdminClient,
}

impl AdminClient {
    /// Sends a GET.
    ///
    /// # Errors
    /// If crimux cannot be reached, does not answer in time, or refuses the request.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.send(Method::GET, path).await
    }

    /// Sends a POST.
    ///
    /// # Errors
    /// If crimux cannot be reached, does not answer in time, or refuses the request.
    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.send(Method::POST, path).await
    }

    async fn send<T: DeserializeOwned>(&self, method: Method, path: &str) -> anyhow::Result<T> {
        let socket = self.socket();
        let answered = tokio::time::timeout(TIMEOUT, exchange(&socket, method, path));
        let no_answer = || format!("crimux did not answer on {}", socket.display());
        let (status, body) = answered.await.with_context(no_answer)??;
        if status != StatusCode::OK {
            let refused = serde_json::from_slice::<ErrorBody>(&body);
            bail!("{}", refused.map_or_else(|_| format!("crimux answered with {status}"), |r| r.error));
        }
        let other = || "crimux answered in an unknown form; is it of another version than this command?";
        serde_json::from_slice(&body).with_context(other)
    }

    fn socket(&self) -> PathBuf {
        if let Some(socket) = &self.socket {
            return socket.clone();
        }
        match Config::load(&self.config) {
            Ok(config) => config.admin.socket,
            Err(error) => {
                let first = error.to_string();
                let first = first.lines().next().unwrap_or_default();
                eprintln!("crimux: {first}\ncrimux: trying {DEFAULT_SOCKET}; --socket names another one");
                PathBuf::from(DEFAULT_SOCKET)
            }
        }
    }
}

/// Percent-encodes a name as one segment of a path.
pub(super) fn segment(name: &str) -> impl std::fmt::Display + '_ {
    utf8_percent_encode(name, NON_ALPHANUMERIC)
}

async fn exchange(socket: &Path, method: Method, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream =
        UnixStream::connect(socket).await.map_err(|error| anyhow::anyhow!(unreachable(socket, &error)))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", "crimux");
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await;
    let (head, body) = response.context("crimux ended the connection")?.into_parts();
    let body = body.collect().await.context("crimux ended the connection")?.to_bytes();
    connection.abort();
    Ok((head.status, body))
}

fn unreachable(socket: &Path, error: &io::Error) -> String {
    let socket = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound => format!(
            "there is no admin socket at {socket}: is crimux running? (systemctl status crimux; --socket or \
             --config names another one)"
        ),
        io::ErrorKind::ConnectionRefused => {
            format!("nobody listens on {socket}: crimux has ended (systemctl status crimux)")
        }
        io::ErrorKind::PermissionDenied => format!("{socket}: permission denied; only root may (try sudo)"),
        _ => format!("{socket}: {error}"),
    }
}
