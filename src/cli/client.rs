//! The client of the admin socket: HTTP/1 over a Unix socket, JSON answers.
//!
//! The socket's path is in the configuration. If that is broken, which is when an operator needs `status`
//! most, the default path is tried. If it names a socket that is not there yet, the one is tried that the
//! running crimux noted in `state_dir`. Every error text says what to do next.

use std::io;
use std::iter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::admin::api::{ErrorBody, ReloadReport};
use crate::admin::{RUNBOOK, socket_note};
use crate::cli::output::Format;
use crate::config::{self, Config, ConfigError, Problems};
use crate::process;

/// The path of the admin socket if the configuration cannot be read.
const DEFAULT_SOCKET: &str = "/run/crimux/admin.sock";

/// The crimux to ask.
#[derive(Debug, clap::Args)]
pub(super) struct AdminClient {
    /// The configuration file, in which `admin.socket` is looked up [default: /etc/crimux/config.yaml].
    #[arg(long, short)]
    config: Option<PathBuf>,
    /// The admin socket, as a path, with or without unix://, instead of looking it up.
    #[arg(long)]
    socket: Option<String>,
    /// How long to wait for an answer.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration_argument)]
    timeout: Duration,
    /// Whether nothing more is said about a configuration with problems: it was said, or is not to be.
    #[arg(skip)]
    silent: Arc<AtomicBool>,
    /// `admin.socket` and `state_dir`, if they need not be looked up.
    #[arg(skip)]
    known: Option<(PathBuf, PathBuf)>,
}

/// The running crimux found problems in its file.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct BadConfig(pub(super) String);

/// The running crimux took the connection and did not answer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NoAnswer(String);

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
    /// Returns a client of the admin socket at `socket`, or else that of `config`.
    pub(super) fn new(socket: Option<&str>, config: Option<&Path>, timeout: Duration) -> Self {
        let (socket, config) = (socket.map(str::to_owned), config.map(Path::to_owned));
        Self { config, socket, timeout, silent: Arc::new(AtomicBool::new(true)), known: None }
    }

    /// Returns a client of the crimux that runs with this configuration, or with its `state_dir`.
    pub(super) fn of(config: &Config, timeout: Duration) -> Self {
        let known = Some((config.admin.socket.clone(), config.state_dir.clone()));
        Self { known, ..Self::new(None, None, timeout) }
    }

    /// Returns the same client, which prints nothing and waits no longer than this.
    pub(super) fn quiet(&self, timeout: Duration) -> Self {
        let known = self.known.clone();
        Self { known, ..Self::new(self.socket.as_deref(), self.config.as_deref(), timeout) }
    }

    /// Returns the same client, which waits at least this long for an answer.
    pub(super) fn patient(&self, timeout: Duration) -> Self {
        Self { silent: Arc::clone(&self.silent), ..self.quiet(self.timeout.max(timeout)) }
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

    /// The configuration file that the command line names.
    pub(super) fn named_config(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// The configuration file that is read.
    pub(super) fn config(&self) -> &Path {
        self.config.as_deref().unwrap_or(Path::new(config::DEFAULT_PATH))
    }

    /// Asks for a reload.
    ///
    /// # Errors
    /// If crimux cannot be reached.
    pub(super) async fn reload(&self, force: bool) -> anyhow::Result<ReloadReport> {
        let place = self.look_up();
        let path = format!("/v1/reload?force={force}");
        let answer: anyhow::Result<ReloadReport> =
            self.exchange_at(&place, Method::POST, &path, String::new()).await;
        let error =
            answer.as_ref().map_or_else(|error| Some(error.to_string()), |report| report.error.clone());
        self.say_problem(&place, error.as_deref());
        answer
    }

    async fn send<T: DeserializeOwned>(&self, method: Method, path: &str, text: String) -> anyhow::Result<T> {
        let place = self.look_up();
        let answer = self.exchange_at(&place, method, path, text).await;
        self.say_problem(&place, answer.as_ref().err().map(ToString::to_string).as_deref());
        answer
    }

    /// Prints what is wrong with the file, unless that was said, or is what crimux found in it and will be.
    fn say_problem(&self, place: &Place, error: Option<&str>) {
        let Some(FileProblem { message, line }) = &place.problem else { return };
        let is_told = error.is_some_and(|error| error.contains(message));
        if !is_told && !self.silent.swap(true, Ordering::Relaxed) {
            eprintln!("crimux: {line} (asking the crimux on {})", place.sockets[0].display());
        }
    }

    async fn exchange_at<T: DeserializeOwned>(
        &self,
        place: &Place,
        method: Method,
        path: &str,
        text: String,
    ) -> anyhow::Result<T> {
        let (stream, socket) = connect(place).await?;
        let pid = stream.peer_cred().ok().and_then(|credentials| credentials.pid());
        let answered = tokio::time::timeout(self.timeout, exchange(stream, socket, method, path, text));
        let no_answer = || {
            let (socket, timeout) = (socket.display(), humantime::format_duration(self.timeout));
            let (cause, look) = match pid.filter(|pid| process::is_stopped(*pid)) {
                Some(pid) => {
                    (format!("its process {pid} is stopped"), format!("kill -CONT {pid} continues it"))
                }
                None => (
                    "its process is stopped, or the node overloaded".to_owned(),
                    "ps -o pid,stat,wchan -C crimux: T is stopped; --timeout waits longer".to_owned(),
                ),
            };
            format!(
                "crimux did not answer on {socket} within {timeout}: {cause}; kubelet has no runtime meanwhile and reports the \
                 node NotReady after 30 s ({look}). See {RUNBOOK}#crimuxabsent"
            )
        };
        let (status, body) = answered.await.map_err(|_| NoAnswer(no_answer()))??;
        if status != StatusCode::OK {
            let refused = serde_json::from_slice::<ErrorBody>(&body);
            let error = refused.map_or_else(|_| format!("crimux answered with {status}"), |r| r.error);
            bail!(match status {
                StatusCode::UNPROCESSABLE_ENTITY => anyhow::Error::new(BadConfig(error)),
                _ => anyhow::Error::msg(error),
            });
        }
        let other = || "crimux answered in an unknown form; is it of another version than this command?";
        serde_json::from_slice(&body).with_context(other)
    }

    /// Returns where the running crimux may listen: on the socket of the file, even if that has problems, or
    /// on the one that it noted.
    fn look_up(&self) -> Place {
        if let Some(socket) = &self.socket {
            let socket = PathBuf::from(socket.strip_prefix("unix://").unwrap_or(socket));
            return Place { sockets: vec![socket], problem: None, may_have_moved: false };
        }
        let file = self.config();
        let (known, problem) = match self.known.clone().map_or_else(|| Self::named_in(file), Ok) {
            Ok(known) => (known, None),
            Err(error) => {
                let socket = config::admin_socket_of(file).unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET));
                ((socket, config::state_dir_of(file)), Some(FileProblem::of(&error)))
            }
        };
        let (socket, state_dir) = known;
        let noted = socket_note::read(&state_dir);
        // With both keys at their defaults, or with a note in state_dir, it is not the file that misleads.
        let is_usual =
            socket == Path::new(DEFAULT_SOCKET) || state_dir == Path::new(config::DEFAULT_STATE_DIR);
        let may_have_moved = noted.is_none() && !is_usual;
        let noted = noted.filter(|noted| *noted != socket);
        Place { sockets: iter::once(socket).chain(noted).collect(), problem, may_have_moved }
    }

    /// Returns `admin.socket` and `state_dir` of a file.
    fn named_in(file: &Path) -> Result<(PathBuf, PathBuf), ConfigError> {
        Config::load(file).map(|config| (config.admin.socket, config.state_dir))
    }
}

