//! The sockets that clients speak to: bound safely, served by tonic.
//!
//! A socket file that nobody listens on is replaced; one that somebody listens on is an error, so that a second
//! crimux never takes a node's socket away. Only a socket that was bound here is removed at the end; one that
//! was inherited from systemd stays. Flow-control windows are sized for lists of megabytes and streams are
//! unlimited, because events, pulls and ExecSync hold theirs for hours.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;

use crate::drain::Drain;
use crate::proxy::Proxy;

/// Room for a request of 16 MiB in one go.
const WINDOW: u32 = 16 << 20;

/// A socket that is listening.
#[derive(Debug)]
pub struct Bound {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket file that we made.
    made: Option<(u64, u64)>,
}

impl Bound {
    /// Binds `path`, making its directory, with these permission bits and owner.
    ///
    /// # Errors
    /// If somebody listens there already, something else than a socket stands there, or the system refuses.
    pub async fn bind(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> anyhow::Result<Self> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        clear(path).await?;
        let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
            .with_context(|| format!("cannot set the mode of {}", path.display()))?;
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::chown(path, Some(uid), Some(gid))
                .with_context(|| format!("cannot set the owner of {}", path.display()))?;
        }
        let made = identity(path).ok();
        Ok(Self { listener, path: path.to_owned(), made })
    }

    /// Takes over a socket that is listening already, such as systemd's.
    ///
    /// # Errors
    /// If it cannot be used without blocking.
    pub fn inherited(listener: std::os::unix::net::UnixListener, path: &Path) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener: UnixListener::from_std(listener)?, path: path.to_owned(), made: None })
    }

    /// Returns where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves until the drain begins, then until the calls in flight have ended.
    ///
    /// # Errors
    /// If tonic cannot serve at all.
    pub async fn serve(self, proxy: Proxy, drain: Drain) -> Result<(), tonic::transport::Error> {
        let Self { listener, path, made } = self;
        let stop = async {
            drain.begun().await;
            remove(&path, made);
        };
        tonic::transport::Server::builder()
            .initial_connection_window_size(WINDOW)
            .initial_stream_window_size(WINDOW)
            .max_concurrent_streams(None)
            .serve_with_incoming_shutdown(proxy, UnixListenerStream::new(listener), stop)
            .await
    }
}

/// Removes a socket file that nobody listens on.
async fn clear(path: &Path) -> anyhow::Result<()> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    anyhow::ensure!(metadata.file_type().is_socket(), "{} exists and is not a socket", path.display());
    match UnixStream::connect(path).await {
        Ok(_) => anyhow::bail!("{} is in use: somebody listens on it, perhaps another crimux", path.display()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).with_context(|| format!("cannot remove the stale {}", path.display()))
        }
        Err(error) => Err(error).with_context(|| format!("cannot tell whether {} is in use", path.display())),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Removes the socket file if it is still the one that was made.
fn remove(path: &Path, made: Option<(u64, u64)>) {
    if made.is_some() && identity(path).ok() == made {
        if let Err(error) = std::fs::remove_file(path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove the socket");
        }
    }
}
