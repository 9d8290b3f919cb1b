//! The CRI sockets: binds them safely and hands each call to the proxy, which is a tonic service.
//!
//! A socket file without a listener is replaced; one with a listener is an error, so that a second crimux
//! never takes a node's socket away. Only a socket that was bound here is removed at the end; one that was
//! inherited from systemd stays. `limits.rs` bounds what clients can make crimux hold.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use grpc_http2::Reason;
use grpc_http2::server::{self as http2, IncomingRequest};
use socket2::SockRef;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tower::Service;

use crate::accept::accept_loop;
use crate::limits::ConnectionSlot;
use crate::proxy::Proxy;
use crate::shutdown::Shutdown;
pub use sockets::{ListeningSocket, Sockets};

mod sockets;

/// `SO_SNDBUF` of a client's connection, in bytes; the kernel may halve or cap it. A list of hundreds of
/// kilobytes then takes one write.
const SEND_BUFFER: usize = 1 << 20;

/// How long a client of an idle connection that makes room for another one may take to say that it opens no
/// more calls on it.
const EVICTION_TIMEOUT: Duration = Duration::from_secs(1);

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    bound: UnixListener,
    file: SocketFile,
    /// Whose it is; nothing is accepted before these are opened.
    sockets: Option<Sockets>,
}

impl Listener {
    /// Binds `path` with these permission bits and owner, and creates its directory.
    ///
    /// # Errors
    /// If another process listens there, if the file is not a socket, or if a system call fails.
    pub async fn bind(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> anyhow::Result<Self> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        remove_stale_socket(path).await?;
        let listener =
            UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
        let file = SocketFile { path: path.to_owned(), made: device_and_inode(path).ok(), socket: None };
        set_permissions(path, mode, owner)?;
        Ok(Self { bound: listener, file, sockets: None })
    }

    /// Wraps a socket that listens already, such as systemd's. `path` is the configured one; the socket's own
    /// counts.
    ///
    /// # Errors
    /// If it cannot be set to non-blocking.
    pub fn from_inherited(listener: std::os::unix::net::UnixListener, path: &Path) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let bound = address.as_pathname().unwrap_or(path);
        if bound != path {
            let (configured, inherited) = (path.display(), bound.display());
            tracing::warn!(%configured, %inherited, "listen is ignored: systemd passed another socket");
        }
        let file = SocketFile { path: bound.to_owned(), made: None, socket: None };
        Ok(Self { bound: UnixListener::from_std(listener)?, file, sockets: None })
    }

    /// Returns the path it listens on.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Returns the listener, and the file that must be dropped when listening ends.
    pub fn split(self) -> (UnixListener, SocketFile) {
        (self.bound, self.file)
    }

    /// Serves until the shutdown begins, then until the calls in flight have ended.
    pub async fn serve(self, proxy: Proxy, shutdown: Shutdown) {
        self.accept(proxy, shutdown).await.wait().await;
    }

    /// Accepts connections until the shutdown begins, then removes the socket file. Returns the connections
    /// that are still open: each closes once its calls in flight have ended.
    pub async fn accept(self, proxy: Proxy, shutdown: Shutdown) -> TaskTracker {
        let connections = TaskTracker::new();
        if let Some(sockets) = &self.sockets {
            sockets.may_accept().await;
        }
        let name = self.path().display().to_string();
        let listener = &self.bound;
        let accept = || async move { listener.accept().await.map(|(stream, _)| stream) };
        // A connection beyond the limit is closed at once.
        let serve = |stream: UnixStream| {
            let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
            // 0 is a process of another PID namespace.
            let pid = pid.filter(|pid| *pid > 0);
            if let Some(slot) = proxy.limits().accept_connection(pid) {
                connections.spawn(serve_connection(stream, proxy.for_connection(), slot, shutdown.clone()));
            }
        };
        tokio::select! {
            () = shutdown.begun() => {}
            () = accept_loop(&name, accept, serve) => {}
        }
        connections.close();
        connections
    }
}

/// Why a client's connection is closing; a later reason takes the place of an earlier one. Each sends GOAWAY.
///
/// | | the connection ends |
/// |---|---|
/// | `No` | when the client ends it |
/// | `Draining` | with its last call |
/// | `Evicted` | with its last call, or at a check that finds it unused, every [`EVICTION_TIMEOUT`] |
/// | `Replaced` | the same, and the first check is at once |
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Closing {
    No,
    Draining,
    Evicted,
    Replaced,
}