/// Where the running crimux may listen.
struct Place {
    /// The sockets to try, one after the other; at least one.
    sockets: Vec<PathBuf>,
    /// What is wrong with the file that names them.
    problem: Option<FileProblem>,
    /// Whether the crimux that runs may have started with another `admin.socket` and `state_dir`.
    may_have_moved: bool,
}

/// What is wrong with the file.
struct FileProblem {
    /// The first problem, without file and place, which the running crimux may name otherwise.
    message: String,
    /// The first problem with its place, and how many more there are.
    line: String,
}

impl FileProblem {
    fn of(error: &ConfigError) -> Self {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        match error {
            ConfigError::Invalid { problems: Problems(problems), .. } if problems.len() > 1 => Self {
                message: problems[0].to_string(),
                line: format!("{first}, and {} more", problems.len() - 1),
            },
            ConfigError::Invalid { problems, .. } => {
                Self { message: problems.to_string(), line: first.to_owned() }
            }
            ConfigError::Read { .. } => Self { message: first.to_owned(), line: first.to_owned() },
        }
    }
}

/// Parses a duration of the command line, which may be written as in the configuration or as `5 sec`.
///
/// # Errors
/// If the text is not a duration; the message says what to write.
pub(super) fn duration_argument(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| config::not_a_duration(text))
}

/// Percent-encodes a name as one segment of a path.
pub(super) fn segment(name: &str) -> impl std::fmt::Display + '_ {
    utf8_percent_encode(name, NON_ALPHANUMERIC)
}

/// Connects to the first of these sockets that is listened on. The error is that of the first.
async fn connect(place: &Place) -> anyhow::Result<(UnixStream, &Path)> {
    let mut first = None;
    for socket in &place.sockets {
        match UnixStream::connect(socket).await {
            Ok(stream) => return Ok((stream, socket)),
            Err(error) => {
                first = first.or_else(|| Some(unreachable(socket, &error, place.may_have_moved)));
            }
        }
    }
    bail!(first.unwrap_or_default())
}

async fn exchange(
    stream: UnixStream,
    socket: &Path,
    method: Method,
    path: &str,
    text: String,
) -> anyhow::Result<(StatusCode, Bytes)> {
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

fn unreachable(socket: &Path, error: &io::Error, may_have_moved: bool) -> String {
    let socket = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound => {
            let moved = "; after a change of admin.socket and state_dir, crimux listens on the old socket until its restart";
            format!(
                "there is no admin socket at {socket}: is crimux running? (systemctl status crimux; --socket or \
                 --config names another one{})",
                if may_have_moved { moved } else { "" }
            )
        }
        io::ErrorKind::ConnectionRefused => {
            format!(
                "nobody listens on {socket}: crimux has ended (systemctl status crimux, systemctl start crimux); kubelet reports the node \
                 NotReady after 30 s. See {RUNBOOK}#crimuxabsent"
            )
        }
        io::ErrorKind::PermissionDenied => format!("{socket}: permission denied; only root may (try sudo)"),
        _ => format!("{socket}: {error}"),
    }
}
