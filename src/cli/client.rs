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
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::admin::api::ErrorBody;
use crate::cli::output::Format;
use crate::config::{self, Config};

/// The path of the admin socket if the configuration cannot be read.
const DEFAULT_SOCKET: &str = "/run/crimux/admin.sock";

/// The crimux to ask.
#[derive(Debug, clap::Args)]
pub(super) struct AdminClient {
    /// The configuration file, in which `admin.socket` is looked up.
    #[arg(long, short, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// The admin socket, as a path, with or without unix://, instead of looking it up.
    #[arg(long)]
    socket: Option<String>,
    /// How long to wait for an answer.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Whether a configuration with problems is passed over in silence.
    #[arg(skip)]
    quiet: bool,
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
    /// Returns a client of the admin socket at `path`.
    pub(super) fn at(path: &Path, timeout: Duration) -> Self {
        let socket = Some(path.display().to_string());
        Self { config: PathBuf::from(config::DEFAULT_PATH), socket, timeout, quiet: true }
    }

    /// Returns the same client, which prints nothing and waits no longer than this.
    pub(super) fn quiet(&self, timeout: Duration) -> Self {
        let (config, socket) = (self.config.clone(), self.socket.clone());
        Self { config, socket, timeout, quiet: true }
    }

    /// Returns the same client, which waits at least this long for an answer.
    pub(super) fn patient(&self, timeout: Duration) -> Self {
        let (config, socket, quiet) = (self.config.clone(), self.socket.clone(), self.quiet);
        Self { config, socket, timeout: self.timeout.max(timeout), quiet }
    }

    /// Sends a GET.
    ///
    /// # Errors
    /// If crimux cannot be reached, does not answer in time, or refuses the request.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.send(Method::GET, path, String::new()).await
    }

    /// Sends a POST.
    ///
    /// # Errors
    /// If crimux cannot be reached, does not answer in time, or refuses the request.
    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.send(Method::POST, path, String::new()).await
    }

    /// Asks about a text.
    ///
    /// # Errors
    /// If crimux cannot be reached, or refuses.
    pub(super) async fn post_text<T: DeserializeOwned>(&self, path: &str, text: String) -> anyhow::Result<T> {
        self.send(Method::POST, path, text).await
    }

    /// The configuration file.
    pub(super) fn config(&self) -> &Path {
        &self.config
    }

    async fn send<T: DeserializeOwned>(&self, method: Method, path: &str, text: String) -> anyhow::Result<T> {
        let socket = self.socket();
        let answered = tokio::time::timeout(self.timeout, exchange(&socket, method, path, text));
        let no_answer = || {
            let (socket, timeout) = (socket.display(), humantime::format_duration(self.timeout));
            format!(
                "crimux did not answer on {socket} within {timeout}: is its process stopped, or the node overloaded? \
                 (systemctl status crimux; --timeout waits longer)"
            )
        };
        let (status, body) = answered.await.map_err(|_| anyhow::anyhow!(no_answer()))??;
        if status != StatusCode::OK {
            let refused = serde_json::from_slice::<ErrorBody>(&body);
            bail!("{}", refused.map_or_else(|_| format!("crimux answered with {status}"), |r| r.error));
        }
        let other = || "crimux answered in an unknown form; is it of another version than this command?";
        serde_json::from_slice(&body).with_context(other)
    }

    fn socket(&self) -> PathBuf {
        if let Some(socket) = &self.socket {
            return PathBuf::from(socket.strip_prefix("unix://").unwrap_or(socket));
        }
        match Config::load(&self.config) {
            Ok(config) => config.admin.socket,
            Err(error) => {
                let first = error.to_string();
                let first = first.lines().next().unwrap_or_default();
                let named = config::admin_socket_of(&self.config);
                let socket = named.unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET));
                if !self.quiet {
                    let at = socket.display();
                    eprintln!("crimux: {first}\ncrimux: trying {at}; --socket names another one");
                }
                socket
            }
        }
    }
}

/// Percent-encodes a name as one segment of a path.
pub(super) fn segment(name: &str) -> impl std::fmt::Display + '_ {
    utf8_percent_encode(name, NON_ALPHANUMERIC)
}

async fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    text: String,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream =
        UnixStream::connect(socket).await.map_err(|error| anyhow::anyhow!(unreachable(socket, &error)))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", "crimux");
    let response = sender.send_request(request.body(Full::new(Bytes::from(text)))?).await;
    let (head, body) = response.with_context(|| not_an_admin_socket(socket))?.into_parts();
    let body = body.collect().await.context("crimux ended the connection")?.to_bytes();
    connection.abort();
    Ok((head.status, body))
}

fn not_an_admin_socket(socket: &Path) -> String {
    let socket = socket.display();
    format!(
        "{socket} does not answer as an admin socket: is it a CRI socket? (--socket takes the key admin.socket)"
    )
}

fn unreachable(socket: &Path, error: &io::Error) -> String {
    let socket = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound => format!(
            "there is no admin socket at {socket}: is crimux running? (systemctl status crimux; --socket or \
             --config names another one; after a change of admin.socket, crimux listens on the old one until its restart)"
        ),
        io::ErrorKind::ConnectionRefused => {
            format!("nobody listens on {socket}: crimux has ended (systemctl status crimux)")
        }
        io::ErrorKind::PermissionDenied => format!("{socket}: permission denied; only root may (try sudo)"),
        _ => format!("{socket}: {error}"),
    }
}