/// Serves the calls of one client until it disconnects, or until the shutdown has begun and the last call has
/// ended.
async fn serve_connection(stream: UnixStream, mut proxy: Proxy, slot: ConnectionSlot, shutdown: Shutdown) {
    if let Err(error) = SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER) {
        tracing::debug!(%error, "the send buffer of a client's connection keeps its size");
    }
    let mut client = http2::handshake(stream, proxy.limits().http2());
    let (mut draining, mut evicted) = (pin!(shutdown.into_begun()), pin!(slot.evicted()));
    let mut replaced = pin!(slot.replaced());
    let mut closing = Closing::No;
    let mut unanswered = pin!(tokio::time::sleep(Duration::MAX));
    loop {
        let call = tokio::select! {
            biased;
            call = client.accept() => call,
            () = &mut draining, if closing < Closing::Draining => {
                closing = Closing::Draining;
                client.graceful_shutdown();
                continue;
            }
            () = &mut evicted, if closing < Closing::Evicted => {
                closing = Closing::Evicted;
                client.graceful_shutdown();
                unanswered.as_mut().reset(Instant::now() + EVICTION_TIMEOUT);
                continue;
            }
            () = &mut replaced, if closing < Closing::Replaced => {
                closing = Closing::Replaced;
                client.graceful_shutdown();
                unanswered.as_mut().reset(Instant::now());
                continue;
            }
            () = &mut unanswered, if closing >= Closing::Evicted => {
                if !slot.is_used() {
                    return;
                }
                unanswered.as_mut().reset(Instant::now() + EVICTION_TIMEOUT);
                continue;
            }
        };
        match call {
            Some(Ok(IncomingRequest { request, mut respond })) => {
                let (answer, stream) = (proxy.call(request), slot.open_stream());
                // Boxed, so that the runtime moves a pointer and not the future.
                tokio::spawn(Box::pin(async move {
                    let _stream = stream;
                    if let Some(Ok(response)) = respond.unless_cancelled(answer).await {
                        respond.send_response(response).await;
                    }
                }));
                continue;
            }
            Some(Err(error)) => tracing::debug!(%error, "a client's connection failed"),
            None => {}
        }
        if let Some(goaway) = client.goaway().filter(|goaway| goaway.reason != Reason::NO_ERROR) {
            tracing::warn!(%goaway, "a client closed its connection with an error");
        }
        return;
    }
}

/// The file of a socket. Dropping this value removes the file if [`Listener::bind`] made it and it was not
/// replaced.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode of the bound file; `None` for an inherited socket.
    made: Option<(u64, u64)>,
    /// The socket, as another process may be handed it.
    socket: Option<Arc<ListeningSocket>>,
}

impl SocketFile {
    /// Returns the socket, as another process may be handed it.
    pub fn socket(&self) -> Option<Arc<ListeningSocket>> {
        self.socket.clone()
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let released = self.socket.as_ref().is_some_and(|socket| socket.is_released());
        if released || self.made.is_none() || device_and_inode(&self.path).ok() != self.made {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket file");
        }
    }
}

/// Sets the permission bits and the owner of a socket file; no owner leaves it as it is.
///
/// # Errors
/// If a system call fails, as chown(2) does without root.
pub fn set_permissions(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> anyhow::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).with_context(|| {
            let advice = "set `listen_owner: self` if crimux does not run as root";
            format!("cannot set the owner of {} ({advice})", path.display())
        })?;
    }
    Ok(())
}

/// Removes a socket file without a listener.
async fn remove_stale_socket(path: &Path) -> anyhow::Result<()> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    anyhow::ensure!(metadata.file_type().is_socket(), "{} exists and is not a socket", path.display());
    match UnixStream::connect(path).await {
        Ok(_) => {
            anyhow::bail!(
                "{} is in use: another process listens on it, perhaps another crimux",
                path.display()
            )
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).with_context(|| format!("cannot remove the stale {}", path.display()))
        }
        Err(error) => Err(error).with_context(|| format!("cannot tell whether {} is in use", path.display())),
    }
}

fn device_and_inode(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_file_has_the_mode_and_goes_with_its_value() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/here/socket");
        let bound = Listener::bind(&path, 0o640, None).await.unwrap();
        assert_eq!(bound.path(), path);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        UnixStream::connect(&path).await.unwrap();
        drop(bound);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_in_use_is_refused_and_stays_usable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _first = Listener::bind(&path, 0o600, None).await.unwrap();
        let error = Listener::bind(&path, 0o600, None).await.unwrap_err();
        assert!(error.to_string().contains("is in use"), "{error}");
        UnixStream::connect(&path).await.unwrap();
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_anything_else_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        drop(Listener::bind(&path, 0o600, None).await.unwrap());
        let elsewhere = dir.path().join("elsewhere");
        let _listening = UnixListener::bind(&elsewhere).unwrap();
        for make in [
            |path: &Path| std::fs::write(path, "x").unwrap(),
            |path: &Path| std::fs::create_dir(path).unwrap(),
            |path: &Path| std::os::unix::fs::symlink("elsewhere", path).unwrap(),
        ] {
            let path = tempfile::Builder::new().make_in(dir.path(), |path| {
                make(path);
                Ok(())
            });
            let path = path.unwrap().into_temp_path().keep().unwrap();
            let error = Listener::bind(&path, 0o600, None).await.unwrap_err();
            assert!(error.to_string().ends_with("exists and is not a socket"), "{error}");
            assert!(std::fs::symlink_metadata(&path).is_ok());
        }
    }

    #[tokio::test]
    async fn an_inherited_socket_is_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(Listener::from_inherited(listener, &path).unwrap());
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_file_that_took_the_place_of_ours_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let bound = Listener::bind(&path, 0o600, None).await.unwrap();
        // Beside ours, so that it cannot have the same inode.
        let other = dir.path().join("other");
        let _listening = UnixListener::bind(&other).unwrap();
        std::fs::rename(&other, &path).unwrap();
        drop(bound);
        assert!(path.exists());
    }
}
