//! Asks a running crimux over its admin socket: HTTP/1 over a Unix socket, JSON both ways.
//!
//! The socket's path is in the configuration. While that is broken, which is when an operator needs `status`
//! most, the default path is tried. An error must say what to do next.

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

use crate::admin::documents::Refused;
use crate::cli::DEFAULT_CONFIG;
use crate::config::Config;

/// Where the admin socket is, unless the configuration says otherwise.
const DEFAULT_SOCKET: &str = "/run/crimux/admin.sock";
/// A backend that hangs may hold an answer up for its `timeouts.list`, which an operator may have raised.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which crimux is asked.
#[derive(Debug, clap::Args)]
pub(super) struct Target {
    /// The configuration file, in which `admin.socket` is looked up.
    #[arg(long, short, default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// The admin socket, instead of looking it up.
    #[arg(long)]
    socket: Option<PathBuf>,
}

impl Target {
    /// Asks for a document.
    ///
    /// # Errors
    /// If crimux cannot be reached, or refuses.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.ask(Method::GET, path).await
    }

    /// Asks for a change.
    ///
    /// # Errors
    /// If crimux cannot be reached, or refuses.
    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.ask(Method::POST, path).await
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> anyhow::Result<T> {
        let socket = self.socket();
        let asked = tokio::time::timeout(PATIENCE, exchange(&socket, method, path));
        let lost = || format!("crimux did not answer on {}", socket.display());
        let (status, body) = asked.await.with_context(lost)??;
        if status != StatusCode::OK {
            let refused = serde_json::from_slice::<Refused>(&body);
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

/// Writes a name as a segment of a path.
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
